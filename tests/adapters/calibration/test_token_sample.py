"""The sample of tokens depends on the set of tokens alone, bit for bit, and is uniform."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sonotune.adapters.calibration.token_sample import Reservoir, batch_keys, joint_rows, token_keys
from sonotune.models.base import AUDIO, PADDING, TEXT

MANY = settings(max_examples=1000, deadline=None, derandomize=True)
WIDTH = 3


def clip_rows(seed: int, index: int, length: int) -> torch.Tensor:
    draw = np.random.default_rng((seed, index))
    return torch.from_numpy(draw.standard_normal((length, WIDTH))).float()


def kinds_of(lengths: list[int], places: int, shift: int = 0) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Rows of each clip, `shift` places of padding before them and the rest behind."""
    kinds = np.full((len(lengths), places), PADDING, dtype=np.int8)
    for row, length in enumerate(lengths):
        kinds[row, shift : shift + length] = AUDIO
    return kinds


def feed(
    reservoir: Reservoir,
    lengths: list[int],
    order: list[int],
    batch_size: int,
    *,
    extra: int = 0,
    shift: int = 0,
    seed: int = 0,
) -> Reservoir:
    """Clips in an order, in batches, with padding of NaN."""
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        longest = shift + max(lengths[index] for index in members) + extra
        batch = torch.full((len(members), longest, WIDTH), torch.nan)
        for row, index in enumerate(members):
            batch[row, shift : shift + lengths[index]] = clip_rows(7, index, lengths[index])
        kinds = kinds_of([lengths[index] for index in members], longest, shift)
        keys, places = batch_keys(seed, [f"clip {index}" for index in members], kinds)
        admitted = reservoir.admit(keys)
        chosen = torch.from_numpy(places[admitted.tokens])
        for name in ("one", "two"):
            rows = batch.flatten(0, 1)[chosen]
            reservoir.put(name, rows if name == "one" else 2 * rows, admitted.slots)
    return reservoir


def same(one: Reservoir, other: Reservoir) -> bool:
    return (
        one.keys.tolist() == other.keys.tolist()
        and one.seen == other.seen
        and all(torch.equal(one.rows(name), other.rows(name)) for name in ("one", "two"))
    )


LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=9)


@MANY
@given(
    LENGTHS,
    st.randoms(use_true_random=False),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(0, 5),
    st.integers(0, 4),
)
def test_batch_size_order_and_padding_change_no_bit(
    lengths: list[int], random: Any, batch_size: int, size: int, extra: int, shift: int
) -> None:
    plain = feed(Reservoir(size), lengths, list(range(len(lengths))), 1)
    order = list(range(len(lengths)))
    random.shuffle(order)
    other = feed(Reservoir(size), lengths, order, batch_size, extra=extra, shift=shift)
    assert same(plain, other)
    assert len(plain) == min(size, sum(lengths))
    assert bool(torch.isfinite(plain.rows("one")).all())


@MANY
@given(LENGTHS, st.integers(1, 40), st.integers(2, 4), st.integers(1, 3))
def test_shards_merge_to_the_whole_in_any_order(lengths: list[int], size: int, shards: int, batch_size: int) -> None:
    whole = feed(Reservoir(size), lengths, list(range(len(lengths))), 2)
    parts = [
        feed(Reservoir(size), lengths, list(range(shard, len(lengths), shards)), batch_size) for shard in range(shards)
    ]
    forward = parts[0]
    for part in parts[1:]:
        forward = forward.merge(part)
    backward = parts[-1]
    for part in parts[-2::-1]:
        backward = part.merge(backward)
    assert same(whole, forward)
    assert same(whole, backward)


@MANY
@given(LENGTHS, st.integers(1, 40))
def test_what_is_kept_is_what_has_the_smallest_keys(lengths: list[int], size: int) -> None:
    """Against a sort of everything."""
    reservoir = feed(Reservoir(size), lengths, list(range(len(lengths))), 3)
    every = [
        (int(key), row)
        for index, length in enumerate(lengths)
        for key, row in zip(
            token_keys(0, f"clip {index}", np.arange(length)), clip_rows(7, index, length).tolist(), strict=True
        )
    ]
    wanted = sorted(every, key=lambda pair: pair[0])[:size]
    assert reservoir.keys.tolist() == [key for key, _ in wanted]
    assert reservoir.rows("one").tolist() == [row for _, row in wanted]


@MANY
@given(LENGTHS, st.integers(1, 40))
def test_clips_heard_twice_count_once(lengths: list[int], size: int) -> None:
    order = list(range(len(lengths)))
    once, twice = feed(Reservoir(size), lengths, order, 2), feed(Reservoir(size), lengths, order + order, 2)
    assert once.keys.tolist() == twice.keys.tolist()
    assert torch.equal(once.rows("one"), twice.rows("one"))
    merged = once.merge(once)
    assert merged.keys.tolist() == once.keys.tolist()


@MANY
@given(LENGTHS, st.integers(1, 20), st.integers(0, 2**31))
def test_audio_and_text_apart_give_the_sample_of_both(lengths: list[int], size: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    both, parts = Reservoir(size), {AUDIO: Reservoir(size), TEXT: Reservoir(size)}
    for index, length in enumerate(lengths):
        kinds_1P = draw.choice([AUDIO, TEXT], (1, length)).astype(np.int8)
        keys, places = batch_keys(0, [f"clip {index}"], kinds_1P)
        rows = clip_rows(7, index, length)
        admitted = both.admit(keys)
        both.put("one", rows[torch.from_numpy(admitted.tokens)], admitted.slots)
        for kind, part in parts.items():
            of_kind = np.flatnonzero(kinds_1P[0][places] == kind)
            taken = part.admit(keys[of_kind])
            part.put("one", rows[torch.from_numpy(of_kind[taken.tokens])], taken.slots)
    assert torch.equal(joint_rows(list(parts.values()), "one"), both.rows("one"))


def test_a_key_depends_on_seed_clip_and_place_and_on_no_process() -> None:
    keys = token_keys(5, "a clip, עברית", np.arange(1000))
    assert keys.dtype == np.uint64
    assert int(keys.max()) < 2**63
    assert len(set(keys.tolist())) == 1000
    assert keys[:7].tolist() == token_keys(5, "a clip, עברית", np.arange(7)).tolist()
    assert not set(keys.tolist()) & set(token_keys(6, "a clip, עברית", np.arange(1000)).tolist())
    assert not set(keys.tolist()) & set(token_keys(5, "b", np.arange(1000)).tolist())
    # Written anew from the published algorithm, with Python's integers.
    mask = 2**64 - 1
    start = int.from_bytes(hashlib.sha256("5\x1ftokens\x1fa clip, עברית".encode()).digest()[:8], "big") >> 1
    state = (start + 4 * 0x9E3779B97F4A7C15) & mask
    state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ state >> 27) * 0x94D049BB133111EB) & mask
    assert int(keys[3]) == (state ^ state >> 31) >> 1


def test_keys_are_uniform() -> None:
    keys = np.concatenate([token_keys(0, f"clip {index}", np.arange(200)) for index in range(200)])
    assert stats.kstest(keys / 2.0**63, "uniform").pvalue > 1e-3
    lowest = np.bincount((keys & np.uint64(15)).astype(np.int64), minlength=16)
    assert stats.chisquare(lowest).pvalue > 1e-3


def test_every_token_is_as_likely_to_be_kept() -> None:
    """Over seeds: by place in the clip, by clip and by length of the clip."""
    lengths, size, seeds = [30, 10, 60], 20, 3000
    counts = [np.zeros(length) for length in lengths]
    for seed in range(seeds):
        keys = [token_keys(seed, f"c{index}", np.arange(length)) for index, length in enumerate(lengths)]
        limit = np.sort(np.concatenate(keys))[size - 1]
        for kept, own in zip(counts, keys, strict=True):
            kept += own <= limit
    flat = np.concatenate(counts)
    assert flat.sum() == size * seeds
    # Drawn without replacement, counts vary a little less than multinomial ones: the test is on the safe side.
    assert stats.chisquare(flat).pvalue > 1e-3
    assert stats.chisquare([kept.sum() for kept in counts], [size * seeds * n / 100 for n in lengths]).pvalue > 1e-3


def test_places_are_counted_among_valid_rows() -> None:
    kinds = np.array([[0, AUDIO, AUDIO, 0, TEXT], [TEXT, 0, 0, AUDIO, 0]], dtype=np.int8)
    keys, places = batch_keys(3, ["a", "b"], kinds)
    assert places.tolist() == [1, 2, 4, 5, 8]
    assert keys.tolist() == [*token_keys(3, "a", np.arange(3)).tolist(), *token_keys(3, "b", np.arange(2)).tolist()]


def test_rows_are_kept_in_the_precision_asked_for() -> None:
    reservoir = feed(Reservoir(5, dtype=torch.bfloat16), [8, 8], [0, 1], 1)
    assert reservoir.rows("one").dtype == torch.bfloat16
    assert reservoir.nbytes == 2 * 5 * WIDTH * 2
    plain = feed(Reservoir(5), [8, 8], [0, 1], 1)
    assert torch.equal(plain.rows("one").bfloat16(), reservoir.rows("one"))
    with pytest.raises(ValueError, match="in one precision"):
        plain.merge(reservoir)
    with pytest.raises(ValueError, match="1 token or more, got 0"):
        Reservoir(0)
