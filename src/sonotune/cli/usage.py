"""How a folder with a model or an adapter is used: what its own files say beside the record of its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import TypedDict

if TYPE_CHECKING:
    from sonotune.reports.usage import Usage
    from sonotune.types import RunRecord


class _ModelEntries(TypedDict, total=False):
    """What is read of `config.json` and `generation_config.json`."""

    model_type: str
    lang_to_id: dict[str, int] | None


def usage_in(folder: Path, record: RunRecord, kind: Literal["adapter", "model"]) -> Usage:
    """How what lies in the folder is used.

    Args:
        folder: With the model or the adapter.
        record: Of its run.
        kind: What lies there.
    """
    from sonotune.adapters.metadata import METADATA, read_entries
    from sonotune.reports.card import usage_of

    usage = usage_of(record, kind)
    if kind == "adapter":
        metadata = read_entries(folder / METADATA) if (folder / METADATA).is_file() else {}
        outputs, bits = bool(metadata.get("outputs")), int(metadata.get("bits", 16))
        usage = replace(usage, brings_outputs=outputs, bits=bits)
    home = _home(folder, str(record.model.get("checkpoint", "")), kind)
    if usage.family == "whisper":
        return _whisper(usage, _read(home / "generation_config.json"))
    if usage.family == "ctc":
        config = _read(home / "config.json") or {}
        return replace(usage, masks_frames=config.get("model_type") == "parakeet_ctc")
    return _qwen3_asr(usage) if usage.family == "qwen3_asr" else usage


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
    from sonotune.registry import is_asset, resolve_asset

    return folder if kind == "model" else resolve_asset(base) if is_asset(base) else Path(base)


def _read(file: Path) -> Mapping[str, Any] | None:
    from pydantic import TypeAdapter

    from sonotune.errors import ModelError
    from sonotune.json_files import read_json

    if not file.is_file():
        return None
    return read_json(file, TypeAdapter(_ModelEntries), error=ModelError, do="Copy the file again.")
