"""Decoders that ran away, told by their texts."""

from __future__ import annotations

import zlib

import pytest

from sonotune.metrics.error_rate import edit_counts
from sonotune.metrics.runaway import compression_ratio, cut_loops, decoding_health, longest_repetition, loops


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
    assert (found.loops, found.empty, found.invented) == (0.25, 0.25, 0.25)
    assert found.insertions == pytest.approx(6 / 5)
    assert found.loop_ids == ("loop",)
    assert found.invented_ids == ("loop",)
    assert (found.silent, found.silent_ids, found.silent_words) == (1, ("noise",), 1)
    assert [(finding.check, finding.clip_ids) for finding in found.findings()] == [
        ("decode.loops", ("loop",)),
        ("decode.invented_words", ("loop",)),
        ("decode.words_on_silence", ("noise",)),
    ]
    assert "1 clips without words, 1 words written on them" in found.findings()[-1].message
    told = found.to_json()
    assert (told["clips"], told["silent_clips"], told["silent_clips_with_words"], told["silent_words"]) == (4, 1, 1, 1)


def test_nothing_wrong_gives_no_findings() -> None:
    assert health(("a", "one two", "one three"), ("b", "", "")).findings() == []


def test_texts_without_spaces_loop_by_their_characters() -> None:
    assert loops("ขอบ" * 10)
    assert not loops("ขอบ" * 9)
    assert not loops("ha" * 10)  # that is laughter
    assert not loops("ขอบ" * 12, "ขอบ" * 12)


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
