"""Normalisers keep their promises over all of Unicode."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.data.text import BASIC, ENGLISH, IDENTITY, Normalizer, get, says_something
from sonotune.errors import ConfigError

NORMALIZERS = (IDENTITY, BASIC, ENGLISH)
FORMS = [
    pytest.param(getattr(normalizer, form), id=f"{normalizer.name}.{form}")
    for normalizer in NORMALIZERS
    for form in ("training", "scoring")
]
SPECIAL = (
    "אבגשׁשָׁלוֹם־׳״مرحباًनमस्ते'’\".,-–!?&%1२½ßİŉ"
    "\u0345\u0301\u200b\u200c\u200d\u200e\u202e\u2067\ufeff\ufffd\0\x1f\x85\u2028 \u00a0\u3000😀👍🏽\ufe0f\u20e3"
)
TEXT = st.text(st.one_of(st.sampled_from(SPECIAL), st.characters()), max_size=25)


def is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_twice_is_once(form, text: str) -> None:
    assert form(form(text)) == form(text)


@pytest.mark.parametrize("form", FORMS)
def test_twice_is_once_for_every_character_of_the_first_plane(form) -> None:
    # A step of a prime reaches every block; surrogates are included on purpose.
    for code in range(0, 0x10000, 7):
        text = f"a{chr(code)}b 1{chr(code)}2"
        assert form(form(text)) == form(text), hex(code)


LETTERS = st.text(st.sampled_from("abאבגشسनम漢é"), min_size=1, max_size=4)
SEPARATOR = st.text(st.sampled_from(" \t\u00a0\u3000"), min_size=1, max_size=3)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=200, deadline=None)
@given(
    words=st.lists(LETTERS, min_size=1, max_size=6),
    separator=SEPARATOR,
    noise=st.sampled_from(["", ",", "\u200f", "!", "־"]),
)
def test_words_apart_stay_apart(form, words: list[str], separator: str, noise: str) -> None:
    text = (noise + separator).join(words)
    kept = [part for part in form(text).split() if any(character.isalpha() for character in part)]
    assert len(kept) == len(words)


@pytest.mark.parametrize("normalizer", [BASIC, ENGLISH], ids=lambda normalizer: normalizer.name)
@settings(max_examples=300, deadline=None)
@given(bases=st.lists(st.sampled_from("aeאבשनमن"), min_size=1, max_size=5), data=st.data())
def test_marks_stay_on_their_letters(normalizer: Normalizer, bases: list[str], data) -> None:
    marks = st.text(st.sampled_from("\u0301\u05b8\u05c1\u064b\u093e\u094d"), max_size=2)
    between = st.sampled_from(["", " ", "-", "־", "!\u0301", "\u200f", "\0"])
    text = "".join(base + data.draw(marks) + data.draw(between) for base in bases)
    for form in (normalizer.training, normalizer.scoring):
        result = form(text)
        decomposed = unicodedata.normalize("NFD", result)
        assert not any(is_mark(word[0]) for word in result.split())
        letters = [character for character in decomposed if character.isalpha() and not is_mark(character)]
        assert letters == bases


@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_training_only_removes_what_nobody_sees(text: str) -> None:
    def visible(value: str) -> list[str]:
        composed = unicodedata.normalize("NFD", value)
        return [
            c for c in composed if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zs", "Zl", "Zp") and c != "\ufffd"
        ]

    assert visible(BASIC.training(text)) == visible(text)


@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_scoring_takes_raw_and_training_text_alike(text: str) -> None:
    assert BASIC.scoring(BASIC.training(text)) == BASIC.scoring(text)
    assert ENGLISH.scoring(ENGLISH.training(text)) == ENGLISH.scoring(text)


@pytest.mark.parametrize(
    ("text", "training", "scoring"),
    [
        ("  Don’t   STOP! ", "Don’t STOP!", "don't stop"),
        ("well-known 'quoted' dogs'", "well-known 'quoted' dogs'", "well known quoted dogs"),
        ("3.5 and 1,000, or 5.", "3.5 and 1,000, or 5.", "3.5 and 1,000 or 5"),
        ("בית־ספר", "בית־ספר", "בית ספר"),
        ("שָׁלוֹם, עולם", "שָׁלוֹם, עולם", "שָׁלוֹם עולם"),
        ('צה"ל צה״ל "ציטוט"', 'צה"ל צה״ל "ציטוט"', "צה״ל צה״ל ציטוט"),
        ("ג׳ירפה ג'ירפה", "ג׳ירפה ג'ירפה", "ג'ירפה ג'ירפה"),
        ("\u200fשלום\u202c \u2067abc\u2069", "שלום abc", "שלום abc"),
        ("नमस्ते, दुनिया।", "नमस्ते, दुनिया।", "नमस्ते दुनिया"),
        ("مرحباً؟", "مرحباً؟", "مرحباً"),
        ("می\u200cخواهم", "می\u200cخواهم", "میخواهم"),
        ("a\0b\u200bc\ufeff\u00add", "abcd", "abcd"),
        ("caf\u0065\u0301 STRASSE Straße", "café STRASSE Straße", "café strasse strasse"),
        ("lost \ufffd letter\ud800", "lost \ufffd letter\ufffd", "lost \ufffd letter\ufffd"),
        ("ok 👍🏽 1\ufe0f\u20e3", "ok 👍🏽 1\ufe0f\u20e3", "ok 1\u20e3"),
        ("<|endoftext|>", "<|endoftext|>", "endoftext"),
        ("\u1fb3\u0323", "\u1fb3\u0323", "α\u0323ι"),  # the dot stays on the alpha: needs NFD before folding
        ("", "", ""),
        (" \u3000\n", "", ""),
    ],
)
def test_basic(text: str, training: str, scoring: str) -> None:
    assert BASIC.training(text) == unicodedata.normalize("NFC", training)
    assert BASIC.scoring(text) == unicodedata.normalize("NFC", scoring)


def test_english() -> None:
    assert ENGLISH.training("“It’s… fine”") == '"It\'s... fine"'
    assert ENGLISH.scoring("Um, it’s 50% R&D, hmm.") == "it's 50 percent r and d"
    assert ENGLISH.scoring("the umbrella") == "the umbrella"


def test_identity_changes_nothing() -> None:
    assert IDENTITY.scoring(" A\0\u200f ") == IDENTITY.training(" A\0\u200f ") == " A\0\u200f "


def test_names() -> None:
    assert [get(normalizer.name) for normalizer in NORMALIZERS] == list(NORMALIZERS)
    with pytest.raises(ConfigError, match="did you mean 'english'"):
        get("englsh")


@given(st.text(alphabet="aé١2 ,.?!'-\u0301ß", max_size=12))
def test_plain_sentences_take_a_shorter_way_to_the_same_form(text: str):
    """A dash beside a space separates nothing and is on no shorter way."""
    assert BASIC.scoring(text) == BASIC.scoring(f"{text} —")


# Unicode 15.1, DerivedCoreProperties.txt: Default_Ignorable_Code_Point; and the Braille pattern without dots.
UNSEEN = (
    *((0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F)),
    *((0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF)),
    *((0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF), (0x2800, 0x2800)),
)


def test_characters_that_are_not_seen_say_nothing():
    characters = [chr(code) for first, last in UNSEEN for code in range(first, last + 1)]
    assert not says_something("".join(characters))
    assert not says_something(BASIC.training(" ".join(characters)))
    for text in ("a\u3164", "\u1160\u0967", "+", "\u2801", "\u3131"):
        assert says_something(text)
