"""Divide a corpus into training, evaluation and test clips, and say what they share nevertheless.

`by` says what is never in two splits. Beside it, near copies of a sentence are kept together where the sizes allow it:
always for `text`, never for `clip`, and otherwise for sentences of three words and more, because speakers of one corpus
may all have read the same words. What is shared is counted by the same check that `train` makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sonotune.data.columns import SPLIT_NAMES
from sonotune.data.split_groups import (
    WAYS,
    Texts,
    column_of,
    compare_texts,
    joined,
    names_of,
    order_names,
    recordings,
    sessions_known,
)
from sonotune.data.splits import check_leaks
from sonotune.data.stratified import Assignment, assign
from sonotune.errors import ManifestError, SonotuneError
from sonotune.types import Clip, Finding
from sonotune.wording import counted

_SENTENCE_WORDS: Final = 3
_CLOSE: Final = 0.15  # as much worse may the sizes become so that copies of sentences stay together


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large the splits are.

    Attributes:
        shares: Split -> its share, above 0; they add up to 1, and the first is the training set.
        unit: What is shared out: the duration of the speech, or the number of clips.
    """

    shares: Mapping[str, float]
    unit: str = "seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A corpus that is divided.

    Attributes:
        by: What is in one split only.
        parts: Split -> its clips, in their old order.
        findings: For each split after the first, what it shares with the training set; what holds for all of them
            stands with the first.
        shared: For each split after the first: earlier split -> how many `speakers`, `sessions` and `texts` are in
            both, and how many of its texts are copies or `near_copies` of texts there.
        notes: What could not be kept.
    """

    by: str
    parts: Mapping[str, Sequence[Clip]]
    findings: Mapping[str, Sequence[Finding]]
    shared: Mapping[str, Mapping[str, Mapping[str, int]]]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Split -> clips, hours, speakers, domains and what is shared, ready for JSON."""
        return {
            name: {
                "clips": len(clips),
                "hours": sum(clip.duration_s for clip in clips) / 3600,
                "seconds": sum(clip.duration_s for clip in clips),
                "speakers": sorted({clip.speaker for clip in clips if clip.speaker}),
                "domains": _counts(clip.domain for clip in clips),
                "shared": {other: dict(counts) for other, counts in self.shared.get(name, {}).items()},
                "findings": [
                    {"check": one.check, "severity": one.severity, "message": one.message}
                    for one in self.findings.get(name, ())
                ],
            }
            for name, clips in self.parts.items()
        }


def _counts(values: Any) -> dict[str, int]:
    counted: dict[str, int] = {}
    for value in values:
        if value is not None:
            counted[value] = counted.get(value, 0) + 1
    return dict(sorted(counted.items()))


def split_clips(clips: Sequence[Clip], *, by: str = "speaker", sizes: Sizes, seed: int = 0) -> Split:
    """Divide clips; the result depends on what the clips say and the seed alone, not on their order or their place.

    Args:
        clips: The clips; `duration_s` must be known.
        by: `speaker` (clips without one go by their file), `session`, `text`, `clip`, or `column=NAME`.
        sizes: How large the splits are; approximated as closely as whole groups allow.
        seed: Decides which groups go where.

    Raises:
        ManifestError: The corpus cannot be divided so; names a way that works.
    """
    texts = compare_texts(clips)
    names = names_of(clips, by)
    alone = recordings(clips)
    plans = _plans(by, texts)
    if by == "text" and not (texts.exact >= 0).any():
        raise ManifestError("--by text: found no clip with a transcript. Take another way, such as --by clip.")
    weights = _weights(clips, sizes.unit)
    chosen: tuple[Assignment, NDArray[np.int64], list[str]] | None = None
    order = order_names(clips, names)
    for labels, notes in plans:
        groups = joined(names, alone, *labels)
        if groups.size == 0 or groups.max() + 1 < len(sizes.shares):
            continue
        found = assign(clips, groups, order, shares=sizes.shares, weights=weights, seed=seed)
        if chosen is None or found.miss <= chosen[0].miss - _CLOSE:
            chosen = found, groups, notes
    if chosen is None:
        raise _too_few(clips, by, names, texts, sizes)
    assignment, of_clip, told = chosen
    part_of = assignment.parts[of_clip].tolist()
    parts = {
        part: [clip for clip, place in zip(clips, part_of, strict=True) if place == index]
        for index, part in enumerate(sizes.shares)
    }
    return describe(clips, parts, by=by, texts=texts, notes=tuple(told))


def _weights(clips: Sequence[Clip], unit: str) -> NDArray[np.float64]:
    """What each clip counts for; one without a duration, whose file cannot be opened, as the mean of the others."""
    seconds = np.array([clip.duration_s for clip in clips], dtype=np.float64)
    known = seconds[seconds > 0]
    if unit != "seconds" or not known.size:
        return np.ones(len(clips))
    return np.where(seconds > 0, seconds, known.mean())


def _plans(by: str, texts: Texts) -> list[tuple[list[NDArray[np.int64]], list[str]]]:
    """What else is kept together, the strictest first, and what a person is told where it is the one taken."""
    if by == "clip" or not (texts.exact >= 0).any():
        return [([], [])]
    if by == "text":
        chained = "near copies run through the whole corpus, so only exact copies of a text are kept together"
        return [([texts.near], []), ([texts.exact], [chained])]
    sentences = np.where(texts.words >= _SENTENCE_WORDS, texts.near, -1)
    return [([sentences], []), ([], [])]


def split_by_column(clips: Sequence[Clip], column: str) -> Split | None:
    """Take the splits that a column names (train, dev, val, validation, eval, test); None where it names others.

    Raises:
        ManifestError: Some clips have no value, some values are no splits, or no clip is for training.
    """
    values = [value.lower() for value in column_of(clips, column)]
    if not set(values) <= SPLIT_NAMES.keys():
        if column != "split":
            return None
        strange = sorted(set(values) - SPLIT_NAMES.keys())
        raise ManifestError(
            f"--by column=split: found the values {', '.join(map(repr, strange[:5]))}; allowed are "
            f"{', '.join(SPLIT_NAMES)}. Mend the column, or leave those clips out."
        )
    found = [SPLIT_NAMES[value] for value in values]
    if "train" not in found:
        raise ManifestError(f"--by column={column}: found no clip for training; allowed is at least one. Mend it.")
    parts: dict[str, list[Clip]] = {
        part: [clip for clip, own in zip(clips, found, strict=True) if own == part]
        for part in ("train", "eval", "test")
        if part in found
    }
    return describe(clips, parts, by=f"column={column}", texts=compare_texts(clips))


def describe(
    clips: Sequence[Clip], parts: Mapping[str, Sequence[Clip]], *, by: str, texts: Texts, notes: tuple[str, ...] = ()
) -> Split:
    """Say what the parts of a corpus share.

    Args:
        clips: All clips.
        parts: Split -> its clips; the first is trained on.
        by: What they were divided by.
        texts: Of all clips.
        notes: What could not be kept.
    """
    columns: dict[str, Sequence[Any]] = {"speakers": [clip.speaker for clip in clips]}
    if sessions_known(clips):
        columns["sessions"] = names_of(clips, "session")
    columns["texts"] = [number if number >= 0 else None for number in texts.exact.tolist()]
    cluster = dict(zip(texts.exact.tolist(), texts.near.tolist(), strict=True))
    place = {clip.id: index for index, clip in enumerate(clips)}
    has = {
        part: {name: {column[place[clip.id]] for clip in members} - {None} for name, column in columns.items()}
        for part, members in parts.items()
    }
    shared: dict[str, dict[str, dict[str, int]]] = {}
    first, *others = parts
    for index, part in enumerate(others, start=1):
        shared[part] = {
            other: {name: len(has[part][name] & has[other][name]) for name in columns}
            | {"near_copies": _near(has[part]["texts"], has[other]["texts"], cluster)}
            for other in list(parts)[:index]
        }
    findings = check_leaks(parts[first], {part: parts[part] for part in others})
    return Split(by=by, parts=parts, findings=findings, shared=shared, notes=notes)


def _near(texts: Set[int], others: Set[int], cluster: Mapping[int, int]) -> int:
    known = {cluster[text] for text in others}
    return sum(cluster[text] in known for text in texts)


def _too_few(clips: Sequence[Clip], by: str, names: Sequence[str], texts: Texts, sizes: Sizes) -> ManifestError:
    """The refusal, with a way that works for these clips."""
    number = len(set(names)) if by != "text" else int(joined(names, texts.exact).max(initial=-1)) + 1
    found = counted(number, *(("group of texts", "groups of texts") if by == "text" else (by.removeprefix("column="),)))
    way = way_that_works(clips, len(sizes.shares), but=by, texts=texts)
    advice = f"Take --by {way}" if way else "Add clips"
    return ManifestError(
        f"{counted(len(clips), 'clip')} cannot be split by {by} into {', '.join(sizes.shares)}: found {found}; needed "
        f"are at least {len(sizes.shares)}, because each is in one split only. {advice}, or ask for fewer splits."
    )


def way_that_works(clips: Sequence[Clip], parts: int, *, but: str, texts: Texts | None = None) -> str | None:
    """The strictest way by which clips can be divided into so many parts; None where there is none.

    Args:
        clips: The clips.
        parts: How many parts.
        but: A way that does not.
        texts: Of the clips; looked at where None.
    """
    texts = compare_texts(clips) if texts is None else texts
    alone = recordings(clips)
    for way in WAYS:
        if way == but or (way == "text" and not (texts.exact >= 0).any()):
            continue
        try:
            names = names_of(clips, way)
        except SonotuneError:
            continue
        groups = joined(names, alone, *([texts.exact] if way == "text" else []))
        if groups.size and groups.max() + 1 >= parts:
            return way
    return None
