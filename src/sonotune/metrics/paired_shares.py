"""The difference of two shares of the same clips, where each clip either has a property or has not.

The bootstrap has no width where no clip changed, or where all clips changed alike. Newcombe's interval is made of two
Wilson intervals, and so keeps one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from sonotune.metrics.intervals import wilson
from sonotune.metrics.paired import POWER_FACTOR, PairedDifference

_Z: Final = 1.96


def paired_share_difference(
    name: str,
    first: Sequence[bool] | NDArray[np.bool_],
    second: Sequence[bool] | NDArray[np.bool_],
    *,
    better: Literal["lower", "higher"] = "lower",
) -> PairedDifference:
    """Share of the second system minus that of the first, over single clips.

    Args:
        name: Of the score.
        first: Whether each clip has the property under the first system (N,).
        second: Under the second (N,).
        better: Which direction is better.

    Returns:
        The difference with its 95 % interval, and p by the exact McNemar test.

    Raises:
        ValueError: There are no clips, or the lengths differ.

    Source: Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", method 10; McNemar 1947.
    """
    first_N, second_N = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    count = first_N.size
    if not count or first_N.shape != second_N.shape:
        raise ValueError(f"needs one value a clip from both systems; found {count} and {second_N.size}.")
    both, neither = int((first_N & second_N).sum()), int((~first_N & ~second_N).sum())
    lost, won = int((first_N & ~second_N).sum()), int((~first_N & second_N).sum())
    shares = (both + lost) / count, (both + won) / count
    low, high = _interval(both, won, lost, neither)
    value = shares[1] - shares[0]
    error = math.sqrt(max(lost + won - (lost - won) ** 2 / count, 0.0)) / count
    error = max(error, (high - low) / (2 * _Z))
    return PairedDifference(
        name=name,
        value=value,
        low=min(low, value),
        high=max(high, value),
        p=_mcnemar(lost, won),
        first=shares[0],
        second=shares[1],
        count=count,
        better=better,
        standard_error=error,
        minimum_detectable=min(1.0, POWER_FACTOR * error),
        discordant=(lost + won) / count,
        resampled="clip",
        blocks=count,
        speakers=0,
    )


def _interval(both: int, won: int, lost: int, neither: int) -> tuple[float, float]:
    """Of the second share minus the first, by the counts of clips that have the property under both, one or neither."""
    count = both + won + lost + neither
    second, first = (both + won) / count, (both + lost) / count
    (second_low, second_high), (first_low, first_high) = wilson(both + won, count), wilson(both + lost, count)
    margins = (both + won) * (lost + neither) * (both + lost) * (won + neither)
    product = both * neither - won * lost
    corrected = max(product - count / 2, 0.0) if product > 0 else float(product)
    phi = corrected / math.sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))

    value = second - first
    low = value - reach(second - second_low, first_high - first)
    return max(-1.0, low), min(1.0, value + reach(second_high - second, first - first_low))


def _mcnemar(lost: int, won: int) -> float:
    """Two-sided, of clips that change as often one way as the other."""
    changed = lost + won
    tail = sum(math.comb(changed, index) for index in range(min(lost, won) + 1))
    return float(min(1.0, 2 * tail / 2**changed))
