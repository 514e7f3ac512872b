"""What belongs between batches and texts: how long a text may grow, and signs that a decoder ran away.

Encoder-decoder speech models loop on noise and silence ("thank you thank you thank you ..."). A limit in proportion
to the audio keeps one such clip from costing as much as the rest of its batch, and the counts here say how often it
happened, which a word error rate alone hides among other insertions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sonotune.metrics.error_rate import EditCounts
from sonotune.types import Finding, Prediction

TOKENS_PER_SECOND = 25.0
"""Fast English speech has about 20 characters per second. Character models need one token for each, scripts that a
tokenizer spells in bytes a little more than one for each of their fewer characters."""

TOKENS_MARGIN = 16
"""Room for special tokens, and for words in very short clips."""

MAX_REPEATS = 4
"""A phrase said more often than this in a row, and more often than in the reference, counts as a loop."""

_PHRASE_WORDS = 4  # loops of longer phrases are rare; within the token limit they hardly come round five times
_SHOWN_IDS = 20


def token_limit(duration_s: float, *, tokens_per_second: float = TOKENS_PER_SECOND, margin: int = TOKENS_MARGIN) -> int:
    """Most tokens a text of this much audio may have.

    Args:
        duration_s: Seconds of audio; the longest of a batch, because a batch is decoded under one limit.
        tokens_per_second: Cap on the rate of speech, in tokens.
        margin: Tokens allowed on top.

    Raises:
        ValueError: A negative or non-finite duration.
    """
    if not (math.isfinite(duration_s) and duration_s >= 0):
        raise ValueError(f"duration_s must be a finite number of seconds of at least 0; found {duration_s}.")
    return math.ceil(duration_s * tokens_per_second) + margin


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


def in_clip_order(
    clip_ids: Sequence[str], predictions: Sequence[Prediction], findings: Sequence[Finding]
) -> tuple[list[Prediction], list[Finding]]:
    """One prediction per clip, in the order of the clips, whatever the order of the batches.

    A clip without a prediction gets an empty text, which counts as deletions, and must be in a finding: one is added
    for those that no finding names, so that nothing is dropped in silence.

    Returns:
        Predictions in clip order, and all findings.

    Raises:
        ValueError: A clip was predicted twice, or a prediction is for a clip that was not asked for.
    """
    by_id = {prediction.clip_id: prediction for prediction in predictions}
    if len(by_id) != len(predictions) or not by_id.keys() <= set(clip_ids):
        raise ValueError("a task must return exactly one prediction for each clip of its batch, with the clip's id.")
    missing = [clip_id for clip_id in clip_ids if clip_id not in by_id]
    explained = {clip_id for finding in findings for clip_id in finding.clip_ids}
    all_findings = list(findings)
    if unexplained := tuple(clip_id for clip_id in missing if clip_id not in explained):
        all_findings.append(
            _finding(
                "evaluation.not_decoded",
                unexplained,
                float(len(unexplained)),
                f"{len(unexplained)} clips came out of no batch and count as empty texts: {_some(unexplained)}. "
                "Check that their files can be read with `sonotune data stats`.",
                unit="clips",
            )
        )
    ordered = [by_id.get(clip_id, Prediction(clip_id=clip_id, text="")) for clip_id in clip_ids]
    return ordered, all_findings


def _finding(
    check: str, clip_ids: tuple[str, ...], measured: float, message: str, *, unit: str = "fraction"
) -> Finding:
    return Finding(check=check, severity="warning", message=message, clip_ids=clip_ids, measured=measured, unit=unit)


def _some(clip_ids: Sequence[str]) -> str:
    shown = ", ".join(clip_ids[:_SHOWN_IDS])
    return shown if len(clip_ids) <= _SHOWN_IDS else f"{shown} and {len(clip_ids) - _SHOWN_IDS} more"
