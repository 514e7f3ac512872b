"""What a run was trained on, kept beside it, and whether clips that are scored later were among that.

One line a clip: its id, its span, and the size and SHA-256 of its recording, so that a clip is known again under
another name or from another manifest.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Required

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sonotune.data.audio_files import enumerate_names
from sonotune.errors import RunDirectoryError
from sonotune.json_files import Count, Number, read_json_lines
from sonotune.runs import atomic_write_text, digest_file
from sonotune.runs.directory import TRAINED_ON
from sonotune.types import Clip, Finding

_OVERLAP_S: Final = 0.1  # less is a matter of rounding


class TrainedClip(TypedDict, total=False):
    """A clip that was trained on; `audio` is missing where its recording could not be read."""

    id: Required[str]
    start_s: Required[Number]
    duration_s: Required[Number]
    bytes: Count
    audio: str


_ENTRY: Final = TypeAdapter(TrainedClip)


def write_trained_on(run: Path, clips: Sequence[Clip], digests: Mapping[Path, str], *, add: bool) -> None:
    """Keep what a run is trained on.

    Args:
        run: Its directory.
        clips: Of the training split.
        digests: Absolute path of a recording -> SHA-256 of its content, of those that could be read.
        add: To what an earlier session was trained on, which may have been other clips.
    """
    path = run / TRAINED_ON
    lines = dict.fromkeys(path.read_text("utf-8").splitlines() if add and path.is_file() else ())
    for clip in clips:
        row: dict[str, str | float] = {"id": clip.id, "start_s": clip.start_s, "duration_s": clip.duration_s}
        recording = clip.path.absolute()
        if recording in digests:
            with suppress(OSError):  # gone since it was read
                row |= {"bytes": recording.stat().st_size, "audio": digests[recording]}
        lines[json.dumps(row)] = None
    atomic_write_text(path, "".join(f"{line}\n" for line in lines))


def check_trained_on(run: Path, clips: Sequence[Clip]) -> list[Finding]:
    """A warning where clips that are scored were trained on, by what their recordings contain or by their ids.

    Args:
        run: A run directory; those of older versions did not keep what they were trained on, and say nothing.
        clips: Clips that are scored. Only recordings as long as one of the training's are read.

    Raises:
        RunDirectoryError: The list is damaged.
    """
    path = run / TRAINED_ON
    if not path.is_file():
        return []
    do = "Restore the file, or remove it to score without this check."
    by_id: dict[str, TrainedClip] = {}
    by_audio: dict[str, list[TrainedClip]] = defaultdict(list)
    sizes: set[int] = set()
    for row in read_json_lines(path, _ENTRY, error=RunDirectoryError, do=do):
        by_id[row["id"]] = row
        if "audio" in row:
            by_audio[row["audio"]].append(row)
            sizes.add(row.get("bytes", -1))
    digests: dict[Path, str | None] = {}
    heard: list[Clip] = []
    named: list[Clip] = []
    for clip in clips:
        if _heard(clip, by_audio, sizes, digests):
            heard.append(clip)
        elif _same_id(clip, by_id.get(clip.id)):
            named.append(clip)
    found = []
    if heard:
        found.append(_finding(run, "audio", "are of recordings that it was trained on", heard, len(clips)))
    if named:
        found.append(_finding(run, "id", "have the ids and lengths of clips that it was trained on", named, len(clips)))
    return found


def _heard(
    clip: Clip, by_audio: Mapping[str, Sequence[TrainedClip]], sizes: set[int], digests: dict[Path, str | None]
) -> bool:
    if clip.path not in digests:
        try:
            digests[clip.path] = digest_file(clip.path) if clip.path.stat().st_size in sizes else None
        except OSError:
            digests[clip.path] = None  # it is told of where it is decoded
    end_s = clip.start_s + clip.duration_s
    return any(
        min(end_s, row["start_s"] + row["duration_s"]) - max(clip.start_s, row["start_s"]) > _OVERLAP_S
        for row in by_audio.get(digests[clip.path] or "", ())
    )


def _same_id(clip: Clip, row: TrainedClip | None) -> bool:
    """Whether a clip is one that was trained on, perhaps in another encoding; ids alone are often numbers."""
    return row is not None and abs(clip.duration_s - row["duration_s"]) < _OVERLAP_S


def _finding(run: Path, kind: str, what: str, clips: Sequence[Clip], total: int) -> Finding:
    return Finding(
        check=f"leak.{kind}",
        severity="error" if kind == "audio" else "warning",
        message=f"{len(clips)} of {total} clips that are scored {what} ({run}): "
        f"{enumerate_names([clip.id for clip in clips], most=3)}. The score says little of new recordings; score "
        "clips of speakers that the model has not heard.",
        clip_ids=tuple(clip.id for clip in clips),
        measured=float(len(clips)),
        limit=0.0,
        unit="clips",
    )
