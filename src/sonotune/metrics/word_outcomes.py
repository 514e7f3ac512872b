"""What recognisers did at every word of their references, and the test of two of them by segments between right words.

All clips lie one after the other in one array, so that what is counted of them takes no loop over clips.

Shape letters: N clips, P places (the words of each reference and its end), U words of one reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonotune.metrics.error_rate import unit_edits


class WordOutcomes(NamedTuple):
    """What a recogniser did at every place of its references, all clips one after the other.

    A reference of U words has U + 1 places: its words, and its end.

    Attributes:
        wrong: Whether the word of a place is substituted or deleted (P,); False at an end.
        inserted: Words inserted before it (P,).
        clip: Number of its clip (P,).
    """

    wrong: NDArray[np.bool_]
    inserted: NDArray[np.int64]
    clip: NDArray[np.int64]

    @property
    def errors(self) -> NDArray[np.int64]:
        """Errors at each place (P,)."""
        return self.wrong + self.inserted

    def by_clip(self) -> NDArray[np.float64]:
        """Word errors of each clip (N,)."""
        return np.bincount(self.clip, weights=self.errors).astype(np.float64)


def word_outcomes(references: Sequence[str], hypotheses: Sequence[str]) -> WordOutcomes:
    """Align every hypothesis with its reference, word by word."""
    said = [text.split() for text in references]
    sizes_N = np.array([len(words) + 1 for words in said], dtype=np.int64)
    wrong, inserted = list[int](), list[int]()
    start = 0
    for words, hypothesis in zip(said, hypotheses, strict=True):
        heard = hypothesis.split()
        if words != heard:
            for operation, place, _ in unit_edits(words, heard):
                (inserted if operation == "insert" else wrong).append(start + place)
        start += len(words) + 1
    wrong_P = np.zeros(start, dtype=np.bool_)
    wrong_P[wrong] = True
    inserted_P = np.bincount(np.array(inserted, dtype=np.int64), minlength=start)
    return WordOutcomes(wrong_P, inserted_P, np.repeat(np.arange(len(said)), sizes_N))


def discordant_words(first: WordOutcomes, second: WordOutcomes) -> NDArray[np.float64]:
    """Reference words of each clip that exactly one of two recognisers has right (N,)."""
    return np.bincount(first.clip, weights=first.wrong != second.wrong).astype(np.float64)


def segment_differences(first: WordOutcomes, second: WordOutcomes) -> NDArray[np.int64]:
    """Errors of the second minus errors of the first, in each stretch between two words that both have right.

    Errors within such a stretch depend on each other through the language model; stretches hardly do. No stretch goes
    beyond its clip.
    """
    wrong = np.flatnonzero(first.errors + second.errors)
    if not wrong.size:
        return np.zeros(0, dtype=np.int64)
    # More than two steps from one wrong word to the next leave at least two right ones between them.
    begins = (np.diff(wrong) > 2) | (np.diff(first.clip[wrong]) > 0)
    return np.add.reduceat((second.errors - first.errors)[wrong], np.concatenate([[0], np.flatnonzero(begins) + 1]))


class MatchedPairs(NamedTuple):
    """Matched-pair sentence-segment word error test: z, its two-sided p, and the number of segments."""

    z: float
    p: float
    segments: int


def mapsswe(differences: Sequence[float] | NDArray[np.int64]) -> MatchedPairs | None:
    """The usual test of two recognisers, for comparison with other work; it takes speakers as alike.

    Args:
        differences: Of `segment_differences`, over all clips.

    Returns:
        None for fewer than two segments, or where all differ alike.

    Source: Gillick and Cox 1989, "Some statistical issues in the comparison of speech recognition algorithms".
    """
    values = np.asarray(differences, dtype=np.float64)
    spread = float(values.std(ddof=1)) if values.size > 1 else 0.0
    if spread == 0:
        return None
    z = float(values.mean()) / (spread / math.sqrt(values.size))
    return MatchedPairs(z, math.erfc(abs(z) / math.sqrt(2)), values.size)
