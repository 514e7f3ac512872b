"""Average several runs of one base into one adapter, or one model, that loads like any other.

What is written is read back before the folder takes its name: an adapter must add to every weight what the average of
its members adds.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from sonotune.adapters.averaging import (
    Factors,
    Shortening,
    add_share,
    average_factors,
    difference_of,
    shorten,
    write_average,
)
from sonotune.adapters.kinds.base import kind_named, kind_of, read_tensors
from sonotune.adapters.metadata import METADATA, USED, peft_entries, read_entries, write_metadata
from sonotune.errors import AdapterError, ConfigError, RunDirectoryError
from sonotune.loading import Opened, find_adapter, model_folder, open_model
from sonotune.models.base import LoadedModel
from sonotune.models.checkpoints import as_os_error
from sonotune.models.weight_files import weights_digest
from sonotune.paths import exists, is_file
from sonotune.progress import phase
from sonotune.runs import write_error
from sonotune.runs.folders import replacing

LARGEST_READ_ERROR = 1e-5
"""Of what the adapter that was read back adds to a weight, as a part of what it should add."""
_KEPT = (*(name for _, name in USED), "bits", "double", "quantization_skip", "outputs", "gate_seed")
"""Entries of `sonotune.json` that hold for the average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageMember:
    """What is averaged.

    Attributes:
        place: A run, an adapter or a model folder, as it was named.
        share: Its part of the average; all are 1 together.
    """

    place: str
    share: float


class _Read(NamedTuple):
    """What a member brings: either factors and what trained beside them, or all weights.

    Attributes:
        factors: Of an adapter; empty for a whole model.
        shapes: Of what trained in full, or of all weights.
        trained_in_full: Modules that the weights beside an adapter belong to.
        digest: Of the files of weights.
        facts: What members must agree on.
        settings: Of its use.
        base: `checkpoint` and `revision` of what it was tuned from, where that is known.
    """

    factors: Factors
    shapes: Mapping[str, tuple[int, ...]]
    trained_in_full: tuple[str, ...]
    digest: str
    facts: Mapping[str, Any]
    settings: Mapping[str, Any]
    base: Mapping[str, Any]


def members_of(places: Sequence[str], shares: Sequence[float] | None) -> list[AverageMember]:
    """The members with their parts of the average.

    Args:
        places: As they were named.
        shares: Weight of each, in any unit; None gives all the same.

    Raises:
        ConfigError: There are fewer than two members, or the shares are not as many, or not positive.
    """
    if len(places) < 2:
        raise ConfigError(f"an average has at least two members; found {len(places)}. Name more runs of the same base.")
    if shares is None:
        shares = [1.0] * len(places)
    if len(shares) != len(places) or any(not math.isfinite(share) or share <= 0 for share in shares):
        raise ConfigError(
            f"--shares has {', '.join(f'{share:g}' for share in shares)} for {len(places)} members; one number above 0 "
            "is needed for each."
        )
    whole = math.fsum(shares)
    return [AverageMember(place=place, share=share / whole) for place, share in zip(places, shares, strict=True)]


def average(members: Sequence[AverageMember], folder: Path, *, rank: int | None = None) -> dict[str, Any]:
    """Write the average of several adapters, or of several fully tuned models, of one base.

    Args:
        members: Of `members_of`.
        folder: Where to write; must not exist.
        rank: Of adapters: shorten the update of every module to at most this rank by SVD; None keeps it exact, with
            the sum of the members' ranks.

    Returns:
        `average` (the folder), `kind` (`adapter` or `model`), `members` (place, share, digest), `bytes`, and for
        adapters `rank` (the largest), `ranks` (the sum over modules) and `error` (None where the average is exact).

    Raises:
        AdapterError: The members cannot be averaged; the message names the first difference.
        ConfigError: `rank` for whole models.
        RunDirectoryError: The folder exists, or cannot be written.
        ResourceError: The disk is full; nothing half written is left.
    """
    folder = folder.resolve()
    if folder.exists():
        raise RunDirectoryError(f"{folder} exists already. Name another folder.")
    adapted = [find_adapter(one.place) is not None for one in members]
    if len(set(adapted)) > 1:
        whole, part = members[adapted.index(False)].place, members[adapted.index(True)].place
        raise AdapterError(
            f"{part} is an adapter and {whole} a whole model. Merge the adapter first (`sonotune export {part} FOLDER "
            "--dtype fp32`), or leave one out."
        )
    if rank is not None and not adapted[0]:
        raise ConfigError("--rank is of adapters, and these are whole models. Leave it out.")
    opened, read, weights = _read_all(members)
    told = [
        {"place": one.place, "share": one.share, "digest": found.digest}
        for one, found in zip(members, read, strict=True)
    ]
    try:
        with replacing(folder) as draft:
            if adapted[0]:
                made = _write_adapter(opened, [one.share for one in members], read, weights, draft, rank, told)
            else:
                made = _write_model(opened, read, weights, draft, told)
    except (OSError, SafetensorError) as error:
        raise write_error(as_os_error(error), folder, 0, choose="the folder to write to") from error
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"average": str(folder), "bytes": size, **made, "warnings": _warnings(members, read)}


def _warnings(members: Sequence[AverageMember], read: Sequence[_Read]) -> list[str]:
    """Members that are the same, and members of which nothing says what they were tuned from."""
    told, seen = list[str](), dict[str, str]()
    for one, found in zip(members, read, strict=True):
        if found.digest in seen:
            told.append(f"{one.place} has the weights of {seen[found.digest]}: they count twice in the average.")
        seen.setdefault(found.digest, one.place)
        if "base" not in found.facts:
            told.append(f"{one.place} does not say what it was tuned from: only names and shapes were compared.")
    return told


def _read_all(members: Sequence[AverageMember]) -> tuple[Opened, list[_Read], dict[str, Tensor]]:
    """The first member, open; what all of them bring; and the average of their weights. Refuses unlike members."""
    first, found, total = None, list[_Read](), dict[str, Tensor]()
    for member in members:
        if not exists(Path(member.place)):
            raise AdapterError(f"{member.place} does not exist. Name runs, adapters or model folders.")
        opened = open_model(member.place, precision="fp32", bits=16)
        read, weights = _read_one(member, opened)
        _check_same(members[0].place, found[0] if found else read, member.place, read)
        total = add_share(total, weights, member.share)
        found.append(read)
        if first is None:
            first = opened
        else:
            del opened, weights
            gc.collect()  # one model beside the first
    if first is None:
        raise ConfigError("an average has at least two members.")
    return first, found, total


def _read_one(member: AverageMember, opened: Opened) -> tuple[_Read, Mapping[str, Tensor]]:
    """What a member brings, and its weights."""
    loaded, adapter = opened.loaded, find_adapter(member.place)
    folder = adapter or Path(model_folder(member.place))
    entries = read_entries(folder / METADATA) if is_file(folder / METADATA) else {}
    base = {name: entries[name] for name in ("checkpoint", "revision") if entries.get(name)}
    facts, factors, full = _facts(opened), dict[str, tuple[Tensor, Tensor]](), tuple[str, ...]()
    weights: Mapping[str, Tensor]
    if adapter is None:
        facts |= {"base": base["revision"]} if "revision" in base else {}
        weights = loaded.module.state_dict()
    else:
        facts |= {"base": loaded.checkpoint if loaded.revision == "unknown" else loaded.revision}
        factors = _factors_of(member.place, loaded)
        weights = {name: tensor for name, tensor in read_tensors(adapter).items() if ".lora_" not in name}
        full = tuple(sorted(peft_entries(adapter).get("modules_to_save") or ()))
    read = _Read(
        factors=factors,
        shapes={name: tuple(tensor.shape) for name, tensor in weights.items()},
        trained_in_full=full,
        digest=weights_digest(folder),
        facts=facts,
        settings=opened.settings,
        base=base,
    )
    return read, weights


def _factors_of(place: str, loaded: LoadedModel) -> dict[str, tuple[Tensor, Tensor]]:
    kind = kind_of(loaded)
    if kind.name != "lora":
        raise AdapterError(
            f"{place} has adapters of the kind {kind.name!r}, and averages are of LoRA and of whole models: what such "
            "adapters add is no fixed matrix. Export it merged where that can be (`sonotune export`), or combine the "
            "transcripts (`sonotune evaluate 'model=[a,b,c]'`)."
        )
    factors = kind.low_rank(loaded)
    if not factors:
        raise AdapterError(f"{place} holds no LoRA that could be averaged.")
    return {name: (a.clone(), b_OR.clone()) for name, (a, b_OR) in factors.items()}


def _facts(opened: Opened) -> dict[str, Any]:
    """What members must agree on, in the words of the messages."""
    loaded, settings = opened.loaded, opened.settings
    tokenizer = getattr(loaded.processor, "tokenizer", None)
    return {
        "architecture": loaded.family.name,
        "context": loaded.context,
        "contexts of training": list(loaded.trained_contexts),
        "thinning": asdict(loaded.thinning),
        "frame merging": loaded.merging.plain(),
        "classes or symbols": list(loaded.labels or loaded.new_outputs),
        "vocabulary": None if tokenizer is None else tokenizer.get_vocab(),
        "multi_label": settings.get("multi_label", False),
        "quantisation": [settings.get(name) for name in ("bits", "double", "quantization_skip")]
        if loaded.adapter is not None and settings.get("bits", 16) != 16
        else [16],
    }


def _check_same(place: str, first: _Read, other_place: str, other: _Read) -> None:
    """Raise AdapterError at the first thing in which a member is unlike the first one."""
    for what, value in first.facts.items():
        if what in other.facts and other.facts[what] != value:
            told = "" if _is_long(value) else f": {value} of {place}, {other.facts[what]} of {other_place}"
            raise AdapterError(
                f"{place} and {other_place} cannot be averaged, because their {what} is not the same{told}. Averages "
                "are of runs of one base with the same settings of what trains; combine the transcripts of others "
                "(`sonotune evaluate 'model=[a,b,c]'`)."
            )
    if first.trained_in_full != other.trained_in_full:
        apart = sorted(set(first.trained_in_full) ^ set(other.trained_in_full))
        has, lacks = (place, other_place) if apart[0] in first.trained_in_full else (other_place, place)
        raise AdapterError(
            f"{has} trained {apart[0]} in full beside its adapters (adapter.stem, adapter.unfreeze) and {lacks} did "
            f"not, which differs in {len(apart)} modules. Train both with the same adapter.stem and adapter.unfreeze."
        )
    shapes, others = first.shapes, other.shapes
    if shapes != others:
        name = min(name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name))
        raise AdapterError(
            f"{name} has the shape {shapes.get(name, 'none')} in {place} and {others.get(name, 'none')} in "
            f"{other_place}, so that there is no average. Take runs of the same base."
        )


def _is_long(value: Any) -> bool:
    return len(str(value)) > 200  # a vocabulary


def _write_adapter(
    opened: Opened,
    shares: Sequence[float],
    read: Sequence[_Read],
    beside: Mapping[str, Tensor],
    draft: Path,
    rank: int | None,
    members: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    factors: Factors = average_factors([one.factors for one in read], shares)
    error: Shortening | None = None
    if rank is not None:
        with phase("shortening by SVD"):
            factors, error = shorten(factors, rank)
    ranks = [len(a) for a, _ in factors.values()]
    told = {
        "kind": "adapter",
        "members": list(members),
        "rank": max(ranks),
        "ranks": sum(ranks),
        "error": None if error is None else asdict(error),
    }
    loaded = opened.loaded
    write_average(loaded, draft, factors, beside, read[0].trained_in_full)
    write_metadata(loaded, draft, extra=_extra(opened, read, told))
    if loaded.new_outputs and hasattr(loaded.processor, "tokenizer"):
        loaded.processor.tokenizer.save_pretrained(draft)  # the base has another vocabulary, or none
    with phase("reading the average back"):
        _check_written(draft, factors, beside)
    return told


def _check_written(draft: Path, factors: Factors, beside: Mapping[str, Tensor]) -> None:
    """Raise AdapterError unless the adapter on disk adds what it should."""
    loaded = open_model(str(draft), precision="fp32", bits=16).loaded
    found = kind_of(loaded).low_rank(loaded) or {}
    apart = difference_of(factors, found) if factors.keys() == found.keys() else math.inf
    stored = read_tensors(draft)
    same = all(bool((stored[name] == tensor).all()) for name, tensor in beside.items())
    if not (apart <= LARGEST_READ_ERROR and same):
        raise AdapterError(
            f"the average that was written is not the one that was computed (they differ by {apart:.2g}). Nothing was "
            "written; please report this with the members' `adapter_config.json`."
        )


def _write_model(
    opened: Opened,
    read: Sequence[_Read],
    weights: Mapping[str, Tensor],
    draft: Path,
    members: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    loaded = opened.loaded
    loaded.module.load_state_dict(weights)
    told = {"kind": "model", "members": list(members)}
    kind_named("none").save(loaded, draft, extra=_extra(opened, read, told))
    with phase("reading the average back"):
        written = open_model(str(draft), precision="fp32").loaded.module.state_dict()
    if wrong := [name for name, tensor in weights.items() if not bool((written[name] == tensor).all())]:
        raise AdapterError(f"{min(wrong)} was not written as it was computed. Nothing was written; please report this.")
    return told


def _extra(opened: Opened, read: Sequence[_Read], told: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of `sonotune.json`: the settings of use that all members share, and what the average was made of."""
    settings = opened.settings
    shared = {
        name: settings[name]
        for name in _KEPT
        if name in settings and all(one.settings.get(name) == settings[name] for one in read)
    }
    return {**shared, **(read[0].base if opened.loaded.adapter is None else {}), "average": dict(told)}
