"""How probable it is that a clip is good, from its scores: the weight that it has in training.

The scores of a clip become one number: the smallest of the left-tail p values that its statistics have among the
trusted clips (Tippett). Among n trusted clips an empirical p value ends at 1 / (n + 1). Below the worst of them it goes
on as an exponential tail, whose scale is the mean excess of the lowest tenth: worse clips still have lower values.

Trusted clips, each held against the others, and clips with corrupted transcripts have such numbers too, which say how
probable a good clip is at each: isotonic regression of good (1) and corrupted (0) on the combined p value assumes
nothing but that a higher one is no worse. The corrupted clips weigh as much together as the share of bad clips that the
corpus is estimated to have (Rogan and Gladen), each corruption alike, and the trusted ones the rest. So the probability
is monotone in every score, and calibrated where a corpus has such errors in that share. Half a good clip at the lowest
score and half a bad one at the highest keep it off 0 and 1, which no finite sample can tell.

Sources: Barlow, Bartholomew, Bremner and Brunk 1972, "Statistical inference under order restrictions"; Zadrozny and
Elkan 2002, "Transforming classifier scores into accurate multiclass probability estimates".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from sonotune.audit.calibration import oriented, p_values
from sonotune.audit.scores import ClipScores
from sonotune.errors import ManifestError

_TAIL: Final = 0.1  # part of the trusted clips whose excess is that of the tail
_STEEPEST: Final = 1e-6  # of a tail of clips that are all alike


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodProbability:
    """Combined p value -> probability that a clip is good.

    Attributes:
        statistics: Whose p values are combined.
        right: Scores of the trusted clips.
        steps: Combined p values from which on each probability holds (K,), rising.
        probabilities: Of a good clip (K,), not falling.
    """

    statistics: tuple[str, ...]
    right: tuple[ClipScores | None, ...]
    steps: NDArray[np.float64]
    probabilities: NDArray[np.float64]

    def of(self, scores: Sequence[ClipScores | None]) -> NDArray[np.float64]:
        """The probability that each clip is good (N,)."""
        combined = combined_p_values(self.right, scores, self.statistics)
        at = np.searchsorted(self.steps, combined, side="right") - 1
        found: NDArray[np.float64] = self.probabilities[np.maximum(at, 0)]
        return found


def combined_p_values(
    right: Sequence[ClipScores | None], scores: Sequence[ClipScores | None], statistics: Sequence[str]
) -> NDArray[np.float64]:
    """The smallest p value of each clip among trusted ones; it orders clips, and is not corrected for being a minimum.

    Args:
        right: The trusted clips.
        scores: The clips; one that could not be aligned has 0.
        statistics: Whose p values are taken.

    Returns:
        (N,) in [0, 1].
    """
    smallest = np.ones(len(scores))
    for name in statistics:
        trusted_M, values_N = np.sort(oriented(right, name)), oriented(scores, name)
        p_N = p_values(right, scores, name)
        known_M = trusted_M[np.isfinite(trusted_M)]
        if known_M.size == trusted_M.size - np.isposinf(trusted_M).sum() and known_M.size:
            below_N = np.maximum(known_M[0] - values_N, 0.0)
            p_N = np.where(below_N > 0, p_N * np.exp(-below_N / _tail_scale(known_M)), p_N)
        smallest = np.minimum(smallest, p_N)
    return smallest


def _tail_scale(sorted_M: NDArray[np.float64]) -> float:
    """Mean excess of the lowest part below its border."""
    border = min(max(1, math.ceil(_TAIL * sorted_M.size)), sorted_M.size - 1)
    excess = float((sorted_M[border] - sorted_M[: max(border, 1)]).mean())
    return max(excess, _STEEPEST)


def fit_good_probability(
    right: Sequence[ClipScores | None],
    corrupted: Mapping[str, Sequence[ClipScores | None]],
    *,
    statistics: Sequence[str],
    bad_share: float,
) -> GoodProbability:
    """Learn what scores say of a clip.

    Args:
        right: Scores of trusted clips.
        corrupted: Corruption -> scores of clips whose transcripts were corrupted by it.
        statistics: By what clips are judged.
        bad_share: Share of the clips of the corpus that are bad.

    Raises:
        ManifestError: There are fewer than two trusted clips, or there is no corrupted one.
    """
    groups = [scores for scores in corrupted.values() if scores]
    if len(right) < 2 or not groups:
        raise ManifestError(
            f"weights need trusted clips and corruptions of them; found {len(right)} and {sum(map(len, groups))}. "
            "Name clips with --trusted."
        )
    p_right = np.concatenate(
        [combined_p_values([*right[:at], *right[at + 1 :]], [one], statistics) for at, one in enumerate(right)]
    )
    p_wrong = [combined_p_values(right, scores, statistics) for scores in groups]
    wrong = sum(map(len, p_wrong))
    p = np.concatenate([p_right, *p_wrong, [0.0, 1.0]])
    good = np.concatenate([np.ones(len(right)), np.zeros(wrong), [1.0, 0.0]])
    weight = np.concatenate(
        [
            np.full(len(right), (1 - bad_share) / len(right)),
            *(np.full(len(found), bad_share / len(groups) / len(found)) for found in p_wrong),
            [(1 - bad_share) / len(right) / 2, bad_share / wrong / 2],
        ]
    )
    counts = weight > 0  # neither kind does where the share is 0 or 1
    steps, place = np.unique(p[counts], return_inverse=True)
    total = np.bincount(place, weights=weight[counts])
    mean = np.bincount(place, weights=(weight * good)[counts]) / total
    fitted = isotonic_regression(mean, weights=total, increasing=True).x
    return GoodProbability(
        statistics=tuple(statistics),
        right=tuple(right),
        steps=steps,
        probabilities=np.clip(np.asarray(fitted, dtype=np.float64), 0.0, 1.0),
    )
