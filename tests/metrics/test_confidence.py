"""Word confidences: calibration and the scores of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sonotune.metrics.confidence import (
    Calibration,
    RankedWords,
    RatedWords,
    affordable_resamples,
    confidence_curves,
    confidence_scores,
    fit_platt,
    probability,
    show_confidence,
    word_log_odds,
)


def words(confidence: np.ndarray, right: np.ndarray, clips: int = 20) -> RatedWords:
    odds = np.log(confidence) - np.log1p(-confidence)
    return RatedWords(odds, right.astype(np.bool_), np.arange(len(right)) % clips, clips)


def simulated(count: int, *, slope: float = 1.0, intercept: float = 0.0, seed: int = 0) -> RatedWords:
    """Words that are right as often as `slope * log-odds + intercept` says."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(1.0, 1.5, count)
    truth = 1 / (1 + np.exp(-(slope * odds + intercept)))
    return RatedWords(odds, rng.random(count) < truth, rng.integers(0, 50, count), 50)


def calibration(slope: float, intercept: float) -> Calibration:
    return Calibration(slope=slope, intercept=intercept, words=1, clips=1, settings={})


def test_perfectly_calibrated_words_have_no_calibration_error():
    found = confidence_scores(simulated(200_000), None, resamples=2)
    assert found["ece"].value < 0.005
    assert confidence_scores(simulated(20_000, intercept=-1.5), None, resamples=2)["ece"].value > 0.2


def test_the_calibration_error_is_the_gap_where_all_words_are_equally_sure():
    right = np.array([1, 1, 1, 0] * 25)
    assert confidence_scores(words(np.full(100, 0.9), right), None)["ece"].value == pytest.approx(0.15)
    assert confidence_scores(words(np.full(100, 0.75), right), None)["ece"].value == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("digits", [1, 2, 9])
def test_auroc_is_that_of_scikit_learn_ties_included(digits: int):
    rng = np.random.default_rng(digits)
    sure, right = np.clip(rng.random(500).round(digits), 0.05, 0.95), rng.random(500) < 0.6
    found = confidence_scores(words(sure, right), None, resamples=2)["auroc"].value
    assert found == pytest.approx(roc_auc_score(right, sure))


def test_risk_over_coverage_is_the_mean_over_all_numbers_of_words_kept():
    sure, right = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 1, 0])
    found = confidence_scores(words(sure, right), None, resamples=2)["aurc"].value
    assert found == pytest.approx(np.mean([0, 1 / 2, 1 / 3, 2 / 4]))


def test_weights_of_a_resample_are_repeated_words():
    """The interval is that of scores of repeated clips, not of something else: a clip drawn twice counts twice."""
    rated = simulated(300)
    twice = RatedWords(*(np.concatenate([part, part]) for part in rated[:3]), rated.clips)
    for name, score in confidence_scores(rated, None, resamples=2).items():
        assert confidence_scores(twice, None, resamples=2)[name].value == pytest.approx(score.value, abs=2e-2), name


def test_a_calibration_is_found_again_and_is_well_calibrated_on_other_words():
    slope, intercept = fit_platt(simulated(20_000, slope=0.6, intercept=-1.0)) or (0.0, 0.0)
    assert (slope, intercept) == pytest.approx((0.6, -1.0), abs=0.06)
    fitted = calibration(slope, intercept)
    found = confidence_scores(simulated(20_000, slope=0.6, intercept=-1.0, seed=1), fitted, resamples=2)
    assert found["ece"].value < 0.02
    assert found["ece"].value < found["ece_uncalibrated"].value / 5
    assert found["nce"].value > found["nce_uncalibrated"].value
    assert found["ece_uncalibrated"].role == "beside"


def test_a_calibration_changes_no_order_of_words():
    rated = simulated(500)
    before, after = (confidence_scores(rated, one, resamples=50) for one in (None, calibration(0.4, -1.2)))
    for name in ("auroc", "aurc"):
        assert after[name].value == pytest.approx(before[name].value, abs=1e-12)
        assert (after[name].low, after[name].high) == pytest.approx((before[name].low, before[name].high), abs=1e-12)
    odds = np.linspace(-50, 14, 2000)
    sure = [calibration(0.4, -1.2)(one) for one in odds]
    assert sure == sorted(sure)
    assert len(set(sure)) == len(sure)


def test_words_that_are_less_often_right_the_surer_they_are_are_not_calibrated():
    assert fit_platt(simulated(2000, slope=-1.0)) is None


@pytest.mark.parametrize("right", [True, False])
def test_words_that_are_all_right_or_all_wrong_have_a_finite_calibration_and_no_auroc(right: bool):
    rated = simulated(100)._replace(right=np.full(100, right))
    fitted = fit_platt(rated)
    assert fitted is None or all(map(math.isfinite, fitted))
    found = confidence_scores(rated, None, resamples=50)
    assert sorted(found) == ["aurc", "ece"]
    assert all(math.isfinite(one) for score in found.values() for one in (score.value, score.low, score.high))


@pytest.mark.parametrize("right", [True, False])
def test_the_risk_of_words_that_are_all_right_is_0_and_sure_to_a_point(right: bool):
    """No resample has another word: the interval is that of a share of as many single words."""
    rated = simulated(100)._replace(right=np.full(100, right))
    found = confidence_scores(rated, None, resamples=50)["aurc"]
    assert (found.value, found.detail["resampled"]) == (float(not right), "word")
    assert (found.low, found.high) == pytest.approx((0, 0.037) if right else (0.963, 1), abs=1e-3)


def test_weights_of_clips_are_repeated_words_in_every_score():
    rated, weights = simulated(300), np.random.default_rng(1).integers(0, 3, (4, 50)).astype(float)
    sure = 1 / (1 + np.exp(-rated.log_odds)).round(2)
    names = ("ece", "auroc", "aurc", "nce")
    together = RankedWords(sure, rated.right, rated.clip).measure(names, weights)
    for weight, column in zip(weights, together.T, strict=True):
        times = weight[rated.clip].astype(int)
        alone = RankedWords(*(np.repeat(part, times) for part in (sure, rated.right, rated.clip)))
        assert alone.measure(names)[:, 0] == pytest.approx(column)
    assert np.isnan(RankedWords(sure, rated.right, rated.clip).measure(names, np.zeros((1, 50)))).all()


def test_chunks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch):
    rated = simulated(300)
    whole = confidence_scores(rated, None, resamples=20)
    monkeypatch.setattr("sonotune.metrics.confidence._DRAWS_PER_CHUNK", 900)
    assert confidence_scores(rated, None, resamples=20) == whole


def test_very_many_words_are_resampled_less_often():
    assert affordable_resamples(1000, 1000) == 1000
    assert affordable_resamples(400_000, 1000) == 500
    assert affordable_resamples(10**8, 1000) == 200
    assert affordable_resamples(10**8, 50) == 50


def test_what_a_slice_cannot_say_is_not_defined():
    scores = {"ece": {"value": 0.1}, "aurc": {"value": 0.0}, "wer": {"value": 1.0}}
    assert show_confidence(scores, lambda one: str(one["value"])) == {
        "ece": "0.1",
        "auroc": "not defined",
        "aurc": "0.0",
    }
    assert show_confidence({"wer": {"value": 1.0}}, str) == {}


def test_no_words_have_no_scores():
    nothing = RatedWords(np.array([]), np.array([], dtype=np.bool_), np.array([], dtype=np.int64), 3)
    assert confidence_scores(nothing, None) == {}


def test_log_odds_are_finite_however_sure_and_rise_with_every_token():
    assert math.isfinite(word_log_odds((0.0,)))
    assert math.isfinite(word_log_odds((-1e9,)))
    assert math.isfinite(word_log_odds((1e-7, 0.0)))  # rounding of single precision
    assert word_log_odds((-1.0, -0.1)) < word_log_odds((-0.5, -0.1))
    assert probability(word_log_odds((math.log(0.3),))) == pytest.approx(0.3)


def test_intervals_hold_the_value_and_speakers_are_resampled_where_there_are_enough():
    rated = simulated(400)
    speakers = [f"s{clip % 8}" for clip in range(50)]
    for given, drawn in ((speakers, "speaker"), (["one"] * 50, "clip"), (None, "clip")):
        for score in confidence_scores(rated, None, speakers=given, resamples=200).values():
            assert score.low <= score.value <= score.high
            assert score.detail["resampled"] == drawn
            assert score.count == len(set(rated.clip.tolist()))


@pytest.mark.parametrize("intercept", [-0.2, -0.8])
def test_the_interval_of_the_calibration_error_covers_the_truth(intercept: float):
    """Truth: of very many words. The estimate of few is too high, and an interval around it would be so too.

    Of words that are calibrated to the last digit the interval still leaves out 0, at which no estimate can be lower.
    """
    truth = confidence_scores(simulated(300_000, intercept=intercept), None, resamples=2)["ece"].value
    covered = 0
    for seed in range(30):
        found = confidence_scores(simulated(1000, intercept=intercept, seed=seed + 1), None, resamples=60, seed=seed)
        covered += found["ece"].low <= truth <= found["ece"].high
    assert covered >= 25


def test_curves_are_of_all_words():
    rated = simulated(1000)
    curves = confidence_curves(rated, calibration(0.5, -0.5))
    assert sum(one["words"] for one in curves["reliability"]) == 1000
    assert [one["confidence"] for one in curves["reliability"]] == sorted(
        one["confidence"] for one in curves["reliability"]
    )
    last = curves["risk_coverage"][-1]
    assert last["coverage"] == 1.0
    assert last["risk"] == pytest.approx(1 - rated.right.mean())
    assert len(curves["risk_coverage"]) <= 51
    sums = sum(one["right"] * one["words"] for one in curves["uncalibrated"])
    assert sums == pytest.approx(rated.right.sum())


def test_a_calibration_comes_back_from_its_record():
    one = Calibration(slope=0.5, intercept=-1.0, words=9, clips=2, settings={"evaluation.beam_size": 1})
    assert Calibration.of_json(one.to_json()) == one
