"""Numbers as words: what is read and how, what is left alone, and that nothing can make it fail."""

from __future__ import annotations

from importlib import metadata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonotune.data import numbers, text
from sonotune.data.numbers import LANGUAGES, has_digits, verbalize_numbers

ALL = sorted(LANGUAGES)
HOSTILE = (
    "9" * 10_000,
    "1," * 5_000 + "1",
    "1e999",
    "-1e-999",
    "٣",
    "²",
    "½",
    "3️⃣",
    "🕒 3",
    "0" * 39,
    "1" * 41,
    "١٬٠٠٠٫٥",
    "1 " * 2_000,
    "1 000 " * 500,
    "\u202b20 000\u202c",
    "٣5३",
    "NaN",
    "inf",
    "1_000",
    "0x1F",
    "1.",
    ".5",
    "1,,000",
    "\ud83d3",
    "७,०००",
    "𝟛",
    "①",
    "Ⅷ",
    "3\u0301",
)


@pytest.mark.parametrize(
    ("written", "language", "said"),
    [
        ("I have 3 cats.", "en", "I have three cats."),
        ("20 000 people, 1,000 dogs", "en", "twenty thousand people, one thousand dogs"),
        (
            "1,234,567.89",
            "en",
            "one million two hundred and thirty-four thousand five hundred and sixty-seven point eight nine",
        ),
        ("3.5", "en", "three point five"),
        ("3,5", "fr", "trois virgule cinq"),
        ("1.000", "de", "eintausend"),
        ("1 234 euros", "fr", "mille deux cent trente-quatre euros"),
        ("the 1st, 19th and 22nd", "en", "the first, nineteenth and twenty-second"),
        ("in 1984", "en", "in nineteen eighty-four"),
        ("in 1984", "fr", "in mille neuf cent quatre-vingt-quatre"),
        ("1,984", "en", "one thousand nine hundred and eighty-four"),
        ("007", "en", "zero zero seven"),
        ("5551234", "en", "five five five one two three four"),
        ("3 1 4", "en", "three one four"),
        ("314", "en", "three hundred and fourteen"),
        ("٣", "ar", "ثلاثة"),
        ("٣٫٥", "en", "three point five"),
        ("१२", "en", "twelve"),
        ("3", "he", "שלוש"),
        ("5", "kk", "бес"),
        ("$5, covid-19, 10:30", "en", "$five, covid-nineteen, ten:thirty"),
    ],
)
def test_a_number_is_read_as_people_read_it(written: str, language: str, said: str):
    assert verbalize_numbers(written, language) == said


@pytest.mark.parametrize(
    ("written", "language"),
    [
        ("mp3", "en"),
        ("1e9", "en"),
        ("1.5x", "en"),
        ("v1.2", "en"),
        ("20kg", "en"),
        ("22th", "en"),
        ("19th", "de"),
        ("1.2.2020", "en"),
        ("1,00", "en"),
        ("3,5", "en"),
        ("1,000", "fr"),
        ("1.000", "en"),
        ("m²", "en"),
        ("½", "en"),
        ("3.5", "it"),
        ("1" * 41, "en"),
        ("3", "sw"),
        ("3", "br"),
        ("3", ""),
    ],
)
def test_what_is_not_surely_a_number_stays(written: str, language: str):
    assert verbalize_numbers(written, language) == written


@pytest.mark.parametrize("language", ALL)
def test_every_language_says_what_people_count(language: str):
    for number in (*range(13), 21, 99, 100, 365, 1000, 1984, 12_345, 999_999):
        said = verbalize_numbers(str(number), language)
        assert said
        assert not has_digits(said), (number, said)


@pytest.mark.parametrize("language", ALL)
def test_nothing_makes_it_fail(language: str):
    for hostile in HOSTILE:
        verbalize_numbers(hostile, language)


@given(st.text(st.characters(exclude_categories=["Nd"])), st.sampled_from(ALL))
def test_text_without_digits_is_unchanged(written: str, language: str):
    assert verbalize_numbers(written, language) == written


@given(st.text(st.sampled_from("0123456789.,  -٣५²½stndrdthxe\u00a0ב🙂\u0301")), st.sampled_from(ALL))
def test_doing_it_twice_changes_nothing_once_scored(written: str, language: str):
    once = verbalize_numbers(written, language)
    assert verbalize_numbers(once, language) == once or has_digits(once)
    if not has_digits(once):
        scored = text.get("basic").scoring(once)
        assert verbalize_numbers(scored, language) == scored


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("יש לי 3 ילדים ו-3 בנות.", "יש לי שלושה ילדים ושלוש בנות."),
        ("2 ספרים, 2 מכוניות", "שני ספרים, שתי מכוניות"),
        ("ב-15 במרץ", "בחמישה עשר במרץ"),
        ("1250 שקלים", "אלף מאתיים וחמישים שקלים"),
        ("1,000,000 איש", "מיליון איש"),
        ("mp3 ו-5 שירים", "mp3 וחמישה שירים"),
        ("1.2.2020 היו 3 ימים", "1.2.2020 היו שלושה ימים"),
        ("3 1 4", "שלוש אחת ארבע"),
        ("10:30", "עשר:שלושים"),
        ("5551234", "חמש חמש חמש אחת שתיים שלוש ארבע"),
    ],
)
def test_hebrew_numbers_agree_with_their_nouns(written: str, said: str):
    pytest.importorskip("hebrew_num2words")
    assert verbalize_numbers(written, "he") == said


@given(st.text(st.sampled_from("12035 ,.-%אבהלו־םx:\ue000"), max_size=20))
def test_what_is_said_in_hebrew_leaves_words_as_they_are(written: str):
    kept = [word for word in written.split() if not has_digits(word)]
    said = iter(verbalize_numbers(written, "he").split())
    assert all(word in said for word in kept)


def test_the_packages_are_named():
    assert numbers.sources(["en"]) == f"num2words {metadata.version('num2words')}"
    pytest.importorskip("hebrew_num2words")
    assert numbers.sources(["en", "he"]).endswith(f", hebrew-num2words {metadata.version('hebrew-num2words')}")
