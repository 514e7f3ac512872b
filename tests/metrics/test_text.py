"""BLEU and chrF against sacrebleu's own scores, perplexity and token accuracy against sums by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sacrebleu.metrics import BLEU as SACRE_BLEU
from sacrebleu.metrics import CHRF as SACRE_CHRF

from sonotune.metrics.text import BLEU, CHRF, PERPLEXITY, TOKEN_ACCURACY
from sonotune.metrics.text_scores import ScoredText, TextScore, score_texts
from sonotune.types import LabelTokens, Score

REFERENCES = ["The cat sat on the mat today.", "there is a small dog in the garden", "he reads a book in the evening"]
HYPOTHESES = ["The cat sat on a mat today.", "there is one dog in the garden", ""]


def texts(references: list[str], hypotheses: list[str]) -> list[ScoredText]:
    return [
        ScoredText(reference=one, hypothesis=two, scored_reference=one, scored_hypothesis=two)
        for one, two in zip(references, hypotheses, strict=True)
    ]


def rated(*tokens: tuple[float, int, int] | None) -> list[ScoredText]:
    return [
        ScoredText(
            reference="a",
            hypothesis="a",
            scored_reference="a",
            scored_hypothesis="a",
            label_tokens=None if one is None else LabelTokens(nll=one[0], count=one[1], right=one[2]),
        )
        for one in tokens
    ]


def scored(score: TextScore, of: list[ScoredText], **options: object) -> Score | None:
    return score_texts(score, score.statistics(of), speakers=None, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("ours", "theirs"), [(BLEU, SACRE_BLEU), (CHRF, SACRE_CHRF)])
def test_values_are_those_of_sacrebleu(ours: TextScore, theirs: type) -> None:
    score = scored(ours, texts(REFERENCES, HYPOTHESES), resamples=100)
    assert score is not None
    assert score.value == pytest.approx(theirs().corpus_score(HYPOTHESES, [REFERENCES]).score)
    assert 0 <= score.low < score.value < score.high <= 100
    assert (score.unit, score.better, score.count) == ("points", "higher", 3)
    assert "version" in str(score.detail["signature"])
    assert score == scored(ours, texts(REFERENCES, HYPOTHESES), resamples=100)


@pytest.mark.parametrize("score", [BLEU, CHRF])
def test_a_perfect_translation_has_100_points_and_no_reference_none(score: TextScore) -> None:
    perfect = scored(score, texts(REFERENCES, REFERENCES))
    assert perfect is not None
    assert perfect.value == pytest.approx(100.0)
    assert scored(score, texts(["", " "], ["a", "b"])) is None
    assert scored(score, []) is None


def test_perplexity_weighs_by_tokens() -> None:
    # Ten tokens at probability 1/2 and two at 1/8: the mean per clip would give 4.
    score = scored(PERPLEXITY, rated((10 * math.log(2), 10, 9), (2 * math.log(8), 2, 0), None))
    assert score is not None
    assert score.value == pytest.approx(math.exp((10 * math.log(2) + 2 * math.log(8)) / 12))
    assert 1 <= score.low < score.value < score.high
    assert (score.unit, score.better, score.count) == ("", "lower", 2)  # the third clip has no part in it
    assert score.detail["tokens"] == 12


def test_token_accuracy_is_a_share_of_tokens() -> None:
    score = scored(TOKEN_ACCURACY, rated((1.0, 10, 9), (1.0, 2, 0), (0.5, 8, 8)))
    assert score is not None
    assert score.value == 17 / 20
    assert score.better == "higher"
    assert score.low < 17 / 20 < score.high <= 1
    alike = scored(TOKEN_ACCURACY, rated(*[(0.1, 5, 5)] * 20))
    assert alike is not None
    assert (alike.value, alike.high, alike.detail["resampled"]) == (1.0, 1.0, "count")
    assert 0.9 < alike.low < 1.0  # Wilson over 100 tokens


def test_what_was_not_measured_has_no_score_and_what_is_hopeless_does_not_overflow() -> None:
    assert scored(PERPLEXITY, rated(None, None)) is None
    assert scored(TOKEN_ACCURACY, rated()) is None
    hopeless = scored(PERPLEXITY, rated((1e6, 1, 0), (2e6, 1, 0)))
    assert hopeless is not None
    assert np.isfinite([hopeless.value, hopeless.low, hopeless.high]).all()
