r"""Transcript normalisers, each in two forms: what a model is taught to write, and what scores compare.

The *training* form repairs the encoding and keeps what a reader sees. The *scoring* form also drops case and
punctuation, so that a word error is a wrong word. Both keep these promises, tested over all of Unicode:

- applying a form twice changes nothing;
- two words are never fused: what separated them (a space, a hyphen, a maqaf) becomes a space, never nothing;
- a combining mark (niqqud, a Hindi vowel sign, an accent) stays on its letter and never starts a word;
- the logical order is kept, so right-to-left text needs nothing special.

Whisper's own normaliser does not: it turns marks into spaces and so shatters pointed Hebrew and Hindi ("ש לו ם";
openai/whisper#2849), and a pattern that deletes the maqaf fuses "בית־ספר" into one word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from sonotune import registry
from sonotune.errors import TextError


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalizer:
    """A pair of pure functions on transcripts.

    Attributes:
        name: Its name in the registry.
        training: Transcript -> what the model learns to write.
        scoring: Transcript or prediction -> what error rates compare. Takes raw text or the training form alike.
    """

    name: str
    training: Callable[[str], str]
    scoring: Callable[[str], str]


def get(name: str) -> Normalizer:
    """Find a normaliser by name.

    Raises:
        ConfigError: No such name; suggests a close one and lists all.
        TextError: A plug-in stands behind the name that is no `Normalizer`.
    """
    found = registry.resolve("normalizers", name)
    if not isinstance(found, Normalizer):
        raise TextError(
            f"the normaliser {name!r} cannot be used: found a {type(found).__name__}; allowed is a "
            "sonotune.data.text.Normalizer. Mend the package that declares it."
        )
    return found


# --- the parts -----------------------------------------------------------------------------------

# Invisible and never part of a word: bidi controls, zero-width space, word joiner, byte order mark, soft hyphen.
_INVISIBLE = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]")
# ZWJ and ZWNJ shape Persian, Indic scripts and emoji, so training keeps them; variation selectors and tags likewise.
_SHAPING = re.compile("[\u200c\u200d\ufe00-\ufe0f\U000e0000-\U000e01ef]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNKNOWN = "\ufffd"

_APOSTROPHES = frozenset("'’‘＇׳")
_GERSHAYIM = frozenset('"“”״')
_DIGIT_MARKS = frozenset(".,")


@cache
def _is_control(character: str) -> bool:
    return unicodedata.category(character) == "Cc" and not character.isspace()


@cache
def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"


@cache
def _is_word(character: str) -> bool:
    """Everything but punctuation, symbols and space. U+FFFD stands for a lost letter and must count as an error."""
    return character == _UNKNOWN or (unicodedata.category(character)[0] not in "PSZ" and not character.isspace())


def _repair(text: str) -> str:
    text = _INVISIBLE.sub("", _SURROGATE.sub(_UNKNOWN, text))
    if not text.isprintable():
        text = "".join(character for character in text if not _is_control(character))
    return " ".join(unicodedata.normalize("NFC", text).split())


def _fold_case(text: str) -> str:
    # Through NFD, because case folding of composed and decomposed letters differs (Unicode 3.13, D145).
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def _clusters(text: str) -> Iterator[str]:
    """Split into a character and its combining marks."""
    start = 0
    for index in range(1, len(text)):
        if not _is_mark(text[index]):
            yield text[start:index]
            start = index
    if text:
        yield text[start:]


def _is_hebrew(character: str) -> bool:
    return "\u05d0" <= character <= "\u05ea"


def _inner(cluster: str, before: str, after: str) -> str:
    """What a mark of punctuation between two clusters becomes: itself where it belongs to a word, else a space."""
    if _is_word(before[:1] or " ") and _is_word(after[:1] or " "):
        if cluster in _APOSTROPHES:
            return "'"
        if cluster in _GERSHAYIM and _is_hebrew(before[0]) and _is_hebrew(after[0]):
            return "״"  # the abbreviation צה"ל is one word
        if cluster in _DIGIT_MARKS and before.isdecimal() and after.isdecimal():
            return cluster
    return " "


def _strip_punctuation(text: str) -> str:
    # Most transcripts: letters and digits, commas before a space, a mark at the end. Twenty times as fast as the rest.
    plain = text.replace(", ", " ").rstrip(" .,?!")
    if plain.replace(" ", "").isalnum():
        return " ".join(plain.split())
    clusters = list(_clusters(text))
    padded = ["", *clusters, ""]
    kept = [
        cluster if _is_word(cluster[0]) else _inner(cluster, padded[index], padded[index + 2])
        for index, cluster in enumerate(clusters)
    ]
    return " ".join("".join(kept).split())


_UNSEEN = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters of Unicode's property Default_Ignorable_Code_Point (fillers of Hangul), and the Braille pattern without dots.
Everything else that is not seen is no letter, digit or symbol by its category."""


def says_something(text: str) -> bool:
    """Whether a transcript has more than spaces, punctuation, marks and characters that are not seen."""
    return any(unicodedata.category(character)[0] in "LNS" and character not in _UNSEEN for character in text)


# --- identity ------------------------------------------------------------------------------------


def _unchanged(text: str) -> str:
    return text


IDENTITY = Normalizer(name="identity", training=_unchanged, scoring=_unchanged)
"""The text as it stands, for sources that are clean and scores that count every comma."""


# --- basic ---------------------------------------------------------------------------------------


def _basic_training(text: str) -> str:
    """NFC; bidi controls, zero-width and control characters dropped; runs of space made one."""
    return _repair(text)


def _basic_scoring(text: str) -> str:
    """The training form without case and punctuation; apostrophes, gershayim and decimal marks inside words stay."""
    return _strip_punctuation(_fold_case(_SHAPING.sub("", _repair(text))))


BASIC = Normalizer(name="basic", training=_basic_training, scoring=_basic_scoring)
"""For any language in any script."""


# --- english -------------------------------------------------------------------------------------

_FILLERS = frozenset({"uh", "um", "uhm", "hm", "hmm", "mm", "mhm"})
_STRAIGHT = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "…": "..."})
_SPOKEN = {"&": " and ", "%": " percent "}


def _english_training(text: str) -> str:
    """As basic, with straight quotes and apostrophes."""
    return _repair(text).translate(_STRAIGHT)


def _english_scoring(text: str) -> str:
    """As basic, with `&` and `%` as words and without hesitations."""
    spoken = "".join(_SPOKEN.get(cluster, cluster) for cluster in _clusters(_repair(text)))
    return " ".join(word for word in _basic_scoring(spoken).split() if word not in _FILLERS)


ENGLISH = Normalizer(name="english", training=_english_training, scoring=_english_scoring)
"""For English: what speakers hesitate and how a typist writes quotes does not count."""
