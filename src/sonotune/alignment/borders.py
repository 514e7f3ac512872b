"""Where words begin and end in the sound, near where a CTC model has written them.

A CTC model is trained to write symbols in order, not in time: it writes the first letters of a word up to 0.2 s after
the word begins, and those of the first and the last word of a clip anywhere in the silence around them. The energy of
the waveform says where the sound of a word begins. Its tokens say which of the dips in the energy is the border:

- between two words, the quietest place of the `REACH_S` before the first token of the second, where 40 ms from the
  middle of that span weigh as much as 1 dB. Where it is a pause, the first word ends where the pause begins and the
  second begins where it ends; where the words run together, both meet at that place;
- at the ends of a clip, and beside speech that the transcript does not have: the nearest edge of sound; from silence
  at any distance within the word, from speech at most `REACH_S` away.

Sound is what is louder than a threshold between the quiet and the loud level of the clip, after pre-emphasis, which
takes the hum of the mains away. A clip without contrast, such as music or noise, keeps the times of the tokens; there
a word lasts half of the time to the next token longer than its last token, at most `MAX_TAIL_S`.

Shape letters: S samples, E frames of energy, W words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

HOP_S: Final = 0.005
_WINDOW_S: Final = 0.015
_FLOOR_DB: Final = -100.0
_PREEMPHASIS: Final = 0.97  # hum of the mains and rumble are no sound of words
_THRESHOLD_SHARE: Final = 0.2
_RANGE_DB: Final = 40.0
_CONTRAST_DB: Final = 6.0
_DEPTH_DB: Final = 15.0
"""So far below the threshold a pause is as good as silence."""
REACH_S: Final = 0.3
_DB_PER_S: Final = 25.0
MAX_TAIL_S: Final = 0.1


def fine_energy_db(waveform_S: NDArray[np.float32], sample_rate_hz: int) -> NDArray[np.float32]:
    """Mean power of each 15 ms after pre-emphasis, in dB of full scale.

    Returns:
        (E,) float32 with E = ceil(S / 5 ms); frame e is centred on the middle of the 5 ms from e * 5 ms on.
    """
    hop, half = HOP_S * sample_rate_hz, (_WINDOW_S - HOP_S) / 2 * sample_rate_hz
    sharpened_S = waveform_S.copy()
    sharpened_S[1:] -= np.float32(_PREEMPHASIS) * waveform_S[:-1]
    sums = np.concatenate([[0.0], np.cumsum(np.square(sharpened_S, dtype=np.float64))])
    frames = np.arange(int(np.ceil(len(waveform_S) / hop)))
    first = np.clip(np.round(frames * hop - half), 0, len(waveform_S)).astype(np.int64)
    stop = np.clip(np.round((frames + 1) * hop + half), 0, len(waveform_S)).astype(np.int64)
    power = (sums[stop] - sums[first]) / np.maximum(stop - first, 1)
    energy_E: NDArray[np.float32] = (10.0 * np.log10(np.maximum(power, 10.0 ** (_FLOOR_DB / 10.0)))).astype(np.float32)
    return energy_E


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTimes:
    """Where the tokens of the words of a clip lie; words without tokens left out.

    Attributes:
        first_starts: Start of the first token of each word (W,), in seconds.
        last_ends: End of its last token (W,).
        skipped: Begin and end of speech that the transcript does not have, before each word and after the last
            (W + 1, 2); NaN where there is none.
    """

    first_starts: NDArray[np.float64]
    last_ends: NDArray[np.float64]
    skipped: NDArray[np.float64]


def place_words(
    times: TokenTimes, energy_db: NDArray[np.float32], duration_s: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Starts and ends of the words (W,) each, in seconds: in order, none below 0 s long, none over another.

    Args:
        times: Of one word or more.
        energy_db: `fine_energy_db` of the clip (E,).
        duration_s: Of the clip.
    """
    words = len(times.first_starts)
    starts_W, ends_W = times.first_starts.copy(), times.last_ends.copy()
    quiet, loud = np.percentile(energy_db, (5, 95)) if energy_db.size else (0.0, 0.0)
    if loud - quiet < _CONTRAST_DB:
        next_W = np.append(starts_W[1:], duration_s)
        ends_W += np.minimum(MAX_TAIL_S, np.maximum(next_W - ends_W, 0.0) / 2)
        return starts_W, np.minimum(ends_W, next_W)
    sound = _Sound(energy_db, max(quiet + _THRESHOLD_SHARE * (loud - quiet), loud - _RANGE_DB))
    apart_W = ~np.isnan(times.skipped[:, 0])
    for word in range(words + 1):
        before, after = word - 1, word
        if 0 < word < words and not apart_W[word]:
            first_s, last_s = float(times.first_starts[before]), float(times.last_ends[before])
            end_s, starts_W[after] = sound.border(first_s, float(times.first_starts[after]))
            # Where more lies between than the reach, there may be sound of neither.
            ends_W[before] = end_s if end_s - last_s <= REACH_S else sound.end(last_s, first_s, end_s)
            continue
        if after < words:
            earliest_s = float(times.skipped[word, 1]) if apart_W[word] else 0.0
            starts_W[after] = sound.begin(float(starts_W[after]), earliest_s, float(times.last_ends[after]))
        if before >= 0:
            latest_s = float(times.skipped[word, 0]) if apart_W[word] else duration_s
            ends_W[before] = sound.end(float(ends_W[before]), float(times.first_starts[before]), latest_s)
    starts_W = np.maximum.accumulate(starts_W.clip(0.0, duration_s))
    ends_W = np.maximum(starts_W, np.minimum(ends_W, np.append(starts_W[1:], duration_s)))
    return starts_W, ends_W


class _Sound:
    """Edges of sound in one clip."""

    def __init__(self, energy_db: NDArray[np.float32], threshold_db: float) -> None:
        self._depth = np.maximum(energy_db, np.float32(threshold_db - _DEPTH_DB))
        self._frames = len(energy_db)
        loud = energy_db > threshold_db
        self._loud = loud
        indices = np.arange(self._frames)
        # The frame of the nearest change at or behind each frame, and at or before it.
        self._next_loud = _running_min(np.where(loud, indices, self._frames))
        self._next_quiet = _running_min(np.where(loud, self._frames, indices))
        self._last_loud = np.maximum.accumulate(np.where(loud, indices, -1))
        self._last_quiet = np.maximum.accumulate(np.where(loud, -1, indices))

    def _frame(self, time_s: float) -> int:
        return min(max(round(time_s / HOP_S), 0), self._frames - 1)

    def border(self, after_s: float, before_s: float) -> tuple[float, float]:
        """End of a word and start of the next, within the reach before the next one's first token."""
        stop = max(1, self._frame(before_s))
        first = min(max(self._frame(before_s - REACH_S), self._frame(after_s) + 1), stop - 1)
        middle = self._frame(before_s) - REACH_S / HOP_S / 2
        cost = self._depth[first:stop] + _DB_PER_S * HOP_S * np.abs(np.arange(first, stop) - middle)
        place = first + int(np.argmin(cost))
        if self._loud[place]:
            return place * HOP_S, place * HOP_S
        return (int(self._last_loud[place]) + 1) * HOP_S, int(self._next_loud[place]) * HOP_S

    def begin(self, token_s: float, earliest_s: float, latest_s: float) -> float:
        """Start of the sound that a first token belongs to."""
        place = self._frame(token_s)
        if not self._loud[place]:
            return min(max(token_s, int(self._next_loud[place]) * HOP_S), max(token_s, latest_s))
        onset = (int(self._last_quiet[place]) + 1) * HOP_S
        return max(onset, earliest_s) if token_s - onset <= REACH_S else token_s

    def end(self, token_s: float, earliest_s: float, latest_s: float) -> float:
        """End of the sound that a last token belongs to."""
        place = self._frame(token_s - HOP_S)
        if not self._loud[place]:
            return max(min(token_s, (int(self._last_loud[place]) + 1) * HOP_S), min(token_s, earliest_s))
        offset = int(self._next_quiet[place]) * HOP_S
        return min(offset if offset - token_s <= REACH_S else token_s + MAX_TAIL_S, max(latest_s, token_s))


def _running_min(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Minimum over each place and all behind it."""
    least: NDArray[np.int64] = np.minimum.accumulate(values[::-1])[::-1]
    return least
