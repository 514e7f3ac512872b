"""The best path is the one that enumeration finds, whatever the batch, and obeys what CTC promises."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sonotune.alignment.viterbi import WILDCARD, Path, Target, align, needed_frames
from sonotune.models.ctc_decoding import collapse

SYMBOLS = 4  # with the blank, 0


def log_probs(rng: np.random.Generator, frames: int, symbols: int = SYMBOLS, scale: float = 2.0) -> NDArray[np.float32]:
    logits = torch.from_numpy(rng.normal(size=(frames, symbols)) * scale)
    return logits.log_softmax(dim=1).numpy().astype(np.float32)


def legal_paths(frames: int, tokens: NDArray[np.int64]) -> list[tuple[int, ...]]:
    """Every sequence of states of so many frames, by the definition and not by recursion over scores."""
    states = 2 * len(tokens) + 1
    found = []
    for path in itertools.product(range(states), repeat=frames):
        if path[0] > 1 or path[-1] < states - 2:
            continue
        good = True
        for before, after in itertools.pairwise(path):
            step = after - before
            if step not in (0, 1, 2) or (step == 2 and after % 2 == 0):
                good = False
            elif step == 2:
                first, second = tokens[before // 2], tokens[after // 2]
                good = good and (first != second or first == WILDCARD)
            if not good:
                break
        if good:
            found.append(path)
    return found


def score_of(
    path: tuple[int, ...], scores_TV: NDArray[np.float32], target: Target, wildcard_penalty: float, gap_penalty: float
) -> float:
    total = 0.0
    for row, state in zip(scores_TV.astype(np.float64), path, strict=True):
        speech = row[1:].max()
        if state % 2:
            token = target.tokens[state // 2]
            total += speech - wildcard_penalty if token == WILDCARD else row[token]
        elif target.open_gaps is not None and target.open_gaps[state // 2]:
            total += max(row[0], speech - gap_penalty)
        else:
            total += row[0]
    return total


@st.composite
def problems(draw: st.DrawFn, most_frames: int = 6, most_tokens: int = 3) -> tuple[NDArray[np.float32], Target]:
    seed = draw(st.integers(0, 10_000))
    frames = draw(st.integers(0, most_frames))
    symbols = st.sampled_from([1, 2, 3, WILDCARD])
    tokens = np.array(draw(st.lists(symbols, max_size=most_tokens)), dtype=np.int64)
    opened = draw(st.none() | st.lists(st.booleans(), min_size=len(tokens) + 1, max_size=len(tokens) + 1))
    gaps = None if opened is None else np.array(opened)
    scores_TV = log_probs(np.random.default_rng(seed), frames)
    if draw(st.booleans()):  # ties
        scores_TV = scores_TV.round(0)
    return scores_TV, Target(tokens=tokens, open_gaps=gaps)


@settings(max_examples=150, deadline=None)
@given(problem=problems(), wildcard_penalty=st.sampled_from([0.0, 0.5]), gap_penalty=st.sampled_from([0.0, 1.5]))
def test_as_good_as_every_path_tried(
    problem: tuple[NDArray[np.float32], Target], wildcard_penalty: float, gap_penalty: float
) -> None:
    scores_TV, target = problem
    [path] = align([scores_TV], [target], wildcard_penalty=wildcard_penalty, gap_penalty=gap_penalty)
    tried = legal_paths(len(scores_TV), target.tokens) if len(scores_TV) else []
    assert (path is None) == (not tried)
    if path is None:
        assert len(scores_TV) < max(1, needed_frames(target.tokens))
        return
    worth = [score_of(one, scores_TV, target, wildcard_penalty, gap_penalty) for one in tried]
    assert path.score == pytest.approx(max(worth), abs=1e-4)
    states = tuple(path.states.tolist())
    assert states in tried
    assert score_of(states, scores_TV, target, wildcard_penalty, gap_penalty) == pytest.approx(path.score, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(problem=problems(most_frames=40, most_tokens=12))
def test_evidence(problem: tuple[NDArray[np.float32], Target]) -> None:
    scores_TV, target = problem
    [path] = align([scores_TV], [target], gap_penalty=2.0)
    if path is None:
        return
    best_T = scores_TV.max(axis=1)
    assert np.all(path.given <= best_T)
    assert path.score <= best_T.sum() + 1e-4
    is_token = path.states % 2 == 1
    blank = ~is_token
    np.testing.assert_array_equal(path.given[blank], scores_TV[blank, 0])
    assert not path.skipped[is_token].any()
    firsts, stops = path.spans(len(target.tokens))
    assert np.all(firsts < stops)  # each token has a frame
    assert np.all(stops[:-1] <= firsts[1:])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), frames=st.integers(1, 60), tokens=st.lists(st.integers(1, 3), max_size=15))
def test_below_the_sum_of_all_paths(seed: int, frames: int, tokens: list[int]) -> None:
    ids = np.array(tokens, dtype=np.int64)
    scores_TV = log_probs(np.random.default_rng(seed), frames)
    [path] = align([scores_TV], [Target(tokens=ids)])
    loss = torch.nn.functional.ctc_loss(
        torch.from_numpy(scores_TV).double().unsqueeze(1),
        torch.tensor([tokens], dtype=torch.int64).reshape(1, -1),
        torch.tensor([frames]),
        torch.tensor([len(tokens)]),
        reduction="sum",
    )
    assert (path is None) == bool(torch.isinf(loss))
    if path is not None:
        assert path.score <= -float(loss) + 1e-4
        assert path.score == pytest.approx(float(path.given.astype(np.float64).sum()), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), frames=st.integers(1, 80))
def test_nothing_is_missing_only_where_the_text_is_what_the_model_writes(seed: int, frames: int) -> None:
    scores_TV = log_probs(np.random.default_rng(seed), frames)
    greedy = scores_TV.argmax(axis=1).tolist()
    own = np.array(collapse(greedy, blank=0), dtype=np.int64)
    [path] = align([scores_TV], [Target(tokens=own)])
    assert path is not None
    assert float((path.given - scores_TV.max(axis=1)).sum()) == 0.0
    other = np.concatenate([own, [1 if len(own) == 0 or own[-1] != 1 else 2]])
    [path] = align([scores_TV], [Target(tokens=other)])
    assert path is None or float((path.given - scores_TV.max(axis=1)).sum()) < 0.0


@settings(max_examples=40, deadline=None)
@given(problem=problems(most_frames=40, most_tokens=10), shift=st.floats(-50, 50))
def test_a_constant_added_to_logits_changes_nothing(problem: tuple[NDArray[np.float32], Target], shift: float) -> None:
    scores_TV, target = problem
    moved_TV = torch.from_numpy(scores_TV.astype(np.float64) + shift).log_softmax(dim=1).numpy().astype(np.float32)
    [before], [after] = align([scores_TV], [target]), align([moved_TV], [target])
    assert (before is None) == (after is None)
    if before is not None and after is not None and not np.array_equal(scores_TV, scores_TV.round(0)):
        assert after.score == pytest.approx(before.score, abs=1e-3)


@settings(max_examples=15, deadline=None)
@given(batch=st.lists(problems(most_frames=40, most_tokens=10), max_size=8), seed=st.integers(0, 100))
def test_a_path_does_not_depend_on_its_batch(batch: list[tuple[NDArray[np.float32], Target]], seed: int) -> None:
    long = np.random.default_rng(seed)
    batch = [*batch, (log_probs(long, 700), Target(tokens=long.integers(1, 4, 200)))]  # brought back to 0 twice
    together = align([one for one, _ in batch], [target for _, target in batch], gap_penalty=1.0)
    for (scores_TV, target), found in zip(batch, together, strict=True):
        [alone] = align([scores_TV], [target], gap_penalty=1.0)
        assert (alone is None) == (found is None)
        if alone is not None and found is not None:
            _assert_same(alone, found)


def _assert_same(first: Path, second: Path) -> None:
    np.testing.assert_array_equal(first.states, second.states)
    np.testing.assert_array_equal(first.given, second.given)
    np.testing.assert_array_equal(first.skipped, second.skipped)
    assert first.score == second.score


def test_many_clips_in_several_batches_keep_their_order() -> None:
    rng = np.random.default_rng(5)
    clips = [log_probs(rng, int(rng.integers(300, 600)), symbols=20) for _ in range(200)]
    targets = [Target(tokens=rng.integers(1, 20, int(rng.integers(150, 260)))) for _ in clips]
    together = align(clips, targets)
    for place in range(0, len(clips), 17):
        [alone] = align([clips[place]], [targets[place]])
        found = together[place]
        assert alone is not None
        assert found is not None
        _assert_same(alone, found)


def test_an_open_gap_takes_speech_that_nobody_wrote_down() -> None:
    said = [1, 2, 3, 2, 4, 5]  # of which the transcript has the first and the last two
    scores_TV = np.full((2 * len(said), 6), -9.0, dtype=np.float32)
    scores_TV[::2, 0] = -0.01
    scores_TV[np.arange(len(said)) * 2 + 1, said] = -0.01
    tokens = np.array([1, 4, 5], dtype=np.int64)
    gaps = np.array([True, True, False, True])
    [path] = align([scores_TV], [Target(tokens=tokens, open_gaps=gaps)], gap_penalty=3.0)
    assert path is not None
    assert path.skipped.tolist() == [place in (3, 5, 7) for place in range(12)]
    assert path.spans(3)[0].tolist() == [1, 9, 11]
    assert path.given[path.skipped].max() == -9.0  # the transcript has nothing there, and the evidence says so
    [clean] = align([scores_TV], [Target(tokens=np.array(said), open_gaps=np.ones(7, dtype=bool))], gap_penalty=3.0)
    assert clean is not None
    assert not clean.skipped.any()


def test_texts_that_do_not_fit_have_no_path() -> None:
    scores_TV = log_probs(np.random.default_rng(0), 3)
    fits, repeats, longer = np.array([1, 2, 1]), np.array([1, 1, 2]), np.array([1, 2, 1, 2])
    paths = align([scores_TV] * 3, [Target(tokens=fits), Target(tokens=repeats), Target(tokens=longer)])
    assert [path is None for path in paths] == [False, True, True]
    never_TV = scores_TV.copy()
    never_TV[:, 2] = -np.inf
    assert align([never_TV], [Target(tokens=fits)]) == [None]
    assert align([scores_TV[:0]], [Target(tokens=fits[:0])]) == [None]


def test_no_tokens_are_one_gap() -> None:
    scores_TV = log_probs(np.random.default_rng(0), 5)
    [path] = align([scores_TV], [Target(tokens=np.zeros(0, dtype=np.int64))])
    assert path is not None
    assert path.states.tolist() == [0] * 5
    assert path.score == pytest.approx(float(scores_TV[:, 0].sum()))


@pytest.mark.parametrize(
    ("tokens", "gaps", "complaint"),
    [
        ([0], None, "without the blank"),
        ([4], None, "symbols from 0 to 3"),
        ([-2], None, "got -2"),
        ([1], [True], "2 gaps"),
    ],
)
def test_targets_that_are_wrong_are_refused(tokens: list[int], gaps: list[bool] | None, complaint: str) -> None:
    target = Target(tokens=np.array(tokens), open_gaps=None if gaps is None else np.array(gaps))
    with pytest.raises(ValueError, match=complaint):
        align([log_probs(np.random.default_rng(0), 3)], [target])


def test_memory_is_what_the_module_says() -> None:
    frames, tokens = 2400, 1600
    rng = np.random.default_rng(0)
    scores_TV = log_probs(rng, frames, symbols=30)
    target = Target(tokens=rng.integers(1, 30, tokens))
    tracemalloc.start()
    align([scores_TV], [target])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    back_pointers = frames * (3 * tokens + 3) / 8
    assert back_pointers <= frames * (2 * tokens + 1) / 4
    assert peak < back_pointers * 1.1 + 25e6  # a block of scores, its product, and rows of frames
