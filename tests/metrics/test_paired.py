"""Paired comparisons: how often they cry wolf, what they resample, and what they say of themselves."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sonotune.metrics.error_rate import word_edits
from sonotune.metrics.paired import (
    Blocks,
    choose_blocks,
    holm,
    minimum_detectable_effect,
    paired_difference,
    two_sided_p,
)
from sonotune.metrics.word_outcomes import (
    WordOutcomes,
    discordant_words,
    mapsswe,
    segment_differences,
    word_outcomes,
)

SPEAKERS, CLIPS_EACH = 30, 20


def recordings(
    rng: np.random.Generator,
    *,
    effect: float = 0.0,
    seeds: int = 1,
    speakers: int = SPEAKERS,
    of_speakers: float = 0.04,
    of_seeds: float = 0.0,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Blocks]:
    """Errors of two systems: speakers differ in which system suits them, and training runs in how well they went."""
    words_N = rng.integers(8, 25, speakers * CLIPS_EACH)
    owner_N = np.repeat(np.arange(speakers), CLIPS_EACH)
    base_G = np.clip(0.20 + rng.normal(0, 0.04, speakers), 0.10, 0.5)
    counts = []
    for shift in (0.0, effect):
        suits_G = base_G + shift + rng.normal(0, of_speakers / math.sqrt(2), speakers)
        runs = [
            rng.binomial(words_N, np.clip(suits_G + rng.normal(0, of_seeds), 0.005, 0.9)[owner_N]) for _ in range(seeds)
        ]
        counts.append(np.stack(runs))
    return counts[0], counts[1], words_N, Blocks(owner_N, "speaker", speakers, "")


def single(blocks: Blocks) -> Blocks:
    return Blocks(np.arange(blocks.owner.size), "clip", 0, "")


# --- how often it is wrong -----------------------------------------------------------------------------------------


def test_speaker_blocks_keep_their_level_where_single_clips_cry_wolf():
    rng = np.random.default_rng(1)
    repeats, by_speaker, by_clip, covered = 300, 0, 0, 0
    for _ in range(repeats):
        first, second, words, blocks = recordings(rng)
        found = paired_difference("wer", first, second, words, blocks=blocks, resamples=400)
        by_speaker += found.p < 0.05
        covered += found.low <= 0 <= found.high
        by_clip += paired_difference("wer", first, second, words, blocks=single(blocks), resamples=400).p < 0.05
    assert 0.02 <= by_speaker / repeats <= 0.09
    assert 0.91 <= covered / repeats <= 0.98
    assert by_clip / repeats > 0.15


@pytest.mark.parametrize("speakers", [6, 8, 12])
def test_few_speakers_keep_the_level_too(speakers: int):
    rng = np.random.default_rng(speakers)
    repeats = 300
    wolves = sum(
        paired_difference("wer", *parts[:3], blocks=parts[3], resamples=400).p < 0.05
        for parts in (recordings(rng, speakers=speakers) for _ in range(repeats))
    )
    assert 0.015 <= wolves / repeats <= 0.09  # the bare percentiles: 0.12


def test_the_interval_covers_a_true_difference():
    rng = np.random.default_rng(3)
    repeats, covered = 200, 0
    for _ in range(repeats):
        first, second, words, blocks = recordings(rng, effect=0.03)
        found = paired_difference("wer", first, second, words, blocks=blocks, resamples=400)
        covered += found.low <= 0.03 <= found.high
    assert 0.90 <= covered / repeats <= 0.985


@pytest.mark.parametrize("seeds", [2, 3])
def test_luck_of_training_runs_does_not_pass_for_a_difference(seeds: int):
    rng = np.random.default_rng(seeds)
    repeats, wolves, of_one = 200, 0, 0
    for _ in range(repeats):
        first, second, words, blocks = recordings(rng, seeds=seeds, of_speakers=0.0, of_seeds=0.03, speakers=12)
        wolves += paired_difference("wer", first, second, words, blocks=blocks, resamples=300).p < 0.05
        of_one += paired_difference("wer", first[:1], second[:1], words, blocks=blocks, resamples=300).p < 0.05
    assert wolves / repeats <= 0.10
    assert of_one / repeats > 0.3  # one run each says nothing of another: the result warns of it


def test_a_difference_as_large_as_the_detectable_one_is_mostly_found():
    rng = np.random.default_rng(5)
    first, second, words, blocks = recordings(rng)
    detectable = paired_difference("wer", first, second, words, blocks=blocks, resamples=400).minimum_detectable
    repeats = 150
    found = sum(
        paired_difference("wer", *parts[:3], blocks=parts[3], resamples=400).p < 0.05
        for parts in (recordings(rng, effect=detectable) for _ in range(repeats))
    )
    assert 0.65 <= found / repeats <= 0.95


# --- what is resampled ---------------------------------------------------------------------------------------------


def test_value_and_rates_are_ratios_of_sums():
    first, second, words = [1, 0, 2, 0, 1], [0, 0, 1, 0, 0], [4, 1, 10, 1, 4]
    found = paired_difference("wer", [first], [second], words, blocks=choose_blocks([None] * 5))
    assert (found.first, found.second) == (4 / 20, 1 / 20)
    assert found.value == pytest.approx(-3 / 20)
    assert found.low <= found.value <= found.high
    assert found.count == 5


def test_both_systems_are_drawn_together():
    """Speakers differ wildly, the systems by one error each: apart, no difference could be seen."""
    rng = np.random.default_rng(0)
    words_N = np.full(200, 20)
    errors_N = np.repeat(rng.integers(0, 19, 20), 10)
    blocks = Blocks(np.repeat(np.arange(20), 10), "speaker", 20, "")
    found = paired_difference("wer", [errors_N], [errors_N + 1], words_N, blocks=blocks, resamples=500)
    assert found.value == pytest.approx(1 / 20)
    assert found.high - found.low < 1e-9
    assert found.p < 0.01


def test_seeds_widen_the_interval_before_speakers_do():
    rng = np.random.default_rng(4)
    first, second, words, blocks = recordings(rng, seeds=5, of_seeds=0.04, of_speakers=0.0)
    together = paired_difference("wer", first, second, words, blocks=blocks, resamples=2000)
    merged = paired_difference("wer", first.sum(axis=0), second.sum(axis=0), 5 * words, blocks=blocks, resamples=2000)
    assert together.value == pytest.approx(merged.value)
    assert together.high - together.low > 2 * (merged.high - merged.low)
    assert together.seeds == (5, 5)
    assert not together.warnings
    assert any("another seed" in warning for warning in merged.warnings)


def test_pairs_of_seeds_share_what_a_seed_brings():
    rng = np.random.default_rng(6)
    first, _, words, blocks = recordings(rng, seeds=4, of_seeds=0.03, of_speakers=0.0)
    second = np.maximum(first - 1, 0)  # every run a little better than its twin
    pairs = paired_difference("wer", first, second, words, blocks=blocks, resamples=1000)
    apart = paired_difference("wer", first, second, words, blocks=blocks, resamples=1000, same_seeds=False)
    assert pairs.high < 0 < apart.high


def test_numbers_of_seeds_may_differ():
    first, second, words, blocks = recordings(np.random.default_rng(7), seeds=3)
    found = paired_difference("wer", first, second[:2], words, blocks=blocks, resamples=300)
    assert found.second == pytest.approx(second[:2].sum() / (2 * words.sum()))
    assert found.seeds == (3, 2)


def test_the_same_seed_gives_the_same_interval_whatever_the_chunks():
    first, second, words, blocks = recordings(np.random.default_rng(8))
    results = [paired_difference("wer", first, second, words, blocks=blocks, resamples=500, seed=3) for _ in range(2)]
    other = paired_difference("wer", first, second, words, blocks=blocks, resamples=500, seed=4)
    assert results[0] == results[1]
    assert other.low != results[0].low
    many = 2_500_000 // SPEAKERS  # more than are drawn at once
    chunked = paired_difference("wer", first, second, words, blocks=blocks, resamples=many, seed=3)
    assert chunked.standard_error == pytest.approx(results[0].standard_error, rel=0.2)


def test_equal_systems_do_not_differ_and_say_what_could_have_been_seen():
    words = np.full(40, 10)
    same = np.ones((1, 40))
    found = paired_difference("wer", same, same, words, blocks=choose_blocks(list("abcdefgh") * 5), discordant=0.0)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.minimum_detectable == pytest.approx(2.8 * math.sqrt(2 * 3) / 400)


def test_few_blocks_that_agree_cannot_say_more_than_a_coin():
    words = np.full(5, 10)
    found = paired_difference("wer", [[5] * 5], [[0] * 5], words, blocks=choose_blocks(list("abcde")))
    assert found.p == 2**-4


@pytest.mark.parametrize(
    ("speakers", "unit", "blocks", "said"),
    [
        (list("abcdefgh"), "speaker", 8, ""),
        (list("abcdeabc"), "speaker", 5, "no difference can be shown"),
        (list("abcdabcd"), "clip", 8, "4 speakers"),
        (["a"] * 8, "clip", 8, "1 speaker,"),
        ([None, *"bcdefgh"], "clip", 8, "not every clip names"),
    ],
)
def test_what_is_resampled_is_said(speakers: list[str | None], unit: str, blocks: int, said: str):
    chosen = choose_blocks(speakers)
    assert chosen.unit == unit
    assert np.unique(chosen.owner).size == blocks
    assert said in chosen.warning
    assert bool(said) == bool(chosen.warning)


def test_sessions_stand_in_for_speakers():
    chosen = choose_blocks([None] * 12, list("uvwxyz") * 2)
    assert (chosen.unit, chosen.speakers) == ("session", 6)
    assert choose_blocks(list("abcdef") * 2, list("uvwxyz") * 2).unit == "speaker"


@pytest.mark.parametrize(
    ("first", "second", "totals", "speakers"),
    [
        ([[1, 2]], [[1, 2, 3]], [4, 4], "ab"),
        ([[1] * 6], [[1] * 6], [0] * 6, "abcdef"),
        ([[1] * 4], [[1] * 4], [3] * 4, "abcd"),
    ],
)
def test_what_cannot_be_compared_is_refused(first, second, totals, speakers):
    with pytest.raises(ValueError, match=r"needs|must be"):
        paired_difference("wer", first, second, totals, blocks=choose_blocks(list(speakers)))


# --- several comparisons, and what can be seen -----------------------------------------------------------------------


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
    with pytest.raises(ValueError, match="p value"):
        holm([1.5])


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_and_lies_between_the_value_and_bonferroni(values: list[float]):
    adjusted = holm(values)
    for value, found in zip(values, adjusted, strict=True):
        assert value <= found <= min(1.0, len(values) * value) or found == pytest.approx(value)
    ordered = [found for _, found in sorted(zip(values, adjusted, strict=True))]
    assert all(left <= right for left, right in pairwise(ordered))


def test_detectable_effects_of_the_research_notes():
    for words, relative in ((3000, 0.125), (20_000, 0.048), (50_000, 0.031), (200_000, 0.015)):
        assert minimum_detectable_effect(0.03 * words, words) / 0.10 == pytest.approx(relative, rel=0.03)
    assert minimum_detectable_effect(0, 100) > 0
    with pytest.raises(ValueError, match="words"):
        minimum_detectable_effect(1, 0)


def test_p_counts_both_sides():
    assert two_sided_p(np.array([1.0] * 99)) == pytest.approx(1 / 100)
    assert two_sided_p(np.array([-1.0, 1.0] * 50)) == 1.0
    assert two_sided_p(np.zeros(10)) == 1.0


# --- word by word ----------------------------------------------------------------------------------------------------

TEXT = st.lists(st.sampled_from(("a", "b", "c", "d")), max_size=8).map(" ".join)


def outcomes(*pairs: tuple[str, str]) -> WordOutcomes:
    return word_outcomes([reference for reference, _ in pairs], [hypothesis for _, hypothesis in pairs])


def segments(reference: str, first: str, second: str) -> list[int]:
    return segment_differences(outcomes((reference, first)), outcomes((reference, second))).tolist()


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
def test_errors_of_words_sum_to_the_edits(pairs: list[tuple[str, str]]):
    found = outcomes(*pairs)
    assert found.errors.size == sum(len(reference.split()) + 1 for reference, _ in pairs)
    assert found.by_clip().tolist() == [word_edits(*pair).errors for pair in pairs]


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4))
def test_segments_hold_every_error_of_both_and_no_clip_changes_another(texts: list[tuple[str, str, str]]):
    first = outcomes(*((reference, one) for reference, one, _ in texts))
    second = outcomes(*((reference, two) for reference, _, two in texts))
    alone = [segments(*one) for one in texts]
    assert segment_differences(first, second).tolist() == [value for values in alone for value in values]
    for (reference, one, two), values in zip(texts, alone, strict=True):
        assert sum(values) == word_edits(reference, two).errors - word_edits(reference, one).errors
    assert not discordant_words(first, first).any()
    lengths = np.array([len(reference.split()) for reference, _, _ in texts])
    assert ((discordant_words(first, second) >= 0) & (discordant_words(first, second) <= lengths)).all()


def test_two_right_words_end_a_segment_and_one_does_not():
    assert segments("a b c d e", "x b c d x", "a b c d e") == [-1, -1]
    assert segments("a b c", "x b x", "a b c") == [-2]
    assert segments("a b c", "a b c", "a b c") == []
    assert discordant_words(outcomes(("a b c d", "a x c d")), outcomes(("a b c d", "a b x d"))).tolist() == [2]
    assert outcomes(("a b", "x a y b"), ("", "z"), ("c", "")).inserted.tolist() == [1, 1, 0, 1, 0, 0]


def test_the_segment_test_by_hand():
    found = mapsswe([1, 1, 0, 1, -1])
    mean, spread = 0.4, math.sqrt(0.8)
    assert found is not None
    assert found.z == pytest.approx(mean / (spread / math.sqrt(5)))
    assert found.p == pytest.approx(math.erfc(abs(found.z) / math.sqrt(2)))
    assert found.segments == 5
    assert mapsswe([1]) is None
    assert mapsswe([1, 1, 1]) is None
