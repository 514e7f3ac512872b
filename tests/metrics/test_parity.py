"""Parity is shown by evidence: an interval inside the tolerance, or equal answers on enough clips."""

from __future__ import annotations

from typing import Any

import pytest

from sonotune.metrics.parity import clips_to_tell, differing_at_most, outcome_of, sentence_of


def parity(
    value: float, low: float | None = None, high: float | None = None, *, clips: int = 50, equal: float = 1.0
) -> dict[str, Any]:
    return {
        "difference": {"wer": {"value": value, "low": low, "high": high}},
        "scored": {"wer": {"value": 0.2}},
        "served": {"wer": {"value": 0.2 + value}},
        "clips": clips,
        "equal": equal,
        "tolerance": 0.01,
        "tool": "transformers 5",
        "context": "thinned",
    }


def test_the_bound_is_exact():
    assert differing_at_most(0, 10) == pytest.approx(1 - 0.05**0.1)
    assert differing_at_most(0, 300) == pytest.approx(3 / 300, rel=0.01)  # the rule of three
    assert differing_at_most(1, 10) == pytest.approx(0.3942, abs=1e-4)  # tables of Clopper and Pearson
    assert differing_at_most(10, 10) == 1.0


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        (parity(0.0, 0.0, 0.0, clips=10), "not shown"),
        (parity(0.0, 0.0, 0.0, clips=298), "not shown"),
        (parity(0.0, 0.0, 0.0, clips=299), "shown"),
        (parity(0.0, clips=299), "shown"),
        (parity(0.0, 0.0, 0.0, clips=299, equal=298 / 299), "not shown"),
        (parity(0.002, -0.004, 0.009, equal=0.9), "shown"),
        (parity(0.002, -0.004, 0.01, equal=0.9), "shown"),
        (parity(0.002, -0.004, 0.011, equal=0.9), "not shown"),
        (parity(-0.002, -0.011, 0.004, equal=0.9), "not shown"),
        (parity(0.01, 0.002, 0.018, equal=0.9), "not shown"),
        (parity(0.011, -0.01, 0.03, equal=0.9), "differs"),
        (parity(-0.05, -0.07, -0.03, equal=0.4), "differs"),
        (parity(0.05, clips=3, equal=0.4), "differs"),
    ],
)
def test_three_outcomes(found: dict[str, Any], outcome: str):
    assert outcome_of(found) == outcome


def test_the_number_of_clips_that_would_tell():
    assert clips_to_tell(parity(0.0, 0.0, 0.0, clips=10)) == 299
    one = clips_to_tell(parity(0.0, 0.0, 0.0, clips=10, equal=0.9))
    assert one == 473
    assert differing_at_most(1, 473) <= 0.01 < differing_at_most(1, 472)
    assert clips_to_tell(parity(0.0, -0.02, 0.02, equal=0.9)) == 200  # half the width of 50 clips
    assert clips_to_tell(parity(0.005, -0.005, 0.02, equal=0.9)) == 450  # the upper end has to come thrice as near
    assert clips_to_tell(parity(0.01, 0.0, 0.02, equal=0.9)) is None


def test_the_sentence_has_the_evidence():
    assert sentence_of(parity(0.0, 0.0, 0.0, clips=10)) == (
        "No difference was found, and parity is not shown: served by transformers 5 the export has WER 20.0 %, and the "
        "run is scored 20.0 % (context thinned) on the same 10 clips: +0.0 points, 100 % of the answers equal. By the "
        "exact 95 % bound up to 25.9 % of such clips may differ, where 1 % is allowed; about 299 clips like these "
        "would tell."
    )
    assert sentence_of(parity(0.0, clips=400)).endswith("up to 0.7 % of such clips may differ, where 1 % is allowed.")
    within = sentence_of(parity(0.001, -0.002, 0.004, clips=400, equal=0.999))
    assert within.startswith("Parity is shown: ")
    assert "+0.1 points (95 % interval -0.2 to +0.4), 99.9 % of the answers equal. The whole interval lies" in within
    wide = sentence_of(parity(0.0, -0.02, 0.02, equal=0.9))
    assert wide.endswith("goes 1.0 points beyond the 1 point allowed; about 200 clips like these would tell.")
    assert sentence_of(parity(0.05, 0.03, 0.07)).startswith("What is served is not what was scored: ")
    chance = sentence_of(parity(0.05, -0.03, 0.13))
    assert chance.startswith("Served and scored differ, perhaps by chance: ")
    assert chance.endswith("That is more than the 1 point allowed.")
    assert sentence_of(parity(0.05)).endswith("allowed. These are too few clips for an interval.")
