"""Intervals: exact cases by hand, coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from sonotune.metrics.intervals import block_bootstrap_ratio, percentile_interval, poisson, wilson


def test_equal_clips_have_no_spread() -> None:
    assert block_bootstrap_ratio([1, 1, 1], [4, 4, 4], None, resamples=50, seed=0) == (0.25, 0.25, "clip")


def test_two_clips_give_the_three_possible_rates() -> None:
    low, high, _ = block_bootstrap_ratio([0, 1], [1, 1], None, resamples=4000, seed=0)
    assert (low, high) == (0.0, 1.0)  # both ends have probability 1/4
    low, high, _ = block_bootstrap_ratio([0, 1], [1, 1], None, resamples=4000, seed=0, level=0.4)
    assert (low, high) == (0.5, 0.5)


def test_blocks_are_resampled_whole() -> None:
    # Inside each block the errors cancel out to one half, so whole blocks have no spread and single clips have.
    errors, totals = [0, 1] * 5, [1, 1] * 5
    blocks = [f"s{index // 2}" for index in range(10)]
    assert block_bootstrap_ratio(errors, totals, blocks, resamples=200, seed=0) == (0.5, 0.5, "block")
    low, high, resampled = block_bootstrap_ratio(errors, totals, None, resamples=200, seed=0)
    assert low < 0.5 < high
    assert resampled == "clip"


@pytest.mark.parametrize("blocks", [["a", "b", "c", "d"] * 2, ["a", "b", "c", "d", "e", "f", "g", None]])
def test_few_or_unknown_blocks_fall_back_to_clips(blocks: list[str | None]) -> None:
    assert block_bootstrap_ratio([0, 1] * 4, [1] * 8, blocks, resamples=50, seed=0).resampled == "clip"


def test_the_order_of_clips_inside_blocks_does_not_matter() -> None:
    blocks = ["a", "b", "c", "d", "e"] * 2
    errors = list(range(10))
    first = block_bootstrap_ratio(errors, [10] * 10, blocks, resamples=300, seed=3)
    swapped = block_bootstrap_ratio(errors[5:] + errors[:5], [10] * 10, blocks, resamples=300, seed=3)
    assert first == swapped


def test_chunks_cover_all_resamples() -> None:
    generator = np.random.default_rng(0)
    errors = generator.integers(0, 3, 40).astype(float)
    whole = block_bootstrap_ratio(errors, [3.0] * 40, None, resamples=2001, seed=0)
    chunks = block_bootstrap_ratio(errors, [3.0] * 40, None, resamples=60_001, seed=0)  # more than are drawn at once
    assert abs(chunks.low - whole.low) < 0.03
    assert abs(chunks.high - whole.high) < 0.03


def test_resamples_without_a_word_are_left_out() -> None:
    # A quarter of the resamples has the clip without words alone; they have no rate, and the others have 0.5 or 1.75.
    low, high, _ = block_bootstrap_ratio([2, 5], [4, 0], None, resamples=500, seed=0)
    assert low == 0.0
    assert np.isfinite(high)
    assert high == pytest.approx(7 / 4)
    # One resample that may hold no word at all still gives finite ends.
    for seed in range(20):
        found = block_bootstrap_ratio([2, 0, 0], [4, 0, 0], None, resamples=1, seed=seed)
        assert found[:2] == (0.5, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"errors": [1.0]}, "one length"),
        ({"totals": [0.0, 0.0]}, "no ratio exists"),
        ({"blocks": ["a"]}, "one block per clip"),
        ({"resamples": 0}, "at least 1"),
        ({"level": 1.0}, "inside"),
    ],
)
def test_bad_arguments(changes: dict[str, object], message: str) -> None:
    arguments = {"errors": [1.0, 0.0], "totals": [2.0, 2.0], "blocks": None, "resamples": 10, "level": 0.95} | changes
    errors, totals, blocks = (arguments.pop(name) for name in ("errors", "totals", "blocks"))
    with pytest.raises(ValueError, match=message):
        block_bootstrap_ratio(errors, totals, blocks, seed=0, **arguments)


def test_speaker_blocks_cover_the_truth_where_clips_do_not() -> None:
    """The reason for blocks: with speaker effects, resampling clips misses the true rate far too often."""
    generator = np.random.default_rng(7)
    covered = {"block": 0, "clip": 0}
    for trial in range(120):
        rates = generator.beta(2, 8, size=20)  # mean 0.2, differs by speaker
        errors = generator.binomial(10, np.repeat(rates, 15))
        blocks = np.repeat(np.arange(20), 15).tolist()
        for name, given in (("block", blocks), ("clip", None)):
            low, high, _ = block_bootstrap_ratio(errors, [10] * 300, given, resamples=200, seed=trial)
            covered[name] += low <= 0.2 <= high
    assert covered["block"] >= 0.83 * 120
    assert covered["clip"] <= 0.70 * 120


def test_wilson_against_published_values() -> None:
    # Newcombe 1998, table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_poisson_against_published_values() -> None:
    """Garwood's table: 0, 1, 10 and 50 events."""
    for events, ends in ((0, (0.0, 3.689)), (1, (0.0253, 5.572)), (10, (4.795, 18.39)), (50, (37.11, 65.92))):
        assert poisson(events, 1) == pytest.approx(ends, rel=2e-3)
        assert poisson(events, 4) == pytest.approx([end / 4 for end in ends], rel=2e-3)
    for events, exposure in ((-1, 3), (1, 0)):
        with pytest.raises(ValueError, match="must not be negative"):
            poisson(events, exposure)


def test_wilson_is_symmetric_and_checks_its_arguments() -> None:
    low, high = wilson(20, 20)
    assert high == 1.0
    assert low == pytest.approx(1 - 0.1611, abs=5e-5)
    for successes, trials in ((1, 0), (3, 2), (-1, 4)):
        with pytest.raises(ValueError, match="successes"):
            wilson(successes, trials)


def test_percentiles() -> None:
    assert percentile_interval(range(101), level=0.9) == pytest.approx((5.0, 95.0))
    with pytest.raises(ValueError, match="at least one"):
        percentile_interval([])
