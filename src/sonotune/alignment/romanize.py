"""One romanisation of words in any script, for models whose symbols are the letters a to z (MMS and its relatives).

Training and the audit of its data call the same function, so that a model is asked for the letters that it learned. A
text is normalised first, by the profile of its language: pointed and unpointed Hebrew, an abbreviation with gershayim
of any kind, and words joined by a maqaf or a hyphen are romanised alike. The letters are those of uroman (Hermjakob,
May and Knight 2018), each word by itself; the table is loaded once, and a word is romanised once.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any, Final

from sonotune.data.text import get, profile_of
from sonotune.errors import MissingExtraError
from sonotune.models.languages import find_code

INSTALL: Final = "pip install 'sonotune[romanize]'"
"""What installs the library."""
NO_LETTER: Final = "'"
"""Stands for a word that has no letters, such as a number in digits, so that the count of words stays."""

_NOT_WRITTEN: Final = re.compile("[^a-z']")
_PROFILES: Final = frozenset({"arabic", "persian", "hebrew", "hindi", "cjk"})
# Languages that uroman has rules for, which it knows by ISO 639-3.
_CODES: Final = MappingProxyType(
    {
        "ar": "ara",
        "be": "bel",
        "bg": "bul",
        "de": "deu",
        "el": "ell",
        "en": "eng",
        "fa": "fas",
        "kk": "kaz",
        "ky": "kir",
        "lt": "lit",
        "lv": "lav",
        "mk": "mkd",
        "ps": "pus",
        "ru": "rus",
        "sr": "srp",
        "tr": "tur",
        "ug": "uig",
        "uk": "ukr",
        "yi": "yid",
    }
)
_KNOWN: Final = MappingProxyType({**_CODES, **{code: code for code in _CODES.values()}})
_CACHED_WORDS: Final = 200_000


def romanize(text: str, language: str | None) -> str:
    """Words in the letters a to z and the apostrophe, one space between two.

    Args:
        text: A transcript in any script; write its numbers as words before (`sonotune.data.numbers`).
        language: A code or an English name; None takes no rules of a language.

    Returns:
        As many words as the scoring form of the language's normaliser has of the words of the text. One that has no
        letter is `NO_LETTER`.

    Raises:
        MissingExtraError: A word needs the library, which is not installed.
    """
    words = [word for token in text.split() for word in romanize_word(token, language)]
    return " ".join(word or NO_LETTER for word in words)


def romanize_word(token: str, language: str | None) -> tuple[str, ...]:
    """What stands between two spaces of a transcript -> its words; two for "בית־ספר", none for a dash.

    Args:
        token: Without spaces.
        language: See `romanize`.

    Returns:
        Letters a to z and apostrophes of each word; an empty text for a word that has none.

    Raises:
        MissingExtraError: See `romanize`.
    """
    return _romanized(token, (language or "").strip().lower())


@lru_cache(maxsize=_CACHED_WORDS)
def _romanized(token: str, language: str) -> tuple[str, ...]:
    scoring, code = _rules(language)
    return tuple(_letters(word, code) for word in scoring(token).split())


@cache
def _rules(language: str) -> tuple[Callable[[str], str], str | None]:
    """The normaliser's scoring form, and the code by which the library knows a language that it has rules for."""
    profile = profile_of(language)
    # English leaves hesitations out of scores, and an aligner must not.
    normalizer = get(profile if profile in _PROFILES else "basic")
    code = find_code(language, _KNOWN) if language else None
    return normalizer.scoring, None if code is None else _KNOWN[code]


def _letters(word: str, code: str | None) -> str:
    if not word.isascii():
        word = _library().romanize_string(word, lcode=code)
    # Marks that the library leaves are letters' marks; everything else that is no letter is dropped.
    return _NOT_WRITTEN.sub("", unicodedata.normalize("NFKD", word).lower()).strip("'")


@cache
def _library() -> Any:
    try:
        import uroman  # noqa: PLC0415  (optional)
    except ImportError as error:
        raise MissingExtraError(
            "romanising words of another script needs the package uroman, which is not installed. "
            f"Install it with {INSTALL}, or take a model whose symbols are of the script of the transcripts."
        ) from error
    return uroman.Uroman()
