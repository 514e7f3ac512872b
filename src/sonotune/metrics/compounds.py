"""Word error rate in which words written together or apart are the same: that of the Open ASR Leaderboard.

Its scorer takes neighbouring words of one text for one word of the other where their letters are the same ("white
paper", "whitepaper"), at no cost (`kaldialign`, merge_compounds). In languages other than English it first joins
stretches of several words on both sides that have the same letters. Checked against its commit d1e99b2.

The counting is the leaderboard's. Texts come here in the scoring form of `data.text_scoring`, so a rate equals one in
its tables only for texts that are normalised as they are there; the normaliser `whisper_english` has the rules of the
Whisper paper, which the leaderboard's grew out of.

Source: github.com/huggingface/open_asr_leaderboard, `normalizer/eval_utils.py`, at commit d1e99b2.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final

import numpy as np

from sonotune.errors import MissingExtraError
from sonotune.metrics.text_scores import Floats, RateScore, ScoredText

_LIBRARY: Final = "kaldialign"
INSTALL: Final = "pip install 'sonotune[open-asr]'"
"""What installs the library."""
_ENGLISH: Final = frozenset({"en", "eng", "english"})
_COLUMNS: Final = ("substitutions", "deletions", "insertions", "reference")


@dataclass(frozen=True, slots=True, kw_only=True)
class _CompoundRate(RateScore):
    def check(self) -> None:
        """Raises MissingExtraError where the library is not installed."""
        if importlib.util.find_spec(_LIBRARY) is None:
            raise MissingExtraError(
                f"the score {self.name} needs the package {_LIBRARY}, which is not installed. Install it with "
                f"{INSTALL}, or leave it out of evaluation.scores and evaluation.primary."
            )

    def statistics(self, texts: Sequence[ScoredText]) -> Floats:
        """Edits in words, without those between words that are written together and apart."""
        rows = [_edits(text) for text in texts]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(_COLUMNS))


OPEN_ASR: Final = _CompoundRate(
    name="open_asr",
    title="WER, compounds merged (Open ASR)",
    columns=_COLUMNS,
    counted=_COLUMNS[:3],
    total=("reference",),
)


def _edits(text: ScoredText) -> tuple[int, int, int, int]:
    from kaldialign import edit_distance  # noqa: PLC0415  (an extra)

    reference, hypothesis = text.scored_reference.split(), text.scored_hypothesis.split()
    if text.language is not None and text.language.lower().replace("_", "-").partition("-")[0] not in _ENGLISH:
        reference, hypothesis = join_alike(reference, hypothesis)
    found = edit_distance(reference, hypothesis, merge_compounds=True)
    return found["sub"], found["del"], found["ins"], found["ref_len"]


def join_alike(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[list[str], list[str]]:
    """Both texts with stretches written as one word each where they differ in nothing but the spaces."""
    joined: tuple[list[str], list[str]] = ([], [])
    matcher = SequenceMatcher(None, reference, hypothesis)
    for operation, start, end, other_start, other_end in matcher.get_opcodes():
        parts = list(reference[start:end]), list(hypothesis[other_start:other_end])
        if operation != "equal" and (letters := "".join(parts[0])) == "".join(parts[1]):
            parts = [letters], [letters]
        for side, part in zip(joined, parts, strict=True):
            side += part
    return joined
