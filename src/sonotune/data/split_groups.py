"""Which clips of a corpus go into a split together: by speaker, session, text, clip or a column.

Whatever is asked, two clips of the same seconds of a file, or of files with the same bytes, go together: a score on a
recording that was trained on is worthless (`sonotune.data.splits.check_leaks`; `data.leaks=stop` refuses it).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sonotune.data.records import COLUMNS
from sonotune.data.similar_texts import near_copies
from sonotune.data.splits import OVERLAP_S, real_paths
from sonotune.data.text import BASIC
from sonotune.errors import ManifestError, suggest
from sonotune.runs import digest_file
from sonotune.types import Clip

WAYS: Final = ("speaker", "session", "text", "clip")
SESSION_COLUMNS: Final = ("session", "session_id", "recording", "recording_id", "conversation", "conversation_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """The transcripts of some clips, compared as scores compare them.

    Attributes:
        exact: For each clip the number of its normalised text; -1 where it has none.
        near: For each clip the number of its cluster of near copies; -1 where it has no text.
        words: Words of each text.
    """

    exact: NDArray[np.int64]
    near: NDArray[np.int64]
    words: NDArray[np.int64]


def compare_texts(clips: Sequence[Clip]) -> Texts:
    """Find copies and near copies among the transcripts of clips."""
    normalised = [BASIC.scoring(clip.text) if clip.text else "" for clip in clips]
    said = np.array([bool(text) for text in normalised], dtype=bool)
    number: dict[str, int] = {}
    exact = np.array([number.setdefault(text, len(number)) if text else -1 for text in normalised], dtype=np.int64)
    near = np.full(len(clips), -1, dtype=np.int64)
    near[said] = near_copies([text for text in normalised if text])
    return Texts(exact=exact, near=near, words=np.array([text.count(" ") + 1 for text in normalised], dtype=np.int64))


def names_of(clips: Sequence[Clip], by: str) -> list[str]:
    """What each clip is kept together by.

    Args:
        clips: The clips.
        by: One of `WAYS`, or `column=NAME`.

    Raises:
        ManifestError: The corpus does not say it, or `by` is not known.
    """
    if by == "speaker":
        return [f"speaker {clip.speaker}" if clip.speaker is not None else f"file {clip.path}" for clip in clips]
    if by == "session":
        return _sessions(clips)
    if by in ("text", "clip"):
        return [f"clip {clip.id}" for clip in clips]
    if by.startswith("column=") and by != "column=":
        column = by.removeprefix("column=")
        return [f"{column} {value}" for value in column_of(clips, column)]
    raise ManifestError(
        f"a corpus is split by {', '.join(WAYS)} or column=NAME; found {by!r}{suggest(by, WAYS)}".rstrip(".?") + "."
    )


def order_names(clips: Sequence[Clip], names: Sequence[str]) -> list[str]:
    """What decides the order of each clip's group: not the place of a file, or a corpus that moves is split anew."""
    return [f"clip {clip.id}" if name.startswith("file ") else name for clip, name in zip(clips, names, strict=True)]


def column_of(clips: Sequence[Clip], column: str) -> list[str]:
    """The values of a column, which every clip must have.

    Raises:
        ManifestError: Clips lack it.
    """
    values = [_value(clip, column) for clip in clips]
    lacking = [clip.id for clip, value in zip(clips, values, strict=True) if value is None]
    if not lacking:
        return [value for value in values if value is not None]
    known = sorted({name for clip in clips for name in clip.extra})
    if len(lacking) == len(clips):
        raise ManifestError(
            f"--by column={column}: found no clip with that column; its other columns are {', '.join(known) or 'none'}"
            f"{suggest(column, known)}".rstrip(".?")
            + ". Name one of them, or add the column."
        )
    raise ManifestError(
        f"--by column={column}: {len(lacking)} of {len(clips)} clips have no value, such as clip {lacking[0]!r}. Fill "
        "the column, or split by another."
    )


def _value(clip: Clip, column: str) -> str | None:
    value = getattr(clip, column) if column in COLUMNS else clip.extra.get(column)
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    return None if value is None or not str(value).strip() else str(value).strip()


def sessions_known(clips: Sequence[Clip]) -> bool:
    """Whether something says which clips were recorded together: a column, or files of more than one clip."""
    named = any(name in clip.extra for clip in clips for name in SESSION_COLUMNS)
    return named or len({clip.path for clip in clips}) < len(clips)


def _sessions(clips: Sequence[Clip]) -> list[str]:
    if not sessions_known(clips):
        raise ManifestError(
            "--by session: nothing says which clips were recorded together. Found neither a column (allowed are "
            f"{', '.join(SESSION_COLUMNS)}) nor a file that holds more than one clip. Add the column, name another by "
            "--by column=NAME, or take --by text."
        )
    column = next((name for name in SESSION_COLUMNS if any(name in clip.extra for clip in clips)), None)
    if column is None:
        return [f"file {clip.path}" for clip in clips]
    return [f"session {clip.extra[column]}" if column in clip.extra else f"file {clip.path}" for clip in clips]


def joined(names: Sequence[Hashable], *labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Groups of clips that share a name or a label, directly or by way of others.

    Args:
        names: One for each clip.
        labels: For each clip a number, (clips,); negative numbers join nothing.

    Returns:
        The group of each clip, (clips,), numbered in no particular order.
    """
    number: dict[Hashable, int] = {}
    own = np.array([number.setdefault(name, len(number)) for name in names], dtype=np.int64)
    size, left, right = len(number), [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for label in labels:
        has = label >= 0
        values, place = np.unique(label[has], return_inverse=True)
        left.append(own[has])
        right.append(size + place)
        size += len(values)
    first, second = np.concatenate(left), np.concatenate(right)
    links = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(size, size))
    return connected_components(links, directed=False)[1][own].astype(np.int64)


def recordings(clips: Sequence[Clip]) -> NDArray[np.int64]:
    """A number for each clip, equal for clips of the same seconds of a file and for files with the same bytes."""
    real = real_paths(clip.path for clip in clips)
    same_bytes = _same_bytes(set(real.values()))
    by_file: dict[str, list[int]] = defaultdict(list)
    for index, clip in enumerate(clips):
        by_file[same_bytes.get(real[clip.path], real[clip.path])].append(index)
    copied = set(same_bytes.values())
    labels, count = np.empty(len(clips), dtype=np.int64), 0
    for path, members in by_file.items():
        for part in [members] if path in copied else _overlapping(clips, members):
            labels[part] = count
            count += 1
    return labels


def _overlapping(clips: Sequence[Clip], members: Sequence[int]) -> Iterable[list[int]]:
    """Runs of clips of one file that overlap; channels are apart unless a clip takes all of them."""
    whole = any(clips[index].channel is None for index in members)
    by_channel: dict[int | None, list[int]] = defaultdict(list)
    for index in members:
        by_channel[None if whole else clips[index].channel].append(index)
    for part in by_channel.values():
        run: list[int] = []
        end_s = 0.0
        for index in sorted(part, key=lambda index: clips[index].start_s):
            clip = clips[index]
            if run and clip.start_s > end_s - OVERLAP_S:
                yield run
                run, end_s = [], 0.0
            run.append(index)
            end_s = max(end_s, clip.start_s + clip.duration_s)
        yield run


def _same_bytes(paths: Iterable[str]) -> dict[str, str]:
    """Files that have the same content as another -> the first of them by name. Only files of equal size are read."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for path in paths:
        try:
            by_size[Path(path).stat().st_size].append(path)
        except OSError:
            continue  # missing files are found by check_audio
    first: dict[str, str] = {}
    for same_size in by_size.values():
        by_digest: dict[str, list[str]] = defaultdict(list)
        for path in same_size if len(same_size) > 1 else ():
            with suppress(OSError):  # one that may not be read is found by check_audio as well
                by_digest[digest_file(Path(path))].append(path)
        for copies in by_digest.values():
            if len(copies) > 1:
                first |= dict.fromkeys(copies, min(copies))
    return first
