"""The phase of training: numbers that are true from the first step on."""

from __future__ import annotations

import time

import pytest

from sonotune import progress as display
from sonotune.progress import Phase
from sonotune.training.logging.progress import TrainingProgress
from sonotune.types import Score


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> list[Phase]:
    """The phases that were begun."""
    begun: list[Phase] = []
    initialise = Phase.__init__

    def remembered(self: Phase, title: str, total: int | None, unit: str) -> None:
        initialise(self, title, total, unit)
        begun.append(self)

    monkeypatch.setattr(Phase, "__init__", remembered)
    return begun


def step(number: int, loss: float | None) -> dict[str, object]:
    return {"step": number, "loss": loss, "samples_per_s": 4.0, "padding_share": 0.1}


def test_the_loss_is_that_of_recent_steps_and_not_of_the_first(phases: list[Phase]):
    with TrainingProgress() as training:
        training.started(100, 0)
        training.stepped(step(1, 4.0))
        assert "loss 4.000" in phases[0].state
        for number in range(2, 80):
            training.stepped(step(number, 0.05))
        assert float(phases[0].state.split()[1].rstrip(",")) < 0.2


def test_time_left_counts_the_evaluations(phases: list[Phase], monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    score = Score(
        name="wer", value=0.25, low=0.1, high=0.4, count=8, unit="fraction", better="lower", title="WER", role="primary"
    )
    with TrainingProgress() as training:
        training.started(40, 0)
        for number in range(1, 11):
            now += 2.0
            training.stepped(step(number, 1.0))
        now += 10.0
        training.evaluated(10, {"wer": score})
        now += 2.0
        training.stepped(step(11, 1.0))
    assert phases[0].remaining_s == pytest.approx(29 * (22 + 10) / 11)
    assert "WER 25.0 %" in phases[0].state


def test_the_score_is_that_of_the_last_evaluation_when_training_ends(phases: list[Phase]):
    found = {"wer": Score(name="wer", value=0.25, low=0.1, high=0.4, count=8, unit="fraction", title="WER")}
    with TrainingProgress() as training:
        training.started(1, 0)
        training.stepped(step(1, 1.0))
        training.evaluated(1, found)
        training.ended()
    assert "WER 25.0 %" in phases[0].line(ended=True)


def test_where_training_goes_on_is_said(capsys: pytest.CaptureFixture[str]):
    with display.shown(), TrainingProgress() as training:
        training.started(40, 0)
        training.ended()
        training.started(40, 20)
    assert capsys.readouterr().err == "goes on from step 20 of 40\n"


def test_the_loss_of_a_run_that_goes_on_is_said_to_be_that_since(phases: list[Phase]):
    for begun, told in ((0, "loss 4.000"), (20, "loss 4.000 since step 20")):
        with TrainingProgress() as training:
            training.started(40, begun)
            training.stepped(step(begun + 1, 4.0))
            assert told in phases[-1].state.split(", ")


def test_it_needs_no_display():
    assert display.note("nothing") is None
    with TrainingProgress() as training:
        training.stepped(step(1, None))
        training.started(1, 0)
        training.stepped(step(1, None))
        training.ended()
