"""Scores of 1,000 random pairs, hostile Unicode among them, are those of jiwer and sacrebleu."""

from __future__ import annotations

import random

import jiwer
import pytest
import sacrebleu.metrics

from sonotune.metrics.error_rate import cer, edit_counts, wer
from sonotune.metrics.text import BLEU, CHRF
from sonotune.metrics.text_scores import ScoredText, TextScore, score_texts

WORDS = (
    *("one", "two", "it's", "naïve", "nai\u0308ve", "STRASSE", "straße", "3.5", "ﬁne", "e\u0301\u0323"),
    *(
        "שָׁלוֹם",
        "צה\u05f4ל",
        "می\u200cخواهم",
        "مُحَمَّد",
        "क्‍ष",
        "हिन्दी",
        "我们",
        "ｶﾞ",
        "ไทย",
        "👩\u200d👩\u200d👧",
        "𝔘",
        "\ufffd",
        "a\u00adb",
    ),
)


def pairs(count: int = 1000) -> tuple[list[str], list[str]]:
    rng = random.Random(7)  # noqa: S311
    references, hypotheses = [], []
    for _ in range(count):
        said = rng.choices(WORDS, k=rng.randrange(1, 15))
        heard = [rng.choice(WORDS) if rng.random() < 0.2 else word for word in said if rng.random() > 0.1]
        heard += rng.choices(WORDS, k=rng.randrange(2))
        references.append(" ".join(said))
        hypotheses.append(" ".join(heard))
    return references, hypotheses


def test_word_errors_are_those_of_jiwer_pair_by_pair() -> None:
    references, hypotheses = pairs()
    ours = edit_counts(references, hypotheses, unit="word")
    for reference, hypothesis, counts in zip(references, hypotheses, ours, strict=True):
        theirs = jiwer.process_words(reference, hypothesis)
        assert counts.to_json() == {
            "substitutions": theirs.substitutions,
            "deletions": theirs.deletions,
            "insertions": theirs.insertions,
            "hits": theirs.hits,
            "reference": len(reference.split()),
        }
    assert wer(references, hypotheses, bootstrap=0).value == pytest.approx(jiwer.wer(references, hypotheses))


def test_character_errors_are_those_of_jiwer() -> None:
    references, hypotheses = pairs()
    theirs = jiwer.process_characters(references, hypotheses)
    score = cer(references, hypotheses, bootstrap=0)
    assert score.value == pytest.approx(theirs.cer)
    found = [score.detail[name] for name in ("substitutions", "deletions", "insertions", "hits")]
    assert found == [theirs.substitutions, theirs.deletions, theirs.insertions, theirs.hits]


@pytest.mark.parametrize(("ours", "theirs"), [(BLEU, "BLEU"), (CHRF, "CHRF")])
def test_translation_scores_are_those_of_sacrebleu(ours: TextScore, theirs: str) -> None:
    references, hypotheses = pairs()
    texts = [
        ScoredText(reference=one, hypothesis=two, scored_reference="", scored_hypothesis="")
        for one, two in zip(references, hypotheses, strict=True)
    ]
    score = score_texts(ours, ours.statistics(texts), speakers=None, resamples=100)
    known = getattr(sacrebleu.metrics, theirs)().corpus_score(hypotheses, [references]).score
    assert score is not None
    assert score.value == pytest.approx(known, abs=1e-9)
