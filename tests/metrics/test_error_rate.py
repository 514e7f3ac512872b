"""Error rates against counts made by hand."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.errors import TextError
from sonotune.metrics.error_rate import (
    EditCounts,
    align_words,
    cer,
    char_edits,
    edit_counts,
    error_rate,
    sum_counts,
    wer,
    word_edits,
)


def counts(substitutions: int, deletions: int, insertions: int, hits: int) -> EditCounts:
    return EditCounts(
        substitutions=substitutions,
        deletions=deletions,
        insertions=insertions,
        hits=hits,
        reference=substitutions + deletions + hits,
    )


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("", "", counts(0, 0, 0, 0)),
        ("", "a b", counts(0, 0, 2, 0)),
        ("a b c", "", counts(0, 3, 0, 0)),
        ("  \t ", "\n", counts(0, 0, 0, 0)),
        ("a b c", "a b c", counts(0, 0, 0, 3)),
        ("a b c", "a x c", counts(1, 0, 0, 2)),
        ("a b c", "a c", counts(0, 1, 0, 2)),
        ("a b c", "a b b c", counts(0, 0, 1, 3)),
        ("a b c d", "x a b d", counts(0, 1, 1, 3)),
        ("one\ttwo\nthree", "one two three", counts(0, 0, 0, 3)),  # jiwer alone splits at the space only
        ("a\u00a0b", "a b", counts(0, 0, 0, 2)),
        ("שלוש ארבע חמש", "שלוש ארבה חמש שש", counts(1, 0, 1, 2)),
    ],
)
def test_word_edits(reference: str, hypothesis: str, expected: EditCounts) -> None:
    assert word_edits(reference, hypothesis) == expected


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("", "ab", counts(0, 0, 2, 0)),
        ("abc", "", counts(0, 3, 0, 0)),
        ("a b", "ab", counts(0, 1, 0, 2)),  # the space is a character
        ("a  b", "a b", counts(0, 0, 0, 3)),  # two spaces are one
        ("abc", "axc", counts(1, 0, 0, 2)),
    ],
)
def test_char_edits(reference: str, hypothesis: str, expected: EditCounts) -> None:
    assert char_edits(reference, hypothesis) == expected


def test_composed_and_decomposed_texts_differ_because_the_caller_normalises() -> None:
    composed, decomposed = "café", unicodedata.normalize("NFD", "café")
    assert word_edits(composed, decomposed).substitutions == 1
    assert word_edits(composed, unicodedata.normalize("NFC", decomposed)).errors == 0


def test_wer_is_the_ratio_of_sums_not_the_mean_of_rates() -> None:
    score = wer(["a", "b c d e f g h i j"], ["x", "b c d e f g h i j"])
    assert score.value == pytest.approx(1 / 10)  # the mean of rates would be 1/2
    assert score.count == 2
    assert score.low <= score.value <= score.high
    assert score.detail["substitutions"] == 1
    assert score.detail["reference"] == 10
    assert score.better == "lower"


def test_wer_can_exceed_one_and_stays_inside_its_interval() -> None:
    score = wer(["a", "b"], ["x y z", "b c d e"])
    assert score.value == pytest.approx(3.0)  # one substitution and five insertions over two words
    assert score.low <= 3.0 <= score.high


@pytest.mark.parametrize("bootstrap", [0, 200])
def test_a_rate_above_one_without_spread_has_an_interval_on_both_sides(bootstrap: int) -> None:
    score = wer(["a b"], ["c d e f g h"], bootstrap=bootstrap)
    assert score.detail["resampled"] == "word"
    assert score.value == 3.0
    assert (score.low, score.high) == pytest.approx((1.10, 6.53), abs=0.01)  # Garwood's for 6 events: 2.20 to 13.06


def test_empty_hypotheses_are_deletions_and_words_in_silence_are_insertions() -> None:
    score = wer(["a b", "", "c"], ["", "hello", "c"])
    assert score.detail["deletions"] == 2
    assert score.detail["insertions"] == 1
    assert score.value == pytest.approx(3 / 3)


def test_no_clip_is_an_error_that_says_so() -> None:
    with pytest.raises(TextError, match="at least one clip"):
        wer([], [])


@pytest.mark.parametrize("bootstrap", [0, 200])
@pytest.mark.parametrize(
    ("hypotheses", "value"), [(["", "", ""], 0.0), (["", "thank you", ""], 2 / 3), (["a b c"] * 3, 3.0)]
)
def test_silence_alone_has_a_rate_of_what_was_written_on_each_clip(
    hypotheses: list[str], value: float, bootstrap: int
) -> None:
    score = wer(["", " ", "\t"], hypotheses, bootstrap=bootstrap)
    assert score.value == pytest.approx(value)
    assert score.low <= score.value <= score.high
    assert (score.title, score.detail["per"], score.count) == ("WER per silent clip", "clip", 3)
    assert score.detail["insertions"] == sum(len(text.split()) for text in hypotheses)
    assert json.dumps(score.to_json(), allow_nan=False)


def test_words_on_silence_are_insertions_of_the_whole() -> None:
    score = wer(["one two", "", ""], ["one two", "uh", ""], bootstrap=200)
    assert score.value == pytest.approx(1 / 2)
    assert "per" not in score.detail
    assert score.title == "WER"


def test_lengths_must_agree() -> None:
    with pytest.raises(TextError, match="2 hypotheses were given for 1 references"):
        wer(["a"], ["a", "b"])
    with pytest.raises(TextError, match="1 speakers were given for 2 clips"):
        wer(["a", "b"], ["a", "b"], speakers=["x"])
    with pytest.raises(TextError, match="lists of texts"):
        wer("a b", "a b")


def test_what_was_resampled_is_said() -> None:
    references, hypotheses = ["a b c"] * 12, ["a b c", "a x c", "a"] * 4
    by_five = [f"s{index % 5}" for index in range(12)]
    by_four = [f"s{index % 4}" for index in range(12)]
    assert wer(references, hypotheses, speakers=by_five).detail["resampled"] == "speaker"
    assert wer(references, hypotheses, speakers=by_four).detail["resampled"] == "clip"
    assert wer(references, hypotheses, speakers=[*by_five[:-1], None]).detail["resampled"] == "clip"
    assert wer(references, hypotheses).detail["resampled"] == "clip"
    assert wer(references, hypotheses, bootstrap=0).detail["resampled"] == "word"


def test_no_errors_still_have_an_upper_end() -> None:
    few = wer(["a b"] * 2, ["a b"] * 2)
    many = wer(["a b"] * 200, ["a b"] * 200)
    assert few.value == few.low == 0.0
    assert few.detail["resampled"] == "word"
    assert few.high == pytest.approx(0.4899, abs=1e-3)  # Wilson, 0 of 4
    assert 0 < many.high < 0.02


def test_one_clip_has_a_width() -> None:
    score = wer(["a b c d"], ["a b c x"])
    assert score.low < 0.25 < score.high


def test_the_seed_decides_the_interval() -> None:
    arguments = (["a b c " * (1 + index % 7) for index in range(30)], ["a b c", "a x c", "a"] * 10)
    first, same, other = wer(*arguments, seed=1), wer(*arguments, seed=1), wer(*arguments, seed=2)
    assert first == same
    assert first.value == other.value
    assert (first.low, first.high) != (other.low, other.high)


def test_speaker_blocks_widen_the_interval_when_speakers_differ() -> None:
    speakers = [f"s{index // 40}" for index in range(240)]  # six speakers, one of them never understood
    hypotheses = ["x" if speaker == "s0" else "a" for speaker in speakers]
    blocks = wer(["a"] * 240, hypotheses, speakers=speakers)
    clips = wer(["a"] * 240, hypotheses)
    assert blocks.high - blocks.low > 3 * (clips.high - clips.low)


def test_the_value_lies_in_its_interval_however_few_the_resamples() -> None:
    references, hypotheses = ["a b c"] * 12, ["a b c", "a x c", "a"] * 4
    for seed in range(30):
        score = wer(references, hypotheses, bootstrap=2, seed=seed)
        assert score.low <= score.value <= score.high


def test_cer_names_itself() -> None:
    score = cer(["abcd"], ["abcx"])
    assert score.name == "cer"
    assert score.value == pytest.approx(0.25)
    assert error_rate("other", edit_counts(["ab"], ["a"], unit="character")).name == "other"


def test_alignment_is_in_reading_order() -> None:
    steps = align_words("turn the lights off", "turn lights off now")
    assert [step.operation for step in steps] == ["equal", "delete", "equal", "equal", "insert"]
    assert [step.reference for step in steps if step.reference] == ["turn", "the", "lights", "off"]
    assert [step.hypothesis for step in steps if step.hypothesis] == ["turn", "lights", "off", "now"]
    assert [step.operation for step in align_words("", "a b")] == ["insert", "insert"]
    assert [step.operation for step in align_words("a", "")] == ["delete"]


WORDS = st.lists(st.sampled_from(["a", "b", "אב", "e\u0301", "<b>"]), max_size=8).map(" ".join)


@settings(deadline=None, max_examples=150)
@given(WORDS, WORDS)
def test_counts_and_alignments_agree(reference: str, hypothesis: str) -> None:
    edits = word_edits(reference, hypothesis)
    steps = align_words(reference, hypothesis)
    assert edits.substitutions + edits.deletions + edits.hits == edits.reference == len(reference.split())
    assert edits.substitutions + edits.insertions + edits.hits == len(hypothesis.split())
    assert sum(step.operation != "equal" for step in steps) == edits.errors
    assert " ".join(step.reference for step in steps if step.reference) == reference
    assert " ".join(step.hypothesis for step in steps if step.hypothesis) == hypothesis
    assert edits.errors == _levenshtein(reference.split(), hypothesis.split())


def _levenshtein(left: list[str], right: list[str]) -> int:
    row = list(range(len(right) + 1))
    for i, word in enumerate(left, start=1):
        previous, row[0] = row[0], i
        for j, other in enumerate(right, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (word != other))
    return row[-1]


def test_counts_together_are_those_of_each():
    pairs = [("a b c", "a c d"), ("", "x"), ("y z", "")]
    counts = [word_edits(*pair) for pair in pairs]
    total = sum_counts(iter(counts))
    assert total.to_json() == {name: sum(one.to_json()[name] for one in counts) for name in total.to_json()}
    assert sum_counts([]) == EditCounts()
