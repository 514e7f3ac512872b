"""The gate: formulas by hand, invariants, and its errors by simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonotune.audit.gate import (
    Detector,
    GateSettings,
    StratumCount,
    bad_share,
    decision_of,
    judge,
    mean_cluster_size,
)
from sonotune.errors import ConfigError
from sonotune.metrics.intervals import wilson

GOOD = Detector(sensitivity=0.85, specificity=0.95, sensitivity_count=200, specificity_count=200)


def counted(population: int, sampled: int, flagged: int, name: str = "all", size: float = 1.0) -> StratumCount:
    return StratumCount(name=name, population=population, sampled=sampled, flagged=flagged, cluster_size=size)


@st.composite
def strata(draw: st.DrawFn) -> list[StratumCount]:
    made = []
    for index in range(draw(st.integers(1, 4))):
        population = draw(st.integers(1, 5000))
        sampled = draw(st.integers(1, population))
        made.append(counted(population, sampled, draw(st.integers(0, sampled)), str(index), draw(st.floats(1.0, 20.0))))
    return made


detectors = st.builds(
    Detector,
    sensitivity=st.floats(0, 1),
    specificity=st.floats(0, 1),
    sensitivity_count=st.integers(1, 5000),
    specificity_count=st.integers(1, 5000),
)


def test_one_stratum_of_a_large_corpus_is_wilson_up_to_one_clip():
    # Var = p(1-p)/(n-1), so the effective number is n - 1 where nearly nothing of the corpus was looked at.
    share = bad_share([counted(10**9, 701, 70)], None)
    assert share.value == pytest.approx(70 / 701)
    assert share.effective_count == pytest.approx(700, rel=1e-5)
    assert (share.low, share.high) == pytest.approx(wilson(70 / 701 * 700, 700), abs=1e-5)


def test_weights_variance_and_effective_number_by_hand():
    found = [counted(600, 101, 10, "a", size=3.0), counted(400, 51, 20, "b")]
    share = bad_share(found, None, cluster_correlation=0.05)
    a, b = 10 / 101, 20 / 51
    variance = 0.36 * (1 - 101 / 600) * 1.1 * a * (1 - a) / 100 + 0.16 * (1 - 51 / 400) * b * (1 - b) / 50
    value = 0.6 * a + 0.4 * b
    assert share.value == pytest.approx(value)
    assert share.effective_count == pytest.approx(value * (1 - value) / variance)
    assert share.count == 152


def test_without_a_flag_the_clips_count_over_the_design_effect():
    share = bad_share(
        [counted(10**9, 100, 0, "a", 5.0), counted(10**9, 100, 0, "b", 5.0)], None, cluster_correlation=0.05
    )
    assert share.effective_count == pytest.approx(200 / 1.2, rel=1e-5)
    assert share.low == 0.0
    assert share.high == pytest.approx(wilson(0, 200 / 1.2)[1], rel=1e-5)


def test_a_small_sample_of_a_large_stratum_counts_little_without_a_flag():
    even = bad_share([counted(5000, 100, 0), counted(5000, 100, 0)], None)
    uneven = bad_share([counted(9000, 10, 0), counted(1000, 190, 0)], None)
    assert uneven.effective_count < 20 < even.effective_count
    assert uneven.high > 2 * even.high


def test_looking_at_every_clip_leaves_no_sampling_error():
    share = bad_share([counted(300, 300, 30), counted(100, 100, 5)], None)
    assert share.low == share.value == share.high == pytest.approx(35 / 400)


def test_looking_at_every_clip_leaves_the_errors_of_the_detector():
    exact = replace(GOOD, sensitivity_count=10**9, specificity_count=10**9)
    share = bad_share([counted(400, 400, 52)], exact)
    assert share.low < share.value < share.high
    generator = np.random.default_rng(0)  # 10 % of 400 clips are bad; the interval holds that as often as it says
    held = 0
    for flagged in generator.binomial(40, 0.85, 2000) + generator.binomial(360, 0.05, 2000):
        found = bad_share([counted(400, 400, int(flagged))], exact)
        held += found.low <= 0.1 <= found.high
    assert 0.93 < held / 2000 < 0.99


@given(strata(), st.none() | detectors, st.floats(0.5, 0.999))
def test_the_interval_lies_in_zero_to_one_and_holds_the_share(found, detector, level):
    share = bad_share(found, detector, level=level)
    assert 0.0 <= share.low <= share.value <= share.high <= 1.0
    assert 0.0 <= share.flagged <= 1.0


@given(st.integers(1, 30), st.integers(0, 30), st.integers(2, 20))
def test_the_interval_shrinks_with_the_sample(sampled, flagged, times):
    flagged = min(sampled, flagged)
    small = bad_share([counted(10**7, sampled, flagged)], None)
    large = bad_share([counted(10**7, sampled * times, flagged * times)], None)
    assert large.high - large.low < small.high - small.low


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=4), st.integers(1, 9))
def test_the_estimate_is_the_pooled_one_where_the_sample_is_spread_as_the_corpus(parts, times):
    found = [
        counted(sampled * times, sampled, min(flagged, sampled), str(index))
        for index, (sampled, flagged) in enumerate(parts)
    ]
    pooled = sum(one.flagged for one in found) / sum(one.sampled for one in found)
    assert bad_share(found, None).value == pytest.approx(pooled)


ORDER = {"PROCEED": 0, "CAUTION": 1, "SAMPLE_MORE": 1, "STOP": 2}


@given(
    st.integers(1, 2000),
    st.none() | detectors,
    st.sampled_from(["interval", "point"]),
    st.integers(1, 3),
    st.data(),
)
def test_more_flags_never_give_a_better_decision(sampled, detector, rule, look, data):
    few = data.draw(st.integers(0, sampled))
    many = data.draw(st.integers(few, sampled))
    settings = GateSettings(rule=rule)
    said = [
        ORDER[decision_of(bad_share([counted(10_000, sampled, flagged)], detector), settings, look=look)[0]]
        for flagged in (few, many)
    ]
    assert said[0] <= said[1]


@given(strata(), detectors)
def test_doubt_about_the_detector_widens_the_interval(found, detector):
    exact = replace(detector, sensitivity_count=10**9, specificity_count=10**9)
    doubtful, sure = bad_share(found, detector), bad_share(found, exact)
    assert doubtful.value == sure.value
    assert doubtful.low <= sure.low + 1e-7
    assert doubtful.high >= sure.high - 1e-7


def test_rogan_and_gladen_give_back_the_true_share():
    flagged = 0.1 * 0.85 + 0.9 * 0.05
    assert GOOD.corrected(flagged) == pytest.approx(0.1)


def test_a_weak_detector_is_not_corrected_and_decides_nothing():
    weak = Detector(sensitivity=0.3, specificity=0.85, sensitivity_count=500, specificity_count=500)
    for flagged in (0, 50, 500):
        share = bad_share([counted(10_000, 500, flagged)], weak)
        assert (share.correction, share.low, share.high) == ("refused", 0.0, 1.0)
        decision, reason = decision_of(share, GateSettings())
        assert decision == "CAUTION"
        assert "1.2" in reason
    assert bad_share([counted(10_000, 500, 0)], replace(weak, sensitivity=0.35)).correction == "applied"


def test_fewer_flags_than_good_clips_would_have_prove_no_more_than_that():
    # Of good clips alone, 5 % are flagged. None flagged at all must not prove that less than nothing is bad.
    none, usual = (bad_share([counted(10**6, 400, flagged)], GOOD) for flagged in (0, 20))
    assert none.value == usual.value == 0.0
    assert none.high > 0.015


@pytest.mark.parametrize(
    ("flagged", "look", "exhausted", "decision"),
    [
        (10, 1, False, "PROCEED"),
        (80, 1, False, "SAMPLE_MORE"),
        (80, 3, False, "CAUTION"),
        (80, 1, True, "CAUTION"),
        (200, 1, False, "STOP"),
    ],
)
def test_decisions(flagged, look, exhausted, decision):
    verdict = judge([counted(10**6, 700, flagged)], None, GateSettings(), look=look, exhausted=exhausted)
    assert verdict.decision == decision
    assert f"{100 * flagged / 700:.1f} %" in verdict.reasons[0]


def test_looks_share_the_error():
    assert GateSettings().look_level == pytest.approx(0.98333, abs=1e-5)
    assert GateSettings(looks=1).look_level == pytest.approx(0.95)


def test_the_point_rule_decides_by_the_share_alone():
    settings = GateSettings(rule="point")
    said = [judge([counted(10**6, 100, flagged)], None, settings).decision for flagged in (9, 10, 15, 16)]
    assert said == ["PROCEED", "CAUTION", "CAUTION", "STOP"]


def test_a_bad_stratum_is_told_although_the_corpus_passes():
    found = [counted(95_000, 1000, 20, "studio"), counted(5_000, 300, 150, "phone")]
    verdict = judge(found, None, GateSettings())
    assert verdict.decision == "PROCEED"
    assert [one.decision for one in verdict.strata] == ["PROCEED", "STOP"]
    assert any("'phone'" in reason for reason in verdict.reasons[1:])


def test_one_of_many_strata_needs_more_to_be_called_bad():
    # By itself this stratum's interval lies just above the border; among twenty that is no surprise.
    odd = counted(10**6, 400, 78, "odd")
    alone = judge([odd], None, GateSettings(looks=1)).strata[0]
    others = [counted(10**6, 400, 50, str(index)) for index in range(19)]
    among = judge([odd, *others], None, GateSettings(looks=1)).strata[0]
    assert alone.decision == "STOP"
    assert among.decision == "CAUTION"
    assert among.p_value == pytest.approx(20 * alone.p_value)


def test_p_values_agree_with_intervals():
    stratum = counted(10**6, 400, 75)
    p_value = judge([stratum], GOOD, GateSettings(looks=1)).strata[0].p_value
    assert bad_share([stratum], GOOD, level=1 - p_value * 0.999).low < 0.15 or p_value == 1.0
    above = counted(10**6, 2000, 600)
    p_value = judge([above], GOOD, GateSettings(looks=1)).strata[0].p_value
    assert 1e-8 < p_value < 0.05
    assert bad_share([above], GOOD, level=1 - p_value).low == pytest.approx(0.15, abs=1e-6)


def test_cluster_sizes():
    assert mean_cluster_size([]) == 1.0
    assert mean_cluster_size([None, None, "a"]) == 1.0
    assert mean_cluster_size(["a"] * 5 + ["b"] * 5) == 5.0
    assert mean_cluster_size(["a"] * 9 + ["b"]) == pytest.approx(8.2)  # above the plain mean of 5


def test_clusters_widen_the_interval():
    alone, together = (
        bad_share([counted(10**6, 400, 40, size=size)], None, cluster_correlation=0.05) for size in (1.0, 20.0)
    )
    assert together.effective_count == pytest.approx(alone.effective_count / 1.95)


@pytest.mark.parametrize(
    "wrong",
    [
        {"proceed_below": 0.2},
        {"proceed_below": 0.0},
        {"level": 1.0},
        {"looks": 0},
        {"cluster_correlation": -0.1},
        {"rule": "guess"},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=rf"{next(iter(wrong))} is "):
        GateSettings(**wrong)


def test_counts_that_cannot_be_are_refused():
    for population, sampled, flagged in ((10, 11, 0), (10, 0, 0), (10, 5, 6)):
        with pytest.raises(ValueError, match="flagged <= sampled <= population"):
            counted(population, sampled, flagged)
    with pytest.raises(ValueError, match="at least one stratum"):
        bad_share([], None)


def test_wrong_decisions_stay_rare_at_the_borders_and_the_point_rule_guesses():
    """The benchmark `benchmarks/audit/gate.py` in small."""
    generator = np.random.default_rng(1)
    settings, wrong, guesses = GateSettings(), 0, 0
    for share, forbidden in ((0.10, "PROCEED"), (0.15, "STOP")):
        for _ in range(300):
            sensitivity, specificity = generator.binomial(200, (0.85, 0.95)) / 200
            detector = replace(GOOD, sensitivity=float(sensitivity), specificity=float(specificity))
            flagged = sampled = 0
            for look in range(1, 4):
                more = 700 * 2 ** (look - 1) - sampled
                flagged += int(generator.binomial(more, share * 0.85 + (1 - share) * 0.05))
                sampled += more
                found = bad_share([counted(10**6, sampled, flagged)], detector, level=settings.look_level)
                if look == 1:
                    guesses += decision_of(found, replace(settings, rule="point"))[0] == forbidden
                decision = decision_of(found, settings, look=look)[0]
                if decision != "SAMPLE_MORE":
                    break
            wrong += decision == forbidden
    assert wrong / 600 <= 0.05
    assert guesses / 600 > 0.4
    assert math.isfinite(found.effective_count)
