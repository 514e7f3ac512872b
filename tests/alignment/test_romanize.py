"""One romanisation of a word, however it is pointed, quoted or joined."""

from __future__ import annotations

import builtins
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.alignment import romanize as module
from sonotune.alignment.romanize import NO_LETTER, romanize, romanize_word
from sonotune.data.text import BASIC, get, profile_of
from sonotune.errors import MissingExtraError

pytest.importorskip("uroman")


@pytest.mark.parametrize(
    "forms",
    [
        ["שָׁלוֹם", "שלום", "שלום,", "\u202bשָׁלוֹם\u202c"],
        ["בֵּית־סֵפֶר", "בית־ספר", "בית-ספר", "בית ספר"],
        ['צה"ל', "צה״ל", "צה”ל", "צה''ל", "צַהַ״ל"],
        ["ג׳ירפה", "ג'ירפה", "ג’ירפה"],
    ],
)
@pytest.mark.parametrize("language", ["he", "iw", "he-IL", "Hebrew"])
def test_forms_of_a_hebrew_word_agree(forms: list[str], language: str) -> None:
    [only] = {romanize(form, language) for form in forms}
    assert re.fullmatch("[a-z' ]+", only)
    assert len(only) > 3


@pytest.mark.parametrize(
    ("text", "language", "romanized"),
    [
        ("שלום עולם", "he", "shlvm 'vlm"),
        ("مُحَمَّد", "ar", "mhmd"),
        ("नमस्ते दुनिया।", "hi", "namaste duniyaa"),
        ("Привет мир", "ru", "privet mir"),
        ("café Łódź Straße ø", "fr", "cafe lodz strasse oe"),
        ("cafe\u0301", None, "cafe"),
        ("uh, well-known Don’t!", "en", "uh well known don't"),
        ("我们 都是 人", "zh", "women doushi ren"),
        ("a 3 😀 — b", None, f"a {NO_LETTER} b"),
        ("", None, ""),
    ],
)
def test_letters(text: str, language: str | None, romanized: str) -> None:
    assert romanize(text, language) == romanized.replace("'vlm", romanize("עולם", "he"))


def test_the_name_of_a_language_is_its_code() -> None:
    assert romanize("щит", "bg") == romanize("щит", "bul") == romanize("щит", "Bulgarian") != romanize("щит", "ru")


TEXT = st.text(
    st.one_of(st.sampled_from("אבםשׁ\u05b8־״'\" مح١ नम漢カ abé1½-.\u0301\ufffd"), st.characters()), max_size=12
)


@settings(max_examples=100, deadline=None)
@given(text=TEXT, language=st.sampled_from(["he", "ar", "hi", "ru", None]))
def test_as_many_words_as_the_scoring_form_and_only_plain_letters(text: str, language: str | None) -> None:
    scoring = get(profile_of(language)).scoring
    expected = [word for token in text.split() for word in scoring(token).split()]
    written = romanize(text, language)
    assert len(written.split(" ") if written else []) == len(expected)
    assert re.fullmatch("[a-z' ]*", written)
    assert romanize(f" {text}\n", language) == written
    assert romanize(unicodedata.normalize("NFD", text), language) == romanize(
        unicodedata.normalize("NFC", text), language
    )


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("abcABC' .,!-"), max_size=15))
def test_plain_english_stays(text: str) -> None:
    assert romanize(text, "en") == BASIC.scoring(text)


def test_a_word_is_romanised_once() -> None:
    module._romanized.cache_clear()
    for _ in range(5):
        assert romanize_word("בית־ספר", "he") == romanize_word("בית־ספר", "he")
    assert module._romanized.cache_info().misses == 1
    assert len(romanize_word("בית־ספר", "he")) == 2
    assert romanize_word("—", "he") == ()
    assert romanize_word("42", None) == ("",)


def test_without_the_library_plain_letters_pass_and_others_name_what_installs_it(monkeypatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest, **named):
        if name == "uroman":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    module._romanized.cache_clear()
    module._library.cache_clear()
    try:
        assert romanize("plain Words", "en") == "plain words"
        with pytest.raises(MissingExtraError, match=re.escape("pip install 'sonotune[romanize]'")):
            romanize("שלום", "he")
    finally:
        module._library.cache_clear()
