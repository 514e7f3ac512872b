"""Batched forced alignment by CTC: the best path of a known sequence of tokens through log-probabilities.

A path visits U tokens and the U + 1 gaps around them, which are S = 2U + 1 states: even states are gaps, odd states
are tokens. It begins in state 0 or 1, ends in S - 1 or S - 2, and moves from one frame to the next by 0, 1 or 2
states. A move by 2 passes over a gap between two tokens that differ; equal tokens need a frame in the gap.

Two kinds of state accept what the vocabulary cannot write or the transcript does not say:

- the token `WILDCARD` accepts the best symbol that is not the blank. It stands for a character outside the vocabulary;
- an *open* gap accepts speech as well as the blank, at a penalty for each frame of speech. It stands for speech that
  nobody transcribed. It needs no states of its own: its score is the blank's or the speech's, whichever is higher.

**Memory.** A token keeps 2 bits of each frame (0, 1 or 2 states back) and a gap 1 bit, so the back-pointers of a clip
take T(3U + 3) / 8 bytes, which is less than the TS / 4 of 2 bits for every state. They are all that grows with T times
U: scores are two float32 rows of the current frame, and the scores of symbols are gathered for a block of frames at a
time (`_BLOCK_CELLS`, 16 MB). A clip of 30 minutes with 25,000 characters has T = 90,000 frames at 20 ms:
90,000 * 75,003 / 8 = 844 MB; at 40 ms it is 422 MB. Such a clip is a batch of its own.

**Precision.** Scores are float32, relative to the best symbol of each frame, and the best state is brought back to 0
every `_REBASE` frames; an hour keeps the precision of a few seconds. The score of the path is summed in float64.

Where two paths score the same, the one that stays wins, then the one from the state before; among the last two states
the gap wins. Nothing of this depends on which other clips are in the batch.

Shape letters: B clips, T frames, V symbols, U tokens, S states, W bytes.

Source: Graves et al. 2006 (CTC) for the states; Kürzinger et al. 2020 (CTC segmentation) for alignment by them;
Pratap et al. 2023 (MMS) for the wildcard.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

WILDCARD: Final = -1
"""Token that accepts the best symbol which is not the blank."""

_BATCH_CELLS: Final = 1 << 15  # tokens of a batch: the rows of a frame stay in the processor's second cache
_BATCH_BYTES: Final = 256 << 20  # back-pointers of a batch of several clips
_BLOCK_CELLS: Final = 1 << 22  # scores that are gathered at a time
_REBASE: Final = 256  # frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one clip is aligned to.

    Attributes:
        tokens: Ids (U,) int64, each a symbol that is not the blank, or `WILDCARD`.
        open_gaps: Which gaps accept speech (U + 1,) bool; gap g lies before token g. None opens none.
    """

    tokens: NDArray[np.int64]
    open_gaps: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """The best path of one clip.

    Attributes:
        states: State of each frame (T,) int32, which never falls: 2u + 1 for token u, 2g for gap g.
        score: Log-probability of the path, less the penalties that it paid.
        given: Log-probability of what the transcript has at each frame (T,) float32: of the token, of the best symbol
            that is not the blank for a wildcard, and of the blank in a gap, open or not.
        skipped: Frames at which an open gap accepted speech (T,) bool.
    """

    states: NDArray[np.int32]
    score: float
    given: NDArray[np.float32]
    skipped: NDArray[np.bool_]

    def spans(self, tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First frame of each of so many tokens (U,), and the frame after its last (U,)."""
        states_U = 2 * np.arange(tokens) + 1
        first_U = np.searchsorted(self.states, states_U, side="left")
        return first_U.astype(np.int64), np.searchsorted(self.states, states_U, side="right").astype(np.int64)


def in_tokens(states_T: NDArray[np.int32], chosen_U: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Frames at which a path is in one of the chosen tokens (T,)."""
    inside_T: NDArray[np.bool_] = states_T % 2 == 1
    inside_T[inside_T] = chosen_U[states_T[inside_T] // 2]
    return inside_T


def needed_frames(tokens: NDArray[np.int64]) -> int:
    """Frames that a sequence needs: one for each token, and one between two that are the same symbol."""
    return len(tokens) + int(_repeats(tokens).sum())


def align(
    log_probs: Sequence[NDArray[np.float32]],
    targets: Sequence[Target],
    *,
    blank: int = 0,
    wildcard_penalty: float = 0.0,
    gap_penalty: float = 0.0,
) -> list[Path | None]:
    """Find the best path of each clip.

    Args:
        log_probs: Log-probabilities of each clip (T, V) float32.
        targets: What each clip is aligned to.
        blank: Id of the blank.
        wildcard_penalty: Nats that each frame of a wildcard costs.
        gap_penalty: Nats that each frame of speech in an open gap costs.

    Returns:
        One path for each clip, in their order. None where there is none: the clip has too few frames
        (`needed_frames`), or every path has a probability of zero.

    Raises:
        ValueError: The numbers of clips and targets differ, a token is the blank or no symbol, or the numbers of
            tokens and gaps do not fit.
    """
    if len(log_probs) != len(targets):
        raise ValueError(f"each clip needs a target; got {len(log_probs)} clips and {len(targets)} targets.")
    for scores_TV, target in zip(log_probs, targets, strict=True):
        _check(scores_TV, target, blank)
    possible = [
        place
        for place, (scores_TV, target) in enumerate(zip(log_probs, targets, strict=True))
        if 0 < len(scores_TV) >= needed_frames(target.tokens)
    ]
    paths: list[Path | None] = [None] * len(targets)
    sizes = [(len(log_probs[place]), len(targets[place].tokens)) for place in possible]
    for batch in _batches(sizes):
        places = [possible[index] for index in batch]
        rows = [_Row(log_probs[place], targets[place], blank, wildcard_penalty, gap_penalty) for place in places]
        for place, path in zip(places, _align_batch(rows), strict=True):
            paths[place] = path
    return paths


def _check(scores_TV: NDArray[np.float32], target: Target, blank: int) -> None:
    tokens, symbols = target.tokens, scores_TV.shape[1]
    if not 0 <= blank < symbols or symbols < 2:
        raise ValueError(f"the blank must be one of at least 2 symbols; got blank {blank} of {symbols}.")
    wrong = (tokens != WILDCARD) & ((tokens < 0) | (tokens >= symbols) | (tokens == blank))
    if wrong.any():
        raise ValueError(
            f"tokens must be symbols from 0 to {symbols - 1} without the blank {blank}, or {WILDCARD}; "
            f"got {int(tokens[wrong][0])}."
        )
    if target.open_gaps is not None and target.open_gaps.shape != (len(tokens) + 1,):
        raise ValueError(f"{len(tokens)} tokens have {len(tokens) + 1} gaps; got {target.open_gaps.shape}.")


def _repeats(tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each token but the first repeats the one before; two wildcards are two characters (U - 1,)."""
    repeats: NDArray[np.bool_] = (tokens[1:] == tokens[:-1]) & (tokens[1:] != WILDCARD)
    return repeats


def _batches(sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Put clips of like length together, the longest first; a giant is alone."""
    batch: list[int] = []
    widest = 0
    for index in sorted(range(len(sizes)), key=lambda place: (*sizes[place], place), reverse=True):
        wider = max(widest, sizes[index][1])
        longest = sizes[batch[0]][0] if batch else 0
        clips = len(batch) + 1
        if batch and (clips * (wider + 1) > _BATCH_CELLS or clips * longest * 3 * (wider // 8 + 1) > _BATCH_BYTES):
            yield batch
            batch, wider = [], sizes[index][1]
        batch.append(index)
        widest = wider
    if batch:
        yield batch


class _Row:
    """One clip of a batch: the scores of its states, block by block."""

    def __init__(
        self,
        scores_TV: NDArray[np.float32],
        target: Target,
        blank: int,
        wildcard_penalty: float,
        gap_penalty: float,
    ) -> None:
        self.frames, self.tokens = len(scores_TV), len(target.tokens)
        self.ids_U = target.tokens
        self._scores_TV, self._blank = scores_TV, blank
        self._wildcard_penalty, self._gap_penalty = np.float32(wildcard_penalty), np.float32(gap_penalty)
        self._wild_U = np.flatnonzero(self.ids_U == WILDCARD)
        self._known_U = np.where(self.ids_U == WILDCARD, blank, self.ids_U)
        gaps = target.open_gaps
        self.open_G = gaps if gaps is not None and gaps.any() else None
        self.best_T = scores_TV.max(axis=1)
        self._speech_T: NDArray[np.float32] | None = None
        if self._wild_U.size or self.open_G is not None:
            self._speech_T = np.maximum(
                scores_TV[:, :blank].max(axis=1, initial=-np.inf),
                scores_TV[:, blank + 1 :].max(axis=1, initial=-np.inf),
            )

    def token_scores(self, start: int, stop: int) -> NDArray[np.float32]:
        """Scores of the tokens relative to the best symbol (block, U)."""
        out_TU = self._scores_TV[start:stop].take(self._known_U, axis=1)
        if self._speech_T is not None and self._wild_U.size:
            out_TU[:, self._wild_U] = (self._speech_T[start:stop] - self._wildcard_penalty)[:, None]
        out_TU -= self.best_T[start:stop, None]
        return out_TU

    def gap_scores(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scores of the gaps relative to the best symbol (T,): of closed and of open ones."""
        closed_T = self._scores_TV[:, self._blank] - self.best_T
        if self.open_G is None or self._speech_T is None:
            return closed_T, closed_T
        return closed_T, np.maximum(closed_T, self._speech_T - self._gap_penalty - self.best_T)

    def path(self, states_T: NDArray[np.int32]) -> Path:
        """What the path along these states is worth."""
        frames = np.arange(self.frames)
        is_token_T = states_T % 2 == 1
        tokens_T = states_T[is_token_T] // 2
        blank_T = self._scores_TV[:, self._blank]
        given_T, scored_T = blank_T.copy(), blank_T.copy()
        skipped_T = np.zeros(self.frames, dtype=np.bool_)
        given_T[is_token_T] = self._scores_TV[frames[is_token_T], self._known_U[tokens_T]]
        scored_T[is_token_T] = given_T[is_token_T]
        if self._speech_T is not None:
            wild_T = in_tokens(states_T, self.ids_U == WILDCARD)
            given_T[wild_T] = self._speech_T[wild_T]
            scored_T[wild_T] = self._speech_T[wild_T] - self._wildcard_penalty
            if self.open_G is not None:
                open_T = np.zeros(self.frames, dtype=np.bool_)
                open_T[~is_token_T] = self.open_G[states_T[~is_token_T] // 2]
                paid_T = self._speech_T - self._gap_penalty
                skipped_T = open_T & (paid_T > blank_T)
                scored_T[skipped_T] = paid_T[skipped_T]
        score = math.fsum(scored_T.tolist())
        return Path(states=states_T, score=score, given=given_T.astype(np.float32), skipped=skipped_T)


def _align_batch(rows: Sequence[_Row]) -> list[Path | None]:
    """The paths of clips that are in order of length, the longest first.

    Tokens of padding lie behind those of the clip, and paths only go forward, so padding changes no score.
    """
    frames_B = np.array([row.frames for row in rows])
    tokens_B = np.array([row.tokens for row in rows])
    longest, widest = int(frames_B[0]), int(tokens_B.max())
    bits = 8 * (widest // 8 + 1)
    moves_TKBW = np.zeros((longest, 3, len(rows), bits // 8), dtype=np.uint8)
    closed_TB, opened_TB, open_BG = _gaps(rows, longest, widest)
    repeat_BU = np.zeros((len(rows), max(widest - 1, 0)), dtype=np.float32)  # added to a move by 2
    for row, clip in zip(repeat_BU, rows, strict=True):
        row[: max(clip.tokens - 1, 0)][_repeats(clip.ids_U)] = -np.inf
    gaps_BG = np.full((len(rows), widest + 1), -np.inf, dtype=np.float32)
    tokens_BU = np.full((len(rows), widest), -np.inf, dtype=np.float32)
    gaps_BG[:, 0] = 0.0  # before the first frame: the first gap may be stayed in, or left for the first token
    came_BU, skip_BU = np.empty_like(tokens_BU), np.empty_like(repeat_BU)
    step_KBX = np.zeros((3, len(rows), bits), dtype=np.bool_)
    ends_B = np.zeros(len(rows), dtype=np.int64)
    reached_B = np.zeros(len(rows), dtype=np.bool_)
    size = 1
    while 2 * size <= min(_REBASE, _BLOCK_CELLS // max(1, len(rows) * widest)):
        size *= 2
    block_TBU = np.full((size, len(rows), widest), -np.inf, dtype=np.float32)  # tokens of padding cannot be reached
    active = len(rows)
    for time in range(longest):
        if time % size == 0:
            for index, clip in enumerate(rows[:active]):
                stop = min(time + size, clip.frames)
                block_TBU[: stop - time, index, : clip.tokens] = clip.token_scores(time, stop)
        if time % _REBASE == 0 and time:
            _rebase(gaps_BG, tokens_BU)
        gaps, tokens, came, skip = gaps_BG[:active], tokens_BU[:active], came_BU[:active], skip_BU[:active]
        step = step_KBX[:, :active]
        # Into a token: from itself, from the gap before it, from the token before.
        np.greater(gaps[:, :widest], tokens, out=step[1, :, :widest])
        np.maximum(gaps[:, :widest], tokens, out=came)
        if widest > 1:
            np.add(tokens[:, :-1], repeat_BU[:active], out=skip)
            np.greater(skip, came[:, 1:], out=step[2, :, 1:widest])
            np.maximum(skip, came[:, 1:], out=came[:, 1:])
        # Into a gap: from itself, from the token before it.
        np.greater(tokens, gaps[:, 1:], out=step[0, :, 1 : widest + 1])
        np.maximum(tokens, gaps[:, 1:], out=gaps[:, 1:])
        if open_BG is None:
            gaps += closed_TB[time, :active, None]
        else:
            gaps += np.where(open_BG[:active], opened_TB[time, :active, None], closed_TB[time, :active, None])
        np.add(came, block_TBU[time % size, :active], out=tokens)
        moves_TKBW[time, :, :active] = np.packbits(step, axis=-1, bitorder="little")
        while active and frames_B[active - 1] == time + 1:
            active -= 1
            last = int(tokens_B[active])
            in_gap = gaps_BG[active, last]
            in_token = tokens_BU[active, last - 1] if last else -np.inf
            ends_B[active] = 2 * last - int(in_token > in_gap)
            reached_B[active] = max(in_gap, in_token) > -np.inf
    states = _trace(moves_TKBW, ends_B, frames_B)
    return [
        clip.path(path_T) if reached else None for clip, path_T, reached in zip(rows, states, reached_B, strict=True)
    ]


def _gaps(
    rows: Sequence[_Row], longest: int, widest: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_] | None]:
    """Scores of closed and open gaps (T, B), and which are open (B, U + 1)."""
    closed_TB = np.zeros((longest, len(rows)), dtype=np.float32)
    opened_TB = closed_TB.copy()
    open_BG = np.zeros((len(rows), widest + 1), dtype=np.bool_)
    for index, clip in enumerate(rows):
        closed_TB[: clip.frames, index], opened_TB[: clip.frames, index] = clip.gap_scores()
        if clip.open_G is not None:
            open_BG[index, : clip.tokens + 1] = clip.open_G
    return closed_TB, opened_TB, open_BG if open_BG.any() else None


def _rebase(gaps_BG: NDArray[np.float32], tokens_BU: NDArray[np.float32]) -> None:
    """Bring the best state of each clip to 0."""
    best_B = np.maximum(gaps_BG.max(axis=1), tokens_BU.max(axis=1, initial=-np.inf))
    best_B[~np.isfinite(best_B)] = 0.0
    gaps_BG -= best_B[:, None]
    tokens_BU -= best_B[:, None]


def _trace(
    moves_TKBW: NDArray[np.uint8], ends_B: NDArray[np.int64], frames_B: NDArray[np.int64]
) -> list[NDArray[np.int32]]:
    """Follow the back-pointers of all clips at once, from their last frames."""
    clips_B = np.arange(len(ends_B))
    states_BT = np.zeros((len(ends_B), len(moves_TKBW)), dtype=np.int32)
    state_B = ends_B.copy()
    for time in range(len(moves_TKBW) - 1, -1, -1):
        active = int(np.searchsorted(-frames_B, -time, side="left"))  # clips with more than `time` frames
        state, clips = state_B[:active], clips_B[:active]
        states_BT[:active, time] = state
        place = state >> 1
        bytes_KB = moves_TKBW[time][:, clips, place >> 3] >> (place & 7).astype(np.uint8) & 1
        into_token = state & 1
        back = np.where(into_token, np.where(bytes_KB[2], 2, bytes_KB[1]), bytes_KB[0])
        state_B[:active] = state - back
    return [states_T[:frames].copy() for states_T, frames in zip(states_BT, frames_B.tolist(), strict=True)]
