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

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sonotune.metrics.intervals import expansion, percentile_interval, resampled_weights, wilson
from sonotune.metrics.scores import Scores
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
_DRAWS_PER_CHUNK: Final = 100_000  # bounds the memory of a bootstrap, and stays in the cache
_DRAWS: Final = 200_000_000
_FEWEST_RESAMPLES: Final = 200


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


class RankedWords:
    """Words by falling confidence, equal ones together, to be measured under many weights of their clips at once.

    Args:
        confidence_W: Of each word.
        right_W: Whether it is right.
        clip_W: Number of the clip that it is of.
    """

    def __init__(self, confidence_W: Floats, right_W: NDArray[np.bool_], clip_W: NDArray[np.int64]) -> None:
        order_W = np.argsort(-confidence_W, kind="stable")
        sorted_W = confidence_W[order_W]
        self._starts_G = np.flatnonzero(np.concatenate([[True], sorted_W[1:] != sorted_W[:-1]]))
        self.confidence_G = sorted_W[self._starts_G]
        self._right_W = right_W[order_W].astype(np.float64)
        self._clip_W = clip_W[order_W]

    def totals(self, weight_RN: Floats | None = None) -> tuple[Floats, Floats]:
        """Words, and right words, of each confidence (R, G), each clip counted as often as its weight says.

        Args:
            weight_RN: Of the clips, a row a resample; None counts each once, in one row.
        """
        weight_RW = np.ones((1, len(self._clip_W))) if weight_RN is None else weight_RN[:, self._clip_W]
        return (
            np.add.reduceat(weight_RW, self._starts_G, axis=1),
            np.add.reduceat(weight_RW * self._right_W, self._starts_G, axis=1),
        )

    def measure(self, names: Sequence[str], weight_RN: Floats | None = None) -> Floats:
        """Scores of these names under each weighting (len(names), R); NaN where one cannot be given."""
        weight_RG, right_RG = self.totals(weight_RN)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.stack([_SCORES[name][0](self.confidence_G, weight_RG, right_RG) for name in names])
        found[:, weight_RG.sum(axis=1) == 0] = math.nan
        return found

    def measure_all(self, names: Sequence[str], weights: Iterable[Floats]) -> Floats:
        """`measure` for weights (N,) that come one after the other, with bounded memory."""
        rows = max(1, _DRAWS_PER_CHUNK // len(self._clip_W))
        remaining, found = iter(weights), []
        while chunk := list(itertools.islice(remaining, rows)):
            found.append(self.measure(names, np.stack(chunk)))
        return np.concatenate(found, axis=1)


def _ece(confidence_G: Floats, weight_RG: Floats, right_RG: Floats) -> Floats:
    """Mean distance of confidence and share of right words over bins of equal mass; equal confidences stay together."""
    rows = len(weight_RG)
    bins_RG = _bins(weight_RG) + BINS * np.arange(rows)[:, None]
    gap_RG = right_RG - confidence_G * weight_RG
    gap_RB = np.bincount(bins_RG.ravel(), gap_RG.ravel(), minlength=BINS * rows).reshape(rows, BINS)
    return np.asarray(np.abs(gap_RB).sum(axis=1) / weight_RG.sum(axis=1))


def _bins(weight_RG: Floats) -> NDArray[np.int64]:
    total_R1 = np.maximum(weight_RG.sum(axis=-1, keepdims=True), 1.0)
    middle_RG = (np.cumsum(weight_RG, axis=-1) - weight_RG / 2) / total_R1
    bins_RG: NDArray[np.int64] = np.minimum((middle_RG * BINS).astype(np.int64), BINS - 1)
    return bins_RG


def _auroc(confidence_G: Floats, weight_RG: Floats, right_RG: Floats) -> Floats:
    """How often a right word is surer than a wrong one, halves of the ties; NaN where one of the two is missing."""
    wrong_RG = weight_RG - right_RG
    wrong_R = wrong_RG.sum(axis=1)
    below_RG = wrong_R[:, None] - np.cumsum(wrong_RG, axis=1)
    return np.asarray((right_RG * (below_RG + wrong_RG / 2)).sum(axis=1) / (right_RG.sum(axis=1) * wrong_R))


def _aurc(confidence_G: Floats, weight_RG: Floats, right_RG: Floats) -> Floats:
    """Mean share of wrong words among the surest, over all numbers of words that are kept; 0 where none is wrong."""
    risk_RG = np.cumsum(weight_RG - right_RG, axis=1) / np.maximum(np.cumsum(weight_RG, axis=1), 1e-300)
    return np.asarray((weight_RG * risk_RG).sum(axis=1) / weight_RG.sum(axis=1))


def _nce(confidence_G: Floats, weight_RG: Floats, right_RG: Floats) -> Floats:
    """Share of the entropy of right and wrong that confidences take away; NaN where all are right or all wrong."""
    sure_G = np.clip(confidence_G, 1e-12, 1 - 1e-12)
    said_R = (right_RG * np.log(sure_G) + (weight_RG - right_RG) * np.log1p(-sure_G)).sum(axis=1)
    total_R, right_R = weight_RG.sum(axis=1), right_RG.sum(axis=1)
    wrong_R = total_R - right_R
    entropy_R = -right_R * np.log(right_R / total_R) - wrong_R * np.log(wrong_R / total_R)
    return np.asarray((entropy_R + said_R) / entropy_R)


_Measure = Callable[[Floats, Floats, Floats], Floats]
_SCORES: Final[Mapping[str, tuple[_Measure, str, Literal["lower", "higher"], tuple[float, float]]]] = {
    "ece": (_ece, "Calibration error of words (ECE)", "lower", (0.0, 1.0)),
    "auroc": (_auroc, "AUROC of word confidences", "higher", (0.0, 1.0)),
    "aurc": (_aurc, "Risk over coverage of words (AURC)", "lower", (0.0, 1.0)),
    "nce": (_nce, "Normalised cross-entropy of words (NCE)", "higher", (-math.inf, 1.0)),
}
OF_SLICES: Final = ("ece", "auroc", "aurc")
"""Scores that are given of slices, and compared."""
UNCALIBRATED: Final = "_uncalibrated"
"""End of the name of a score of confidences before calibration."""


def is_of_confidence(name: str) -> bool:
    """Whether a score is one of confidences."""
    return name.removesuffix(UNCALIBRATED) in _SCORES


def title_of(name: str) -> tuple[str, Literal["lower", "higher"]]:
    """What people call a score of confidences, and which direction is better."""
    return _SCORES[name][1:3]


def show_confidence(scores: Scores, show: Callable[[Mapping[str, Any]], str]) -> dict[str, str]:
    """The scores that are given of slices, as text; nothing where a slice has none of them.

    Args:
        scores: Of a slice, or differences, in JSON form.
        show: Writes one; a score that cannot be given, such as AUROC where all words are right, is `not defined`.
    """
    if not any(name in scores for name in OF_SLICES):
        return {}
    return {name: show(scores[name]) if name in scores else "not defined" for name in OF_SLICES}


def affordable_resamples(words: int, asked: int) -> int:
    """Resamples of so many words: those that are asked for, or fewer, and at least 200, where words are very many.

    Every resample goes through all words. Intervals of very many words are narrow, whatever the noise of their ends.
    """
    return min(asked, max(_FEWEST_RESAMPLES, _DRAWS // max(1, words)))


def confidence_scores(
    rated: RatedWords,
    calibration: Calibration | None,
    *,
    speakers: Sequence[Hashable | None] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> dict[str, Score]:
    """Scores of the confidences of words, with intervals over speakers or clips; empty without words.

    With a calibration, the scores that it changes stand beside those from before it. AUROC and AURC are left out of
    that: they are of the order of words alone. What cannot be given (AUROC where every word is right) is absent. AURC
    is 0 where no word is wrong, with the interval of a share of single words (Wilson), for no resample has a wrong one.

    Args:
        rated: Words.
        calibration: How confidences are made of them; None takes them as the model gives them.
        speakers: Speaker of each clip.
        resamples: Of the bootstrap; see `affordable_resamples`.
        seed: Of the resampling.
        names: Scores to give, without those from before the calibration; None gives all.
    """
    if not len(rated.right):
        return {}
    resamples = affordable_resamples(len(rated.right), resamples)
    raw_W = np.array([probability(one) for one in rated.log_odds])
    sure_W = raw_W if calibration is None else np.array([calibration(one) for one in rated.log_odds])
    found = _scores(rated, sure_W, names or tuple(_SCORES), speakers, resamples, seed)
    if calibration is not None and names is None:
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
    ranked = RankedWords(confidence_W, rated.right, rated.clip)
    drawn = resampled_weights(rated.clips, speakers, resamples=resamples, seed=seed)
    values_SR, values_S = ranked.measure_all(names, drawn.weights), ranked.measure(names)[:, 0]
    words, wrong = len(rated.right), int((~rated.right).sum())
    scores = {}
    for name, value, values_R in zip(names, map(float, values_S), values_SR, strict=True):
        if not math.isfinite(value):
            continue
        _, called, better, (least, most) = _SCORES[name]
        resampled: str = drawn.resampled
        if name == "aurc" and wrong in (0, words):
            (low, high), resampled = wilson(wrong, words), "word"
        else:
            low, high = _interval(name, value, values_R, expansion(drawn.blocks))
        scores[name] = Score(
            name=f"{name}{UNCALIBRATED}" if role == "beside" else name,
            value=value,
            low=min(max(low, least), value),
            high=max(min(high, most), value),
            count=len(np.unique(rated.clip)),
            better=better,
            title=f"{called}{title}",
            role=role,
            detail={"words": float(words), "wrong": float(wrong), "resampled": resampled},
        )
    return scores


def _interval(name: str, value: float, values_R: Floats, factor: float) -> tuple[float, float]:
    """Percentiles, expanded for few blocks."""
    kept_R = values_R[np.isfinite(values_R)]
    if not kept_R.size:
        return value, value
    low, high = percentile_interval(turned(name, value, kept_R))
    return value + factor * (low - value), value + factor * (high - value)


def turned(name: str, value: float, values_R: Floats) -> Floats:
    """Resampled values as they stand for the truth: turned around the value for ECE, the others as they are.

    A resample is as much further from calibrated as these words are from the truth (basic bootstrap).
    """
    return 2 * value - values_R if name == "ece" else values_R


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
    ranked = RankedWords(confidence_W, right_W, np.zeros(len(right_W), dtype=np.int64))
    weight_1G, right_1G = ranked.totals()
    return ranked.confidence_G, weight_1G[0], right_1G[0]


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
