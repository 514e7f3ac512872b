"""Merging neighbours: what is kept of a clip, whatever the states are, and which pairs a rule takes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sonotune.errors import ConfigError
from sonotune.models.frame_merging.audio_tokens import compress
from sonotune.models.frame_merging.pairs import Merged, choose_pairs, merge_pairs, take
from sonotune.models.frame_merging.rules import RULES, Evidence, sketch_error
from sonotune.models.frame_merging.settings import FrameMerging, merge_steps

WIDTH = 6
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**16)
QUICK = settings(deadline=None, max_examples=40)


def states_of(lengths: list[int], seed: int, *, behind: int = 0) -> tuple[Tensor, Tensor]:
    """States (B, P, D) and sizes (B, P): own positions, then some kept ones of size 30, then padding."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths) + behind
    states = torch.zeros(len(lengths), width, WIDTH)
    sizes = torch.zeros(len(lengths), width)
    for row, length in enumerate(lengths):
        states[row, :length] = torch.randn(length, WIDTH, generator=generator)
        sizes[row, :length] = torch.randint(1, 4, (length,), generator=generator).float()
        sizes[row, width - behind :] = 30.0
    return states, sizes


def merge(states: Tensor, sizes: Tensor, lengths: list[int], share: float, behind: int = 0) -> tuple[Merged, list[int]]:
    pairs = [int(share * (length // 2)) for length in lengths]
    keys = torch.nn.functional.normalize(states[:, : max(lengths)], dim=-1)
    chosen = choose_pairs((keys[:, 1:] * keys[:, :-1]).sum(-1), lengths, pairs)
    left = [length - pair for length, pair in zip(lengths, pairs, strict=True)]
    return merge_pairs(states, sizes, chosen, max(left) + behind), left


@QUICK
@given(LENGTHS, SEEDS, st.floats(0, 1), st.integers(0, 3))
def test_mass_order_and_mask(lengths: list[int], seed: int, share: float, behind: int) -> None:
    states, sizes = states_of(lengths, seed, behind=behind)
    merged, left = merge(states, sizes, lengths, share, behind)
    for row, length in enumerate(lengths):
        kept = left[row] + behind
        own, source = merged.sizes[row], merged.source[row, :length]
        assert (own[:kept] > 0).all()  # the mask stays a prefix
        assert (own[kept:] == 0).all()
        assert own.sum() == pytest.approx(float(sizes[row].sum()))
        assert source[0] == 0
        assert set(source.diff().tolist()) <= {0, 1}  # rising by one at most
        assert source[-1] == left[row] - 1
        torch.testing.assert_close(
            (merged.states[row, :kept] * own[:kept, None]).sum(0),
            (states[row] * sizes[row][:, None]).sum(0),
            atol=2e-3,
            rtol=1e-4,
        )
        for place in range(left[row]):
            members = source == place
            mean = (states[row, :length] * sizes[row, :length, None])[members].sum(0) / sizes[row, :length][
                members
            ].sum()
            torch.testing.assert_close(merged.states[row, place], mean, atol=1e-5, rtol=1e-4)
            assert members.sum() <= 2


@QUICK
@given(LENGTHS, SEEDS, st.floats(0, 1))
def test_a_clip_is_merged_alike_alone_and_whatever_lies_in_its_padding(
    lengths: list[int], seed: int, share: float
) -> None:
    states, sizes = states_of(lengths, seed)
    dirty = states.masked_fill((sizes == 0).unsqueeze(2), 1e3)
    merged, left = merge(dirty, sizes, lengths, share)
    for row, length in enumerate(lengths):
        alone, _ = merge(states[row : row + 1, :length], sizes[row : row + 1, :length], [length], share)
        assert torch.equal(alone.states[0], merged.states[row, : left[row]])
        assert torch.equal(alone.sizes[0], merged.sizes[row, : left[row]])
        assert torch.equal(alone.source[0], merged.source[row, :length])


@QUICK
@given(st.integers(1, 40), st.floats(0, 1))
def test_what_is_constant_stays_so_to_the_bit(length: int, share: float) -> None:
    states = torch.full((1, length, WIDTH), 0.1)
    merged, left = merge(states, torch.ones(1, length), [length], share)
    assert torch.equal(merged.states, states[:, : left[0]])


@QUICK
@given(LENGTHS, SEEDS)
def test_without_pairs_nothing_changes_and_merged_states_can_be_repeated(lengths: list[int], seed: int) -> None:
    states, sizes = states_of(lengths, seed)
    none, _ = merge(states, sizes, lengths, 0.0)
    assert torch.equal(none.states[sizes > 0], states[sizes > 0])
    merged, _ = merge(states, sizes, lengths, 1.0)
    back = take(merged.states, merged.source)
    for row, length in enumerate(lengths):
        for place in range(length):
            assert torch.equal(back[row, place], merged.states[row, merged.source[row, place]])


@QUICK
@given(LENGTHS, SEEDS, st.floats(0, 1))
def test_pairs_do_not_overlap_and_are_the_best_of_their_places(lengths: list[int], seed: int, share: float) -> None:
    scores = torch.randn(len(lengths), max(lengths) - 1 or 1, generator=torch.Generator().manual_seed(seed))
    scores = scores[:, : max(lengths) - 1]
    pairs = [int(share * (length // 2)) for length in lengths]
    chosen = choose_pairs(scores, lengths, pairs)
    for row, (length, wanted) in enumerate(zip(lengths, pairs, strict=True)):
        places = chosen[row].nonzero().flatten()
        assert len(places) == wanted
        assert (places < length - 1).all()
        assert len(set((places % 2).tolist())) <= 1
        totals = [
            scores[row, start : length - 1 : 2].sort(descending=True).values[:wanted].double().sum()
            for start in (0, 1)
            if len(range(start, length - 1, 2)) >= wanted
        ]
        if wanted:
            assert float(scores[row, places].double().sum()) == pytest.approx(float(max(totals)), abs=1e-6)


@QUICK
@given(st.integers(1, 1500), st.floats(0, 0.85), st.integers(2, 32), st.integers(1, 60))
def test_how_many_positions_are_left(own: int, ratio: float, depth: int, floor: int) -> None:
    merging = FrameMerging(ratio=ratio, min_positions=floor, layers=tuple(range(1, min(depth, 3) + 1)))
    if ratio > 1 - 0.5 ** min(depth, 3):
        with pytest.raises(ConfigError, match="cannot be reached after"):
            merging.remaining(own, depth)
        return
    left = [own, *merging.remaining(own, depth).values()]
    assert all(before // 2 + before % 2 <= after <= before for before, after in itertools.pairwise(left))
    assert left[-1] >= min(own, floor)
    assert left[-1] >= math.ceil(own * (1 - ratio) - 1e-6)
    if math.ceil(own * (1 - ratio) - 1e-6) >= floor and ratio < 0.8:
        assert left[-1] <= math.ceil(own * (1 - ratio)) + 3


def test_layers_that_are_not_there_are_refused_and_quarters_are_the_default() -> None:
    assert FrameMerging(ratio=0.25).after(6) == (1, 3, 4)
    assert FrameMerging(ratio=0.25).after(32) == (8, 16, 24)
    assert FrameMerging(ratio=0.25).after(2) == (1,)
    with pytest.raises(ConfigError, match=r"layers=\[7\] names layers that the encoder does not have; it has 1 to 6"):
        FrameMerging(ratio=0.25, layers=(7,)).after(6)


def test_steps_depend_on_lengths_alone_and_are_as_wide_as_the_widest_clip() -> None:
    merging = FrameMerging(ratio=0.5)
    alone = [merge_steps(merging, depth=6, own=[own], kept=[own + 70]) for own in (500, 100, 20)]
    together = merge_steps(merging, depth=6, own=[500, 100, 20], kept=[570, 170, 90])
    assert together.keys() == {1, 3, 4}
    for layer, step in together.items():
        assert step.after[:2] == (alone[0][layer].after[0], alone[1][layer].after[0])
        assert step.width == alone[0][layer].width
    assert not alone[2]  # a clip below the floor
    assert {step.after[2] for step in together.values()} == {20}


def evidence(lengths: list[int], seed: int, *, share: float = 0.5, **changes: Any) -> Evidence:
    states, _ = states_of(lengths, seed)
    inputs, _ = states_of(lengths, seed + 1)
    error = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(3)) * torch.logspace(-1, 1, WIDTH)
    given = {"noise_weight": 0.5, "sketch": sketch_error(error, 2)} | changes
    pairs = [int(share * (length // 2)) for length in lengths]
    return Evidence(keys=states, inputs=inputs, states=states, lengths=lengths, pairs=pairs, layer=2, **given)


@QUICK
@given(st.lists(st.integers(2, 40), min_size=1, max_size=4), SEEDS, st.sampled_from(sorted(RULES)))
def test_a_rule_scores_a_clip_alike_alone_and_in_any_batch(lengths: list[int], seed: int, rule: str) -> None:
    together = evidence(lengths, seed)
    scores = RULES[rule](together)
    assert scores.shape == (len(lengths), max(lengths) - 1)
    for row, length in enumerate(lengths):
        alone = Evidence(
            keys=together.keys[row : row + 1, :length],
            inputs=together.inputs[row : row + 1, :length],
            states=together.states[row : row + 1, :length],
            lengths=[length],
            pairs=[together.pairs[row]],
            layer=2,
            sketch=together.sketch,
            noise_weight=0.5,
        )
        torch.testing.assert_close(RULES[rule](alone)[0], scores[row, : length - 1], atol=1e-5, rtol=1e-4)


def test_without_weight_noise_orders_as_similarity_does_and_with_it_does_not() -> None:
    def order(rule: str, **changes: Any) -> list[int]:
        return RULES[rule](evidence([40], 1, **changes))[0].argsort().tolist()

    assert order("noise_aware", noise_weight=0.0) == order("similarity")
    assert order("noise_aware") != order("similarity")
    assert order("noise_aware") != order("noise_shuffled")


def test_a_difference_that_is_all_noise_is_merged_before_one_that_is_as_large_and_is_not() -> None:
    """Two pairs of neighbours have keys as far apart; in the inputs of one of them lies what quantising got wrong."""
    keys = torch.zeros(1, 6, 2)
    keys[0, :, 0] = 1.0
    keys[0, 1, 1], keys[0, 4, 1] = 0.3, 0.3
    inputs = torch.zeros(1, 6, WIDTH)
    inputs[0, 1, 0], inputs[0, 4, 1] = 1.0, 1.0
    inputs += 0.01 * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
    error = torch.zeros(8, WIDTH)
    error[:, 1] = 1.0  # of input 1 alone
    found = Evidence(
        keys=keys,
        inputs=inputs,
        states=keys,
        lengths=[6],
        pairs=[1],
        layer=1,
        sketch=sketch_error(error, 1),
        noise_weight=0.9,
    )
    scores = RULES["noise_aware"](found)[0]
    assert scores[3] > scores[0]
    assert float(RULES["similarity"](found)[0, 3]) == pytest.approx(float(RULES["similarity"](found)[0, 0]))


def test_the_placebo_has_the_same_noise_elsewhere() -> None:
    """With keys that are alike everywhere but for a constant distance, scores are those of the noise in other order."""
    keys = torch.zeros(1, 20, 2)
    angles = 0.3 * torch.arange(20)
    keys[0, :, 0], keys[0, :, 1] = angles.cos(), angles.sin()
    inputs, _ = states_of([20], 4)
    error = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(3))
    found = Evidence(
        keys=keys,
        inputs=inputs,
        states=keys,
        lengths=[20],
        pairs=[3],
        layer=1,
        sketch=sketch_error(error, 1),
        noise_weight=0.5,
    )
    real, placebo = RULES["noise_aware"](found)[0], RULES["noise_shuffled"](found)[0]
    torch.testing.assert_close(real.sort().values, placebo.sort().values, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(real, placebo)


def test_a_sketch_keeps_the_length_of_noise_about() -> None:
    generator = torch.Generator().manual_seed(0)
    error, inputs = torch.randn(256, 32, generator=generator), torch.randn(400, 32, generator=generator)
    true = (inputs @ error.T).square().sum(-1)
    seen = (inputs @ sketch_error(error, 1).T).square().sum(-1)
    assert float(seen.mean() / true.mean()) == pytest.approx(1.0, abs=0.2)
    assert not torch.equal(sketch_error(error, 1), sketch_error(error, 2))
    assert torch.equal(sketch_error(error, 1), sketch_error(error, 1))


def test_an_even_rate_is_even() -> None:
    found = evidence([40], 1, share=0.5)
    places = choose_pairs(RULES["uniform"](found), [40], found.pairs)[0].nonzero().flatten()
    assert places.tolist() == list(range(2, 40, 4))


@pytest.mark.parametrize("method", ["merge", "mean"])
@QUICK
@given(lengths=LENGTHS, seed=SEEDS, ratio=st.floats(0, 0.9))
def test_audio_tokens_become_so_many_and_keep_their_mean(
    method: str, lengths: list[int], seed: int, ratio: float
) -> None:
    merging = FrameMerging(audio_ratio=ratio, audio_method=method)  # type: ignore[arg-type]
    states, sizes = states_of(lengths, seed)
    dirty = states.masked_fill((sizes == 0).unsqueeze(2), 50.0)
    found, left = compress(dirty, lengths, merging)
    for row, length in enumerate(lengths):
        assert left[row] == math.ceil(length * (1 - ratio) - 1e-9)
        alone, _ = compress(states[row : row + 1, :length], [length], merging)
        torch.testing.assert_close(alone[0, : left[row]], found[row, : left[row]], atol=1e-5, rtol=1e-4)
        low, high = states[row, :length].amin(0), states[row, :length].amax(0)
        assert ((found[row, : left[row]] >= low - 1e-5) & (found[row, : left[row]] <= high + 1e-5)).all()
    if method == "mean" and lengths == [40] and ratio == 0.5:
        torch.testing.assert_close(found[0, 0], states[0, :2].mean(0))


def test_means_of_two_are_means_of_neighbours() -> None:
    states, _ = states_of([12], 3)
    found, left = compress(states, [12], FrameMerging(audio_ratio=0.5, audio_method="mean"))
    assert left == [6]
    torch.testing.assert_close(found[0], states[0].view(6, 2, WIDTH).mean(1), atol=1e-6, rtol=1e-5)
