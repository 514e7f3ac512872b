"""What a sample says about a corpus: the share of bad clips with its interval, and whether to train on it.

The share of flagged clips of each stratum is weighted by the stratum's part of the corpus, for the sample is not spread
as the corpus is. Its variance counts that the population is finite and that clips of one speaker resemble each other.
The interval is Wilson's over the effective number of clips. A detector makes errors of its own, which the formula of
Rogan and Gladen takes out; how well its error rates are known widens the interval.

The decision compares the interval, not the share, with the borders: at a true share that lies on a border, a rule that
compares the share itself decides by luck, whatever the size of the sample.

Sources: Cochran 1977, "Sampling techniques" (chapters 5 and 9); Kish 1965, "Survey sampling" (design effect); Wilson
1927; Rogan and Gladen 1978, "Estimating prevalence from the results of a screening test"; Zou and Donner 2008,
"Construction of confidence limits about effect measures" (intervals of a function of several estimates); Holm 1979.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sonotune.errors import ConfigError
from sonotune.metrics.intervals import wilson
from sonotune.metrics.paired import holm

Decision = Literal["PROCEED", "SAMPLE_MORE", "CAUTION", "STOP"]
Rule = Literal["interval", "point"]

MIN_SENSITIVITY_AND_SPECIFICITY: Final = 1.2
"""A detector flags good clips at least as often as bad ones where the two add up to 1. Below this sum its errors are
not taken out: the correction would multiply the sampling error by more than five."""

_BISECTIONS: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class StratumCount:
    """What was found in a stratum.

    Attributes:
        name: Of the stratum.
        population: Clips of the corpus in it.
        sampled: Clips that were looked at.
        flagged: Clips of those that were flagged.
        cluster_size: Sampled clips of a speaker or recording (`mean_cluster_size`); 1 where clips are independent.
    """

    name: str
    population: int
    sampled: int
    flagged: int
    cluster_size: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.flagged <= self.sampled <= self.population and self.sampled > 0 and self.cluster_size >= 1):
            raise ValueError(
                f"the stratum {self.name!r} must have 0 <= flagged <= sampled <= population, a sampled clip and "
                f"clusters of at least one; found {self.flagged}, {self.sampled}, {self.population} and "
                f"{self.cluster_size}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """How often flags are right.

    Attributes:
        sensitivity: Share of bad clips that are flagged.
        specificity: Share of good clips that are not.
        sensitivity_count: Clips that the sensitivity was measured on.
        specificity_count: Clips that the specificity was measured on.
    """

    sensitivity: float
    specificity: float
    sensitivity_count: int
    specificity_count: int

    def __post_init__(self) -> None:
        if not (0 <= self.sensitivity <= 1 and 0 <= self.specificity <= 1):
            raise ValueError(
                f"sensitivity and specificity lie in [0, 1]; found {self.sensitivity} and {self.specificity}."
            )
        if min(self.sensitivity_count, self.specificity_count) < 1:
            raise ValueError(
                "sensitivity and specificity are measured on at least one clip; "
                f"found {self.sensitivity_count} and {self.specificity_count}."
            )

    @property
    def usable(self) -> bool:
        """Whether its errors can be taken out of a share."""
        return self.sensitivity + self.specificity >= MIN_SENSITIVITY_AND_SPECIFICITY

    def corrected(self, share: float) -> float:
        """The share of bad clips behind a share of flagged ones, not clipped (Rogan and Gladen)."""
        return _rogan_gladen(share, self.sensitivity, self.specificity)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """When a corpus passes.

    Attributes:
        proceed_below: The upper end of the interval must lie below it.
        stop_above: The lower end of the interval must lie above it.
        level: Confidence over all looks together, two-sided.
        looks: Times that a sample may be looked at; each takes an equal part of the error (3 looks: 98.3 % each).
        cluster_correlation: Correlation of flags within a speaker. Clips are drawn one by one, so the rate of the
            corpus itself needs none; above 0 the interval is that of other clips of such speakers.
        rule: `interval`, or `point`, which compares the share itself with the borders.
    """

    proceed_below: float = 0.10
    stop_above: float = 0.15
    level: float = 0.95
    looks: int = 3
    cluster_correlation: float = 0.0
    rule: Rule = "interval"

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.proceed_below <= self.stop_above < 1:
            problems.append(
                f"audit.proceed_below is {self.proceed_below} and audit.stop_above {self.stop_above}; allowed is "
                "0 < proceed_below <= stop_above < 1"
            )
        if not 0 < self.level < 1:
            problems.append(f"the level is {self.level}; allowed is a number between 0 and 1")
        if self.looks < 1:
            problems.append(f"audit.looks is {self.looks}; allowed is at least 1")
        if not 0 <= self.cluster_correlation <= 1:
            problems.append(f"audit.cluster_correlation is {self.cluster_correlation}; allowed is 0 to 1")
        if self.rule not in ("interval", "point"):
            problems.append(f"audit.rule is {self.rule!r}; allowed are interval, point")
        if problems:
            raise ConfigError("; ".join(problems) + ". Mend the settings.")

    @property
    def look_level(self) -> float:
        """Confidence of one look."""
        return 1.0 - (1.0 - self.level) / self.looks


@dataclass(frozen=True, slots=True, kw_only=True)
class BadShare:
    """A share of bad clips.

    Attributes:
        value: The estimate, in [0, 1].
        low: Lower end of its interval.
        high: Upper end of its interval.
        count: Clips that were looked at.
        level: Confidence of the interval.
        flagged: Weighted share of flagged clips.
        effective_count: Independent clips that would say as much about the share of flagged ones; infinite where every
            clip was looked at.
        correction: `applied`; `none` without a detector's error rates, so that all is about flagged clips; `refused`
            where the detector is too weak, so that the interval is [0, 1].
    """

    value: float
    low: float
    high: float
    count: int
    level: float
    flagged: float
    effective_count: float
    correction: Literal["applied", "none", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StratumVerdict:
    """What is said of one stratum by itself.

    Attributes:
        name: Of the stratum.
        share: Its bad clips; the interval is that of the stratum alone, not adjusted.
        p_value: Adjusted by Holm over the strata: the decision is PROCEED or STOP where it is at most the error that a
            look may make.
        decision: CAUTION where neither can be said.
    """

    name: str
    share: BadShare
    p_value: float
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a look at a sample says.

    Attributes:
        decision: What to do.
        reasons: Why, in sentences.
        share: Bad clips of the corpus.
        strata: Each by itself.
        look: Which look it was, from 1 on.
    """

    decision: Decision
    reasons: tuple[str, ...]
    share: BadShare
    strata: tuple[StratumVerdict, ...]
    look: int


def mean_cluster_size(clusters: Sequence[Hashable | None]) -> float:
    """How many clips of the sample stand beside each clip in its cluster, itself included, on average over clips.

    For clusters of one size it is that size. For unequal ones it is above their mean, as the variance is (Kish).

    Args:
        clusters: Speaker or recording of each clip; one that names none is a cluster of its own.
    """
    sizes = Counter(name for name in clusters if name is not None)
    alone = sum(name is None for name in clusters)
    total = alone + sizes.total()
    return (alone + sum(size * size for size in sizes.values())) / total if total else 1.0


def bad_share(
    strata: Sequence[StratumCount],
    detector: Detector | None,
    *,
    level: float = 0.95,
    cluster_correlation: float = 0.0,
) -> BadShare:
    """Estimate the share of bad clips of a corpus.

    With W the stratum's part of the corpus, N its clips, n those looked at and p their flagged share:

        share = sum W p,  variance = sum W² [(1 - n/N) deff p (1 - p) / (n - 1) + n/N d / n],  deff = 1 + (m - 1) rho

    where d is the variance of the detector on one clip, which looking at every clip does not remove. A stratum with
    none or all of its clips flagged has the variance of (k + 1/2) / (n + 1), for a small sample of it does not show
    that it has none; with a detector, variances are those of shares that it can give, from 1 - specificity to
    sensitivity. The effective number of clips is share (1 - share) / variance; without a flag, or without
    anything else, it is Kish's 1 / sum W² (1 - n/N) deff / n, which is the clips over deff where the sample is spread
    as the corpus is.

    The ends of Wilson's interval are corrected by Rogan and Gladen. Distances between the estimate and the ends that
    the sample, the sensitivity and the specificity give, each alone, are squared and added (Zou and Donner). Where
    fewer clips are flagged than the detector would flag of good ones alone, the upper end is that of such a corpus.

    Args:
        strata: At least one; each with a sampled clip.
        detector: How often flags are right; None says nothing beyond flagged clips.
        level: Confidence of the interval.
        cluster_correlation: rho.

    Raises:
        ValueError: There are no strata.
    """
    if not strata:
        raise ValueError("a share needs at least one stratum; found none.")
    population = sum(stratum.population for stratum in strata)
    count = sum(stratum.sampled for stratum in strata)
    usable = detector if detector is not None and detector.usable else None
    least, most = (0.0, 1.0) if usable is None else (1 - usable.specificity, usable.sensitivity)
    share = variance = unit_variance = 0.0
    for stratum in strata:
        weight, sampled = stratum.population / population, stratum.sampled
        deff = 1.0 + (stratum.cluster_size - 1.0) * cluster_correlation
        seen = sampled / stratum.population
        found = stratum.flagged / sampled
        shown = found if 0 < stratum.flagged < sampled else (stratum.flagged + 0.5) / (sampled + 1)
        shown = min(max(shown, least), most)
        noise = seen * _detector_variance(usable, shown) / sampled
        share += weight * found
        variance += weight**2 * ((1 - seen) * deff * shown * (1 - shown) / max(sampled - 1, 1) + noise)
        unit_variance += weight**2 * (1 - seen) * deff / sampled
    share = min(max(share, 0.0), 1.0)
    expected = min(max(share, least), most)
    if expected * (1 - expected) > 0:
        effective = expected * (1 - expected) / variance if variance > 0 else math.inf
    else:
        effective = 1.0 / unit_variance if unit_variance > 0 else math.inf
    value, low, high = share, 0.0, 1.0
    correction: Literal["applied", "none", "refused"] = "refused"
    if detector is None:
        (low, high), correction = _wilson(share, effective, level), "none"
    elif usable is not None:
        correction = "applied"
        value = min(max(usable.corrected(share), 0.0), 1.0)
        low = _corrected_ends(min(share, usable.sensitivity), effective, usable, level)[0]
        high = _corrected_ends(max(share, 1 - usable.specificity), effective, usable, level)[1]
        low, high = min(max(low, 0.0), value), max(min(high, 1.0), value)
    return BadShare(
        value=value,
        low=low,
        high=high,
        count=count,
        level=level,
        flagged=share,
        effective_count=effective,
        correction=correction,
    )


def decision_of(
    share: BadShare, settings: GateSettings, *, look: int = 1, exhausted: bool = False
) -> tuple[Decision, str]:
    """Compare a share with the borders.

    Args:
        share: Of bad clips.
        settings: The borders and the rule.
        look: Which look it is, from 1 on.
        exhausted: The sample cannot grow.

    Returns:
        The decision and its reason.
    """
    what = "bad" if share.correction == "applied" else "flagged"
    shown = (
        f"{_percent(share.value)} of the clips are {what} ({_percent(share.level)} interval {_percent(share.low)} to "
        f"{_percent(share.high)})"
    )
    proceed, stop = (f"{100 * border:g} %" for border in (settings.proceed_below, settings.stop_above))
    if settings.rule == "point":
        if share.value < settings.proceed_below:
            return "PROCEED", f"{shown}: the share is below {proceed} (rule: point)"
        if share.value > settings.stop_above:
            return "STOP", f"{shown}: the share is above {stop} (rule: point)"
        return "CAUTION", f"{shown}: the share lies between {proceed} and {stop} (rule: point)"
    if share.correction == "refused":
        return "CAUTION", (
            f"{_percent(share.flagged)} of the clips are flagged, which says nothing of bad ones: sensitivity and "
            f"specificity add up to less than {MIN_SENSITIVITY_AND_SPECIFICITY}, so this model tells wrong transcripts "
            "from right ones too badly. Align with a model that recognises such speech better, or name more trusted "
            "clips"
        )
    if share.high < settings.proceed_below:
        return "PROCEED", f"{shown}: the upper end is below {proceed}"
    if share.low > settings.stop_above:
        return "STOP", f"{shown}: the lower end is above {stop}"
    between = f"the interval is neither wholly below {proceed} nor wholly above {stop}"
    if look < settings.looks and not exhausted:
        return "SAMPLE_MORE", f"{shown}: {between}, and the sample can grow"
    return "CAUTION", f"{shown}: {between}, and the sample does not grow further"


def judge(
    strata: Sequence[StratumCount],
    detector: Detector | None,
    settings: GateSettings,
    *,
    look: int = 1,
    exhausted: bool = False,
) -> Verdict:
    """Judge a corpus by what was found in its sample, as a whole and stratum by stratum.

    The decision is that of the whole. A stratum that is bad by itself is told in the reasons.

    Args:
        strata: What was found.
        detector: How often flags are right.
        settings: Borders, rule and looks.
        look: Which look it is, from 1 on.
        exhausted: The sample cannot grow.
    """
    level, correlation = settings.look_level, settings.cluster_correlation
    share = bad_share(strata, detector, level=level, cluster_correlation=correlation)
    decision, reason = decision_of(share, settings, look=look, exhausted=exhausted)
    verdicts = _judge_strata(strata, detector, settings)
    reasons = [reason]
    for verdict in verdicts:
        if verdict.decision == "STOP" and decision != "STOP":
            reasons.append(
                f"the stratum {verdict.name!r} is bad by itself: {_percent(verdict.share.value)} "
                f"({_percent(verdict.share.low)} to {_percent(verdict.share.high)})"
            )
    return Verdict(decision=decision, reasons=tuple(reasons), share=share, strata=verdicts, look=look)


def _judge_strata(
    strata: Sequence[StratumCount], detector: Detector | None, settings: GateSettings
) -> tuple[StratumVerdict, ...]:
    error = 1.0 - settings.look_level
    shares, sides, p_values = [], [], []
    for stratum in strata:
        share = bad_share(
            [stratum], detector, level=settings.look_level, cluster_correlation=settings.cluster_correlation
        )
        below, above = (_p_value(stratum, detector, settings, side) for side in ("PROCEED", "STOP"))
        shares.append(share)
        sides.append("PROCEED" if below <= above else "STOP")
        p_values.append(min(below, above))
    verdicts = []
    for stratum, share, side, p_value in zip(strata, shares, sides, holm(p_values), strict=True):
        decision: Decision = "CAUTION"
        if settings.rule == "point":
            decision = decision_of(share, settings)[0]
        elif p_value <= error:
            decision = "PROCEED" if side == "PROCEED" else "STOP"
        verdicts.append(StratumVerdict(name=stratum.name, share=share, p_value=p_value, decision=decision))
    return tuple(verdicts)


def _p_value(stratum: StratumCount, detector: Detector | None, settings: GateSettings, side: str) -> float:
    """The smallest error at which the two-sided interval of a stratum lies wholly on one side of a border."""

    def decided(error: float) -> bool:
        share = bad_share([stratum], detector, level=1.0 - error, cluster_correlation=settings.cluster_correlation)
        return share.high < settings.proceed_below if side == "PROCEED" else share.low > settings.stop_above

    low, high = 1e-9, 1.0 - 1e-9
    if not decided(high):
        return 1.0
    if decided(low):
        return low
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _rogan_gladen(share: float, sensitivity: float, specificity: float) -> float:
    return (share + specificity - 1.0) / max(sensitivity + specificity - 1.0, 1e-9)


def _detector_variance(detector: Detector | None, flagged: float) -> float:
    """Variance of the flag of a clip that is known to be good or bad, averaged over both kinds."""
    if detector is None:
        return 0.0
    bad = min(max(detector.corrected(flagged), 0.0), 1.0)
    return bad * detector.sensitivity * (1 - detector.sensitivity) + (1 - bad) * detector.specificity * (
        1 - detector.specificity
    )


def _wilson(share: float, trials: float, level: float) -> tuple[float, float]:
    return (share, share) if math.isinf(trials) else wilson(min(share * trials, trials), trials, level=level)


def _corrected_ends(share: float, effective: float, detector: Detector, level: float) -> tuple[float, float]:
    """The interval of the corrected share, not clipped."""
    sensitivity, specificity = detector.sensitivity, detector.specificity
    lows, highs = zip(
        _wilson(share, effective, level),
        _wilson(sensitivity, detector.sensitivity_count, level),
        _wilson(specificity, detector.specificity_count, level),
        strict=True,
    )
    point = _rogan_gladen(share, sensitivity, specificity)
    least = (
        _rogan_gladen(lows[0], sensitivity, specificity),
        _rogan_gladen(share, highs[1], specificity),
        _rogan_gladen(share, sensitivity, lows[2]),
    )
    most = (
        _rogan_gladen(highs[0], sensitivity, specificity),
        _rogan_gladen(share, lows[1], specificity),
        _rogan_gladen(share, sensitivity, highs[2]),
    )
    return point - math.hypot(*(point - end for end in least)), point + math.hypot(*(end - point for end in most))
