"""Differences of two shares of the same clips."""

from __future__ import annotations

import numpy as np
import pytest

from sonotune.metrics.paired_shares import paired_share_difference


def clips(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Clips that have the property under both systems, the first alone, the second alone, and neither."""
    one = [True] * (both + first) + [False] * (second + neither)
    two = [True] * both + [False] * first + [True] * second + [False] * neither
    return one, two


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 2, 12, 0), 0.0569, 0.3404),  # Newcombe 1998, table II, example of method 10
        ((20, 0, 0, 0), -0.1611, 0.1611),
    ],
)
def test_the_published_intervals_come_out(table: tuple[int, int, int, int], low: float, high: float):
    found = paired_share_difference("share", *clips(*table))
    assert found.low == pytest.approx(low, abs=5e-4)
    assert found.high == pytest.approx(high, abs=5e-4)


def test_no_change_still_has_a_width_and_no_evidence():
    found = paired_share_difference("share", [False] * 30, [False] * 30)
    assert found.value == 0
    assert found.low < -0.05
    assert found.high > 0.05
    assert found.p == 1
    assert found.minimum_detectable > 0.05


def test_p_is_that_of_a_fair_coin():
    found = paired_share_difference("share", *clips(5, 0, 6, 5))
    assert found.p == pytest.approx(2 * 0.5**6)
    assert found.value == pytest.approx(6 / 16)


def test_the_order_of_the_systems_turns_the_sign():
    one, two = clips(11, 7, 3, 9)
    there, back = paired_share_difference("share", one, two), paired_share_difference("share", two, one)
    assert there.value == -back.value
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_nine_intervals_of_ten_and_more_hold_the_truth():
    """A coverage of 95 % at the shares and sizes that panels have."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        hard = rng.random(40)  # clips differ in difficulty, which both systems share
        first, second = hard < 0.1, rng.permutation(hard) < 0.3 if rng.random() < 0.5 else hard < 0.3
        found = paired_share_difference("share", first, second)
        held += found.low <= 0.2 <= found.high
    assert held >= 360


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="one value a clip"):
        paired_share_difference("share", [True], [True, False])
    with pytest.raises(ValueError, match="one value a clip"):
        paired_share_difference("share", [], [])
