"""Numbers in digits written as words, so that "3" and "three" are one word to a score that asks for it.

Whisper writes "3" where a reference says "three", and the other way round. The same function is applied to references
and hypotheses, before the scoring form of a normaliser. It is careful: what it does not understand stays as it is.

| written | read |
| --- | --- |
| `3`, `314`, `٣`, `३` | as a cardinal number, in any decimal digits of Unicode |
| `1,000`, `20 000`, `1.000` | as one number where the groups have three digits and the mark is the language's own |
| `3.5`, `3,5` | with the decimal mark of the language, unless three digits follow it, which could as well be a group |
| `19th` | as an ordinal number, in English |
| `1984` | as a year in languages that count the hundreds of a year: English, German, Dutch, Danish, Norwegian |
| `007`, `5551234` | digit by digit: a leading zero, or seven digits and more without groups |
| `mp3`, `1e9`, `1.2.2020`, `²`, `½`, more than 40 digits | not at all |

`3 1 4` is read digit by digit and `314` as three hundred and fourteen. In a corpus of digit strings a transcript that
writes them together is therefore still counted as wrong. The words are those of `num2words`, an optional package.
It knows the feminine forms of Hebrew only, which are those of counting. With `hebrew-num2words`, a young package of its
own extra, a Hebrew number agrees with the noun behind it ("3 ילדים" שלושה, "3 בנות" שלוש, "2 ספרים" שני) and takes a
prefix ("ב-15"); times, dates and telephone numbers are read as above with either.
"""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections.abc import Collection
from decimal import Decimal
from functools import lru_cache
from importlib import metadata
from typing import Any, Final

_LIBRARY: Final = "num2words"
INSTALL: Final = "pip install 'sonotune[numbers]'"
"""What installs the library."""
_DIGIT: Final = re.compile(r"\d")  # of any script
_HEBREW_LIBRARY: Final = "hebrew_num2words"
INSTALL_HEBREW: Final = "pip install 'sonotune[hebrew]'"
"""What installs the one by which Hebrew numbers agree with their nouns, and the first with it."""

_LIBRARY_CODES: Final = {"kk": "kz"}  # ISO 639-1 -> the library's own
LANGUAGES: Final = frozenset(
    {
        "ar",
        "az",
        "be",
        "bn",
        "ca",
        "cs",
        "cy",
        "da",
        "de",
        "en",
        "eo",
        "es",
        "fa",
        "fi",
        "fr",
        "he",
        "hu",
        "id",
        "is",
        "it",
        "ja",
        "kk",
        "kn",
        "ko",
        "lt",
        "lv",
        "nl",
        "no",
        "pl",
        "pt",
        "ro",
        "ru",
        "sk",
        "sl",
        "sr",
        "sv",
        "te",
        "tg",
        "th",
        "tr",
        "uk",
        "vi",
    }
)
"""Codes of the languages whose numbers can be written as words."""

_POINT: Final = frozenset({"ar", "bn", "cy", "en", "fa", "he", "ja", "kn", "ko", "te", "th"})
"""Languages with a decimal point and groups set off by commas; the others have it the other way round."""
_SPACED: Final = LANGUAGES - _POINT - {"da", "de", "eo", "id", "tg", "tr", "vi"}
"""Languages that set groups of digits off by spaces, whatever the digits are; elsewhere only `000` is such a group."""
_DIGITS_BEHIND_THE_MARK: Final = frozenset(
    {"ca", "da", "de", "en", "es", "fi", "fr", "he", "is", "nl", "no", "pt", "sv"}
)
"""Languages in which the library reads decimals digit by digit, as people do."""
_YEARS: Final = {"en": 2099, "da": 1999, "de": 1999, "nl": 1999, "no": 1999}
"""Language -> the last year that it reads in hundreds; the first is 1100."""

_MOST_CARDINAL, _MOST_UNGROUPED, _MOST_DIGITS = 15, 6, 40
_MOST_HEBREW: Final = 20_000
"""Characters of a text whose Hebrew numbers are made to agree."""
_MARKS: Final = str.maketrans({"٫": ".", "٬": ","})  # the Arabic decimal and group marks
# Possessive, so that "1.5x" is not read as "1" and the rest.
_NUMBER: Final = re.compile(r"(?<!\w)(?<!\d[.,])(\d++(?:[.,]\d++)*+)(st|nd|rd|th)?+(?!\w)", re.IGNORECASE)
_SPACE: Final = "[ \u00a0\u2009\u202f]"
_GROUPED_BY_SPACE: Final = re.compile(
    rf"(?<!\w)(?<!\d[.,])(?<!\d{_SPACE})[1-9]\d{{0,2}}(?:{_SPACE}\d{{3}})++(?!\w)(?!{_SPACE}\d)(?![.,]\d)"
)
_FAILURES: Final = (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
"""What converters of the library raise for numbers that they cannot say."""


def installed() -> bool:
    """Whether the library is there."""
    return importlib.util.find_spec(_LIBRARY) is not None


def sources(languages: Collection[str]) -> str:
    """Packages and versions whose words texts in these languages get: `num2words 0.5.14`."""
    used = [_LIBRARY, *([_HEBREW_LIBRARY] if "he" in languages and _agrees() else [])]
    return ", ".join(f"{name.replace('_', '-')} {metadata.version(name)}" for name in used)


def _agrees() -> bool:
    """Whether Hebrew numbers agree with their nouns."""
    return importlib.util.find_spec(_HEBREW_LIBRARY) is not None


def has_digits(text: str) -> bool:
    """Whether a text has a decimal digit of any script."""
    return _DIGIT.search(text) is not None


def verbalize_numbers(text: str, language: str) -> str:
    """The text with its numbers as words; unchanged where it has no digits or the language is not known.

    Args:
        text: As it was written or recognised, not yet in scoring form.
        language: One of `LANGUAGES`.
    """
    if language not in LANGUAGES or not has_digits(text):
        return text
    text = _ascii_digits(text)

    def of_groups(match: re.Match[str]) -> str:
        groups = re.split(_SPACE, match[0])
        if language not in _SPACED and groups[-1] != "000":
            return match[0]
        return _say("".join(groups), language) or match[0]

    def of_number(match: re.Match[str]) -> str:
        if unicodedata.category(text[match.end() : match.end() + 1] or " ")[0] == "M":
            return match[0]  # a digit in a circle or on a key
        return _read(match[1], (match[2] or "").lower(), language) or match[0]

    if language == "he" and _agrees():
        text = _say_in_hebrew(text)
    text = _GROUPED_BY_SPACE.sub(of_groups, text)
    return _NUMBER.sub(of_number, text)


# Prefixes with or without a hyphen, a cardinal number or a decimal one, a per cent sign, and punctuation around.
_HEBREW_NUMBER: Final = re.compile(
    r"""["'(]*[משהוכלב]{0,3}[-־]?(?:0|[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,5})(?:(?<!\d{4})\.\d{1,2})?%?[.,!?;:)"']*"""
)
_SET_ASIDE: Final = "\ue000"


def _say_in_hebrew(text: str) -> str:
    """Numbers that stand by themselves in words that agree with the noun behind them; the rest of the text as it is."""
    if _SET_ASIDE in text or len(text) > _MOST_HEBREW:
        return text
    tokens = re.split(r"(\s+)", text)
    digits = {place for place in range(0, len(tokens), 2) if has_digits(tokens[place])}
    first = {place for place in digits if tokens[place][0].isdecimal()}
    # Numbers side by side are digits that are read one by one, or groups.
    aside = sorted(
        place
        for place in digits
        if not _HEBREW_NUMBER.fullmatch(tokens[place]) or place + 2 in first or (place in first and place - 2 in digits)
    )
    if len(aside) == len(digits):
        return text
    kept = [_SET_ASIDE if place in aside else token for place, token in enumerate(tokens)]
    import hebrew_num2words  # noqa: PLC0415  (optional)

    try:
        said = str(hebrew_num2words.normalize_numbers("".join(kept)))
    except _FAILURES:
        return text
    if said.count(_SET_ASIDE) != len(aside) or has_digits(said):
        return text
    parts = said.split(_SET_ASIDE)
    return "".join(part + token for part, token in zip(parts, [*(tokens[place] for place in aside), ""], strict=True))


def _ascii_digits(text: str) -> str:
    """Decimal digits of every script as 0 to 9, and the marks between Arabic ones; superscripts are no such digits."""
    plain = "".join(
        character if character.isascii() or not character.isdecimal() else str(unicodedata.decimal(character))
        for character in text
    )
    return re.sub(r"(?<=\d)[٫٬](?=\d)", lambda mark: mark[0].translate(_MARKS), plain)


@lru_cache(maxsize=10_000)
def _read(number: str, suffix: str, language: str) -> str | None:
    """Words of a number without spaces; None leaves it as it is."""
    if len(number) > _MOST_DIGITS:
        return None
    if suffix:
        value = number if number.isdecimal() else _without_groups(number, ",")
        if language != "en" or value is None or suffix != _english_suffix(value):
            return None
        return _say(value, language, to="ordinal")
    if number.isdecimal():
        if len(number) > _MOST_UNGROUPED or (number[0] == "0" and len(number) > 1):
            return _digit_by_digit(number, language)
        is_year = len(number) == 4 and 1100 <= int(number) <= _YEARS.get(language, 0)
        return _say(number, language, to="year" if is_year else "cardinal")
    decimal, group = (".", ",") if language in _POINT else (",", ".")
    whole, mark, fraction = number.rpartition(decimal)
    if not mark:
        value = _without_groups(number, group)
        return None if value is None else _say(value, language)
    value = whole if whole.isdecimal() else _without_groups(whole, group)
    if value is None or not fraction.isdecimal() or language not in _DIGITS_BEHIND_THE_MARK:
        return None
    if len(fraction) == 3 and value != "0":  # "1,000" in a French text is as likely one thousand as one
        return None
    return _say(f"{value}.{fraction}", language)


def _without_groups(number: str, mark: str) -> str | None:
    """`1,000` -> `1000`; None where it is not in groups of three digits."""
    return number.replace(mark, "") if re.fullmatch(rf"[1-9]\d{{0,2}}(?:{re.escape(mark)}\d{{3}})+", number) else None


def _english_suffix(number: str) -> str:
    if number[-2:] in ("11", "12", "13"):
        return "th"
    return {"1": "st", "2": "nd", "3": "rd"}.get(number[-1], "th")


def _digit_by_digit(number: str, language: str) -> str | None:
    words = [_say(digit, language) for digit in number]
    return None if None in words else " ".join(word for word in words if word)


def _say(number: str, language: str, *, to: str = "cardinal") -> str | None:
    """What the library says of an ASCII number with a decimal point, if any; None where it cannot say it."""
    whole = number.partition(".")[0]
    if len(whole) > _MOST_CARDINAL:
        return _digit_by_digit(whole, language) if whole == number else None
    value: Any = Decimal(number) if "." in number else int(number)
    try:
        said = _convert()(value, lang=_LIBRARY_CODES.get(language, language), to=to)
    except _FAILURES:
        return None
    # English sets thousands off by commas, which scores that count commas would count.
    return " ".join(said.replace(",", " ").split()) if isinstance(said, str) and said.strip() else None


def _convert() -> Any:
    import num2words  # noqa: PLC0415  (optional)

    return num2words.num2words
