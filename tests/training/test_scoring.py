"""What a run says of its own scores."""

from __future__ import annotations

from typing import Any

import pytest

from sonotune.training.scoring import numbers_respelt, still_improving, worse_than_before
from sonotune.types import Score


def scores(before: float | None, after: float, *, better: str = "lower") -> dict[str, Any]:
    def one(value: float) -> dict[str, Any]:
        made = Score(
            name="wer",
            value=value,
            low=value,
            high=value,
            count=8,
            better=better,
            title="WER",
            role="primary",  # type: ignore[arg-type]
        )
        return {"wer": made.to_json(), "cer": {**made.to_json(), "role": "plain", "value": 0.0}}

    return {"after": one(after), **({} if before is None else {"before": one(before)})}


def test_a_run_that_got_worse_says_so():
    [finding] = worse_than_before(scores(0.25, 1.0))
    assert (finding.check, finding.severity) == ("training.worse", "warning")
    assert "WER was 25.0 %" in finding.message
    assert "is 100.0 %" in finding.message
    assert worse_than_before(scores(0.9, 0.8, better="higher"))


@pytest.mark.parametrize(
    "found", [scores(0.25, 0.2), scores(0.25, 0.25), scores(None, 0.9), scores(0.8, 0.9, better="higher"), {}]
)
def test_any_other_says_nothing(found: dict[str, Any]):
    assert worse_than_before(found) == []


def test_a_change_that_is_the_spelling_of_numbers_is_a_note():
    found = scores(1.0, 0.0)
    assert numbers_respelt(found) == []
    found["before"]["wer_numbers_verbalized"] = {**found["before"]["wer"], "value": 0.0, "role": "beside"}
    [finding] = numbers_respelt(found)
    assert (finding.check, finding.severity) == ("training.numbers_respelt", "note")
    assert "points are the spelling of numbers" in finding.message


def log(*values: float, better: str = "lower", steps: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Events of a run that was scored after every tenth step, or after those that are named."""
    at = steps or tuple(range(10, 10 * len(values) + 10, 10))
    evaluations = [
        {"kind": "evaluation", "step": step, "scores": scores(None, value, better=better)["after"]}
        for step, value in zip(at, values, strict=True)
    ]
    return [{"kind": "step", "step": 1}, *evaluations, {"kind": "spent", "step": at[-1] if at else 0}]


@pytest.mark.parametrize(
    "events",
    [
        log(0.9, 0.5, 0.4),
        log(0.5, 0.6, 0.8, better="higher"),
        log(0.9, 0.3, 0.4, steps=(10, 20, 20)),  # the step was made again after a kill, and scored again
    ],
)
def test_a_run_whose_last_score_is_the_best_by_far_says_that_more_may_pay(events: list[dict[str, Any]]):
    [finding] = still_improving(events)
    assert (finding.check, finding.severity) == ("training.still_improving", "note")
    assert "WER on the development clips was still getting better" in finding.message
    assert "run.allow_change=[training.max_epochs]" in finding.message
    [stopped] = still_improving(events, max_steps=max(one["step"] for one in events))
    assert "run.allow_change=[training.max_steps]" in stopped.message
    assert still_improving(events, max_steps=1000) == [finding]


@pytest.mark.parametrize(
    "events",
    [log(), log(0.5), log(0.5, 0.4, 0.41), log(0.5, 0.49), log(0.0, 0.0), log(0.5, 0.4, better="higher")],
)
def test_one_that_got_no_better_at_its_end_does_not(events: list[dict[str, Any]]):
    assert still_improving(events) == []
