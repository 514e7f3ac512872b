"""A split corpus on disk: a manifest for each part and the record of how they were made, replaced together."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sonotune.data.manifest import SPLIT_MARK, manifest_text
from sonotune.data.split_corpus import Sizes, Split
from sonotune.errors import ManifestError
from sonotune.runs.file_sets import write_set
from sonotune.types import Clip
from sonotune.wording import counted, long_time

_SECONDS: Final = {"s": 1.0, "min": 60.0, "h": 3600.0}
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+) *(clips|%|s|min|h)?")


def write_split(
    folder: Path, split: Split, *, about: Mapping[str, Any], source: Path | None = None, overwrite: bool = False
) -> dict[str, Path]:
    """Write `train.jsonl`, `eval.jsonl` and `test.jsonl` and their record `sonotune_split.json`, all or none.

    Args:
        folder: Where they go. Manifests of an earlier split there are replaced, and removed where there is no new one.
        split: The parts.
        about: What else the record says, such as the seed.
        source: The manifest that was divided, which must not be one of those written.
        overwrite: Replace manifests that were made otherwise, or were changed since.

    Returns:
        Part -> its manifest.

    Raises:
        ManifestError: The source would be lost, or a clip cannot be written.
        RunDirectoryError: A file of another origin would be lost, or the folder cannot be written.
        ResourceError: The disk is full.
    """
    places = {name: folder / f"{name}.jsonl" for name in split.parts}
    written = [folder / f"{name}.jsonl" for name in ("train", "eval", "test")]
    if source is not None and source.exists() and any(place.exists() and place.samefile(source) for place in written):
        raise ManifestError(f"{source} is what is split, and would be lost. Give another folder, or rename it.")
    files = {place.name: manifest_text(place, split.parts[name]).encode() for name, place in places.items()}
    record = {**about, "by": split.by, "notes": list(split.notes), "splits": split.to_json()}
    write_set(folder, files, mark=SPLIT_MARK, about=record, overwrite=overwrite)
    return places


def parse_sizes(clips: Sequence[Clip], *, evaluation: str | float, test: str | float) -> Sizes:
    """Shares of the splits from what a person asked for.

    Args:
        clips: The clips that are divided.
        evaluation: Size of `eval`: a share (0.1), or `10%`, `500clips`, `90s`, `30min`, `2h`.
        test: Size of `test`, likewise. 0 makes none.

    Raises:
        ManifestError: A size cannot be read, clips and a duration are mixed, or nothing is left to train on.
    """
    asked = {"eval": _parse(evaluation), "test": _parse(test)}
    shown = f"eval {evaluation} and test {test}"
    units = {unit for _, unit in asked.values()}
    if "clips" in units and units & _SECONDS.keys():
        raise ManifestError(f"sizes of {shown} mix a number of clips with a duration. Give both alike.")
    whole_s = sum(clip.duration_s for clip in clips)
    whole = {"": 1.0, "%": 100.0, "clips": float(len(clips))}
    whole |= {unit: whole_s / seconds for unit, seconds in _SECONDS.items()}
    held_out = {name: number / max(whole[unit], 1e-9) for name, (number, unit) in asked.items()}
    rest = 1 - sum(held_out.values())
    if rest <= 1e-9:
        raise ManifestError(
            f"sizes of {shown} leave nothing to train on: found {counted(len(clips), 'clip')}, "
            f"{long_time(whole_s)}. Ask for less."
        )
    shares = {"train": rest} | {name: share for name, share in held_out.items() if share > 0}
    return Sizes(shares=shares, unit="clips" if "clips" in units else "seconds")


def _parse(size: str | float) -> tuple[float, str]:
    if isinstance(size, float) and 0 <= size < math.inf:
        return size, ""
    found = _SIZE.fullmatch(str(size).strip().lower())
    if found is None:
        raise ManifestError(
            f"the size {size!r} of a split cannot be read; allowed are a share such as 0.1 or 10%, and 500clips, 90s, "
            "30min or 2h."
        )
    return float(found[1]), found[2] or ""
