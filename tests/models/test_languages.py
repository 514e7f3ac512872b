"""Languages as people write them."""

from __future__ import annotations

import pytest

from sonotune.models.languages import find_code, language_name, misspelt, named, nearest, some_codes, whisper_names

KNOWN = ("en", "he", "id", "yi", "zh", "yue", "jw", "no", "ro", "tl")


@pytest.mark.parametrize(
    ("given", "code", "name"),
    [
        ("he", "he", "Hebrew"),
        ("he-IL", "he", "Hebrew"),
        ("he_IL", "he", "Hebrew"),
        (" HE_il ", "he", "Hebrew"),
        ("he_IL.UTF-8", "he", "Hebrew"),
        ("iw", "he", "Hebrew"),
        ("iw-IL", "he", "Hebrew"),
        ("in", "id", "Indonesian"),
        ("ji", "yi", "Yiddish"),
        ("Hebrew", "he", "Hebrew"),
        ("ENGLISH", "en", "English"),
        ("en-GB", "en", "English"),
        ("zh-Hans-CN", "zh", "Chinese"),
        ("cmn", "zh", "Chinese"),
        ("zh-yue", "yue", "Cantonese"),
        ("Mandarin", "zh", "Chinese"),
        ("jv", "jw", "Javanese"),
        ("nb-NO", "no", "Norwegian"),
        ("mo", "ro", "Romanian"),
        ("fil", "tl", "Tagalog"),
        ("xx", None, None),
        ("xx_YY", None, None),
        ("Englsh", None, None),
        ("", None, None),
    ],
)
def test_one_language_has_one_code_and_one_name(given: str, code: str | None, name: str | None):
    assert find_code(given, KNOWN) == code
    assert language_name(given) == name


def test_a_code_that_is_not_among_the_known_is_none():
    assert find_code("he", ("en",)) is None
    assert find_code("he", ("iw",)) == "iw"


def test_names_that_a_model_was_trained_with_go_first():
    trained = {"fil": "Filipino", "tlh": "Klingon"}
    assert language_name("tl", trained=trained) == "Filipino"
    assert language_name("Tagalog", trained=trained) == "Filipino"
    assert language_name("klingon", trained=trained) == "Klingon"
    assert language_name("he_IL", trained=trained) == "Hebrew"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("hebrw", "; did you mean he (Hebrew)?"),
        ("heb", "; did you mean he (Hebrew)?"),
        ("Swahilli", "; did you mean sw (Swahili)?"),
        ("klingon", ""),
        ("xx", ""),
    ],
)
def test_the_nearest_names_are_offered(given: str, meant: str):
    assert nearest(given, whisper_names()) == meant


def test_only_languages_that_there_are_are_offered():
    assert nearest("hebrw", named(("en", "de"))) == ""
    assert nearest("hebrw", named(("en", "iw"))) == "; did you mean iw (Hebrew)?"


@pytest.mark.parametrize("name", ["hebrw", "Arabik", "portugese"])
def test_a_known_name_with_a_wrong_letter_is_misspelt(name: str):
    assert "did you mean" in misspelt(name)


@pytest.mark.parametrize("name", ["Hebrew", "he", "ladino", "Guarani", "Romansh", "brezhoneg", "heb"])
def test_names_of_other_languages_are_not(name: str):
    assert misspelt(name) == ""


def test_of_many_codes_the_first_are_named_and_the_rest_counted():
    assert some_codes({"he", "en"}) == "en, he"
    told = some_codes([f"a{number:02}" for number in range(99)])
    assert told == "a00, a01, a02, a03, a04 and 94 more"
