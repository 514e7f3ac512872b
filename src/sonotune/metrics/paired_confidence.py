"""Whose word confidences say more about which words are right: two systems on the same clips, resampled together.

Both have words of their own, so scores are compared and not words. A block that is drawn brings the words of both.

Shape letters: W words of one system, N clips, G blocks, R resamples.

Source: that of `metrics.paired` for the joint resampling, and of `metrics.confidence` for the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonotune.metrics.confidence import OF_SLICES, RankedWords, affordable_resamples, title_of, turned
from sonotune.metrics.intervals import expansion, percentile_interval
from sonotune.metrics.paired import (
    POWER_FACTOR,
    Blocks,
    PairedDifference,
    least_p,
    minimum_detectable_effect,
    two_sided_p,
)

_RESAMPLES = 2000
"""At most; every one goes through all words."""


class SureWords(NamedTuple):
    """Words with their confidences.

    Attributes:
        confidence: Of each word (W,).
        right: Whether it is right (W,).
        clip: Number of the clip that it is of (W,).
    """

    confidence: NDArray[np.float64]
    right: NDArray[np.bool_]
    clip: NDArray[np.int64]

    def of(self, members: NDArray[np.int64]) -> SureWords:
        """Those of some clips, whose numbers are then their places among these."""
        place_N = np.full(int(max(self.clip.max(initial=-1), members.max(initial=-1))) + 1, -1)
        place_N[members] = np.arange(len(members))
        kept_W = place_N[self.clip] >= 0
        return SureWords(self.confidence[kept_W], self.right[kept_W], place_N[self.clip[kept_W]])


def paired_confidence(
    first: SureWords, second: SureWords, *, blocks: Blocks, resamples: int = _RESAMPLES, seed: int = 0
) -> dict[str, PairedDifference]:
    """Scores of the second system's confidences minus those of the first, by name (`confidence.OF_SLICES`).

    A score that one of the systems has none of, such as AUROC where all its words are right, is absent.

    Args:
        first: Words of the first system.
        second: Of the second.
        blocks: What is resampled together, of `choose_blocks`.
        resamples: Of the bootstrap; at most 2,000, and fewer for very many words.
        seed: The same seed gives the same interval.
    """
    words = max(len(first.right), len(second.right))
    if not min(len(first.right), len(second.right)):
        return {}
    size = int(blocks.owner.max()) + 1
    generator = np.random.default_rng(seed)
    count = affordable_resamples(words, min(resamples, _RESAMPLES))
    drawn_RG = generator.multinomial(size, np.full(size, 1 / size), size=count).astype(np.float64)
    values, resampled = [], []
    for one in (first, second):
        ranked = RankedWords(*one)
        values.append(ranked.measure(OF_SLICES)[:, 0])
        resampled.append(ranked.measure_all(OF_SLICES, (row_G[blocks.owner] for row_G in drawn_RG)))
    found = {}
    for place, name in enumerate(OF_SLICES):
        before, after = (float(side[place]) for side in values)
        changes_R = resampled[1][place] - resampled[0][place]
        changes_R = changes_R[np.isfinite(changes_R)]
        if np.isfinite(before) and np.isfinite(after) and changes_R.size > 1:
            found[name] = _difference(name, (before, after), changes_R, blocks, size, words)
    return found


def _difference(
    name: str,
    values: Sequence[float],
    changes_R: NDArray[np.float64],
    blocks: Blocks,
    size: int,
    words: int,
) -> PairedDifference:
    """From the differences of the resamples."""
    title, better = title_of(name)
    value = values[1] - values[0]
    factor = expansion(size)
    spread = float(changes_R.std(ddof=1))
    drawn_R = value + factor * (turned(name, value, changes_R) - value)
    low, high = percentile_interval(drawn_R)
    return PairedDifference(
        name=name,
        value=value,
        low=max(-1.0, min(low, value)),
        high=min(1.0, max(high, value)),
        p=max(two_sided_p(drawn_R), least_p(size)),
        first=values[0],
        second=values[1],
        count=blocks.owner.size,
        better=better,
        title=title,
        standard_error=spread,
        minimum_detectable=min(1.0, POWER_FACTOR * spread * factor) or minimum_detectable_effect(0.0, float(words)),
        resampled=blocks.unit,
        blocks=size,
        speakers=blocks.speakers,
        warnings=tuple(filter(None, (blocks.warning,))),
    )
