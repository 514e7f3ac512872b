"""How probable it is that a clip is good, from its scores: the weight that it has in training.

The scores of a clip become one number, its combined p value: the smallest of the left-tail p values that its
statistics have among the trusted clips (Tippett). Trusted clips, each held against all, and clips with corrupted
transcripts have such numbers too, and they say how probable a good clip is at each: isotonic regression of good (1)
and corrupted (0) on the combined p value, which assumes nothing but that a higher one is no worse. The corrupted
clips weigh as much together as the share of bad clips that the corpus is estimated to have (Rogan and Gladen), each
corruption alike, and the trusted ones the rest. So the probability is monotone in the score and calibrated for that
share of such errors. Half a good clip at the lowest score and half a bad one at the highest keep it off 0 and 1,
which no finite sample can tell.

Sources: Barlow, Bartholomew, Bremner and Brunk 1972, "Statistical inference under order restrictions"; Zadrozny and
Elkan 2002, "Transforming classifier scores into accurate multiclass probability estimates".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from sonotune.audit.calibration import p_values
from sonotune.audit.scores import ClipScores
from sonotune.errors import ManifestError


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodProbability:
    """Combined p value -> probability that a clip is good.

    Attributes:
        statistics: Whose p values are combined.
        right: Scores of the trusted clips.
        steps: Combined p values from which on each probability holds (K,), rising.
        probabilities: Of a good clip (K,), rising.
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
        scores: The clips.
        statistics: Whose p values are taken.
    """
    smallest: NDArray[np.float64] = np.min([p_values(right, scores, name) for name in statistics], axis=0)
    return smallest


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
        ManifestError: There is no trusted or no corrupted clip.
    """
    groups = [scores for scores in corrupted.values() if scores]
    if not right or not groups:
        raise ManifestError(
            f"weights need trusted clips and corruptions of them; found {len(right)} and "
            f"{sum(map(len, groups))}. Name clips with --trusted."
        )
    # A trusted clip among the trusted, itself included, has one rank too many: p = (k + 1) / (n + 1) of the k others.
    p_right = combined_p_values(right, right, statistics) - 1 / (len(right) + 1)
    p_wrong = [combined_p_values(right, scores, statistics) for scores in groups]
    p_right = np.maximum(p_right, 1 / (len(right) + 1))
    share_right = np.full(len(right), (1 - bad_share) / len(right))
    share_wrong = [np.full(len(found), bad_share / len(groups) / len(found)) for found in p_wrong]
    lowest, highest = 1 / (len(right) + 1), 1.0
    p = np.concatenate([p_right, *p_wrong, [lowest, highest]])
    good = np.concatenate([np.ones(len(right)), np.zeros(sum(map(len, p_wrong))), [1.0, 0.0]])
    weight = np.concatenate([share_right, *share_wrong, [share_right[0] / 2, bad_share / sum(map(len, p_wrong)) / 2]])
    steps, place = np.unique(p, return_inverse=True)
    total = np.bincount(place, weights=weight)
    mean = np.bincount(place, weights=weight * good) / np.maximum(total, 1e-300)
    fitted = isotonic_regression(mean, weights=np.maximum(total, 1e-12), increasing=True).x
    return GoodProbability(
        statistics=tuple(statistics),
        right=tuple(right),
        steps=steps,
        probabilities=np.clip(np.asarray(fitted, dtype=np.float64), 0.0, 1.0),
    )
