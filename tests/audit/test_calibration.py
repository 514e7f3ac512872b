"""Thresholds hold the rate they promise."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.audit.calibration import SEED_THRESHOLDS, calibrate, calibration_from_json, fixed, p_values
from sonotune.audit.scores import ClipScores
from sonotune.errors import ConfigError, ManifestError

THREE = ("min_window_llr", "coverage", "longest_unaligned_s")


def made(values: np.ndarray) -> list[ClipScores]:
    """Clips with three statistics; the third is better where it is lower."""
    return [
        ClipScores(
            clip_id=str(index),
            duration_s=1.0,
            speech_s=1.0,
            min_window_llr=float(one),
            coverage=float(two),
            longest_unaligned_s=float(-three),
        )
        for index, (one, two, three) in enumerate(values)
    ]


def drawn(generator: np.random.Generator, count: int, shift: float = 0.0, correlation: float = 0.5) -> np.ndarray:
    common = generator.standard_normal((count, 1))
    own = generator.standard_normal((count, 3))
    return np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own - shift


@pytest.mark.parametrize(("count", "rate"), [(20, 0.05), (20, 0.2), (60, 0.05), (200, 0.05), (200, 0.01)])
@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_combined_test_flags_no_more_good_clips_than_it_may(count, rate, correlation):
    generator = np.random.default_rng(0)
    flagged = []
    for _ in range(300):
        found = calibrate(
            made(drawn(generator, count, correlation=correlation)), {}, statistics=THREE, false_positive_rate=rate
        )
        new = drawn(generator, 400, correlation=correlation)
        below = np.zeros(400, dtype=bool)
        for column, name in enumerate(THREE):
            if name in found.thresholds:
                below |= new[:, column] < found.thresholds[name] * (-1 if name == "longest_unaligned_s" else 1)
        flagged.append(below.mean())
    mean, error = np.mean(flagged), np.std(flagged) / np.sqrt(len(flagged))
    assert mean <= rate + 3 * error
    assert mean >= 0.5 * rate  # and is not kept by flagging nothing
    if count == 200 and rate == 0.05:
        assert mean == pytest.approx(rate, abs=0.01)


def test_one_statistic_is_its_quantile():
    values = np.arange(99.0)
    clips = [ClipScores(clip_id="", duration_s=1, speech_s=1, min_window_llr=float(value)) for value in values]
    found = calibrate(clips, {}, statistics=("min_window_llr",), false_positive_rate=0.05)
    assert found.thresholds == {"min_window_llr": 4.0}  # the fifth lowest of 99: 4 of them lie below
    assert found.specificity.value == pytest.approx(94 / 99)  # each against the others: 5 of 99


def test_sensitivity_is_kept_for_each_corruption():
    generator = np.random.default_rng(0)
    found = calibrate(
        made(drawn(generator, 200)),
        {
            "wrong": made(drawn(generator, 200, shift=9.0)),
            "deleted 20 %": made(drawn(generator, 150, shift=2.0)),
            "nothing": made(drawn(generator, 200)),
            "never possible": [],
        },
        statistics=THREE,
    )
    assert list(found.corruptions) == ["wrong", "deleted 20 %", "nothing"]
    assert found.corruptions["wrong"].value == 1.0
    assert 0.3 < found.corruptions["deleted 20 %"].value < 0.95
    assert found.corruptions["nothing"].value < 0.12
    assert found.sensitivity.value == pytest.approx(np.mean([one.value for one in found.corruptions.values()]))
    assert found.sensitivity.count == 150
    assert found.specificity.value == pytest.approx(0.95, abs=0.011)
    for one in (*found.corruptions.values(), found.sensitivity, found.specificity):
        assert 0 <= one.low <= one.value <= one.high <= 1
    detector = found.detector
    assert (detector.sensitivity, detector.specificity_count) == (found.sensitivity.value, 200)


def test_what_cannot_be_aligned_is_flagged():
    generator = np.random.default_rng(0)
    trusted = [*made(drawn(generator, 198)), None, None]
    found = calibrate(trusted, {"too long": [None] * 10}, statistics=THREE)
    assert found.flags(None) == ("unaligned",)
    assert found.corruptions["too long"].value == 1.0
    assert found.specificity.value == pytest.approx(0.95, abs=0.011)  # the two are among the flagged
    with pytest.raises(ManifestError, match="20 of which could not be aligned"):
        calibrate([*made(drawn(generator, 180)), *[None] * 20], {}, statistics=THREE)


def test_a_statistic_that_a_clip_lacks_does_not_flag_it():
    generator = np.random.default_rng(0)
    found = calibrate(made(drawn(generator, 100)), {}, statistics=THREE)
    assert set(found.thresholds) == set(THREE)
    assert found.flags(ClipScores(clip_id="", duration_s=1, speech_s=1)) == ()
    low = ClipScores(clip_id="", duration_s=1, speech_s=1, coverage=-9.0, longest_unaligned_s=9.0)
    assert found.flags(low) == ("coverage", "longest_unaligned_s")


def test_a_statistic_that_no_clip_has_is_left_out():
    clips = [ClipScores(clip_id="", duration_s=1, speech_s=1, coverage=index / 100) for index in range(100)]
    found = calibrate(clips, {}, statistics=("min_window_llr", "coverage"))
    assert set(found.thresholds) == {"coverage"}
    with pytest.raises(ManifestError, match="no trusted clip has any of the statistics min_window_llr"):
        calibrate(clips, {}, statistics=("min_window_llr",))


def test_a_statistic_that_is_always_the_same_flags_nothing():
    clips = [
        ClipScores(clip_id="", duration_s=1, speech_s=1, coverage=1.0, min_window_llr=float(index))
        for index in range(100)
    ]
    found = calibrate(clips, {}, statistics=("min_window_llr", "coverage"))
    assert found.flags(clips[50]) == ()
    assert sum(bool(found.flags(one)) for one in clips) <= 5


@pytest.mark.parametrize("count", [0, 19])
def test_too_few_trusted_clips_are_refused(count):
    with pytest.raises(ManifestError, match=f"at least 20 trusted clips; found {count}"):
        calibrate(made(np.zeros((count, 3))), {})


def test_a_rate_that_so_few_clips_cannot_hold_is_refused():
    with pytest.raises(ManifestError, match=r"false-positive rate of 1 % needs more trusted clips: found 20"):
        calibrate(made(drawn(np.random.default_rng(0), 20)), {}, statistics=THREE, false_positive_rate=0.01)


def test_wrong_settings_are_refused():
    clips = made(np.zeros((20, 3)))
    with pytest.raises(ConfigError, match="did you mean 'coverage'"):
        calibrate(clips, {}, statistics=("coverag",))
    with pytest.raises(ConfigError, match="empty"):
        calibrate(clips, {}, statistics=())
    with pytest.raises(ConfigError, match="false_positive_rate"):
        calibrate(clips, {}, false_positive_rate=1.0)


def test_the_preset_of_the_seed():
    found = fixed()
    assert found.thresholds == SEED_THRESHOLDS == {"coverage": 0.6, "token_posterior": 0.5}
    assert found.detector is None

    def clip(coverage: float, confidence: float) -> ClipScores:
        return ClipScores(clip_id="", duration_s=1, speech_s=1, coverage=coverage, token_posterior=confidence)

    assert found.flags(clip(0.6, 0.5)) == ()
    assert found.flags(clip(0.59, 0.9)) == ("coverage",)
    assert found.flags(clip(0.9, 0.49)) == ("token_posterior",)
    measured = fixed(trusted=[clip(0.9, 0.9)] * 9 + [clip(0.1, 0.9)], corrupted={"wrong": [clip(1, 0.1), clip(1, 1)]})
    assert measured.specificity.value == 0.9
    assert measured.sensitivity.value == 0.5


def test_p_values():
    clips = [ClipScores(clip_id="", duration_s=1, speech_s=1, coverage=index / 10) for index in range(10)]
    asked = [ClipScores(clip_id="", duration_s=1, speech_s=1, coverage=value) for value in (-1.0, 0.0, 0.45, 2.0)]
    assert p_values(clips, [*asked, None], "coverage").tolist() == pytest.approx([1 / 11, 2 / 11, 6 / 11, 1.0, 1 / 11])


@settings(max_examples=30, deadline=None)
@given(st.integers(40, 120), st.floats(0.05, 0.5), st.integers(0, 1000))
def test_calibrations_survive_json(count, rate, seed):
    generator = np.random.default_rng(seed)
    found = calibrate(
        made(drawn(generator, count)),
        {"wrong": made(drawn(generator, 30, shift=3.0))},
        statistics=THREE,
        false_positive_rate=rate,
    )
    assert calibration_from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    assert calibration_from_json(fixed().to_json()) == fixed()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "guessed"}, "method"),
        ({"thresholds": {"coverage": "low"}}, "thresholds"),
        ({"thresholds": {"charm": 0.5}}, "'charm'"),
        ({"specificity": {"value": 2.0, "low": 0, "high": 1, "count": 3}}, "specificity"),
    ],
)
def test_damaged_calibrations_are_refused(wrong, message):
    with pytest.raises(ManifestError, match=message):
        calibration_from_json({**fixed().to_json(), **wrong}, where="report.json, calibration")
