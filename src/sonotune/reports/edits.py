"""Edits between two texts as tokens that a page colours, and the direction that a text is written in."""

from __future__ import annotations

import unicodedata
from typing import Final, Literal

from sonotune.metrics.error_rate import align_words

Token = str | list[str]
"""A word that both texts have; `[word]`, one that the other text lacks; `[reference, hypothesis]`, an edit, of which
the side that has no word is empty."""

_DIRECTIONS: Final = {"L": 1, "R": -1, "AL": -1}


def direction(*texts: str) -> Literal["ltr", "rtl"]:
    """The direction of most letters.

    `dir=auto` takes the first letter, passes over every word inside `<bdi>`, and so cannot be used where words are
    isolated from each other.
    """
    balance = sum(_DIRECTIONS.get(unicodedata.bidirectional(letter), 0) for text in texts for letter in text)
    return "rtl" if balance < 0 else "ltr"


def edit_tokens(reference: str, hypothesis: str) -> list[Token]:
    """The words of a hypothesis against those of its reference, in reading order."""
    return [
        step.reference if step.operation == "equal" else [step.reference, step.hypothesis]
        for step in align_words(reference, hypothesis)
    ]


def difference_tokens(first: str, second: str) -> tuple[list[Token], list[Token]]:
    """The words of two texts, neither of which is the truth; words that the other lacks are marked."""
    sides: tuple[list[Token], list[Token]] = ([], [])
    for step in align_words(first, second):
        for side, word in zip(sides, (step.reference, step.hypothesis), strict=True):
            if word:
                side.append(word if step.operation == "equal" else [word])
    return sides
