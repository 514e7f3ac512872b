"""The case of a vocabulary's letters: one that has a single case writes every text in it.

The vocabulary of wav2vec2-base-960h is upper-case, as the transcripts of LibriSpeech are; most others are lower-case.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

# Turkish and its kin have two letters i, whose cases are not those of other languages.
_TURKIC_UPPER = str.maketrans({"i": "İ", "ı": "I"})
_TURKIC_LOWER = str.maketrans({"İ": "i", "I": "ı"})
_TURKIC_LETTERS = frozenset("İı")


@dataclass(frozen=True, slots=True, kw_only=True)
class Letters:
    """How texts are brought to the letters of a vocabulary.

    Attributes:
        case: That of all its letters; None where it has both, or a script without case.
        symbols: Its single characters.
    """

    case: Literal["upper", "lower"] | None
    symbols: frozenset[str]

    @classmethod
    def of(cls, vocabulary: Iterable[str]) -> Self:
        """The letters of a vocabulary, special tokens and longer tokens left aside."""
        symbols = frozenset(token for token in vocabulary if len(token) == 1)
        cased = {symbol for symbol in symbols if symbol.lower() != symbol.upper()}
        # `ß` and its like have no upper case of one letter, so they may stand among upper-case letters.
        telling = {symbol for symbol in cased if len(symbol.upper()) == 1}
        if telling and all(symbol == symbol.upper() for symbol in telling):
            return cls(case="upper", symbols=symbols)
        if cased and all(symbol == symbol.lower() for symbol in cased):
            return cls(case="lower", symbols=symbols)
        return cls(case=None, symbols=symbols)

    def write(self, text: str) -> str:
        """The text in the vocabulary's own case; as it is where that has both or none."""
        if self.case == "lower":
            return self._lower(text)
        if self.case == "upper":
            text = text.translate(_TURKIC_UPPER) if self._turkic else text
            return "".join(one if one in self.symbols else one.upper() for one in text)
        return text

    def read(self, text: str) -> str:
        """What the vocabulary wrote as a person reads it: upper-case texts in lower case, others as they are."""
        return self._lower(text) if self.case == "upper" else text

    def _lower(self, text: str) -> str:
        return (text.translate(_TURKIC_LOWER) if self._turkic else text).lower()

    @property
    def _turkic(self) -> bool:
        return not _TURKIC_LETTERS.isdisjoint(self.symbols)
