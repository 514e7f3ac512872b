"""Word times from a CTC model: Viterbi over its log-probabilities (`alignment.viterbi`).

The gaps between words are open: speech that the transcript does not have is passed over at `GAP_PENALTY` nats a frame,
so it does not push the words around it away from their places. The evidence counts the blank there, so the score of
the clip falls all the same.

Shape letters: T frames, V symbols, U tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sonotune.alignment.base import AlignerSettings, Alignment, Evidence, Recording, recording
from sonotune.alignment.borders import TokenTimes, place_words
from sonotune.alignment.emissions import Emissions, clip_emissions, frame_times
from sonotune.alignment.placing import clip_finding
from sonotune.alignment.romanize import romanize
from sonotune.alignment.tokens import BORDER, Spelling, Tokens
from sonotune.alignment.viterbi import WILDCARD, Path, Target, align, in_tokens, needed_frames
from sonotune.data import text
from sonotune.models.base import LoadedModel
from sonotune.models.ctc_decoding import collapse
from sonotune.types import Clip, Finding, Word

GAP_PENALTY: Final = 4.0
"""Nats that a frame of speech costs that the transcript does not have. No complete transcript then passes over speech,
and 86 % of those that lack a word do (benchmarks/alignment)."""
EVIDENCE_S: Final = 0.6
"""Span of a local mean of the evidence: 30 frames of 20 ms."""
MIN_EVIDENCE_ROWS: Final = 5
_BATCHES_AHEAD: Final = 8  # batches whose alignments wait for one another, so that clips of like length meet


class CtcAligner:
    """See `alignment.base.Aligner`."""

    name = "ctc"
    max_duration_s = None

    def __init__(self, loaded: LoadedModel, settings: AlignerSettings) -> None:
        self.loaded, self.settings = loaded, settings
        self._frame_s, _ = frame_times(loaded)  # refuses other families
        self._spelling = Spelling(loaded, text.get(settings.text), romanize)
        self._blank = int(loaded.module.config.pad_token_id)
        self._window = max(MIN_EVIDENCE_ROWS, round(EVIDENCE_S / self._frame_s))

    def check_languages(self, languages: Sequence[str]) -> None:
        """See `Aligner.check_languages`. A vocabulary has no language: what it lacks is aligned as wildcards."""

    def align(self, clips: Sequence[Clip]) -> Iterator[Alignment | Finding]:
        """See `Aligner.align`."""
        ahead = _BATCHES_AHEAD * self.settings.batch_max_clips
        for start in range(0, len(clips), ahead):
            members = clips[start : start + ahead]
            spelled = [
                self._spelling.encode(clip.text or "", clip.language or self.settings.language) for clip in members
            ]
            found: dict[str, Alignment | Finding] = {
                clip.id: _empty_text(clip) for clip, tokens in zip(members, spelled, strict=True) if not tokens.ids.size
            }
            texts = {clip.id: tokens for clip, tokens in zip(members, spelled, strict=True)}
            of_recording: dict[Recording, list[Clip]] = {}
            for clip in members:
                if clip.id not in found:
                    of_recording.setdefault(recording(clip), []).append(clip)
            batches = clip_emissions(
                self.loaded,
                [of_it[0] for of_it in of_recording.values()],
                batch_seconds=self.settings.batch_seconds,
                max_clips=self.settings.batch_max_clips,
            )
            for batch in batches:
                for one in batch:
                    if isinstance(one, Finding):
                        for name in one.clip_ids:
                            same = of_recording[recording(next(clip for clip in members if clip.id == name))]
                            found |= {clip.id: replace(one, clip_ids=(clip.id,)) for clip in same}
                computed = [
                    replace(one, clip=clip)
                    for one in batch
                    if isinstance(one, Emissions)
                    for clip in of_recording[recording(one.clip)]
                ]
                tokens_of = [texts[one.clip.id] for one in computed]
                paths = align(
                    [one.log_probs for one in computed],
                    [Target(tokens=tokens.ids, open_gaps=tokens.between_words()) for tokens in tokens_of],
                    blank=self._blank,
                    gap_penalty=GAP_PENALTY,
                )
                for emissions, tokens, path in zip(computed, tokens_of, paths, strict=True):
                    found[emissions.clip.id] = (
                        _too_long_text(emissions, tokens) if path is None else self._placed(emissions, tokens, path)
                    )
            for clip in members:
                yield found[clip.id]

    def _placed(self, emissions: Emissions, tokens: Tokens, path: Path) -> Alignment:
        """The transcript in time."""
        first_U, stop_U = path.spans(len(tokens.ids))
        starts_U, ends_U = emissions.times(first_U), emissions.times(stop_U)
        probability_T = np.exp(path.given)
        posteriors_U = np.array(
            [probability_T[first:stop].mean() for first, stop in zip(first_U, stop_U, strict=True)], dtype=np.float32
        )
        inside_U = tokens.token_words != BORDER
        best_T = emissions.log_probs.max(axis=1)
        # What the model has no symbol for fits any sound: such frames say nothing about the transcript.
        wild_T = in_tokens(path.states, tokens.ids == WILDCARD)
        judged_T = ~wild_T if not wild_T.all() else slice(None)
        transcript = None
        if self.settings.transcribe:
            family: Any = self.loaded.family
            written = collapse(emissions.log_probs.argmax(axis=1).tolist(), blank=self._blank)
            transcript = family.decode_text(self.loaded, written).strip()
        return Alignment(
            clip_id=emissions.clip.id,
            words=_words(emissions, tokens, path, posteriors_U),
            token_words=tokens.token_words[inside_U],
            token_starts_s=starts_U[inside_U],
            token_ends_s=ends_U[inside_U],
            token_posteriors=posteriors_U[inside_U],
            evidence=Evidence(given=path.given[judged_T], best=best_T[judged_T], window=self._window),
            transcript=transcript,
            unknown_share=tokens.unknown_share,
        )


def _words(emissions: Emissions, tokens: Tokens, path: Path, posteriors_U: NDArray[np.float32]) -> tuple[Word, ...]:
    """Every word of the transcript; one without tokens stands where the word before it ends, for no time."""
    starts_U, ends_U = (emissions.times(frames_U) for frames_U in path.spans(len(tokens.ids)))
    first_W, stop_W = tokens.spans()
    spoken = np.flatnonzero(first_W < stop_W)
    times = TokenTimes(
        first_starts=starts_U[first_W[spoken]],
        last_ends=ends_U[stop_W[spoken] - 1],
        skipped=_skipped(emissions, path, first_W[spoken], stop_W[spoken]),
    )
    begins, ends = place_words(times, emissions.energy_db, emissions.clip.duration_s)
    placed = {int(word): (float(begin), float(end)) for word, begin, end in zip(spoken, begins, ends, strict=True)}
    before_s = float(begins[0])  # of punctuation before the first word that is spoken
    words: list[Word] = []
    for index, (word, first, stop) in enumerate(zip(tokens.words, first_W.tolist(), stop_W.tolist(), strict=True)):
        start_s, end_s = placed.get(index, (before_s, before_s))
        known_U = tokens.ids[first:stop] != WILDCARD
        score = float(posteriors_U[first:stop][known_U].mean()) if known_U.any() else None
        words.append(Word(text=word, start_s=start_s, end_s=end_s, score=score))
        before_s = end_s
    return tuple(words)


def _skipped(
    emissions: Emissions, path: Path, first_W: NDArray[np.int64], stop_W: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Begin and end of the speech passed over before each word and after the last (W + 1, 2); NaN for none."""
    skipped = np.full((len(first_W) + 1, 2), np.nan)
    frames = np.flatnonzero(path.skipped)
    if frames.size:
        # The word before whose first token each frame lies; a token u has the state 2u + 1.
        before = np.searchsorted(2 * first_W + 1, path.states[frames], side="left")
        for word in np.unique(before).tolist():
            inside = frames[before == word]
            skipped[word] = emissions.times(np.array([inside[0], inside[-1] + 1]))
    return skipped


def _empty_text(clip: Clip) -> Finding:
    return clip_finding(clip, "align.empty_text", "has no words in its transcript. Leave it out.")


def _too_long_text(emissions: Emissions, tokens: Tokens) -> Finding:
    needed, frames = needed_frames(tokens.ids), len(emissions.log_probs)
    return clip_finding(
        emissions.clip,
        "align.too_long_text",
        f"has a transcript that needs {needed} frames, and {emissions.clip.duration_s:.2f} s of audio with {frames}: a "
        "CTC model writes one symbol a frame at most. Check that the transcript belongs to the clip.",
        measured=float(needed),
        limit=float(frames),
        unit="frames",
    )
