"""Best paths and prefix beam search, against every alignment there is."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sonotune.models.ctc_decoding import beam_search, collapse, label_logprobs

Scores = NDArray[np.float32]


def groups(path: list[int], blank: int) -> list[int]:
    """The same by another road: runs, without those of blanks."""
    return [symbol for symbol, _ in itertools.groupby(path) if symbol != blank]


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(0, 3))
def test_repeats_become_one_and_blanks_vanish(path: list[int], blank: int):
    assert collapse(path, blank=blank) == groups(path, blank)


@pytest.mark.parametrize(
    ("path", "labels"),
    [([], []), ([0, 0], []), ([1, 1, 1], [1]), ([1, 0, 1], [1, 1]), ([2, 1, 1, 0, 1, 2], [2, 1, 1, 2])],
)
def test_collapsing_by_hand(path: list[int], labels: list[int]):
    assert collapse(path, blank=0) == labels


def random_scores(seed: int, *, frames: int, symbols: int, sharpness: float = 1.5) -> Scores:
    rows = sharpness * np.random.default_rng(seed).standard_normal((frames, symbols))
    return np.asarray(rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)), dtype=np.float32)


def every_alignment(scores_TV: Scores, blank: int) -> dict[tuple[int, ...], float]:
    """Probability of each text, over all V ** T paths."""
    frames, symbols = scores_TV.shape
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(symbols), repeat=frames):
        found[tuple(groups(list(path), blank))] += math.exp(
            sum(float(scores_TV[frame, symbol]) for frame, symbol in enumerate(path))
        )
    return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("frames", "symbols", "blank"), [(1, 3, 0), (4, 4, 0), (6, 3, 2), (5, 4, 1)])
def test_a_beam_that_holds_every_prefix_finds_the_most_probable_text(seed: int, frames: int, symbols: int, blank: int):
    scores_TV = random_scores(seed, frames=frames, symbols=symbols)
    truth = every_alignment(scores_TV, blank)
    assert sum(truth.values()) == pytest.approx(1.0, abs=1e-5)
    found = tuple(beam_search(scores_TV, blank=blank, beam_size=10_000))
    assert truth[found] == pytest.approx(max(truth.values()), rel=1e-5)


def test_the_seeds_tell_a_beam_from_the_best_path():
    """Where the best path always gave the most probable text, the tests above would prove nothing."""
    differ = 0
    for seed in range(12):
        scores_TV = random_scores(seed, frames=6, symbols=3)
        best = collapse(scores_TV.argmax(axis=1).tolist(), blank=2)
        differ += best != beam_search(scores_TV, blank=2, beam_size=10_000)
    assert differ >= 2


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 3), st.integers(1, 12))
def test_a_narrow_beam_gives_a_text_that_is_no_better_than_the_best(seed: int, frames: int, symbols: int, size: int):
    scores_TV = random_scores(seed, frames=frames, symbols=symbols + 1)
    truth = every_alignment(scores_TV, 0)
    found = tuple(beam_search(scores_TV, blank=0, beam_size=size))
    assert 0 < truth[found] <= max(truth.values()) * (1 + 1e-6)
    if symbols == 1 and size > frames:  # at most `frames` prefixes and the empty one
        assert truth[found] == pytest.approx(max(truth.values()), rel=1e-5)


@pytest.mark.parametrize("beam_size", [1, 2, 20])
def test_certain_scores_give_their_path_in_any_beam(beam_size: int):
    path = [0, 2, 2, 0, 2, 1, 1, 0]
    scores_TV = np.full((len(path), 3), math.log(0.01), dtype=np.float32)
    scores_TV[np.arange(len(path)), path] = math.log(0.98)
    assert beam_search(scores_TV, blank=0, beam_size=beam_size) == [2, 2, 1]


def test_a_symbol_held_on_is_not_said_twice():
    """p(aa) needs a blank between; three frames of `a` at .6 are `a`, far above `aa` at .6 * .4 * .6."""
    scores_TV = np.log(np.array([[0.4, 0.6]] * 3, dtype=np.float32))
    assert beam_search(scores_TV, blank=0, beam_size=10) == [1]


@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_ties_fall_to_the_first_in_order(beam_size: int):
    scores_TV = np.full((1, 4), math.log(0.25), dtype=np.float32)
    assert beam_search(scores_TV, blank=3, beam_size=beam_size) == []
    scores_TV[0, 3] = math.log(1e-6)
    assert beam_search(scores_TV, blank=3, beam_size=beam_size) == [0]


@pytest.mark.parametrize("blank", [0, 1])
def test_no_frames_are_no_text(blank: int):
    assert beam_search(np.zeros((0, 3), dtype=np.float32), blank=blank, beam_size=4) == []
    assert collapse([], blank=blank) == []


def test_impossible_symbols_are_never_said():
    """Masked scores are -inf, and must become neither NaN nor a text."""
    scores_TV = np.full((4, 3), -np.inf, dtype=np.float32)
    scores_TV[:, 0] = 0.0
    assert beam_search(scores_TV, blank=0, beam_size=8) == []
    scores_TV[1], scores_TV[2] = [-np.inf, 0.0, -np.inf], [-np.inf, 0.0, -np.inf]
    assert beam_search(scores_TV, blank=0, beam_size=8) == [1]


def test_small_probabilities_over_many_frames_do_not_vanish():
    """A product of 4 000 of them is 0 in any floating-point format."""
    frames = 1000
    scores_TV = np.full((frames, 3), math.log(0.2), dtype=np.float32)
    scores_TV[:, 0] = math.log(0.6)
    scores_TV[100] = scores_TV[900] = np.log(np.array([0.01, 0.01, 0.98], dtype=np.float32))
    found = beam_search(scores_TV - 3, blank=0, beam_size=4)
    assert 2 in found


@pytest.mark.parametrize("blank", [0, 2])
def test_the_blank_is_tried_where_it_is_not_among_the_likely(blank: int):
    """No frame prefers the blank, and yet three alignments with it outweigh the one without."""
    said = 1
    scores_TV = np.full((4, 3), math.log(0.01), dtype=np.float32)
    scores_TV[:, said] = np.log([0.98, 0.50, 0.50, 0.98])
    scores_TV[1:3, blank] = math.log(0.49)
    assert collapse(scores_TV.argmax(axis=1).tolist(), blank=blank) == [said]
    assert beam_search(scores_TV, blank=blank, beam_size=10, symbols_per_frame=1) == [said, said]


def test_the_probable_symbols_of_a_large_vocabulary_are_enough():
    scores_TV = random_scores(4, frames=5, symbols=60, sharpness=4.0)
    assert beam_search(scores_TV, blank=0, beam_size=20) == beam_search(
        scores_TV, blank=0, beam_size=20, symbols_per_frame=60
    )


def test_a_label_is_as_sure_as_its_surest_frame():
    path = [0, 3, 3, 0, 3, 4, 4, 4, 0]
    logprobs = [-0.1, -0.9, -0.2, -0.1, -0.5, -3.0, -0.4, -2.0, -0.1]
    assert collapse(path, blank=0) == [3, 3, 4]
    assert label_logprobs(path, logprobs, blank=0) == [-0.2, -0.5, -0.4]
    assert label_logprobs([0, 0], [-0.1, -0.1], blank=0) == []
