"""What is written beside trained weights: what they were made of, and what is to be known when they are used.

An adapter or a model that a run keeps has it in `sonotune.json`, an export in `sonotune_export.json`, a run in
`run.json`. Every entry that is read again is checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from sonotune.errors import AdapterError, RunDirectoryError
from sonotune.json_files import Count, Number, check_json, read_json
from sonotune.models.base import LoadedModel
from sonotune.models.frame_merging.rules import RULES
from sonotune.models.frame_merging.settings import AudioMethod
from sonotune.paths import is_file, is_folder
from sonotune.registry import is_asset, resolve_asset
from sonotune.runs import read_record
from sonotune.runs.record import CalibrationEntries
from sonotune.types import Context

METADATA = "sonotune.json"
METADATA_SCHEMA = 1
"""Of `sonotune.json` and of `sonotune_export.json`."""
BESIDE = "./"
"""A base whose name in `sonotune.json` begins so lies in the folder of the adapter, wherever that is moved."""
PEFT_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_MAX_BYTES = 16 * 2**20
_COPY = "Copy the folder again."


def _is_a_kind(name: str) -> str:
    if name == "none":
        raise ValueError("it must be the name of a kind of adapter")
    return name


def _is_a_rule(name: str) -> str:
    if name not in RULES:
        raise ValueError(f"it must be one of {', '.join(RULES)}")
    return name


_Ratio = Annotated[Number, Field(ge=0, lt=1)]


@with_config(extra="forbid")
class _Thinning(TypedDict, total=False):
    margin: Count
    spacing: Annotated[Count, Field(ge=1)]


@with_config(extra="forbid")
class _FrameMerging(TypedDict, total=False):
    ratio: _Ratio
    layers: list[Annotated[Count, Field(ge=1)]]
    rule: Annotated[str, AfterValidator(_is_a_rule)]
    noise_weight: Annotated[Number, Field(ge=0, lt=1)]
    min_positions: Annotated[Count, Field(ge=1)]
    audio_ratio: _Ratio
    audio_method: AudioMethod


class _Entries(TypedDict, total=False):
    """What is read of `sonotune.json`."""

    schema: Count
    adapter: Annotated[str, AfterValidator(_is_a_kind)]
    family: str | None
    checkpoint: str | None
    revision: str | None
    context: Literal["thinned", "full", "cut", "dynamic"]
    thinning: _Thinning
    frame_merging: _FrameMerging
    trained_contexts: list[Context]
    bits: Literal[4, 8, 16]
    double: bool
    quantization_skip: list[str]
    outputs: list[str]
    language: str | None
    text_scoring: str | None
    min_duration_s: Number
    max_duration_s: Number | None
    multi_label: bool
    tokens_per_second: Number
    silence_db: Number
    gate_seed: Count
    calibration: CalibrationEntries
    primary: str
    scores: list[str]


LARGEST_ALPHA = 1e6
"""The update is scaled by alpha / rank: beyond this, products in 32 bits are no longer numbers."""
_Alpha = Annotated[Number, Field(gt=0, le=LARGEST_ALPHA)]
_Rank = Annotated[Count, Field(ge=1)]


class _PeftEntries(TypedDict, total=False):
    """What PEFT uses of a LoRA, typed here because PEFT itself checks little of it."""

    base_model_name_or_path: str | None
    peft_type: str | None
    task_type: str | None
    target_modules: list[str] | str | None
    exclude_modules: list[str] | str | None
    modules_to_save: list[str] | None
    layers_to_transform: list[Count] | Count | None
    layers_pattern: list[str] | str | None
    r: _Rank
    lora_alpha: _Alpha
    rank_pattern: dict[str, _Rank | list[bool]] | None  # lists are AdaLoRA's
    alpha_pattern: dict[str, _Alpha] | None
    lora_dropout: Annotated[Number, Field(ge=0, le=1)]
    bias: Literal["none", "all", "lora_only"]
    fan_in_fan_out: bool
    use_rslora: bool
    use_dora: bool


_ENTRIES, _PEFT_ENTRIES = TypeAdapter(_Entries), TypeAdapter(_PeftEntries)


def write_metadata(loaded: LoadedModel, folder: Path, *, extra: Mapping[str, Any]) -> None:
    """Write `sonotune.json`: what a model was made of, and what else is to be known when it is used."""
    metadata = {
        "schema": METADATA_SCHEMA,
        "family": loaded.family.name,
        "checkpoint": absolute_folder(loaded.checkpoint),
        "revision": loaded.revision,
        "context": loaded.context,
        "trained_contexts": list(loaded.trained_contexts),
        "thinning": asdict(loaded.thinning),
        **merging_entry(loaded),
        "tokens_per_second": loaded.tokens_per_second,
        **({"adapter": loaded.names.name} if loaded.adapter is not None else {}),
        **extra,
    }
    (folder / METADATA).write_text(json.dumps(metadata, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def merging_entry(loaded: LoadedModel) -> dict[str, Any]:
    """The entry `frame_merging` of a record; none where nothing is merged."""
    return {"frame_merging": loaded.merging.plain()} if loaded.merging.parts else {}


def absolute_folder(checkpoint: str) -> str:
    """A folder's name, readable from any working directory; another name as it is."""
    base = Path(checkpoint)
    return str(base.resolve()) if is_folder(base) else checkpoint


def name_for_peft(checkpoint: str) -> str:
    """The base under a name that plain PEFT opens on this machine: it knows no packaged models."""
    return str(resolve_asset(checkpoint)) if is_asset(checkpoint) else absolute_folder(checkpoint)


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
    found = read_json(path, _ENTRIES, error=AdapterError, do=_COPY, max_bytes=_MAX_BYTES)
    entries = cast("dict[str, Any]", found)
    if entries.get("schema", METADATA_SCHEMA) > METADATA_SCHEMA:
        raise AdapterError(
            f"{path} has schema {entries['schema']}, and this version of sonotune reads {METADATA_SCHEMA} at most: a "
            "newer one wrote it, and what it says of the model would be read wrongly. Update sonotune."
        )
    if entries.get("context") == "dynamic":  # what older versions called it
        entries["context"] = "cut"
    return entries


def peft_entries(folder: Path) -> dict[str, Any]:
    """The entries of `adapter_config.json`.

    Raises:
        AdapterError: It is missing, no JSON object, has an entry that PEFT cannot use, or scales its update beyond
            `LARGEST_ALPHA`.
    """
    path = folder / PEFT_CONFIG
    if not path.is_file():
        raise AdapterError(f"{folder} holds no adapter: {PEFT_CONFIG} is missing.")
    found = read_json(path, _PEFT_ENTRIES, error=AdapterError, do=_COPY, max_bytes=_MAX_BYTES)
    return cast("dict[str, Any]", found)


USED = (
    ("model", "language"),
    ("data", "text_scoring"),
    ("data", "min_duration_s"),
    ("data", "max_duration_s"),
    ("data", "multi_label"),
    ("data", "silence_db"),
    ("evaluation", "primary"),
    ("evaluation", "scores"),
)
"""Section and name of the settings of a run that hold for the use of what it made, wherever that goes."""
_OF_MODEL = ("trained_contexts", "thinning", "frame_merging", "tokens_per_second")
EXPORT_MARK = "sonotune_export.json"
"""Written into every export: what it was made of, and the settings in `USED`."""


_OF_TRAINERS = ("training_args.bin", "trainer_state.json", PEFT_CONFIG)
_TUNED = "so that another tool tuned it, over the whole window"
_PUBLISHER = "openai/"  # of the hub names whose weights were measured over the thinned window


def use_of(checkpoint: str) -> dict[str, Any]:
    """The settings in `USED` that a run, an adapter or an export was made with, by their names alone, and its contexts.

    A setting that is not written down there is absent. Contexts are `context`, in which it was trained, and
    `trained_contexts`; beside them stand `thinning`, `frame_merging` and `tokens_per_second` (`LoadedModel`). What
    another tool trained has the context `full`, for all of them pad to the window. Empty for weights as published.

    Args:
        checkpoint: What was named.

    Raises:
        RunDirectoryError: It is a run whose record is damaged.
        AdapterError: It is an adapter or an export whose description is damaged.
    """
    place = resolve_asset(checkpoint) if is_asset(checkpoint) else Path(checkpoint)
    found: dict[str, Any] = {}
    if is_file(place / "run.json"):
        record = read_record(place)
        found = {name: record.config.get(section, {}).get(name) for section, name in USED}
        context = record.model.get("context") or record.config.get("model", {}).get("context")
        found["context"] = {"dynamic": "cut", "auto": None}.get(context, context)
        found |= {name: record.model.get(name) for name in _OF_MODEL}
        found["language"] = record.model.get("language") or found["language"]
        if record.config.get("model", {}).get("full_context_share") and found["trained_contexts"] is None:
            found["trained_contexts"] = [found["context"], "full"]  # an older record, of both
        found = {name: value for name, value in found.items() if value is not None}
        do = "Restore the record."
        check_json(found, _ENTRIES, where=f"{place / 'run.json'}", error=RunDirectoryError, do=do)
    else:
        described = next((path for name in (EXPORT_MARK, METADATA) if is_file(path := place / name)), None)
        found = read_entries(described) if described else {}
        if tuned_elsewhere(checkpoint):
            found["context"] = "full"
    wanted = (*(name for _, name in USED), "context", *_OF_MODEL)
    return {name: found[name] for name in wanted if found.get(name) is not None}


def tuned_elsewhere(checkpoint: str) -> str | None:
    """Why weights without a record of ours are taken for tuned by another tool; None where nothing says so.

    Args:
        checkpoint: What was named, of which `use_of` found no record.
    """
    place = resolve_asset(checkpoint) if is_asset(checkpoint) else Path(checkpoint)
    if is_folder(place):
        if any(is_file(place / name) for name in (EXPORT_MARK, METADATA, "run.json")):
            return None
        left = next((name for name in _OF_TRAINERS if is_file(place / name)), None)
        return left and f"{left} lies beside the weights and no record of sonotune, {_TUNED}"
    if checkpoint.count("/") != 1 or checkpoint.startswith((_PUBLISHER, ".", "/", "~")):
        return None
    return f"{checkpoint} is not one of {_PUBLISHER}, {_TUNED}"
