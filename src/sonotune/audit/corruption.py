"""What goes wrong with transcripts, done on purpose to clips whose transcripts are trusted.

Five corruptions: the transcript of another clip; a run of words deleted; words of another transcript inserted at one
place; words here and there substituted; the end cut off. Scripts without spaces between words are corrupted by
characters. Each is a function of the seed and the clip's id, and none ever gives the transcript it was given.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from sonotune.data import text as text_module
from sonotune.data.scripts import deciding_rate
from sonotune.runs import generator
from sonotune.types import Clip

Kind = Literal["wrong", "deleted", "inserted", "substituted", "truncated"]
KINDS: Final[tuple[Kind, ...]] = ("wrong", "deleted", "inserted", "substituted", "truncated")
SHARES: Final[dict[Kind, float]] = {
    "wrong": 1.0,
    "deleted": 0.2,
    "inserted": 0.2,
    "substituted": 0.1,
    "truncated": 0.15,
}
"""Part of a transcript that each corruption concerns where nothing else is asked for."""

_SIMILAR: Final = 0.15  # lengths that differ by no more are similar
_CANDIDATES: Final = 10  # nearest in length, where fewer are similar
_TRIES: Final = 20  # draws before all that can be drawn is read


@dataclass(frozen=True, slots=True, kw_only=True)
class Corruption:
    """A kind of corruption and how much of a transcript it concerns.

    Attributes:
        kind: What is done.
        share: Part of the words (characters in scripts without spaces); `wrong` concerns all.
    """

    kind: Kind
    share: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS or not 0 < self.share <= 1:
            raise ValueError(f"a corruption is one of {', '.join(KINDS)} with 0 < share <= 1; found {self}.")

    @property
    def name(self) -> str:
        """Such as `deleted 20 %`."""
        return self.kind if self.kind == "wrong" else f"{self.kind} {self.share * 100:g} %"


DEFAULT_CORRUPTIONS: Final = tuple(Corruption(kind=kind, share=SHARES[kind]) for kind in KINDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupted:
    """A corrupted transcript.

    Attributes:
        text: The transcript, or None where it could not be made.
        reason: Why not; empty otherwise.
    """

    text: str | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Transcript:
    clip_id: str
    units: tuple[str, ...]
    joiner: str
    key: str


class Corruptor:
    """Corrupts the transcripts of clips with the words of others of their language.

    Args:
        clips: Where other transcripts and words come from; those without a text are passed over.
        seed: Of all draws.
        normalizer: Two transcripts are the same where their scoring forms are (registry name).
    """

    def __init__(self, clips: Iterable[Clip], *, seed: int = 0, normalizer: str = "basic") -> None:
        self._seed, self._scoring = seed, text_module.get(normalizer).scoring
        self._pool: dict[str | None, list[_Transcript]] = {}
        for clip in clips:
            if clip.text is not None and (read := self._read(clip.id, clip.text)).units:
                self._pool.setdefault(clip.language, []).append(read)
        for members in self._pool.values():
            members.sort(key=lambda one: (len(one.units), one.clip_id))

    def corrupt(self, clip: Clip, corruption: Corruption) -> Corrupted:
        """Corrupt the transcript of a clip.

        Args:
            clip: A clip with a text.
            corruption: What is done to it.

        Returns:
            Another transcript, never the same in scoring form; or why there is none: the text is too short for the
            share, or no other clip of the language has what is needed.
        """
        if clip.text is None or not (given := self._read(clip.id, clip.text)).units:
            return Corrupted(text=None, reason="it has no words")
        rng = generator(self._seed, "corruption", corruption.kind, str(corruption.share), clip.id)
        if corruption.kind == "wrong":
            return self._wrong(given, clip.language, rng)
        length = len(given.units)
        count = round(corruption.share * length)
        if corruption.share * length < 0.5 or (corruption.kind in ("deleted", "truncated") and count >= length):
            return Corrupted(
                text=None, reason=f"{length} words are too few to have {corruption.share:.0%} {corruption.kind}"
            )
        count = max(count, 1)
        if corruption.kind == "truncated":
            return self._made(given, given.units[: length - count])
        if corruption.kind == "deleted":
            start = int(rng.integers(0, length - count + 1))
            return self._made(given, given.units[:start] + given.units[start + count :])
        if corruption.kind == "inserted":
            return self._inserted(given, clip.language, count, rng)
        return self._substituted(given, clip.language, count, rng)

    def _wrong(self, given: _Transcript, language: str | None, rng: np.random.Generator) -> Corrupted:
        pool, length = self._pool.get(language, []), len(given.units)
        first = bisect_left(pool, (1 - _SIMILAR) * length, key=_length)
        last = bisect_right(pool, (1 + _SIMILAR) * length, key=_length)
        while last - first <= _CANDIDATES and (first > 0 or last < len(pool)):  # too few are similar: the nearest
            first, last = max(0, first - _CANDIDATES), min(len(pool), last + _CANDIDATES)
        for _ in range(_TRIES):
            if first < last and (other := pool[int(rng.integers(first, last))]).key != given.key:
                return self._made(given, other.units)
        others = [one for one in pool if one.key != given.key]
        if not others:
            return Corrupted(text=None, reason="no clip of its language has another transcript")
        nearest = sorted(others, key=lambda one: (abs(len(one.units) - length), one.clip_id))[:_CANDIDATES]
        return self._made(given, nearest[int(rng.integers(len(nearest)))].units)

    def _inserted(self, given: _Transcript, language: str | None, count: int, rng: np.random.Generator) -> Corrupted:
        pool = [one for one in self._others(given, language) if one.key != given.key]
        if not pool:
            return Corrupted(text=None, reason="no clip of its language has words that could be inserted")
        added: list[str] = []
        while len(added) < count:
            source = pool[int(rng.integers(len(pool)))].units
            wanted = min(count - len(added), len(source))
            start = int(rng.integers(0, len(source) - wanted + 1))
            added += source[start : start + wanted]
        place = int(rng.integers(0, len(given.units) + 1))
        return self._made(given, (*given.units[:place], *added, *given.units[place:]))

    def _substituted(self, given: _Transcript, language: str | None, count: int, rng: np.random.Generator) -> Corrupted:
        words = [unit for one in self._others(given, language) for unit in one.units]
        made = list(given.units)
        for place in rng.permutation(len(made))[:count]:
            before = self._scoring(made[place])
            after = self._different(words, before, rng)
            if after is None:
                return Corrupted(text=None, reason="no clip of its language has other words")
            made[place] = after
        return self._made(given, tuple(made))

    def _different(self, words: Sequence[str], before: str, rng: np.random.Generator) -> str | None:
        """A word that is not the same in scoring form, by its frequency."""
        for _ in range(_TRIES):
            if not words:
                return None
            word = words[int(rng.integers(len(words)))]
            if self._scoring(word) not in ("", before):
                return word
        other = sorted({word for word in words if self._scoring(word) not in ("", before)})
        return other[int(rng.integers(len(other)))] if other else None

    def _others(self, given: _Transcript, language: str | None) -> list[_Transcript]:
        """Up to some dozens of other transcripts of the language, nearest in length, so that no clip reads a corpus."""
        pool = self._pool.get(language, [])
        middle = bisect_left(pool, len(given.units), key=_length)
        first = max(0, min(middle - 32, len(pool) - 64))
        return [one for one in pool[first : first + 64] if one.clip_id != given.clip_id]

    def _made(self, given: _Transcript, units: Sequence[str]) -> Corrupted:
        text = given.joiner.join(units)
        if self._scoring(text) == given.key:
            return Corrupted(text=None, reason="what it concerns is not heard, such as punctuation alone")
        return Corrupted(text=text)

    def _read(self, clip_id: str, text: str) -> _Transcript:
        words = text.split()
        unspaced = "scripts without spaces" in deciding_rate([text])[1]
        units = [cluster for word in words for cluster in _clusters(word)] if unspaced else words
        return _Transcript(clip_id, tuple(units), "" if unspaced else " ", self._scoring(text))


def _length(transcript: _Transcript) -> int:
    return len(transcript.units)


def _clusters(word: str) -> list[str]:
    """The characters of a word, marks with the letter they stand on."""
    clusters: list[str] = []
    for character in word:
        if clusters and unicodedata.category(character)[0] == "M":
            clusters[-1] += character
        else:
            clusters.append(character)
    return clusters
