"""What belongs between batches and predictions."""

from __future__ import annotations

import pytest

from sonotune.evaluation.decode import in_clip_order
from sonotune.types import Finding, Prediction


def text(clip_id: str) -> Prediction:
    return Prediction(clip_id=clip_id, text=clip_id.upper())


def test_predictions_come_back_in_the_order_of_the_clips() -> None:
    ordered, findings = in_clip_order(["a", "b", "c"], [text("c"), text("a"), text("b")], [])
    assert [prediction.text for prediction in ordered] == ["A", "B", "C"]
    assert findings == []


def test_missing_clips_become_empty_texts_and_are_named_once() -> None:
    explained = Finding(check="audio.truncated", severity="error", message="b is cut short.", clip_ids=("b",))
    ordered, findings = in_clip_order(["a", "b", "c"], [text("a")], [explained])
    assert [prediction.text for prediction in ordered] == ["A", "", ""]
    assert [(finding.check, finding.clip_ids) for finding in findings] == [
        ("audio.truncated", ("b",)),
        ("evaluation.not_decoded", ("c",)),
    ]


@pytest.mark.parametrize("predictions", [[text("a"), text("a")], [text("x")]])
def test_a_task_that_invents_clips_is_a_defect(predictions: list[Prediction]) -> None:
    with pytest.raises(ValueError, match="exactly one prediction"):
        in_clip_order(["a", "b"], predictions, [])
