"""Signs that a decoder ran away, was cut short, or wrote on silence.

Encoder-decoder speech models loop on noise and silence ("thank you thank you thank you ..."). The counts here say how
often it happened, which a word error rate alone hides among other insertions.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sonotune.metrics.error_rate import EditCounts
from sonotune.types import Finding

MAX_REPEATS = 4
"""A phrase said more often than this in a row, and more often than in the reference, counts as a loop.

Of long phrases fewer repetitions are allowed; see `allowed_repeats`."""

_PHRASE_WORDS = 12
_WORDS_PER_REPEAT = 4

_SYLLABLES = re.compile(r"(.{1,8}?)\1{9,}|(\S{9,40}?)\2{4,}")
"""Up to eight characters that come ten times or more, or up to forty without a space that come five times: how texts
without spaces loop."""

_MIN_SYLLABLE_CHARACTERS = 30
_GRAM = 4
_REPEATED_GRAMS = 19
"""Thirty characters with a period of eight have 27 runs of four, of which eight are different. What has fewer repeated
ones is no such loop, which is asked first: the expression takes ten times as long."""
_BYTE = 256


def compression_ratio(text: str) -> float:
    """How many times smaller zlib makes a text, written as one byte a character; 0 for an empty one.

    The published ratio is of UTF-8 bytes. Scripts with three bytes a letter compress by 2.5 to 3 there without any
    repetition, beyond the published threshold of 2.4; Latin text is the same in both.
    """
    letters = {letter: place for place, letter in enumerate(dict.fromkeys(text))}
    data = bytes(letters[letter] for letter in text) if len(letters) <= _BYTE else text.encode("utf-16", "replace")
    return len(data) / len(zlib.compress(data))


def allowed_repeats(words: int, max_repeats: int = MAX_REPEATS) -> int:
    """How often a phrase of so many words may stand in a row: one time fewer for every four words, at least once.

    People do say a word or a digit four times, and a refrain of six words three times; a sentence of nine words or more
    is said twice at most.
    """
    return max(1, max_repeats - (words - 1) // _WORDS_PER_REPEAT)


def _repetitions(text: str, longest: int) -> list[int]:
    """How often a phrase of one word, of two words, and so on up to `longest` stands in a row at most."""
    words = text.split()
    found = [1] * min(longest, len(words))
    for size in sorted(_distances(words, len(found))):
        run = most = 0  # words in a row that equal the word one phrase earlier
        for word, earlier in zip(words[size:], words, strict=False):
            run = run + 1 if word == earlier else 0
            most = max(most, run)
        found[size - 1] = most // size + 1
    return found


def _distances(words: Sequence[str], longest: int) -> set[int]:
    """How far apart equal words stand, up to a limit: no other distance has a repetition, and most texts have few."""
    if len(set(words)) == len(words):
        return set()
    places: dict[str, list[int]] = {}
    found: set[int] = set()
    for place, word in enumerate(words):
        earlier = places.setdefault(word, [])
        found.update(place - one for one in earlier[-longest:])
        earlier.append(place)
    return {distance for distance in found if distance <= longest}


def longest_repetition(text: str) -> int:
    """How often the most repeated phrase of one to twelve words stands in a row: 1 without repeats, 0 without words."""
    return max(_repetitions(text, _PHRASE_WORDS), default=0)


def loops(hypothesis: str, reference: str = "", *, max_repeats: int = MAX_REPEATS) -> bool:
    """Whether the hypothesis repeats a phrase, or a few characters, over and over where the reference does not.

    The reference does where it repeats a phrase of half to twice as many words as often, for words may be written
    together or apart.
    """
    suspects = {
        size: repeats
        for size, repeats in enumerate(_repetitions(hypothesis, _PHRASE_WORDS), start=1)
        if repeats > 1 and repeats > allowed_repeats(size, max_repeats)
    }
    if suspects:
        known = _repetitions(reference, 2 * max(suspects))
        for size, repeats in suspects.items():
            if repeats > max(known[(size + 1) // 2 - 1 : 2 * size], default=0):
                return True
    return _repeats_characters(hypothesis) and not _repeats_characters(reference)


def cut_loops(text: str, *, max_repeats: int = MAX_REPEATS) -> str:
    """The text with every phrase that comes more often than allowed in a row written once.

    Shorter phrases are looked for first, and the rest of a last, incomplete repetition goes as well.
    """
    words = _SYLLABLES.sub(_cut_characters, text).split()
    for size in range(1, _PHRASE_WORDS + 1):
        words = _cut_phrases(words, size, allowed_repeats(size, max_repeats))
    return " ".join(words)


def _cut_phrases(words: Sequence[str], size: int, allowed: int) -> list[str]:
    """The words without the repetitions of phrases of this size that come more often than allowed; one pass."""
    kept: list[str] = []
    run = 0  # words at the end of what is kept that equal the word one phrase earlier
    for word in words:
        if len(kept) >= size and word == kept[-size]:
            run += 1
        else:
            _drop(kept, run, size, allowed)
            run = 0
        kept.append(word)
    _drop(kept, run, size, allowed)
    return kept


def _drop(kept: list[str], run: int, size: int, allowed: int) -> None:
    if run // size + 1 > allowed:
        del kept[len(kept) - run :]


def _repeats_characters(text: str) -> bool:
    grams = len(text) - _GRAM + 1
    if grams - len({text[place : place + _GRAM] for place in range(grams)}) < _REPEATED_GRAMS:
        return False
    return any(len(found[0]) >= _MIN_SYLLABLE_CHARACTERS for found in _SYLLABLES.finditer(text))


def _cut_characters(found: re.Match[str]) -> str:
    return (found[1] or found[2]) if len(found[0]) >= _MIN_SYLLABLE_CHARACTERS else found[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingHealth:
    """Signs of a decoder that ran away or said nothing.

    Attributes:
        clips: Clips looked at.
        loops: Share of clips whose text loops: it repeats a phrase of up to twelve words, or a few characters, over and
            over, and the reference does not (`loops`).
        empty: Share of clips with an empty text although words were said.
        invented: Share of clips on which words were said with more inserted words than those.
        insertions: Inserted words per reference word, over all clips; 0 where no words were said.
        loop_ids: The clips that loop.
        invented_ids: The clips on which words were said with more inserted words than those.
        fallbacks: Clips that were decoded again because their first text failed a threshold.
        cut: Clips whose text ends because it reached its limit of tokens.
        silent: Clips on which no word was said.
        silent_ids: Those of them on which words were written.
        silent_words: Words written on them.
    """

    clips: int
    loops: float
    empty: float
    invented: float
    insertions: float
    loop_ids: tuple[str, ...]
    invented_ids: tuple[str, ...]
    fallbacks: int = 0
    cut: int = 0
    silent: int = 0
    silent_ids: tuple[str, ...] = ()
    silent_words: int = 0

    def to_json(self) -> dict[str, Any]:
        """The figures, without the list of clips."""
        return {
            "clips": self.clips,
            "loops": self.loops,
            "loop_clips": len(self.loop_ids),
            "fallbacks": self.fallbacks,
            "cut": self.cut,
            "silent_clips": self.silent,
            "silent_clips_with_words": len(self.silent_ids),
            "silent_words": self.silent_words,
            "empty": self.empty,
            "invented": self.invented,
            "insertions": self.insertions,
        }

    def findings(self) -> list[Finding]:
        """Warnings of loops, of invented words and of words on silence, each with its clips; none when all is well."""
        found: list[Finding] = []
        if self.loop_ids:
            found.append(
                _finding(
                    "decode.loops",
                    self.loop_ids,
                    self.loops,
                    f"{len(self.loop_ids)} of {self.clips} texts repeat a phrase over and over where the "
                    "reference does not. Likely causes, in this order: another model.context than the model was "
                    "trained in; another language than the clips' (model.language); too high a learning rate, where "
                    "the model did not loop before it was trained; noise or silence in the recordings. "
                    "evaluation.no_repeat_ngram_size=5 and "
                    "evaluation.repetition_penalty=1.1 hinder loops and do not mend the cause.",
                )
            )
        invented = tuple(name for name in self.invented_ids if name not in self.loop_ids)
        if invented:
            found.append(
                _finding(
                    "decode.invented_words",
                    invented,
                    len(invented) / self.clips,
                    f"{len(invented)} of {self.clips} texts that do not loop have more inserted words than words that "
                    "were said. Check these transcripts and look for speech that they leave out.",
                )
            )
        if self.silent_ids:
            found.append(
                _finding(
                    "decode.words_on_silence",
                    self.silent_ids,
                    len(self.silent_ids) / self.silent,
                    f"{self.silent} clips without words, {self.silent_words} words written on them "
                    f"({len(self.silent_ids)} clips): each counts as an insertion. Where nothing is said there, train "
                    "on such clips too (data.empty_texts=learn); where something is, mend their transcripts.",
                )
            )
        return found


def decoding_health(
    clip_ids: Sequence[str],
    references: Sequence[str],
    hypotheses: Sequence[str],
    edits: Sequence[EditCounts],
    *,
    looping: Sequence[bool] | None = None,
    fallbacks: int = 0,
    cut: int = 0,
) -> DecodingHealth:
    """Look for loops, empty texts and invented words; all lists in the same order, texts in scoring form.

    Args:
        clip_ids: Of the clips.
        references: What was said.
        hypotheses: What was recognised.
        edits: Word errors of each pair.
        looping: Of which texts `loops` is known to be true; None looks.
        fallbacks: Clips that were decoded again.
        cut: Texts that end at their limit of tokens.
    """
    if looping is None:
        looping = [loops(hypothesis, reference) for reference, hypothesis in zip(references, hypotheses, strict=True)]
    rows = list(zip(clip_ids, references, hypotheses, edits, strict=True))
    loop_ids = tuple(clip_id for clip_id, loop in zip(clip_ids, looping, strict=True) if loop)
    invented_ids = tuple(clip_id for clip_id, _, _, edit in rows if edit.insertions > edit.reference > 0)
    silent = [(clip_id, edit.insertions) for clip_id, _, _, edit in rows if edit.reference == 0]
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
        fallbacks=fallbacks,
        cut=cut,
        silent=len(silent),
        silent_ids=tuple(clip_id for clip_id, written in silent if written),
        silent_words=sum(written for _, written in silent),
    )


def _finding(check: str, clip_ids: tuple[str, ...], measured: float, message: str) -> Finding:
    return Finding(
        check=check, severity="warning", message=message, clip_ids=clip_ids, measured=measured, unit="fraction"
    )
