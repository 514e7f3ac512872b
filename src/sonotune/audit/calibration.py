"""From scores to flags: thresholds that flag a chosen part of trusted clips, and what they find of corrupted ones.

A clip is flagged where any of some statistics lies beyond its threshold. All thresholds stand at the same left-tail
probability p among the trusted clips, so the test is that of the smallest p value: of n trusted clips, the c lowest lie
below a threshold, c the same for each statistic, or one more for the first ones. Thresholds are raised in this order,
one rank of one statistic at a time, until K of the trusted clips are flagged, each held against the others, where K is
the largest number with K / (n + 1) no more than the chosen false-positive rate.

That holds the rate for the combined test, whatever the statistics have to do with each other. Let the place of a clip
be the step that flags it. A new good clip joins the others as one of n + 1 that are alike, so its place is among the K
lowest with a chance of K / (n + 1); and it pushes others to later steps and none to earlier ones, so a clip that the
thresholds of the n flag has no more than K - 1 before it.

Sources: Tippett 1931 (the smallest of several p values); Vovk, Gammerman and Shafer 2005, "Algorithmic learning in a
random world" (conformal p values).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from sonotune.audit.gate import Detector
from sonotune.audit.scores import STATISTICS, ClipScores
from sonotune.errors import ConfigError, ManifestError, SonotuneError, suggest
from sonotune.json_files import Count, Number, check_json
from sonotune.metrics.intervals import wilson

MIN_TRUSTED: Final = 20
DEFAULT_STATISTICS: Final = ("min_window_llr", "mean_llr", "coverage")
"""Measured on digit strings and on Swahili (benchmarks/audit): the ratios find text that is wrong, and with a Whisper
that barely knows the language, coverage finds speech that has no text, where the ratios hardly do. A further statistic
costs each of the others a part of the false positives."""
SEED_THRESHOLDS: Final[Mapping[str, float]] = {"coverage": 0.6, "token_posterior": 0.5}
"""The preset `seed`: a clip is flagged with less coverage or less mean confidence than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proportion:
    """A share of clips with its 95 % interval (Wilson).

    Attributes:
        value: The share.
        low: Lower end.
        high: Upper end.
        count: Clips.
    """

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Thresholds, and how often they are right.

    Attributes:
        method: `trusted`: the thresholds come from trusted clips; `fixed`: they were given.
        thresholds: Statistic -> where a clip is flagged: below it, or above it where lower values are better.
        false_positive_rate: That was asked for; None of given thresholds.
        specificity: Of trusted clips, each held against the others; None where no clip was trusted.
        sensitivity: Mean over the corruptions; None where none was tried. Its interval takes the corruptions as made of
            the same clips.
        corruptions: Sensitivity of each corruption.
    """

    method: Literal["trusted", "fixed"]
    thresholds: Mapping[str, float]
    false_positive_rate: float | None = None
    specificity: Proportion | None = None
    sensitivity: Proportion | None = None
    corruptions: Mapping[str, Proportion]

    def flags(self, scores: ClipScores | None) -> tuple[str, ...]:
        """The statistics by which a clip is flagged.

        Args:
            scores: Of the clip; None where it could not be aligned, which is a flag of its own, `unaligned`.
        """
        if scores is None:
            return ("unaligned",)
        return tuple(name for name, threshold in self.thresholds.items() if _beyond(scores, name, threshold))

    @property
    def detector(self) -> Detector | None:
        """The error rates for the gate; None where they are not known."""
        if self.sensitivity is None or self.specificity is None:
            return None
        return Detector(
            sensitivity=self.sensitivity.value,
            specificity=self.specificity.value,
            sensitivity_count=self.sensitivity.count,
            specificity_count=self.specificity.count,
        )

    def to_json(self) -> dict[str, Any]:
        """The form that `calibration_from_json` reads."""
        return {
            "method": self.method,
            "thresholds": dict(self.thresholds),
            "false_positive_rate": self.false_positive_rate,
            "specificity": _proportion_json(self.specificity),
            "sensitivity": _proportion_json(self.sensitivity),
            "corruptions": {name: _proportion_json(found) for name, found in self.corruptions.items()},
        }


def calibrate(
    trusted: Sequence[ClipScores | None],
    corrupted: Mapping[str, Sequence[ClipScores | None]],
    *,
    statistics: Sequence[str] = DEFAULT_STATISTICS,
    false_positive_rate: float = 0.05,
) -> Calibration:
    """Set thresholds by trusted clips and measure what they find.

    Args:
        trusted: Scores of clips whose transcripts are right; None for one that could not be aligned.
        corrupted: Name of a corruption -> scores of clips with their transcripts corrupted by it.
        statistics: By what clips are flagged, the one that matters most first. One that no trusted clip has is left
            out.
        false_positive_rate: Part of good clips that may be flagged.

    Raises:
        ManifestError: There are fewer than `MIN_TRUSTED` trusted clips, or too few for the rate.
        ConfigError: A statistic is not known, or the rate is not between 0 and 1.
    """
    check_statistics(statistics)
    if not 0 < false_positive_rate < 1:
        raise ConfigError(
            f"audit.false_positive_rate is {false_positive_rate}; allowed is a number between 0 and 1, such as 0.05."
        )
    count = len(trusted)
    check_trusted(count)
    used = [name for name in statistics if any(one is not None and one.statistic(name) is not None for one in trusted)]
    if not used:
        raise ManifestError(
            f"no trusted clip has any of the statistics {', '.join(statistics)}. Check that the aligner gives "
            "probabilities, and that the clips can be aligned."
        )
    values_NS = np.stack([oriented(trusted, name) for name in used], axis=1)
    ranks_NS = np.stack([np.searchsorted(np.sort(column), column, side="right") for column in values_NS.T], axis=1)
    ranks_NS[np.isneginf(values_NS)] = 0  # what could not be aligned is flagged whatever the thresholds are
    ranks_NS[np.isposinf(values_NS)] = count + 1  # what lacks a statistic is not flagged by it
    cuts = _cuts(ranks_NS, math.floor(false_positive_rate * (count + 1) + 1e-9))
    if not any(cuts):
        unaligned = int(np.isneginf(values_NS).all(axis=1).sum())
        found = f"{count} of them, {unaligned} of which could not be aligned" if unaligned else f"{count}"
        raise ManifestError(
            f"a false-positive rate of {100 * false_positive_rate:g} % needs more trusted clips: found {found}. Name "
            "more of them, or allow a higher audit.false_positive_rate."
        )
    thresholds = {
        name: _sign(name) * float(np.sort(values_NS[:, index])[cuts[index] - 1])
        for index, name in enumerate(used)
        if cuts[index] > 0 and np.isfinite(np.sort(values_NS[:, index])[cuts[index] - 1])
    }
    false_positives = int((ranks_NS <= np.array(cuts)).any(axis=1).sum())
    made = Calibration(method="trusted", thresholds=thresholds, false_positive_rate=false_positive_rate, corruptions={})
    return _measured(made, corrupted, specificity=_proportion(count - false_positives, count))


def fixed(
    thresholds: Mapping[str, float] = SEED_THRESHOLDS,
    *,
    trusted: Sequence[ClipScores | None] = (),
    corrupted: Mapping[str, Sequence[ClipScores | None]] | None = None,
) -> Calibration:
    """Take thresholds as they are, and measure how often they are right where trusted clips are given.

    Args:
        thresholds: Statistic -> threshold.
        trusted: Scores of clips whose transcripts are right, or none.
        corrupted: As in `calibrate`.

    Raises:
        ConfigError: A statistic is not known.
    """
    check_statistics(tuple(thresholds))
    made = Calibration(method="fixed", thresholds=dict(thresholds), corruptions={})
    good = sum(not made.flags(one) for one in trusted)
    return _measured(made, corrupted or {}, specificity=_proportion(good, len(trusted)) if trusted else None)


def check_trusted(count: int) -> None:
    """Refuse too few trusted clips, before they are aligned.

    Raises:
        ManifestError: There are fewer than `MIN_TRUSTED`.
    """
    if count < MIN_TRUSTED:
        raise ManifestError(
            f"thresholds need at least {MIN_TRUSTED} trusted clips; found {count}. Name more of them by audit.trusted "
            "(200 to 500 of each language tell well), or take fixed thresholds (audit.thresholds=seed)."
        )


def check_statistics(names: Sequence[str]) -> None:
    """Refuse names that are no statistics.

    Raises:
        ConfigError: Names the first.
    """
    if not names:
        raise ConfigError("the statistics are empty; clips are flagged by at least one of them.")
    for name in names:
        if name not in STATISTICS:
            raise ConfigError(
                f"the statistic {name!r} is not known{suggest(name, STATISTICS)}; known are {', '.join(STATISTICS)}."
            )


def p_values(
    reference: Sequence[ClipScores | None], scores: Sequence[ClipScores | None], statistic: str
) -> NDArray[np.float64]:
    """Left-tail p values of clips among trusted ones, (k + 1) / (n + 1) with k trusted clips no better.

    Args:
        reference: The n trusted clips.
        scores: The clips.
        statistic: Which.
    """
    trusted, values = np.sort(oriented(reference, statistic)), oriented(scores, statistic)
    found: NDArray[np.float64] = (np.searchsorted(trusted, values, side="right") + 1) / (len(trusted) + 1)
    return np.minimum(found, 1.0)


def oriented(scores: Sequence[ClipScores | None], name: str) -> NDArray[np.float64]:
    """A statistic of each clip, higher is better: the lowest where a clip was not aligned, the highest without it."""

    def of(one: ClipScores | None) -> float:
        if one is None:
            return -math.inf
        value = one.statistic(name)
        return math.inf if value is None else _sign(name) * value

    return np.array([of(one) for one in scores], dtype=np.float64)


def _measured(
    made: Calibration, corrupted: Mapping[str, Sequence[ClipScores | None]], *, specificity: Proportion | None
) -> Calibration:
    corruptions = {
        name: _proportion(sum(bool(made.flags(one)) for one in scores), len(scores))
        for name, scores in corrupted.items()
        if scores
    }
    overall = None
    if corruptions:
        mean = sum(found.value for found in corruptions.values()) / len(corruptions)
        fewest = min(found.count for found in corruptions.values())
        overall = _proportion(mean * fewest, fewest)
    return Calibration(
        method=made.method,
        thresholds=made.thresholds,
        false_positive_rate=made.false_positive_rate,
        specificity=specificity,
        sensitivity=overall,
        corruptions=corruptions,
    )


def _cuts(ranks_NS: NDArray[np.int64], allowed: int) -> list[int]:
    """How many of the lowest trusted values lie below the threshold of each statistic."""
    count, statistics = ranks_NS.shape
    cuts = [0] * statistics
    for step in range(count * statistics):
        if int((ranks_NS <= np.array(cuts)).any(axis=1).sum()) >= allowed:
            return cuts
        wider = list(cuts)
        wider[step % statistics] += 1
        if int((ranks_NS <= np.array(wider)).any(axis=1).sum()) > allowed:  # several with the same value
            return cuts
        cuts = wider
    return cuts


def _sign(name: str) -> float:
    return 1.0 if STATISTICS[name] == "higher" else -1.0


def _beyond(scores: ClipScores, name: str, threshold: float) -> bool:
    value = scores.statistic(name)
    return value is not None and _sign(name) * value < _sign(name) * threshold


def _proportion(successes: float, count: int) -> Proportion:
    low, high = wilson(min(successes, count), count)
    return Proportion(value=successes / count, low=low, high=high, count=count)


# --- JSON ----------------------------------------------------------------------------------------

_Unit = Annotated[Number, Field(ge=0, le=1)]


class _ProportionEntries(TypedDict):
    value: _Unit
    low: _Unit
    high: _Unit
    count: Annotated[Count, Field(ge=1)]


class CalibrationEntries(TypedDict):
    """A calibration in JSON form."""

    method: Literal["trusted", "fixed"]
    thresholds: dict[str, Number]
    false_positive_rate: _Unit | None
    specificity: _ProportionEntries | None
    sensitivity: _ProportionEntries | None
    corruptions: dict[str, _ProportionEntries]


_CALIBRATION: Final = TypeAdapter(CalibrationEntries)


def calibration_from_json(
    value: object, *, where: str = "the calibration", error: type[SonotuneError] = ManifestError
) -> Calibration:
    """Read what `Calibration.to_json` made.

    Args:
        value: Plain JSON.
        where: Its place, for messages.
        error: Class of the error that is raised.

    Raises:
        SonotuneError: Of the class `error`: something is missing or of another type, or a statistic is not known.
    """
    do = "Calibrate again."
    entries = check_json(value, _CALIBRATION, where=where, error=error, do=do)
    if unknown := [name for name in entries["thresholds"] if name not in STATISTICS]:
        raise error(f"{where} has a threshold for {unknown[0]!r}; known are {', '.join(STATISTICS)}. {do}")
    return Calibration(
        method=entries["method"],
        thresholds=entries["thresholds"],
        false_positive_rate=entries["false_positive_rate"],
        specificity=_read_proportion(entries["specificity"]),
        sensitivity=_read_proportion(entries["sensitivity"]),
        corruptions={
            name: Proportion(value=one["value"], low=one["low"], high=one["high"], count=one["count"])
            for name, one in entries["corruptions"].items()
        },
    )


def _read_proportion(entries: _ProportionEntries | None) -> Proportion | None:
    if entries is None:
        return None
    return Proportion(value=entries["value"], low=entries["low"], high=entries["high"], count=entries["count"])


def _proportion_json(found: Proportion | None) -> dict[str, float | int] | None:
    return None if found is None else {"value": found.value, "low": found.low, "high": found.high, "count": found.count}
