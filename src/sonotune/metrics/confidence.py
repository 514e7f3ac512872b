"""Word confidence: how sure a recogniser is of each word, calibrated, and how far that can be trusted.

The confidence of a word comes from the log-probabilities of its tokens (`word_log_odds`). Models are surer than they
are right; two numbers fitted on development clips mend that (Platt scaling of the log-odds). The map rises, so it
changes how sure a word is and never which of two words is surer.

What is asked of confidences: that of the words with 0.8, 80 % are right (expected calibration error), that right words
are surer than wrong ones (AUROC), and how many errors are left if only the surest words are kept (risk and coverage).

Shape letters: W words, G different confidences, N clips, R resamples.

Source: Platt 1999, "Probabilistic outputs for support vector machines", with its targets; Guo et al. 2017
(arXiv 1706.04599) for the calibration error, with bins of equal mass after Nguyen and O'Connor 2015 (arXiv 1508.05154);
Geifman and El-Yaniv 2017 (arXiv 1705.08500) for risk and coverage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sonotune.metrics.intervals import expansion, percentile_interval, resampled_weights
from sonotune.types import Role, Score

Floats = NDArray[np.float64]

BINS: Final = 15
"""Of the calibration error, each with as many words."""
_CHI_SQUARE_95: Final = 3.84  # of one degree of freedom
MIN_WORDS: Final = 50
"""Fewest words that a calibration is fitted on."""
_SUREST: Final = -1e-6
"""Log-probability above which a word is as sure as can be: single precision has no finer steps."""
_LEAST: Final = -50.0
_CURVE_POINTS: Final = 50


def word_log_odds(logprobs: Sequence[float]) -> float:
    """Log-odds of a word by its tokens, before calibration: those of the product of their probabilities.

    The product, which is the probability of the word given those before it, tells right words from wrong ones better
    than the least probability or the means, of real weights on development clips (`benchmarks/confidence`).

    Args:
        logprobs: Natural logarithms, one a token.
    """
    logprob = min(max(math.fsum(logprobs), _LEAST), _SUREST)
    return logprob - math.log(-math.expm1(logprob))


def probability(log_odds: float) -> float:
    """The probability of log-odds."""
    return 1 / (1 + math.exp(-log_odds)) if log_odds >= 0 else math.exp(log_odds) / (1 + math.exp(log_odds))


class RatedWords(NamedTuple):
    """Words of which it is known whether they are right.

    Attributes:
        log_odds: Before calibration (W,).
        right: Whether each is (W,).
        clip: Number of the clip that it is of (W,).
        clips: How many clips there are.
    """

    log_odds: Floats
    right: NDArray[np.bool_]
    clip: NDArray[np.int64]
    clips: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Platt scaling: the log-odds of a word become `slope * log_odds + intercept`.

    Attributes:
        slope: Above 0.
        intercept: Log-odds of a word whose own are 0.
        words: It was fitted on.
        clips: It was fitted on.
        settings: What the words were written with, by the names of settings (`evaluation.confidence.settings_of`).
    """

    slope: float
    intercept: float
    words: int
    clips: int
    settings: Mapping[str, Any]

    def __call__(self, log_odds: float) -> float:
        """The confidence of a word."""
        return probability(self.slope * log_odds + self.intercept)

    def to_json(self) -> dict[str, Any]:
        """The form of records."""
        return {
            "method": "platt",
            "slope": self.slope,
            "intercept": self.intercept,
            "words": self.words,
            "clips": self.clips,
            "settings": dict(self.settings),
        }

    @classmethod
    def of_json(cls, entries: Mapping[str, Any]) -> Self:
        """From a record."""
        return cls(**{name: value for name, value in entries.items() if name != "method"})


def fit_platt(rated: RatedWords) -> tuple[float, float] | None:
    """Slope and intercept that make the words most probable; None where no slope is shown (likelihood ratio, 95 %).

    The targets are Platt's, a little inside 0 and 1, so that clips without a single wrong word give a finite answer.
    """
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415  (half a second, for confidences only)

    right, wrong = float(rated.right.sum()), float((~rated.right).sum())
    target_W = np.where(rated.right, (right + 1) / (right + 2), 1 / (wrong + 2))
    both_W1 = np.concatenate([rated.log_odds, rated.log_odds])[:, None]
    classes_W = np.repeat([1, 0], len(target_W))
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000)
    model.fit(both_W1, classes_W, sample_weight=np.concatenate([target_W, 1 - target_W]))
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    gained = _log_likelihood(slope * rated.log_odds + intercept, target_W) - _log_likelihood(0.0, target_W)
    return (slope, intercept) if slope > 0 and 2 * gained > _CHI_SQUARE_95 else None


def _log_likelihood(log_odds_W: Floats | float, target_W: Floats) -> float:
    """Of targets between 0 and 1; log-odds that are one number stand for the best one."""
    if isinstance(log_odds_W, float):
        mean = float(target_W.mean())
        log_odds_W = np.full_like(target_W, math.log(mean / (1 - mean)))
    return float((target_W * log_odds_W - np.logaddexp(0, log_odds_W)).sum())


# --- scores -------------------------------------------------------------------------------------------


class _Ranked(NamedTuple):
    """Words by confidence, equal ones together: the different confidences (G,), falling, and each word's (W,)."""

    confidence: Floats
    place: NDArray[np.int64]


def _ranked(confidence_W: Floats) -> _Ranked:
    values_G, inverse_W = np.unique(confidence_W, return_inverse=True)
    return _Ranked(values_G[::-1], len(values_G) - 1 - inverse_W)


def _ece(confidence_G: Floats, weight_G: Floats, right_G: Floats) -> float:
    """Mean distance of confidence and share of right words over bins of equal mass; equal confidences stay together."""
    bins_G = _bins(weight_G)
    gap_B = np.bincount(bins_G, right_G - confidence_G * weight_G, minlength=BINS)
    return float(np.abs(gap_B).sum() / weight_G.sum())


def _bins(weight_G: Floats) -> NDArray[np.int64]:
    middle_G = (np.cumsum(weight_G) - weight_G / 2) / weight_G.sum()
    bins_G: NDArray[np.int64] = np.minimum((middle_G * BINS).astype(np.int64), BINS - 1)
    return bins_G


def _auroc(confidence_G: Floats, weight_G: Floats, right_G: Floats) -> float:
    """How often a right word is surer than a wrong one, halves of the ties; NaN where one of the two is missing."""
    wrong_G = weight_G - right_G
    pairs = right_G.sum() * wrong_G.sum()
    below_G = wrong_G.sum() - np.cumsum(wrong_G)
    return float((right_G * (below_G + wrong_G / 2)).sum() / pairs) if pairs > 0 else math.nan


def _aurc(confidence_G: Floats, weight_G: Floats, right_G: Floats) -> float:
    """Mean share of wrong words among the surest, over all numbers of words that are kept."""
    risk_G = np.cumsum(weight_G - right_G) / np.maximum(np.cumsum(weight_G), 1e-300)
    return float((weight_G * risk_G).sum() / weight_G.sum())


def _nce(confidence_G: Floats, weight_G: Floats, right_G: Floats) -> float:
    """Share of the entropy of right and wrong that confidences take away; NaN where all are right or all wrong."""
    sure_G = np.clip(confidence_G, 1e-12, 1 - 1e-12)
    said = float((right_G * np.log(sure_G) + (weight_G - right_G) * np.log1p(-sure_G)).sum())
    total, right = float(weight_G.sum()), float(right_G.sum())
    if not 0 < right < total:
        return math.nan
    entropy = -right * math.log(right / total) - (total - right) * math.log(1 - right / total)
    return (entropy + said) / entropy


_Measure = Callable[[Floats, Floats, Floats], float]
_SCORES: Final[Mapping[str, tuple[_Measure, str, Literal["lower", "higher"], tuple[float, float]]]] = {
    "ece": (_ece, "Calibration error of words (ECE)", "lower", (0.0, 1.0)),
    "auroc": (_auroc, "AUROC of word confidences", "higher", (0.0, 1.0)),
    "aurc": (_aurc, "Risk over coverage of words (AURC)", "lower", (0.0, 1.0)),
    "nce": (_nce, "Normalised cross-entropy of words (NCE)", "higher", (-math.inf, 1.0)),
}
UNCALIBRATED: Final = "_uncalibrated"
"""End of the name of a score of confidences before calibration."""


def is_of_confidence(name: str) -> bool:
    """Whether a score is one of confidences."""
    return name.removesuffix(UNCALIBRATED) in _SCORES


def confidence_scores(
    rated: RatedWords,
    calibration: Calibration | None,
    *,
    speakers: Sequence[Hashable | None] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Score]:
    """Scores of the confidences of words, with intervals over speakers or clips; empty without words.

    With a calibration, the scores that it changes stand beside those from before it. AUROC and AURC are left out of
    that: they are of the order of words alone. What cannot be given (AUROC where every word is right) is absent.

    Args:
        rated: Words.
        calibration: How confidences are made of them; None takes them as the model gives them.
        speakers: Speaker of each clip.
        resamples: Of the bootstrap.
        seed: Of the resampling.
    """
    if not len(rated.right):
        return {}
    raw_W = np.array([probability(one) for one in rated.log_odds])
    found = _scores(rated, raw_W, tuple(_SCORES), speakers, resamples, seed) if calibration is None else {}
    if calibration is not None:
        sure_W = np.array([calibration(one) for one in rated.log_odds])
        found = _scores(rated, sure_W, tuple(_SCORES), speakers, resamples, seed)
        before = _scores(rated, raw_W, ("ece", "nce"), speakers, resamples, seed, " before calibration", "beside")
        found |= {f"{name}{UNCALIBRATED}": score for name, score in before.items()}
    return found


def _scores(
    rated: RatedWords,
    confidence_W: Floats,
    names: Sequence[str],
    speakers: Sequence[Hashable | None] | None,
    resamples: int,
    seed: int,
    title: str = "",
    role: Role = "plain",
) -> dict[str, Score]:
    """Scores of these names, all of the same resamples."""
    groups = _ranked(confidence_W)
    size = len(groups.confidence)

    def measured(weight_N: Floats | None) -> list[float]:
        weight_W = None if weight_N is None else weight_N[rated.clip]
        right_W = rated.right.astype(np.float64) if weight_W is None else rated.right * weight_W
        weight_G = np.bincount(groups.place, weight_W, minlength=size).astype(np.float64)
        right_G = np.bincount(groups.place, right_W, minlength=size).astype(np.float64)
        if not weight_G.any():
            return [math.nan] * len(names)
        return [_SCORES[name][0](groups.confidence, weight_G, right_G) for name in names]

    drawn = resampled_weights(rated.clips, speakers, resamples=resamples, seed=seed)
    values_SR = np.array([measured(weight_N) for weight_N in drawn.weights]).T
    factor = expansion(drawn.blocks)
    scores = {}
    for name, value, values_R in zip(names, measured(None), values_SR, strict=True):
        if not math.isfinite(value):
            continue
        _, called, better, (least, most) = _SCORES[name]
        kept_R = values_R[np.isfinite(values_R)]
        low, high = percentile_interval(kept_R) if kept_R.size else (value, value)
        if name == "ece":  # a resample is as much further from calibrated as these words are from the truth
            low, high = 2 * value - high, 2 * value - low
        low, high = (value + factor * (end - value) for end in (low, high))
        scores[name] = Score(
            name=f"{name}{UNCALIBRATED}" if role == "beside" else name,
            value=value,
            low=min(max(low, least), value),
            high=max(min(high, most), value),
            count=len(np.unique(rated.clip)),
            better=better,
            title=f"{called}{title}",
            role=role,
            detail={
                "words": float(len(rated.right)),
                "wrong": float((~rated.right).sum()),
                "resampled": drawn.resampled,
            },
        )
    return scores


def confidence_curves(rated: RatedWords, calibration: Calibration | None) -> dict[str, Any]:
    """What a report draws: confidence against right words in bins of equal mass, and risk over coverage.

    Returns:
        `words`, `wrong`; `reliability` (calibrated, or as the model gives it) and `uncalibrated` (where there is a
        calibration): rows of `confidence`, `right`, `words`; `risk_coverage`: rows of `coverage`, `risk`, `confidence`
        (that of the least sure word kept).
    """
    raw_W = np.array([probability(one) for one in rated.log_odds])
    sure_W = raw_W if calibration is None else np.array([calibration(one) for one in rated.log_odds])
    return {
        "words": len(rated.right),
        "wrong": int((~rated.right).sum()),
        "calibrated": calibration is not None,
        "reliability": _reliability(sure_W, rated.right),
        **({} if calibration is None else {"uncalibrated": _reliability(raw_W, rated.right)}),
        "risk_coverage": _risk_coverage(sure_W, rated.right),
    }


def _grouped(confidence_W: Floats, right_W: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    groups = _ranked(confidence_W)
    weight_G = np.bincount(groups.place).astype(np.float64)
    return groups.confidence, weight_G, np.bincount(groups.place, right_W).astype(np.float64)


def _reliability(confidence_W: Floats, right_W: NDArray[np.bool_]) -> list[dict[str, float]]:
    confidence_G, weight_G, right_G = _grouped(confidence_W, right_W)
    bins_G = _bins(weight_G)
    rows = []
    for place in sorted(set(bins_G.tolist()), reverse=True):  # the least sure first
        here_G = bins_G == place
        words = float(weight_G[here_G].sum())
        rows.append(
            {
                "confidence": float((confidence_G * weight_G)[here_G].sum() / words),
                "right": float(right_G[here_G].sum() / words),
                "words": words,
            }
        )
    return rows


def _risk_coverage(confidence_W: Floats, right_W: NDArray[np.bool_]) -> list[dict[str, float]]:
    confidence_G, weight_G, right_G = _grouped(confidence_W, right_W)
    kept_G, wrong_G = np.cumsum(weight_G), np.cumsum(weight_G - right_G)
    steps = np.linspace(0, kept_G[-1], _CURVE_POINTS + 1)[1:]
    shown = sorted(set(np.minimum(np.searchsorted(kept_G, steps), len(kept_G) - 1).tolist()))
    return [
        {
            "coverage": float(kept_G[place] / kept_G[-1]),
            "risk": float(wrong_G[place] / kept_G[place]),
            "confidence": float(confidence_G[place]),
        }
        for place in shown
    ]
