"""Scores by what is known of the clips: domain, duration, speaker, language.

A mean over everything hides the phone line that fails. Each slice keeps its own count and interval, because small
slices move by luck; a slice is a place to look, not a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sonotune.errors import TextError
from sonotune.metrics.error_rate import EditCounts, edit_counts, error_rate
from sonotune.types import Score

DURATION_EDGES_S = (0.0, 2.0, 5.0, 10.0, 20.0, math.inf)
"""Default borders of the duration buckets, in seconds; a bucket holds its lower border and not its upper one."""

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredText:
    """A reference and a hypothesis in scoring form, and what the slices need to know of the clip."""

    reference: str
    hypothesis: str
    duration_s: float
    domain: str | None = None
    speaker: str | None = None
    language: str | None = None


def duration_bucket(duration_s: float, edges_s: Sequence[float] = DURATION_EDGES_S) -> str:
    """Name of the bucket a duration falls into, such as `2-5 s`.

    Args:
        duration_s: Seconds.
        edges_s: Ascending borders; the last may be infinite. Below the first and above the last are buckets too.

    Raises:
        ValueError: The borders do not ascend, or there are none.
    """
    if not edges_s or any(not low < high for low, high in pairwise(edges_s)):
        raise ValueError(f"duration borders must be ascending numbers of seconds; found {list(edges_s)}.")
    if duration_s < edges_s[0]:
        return f"< {edges_s[0]:g} s"
    for low, high in pairwise(edges_s):
        if low <= duration_s < high:
            return f">= {low:g} s" if math.isinf(high) else f"{low:g}-{high:g} s"
    return f">= {edges_s[-1]:g} s"


def text_scores(items: Sequence[ScoredText], *, bootstrap: int = 1000, seed: int = 0) -> dict[str, Score]:
    """`wer` and `cer` over all items.

    Raises:
        TextError: There are no items, or no reference has a word.
    """
    words, characters = _counts(items)
    return _scores(items, words, characters, range(len(items)), bootstrap=bootstrap, seed=seed)


def slice_scores(
    items: Sequence[ScoredText],
    *,
    duration_edges_s: Sequence[float] = DURATION_EDGES_S,
    bootstrap: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Scores of every slice, ready for JSON.

    Args:
        items: All scored clips.
        duration_edges_s: Borders of the duration buckets, in seconds.
        bootstrap: Resamples for the interval of each slice.
        seed: Seed of the resampling.

    Returns:
        One mapping per slice: `by` (`domain`, `duration`, `domain, duration`, `speaker`, `language`), `value`, `clips`,
        `seconds`, and `scores` (name -> score in JSON form; empty where no reference of the slice has a word, when
        `insertions` still says how many words were made up). A property that no clip has gives no slices; where
        some lack it they are the slice `unknown`. Durations ascend, other values are in alphabetical order.
    """
    words, characters = _counts(items)
    slices: list[dict[str, Any]] = []
    for by, group_of in _groupings(items, duration_edges_s):
        groups: dict[tuple[str, ...], list[int]] = {}
        for index, item in enumerate(items):
            groups.setdefault(group_of(item), []).append(index)
        edges = [duration_bucket(edge, duration_edges_s) for edge in (-math.inf, *duration_edges_s)]
        for value in sorted(groups, key=lambda value: [(edges.index(v) if v in edges else -1, v) for v in value]):
            members = groups[value]
            try:
                scores = _scores(items, words, characters, members, bootstrap=bootstrap, seed=seed)
            except TextError:  # only silence in this slice: no rate exists
                scores = {}
            slices.append(
                {
                    "by": by,
                    "value": ", ".join(value),
                    "clips": len(members),
                    "seconds": math.fsum(items[index].duration_s for index in members),
                    "insertions": sum(words[index].insertions for index in members),
                    "scores": {name: score.to_json() for name, score in scores.items()},
                }
            )
    return slices


def _groupings(
    items: Sequence[ScoredText], edges_s: Sequence[float]
) -> list[tuple[str, Callable[[ScoredText], tuple[str, ...]]]]:
    def bucket(item: ScoredText) -> str:
        return duration_bucket(item.duration_s, edges_s)

    groupings: list[tuple[str, Callable[[ScoredText], tuple[str, ...]]]] = []
    if any(item.domain is not None for item in items):
        groupings.append(("domain", lambda item: (item.domain or UNKNOWN,)))
    groupings.append(("duration", lambda item: (bucket(item),)))
    if len({item.domain for item in items}) > 1 and len({bucket(item) for item in items}) > 1:
        groupings.append(("domain, duration", lambda item: (item.domain or UNKNOWN, bucket(item))))
    if any(item.speaker is not None for item in items):
        groupings.append(("speaker", lambda item: (item.speaker or UNKNOWN,)))
    if any(item.language is not None for item in items):
        groupings.append(("language", lambda item: (item.language or UNKNOWN,)))
    return groupings


def _counts(items: Sequence[ScoredText]) -> tuple[list[EditCounts], list[EditCounts]]:
    references = [item.reference for item in items]
    hypotheses = [item.hypothesis for item in items]
    words = edit_counts(references, hypotheses, unit="word")
    return words, edit_counts(references, hypotheses, unit="character")


def _scores(
    items: Sequence[ScoredText],
    words: Sequence[EditCounts],
    characters: Sequence[EditCounts],
    members: Sequence[int],
    *,
    bootstrap: int,
    seed: int,
) -> dict[str, Score]:
    speakers = [items[index].speaker for index in members]
    return {
        name: error_rate(name, [counts[index] for index in members], speakers=speakers, bootstrap=bootstrap, seed=seed)
        for name, counts in (("wer", words), ("cer", characters))
    }
