"""Punctuation error rate and formatted words, on cases by hand and in several scripts."""

from __future__ import annotations

import pytest

from sonotune.metrics.formatting import ORTHOGRAPHIC_WER, PUNCTUATION
from sonotune.metrics.text_scores import ScoredText


def text(reference: str, hypothesis: str) -> ScoredText:
    return ScoredText(reference=reference, hypothesis=hypothesis, scored_reference="", scored_hypothesis="")


@pytest.mark.parametrize(
    ("reference", "hypothesis", "edits"),
    [
        ("Hi, dear! Nice.", "Hi, dear! Nice.", (0, 0, 0, 3)),
        # The example of the metric's authors: "." for "!", a comma is missing, "?" was added; one mark is right.
        ("Hi, dear! Nice to see you. What's", "Hi dear! Nice to see you! What's?", (1, 1, 1, 1)),
        ("one, two", "one two", (0, 1, 0, 0)),
        ("one two", "one, two.", (0, 0, 2, 0)),
        ("ONE, two", "one, TWO", (0, 0, 0, 1)),
        ("3.5 or 1,000", "3.5 or 1000", (0, 0, 0, 0)),  # marks inside numbers are no punctuation
        ("wait...", "wait…", (0, 0, 0, 1)),
        ("", "yes.", (0, 0, 1, 0)),
        ("yes.", "", (0, 1, 0, 0)),
        ("שלום, מה נשמע?", "שלום מה נשמע?", (0, 1, 0, 1)),
        ("مرحبا، كيف؟", "مرحبا, كيف؟", (1, 0, 0, 1)),
        ("你好，世界。", "你好，世界", (0, 1, 0, 1)),
        ("क्या? हाँ।", "क्या हाँ।", (0, 1, 0, 1)),
    ],
)
def test_marks_are_counted_where_they_stand(reference: str, hypothesis: str, edits: tuple[int, ...]) -> None:
    [found] = PUNCTUATION.statistics([text(reference, hypothesis)])
    assert tuple(found) == edits


def test_the_rate_is_a_share_of_all_marks_of_both_texts() -> None:
    rows = PUNCTUATION.statistics([text("Hi, dear! Nice to see you. What's", "Hi dear! Nice to see you! What's?")])
    assert PUNCTUATION.values(rows) == pytest.approx([0.75])


def test_words_keep_their_case_and_their_marks() -> None:
    rows = ORTHOGRAPHIC_WER.statistics([text("Hello, Anna.", "hello, Anna"), text("yes", "yes")])
    assert [tuple(row) for row in rows] == [(2, 0, 0, 0), (0, 0, 0, 1)]
    assert ORTHOGRAPHIC_WER.values(rows.sum(axis=0)[None]) == pytest.approx([2 / 3])
