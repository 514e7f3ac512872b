"""Settings of a checkpoint that would make `transformers` fetch or run code from elsewhere.

A model folder is data. Its JSON files can nevertheless name kernels on the hub as their attention, a module of Python
as their architecture, a search that lies on the hub, another repository as their audio tokenizer, or a library that
unpacks quantised weights. They are read here before `transformers` reads them: what it ships itself is passed on,
anything else is refused, without a connection and without an import.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from sonotune.errors import ModelError
from sonotune.json_files import OBJECT, read_json

ATTENTION: Final = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
"""Ways of computing attention that `transformers` ships; those of flash attention where their package is installed."""
EXPERTS: Final = ("eager", "batched_mm", "grouped_mm")
"""Ways of computing mixtures of experts that need nothing but torch."""

_AUDIO_TOKENIZER: Final = "audio_tokenizer_config.json"
FILES: Final = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    _AUDIO_TOKENIZER,
)
"""What `transformers` reads of a checkpoint beside its weights and the tokens themselves."""

CLASS_NAMES: Final = frozenset({"label2id"})
"""Settings whose keys are names of classes, and no settings."""

_PACKAGES: Final = MappingProxyType({"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"})
_CHOICES: Final = MappingProxyType(
    {
        "attn_implementation": ATTENTION,
        "_attn_implementation": ATTENTION,
        "_attn_implementation_internal": ATTENTION,
        "experts_implementation": EXPERTS,
        "_experts_implementation": EXPERTS,
        "_experts_implementation_internal": EXPERTS,
    }
)
_QUANTIZED: Final = "Take the checkpoint that is not quantised; quantization.bits=4 quantises it here"
_SEARCH: Final = "it asks for a search that is fetched from the hub. Take the entry out; see evaluation.beam_size"
_REFUSED: Final = MappingProxyType(
    {
        "penalty_alpha": _SEARCH,
        "dola_layers": _SEARCH,
        "constraints": _SEARCH,
        "force_words_ids": _SEARCH,
        "num_beam_groups": _SEARCH,
        "auto_map": "it names code of the checkpoint's own, which is never run. Where transformers has this "
        "architecture itself, take the entry out",
        "custom_generate": "it names code of the checkpoint's own, which is never run. Take the entry out",
        "kernel_config": "it names compute kernels that would be fetched. Take the entry out",
        "use_kernels": "it asks for compute kernels that would be fetched. Take the entry out",
        "audio_tokenizer": "it names another checkpoint that would be fetched. Take the entry out",
        "audio_tokenizer_name_or_path": "it names another checkpoint that would be fetched. Take the file out",
        "quantization_config": f"its weights are quantised already, for a library that would unpack them. {_QUANTIZED}",
        "compression_config": f"its weights are quantised already, for a library that would unpack them. {_QUANTIZED}",
    }
)


def check_settings_files(source: Path | str, revision: str | None) -> None:
    """Refuse a checkpoint whose settings name code from elsewhere.

    Args:
        source: A folder, or a hub name, of which the files in `FILES` are fetched where there is a network.
        revision: Of a hub name.

    Raises:
        ModelError: The message names the file, the key and the value; or a file is no JSON object.
        OSError: The hub checkpoint cannot be reached, or is none.
    """
    for path in settings_files(source, revision):
        for place, key, value in _settings(read_json(path, OBJECT, error=ModelError, do="Copy the file again."), ""):
            if problem := _problem(key, value):
                raise ModelError(f"{path}: {place} is {_shown(value)}, and {problem}.")


def settings_files(source: Path | str, revision: str | None) -> list[Path]:
    """The files in `FILES` that a folder or a hub checkpoint has.

    Raises:
        OSError: The hub checkpoint cannot be reached, or is none.
    """
    if isinstance(source, str):
        return _of_hub(source, revision)
    return [path for name in FILES if (path := source / name).exists()]


@functools.lru_cache(maxsize=64)  # a loading asks several times, and every time would be a connection
def _of_hub(name: str, revision: str | None) -> list[Path]:
    from transformers.utils import cached_file  # noqa: PLC0415

    found = []
    for file in FILES:
        path = cached_file(
            name,
            file,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=file == FILES[0],  # offline, others may not be in the cache
        )
        if path is not None:
            found.append(Path(path))
    return found


def _settings(value: Any, place: str) -> Iterator[tuple[str, str, Any]]:
    """Every key at any depth: its path, its name and its value."""
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, child in parts:
        path = f"{place}.{key}" if place else str(key)
        yield path, str(key), child
        if key not in CLASS_NAMES:
            yield from _settings(child, path)


def _problem(key: str, value: Any) -> str | None:
    if key in _REFUSED:
        asked = value != 1 if key == "num_beam_groups" else True  # one group is plain beam search
        return _REFUSED[key] if value and asked else None
    if key not in _CHOICES or value is None:
        return None
    allowed = _CHOICES[key]
    named = list(value.values()) if isinstance(value, Mapping) else [value]
    for one in named:
        if one is not None and one not in allowed:
            return f"known are {', '.join(allowed)}; nothing else is fetched. Take the entry out"
        if one in _PACKAGES and not _is_installed(one):
            return f"the package {_PACKAGES[one]} that it needs is not installed. Take the entry out"
    return None


def _is_installed(attention: str) -> bool:
    from transformers import utils  # noqa: PLC0415

    known = {
        "flash_attention_2": utils.is_flash_attn_2_available,
        "flash_attention_3": utils.is_flash_attn_3_available,
    }
    return bool(known[attention]())


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
