"""Which of two systems is better on the same clips, how sure that is, and what the clips could have shown at all.

Both systems are resampled jointly: a speaker that is drawn brings the errors of both. What is drawn are whole speakers
(or sessions), because the clips of one speaker resemble each other, also in which system suits them: where speakers
differ in this, a 5 % test on single clips fires in a third of the cases where nothing is to be found, and one on
speakers in 5 to 7 % from 6 speakers on (`tests/metrics/test_paired.py` repeats it).

Shape letters: N clips, G blocks, S seeds (training runs of one system), R resamples.

Source: Bisani and Ney 2004 for the paired bootstrap of error rates; Liu and Peng 2020 (arXiv 1912.09508) for blocks.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonotune.metrics.intervals import MIN_BLOCKS, percentile_interval
from sonotune.types import Unit as ScoreUnit

Unit = Literal["speaker", "session", "clip"]

POWER_FACTOR = 2.8
"""Standard errors that an effect must measure to be found in 80 % of the cases at 5 %: 1.96 + 0.84."""

_LEVEL, _POWER = 0.05, 0.8
_DRAWS_PER_CHUNK = 2_000_000  # bounds the memory of a bootstrap to some 50 MB


class Blocks(NamedTuple):
    """What is resampled together.

    Attributes:
        owner: Number of each clip's block (N,).
        unit: What a block is.
        speakers: Different speakers (or sessions) that are known; 0 where they are not.
        warning: What the choice means for the interval; empty where it means nothing.
    """

    owner: NDArray[np.int64]
    unit: Unit
    speakers: int
    warning: str


def choose_blocks(speakers: Sequence[Hashable | None], sessions: Sequence[Hashable | None] | None = None) -> Blocks:
    """Take speakers where every clip has one, else sessions, else single clips.

    Args:
        speakers: Speaker of each clip, or None.
        sessions: Session of each clip, or None.
    """
    named: tuple[tuple[Unit, Sequence[Hashable | None]], ...] = (("speaker", speakers), ("session", sessions or ()))
    single_N = np.arange(len(speakers), dtype=np.int64)
    whole = [(unit, values) for unit, values in named if values and all(value is not None for value in values)]
    if not whole:
        return Blocks(
            single_N,
            "clip",
            0,
            "not every clip names its speaker or session, so single clips were resampled. Where clips of one speaker "
            "resemble each other, the interval is too narrow.",
        )
    unit, values = whole[0]
    index_of: dict[Hashable | None, int] = {}
    owner_N = np.array([index_of.setdefault(value, len(index_of)) for value in values], dtype=np.int64)
    count = len(index_of)
    if count < MIN_BLOCKS:
        return Blocks(
            single_N,
            "clip",
            count,
            f"the clips have {count} {unit}{'s' if count > 1 else ''}, and fewer than {MIN_BLOCKS} cannot be "
            "resampled: single clips were. The interval holds for other clips of these, and is too narrow for others.",
        )
    least = least_p(count)
    few = f"{count} {unit}s that all agree still leave a p of {least:.2f}: no difference can be shown with so few."
    return Blocks(owner_N, unit, count, few if least >= _LEVEL else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """The second system minus the first.

    Attributes:
        name: Of the score, such as `wer`.
        value: Difference of the two scores, in their unit.
        low: Lower end of the interval.
        high: Upper end.
        p: Two-sided, of no difference. Never below 2^(1 - blocks), what blocks that all agree can say.
        first: Rate of the first system, mean over its seeds.
        second: Rate of the second.
        count: Clips.
        better: Which direction of the score is better.
        unit: Of the score.
        title: What people call the score; empty takes the name in capitals.
        standard_error: Of the difference, from the resamples.
        minimum_detectable: Smallest true difference that clips like these show in 80 % of the cases.
        minimum_detectable_formula: The same from the share of words on which the systems differ; None where that is
            not known.
        discordant: Share of reference words that exactly one of the systems has right; None where not known.
        resampled: What was drawn.
        blocks: How many of it there are.
        speakers: Different speakers (or sessions) known.
        seeds: Training runs of the first and of the second system.
        warnings: What to know before believing it.
    """

    name: str
    value: float
    low: float
    high: float
    p: float
    first: float
    second: float
    count: int
    better: Literal["lower", "higher"] = "lower"
    unit: ScoreUnit = "fraction"
    title: str = ""
    standard_error: float
    minimum_detectable: float
    minimum_detectable_formula: float | None = None
    discordant: float | None = None
    resampled: Unit
    blocks: int
    speakers: int
    seeds: tuple[int, int] = (1, 1)
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The keys that `sonotune compare --json` promises, and more beside them."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "count": self.count,
            "unit": self.unit,
            **({"title": self.title} if self.title else {}),
            "p": self.p,
            "better": self.better,
            "first": self.first,
            "second": self.second,
            "standard_error": self.standard_error,
            "minimum_detectable": self.minimum_detectable,
            "minimum_detectable_formula": self.minimum_detectable_formula,
            "discordant": self.discordant,
            "resampled": self.resampled,
            "blocks": self.blocks,
            "speakers": self.speakers,
            "seeds": list(self.seeds),
            "warnings": list(self.warnings),
        }


def paired_difference(
    name: str,
    first: Sequence[Sequence[float]] | NDArray[np.float64],
    second: Sequence[Sequence[float]] | NDArray[np.float64],
    totals: Sequence[float] | NDArray[np.float64],
    *,
    blocks: Blocks,
    same_seeds: bool = True,
    discordant: float | None = None,
    better: Literal["lower", "higher"] = "lower",
    unit: ScoreUnit = "fraction",
    title: str = "",
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> PairedDifference:
    """Compare two systems by resampling their seeds, then the blocks that both were scored on.

    Args:
        name: Of the score.
        first: Errors (or whatever is counted) of each clip, one row a training run (S, N).
        second: Of the other system (S', N).
        totals: What the counts are a share of, such as reference words (N,); the same for both.
        blocks: What is resampled together, of `choose_blocks`.
        same_seeds: Row s of both systems shares its seed, so rows are drawn as pairs (needs S = S').
        discordant: Words (of all `totals`) that exactly one system has right, for the formula.
        better: Which direction is better.
        unit: Of the score.
        title: What people call it.
        resamples: Bootstrap resamples.
        seed: The same seed gives the same interval.
        level: Share of the resamples inside the interval.

    Raises:
        ValueError: Shapes do not fit, there are fewer than `MIN_BLOCKS` blocks, or all totals are zero.
    """
    first_SN, second_SN = np.atleast_2d(np.asarray(first, float)), np.atleast_2d(np.asarray(second, float))
    totals_N = np.asarray(totals, dtype=np.float64)
    _check(first_SN, second_SN, totals_N, blocks, resamples)
    size = int(blocks.owner.max()) + 1
    together = same_seeds and len(first_SN) == len(second_SN)
    first_SG, second_SG, totals_1G = (
        _by_block(part, blocks.owner, size) for part in (first_SN, second_SN, totals_N[None])
    )
    drawn_R = _resample(first_SG, second_SG, totals_1G[0], together=together, resamples=resamples, seed=seed)
    factor, of_error = widening(first_SG, second_SG, totals_1G[0], together=together, level=level)
    total = totals_N.sum()
    rates = [float(errors_SN.sum(axis=1).mean() / total) for errors_SN in (first_SN, second_SN)]
    value = rates[1] - rates[0]
    spread = float(drawn_R.std(ddof=1))
    drawn_R = value + (drawn_R - value) * factor
    low, high = percentile_interval(drawn_R, level=level)
    formula = None if discordant is None else minimum_detectable_effect(discordant, float(total))
    return PairedDifference(
        name=name,
        value=value,
        low=min(low, value),
        high=max(high, value),
        p=max(two_sided_p(drawn_R), least_p(size)),
        first=rates[0],
        second=rates[1],
        count=totals_N.size,
        better=better,
        unit=unit,
        title=title,
        standard_error=spread * of_error,
        # Systems that say the same everywhere have no spread; what could have been seen is then the formula's.
        minimum_detectable=POWER_FACTOR * spread * factor or minimum_detectable_effect(discordant or 0.0, float(total)),
        minimum_detectable_formula=formula,
        discordant=None if discordant is None else discordant / float(total),
        resampled=blocks.unit,
        blocks=size,
        speakers=blocks.speakers,
        seeds=(len(first_SN), len(second_SN)),
        warnings=tuple(filter(None, (blocks.warning, _of_seeds(len(first_SN), len(second_SN))))),
    )


def _check(
    first_SN: NDArray[np.float64],
    second_SN: NDArray[np.float64],
    totals_N: NDArray[np.float64],
    blocks: Blocks,
    resamples: int,
) -> None:
    shapes = {first_SN.shape[1:], second_SN.shape[1:], totals_N.shape, blocks.owner.shape}
    if len(shapes) != 1 or first_SN.ndim != 2 or second_SN.ndim != 2:
        raise ValueError(
            f"both systems must be scored on the same clips; found counts {first_SN.shape} and {second_SN.shape}, "
            f"totals {totals_N.shape} and blocks {blocks.owner.shape}."
        )
    if np.unique(blocks.owner).size < MIN_BLOCKS:
        raise ValueError(f"needs at least {MIN_BLOCKS} blocks; found {np.unique(blocks.owner).size}.")
    if totals_N.sum() <= 0 or resamples < 2:
        raise ValueError(f"needs a total above 0 and 2 resamples; found {totals_N.sum():g} and {resamples}.")


def _by_block(counts_SN: NDArray[np.float64], owner_N: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Sums by block (S, G)."""
    return np.stack([np.bincount(owner_N, weights=row_N, minlength=size) for row_N in counts_SN])


def _resample(
    first_SG: NDArray[np.float64],
    second_SG: NDArray[np.float64],
    totals_G: NDArray[np.float64],
    *,
    together: bool,
    resamples: int,
    seed: int,
) -> NDArray[np.float64]:
    """Differences of the rates in the resamples that have any total (at most R,).

    How often each seed and block was drawn are whole numbers, so sums are exact and a difference of zero is zero.
    """
    generator = np.random.default_rng(seed)
    size = totals_G.size
    rows = max(1, _DRAWS_PER_CHUNK // size)
    found: list[NDArray[np.float64]] = []
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        if together:
            errors_RG = _drawn(_times(generator, count, len(first_SG)), second_SG - first_SG)
            divisor = len(first_SG)
        else:
            weights = [_times(generator, count, len(part_SG)) for part_SG in (first_SG, second_SG)]
            # Brought to one divisor, so that the numerator stays whole.
            errors_RG = _drawn(weights[1], second_SG) * len(first_SG) - _drawn(weights[0], first_SG) * len(second_SG)
            divisor = len(first_SG) * len(second_SG)
        times_RG = _times(generator, count, size)
        totals_R = times_RG @ totals_G
        valid_R = totals_R > 0
        # Of single runs the errors are the same in every resample.
        errors_R = times_RG @ errors_RG[0] if len(errors_RG) == 1 else (times_RG * errors_RG).sum(axis=1)
        found.append(errors_R[valid_R] / (divisor * totals_R[valid_R]))
    return np.concatenate(found)


def _drawn(times_RS: NDArray[np.float64], counts_SG: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts of the drawn runs by block (R, G); one row for a single run, which every draw has."""
    return counts_SG if len(counts_SG) == 1 else times_RS @ counts_SG


def _times(generator: np.random.Generator, rows: int, size: int) -> NDArray[np.float64]:
    """How often each of `size` things comes up in `size` draws with replacement (rows, size)."""
    if size == 1:
        return np.ones((rows, 1))
    drawn = generator.integers(0, size, size=(rows, size)) + size * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)


def widening(
    first_SG: NDArray[np.float64],
    second_SG: NDArray[np.float64],
    totals_G: NDArray[np.float64],
    *,
    together: bool,
    level: float = 0.95,
) -> tuple[float, float]:
    """How much wider than its percentiles a bootstrap of few blocks and few seeds must be.

    Resamples of n things have a variance of (n - 1) / n of the truth, and normal instead of t tails: three seeds that
    all lean one way by chance, which happens in a quarter of all cases, would pass for certain. The variances of seeds
    and blocks are corrected each by itself, and the t has the degrees of freedom of their sum.

    Args:
        first_SG: Counts of the first system by run and block.
        second_SG: Of the second.
        totals_G: What they are a share of.
        together: Whether runs are drawn as pairs.
        level: Level of the interval.

    Returns:
        The factor on deviations from the observed difference, and the part of it that corrects the standard error.

    Source: Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 5 (expanded percentiles);
    Satterthwaite 1946 for the degrees of freedom.
    """
    from scipy.special import ndtri, stdtrit  # noqa: PLC0415  (0.1 s that `sonotune --help` need not pay)

    total = totals_G.sum()
    lean_G = second_SG.mean(axis=0) - first_SG.mean(axis=0)
    parts = [(float(((lean_G - lean_G.sum() / total * totals_G) ** 2).sum() / total**2), totals_G.size)]
    for counts_SG in (second_SG - first_SG,) if together else (first_SG, second_SG):
        parts.append((float((counts_SG.sum(axis=1) / total).var() / len(counts_SG)), len(counts_SG)))
    parts = [(variance, size) for variance, size in parts if variance > 0 and size > 1]
    if not parts:
        return 1.0, 1.0
    corrected = [(variance * size / (size - 1), size - 1) for variance, size in parts]
    whole = math.fsum(variance for variance, _ in corrected)
    freedom = whole**2 / math.fsum(variance**2 / degrees for variance, degrees in corrected)
    of_error = math.sqrt(whole / math.fsum(variance for variance, _ in parts))
    tail = (1 + level) / 2
    return float(stdtrit(freedom, tail) / ndtri(tail)) * of_error, of_error


def least_p(blocks: int) -> float:
    """What so many blocks that all agree can say at most, by the sign test."""
    return 2.0 ** (1 - blocks)


def two_sided_p(differences: NDArray[np.float64]) -> float:
    """Twice the share of resamples on the smaller side of zero, counted with the observed one; at most 1."""
    beyond = min(int((differences >= 0).sum()), int((differences <= 0).sum()))
    return min(1.0, (1 + 2 * beyond) / (differences.size + 1))


def _of_seeds(first: int, second: int) -> str:
    if min(first, second) > 1:
        return ""
    return (
        "one training run of a system: the interval is of these weights, and says nothing of how far another seed "
        "would move them."
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p values of several comparisons so that 5 % holds for all of them together.

    Args:
        p_values: One a comparison, in any order.

    Returns:
        Adjusted values in the same order: compare each with the level itself.

    Raises:
        ValueError: A value lies outside [0, 1].

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    if wrong := [value for value in p_values if not 0 <= value <= 1]:
        raise ValueError(f"a p value lies in [0, 1]; found {wrong[0]}.")
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def power_factor(comparisons: int) -> float:
    """Standard errors that an effect must measure to be found in 80 % of the cases when it is one of several.

    Args:
        comparisons: How many p values are corrected together; the least of them must be below 5 % over their number.

    Raises:
        ValueError: There is none.
    """
    from scipy.special import ndtri  # noqa: PLC0415  (0.1 s that `sonotune --help` need not pay)

    if comparisons < 1:
        raise ValueError(f"needs a comparison; found {comparisons}.")
    return float(ndtri(1 - _LEVEL / (2 * comparisons)) + ndtri(_POWER))


def minimum_detectable_effect(discordant: float, total: float, *, design_effect: float = 2.0) -> float:
    """Smallest difference of two rates that shows in 80 % of the cases: 2.8 sqrt(deff q / N).

    Args:
        discordant: Words that exactly one system has right. Fewer than 3 count as 3: the 95 % limit of none seen.
        total: Reference words, N.
        design_effect: How much more the words of one speaker vary together than single words would.

    Raises:
        ValueError: There are no words.
    """
    if total <= 0 or discordant < 0:
        raise ValueError(f"needs words and no negative count; found {discordant} of {total}.")
    return min(1.0, POWER_FACTOR * math.sqrt(design_effect * max(3.0, discordant)) / total)
