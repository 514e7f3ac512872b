"""What normalisers are made of; each function keeps the promises of `sonotune.data.text`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache

# Invisible and never part of a word: bidi controls, zero-width space, word joiner, byte order mark, soft hyphen.
_INVISIBLE = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]")
# ZWJ and ZWNJ shape Persian, Indic scripts and emoji, so training keeps them; variation selectors and tags likewise.
SHAPING = re.compile("[\u200c\u200d\ufe00-\ufe0f\U000e0000-\U000e01ef]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNKNOWN = "\ufffd"

_APOSTROPHES = frozenset("'’‘＇׳")
_GERSHAYIM = frozenset('"“”״')
_DIGIT_MARKS = frozenset(".,")


@cache
def _is_control(character: str) -> bool:
    return unicodedata.category(character) == "Cc" and not character.isspace()


@cache
def is_mark(character: str) -> bool:
    """Whether it combines with the character before it."""
    return unicodedata.category(character)[0] == "M"


@cache
def is_word(character: str) -> bool:
    """Everything but punctuation, symbols and space. U+FFFD stands for a lost letter and must count as an error."""
    return character == _UNKNOWN or (unicodedata.category(character)[0] not in "PSZ" and not character.isspace())


def repair(text: str) -> str:
    """NFC; bidi controls, zero-width and control characters dropped; runs of space made one."""
    text = _INVISIBLE.sub("", _SURROGATE.sub(_UNKNOWN, text))
    if not text.isprintable():
        text = "".join(character for character in text if not _is_control(character))
    return " ".join(unicodedata.normalize("NFC", text).split())


def fold_case(text: str) -> str:
    """One case for all letters that have two, in NFC."""
    # Through NFD, because case folding of composed and decomposed letters differs (Unicode 3.13, D145).
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def clusters(text: str) -> Iterator[str]:
    """Split into a character and its combining marks."""
    start = 0
    for index in range(1, len(text)):
        if not is_mark(text[index]):
            yield text[start:index]
            start = index
    if text:
        yield text[start:]


def _is_hebrew(character: str) -> bool:
    return "\u05d0" <= character <= "\u05ea"


def _inner(cluster: str, before: str, after: str) -> str:
    """What a mark of punctuation between two clusters becomes: itself where it belongs to a word, else a space."""
    if is_word(before[:1] or " ") and is_word(after[:1] or " "):
        if cluster in _APOSTROPHES:
            return "'"
        if cluster in _GERSHAYIM and _is_hebrew(before[0]) and _is_hebrew(after[0]):
            return "״"  # the abbreviation צה"ל is one word
        if cluster in _DIGIT_MARKS and before.isdecimal() and after.isdecimal():
            return cluster
    return " "


def strip_punctuation(text: str) -> str:
    """Letters, digits and their marks, and what belongs to a word between two of them; all else becomes a space."""
    # Most transcripts: letters and digits, commas before a space, a mark at the end. Twenty times as fast as the rest.
    plain = text.replace(", ", " ").rstrip(" .,?!")
    if plain.replace(" ", "").isalnum():
        return " ".join(plain.split())
    found = list(clusters(text))
    padded = ["", *found, ""]
    kept = [
        cluster if is_word(cluster[0]) else _inner(cluster, padded[index], padded[index + 2])
        for index, cluster in enumerate(found)
    ]
    return " ".join("".join(kept).split())
