"""Scores of what readers see besides words: punctuation, and words with their case and punctuation.

The scoring form of a normaliser drops both, so a model that loses them in tuning keeps its word error rate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from sonotune.metrics.error_rate import edit_counts, unit_runs
from sonotune.metrics.text_scores import Floats, RateScore, ScoredText

_EDITS: Final = ("substitutions", "deletions", "insertions", "hits")

MARKS: Final = ".,?!:;…¿¡؟،؛۔。、，？！：；｡､।॥׃"
"""Marks that are scored: those between and behind words in Latin, Arabic, Hebrew, Indic and East Asian writing."""
_ESCAPED: Final = re.escape(MARKS)
_TOKENS: Final = re.compile(rf"((?:[^\s{_ESCAPED}]|(?<=\d)[.,:](?=\d))+)|\.\.\.+|([{_ESCAPED}])")
_MASK: Final = "\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class _OrthographicRate(RateScore):
    def statistics(self, texts: Sequence[ScoredText]) -> Floats:
        """Edits in words between white space, as they are written."""
        counts = edit_counts([text.reference for text in texts], [text.hypothesis for text in texts], unit="word")
        rows = [(one.substitutions, one.deletions, one.insertions, one.hits) for one in counts]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(_EDITS))


@dataclass(frozen=True, slots=True, kw_only=True)
class _PunctuationRate(RateScore):
    def statistics(self, texts: Sequence[ScoredText]) -> Floats:
        """Edits in marks of punctuation."""
        rows = [_mark_edits(text.reference, text.hypothesis) for text in texts]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(_EDITS))


ORTHOGRAPHIC_WER: Final = _OrthographicRate(
    name="wer_orthographic",
    title="WER with punctuation and case",
    columns=_EDITS,
    counted=_EDITS[:3],
    total=("substitutions", "deletions", "hits"),
)
"""Word error rate of the texts as they are written: "Hello," is another word than "hello"."""

PUNCTUATION: Final = _PunctuationRate(
    name="punctuation",
    title="Punctuation error rate",
    columns=_EDITS,
    counted=_EDITS[:3],
    total=_EDITS,
)
"""Wrong, missing and superfluous marks, as a share of these and the right ones.

Source: Meister et al. 2023, "LibriSpeech-PC" (arXiv 2310.02943), section 4.
"""


def _mark_edits(reference: str, hypothesis: str) -> tuple[int, int, int, int]:
    """Substitutions, deletions, insertions and hits of marks.

    Both texts are aligned with all marks alike and words without case, so that a mark belongs where its neighbours are.
    A mark beside a word that it replaces is a deletion or an insertion.
    """
    sides = [_tokens(text) for text in (reference, hypothesis)]
    masked = [[_MASK if mark else token.casefold() for token, mark in side] for side in sides]
    hits = substitutions = 0
    for operation, start, end, other, _ in unit_runs(*masked):
        if operation != "equal":
            continue
        for (one, mark), (two, _) in zip(sides[0][start:end], sides[1][other:], strict=False):
            hits += mark and one == two
            substitutions += mark and one != two
    deletions, insertions = (sum(mark for _, mark in side) - hits - substitutions for side in sides)
    return substitutions, deletions, insertions, hits


def _tokens(text: str) -> list[tuple[str, bool]]:
    """Words and marks in order, and which of them are marks; three dots are one mark, and 3.5 is a word."""
    return [(found[1], False) if found[1] else (found[2] or "…", True) for found in _TOKENS.finditer(text)]
