"""Scores in words say what they say of themselves; older records, without titles, are read as well."""

from __future__ import annotations

import pytest

from sonotune.metrics.scores import (
    better_sign,
    decoding_note,
    drawn_scores,
    primary_score,
    score_title,
    show_change,
    show_score,
    show_value,
    shown_unit,
    spelling_of_numbers,
)
from sonotune.types import Score


def of(name: str, **changes: object) -> dict[str, object]:
    return Score(name=name, value=0.123, low=0.1, high=0.15, count=8, **changes).to_json()  # type: ignore[arg-type]


def test_a_score_is_shown_with_its_unit_and_interval():
    assert show_score(of("wer")) == "12.3 % [10.0, 15.0]"
    assert show_score(of("bleu", unit="points")) == "0.1 points [0.1, 0.1]"
    assert show_value(of("wer"), "high", digits=2) == "15.00 %"
    assert show_score(None) == "-"


def test_titles_are_its_own_and_older_records_have_theirs():
    assert score_title("f1_macro", of("f1_macro", title="Macro F1")) == "Macro F1"
    assert score_title("wer", of("wer")) == "WER"
    assert score_title("map", of("map")) == "mAP"
    assert score_title("wer_loops_cut") == "WER with loops cut"
    assert score_title("balanced_accuracy") == "Balanced accuracy"


@pytest.mark.parametrize("written", [True, False], ids=["now", "before titles"])
def test_what_decides_comes_first_and_what_explains_it_is_not_drawn(written: bool):
    roles = ("plain", "primary", "beside") if written else ("plain",) * 3
    names = ("cer", "wer", "wer_loops_cut") if written else ("wer", "cer", "wer_loops_cut")
    scores = {name: of(name, role=role) for name, role in zip(names, roles, strict=True)}
    assert primary_score(scores) == "wer"
    assert drawn_scores(scores) == ("wer", "cer")
    assert drawn_scores({}) == ()


def test_loops_are_counted_and_directions_known():
    assert decoding_note(of("wer", detail={"loops": 2})) == ", 2 of 8 texts loop (25.0 %)"
    assert decoding_note(of("wer")) == ""
    assert decoding_note(of("wer", detail={"cut": 1})) == ", 1 of 8 texts end at their limit of tokens (12.5 %)"
    silent = of("wer", detail={"silent_clips": 3, "silent_words": 4})
    assert decoding_note(silent) == ", 3 clips without words, 4 words written on them"
    assert (better_sign("lower"), better_sign("higher")) == (1, -1)


def moment(wer: float, numbers: float | None = None) -> dict[str, dict[str, object]]:
    """Scores of one moment of a run; the second stands beside where some clip has digits on one side."""
    found = {"wer": wer} if numbers is None else {"wer": wer, "wer_numbers_verbalized": numbers}
    return {name: of(name) | {"value": value} for name, value in found.items()}


def test_how_much_of_a_change_is_the_spelling_of_numbers():
    said = spelling_of_numbers(moment(1.0, 0.0), moment(0.0))
    assert said == (
        "Of the change of \u2212100.0 points of WER, \u2212100.0 points are the spelling of numbers: with numbers as "
        "words, WER was 0.0 % before training and is 0.0 % after it."
    )
    part = spelling_of_numbers(moment(0.8, 0.5), moment(0.3, 0.2))
    assert part is not None
    assert "change of \u221250.0 points of WER, \u221220.0 points are" in part


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (moment(1.0), moment(0.0)),  # no numbers
        (moment(0.8, 0.5), moment(0.5, 0.2)),  # numbers are spelt as they were
        ({}, moment(0.3, 0.2)),
        (moment(0.3, 0.2), {}),
        ({"f1_macro": of("f1_macro")}, {"f1_macro": of("f1_macro")}),
    ],
)
def test_where_no_change_is_a_matter_of_spelling_nothing_is_said(
    before: dict[str, dict[str, object]], after: dict[str, dict[str, object]]
):
    assert spelling_of_numbers(before, after) is None


def test_scores_are_shown_in_their_own_unit():
    rate = {"value": 0.1234, "low": 0.1, "high": 0.2, "unit": "fraction"}
    points = {"value": 23.44, "low": 20.0, "high": 30.04, "unit": "points"}
    bare = {"value": 1.334, "low": 1.2, "high": 1.5, "unit": ""}
    assert [show_score(one) for one in (rate, points, bare)] == [
        "12.3 % [10.0, 20.0]",
        "23.4 points [20.0, 30.0]",
        "1.33 [1.20, 1.50]",
    ]
    assert [show_change(one, -0.051) for one in (rate, points, bare)] == ["−5.1 points", "−0.1 points", "−0.05"]
    assert [shown_unit(one) for one in (rate, points, bare)] == ["%", "points", ""]
