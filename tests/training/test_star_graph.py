"""The forward algorithm over the graph of a transcript that may be wrong."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.training.objectives.star_graph import Penalties, star_ctc_loss

NEVER = Penalties(bypass=math.inf, star=math.inf)
BLANK = 0


def case(seed: int, *, clips: int = 3, frames: int = 12, symbols: int = 5, vocabulary: int = 6, blank: int = BLANK):
    """Log-probabilities, transcripts, lengths and beginnings of words, at random."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 2, (clips, frames, vocabulary)))
    known = [index for index in range(vocabulary) if index != blank]
    targets = torch.from_numpy(rng.choice(known, (clips, symbols)))
    lengths = torch.from_numpy(rng.integers(0, symbols + 1, clips))
    heard = torch.from_numpy(rng.integers(frames // 2, frames + 1, clips))
    begins = torch.from_numpy(rng.random((clips, symbols)) < 0.4)
    return logits.log_softmax(-1), targets, heard, lengths, begins


def loss(log_probs, targets, heard, lengths, begins, penalties, blank: int = BLANK):
    return star_ctc_loss(log_probs, targets, heard, lengths, begins, blank=blank, penalties=penalties)


def by_hand(log_probs, target, begins, penalties: Penalties, blank: int = BLANK) -> float:
    """One clip: every path of frames, arc by arc, over a graph whose bypasses are written out one by one."""
    symbols = len(target)
    starts = sorted({0, *np.flatnonzero(begins).tolist()}) if symbols else []
    places = [*starts, symbols]
    arcs: dict[tuple, list[tuple[tuple, float]]] = {}
    first: dict[tuple, float] = {}
    ends: dict[tuple, float] = {}

    def arc(source, state, cost=0.0):
        if math.isfinite(cost):
            arcs.setdefault(source, []).append((state, cost))

    def resume(number):
        return (("blank", places[number]), 0.0), (("star", number), penalties.star)

    for u in range(symbols):
        arc(("symbol", u), ("symbol", u))
        arc(("blank", u), ("symbol", u))
        if u + 1 < symbols and target[u + 1] != target[u]:
            arc(("symbol", u), ("symbol", u + 1))
        if u + 1 not in places:
            arc(("symbol", u), ("blank", u + 1))
    for position in range(symbols + 1):
        arc(("blank", position), ("blank", position))
    for number, position in enumerate(places):
        for one in ("star", "within"):
            arc((one, number), (one, number))
        arc(("blank", position), ("star", number), penalties.star)
        arc(("star", number), ("within", number))
        arc(("within", number), ("star", number))
        arc(("star", number), ("blank", position))
        if position < symbols:
            arc(("star", number), ("symbol", position))
        for to in range(number, len(places)):
            cost = (to - number) * penalties.bypass if to > number else 0.0
            if number:
                for state, more in resume(to):
                    arc(("symbol", position - 1), state, cost + more)
                if to == len(places) - 1 and math.isfinite(cost):
                    ends["symbol", position - 1] = -cost
            else:
                for state, more in (*resume(to), *([(("symbol", places[to]), 0.0)] if places[to] < symbols else [])):
                    if math.isfinite(cost + more):
                        first[state] = -cost - more
    ends["blank", symbols] = 0.0
    ends["star", len(places) - 1] = 0.0

    def emission(state, frame):
        kind, index = state
        if kind == "symbol":
            return float(log_probs[frame, target[index]])
        if kind == "star":
            return float(np.logaddexp.reduce([log_probs[frame, v] for v in range(log_probs.shape[1]) if v != blank]))
        return float(log_probs[frame, blank])

    sums = {state: cost + emission(state, 0) for state, cost in first.items()}
    for frame in range(1, len(log_probs)):
        step: dict[tuple, list[float]] = {}
        for state, value in sums.items():
            for to, cost in arcs.get(state, []):
                step.setdefault(to, []).append(value - cost)
        sums = {state: float(np.logaddexp.reduce(values)) + emission(state, frame) for state, values in step.items()}
    return -float(
        np.logaddexp.reduce([value + ends[state] for state, value in sums.items() if state in ends] or [-np.inf])
    )


@pytest.mark.parametrize("blank", [0, 3, 5])
@pytest.mark.parametrize("seed", range(20))
def test_without_arcs_of_its_own_it_is_ctc(seed, blank):
    log_probs, *rest = case(seed, clips=6, blank=blank)
    ours = log_probs.clone().requires_grad_()
    theirs = log_probs.clone().requires_grad_()
    targets, heard, lengths, begins = rest
    found = loss(ours, targets, heard, lengths, begins, NEVER, blank)
    wanted = F.ctc_loss(theirs.transpose(0, 1), targets, heard, lengths, blank=blank, reduction="none")
    torch.testing.assert_close(found, wanted)
    possible = wanted.isfinite()
    found[possible].sum().backward()
    zeroed = F.ctc_loss(
        theirs.transpose(0, 1), targets, heard, lengths, blank=blank, reduction="none", zero_infinity=True
    )
    # torch gives the gradient before the softmax; through it, both are the same.
    zeroed.sum().backward()
    grads = []
    for leaf, value in ((ours, found), (theirs, zeroed)):
        logits = log_probs.clone().requires_grad_()
        fresh = logits.log_softmax(-1)
        again = (
            loss(fresh, targets, heard, lengths, begins, NEVER, blank)[possible]
            if leaf is ours
            else F.ctc_loss(
                fresh.transpose(0, 1), targets, heard, lengths, blank=blank, reduction="none", zero_infinity=True
            )
        )
        grads.append(torch.autograd.grad(again.sum(), logits)[0])
        assert value.shape == (6,)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(("bypass", "star"), [(1.5, 2.0), (math.inf, 2.0), (1.5, math.inf), (0.0, 0.0), (30.0, 40.0)])
@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_sum_over_all_paths(seed, bypass, star):
    penalties = Penalties(bypass=bypass, star=star)
    log_probs, targets, heard, lengths, begins = case(seed, clips=5, frames=9)
    found = loss(log_probs, targets, heard, lengths, begins, penalties)
    wanted = [
        by_hand(log_probs[b, : heard[b]].numpy(), targets[b, : lengths[b]].tolist(), begins[b, : lengths[b]], penalties)
        for b in range(5)
    ]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize(("bypass", "star"), [(1.5, 2.0), (math.inf, 2.0), (1.5, math.inf), (0.0, 0.0)])
def test_gradients_are_right(bypass, star):
    logits, *rest = case(4, clips=3, frames=7, symbols=4)
    penalties = Penalties(bypass=bypass, star=star)

    def of(values):
        return loss(values.log_softmax(-1), *rest, penalties)

    if math.isinf(bypass):
        assert of(logits).isfinite().all()
    assert torch.autograd.gradcheck(of, logits.clone().requires_grad_())


@given(seed=st.integers(0, 2**32), bypass=st.floats(0, 20), star=st.floats(0, 20), more=st.floats(0, 10))
@settings(max_examples=40, deadline=None)
def test_no_loss_is_above_that_of_ctc_and_none_falls_where_a_penalty_rises(seed, bypass, star, more):
    given_case = case(seed)
    free = loss(*given_case, Penalties(bypass=bypass, star=star))
    assert (free <= loss(*given_case, NEVER) + 1e-9).all()
    assert (free <= loss(*given_case, Penalties(bypass=bypass + more, star=star)) + 1e-9).all()
    assert (free <= loss(*given_case, Penalties(bypass=bypass, star=star + more)) + 1e-9).all()
    assert free.isfinite().all()


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_a_batch_has_the_losses_of_its_clips(seed):
    log_probs, targets, heard, lengths, begins = case(seed, clips=4)
    penalties = Penalties(bypass=3.0, star=2.0)
    together = loss(log_probs, targets, heard, lengths, begins, penalties)
    for b in range(4):
        u, t = int(lengths[b]), int(heard[b])
        one = loss(
            log_probs[b : b + 1, :t],
            targets[b : b + 1, :u],
            heard[b : b + 1],
            lengths[b : b + 1],
            begins[b : b + 1, :u],
            penalties,
        )
        torch.testing.assert_close(one, together[b : b + 1])


def spoken(words: list[list[int]], *, vocabulary: int = 12, sure: float = 0.98) -> torch.Tensor:
    """A model that is sure of what was said: a blank, then each symbol for a frame and a blank."""
    path = [BLANK, *itertools.chain.from_iterable((symbol, BLANK) for word in words for symbol in word)]
    probabilities = torch.full((1, len(path), vocabulary), (1 - sure) / (vocabulary - 1), dtype=torch.float64)
    probabilities[0, torch.arange(len(path)), torch.tensor(path)] = sure
    return probabilities.log()


def of_words(log_probs: torch.Tensor, words: list[list[int]], penalties: Penalties) -> float:
    ids = torch.tensor([list(itertools.chain.from_iterable(words))], dtype=torch.int64)
    begins = torch.tensor([[place == 0 for word in words for place in range(len(word))]], dtype=torch.bool)
    heard = torch.tensor([log_probs.shape[1]])
    return float(loss(log_probs, ids, heard, torch.tensor([ids.shape[1]]), begins, penalties))


SAID = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
FLAWED = {
    "wrong": ([[1, 2, 3], [10, 11, 10], [7, 8, 9]], 1, 1),
    "first wrong": ([[10, 11, 10], [4, 5, 6], [7, 8, 9]], 1, 1),
    "last wrong": ([[1, 2, 3], [4, 5, 6], [10, 11, 10]], 1, 1),
    "missing": ([[1, 2, 3], [7, 8, 9]], 0, 1),
    "two missing": ([[7, 8, 9]], 0, 1),
    "too many": ([[1, 2, 3], [10, 11, 10], [4, 5, 6], [7, 8, 9]], 1, 0),
    "two too many": ([[1, 2, 3], [4, 5, 6], [10, 11], [11, 10], [7, 8, 9]], 2, 0),
    "one too many at the end": ([*SAID, [10, 11]], 1, 0),
}


@pytest.mark.parametrize("flaw", FLAWED)
def test_a_flaw_costs_its_penalties_and_not_its_symbols(flaw):
    words, bypasses, stars = FLAWED[flaw]
    penalties, log_probs = Penalties(bypass=4.0, star=3.0), spoken(SAID)
    right = of_words(log_probs, SAID, penalties)
    found = of_words(log_probs, words, penalties)
    assert found < of_words(log_probs, words, NEVER) - 5
    # A share of each frame that is not sure is lost or won, and other paths add a little.
    assert found - right == pytest.approx(4.0 * bypasses + 3.0 * stars, abs=1.0)


def test_where_the_transcript_is_right_it_is_all_but_ctc():
    penalties, log_probs = Penalties(bypass=6.0, star=5.0), spoken(SAID)
    assert of_words(log_probs, SAID, NEVER) - of_words(log_probs, SAID, penalties) < 0.01


def test_silence_is_not_read_in_many_ways():
    """Hundreds of frames of silence, where a star could begin and end anywhere, add next to nothing."""
    parts = [[[1, 2]], *[[]] * 400, [[3, 4]]]
    log_probs = torch.cat([spoken(part, sure=0.9995) for part in parts], dim=1)
    words, penalties = [[1, 2], [3, 4]], Penalties(bypass=6.0, star=5.0)
    assert of_words(log_probs, words, NEVER) - of_words(log_probs, words, penalties) < 0.2


def test_no_gradient_where_nothing_fits():
    log_probs, targets, _, _, begins = case(0, clips=2, frames=3)
    values = log_probs.clone().requires_grad_()
    heard = torch.tensor([3, 3])
    found = loss(values, targets, heard, torch.tensor([5, 2]), begins, NEVER)
    assert found.isinf().tolist() == [True, False]
    torch.where(found.isfinite(), found, 0.0).sum().backward()
    assert values.grad.isfinite().all()
    assert not values.grad[0].any()
    assert values.grad[1].any()
    assert loss(values, targets, heard, torch.tensor([5, 2]), begins, Penalties(bypass=1.0, star=1.0)).isfinite().all()


def test_an_empty_transcript_and_clips_of_one_frame():
    log_probs, targets, _, _, begins = case(1, clips=2, frames=4)
    penalties = Penalties(bypass=2.0, star=1.0)
    empty = loss(log_probs, targets[:, :0], torch.tensor([4, 1]), torch.tensor([0, 0]), begins[:, :0], penalties)
    wanted = [by_hand(log_probs[b, :t].numpy(), [], [], penalties) for b, t in ((0, 4), (1, 1))]
    torch.testing.assert_close(empty, torch.tensor(wanted, dtype=torch.float64))
