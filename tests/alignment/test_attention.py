"""The path through attention: against every path there is, and what it must keep."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.alignment.attention import best_path, gains, hits, median_filter, path_share


def every_gain(gains_UP: np.ndarray, begins: np.ndarray, pause: float) -> float:
    """The best gain by trying all starts and ends of all rows."""
    rows, positions = gains_UP.shape
    best = -np.inf
    spans = [(start, end) for start in range(positions) for end in range(start + 1, positions + 1)]
    for path in itertools.product(spans, repeat=rows):
        if path[0][0] > 0 and not begins[0]:
            continue
        gain = pause * path[0][0] + pause * (positions - path[-1][1])
        for row, (start, end) in enumerate(path):
            gain += gains_UP[row, start:end].sum()
            if row:
                gap = start - path[row - 1][1]  # -1: both rows have one position
                if gap < -1 or (gap > 0 and not begins[row]):
                    gain = -np.inf
                    break
                gain += pause * max(gap, 0)
        best = max(best, gain)
    return best


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_path_is_the_best_of_all(data: st.DataObject):
    rows, positions = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    gains_UP = rng.normal(size=(rows, positions))
    begins = rng.random(rows) < 0.5
    pause = data.draw(st.sampled_from([-0.5, 0.0, 0.5]))
    found = best_path(gains_UP, begins, pause=pause)
    assert found.gain == pytest.approx(every_gain(gains_UP, begins, pause))
    own = sum(
        gains_UP[row, start:end].sum() for row, (start, end) in enumerate(zip(found.starts, found.ends, strict=True))
    )
    rested = found.starts[0] + positions - found.ends[-1] + np.maximum(found.starts[1:] - found.ends[:-1], 0).sum()
    assert found.gain == pytest.approx(own + pause * rested)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 10_000))
def test_a_path_is_in_order_and_within_the_clip(rows: int, positions: int, seed: int):
    rng = np.random.default_rng(seed)
    found = best_path(rng.normal(size=(rows, positions)), rng.random(rows) < 0.3)
    assert (found.starts >= 0).all()
    assert (found.ends <= positions).all()
    assert (found.ends > found.starts).all()
    assert (np.diff(found.starts) >= 0).all()
    assert (np.diff(found.ends) >= 0).all()


def test_pauses_are_left_out():
    attention_HUP = np.full((1, 2, 40), 0.001, dtype=np.float32)
    attention_HUP[0, 0, 10:16] = 0.15
    attention_HUP[0, 1, 25:31] = 0.15
    found = best_path(gains(attention_HUP), np.array([True, True]))
    assert found.starts.tolist() == [10, 25]
    assert found.ends.tolist() == [16, 31]
    assert path_share(attention_HUP[0], found) == pytest.approx(0.9, rel=1e-3)


def test_hits_count_peaks_within_their_words():
    attention_UP = np.zeros((2, 100), dtype=np.float32)
    attention_UP[0, 20], attention_UP[1, 90] = 1.0, 1.0
    count, mass = hits(attention_UP, [(0.3, 0.5), (1.0, 1.5)], 0.02)
    assert count == 1
    assert mass == pytest.approx(1.0)


@given(st.integers(1, 20), st.sampled_from([1, 3, 7]), st.integers(0, 100))
def test_the_median_filter_is_that_of_each_window(size: int, width: int, seed: int):
    values = np.random.default_rng(seed).normal(size=(2, size)).astype(np.float32)
    found = median_filter(values, width)
    half = width // 2
    if size <= half:
        assert (found == values).all()
        return
    padded = np.pad(values, [(0, 0), (half, half)], mode="reflect")
    for place in range(size):
        np.testing.assert_array_equal(found[:, place], np.median(padded[:, place : place + width], axis=1))


@pytest.mark.parametrize("width", [0, 2])
def test_an_even_width_is_refused(width: int):
    with pytest.raises(ValueError, match="odd"):
        median_filter(np.zeros((1, 9), dtype=np.float32), width)
