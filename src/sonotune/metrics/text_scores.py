"""Scores of texts that are given where they are asked for (`evaluation.scores`), and what one must bring along.

Each is a function of sums: a clip has a row of statistics, rows are added up over clips, and the score is computed from
the sum. That is all a corpus score needs to be given with an interval, in every slice, and as a difference between two
systems; nothing else in the package knows which scores there are (`registry.SCORES`).

Shape letters: N clips, K statistics, R resamples.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sonotune.metrics.intervals import expansion, percentile_interval, poisson, resampled_sums, wilson
from sonotune.metrics.text_pairs import KEPT_PAIRS
from sonotune.registry import resolve
from sonotune.types import Finding, LabelTokens, Role, Score, Unit

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredText:
    """One clip as a score sees it.

    Attributes:
        reference: The transcript as a reader sees it, with case and punctuation, its encoding repaired.
        hypothesis: The recognised text in the same form.
        scored_reference: The transcript in scoring form (`Normalizer.scoring`).
        scored_hypothesis: The recognised text in scoring form.
        language: Of the clip, where it is known.
        label_tokens: How the model rates the transcript; None where that was not measured.
    """

    reference: str
    hypothesis: str
    scored_reference: str
    scored_hypothesis: str
    language: str | None = None
    label_tokens: LabelTokens | None = None


class TextScore(Protocol):
    """A score of texts; see `RateScore` for those that are a share."""

    name: str
    title: str
    unit: Unit
    better: Literal["lower", "higher"]
    limits: tuple[float, float]
    """Between which every value lies."""
    of_labels: bool
    """Whether it needs `ScoredText.label_tokens`, which take a pass of their own over the clips."""

    def check(self) -> None:
        """Refuse what cannot be computed here.

        Raises:
            MissingExtraError: A package is missing.
        """
        ...

    def statistics(self, texts: Sequence[ScoredText]) -> Floats:
        """What is added up, one row a clip (N, K); a clip that has no part in the score has zeros."""
        ...

    def values(self, sums_RK: Floats) -> Floats:
        """The score of each sum (R,); NaN where there is nothing to divide by."""
        ...

    def detail(self, sums_K: Floats) -> Mapping[str, float | str]:
        """Parts of the score, for `Score.detail`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RateScore:
    """The part of a score that is a rate of counted things; the statistics are those named.

    Attributes:
        name: See `TextScore`, as for `title` and `better`.
        title: What people call it.
        columns: Names of the statistics, in their order.
        counted: Which of them are counted.
        total: Which of them they are a share of.
        better: Which direction is better.
        of_labels: See `TextScore`.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    counted: tuple[str, ...]
    total: tuple[str, ...]
    better: Literal["lower", "higher"] = "lower"
    unit: Unit = "fraction"
    of_labels: bool = False

    @property
    def limits(self) -> tuple[float, float]:
        """A share of its own total is at most 1; insertions may bring a rate above it."""
        return 0.0, 1.0 if set(self.counted) <= set(self.total) else np.inf

    def check(self) -> None:
        """Nothing is missing."""

    def of(self, sums: Floats, names: Sequence[str]) -> Floats:
        """Sum over the statistics of these names, of (..., K)."""
        found: Floats = sums[..., [self.columns.index(name) for name in names]].sum(axis=-1)
        return found

    def values(self, sums_RK: Floats) -> Floats:
        """See `TextScore`."""
        return divide(self.of(sums_RK, self.counted), self.of(sums_RK, self.total))

    def detail(self, sums_K: Floats) -> Mapping[str, float | str]:
        """Every statistic under its name."""
        return {name: float(value) for name, value in zip(self.columns, sums_K, strict=True)}


def divide(counts_R: Floats, totals_R: Floats) -> Floats:
    """Ratios, NaN where the total is zero."""
    return np.divide(counts_R, totals_R, out=np.full_like(counts_R, np.nan), where=totals_R > 0)


class FurtherScores:
    """The scores that were asked for, each with the statistics of the texts it has seen: slices score them again.

    Args:
        names: In `registry.SCORES`, or of plug-ins.

    Raises:
        ConfigError: A name stands for no score.
        MissingExtraError: A package is missing.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.scores: dict[str, TextScore] = {name: resolve("scores", name) for name in dict.fromkeys(names)}
        for score in self.scores.values():
            score.check()
        self._rows: dict[str, dict[ScoredText, Floats]] = {name: {} for name in self.scores}

    @property
    def of_labels(self) -> tuple[str, ...]:
        """Names of those that need `ScoredText.label_tokens`."""
        return tuple(name for name, score in self.scores.items() if score.of_labels)

    def statistics(self, name: str, texts: Sequence[ScoredText]) -> Floats:
        """See `TextScore.statistics`, (N, K)."""
        kept = self._rows[name]
        if len(kept) + len(texts) > KEPT_PAIRS:
            kept.clear()
        if missing := [text for text in dict.fromkeys(texts) if text not in kept]:
            kept |= zip(missing, self.scores[name].statistics(missing), strict=True)
        return np.stack([kept[text] for text in texts])

    def score(
        self,
        texts: Sequence[ScoredText],
        *,
        speakers: Sequence[Hashable | None] | None,
        resamples: int = 1000,
        seed: int = 0,
    ) -> dict[str, Score]:
        """Every score of these texts, but those of which they have nothing; see `score_texts`."""
        found = {
            name: score_texts(score, self.statistics(name, texts), speakers=speakers, resamples=resamples, seed=seed)
            for name, score in self.scores.items()
        }
        return {name: score for name, score in found.items() if score is not None}

    def findings(self, texts: Sequence[ScoredText]) -> list[Finding]:
        """A note on every score that cannot be given of these texts."""
        absent = [
            score.title
            for name, score in self.scores.items()
            if not np.isfinite(score.values(self.statistics(name, texts).sum(axis=0)[None])).all()
        ]
        return [
            Finding(
                check="evaluation.no_score",
                severity="note",
                message=f"{title} is not given: none of the {len(texts)} clips has anything that it is counted on.",
            )
            for title in absent
        ]


def score_texts(
    score: TextScore,
    statistics_NK: Floats,
    *,
    speakers: Sequence[Hashable | None] | None,
    role: Role = "plain",
    resamples: int = 1000,
    seed: int = 0,
) -> Score | None:
    """The score of some clips with a 95 % interval.

    Speakers are resampled where they are known and there are at least `intervals.MIN_BLOCKS` of them, else clips.

    Args:
        score: Which.
        statistics_NK: Of `TextScore.statistics`.
        speakers: Speaker of each clip, or None.
        role: See `Score`.
        resamples: Of the bootstrap.
        seed: The same seed gives the same interval.

    Returns:
        None where the clips have nothing that the score is of, such as a mark of punctuation.
    """
    sums_K = statistics_NK.sum(axis=0)
    value = float(score.values(sums_K[None])[0]) if len(statistics_NK) else float("nan")
    if not np.isfinite(value):
        return None
    taking_part_N = (statistics_NK != 0).any(axis=1)
    low, high, resampled = _interval(score, statistics_NK, value, speakers, resamples=resamples, seed=seed)
    return Score(
        name=score.name,
        value=value,
        low=min(low, value),
        high=max(high, value),
        count=int(taking_part_N.sum()) if score.of_labels else len(statistics_NK),
        unit=score.unit,
        better=score.better,
        title=score.title,
        role=role,
        detail={**score.detail(sums_K), "resampled": resampled},
    )


def _interval(
    score: TextScore,
    statistics_NK: Floats,
    value: float,
    speakers: Sequence[Hashable | None] | None,
    *,
    resamples: int,
    seed: int,
) -> tuple[float, float, str]:
    drawn = resampled_sums(statistics_NK, speakers, resamples=resamples, seed=seed)
    values_R = score.values(drawn.sums)
    values_R = values_R[np.isfinite(values_R)]
    if values_R.size:
        factor = expansion(drawn.blocks)
        low, high = (value + factor * (end - value) for end in percentile_interval(values_R))
        if high > low:
            least, most = score.limits
            return max(low, least), min(high, most), drawn.resampled
    if isinstance(score, RateScore):  # without spread: as `error_rate.error_rate`
        sums_K = statistics_NK.sum(axis=0)
        counted, total = float(score.of(sums_K, score.counted)), float(score.of(sums_K, score.total))
        return *(wilson(counted, total) if counted <= total else poisson(counted, total)), "count"
    return value, value, "none"


def pseudo_values(score: TextScore, statistics_NK: Floats) -> Floats:
    """What each clip adds to the score (N,), so that their mean is the score of all clips.

    A score that is no ratio, such as BLEU, is compared between two systems by these, clip by clip. They are those of
    the jackknife, moved so that their mean is exact: right to the first order, as the resampling of the whole score is.

    Args:
        score: Which.
        statistics_NK: Of at least two clips.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 11.
    """
    sums_K = statistics_NK.sum(axis=0)
    value, count = float(score.values(sums_K[None])[0]), len(statistics_NK)
    left_out_N = score.values(sums_K - statistics_NK)
    changes_N = np.where(np.isfinite(left_out_N), value - left_out_N, 0.0) * (count - 1)
    found: Floats = value + changes_N - changes_N.mean()
    return found
