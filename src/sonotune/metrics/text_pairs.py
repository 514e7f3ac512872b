"""What is counted of a reference and a hypothesis, once for each pair: slices score the same pairs again."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from sonotune.metrics.error_rate import EditCounts, char_edits, word_edits
from sonotune.metrics.runaway import loops

KEPT_PAIRS: Final = 2**17
"""Pairs that are remembered, some 100 MB of them at most."""
KEPT_TEXTS: Final = 2 * KEPT_PAIRS
"""Of all of them, for what is remembered of single texts: a cache that is smaller than one pass has no hit at all."""


class TextPair(NamedTuple):
    """Edits in words and in characters, and whether the hypothesis loops (`runaway.loops`)."""

    words: EditCounts
    characters: EditCounts
    loops: bool


@lru_cache(maxsize=KEPT_PAIRS)
def compare_texts(reference: str, hypothesis: str) -> TextPair:
    """Compare two texts in scoring form."""
    return TextPair(word_edits(reference, hypothesis), char_edits(reference, hypothesis), loops(hypothesis, reference))
