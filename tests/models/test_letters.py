"""Vocabularies of one case, and texts of the other."""

from __future__ import annotations

import string

import pytest

from sonotune.models.letters import Letters

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "|"]
GERMAN_UPPER = [*string.ascii_uppercase, *"ÄÖÜß"]
TURKISH_LOWER = "abcçdefgğhıijklmnoöprsştuüvyz"
TURKISH_UPPER = "ABCÇDEFGĞHIİJKLMNOÖPRSŞTUÜVYZ"
GREEK_LOWER = "αβγδεζηθικλμνξοπρσςτυφχψω"


@pytest.mark.parametrize(
    ("symbols", "case"),
    [
        (string.ascii_uppercase + "'", "upper"),
        (string.ascii_lowercase + "'", "lower"),
        (GERMAN_UPPER, "upper"),
        (string.ascii_lowercase + "äöüß", "lower"),
        (TURKISH_UPPER, "upper"),
        (TURKISH_LOWER, "lower"),
        (GREEK_LOWER, "lower"),
        ("אבגד", None),
        ("Aab", None),
        ("ß", "lower"),
        ("", None),
    ],
)
def test_the_case_of_a_vocabulary_is_that_of_its_letters(symbols: str, case: str | None):
    assert Letters.of([*SPECIAL, *symbols]).case == case


@pytest.mark.parametrize(
    ("symbols", "text", "written", "read"),
    [
        (string.ascii_uppercase, "It's Ten", "IT'S TEN", "it's ten"),
        (string.ascii_lowercase, "IT'S Ten", "it's ten", "it's ten"),
        (GERMAN_UPPER, "straße", "STRAßE", "straße"),
        (string.ascii_uppercase, "straße", "STRASSE", "strasse"),
        (TURKISH_UPPER, "ılık İnsan", "ILIK İNSAN", "ılık insan"),
        (TURKISH_LOWER, "ILIK İNSAN", "ılık insan", "ılık insan"),
        (GREEK_LOWER, "ΟΔΟΣ", "οδος", "οδος"),
        ("Aab", "Aa B", "Aa B", "Aa B"),
        ("אבגד", "אבג A", "אבג A", "אבג A"),
    ],
)
def test_texts_are_written_in_the_vocabularys_case_and_read_in_lower_case(
    symbols: str, text: str, written: str, read: str
):
    letters = Letters.of([*SPECIAL, *symbols])
    assert letters.write(text) == written
    assert letters.write(written) == written
    assert letters.read(written) == read
    assert letters.write(read) == written
