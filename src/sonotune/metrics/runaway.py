"""Signs that a decoder ran away or said nothing.

Encoder-decoder speech models loop on noise and silence ("thank you thank you thank you ..."). The counts here say how
often it happened, which a word error rate alone hides among other insertions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sonotune.metrics.error_rate import EditCounts
from sonotune.types import Finding

MAX_REPEATS = 4
"""A phrase said more often than this in a row, and more often than in the reference, counts as a loop."""

_PHRASE_WORDS = 4  # loops of longer phrases are rare; within the token limit they hardly come round five times


def longest_repetition(text: str) -> int:
    """How often the most repeated phrase of one to four words stands in a row: 1 without repeats, 0 without words."""
    words = text.split()
    if not words:
        return 0
    longest = 1
    for size in range(1, _PHRASE_WORDS + 1):
        run = 0  # words in a row that equal the word one phrase earlier
        for index in range(size, len(words)):
            run = run + 1 if words[index] == words[index - size] else 0
            longest = max(longest, run // size + 1)
    return longest


def loops(hypothesis: str, reference: str = "", *, max_repeats: int = MAX_REPEATS) -> bool:
    """Whether the hypothesis repeats a phrase over and over where the reference does not."""
    repeats = longest_repetition(hypothesis)
    return repeats > max_repeats and repeats > longest_repetition(reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingHealth:
    """Signs of a decoder that ran away or said nothing.

    Attributes:
        clips: Clips looked at.
        loops: Share of clips whose text repeats a phrase of up to four words more than `MAX_REPEATS` times in a
            row, and more often than the reference does.
        empty: Share of clips with an empty text although words were said.
        invented: Share of clips with more inserted words than words said.
        insertions: Inserted words per reference word, over all clips; 0 where no words were said.
        loop_ids: The clips that loop.
        invented_ids: The clips with more inserted words than words said.
    """

    clips: int
    loops: float
    empty: float
    invented: float
    insertions: float
    loop_ids: tuple[str, ...]
    invented_ids: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The figures, without the list of clips."""
        return {
            "clips": self.clips,
            "loops": self.loops,
            "empty": self.empty,
            "invented": self.invented,
            "insertions": self.insertions,
        }

    def findings(self) -> list[Finding]:
        """One warning for loops and one for invented words, each with the clips; none when all is well."""
        found: list[Finding] = []
        if self.loop_ids:
            found.append(
                _finding(
                    "decode.loops",
                    self.loop_ids,
                    self.loops,
                    f"{len(self.loop_ids)} of {self.clips} texts repeat a phrase more than {MAX_REPEATS} times in "
                    "a row. Listen to these clips for noise or silence, and train on such clips with their true "
                    "transcripts.",
                )
            )
        if self.invented_ids:
            found.append(
                _finding(
                    "decode.invented_words",
                    self.invented_ids,
                    self.invented,
                    f"{len(self.invented_ids)} of {self.clips} texts have more inserted words than words that "
                    "were said. Check these transcripts and look for speech that they leave out.",
                )
            )
        return found


def decoding_health(
    clip_ids: Sequence[str], references: Sequence[str], hypotheses: Sequence[str], edits: Sequence[EditCounts]
) -> DecodingHealth:
    """Look for loops, empty texts and invented words; all lists in the same order, texts in scoring form."""
    rows = list(zip(clip_ids, references, hypotheses, edits, strict=True))
    loop_ids = tuple(clip_id for clip_id, reference, hypothesis, _ in rows if loops(hypothesis, reference))
    invented_ids = tuple(clip_id for clip_id, _, _, edit in rows if edit.insertions > edit.reference)
    empty = sum(1 for _, reference, hypothesis, _ in rows if reference.strip() and not hypothesis.strip())
    words = sum(edit.reference for edit in edits)
    count = max(1, len(rows))
    return DecodingHealth(
        clips=len(rows),
        loops=len(loop_ids) / count,
        empty=empty / count,
        invented=len(invented_ids) / count,
        insertions=sum(edit.insertions for edit in edits) / words if words else 0.0,
        loop_ids=loop_ids,
        invented_ids=invented_ids,
    )


def _finding(check: str, clip_ids: tuple[str, ...], measured: float, message: str) -> Finding:
    return Finding(
        check=check, severity="warning", message=message, clip_ids=clip_ids, measured=measured, unit="fraction"
    )
