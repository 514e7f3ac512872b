"""How a folder with a model or an adapter is used: what its own files say beside the record of its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import TypedDict

from sonotune.json_files import Number

if TYPE_CHECKING:
    from sonotune.reports.usage import Usage
    from sonotune.types import RunRecord


class _ModelEntries(TypedDict, total=False):
    """What is read of `config.json` and `generation_config.json`."""

    model_type: str
    lang_to_id: dict[str, int] | None


class _FeatureEntries(TypedDict, total=False):
    """What is read of features: seconds of Whisper's window, or frames of 10 ms of a spectrogram."""

    chunk_length: Number | None
    max_length: Number | None


class _ProcessorEntries(_FeatureEntries, total=False):
    """What is read of `preprocessor_config.json`, and of `processor_config.json`, which has the features in a part."""

    feature_extractor: _FeatureEntries


def usage_in(folder: Path, record: RunRecord, kind: Literal["adapter", "model"]) -> Usage:
    """How what lies in the folder is used.

    Args:
        folder: With the model or the adapter.
        record: Of its run.
        kind: What lies there.
    """
    from sonotune.reports.card import usage_of

    usage, base = usage_of(record, kind), str(record.model.get("checkpoint", ""))
    if kind == "adapter":
        usage, base = _adapter(usage, folder, base)
    home = _home(folder, base, kind)
    usage = replace(usage, window_s=_window_s(usage.family, folder, home) or usage.window_s)
    if usage.family == "whisper":
        return _whisper(usage, read_model_entries(home / "generation_config.json"))
    if usage.family == "ctc":
        config = read_model_entries(home / "config.json") or {}
        return replace(usage, masks_frames=config.get("model_type") == "parakeet_ctc")
    return _qwen3_asr(usage) if usage.family == "qwen3_asr" else usage


def _adapter(usage: Usage, folder: Path, base: str) -> tuple[Usage, str]:
    """What the files of an adapter say, and the base that it is to be used with."""
    from sonotune.adapters.metadata import BESIDE, METADATA, PEFT_CONFIG, peft_entries, read_entries

    metadata = read_entries(folder / METADATA) if (folder / METADATA).is_file() else {}
    config = peft_entries(folder) if (folder / PEFT_CONFIG).is_file() else {}
    usage = replace(
        usage,
        brings_outputs=bool(metadata.get("outputs")),
        bits=int(metadata.get("bits", 16)),
        patterns=tuple(name for name in _UNREAD if config.get(name)),
        rank=int(config.get("r", 0)),
    )
    named = str(metadata.get("checkpoint") or "")
    return (replace(usage, base=named, revision=None), named) if named.startswith(BESIDE) else (usage, base)


_UNREAD = ("rank_pattern", "alpha_pattern", "modules_to_save", "use_dora")


def _window_s(family: str, folder: Path, home: Path) -> float | None:
    """Seconds that a model takes at once, by the features beside it or beside its base."""
    if family not in ("whisper", "ast"):
        return None
    for place in (folder, home):
        whole = read_processor_entries(place / "processor_config.json") or {}
        found = read_processor_entries(place / "preprocessor_config.json") or whole.get("feature_extractor") or {}
        if family == "whisper" and (seconds := found.get("chunk_length")):
            return float(seconds)
        if family == "ast" and (frames := found.get("max_length")):
            return float(frames) / 100
    return None


def _whisper(usage: Usage, decoding: Mapping[str, Any] | None) -> Usage:
    """The language by its code, where the model is told any."""
    from sonotune.models.languages import find_code

    if decoding is None:
        return usage
    known = {token.strip("<|>") for token in decoding.get("lang_to_id") or {}}
    code = None if usage.language is None else find_code(usage.language, known)
    return replace(usage, multilingual=bool(known), language=code)


def _qwen3_asr(usage: Usage) -> Usage:
    """The language by its English name."""
    from sonotune.models.families.qwen3_asr_text import language_name, trained_languages

    name = None if usage.language is None else language_name(usage.language)
    return replace(usage, language=name, listed_language=name is None or name in trained_languages().values())


def _home(folder: Path, base: str, kind: str) -> Path:
    """The folder of the whole model; of an adapter its base, which may not be on this machine."""
    from sonotune.adapters.metadata import BESIDE
    from sonotune.registry import is_asset, resolve_asset

    if kind == "model":
        return folder
    if base.startswith(BESIDE):
        return folder / base
    return resolve_asset(base) if is_asset(base) else Path(base)


def read_model_entries(file: Path) -> Mapping[str, Any] | None:
    """What is used of `config.json` and `generation_config.json`; None where there is no file. Raises ModelError."""
    return _read(file, _ModelEntries)


def read_processor_entries(file: Path) -> Mapping[str, Any] | None:
    """What is used of `preprocessor_config.json` and `processor_config.json`; see `read_model_entries`."""
    return _read(file, _ProcessorEntries)


def _read(file: Path, entries: Any) -> Mapping[str, Any] | None:
    from pydantic import TypeAdapter

    from sonotune.errors import ModelError
    from sonotune.json_files import read_json

    if not file.is_file():
        return None
    found: Mapping[str, Any] = read_json(file, TypeAdapter(entries), error=ModelError, do="Copy the file again.")
    return found
