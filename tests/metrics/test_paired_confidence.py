"""Word confidences of two systems, compared on the same clips."""

from __future__ import annotations

import numpy as np
import pytest

from sonotune.metrics.confidence import OF_SLICES
from sonotune.metrics.paired import choose_blocks
from sonotune.metrics.paired_confidence import SureWords, paired_confidence

CLIPS, EACH = 60, 10
BLOCKS = choose_blocks([f"s{clip % 12}" for clip in range(CLIPS)])


def sure(seed: int, *, boast: float = 0.0, noise: float = 0.0, right: float | None = None) -> SureWords:
    """Words that are right as often as they say; `boast` is added to their log-odds, `noise` hides what they know."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(1.0, 1.5, CLIPS * EACH)
    said = 1 / (1 + np.exp(-(odds + boast + noise * rng.normal(size=odds.size))))
    true = rng.random(odds.size) < (1 / (1 + np.exp(-odds)) if right is None else right)
    return SureWords(said, true, np.repeat(np.arange(CLIPS), EACH))


def test_words_that_boast_have_more_calibration_error_and_the_same_order():
    honest, boasting = sure(0), sure(0, boast=2.0)
    found = paired_confidence(honest, boasting, blocks=BLOCKS, resamples=200)
    assert list(found) == list(OF_SLICES)
    ece = found["ece"]
    assert 0 < ece.low <= ece.value <= ece.high
    assert ece.p < 0.05
    assert (ece.better, ece.resampled, ece.blocks, ece.count) == ("lower", "speaker", 12, CLIPS)
    assert found["auroc"].value == found["aurc"].value == 0
    assert found["auroc"].p == 1
    turned_round = paired_confidence(boasting, honest, blocks=BLOCKS, resamples=200)["ece"]
    assert (turned_round.value, turned_round.low, turned_round.high) == pytest.approx((-ece.value, -ece.high, -ece.low))


def test_words_that_know_less_separate_worse():
    found = paired_confidence(sure(1), sure(1, noise=3.0), blocks=BLOCKS, resamples=200)
    assert found["auroc"].high < 0 < found["aurc"].low


def test_the_same_words_differ_in_nothing():
    for one in paired_confidence(sure(2), sure(2), blocks=BLOCKS, resamples=50).values():
        assert (one.value, one.low, one.high, one.p) == (0, 0, 0, 1)
        assert one.minimum_detectable > 0


def test_where_one_system_has_no_wrong_word_there_is_no_auroc_and_no_nan():
    found = paired_confidence(sure(3), sure(3, right=1.0), blocks=BLOCKS, resamples=50)
    assert sorted(found) == ["aurc", "ece"]
    assert found["aurc"].second == 0
    assert all(np.isfinite([one.value, one.low, one.high, one.p]).all() for one in found.values())
    nothing = SureWords(np.array([]), np.array([], dtype=np.bool_), np.array([], dtype=np.int64))
    assert paired_confidence(sure(3), nothing, blocks=BLOCKS) == {}


def test_words_of_some_clips_are_those_and_no_others():
    words, members = sure(4), np.array([3, 5, 40])
    part = words.of(members)
    assert part.clip.tolist() == [0] * EACH + [1] * EACH + [2] * EACH
    assert np.array_equal(part.confidence, words.confidence[np.isin(words.clip, members)])
    assert len(words.of(np.array([], dtype=np.int64)).right) == 0


def test_no_difference_is_found_as_often_as_the_level_says():
    """Two systems of one kind: 5 % of the intervals may leave 0 out; of 40, more than 7 would be beyond chance."""
    wrong = 0
    for seed in range(40):
        one, other = sure(2 * seed + 100), sure(2 * seed + 101)
        found = paired_confidence(one, other, blocks=BLOCKS, resamples=100, seed=seed)["auroc"]
        wrong += not found.low <= 0 <= found.high
    assert wrong <= 7
