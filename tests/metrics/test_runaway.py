"""Decoders that ran away, told by their texts."""

from __future__ import annotations

import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonotune.metrics import runaway
from sonotune.metrics.error_rate import edit_counts
from sonotune.metrics.runaway import (
    allowed_repeats,
    compression_ratio,
    cut_loops,
    decoding_health,
    longest_repetition,
    loops,
)


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
        ("a b c d e a b c d e", 2),
        ("a b c d e f g h i j k l " * 3, 3),
        ("a b c d e f g h i j k l m " * 3, 1),  # longer phrases are not looked for
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


WORDS = ["asante", "sana", "kwa", "kutazama", "video", "hii", "tutaonana", "tena", "wiki", "ijayo", "hapa", "hapa2"]


@pytest.mark.parametrize(("size", "allowed"), [(1, 4), (4, 4), (5, 3), (8, 3), (9, 2), (12, 2)])
def test_the_longer_a_phrase_the_fewer_repetitions_are_allowed(size: int, allowed: int) -> None:
    phrase = " ".join(WORDS[:size]) + " "
    assert allowed_repeats(size) == allowed
    assert not loops("so " + phrase * allowed + "then")
    assert cut_loops("so " + phrase * allowed + "then") == "so " + phrase * allowed + "then"
    assert loops("so " + phrase * (allowed + 1) + "then")


@pytest.mark.parametrize("size", range(1, 13))
@pytest.mark.parametrize("rest", [0, 1, 11])
def test_a_loop_of_every_length_is_seen_and_cut(size: int, rest: int) -> None:
    phrase = WORDS[:size]
    looped = " ".join(["well", *phrase * 8, *phrase[: rest % size]])
    assert loops(looped)
    assert loops(looped, " ".join(["well", *phrase]))
    assert not loops(looped, looped)
    assert cut_loops(looped) == " ".join(["well", *phrase])


@pytest.mark.parametrize(
    "text",
    [
        "very very very very good",
        "1 1 1 1 and 0 7 1 2 3 4 5 0 7 1 2 3 4 5 0 7 1 2 3 4 5",
        "we wish you a merry christmas " * 3 + "and a happy new year",
        "row row row your boat gently down the stream merrily merrily merrily merrily life is but a dream " * 2,
        "haraka haraka haina baraka pole pole ndio mwendo polepole ndio mwendo",
        "watoto wanacheza mpira na watoto wanaimba na watoto wanalala na watoto wanakula na watoto wanasoma",
        "ha ha ha ha",
    ],
)
def test_what_people_say_several_times_is_no_loop(text: str) -> None:
    assert not loops(text)
    assert cut_loops(text) == text.strip()


def test_a_reference_may_repeat_long_phrases_and_write_them_otherwise() -> None:
    refrain = "lord have mercy upon us and hear our prayer " * 4
    assert loops(refrain)
    assert not loops(refrain, refrain)
    assert not loops(refrain, "lord have mercy up on us and hear our prayer " * 4)  # a word more
    assert loops(refrain, "no no no no no")  # another repetition is no excuse
    assert not loops("goodbye " * 5, "good bye " * 5)
    assert not loops("1 " * 30, "1 " * 30)


@given(st.lists(st.integers(0, 500), unique=True, max_size=80), st.integers(1, 3))
def test_a_text_in_which_nothing_stands_twice_in_a_row_is_no_loop(numbers: list[int], apart: int) -> None:
    text = " ".join(f"w{number}" for number in numbers)
    assert not loops(text)
    assert cut_loops(text) == text
    again = " und ".join([text] * apart)  # n-grams come again, too far apart to be a loop unless the text is short
    assert len(numbers) < 12 or not loops(again)


@given(st.lists(st.sampled_from("abc"), max_size=60))
def test_a_text_that_is_cut_is_no_longer_and_nothing_is_cut_without_a_loop(letters: list[str]) -> None:
    text = " ".join(letters)
    assert len(cut_loops(text)) <= len(text)
    assert (cut_loops(text) == text) or loops(text)


def plain_repetition(words: list[str], longest: int = 12) -> int:
    """By its definition: the most often that a phrase stands in a row."""
    most = min(1, len(words))
    for size in range(1, longest + 1):
        for start in range(len(words) - size + 1):
            phrase, times = words[start : start + size], 1
            while words[start + times * size : start + (times + 1) * size] == phrase:
                times += 1
            most = max(most, times)
    return most


@given(st.lists(st.sampled_from("abcdefg"), max_size=40))
def test_the_longest_repetition_is_that_of_its_definition(words: list[str]) -> None:
    assert longest_repetition(" ".join(words)) == plain_repetition(words)


@given(
    st.text("abcdefghij ", max_size=20),
    st.text("abcdefghij", min_size=1, max_size=40),
    st.integers(1, 14),
    st.text("ab ", max_size=20),
)
def test_no_loop_of_characters_is_missed_by_the_question_that_is_asked_first(
    before: str, phrase: str, times: int, after: str
) -> None:
    text = before + phrase * times + after
    found = any(len(one[0]) >= 30 for one in runaway._SYLLABLES.finditer(text))
    assert runaway._repeats_characters(text) == found


def test_a_long_hostile_text_takes_no_time_of_its_square() -> None:
    for text in ("a " * 60_000, ("a " * 4 + "b ") * 12_000, ("a " * 5 + "b ") * 10_000, "ab" * 60_000):
        start = time.process_time()
        loops(text)
        cut_loops(text)
        assert time.process_time() - start < 5


def health(*rows: tuple[str, str, str]):
    ids, references, hypotheses = (list(column) for column in zip(*rows, strict=True))
    return decoding_health(ids, references, hypotheses, edit_counts(references, hypotheses, unit="word"))


def test_health_counts_what_went_wrong_and_names_the_clips() -> None:
    found = health(
        ("fine", "a b c", "a b c"),
        ("loop", "go", "go go go go go go"),
        ("silent", "a", ""),
        ("noise", "", "hello"),
        ("more", "b", "one two three"),
    )
    assert (found.loops, found.empty, found.invented) == (0.2, 0.2, 0.4)
    assert found.insertions == pytest.approx(8 / 6)
    assert found.loop_ids == ("loop",)
    assert found.invented_ids == ("loop", "more")
    assert (found.silent, found.silent_ids, found.silent_words) == (1, ("noise",), 1)
    assert [(finding.check, finding.clip_ids) for finding in found.findings()] == [
        ("decode.loops", ("loop",)),
        ("decode.invented_words", ("more",)),
        ("decode.words_on_silence", ("noise",)),
    ]
    assert "1 clips without words, 1 words written on them" in found.findings()[-1].message
    told = found.to_json()
    assert (told["clips"], told["silent_clips"], told["silent_clips_with_words"], told["silent_words"]) == (5, 1, 1, 1)


def test_nothing_wrong_gives_no_findings() -> None:
    assert health(("a", "one two", "one three"), ("b", "", "")).findings() == []


def test_texts_without_spaces_loop_by_their_characters() -> None:
    assert loops("ขอบ" * 10)
    assert not loops("ขอบ" * 9)
    assert not loops("ha" * 10)  # that is laughter
    assert not loops("ขอบ" * 12, "ขอบ" * 12)
    thanks = "ご視聴ありがとうございました"
    assert loops(thanks * 5)
    assert not loops(thanks * 4)
    assert cut_loops("では" + thanks * 6) == "では" + thanks


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("one two one two", "one two one two"),
        ("so go go go go go then", "so go then"),
        ("go go go go then", "go go go go then"),
        ("thank you " * 6 + "thank", "thank you"),
        ("well " + "thank you " * 6 + "all", "well thank you all"),
        ("x" + "ขอบ" * 12, "xขอบ"),
        ("a a a a a b b b b b", "a b"),
    ],
)
def test_loops_are_cut_to_one_occurrence(text: str, expected: str) -> None:
    assert cut_loops(text) == expected


GEORGIAN = (
    "საქართველო არის ქვეყანა კავკასიაში შავი ზღვის აღმოსავლეთ სანაპიროზე რომელსაც ესაზღვრება რუსეთი აზერბაიჯანი "
    "სომხეთი და თურქეთი ქვეყნის დედაქალაქი არის თბილისი სადაც მოსახლეობის დაახლოებით მესამედი ცხოვრობს ხოლო სხვა "
    "დიდი ქალაქებია ბათუმი ქუთაისი რუსთავი გორი ზუგდიდი და ფოთი"
)


def test_scripts_of_several_bytes_a_letter_are_no_loops() -> None:
    assert len(GEORGIAN.encode()) / len(zlib.compress(GEORGIAN.encode())) > 2.4  # the published ratio would say so
    assert compression_ratio(GEORGIAN) < 2.0
    assert compression_ratio(GEORGIAN[:30] * 10) > 2.4
    assert compression_ratio("".join(chr(0x4E00 + 7 * place) for place in range(400))) < 2.4  # more letters than bytes


def test_the_compression_ratio() -> None:
    assert compression_ratio("") == 0
    assert compression_ratio("the cat sat") < 1.2
    assert compression_ratio("thank you " * 20) > 2.4
    assert compression_ratio("\ud800") > 0  # half a surrogate pair


def test_counts_stand_beside_the_shares() -> None:
    told = decoding_health(
        ["a"], ["x"], ["go " * 9], edit_counts(["x"], ["go " * 9], unit="word"), fallbacks=1
    ).to_json()
    assert (told["loops"], told["loop_clips"], told["fallbacks"]) == (1.0, 1, 1)
