"""What belongs between batches and texts."""

from __future__ import annotations

import pytest

from sonotune.evaluation.decode import decoding_health, in_clip_order, longest_repetition, loops, token_limit
from sonotune.metrics.error_rate import edit_counts
from sonotune.types import Finding, Prediction


def test_the_limit_grows_with_the_audio() -> None:
    assert token_limit(0.0) == 16
    assert token_limit(2.0) == 66
    assert token_limit(1.01, tokens_per_second=10, margin=0) == 11
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            token_limit(bad)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("a", 1),
        ("a b c", 1),
        ("a a b a", 2),
        ("a a a a a", 5),
        ("thank you thank you thank you", 3),
        ("x thank you thank you thank y", 2),
        ("a b c d a b c d a b c", 2),
        ("a b c d e a b c d e", 1),  # longer phrases are not looked for
        ("תודה תודה תודה", 3),
    ],
)
def test_longest_repetition(text: str, expected: int) -> None:
    assert longest_repetition(text) == expected


def test_a_reference_may_repeat_too() -> None:
    assert loops("one " * 5)
    assert not loops("one " * 4)
    assert not loops("one " * 5, "one " * 5)
    assert loops("one " * 6, "one " * 5)


def health(*rows: tuple[str, str, str]):
    ids, references, hypotheses = (list(column) for column in zip(*rows, strict=True))
    return decoding_health(ids, references, hypotheses, edit_counts(references, hypotheses, unit="word"))


def test_health_counts_what_went_wrong_and_names_the_clips() -> None:
    found = health(
        ("fine", "a b c", "a b c"),
        ("loop", "go", "go go go go go go"),
        ("silent", "a", ""),
        ("noise", "", "hello"),
    )
    assert (found.loops, found.empty, found.invented) == (0.25, 0.25, 0.5)
    assert found.insertions == pytest.approx(6 / 5)
    assert found.loop_ids == ("loop",)
    assert found.invented_ids == ("loop", "noise")
    assert [(finding.check, finding.clip_ids) for finding in found.findings()] == [
        ("decode.loops", ("loop",)),
        ("decode.invented_words", ("loop", "noise")),
    ]
    assert found.to_json()["clips"] == 4


def test_nothing_wrong_gives_no_findings() -> None:
    assert health(("a", "one two", "one three"), ("b", "", "")).findings() == []


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
