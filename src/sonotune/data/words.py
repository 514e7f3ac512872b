"""The words of a text one by one, and which of them are right.

A word is what stands between white space; of a script that writes none between words (`scripts.UNSPACED`), every sign
is one, together with the marks that it carries. What a scoring normaliser makes of a word (nothing of a punctuation
mark, two words of a contraction, one word of `twenty one`) is found by aligning what it makes of each word with what it
makes of the whole text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Final

from sonotune.data.scripts import UNSPACED
from sonotune.metrics.error_rate import unit_runs

PARTS: Final = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
"""Words between spaces, and single signs of scripts without them; marks on a sign are a part of their own."""


def word_spans(text: str) -> list[tuple[int, int]]:
    """Begin and end of each word, in code points; together they are all that is no white space."""
    spans: list[tuple[int, int]] = []
    for part in PARTS.finditer(text):
        begin, end = part.span()
        if spans and spans[-1][1] == begin and unicodedata.category(text[begin])[0] == "M":
            spans[-1] = (spans[-1][0], end)  # a mark belongs to the sign before it
        else:
            spans.append((begin, end))
    return spans


def words_of(text: str) -> list[str]:
    """The words of a text; where the script has spaces, those of `str.split`."""
    return [text[begin:end] for begin, end in word_spans(text)]


def right_words(hypothesis: str, reference: str, scoring: Callable[[str], str]) -> list[bool | None]:
    """Whether each word of a text is right: aligned with a word of the reference that is the same in scoring form.

    Substituted and inserted words are wrong. A word of which scoring sees nothing, such as a dash, is neither.

    Args:
        hypothesis: As it was written; the result has an entry for each of `words_of(hypothesis)`.
        reference: As it is in the manifest.
        scoring: The form in which texts are compared.
    """
    units = words_of(scoring(hypothesis))
    owned = _units_of_words([words_of(scoring(word)) for word in words_of(hypothesis)], units)
    right: set[int] = set()
    for operation, _, _, begin, end in unit_runs(words_of(scoring(reference)), units):
        if operation == "equal":
            right.update(range(begin, end))
    return [right.issuperset(places) if places else None for places in owned]


def _units_of_words(pieces: Sequence[Sequence[str]], units: Sequence[str]) -> list[set[int]]:
    """Places in the scoring form of the whole text (units) that belong to each word, by what it is alone (pieces)."""
    owned: list[set[int]] = [set() for _ in pieces]
    owners = [word for word, parts in enumerate(pieces) for _ in parts]
    flat = [part for parts in pieces for part in parts]
    words: set[int] = set()  # of the run of pieces and units that differ
    places: set[int] = set()
    for operation, from_piece, to_piece, from_unit, to_unit in [*unit_runs(flat, list(units)), _LAST]:
        if operation != "equal":
            words.update(owners[from_piece:to_piece])
            places.update(range(from_unit, to_unit))
            if operation == "insert" and owners:  # of the word before it
                words.add(owners[max(from_piece - 1, 0)])
            continue
        for word in words:
            owned[word] |= places
        words, places = set(), set()
        for piece, unit in zip(range(from_piece, to_piece), range(from_unit, to_unit), strict=True):
            owned[owners[piece]].add(unit)
    return owned


_LAST: Final = ("equal", 0, 0, 0, 0)
