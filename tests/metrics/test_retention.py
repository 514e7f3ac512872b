"""What tuning broke, in words, and the scale that is proposed."""

from __future__ import annotations

from typing import Any

import pytest

from sonotune.metrics.retention import outcome_of, propose_scale, retention_findings, retention_sentence


def score(value: float, *, better: str = "lower", unit: str = "fraction") -> dict[str, Any]:
    return {"value": value, "low": value, "high": value, "count": 40, "better": better, "unit": unit, "title": "WER"}


def row(low: float, high: float, *, better: str = "lower", unit: str = "fraction") -> dict[str, Any]:
    difference = {"value": (low + high) / 2, "low": low, "high": high, "better": better}
    return {
        "panel": "digits",
        "clips": 40,
        "score": "wer",
        "before": {"wer": score(0.1, better=better, unit=unit)},
        "after": {"wer": score(0.1 + (low + high) / 2, better=better, unit=unit)},
        "difference": {"wer": difference},
        "outcome": outcome_of(difference),
    }


@pytest.mark.parametrize(
    ("low", "high", "better", "outcome"),
    [
        (0.1, 0.3, "lower", "broke"),
        (0.1, 0.3, "higher", "better"),
        (-0.3, -0.1, "lower", "better"),
        (-0.3, -0.1, "higher", "broke"),
        (-0.1, 0.3, "lower", "no clear change"),
        (0.0, 0.3, "lower", "no clear change"),
    ],
)
def test_an_outcome_needs_the_whole_interval_on_one_side(low: float, high: float, better: str, outcome: str):
    assert outcome_of({"low": low, "high": high, "better": better}) == outcome


def test_too_few_clips_say_nothing():
    assert outcome_of(None) == "too few clips"
    told = retention_sentence({**row(0.1, 0.3), "difference": {"wer": None}})
    assert "too few clips to tell it from chance" in told


def test_a_broken_panel_is_a_warning_with_both_scores_and_the_interval():
    [finding] = retention_findings([row(0.1, 0.3), row(-0.1, 0.1)])
    assert (finding.check, finding.severity) == ("retention.broke", "warning")
    assert "digits: WER 10.0 % \u2192 30.0 % (+20.0 points, 95 % interval +10.0 to +30.0, 40 clips)" in finding.message
    assert (finding.measured, finding.limit, finding.unit) == (30.0, 10.0, "%")


def test_a_rate_is_told_in_its_own_unit():
    told = retention_sentence(row(1.0, 3.0, unit="words/min"))
    assert "0.1 words/min \u2192 2.1 words/min (+2.0 words/min, 95 % interval +1.0 to +3.0" in told


def points(*values: float, better: str = "lower", scales: tuple[float, ...] = (0, 0.25, 0.5, 0.75, 1)) -> list[Any]:
    return [
        {"scale": scale, "scores": {"wer": score(value, better=better)}}
        for scale, value in zip(scales, values, strict=True)
    ]


@pytest.mark.parametrize(
    ("values", "better", "knee"),
    [
        ((0.8, 0.6, 0.41, 0.38, 0.4), "lower", 0.5),  # 39 of 42 points of gain are there at 0.5
        ((0.8, 0.7, 0.6, 0.5, 0.4), "lower", 1.0),
        ((0.2, 0.9, 0.9, 0.9, 0.9), "higher", 0.25),
        ((0.8, 0.9, 1.0, 1.0, 1.0), "lower", None),
        ((0.5, 0.5, 0.5, 0.5, 0.5), "lower", None),
    ],
)
def test_the_smallest_scale_with_most_of_the_gain_is_proposed(values: Any, better: str, knee: float | None):
    found, rule = propose_scale(points(*values, better=better), "wer")
    assert found == knee
    assert "90 % of the largest gain" in rule
    assert ("no scale gains anything" in rule) == (knee is None)


def test_without_the_base_model_nothing_is_proposed():
    found, rule = propose_scale(points(0.6, 0.4, scales=(0.5, 1.0)), "wer")
    assert found is None
    assert "the scale 0, which is the base model, is not among those" in rule
    assert propose_scale([], "wer")[0] is None
