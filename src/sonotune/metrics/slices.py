"""Scores by what is known of the clips: domain, duration, speaker, language, noise.

A mean over everything hides the phone line that fails. Each slice keeps its own count and interval, because small
slices move by luck; a slice is a place to look, not a result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from sonotune.types import Clip

DURATION_EDGES_S = (0.0, 2.0, 5.0, 10.0, 20.0, math.inf)
"""Default borders of the duration buckets, in seconds; a bucket holds its lower border and not its upper one."""

UNKNOWN = "unknown"
NOISE = "signal_to_noise"
"""Field of `Clip.extra` that holds the bucket of a clip's signal-to-noise ratio, and of a line of predictions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Clips that have a property in common.

    Attributes:
        by: The property: `domain`, `duration`, `domain, duration`, `speaker`, `language` or `signal_to_noise`.
        value: What it is for these clips.
        members: Their places in the list of clips.
    """

    by: str
    value: str
    members: tuple[int, ...]


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


def noise_bucket(ratio_db: float, edges_db: Sequence[float]) -> str:
    """Name of the bucket of a signal-to-noise ratio, such as `10 to 20 dB`.

    Args:
        ratio_db: In dB.
        edges_db: Rising edges between the buckets, at least one; a bucket holds its lower edge.
    """
    if ratio_db < edges_db[0]:
        return f"< {edges_db[0]:g} dB"
    found = next(((low, high) for low, high in pairwise(edges_db) if low <= ratio_db < high), None)
    return f">= {edges_db[-1]:g} dB" if found is None else f"{found[0]:g} to {found[1]:g} dB"


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def _by_level(bucket: str) -> tuple[float, bool]:
    """The place of a bucket of noise among the others: from loud noise to none, and what is not known behind."""
    number = _NUMBER.search(bucket)
    return (float(number[0]) if number else math.inf, not bucket.startswith("<"))


def slice_clips(clips: Sequence[Clip], *, duration_edges_s: Sequence[float] = DURATION_EDGES_S) -> list[Slice]:
    """Every slice of some clips.

    Args:
        clips: The clips.
        duration_edges_s: Borders of the duration buckets, in seconds.

    Returns:
        Slices by each property that some clip has; those that lack it are the slice `unknown`. Durations ascend, other
        values are in alphabetical order.
    """
    edges = [duration_bucket(edge, duration_edges_s) for edge in (-math.inf, *duration_edges_s)]
    slices: list[Slice] = []
    for by, group_of in _groupings(clips, duration_edges_s):
        groups: dict[tuple[str, ...], list[int]] = {}
        for index, clip in enumerate(clips):
            groups.setdefault(group_of(clip), []).append(index)
        slices += [
            Slice(by=by, value=", ".join(value), members=tuple(groups[value]))
            for value in sorted(
                groups,
                key=(lambda value: _by_level(value[0]))
                if by == NOISE
                else lambda value: [(edges.index(v) if v in edges else -1, v) for v in value],
            )
        ]
    return slices


def _groupings(clips: Sequence[Clip], edges_s: Sequence[float]) -> list[tuple[str, Callable[[Clip], tuple[str, ...]]]]:
    bucket_of = cache(lambda duration_s: duration_bucket(duration_s, edges_s))

    def bucket(clip: Clip) -> str:
        return bucket_of(clip.duration_s)

    groupings: list[tuple[str, Callable[[Clip], tuple[str, ...]]]] = []
    if any(clip.domain is not None for clip in clips):
        groupings.append(("domain", lambda clip: (clip.domain or UNKNOWN,)))
    groupings.append(("duration", lambda clip: (bucket(clip),)))
    if len({clip.domain for clip in clips}) > 1 and len({bucket(clip) for clip in clips}) > 1:
        groupings.append(("domain, duration", lambda clip: (clip.domain or UNKNOWN, bucket(clip))))
    if any(clip.speaker is not None for clip in clips):
        groupings.append(("speaker", lambda clip: (clip.speaker or UNKNOWN,)))
    if any(clip.language is not None for clip in clips):
        groupings.append(("language", lambda clip: (clip.language or UNKNOWN,)))
    if any(NOISE in clip.extra for clip in clips):
        groupings.append((NOISE, lambda clip: (clip.extra.get(NOISE, UNKNOWN),)))
    return groupings
