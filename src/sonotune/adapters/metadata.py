"""What is written beside trained weights: what they were made of, and what is to be known when they are used.

An adapter or a model that a run keeps has it in `sonotune.json`, an export in `sonotune_export.json`, a run in
`run.json`. Every entry that is read again is checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel
from sonotune.models.thinning import Thinning
from sonotune.registry import is_asset, resolve_asset
from sonotune.runs import read_record
from sonotune.types import CONTEXTS

METADATA = "sonotune.json"
PEFT_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def write_metadata(loaded: LoadedModel, folder: Path, *, extra: Mapping[str, Any]) -> None:
    """Write `sonotune.json`: what a model was made of, and what else is to be known when it is used."""
    metadata = {
        "schema": 1,
        "family": loaded.family.name,
        "checkpoint": absolute_folder(loaded.checkpoint),
        "revision": loaded.revision,
        "context": loaded.context,
        "trained_contexts": list(loaded.trained_contexts),
        "thinning": asdict(loaded.thinning),
        **({"adapter": loaded.names.name} if loaded.adapter is not None else {}),
        **extra,
    }
    (folder / METADATA).write_text(json.dumps(metadata, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def absolute_folder(checkpoint: str) -> str:
    """A folder's name, readable from any working directory; another name as it is."""
    base = Path(checkpoint)
    return str(base.resolve()) if base.is_dir() else checkpoint


def read_metadata(folder: Path) -> dict[str, Any]:
    """The entries of `sonotune.json`; empty for an adapter made by another PEFT tool.

    Raises:
        AdapterError: The folder holds no adapter, or one of its two descriptions is damaged.
    """
    path = folder / METADATA
    entries = read_entries(path) if path.is_file() else {}
    if entries.get("adapter", "lora") == "lora":
        peft_entries(folder)
    return entries


def read_entries(path: Path) -> dict[str, Any]:
    """The entries of a `sonotune.json`, or of another file that has some of them.

    Raises:
        AdapterError: It is no JSON object, or an entry has a value that it cannot have.
    """
    entries = _read_object(path)
    for name, (fits, allowed) in _ENTRIES.items():
        if name in entries and not fits(entries[name]):
            raise AdapterError(
                f"{path}: {name} is {entries[name]!r}, and it must be {allowed}. Copy the folder again, as "
                "sonotune wrote it."
            )
    if entries.get("context") == "dynamic":  # what older versions called it
        entries["context"] = "cut"
    return entries


def peft_entries(folder: Path) -> dict[str, Any]:
    """The entries of `adapter_config.json`.

    Raises:
        AdapterError: It is missing, or no JSON object.
    """
    path = folder / PEFT_CONFIG
    if not path.is_file():
        raise AdapterError(f"{folder} holds no adapter: {PEFT_CONFIG} is missing.")
    return _read_object(path)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} is damaged: {error}. Copy the folder again.") from error
    if not isinstance(entries, dict):
        raise AdapterError(f"{path} holds a {type(entries).__name__}, not an object. Copy the folder again.")
    return entries


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_thinning(value: Any) -> bool:
    try:
        Thinning(**value)
    except (TypeError, ValueError):
        return False
    return all(isinstance(number, int) for number in value.values())


_TEXT, _TEXTS, _SECONDS = (_is_text, "text"), (_is_texts, "a list of texts"), (_is_seconds, "a number of seconds")
_SWITCH = (lambda value: isinstance(value, bool), "true or false")
_ENTRIES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "adapter": (lambda value: isinstance(value, str) and value != "none", "the name of a kind of adapter"),
    "family": _TEXT,
    "checkpoint": _TEXT,
    "revision": _TEXT,
    "context": (lambda value: value in (*CONTEXTS, "dynamic"), " or ".join(CONTEXTS)),
    "thinning": (lambda value: _is_thinning(value), "a margin and a spacing"),
    "trained_contexts": (lambda value: _is_texts(value) and set(value) <= set(CONTEXTS), "a list of contexts"),
    "bits": (lambda value: not isinstance(value, bool) and value in (4, 8, 16), "4, 8 or 16"),
    "double": _SWITCH,
    "quantization_skip": _TEXTS,
    "outputs": _TEXTS,
    "language": _TEXT,
    "text_scoring": _TEXT,
    "min_duration_s": _SECONDS,
    "max_duration_s": (lambda value: value is None or _is_seconds(value), "a number of seconds, or null"),
    "multi_label": _SWITCH,
}
"""What `sonotune.json` may hold: a test of each entry that is read again, and what it must be."""


USED = (
    ("model", "language"),
    ("data", "text_scoring"),
    ("data", "min_duration_s"),
    ("data", "max_duration_s"),
    ("data", "multi_label"),
)
"""Section and name of the settings of a run that hold for the use of what it made, wherever that goes."""
EXPORT_MARK = "sonotune_export.json"
"""Written into every export: what it was made of, and the settings in `USED`."""


def use_of(checkpoint: str) -> dict[str, Any]:
    """The settings in `USED` that a run, an adapter or an export was made with, by their names alone, and its contexts.

    Empty for any other model but a packaged one; a setting that is not written down there is absent. Contexts are
    `context`, in which it was trained, and `trained_contexts` (`LoadedModel`).

    Args:
        checkpoint: What was named.

    Raises:
        RunDirectoryError: It is a run whose record is damaged.
        AdapterError: It is an adapter or an export whose description is damaged.
    """
    place = resolve_asset(checkpoint) if is_asset(checkpoint) else Path(checkpoint)
    found: dict[str, Any] = {}
    if (place / "run.json").is_file():
        record = read_record(place)
        found = {name: record.config.get(section, {}).get(name) for section, name in USED}
        context = record.model.get("context") or record.config.get("model", {}).get("context")
        found["context"] = {"dynamic": "cut", "auto": None}.get(context, context)
        found |= {name: record.model.get(name) for name in ("trained_contexts", "thinning")}
        found["language"] = record.model.get("language") or found["language"]
        if record.config.get("model", {}).get("full_context_share") and found["trained_contexts"] is None:
            found["trained_contexts"] = [found["context"], "full"]  # an older record, of both
    else:
        described = next((path for name in (EXPORT_MARK, METADATA) if (path := place / name).is_file()), None)
        found = read_entries(described) if described else {}
    wanted = (*(name for _, name in USED), "context", "trained_contexts", "thinning")
    return {name: found[name] for name in wanted if found.get(name) is not None}
