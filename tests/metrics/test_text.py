"""Text metrics against sacrebleu's own scores and against sums by hand."""

from __future__ import annotations

import math

import pytest
from sacrebleu.metrics import BLEU, CHRF

from sonotune.errors import TextError
from sonotune.metrics.text import bleu, chrf, perplexity

REFERENCES = ["the cat sat on the mat today", "there is a small dog in the garden", "he reads a book in the evening"]
HYPOTHESES = ["the cat sat on a mat today", "there is one dog in the garden", ""]


@pytest.mark.parametrize(("ours", "theirs"), [(bleu, BLEU), (chrf, CHRF)])
def test_values_are_those_of_sacrebleu(ours: object, theirs: type) -> None:
    score = ours(REFERENCES, HYPOTHESES, bootstrap=100)
    assert score.value == pytest.approx(theirs().corpus_score(HYPOTHESES, [REFERENCES]).score)
    assert 0 < score.value < 100
    assert score.low <= score.value <= score.high
    assert score.low < score.high
    assert score.unit == "points"
    assert score.better == "higher"
    assert "version" in score.detail["signature"]
    assert score == ours(REFERENCES, HYPOTHESES, bootstrap=100)


def test_a_perfect_translation_has_100_points() -> None:
    assert bleu(REFERENCES, REFERENCES, bootstrap=5).value == pytest.approx(100.0)
    assert chrf(REFERENCES, REFERENCES, bootstrap=5).value == pytest.approx(100.0)


@pytest.mark.parametrize(("references", "hypotheses"), [([], []), (["a"], []), (["", " "], ["a", "b"])])
def test_texts_that_cannot_be_scored(references: list[str], hypotheses: list[str]) -> None:
    with pytest.raises(TextError, match="at least one reference"):
        bleu(references, hypotheses)


def test_perplexity_weighs_by_tokens() -> None:
    # Ten tokens at probability 1/2 and two at 1/8: the mean per clip would give 4.
    score = perplexity([10 * math.log(2), 2 * math.log(8)], [10, 2], bootstrap=200)
    assert score.value == pytest.approx(math.exp((10 * math.log(2) + 2 * math.log(8)) / 12))
    assert (score.low, score.high) == (pytest.approx(2.0), pytest.approx(8.0))
    assert score.better == "lower"
    assert score.detail["tokens"] == 12


def test_perplexity_does_not_overflow_and_checks_its_arguments() -> None:
    assert math.isfinite(perplexity([1e6], [1]).value)
    with pytest.raises(TextError, match=r"clips \[1\] are not"):
        perplexity([1.0, math.nan], [1, 1])
    with pytest.raises(TextError, match="at least one token"):
        perplexity([0.0], [0])
    with pytest.raises(TextError, match="one likelihood and one token count"):
        perplexity([1.0, 2.0], [3])
