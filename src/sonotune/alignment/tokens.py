"""Transcripts as tokens of a CTC vocabulary, each with the word that it belongs to.

A transcript is aligned as it is *spoken*. Numbers and symbols are written as words first, where the language is known;
then comes the normaliser, then the case of the vocabulary. What the vocabulary still lacks becomes, in this order: the
letter without its accent or points; its romanisation, where the vocabulary is Latin; a `WILDCARD`. Every word that
says something therefore has a token and gets a time. A word of punctuation alone has none.

The words are those of the transcript as the manifest writes it, between spaces. A word may be spoken as several
("21", "well-known"), and several words as one number ("20 000").
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sonotune.alignment.viterbi import WILDCARD
from sonotune.data import numbers
from sonotune.data.text import BASIC, Normalizer, says_something
from sonotune.errors import MissingExtraError
from sonotune.models.base import LoadedModel

logger = logging.getLogger(__name__)

Romanize = Callable[[str, str | None], str]
"""Text and ISO 639-1 code of its language -> the text in Latin letters."""

BORDER: Final = -1
"""Word of a token that stands between words."""

_SPOKEN_SYMBOLS: Final = {
    "en": {
        "%": "percent",
        "&": "and",
        "+": "plus",
        "=": "equals",
        "@": "at",
        "°": "degrees",
        "$": "dollars",
        "€": "euros",
        "£": "pounds",
    }
}
"""Language -> symbol -> what is said; num2words says numbers only."""
_SYMBOLS: Final = re.compile(r"([%&+=@°×÷§$€£¥₪₹₽])")
_MONEY_BEFORE_NUMBER: Final = re.compile(r"([$€£¥₪₹₽])(\d[\d.,]*\d|\d)")
_GROUP: Final = re.compile(r"\d{1,3}")
_PIECE_MARKS: Final = "▁Ġ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """A transcript in a vocabulary.

    Attributes:
        ids: Symbols (U,) int64, `WILDCARD` where the vocabulary has none.
        token_words: Index into `words` of each token (U,) int64, rising; `BORDER` for a symbol between words.
        words: The words of the transcript as the manifest writes them.
        unknown_share: Share of the characters that became wildcards.
    """

    ids: NDArray[np.int64]
    token_words: NDArray[np.int64]
    words: tuple[str, ...]
    unknown_share: float

    def spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First token of each word, and the token after its last (W,) each; equal for a word that says nothing."""
        inside_U = np.flatnonzero(self.token_words != BORDER)
        owners, indices = self.token_words[inside_U], np.arange(len(self.words))
        places = np.append(inside_U, len(self.token_words))
        first_W = places[np.searchsorted(owners, indices, side="left")]
        counts_W = np.searchsorted(owners, indices, side="right") - np.searchsorted(owners, indices, side="left")
        return first_W, first_W + counts_W

    def between_words(self) -> NDArray[np.bool_]:
        """Which gaps lie before the first word, between two words, or after the last (U + 1,)."""
        padded = np.concatenate([[BORDER], self.token_words, [BORDER]])
        between: NDArray[np.bool_] = (padded[1:] != padded[:-1]) | (padded[1:] == BORDER)
        return between


class Spelling:
    """Writes transcripts with the symbols of one CTC model.

    Args:
        loaded: A model of the family `ctc`.
        normalizer: Of the transcripts. The training form is taken of a word where the vocabulary has all of it, else
            the scoring form.
        romanize: For letters of other scripts, where the vocabulary is Latin.
    """

    def __init__(self, loaded: LoadedModel, normalizer: Normalizer, romanize: Romanize | None = None) -> None:
        tokenizer = loaded.processor.tokenizer
        family: Any = loaded.family
        self._write: Callable[[str], str] = family.written_form(loaded)
        self._normalizer = normalizer
        self._tokenizer = tokenizer
        marks = (getattr(tokenizer, "word_delimiter_token", None) or "|", "▁", " ")
        everything: dict[str, int] = tokenizer.get_vocab()
        self._border = next((everything[mark] for mark in marks if mark in everything), None)
        special = frozenset(tokenizer.all_special_tokens)
        vocabulary = {token: index for token, index in everything.items() if token not in special}
        self._characters = {
            token: index for token, index in vocabulary.items() if len(token) == 1 and token not in marks
        }
        self._pieces = any(len(token.strip(_PIECE_MARKS)) > 1 for token in vocabulary)
        if self._pieces:
            self._known = frozenset(one for token in vocabulary for one in token if one not in _PIECE_MARKS)
        else:
            self._known = frozenset(self._characters)
        self._romanize = romanize if romanize is not None and _is_latin(self._known) else None

    def encode(self, text: str, language: str | None) -> Tokens:
        """Write a transcript.

        Args:
            text: As it stands in the manifest.
            language: ISO 639-1 code; numbers are verbalised where the library knows it, symbols in English.
        """
        words = tuple(text.split())
        ids: list[int] = []
        owners: list[int] = []
        characters = unknown = 0
        for index, spoken in enumerate(_spoken(words, language)):
            for part in self._parts(spoken, language):
                written = self._ids(part)
                if ids and self._border is not None and not self._pieces:
                    ids.append(self._border)
                    owners.append(index if owners[-1] == index else BORDER)
                ids += written
                owners += [index] * len(written)
                characters += len(written)
                unknown += written.count(WILDCARD)
        return Tokens(
            ids=np.asarray(ids, dtype=np.int64),
            token_words=np.asarray(owners, dtype=np.int64),
            words=words,
            unknown_share=unknown / characters if characters else 0.0,
        )

    def _parts(self, spoken: str, language: str | None) -> list[str]:
        """What is said of one word of the manifest, in the letters of the vocabulary; NUL is a wildcard."""
        parts: list[str] = []
        for piece in _SYMBOLS.split(spoken):
            if _SYMBOLS.fullmatch(piece):
                said = _SPOKEN_SYMBOLS.get(language or "", {}).get(piece)
                parts += ["\0"] if said is None else self._letters(said, language).split()
            elif piece.strip():
                parts += self._letters(piece, language).split()
        return parts

    def _letters(self, text: str, language: str | None) -> str:
        own = self._write(self._normalizer.training(text))
        if self._has(own):
            return own
        said = self._normalizer.scoring(text) or (BASIC.scoring(text) if says_something(text) else "")
        written = self._fitted(self._write(said))
        if "\0" in written and self._romanize is not None:
            try:
                latin = self._romanize(text, language)
            except MissingExtraError as error:
                logger.warning("characters that the vocabulary lacks are aligned as wildcards: %s", error)
                self._romanize = None
                return written
            written = self._fitted(self._write(latin))
        return written

    def _has(self, text: str) -> bool:
        return all(one in self._known for one in text if not one.isspace())

    def _fitted(self, text: str) -> str:
        """The text with a wildcard for each character that the vocabulary has neither with nor without its marks."""
        out: list[str] = []
        for one in text:
            if one.isspace() or one in self._known:
                out.append(one)
                continue
            base = "".join(part for part in unicodedata.normalize("NFD", one) if unicodedata.category(part)[0] != "M")
            if all(part in self._known for part in base):
                out.append(base)  # nothing is left of a mark alone: it is heard in its letter
            elif base:
                out.append("\0")
        return "".join(out)

    def _ids(self, part: str) -> list[int]:
        if not self._pieces:
            return [WILDCARD if one == "\0" else self._characters[one] for one in part]
        ids: list[int] = []
        for known in re.split("(\0)", part):
            if known == "\0":
                ids.append(WILDCARD)
            elif known:
                found: Sequence[int] = self._tokenizer(known, add_special_tokens=False).input_ids
                ids += [WILDCARD if one == self._tokenizer.unk_token_id else int(one) for one in found]
        return ids


def _spoken(words: Sequence[str], language: str | None) -> Iterable[str]:
    """What is said of each word: numbers as words, where the language and the library are known."""
    said = [_MONEY_BEFORE_NUMBER.sub(r"\2\1", word) for word in words]
    if language not in numbers.LANGUAGES or not numbers.installed():
        return said
    return _said_in_groups([_around_symbols(word, language) for word in said], said, language)


def _around_symbols(word: str, language: str) -> str:
    """Verbalise the parts of a word that its symbols set apart: `50%` is a number and a symbol."""
    return "".join(
        piece if _SYMBOLS.fullmatch(piece) else f" {numbers.verbalize_numbers(piece, language)} "
        for piece in _SYMBOLS.split(word)
        if piece
    ).strip()


def _said_in_groups(said: list[str], words: Sequence[str], language: str) -> list[str]:
    """Read groups of digits that spaces set apart as the one number that they are: `20 000`.

    The words of the number are shared out among the groups.
    """
    start = 0
    while start < len(words):
        stop = start + 1
        if words[start].isdecimal() and _GROUP.fullmatch(words[start]):
            while stop < len(words) and re.match(r"\d{3}(?!\w)", words[stop]):
                stop += 1
        if stop - start > 1:
            apart = " ".join(words[start:stop])
            together = numbers.verbalize_numbers(apart, language)
            one_by_one = " ".join(numbers.verbalize_numbers(word, language) for word in words[start:stop])
            if together != one_by_one:
                shared = np.array_split(together.split(), stop - start)
                said[start:stop] = [" ".join(part.tolist()) for part in shared]
        start = stop
    return said


def _is_latin(known: frozenset[str]) -> bool:
    """Whether all letters of a vocabulary are Latin."""
    letters = [one for one in known if one.isalpha()]
    return bool(letters) and all("LATIN" in unicodedata.name(one, "") for one in letters)
