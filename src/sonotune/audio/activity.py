"""Where in a waveform somebody speaks, by its energy, and cheap properties of each frame.

Frames are 10 ms apart. An energy detector hears that something is loud, not that it is speech; for real noise there is
`serving.speech_check`. Shape letters: S samples, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

HOP_S = 0.010
WINDOW_S = 0.025
SILENCE_DB = -100.0
"""Energy of digital silence: the floor of energies in dB here."""
NO_SIGNAL_DB = -200.0
"""Level of a waveform that does not change: the floor of levels, which are looked at below `SILENCE_DB` as well."""


def frame_energy_db(waveform_S: NDArray[np.float32], sample_rate_hz: int) -> NDArray[np.float32]:
    """Mean power of each frame.

    Args:
        waveform_S: Samples, full scale 1.0.
        sample_rate_hz: Rate.

    Returns:
        (T,) in dB of full scale squared (a full-scale square wave is 0, a sine -3), `SILENCE_DB` at least, with
        T = ceil(S / hop). Frame t looks at 25 ms from t * 10 ms on, less at the end.
    """
    return energy_of_blocks([waveform_S], sample_rate_hz)


def energy_of_blocks(blocks: Iterable[NDArray[np.float32]], sample_rate_hz: int) -> NDArray[np.float32]:
    """`frame_energy_db` of a waveform that comes in blocks and is never held as a whole.

    Args:
        blocks: (S,) samples each, one after the other.
        sample_rate_hz: Rate.
    """
    floor = 10.0 ** (SILENCE_DB / 10.0)
    window = max(1, round(WINDOW_S * sample_rate_hz))
    made: list[NDArray[np.float32]] = []
    held, first, frame = np.zeros(0, dtype=np.float32), 0, 0  # samples held, the place of the first, the next frame

    def measure(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        power = _frame_means(np.square(held, dtype=np.float64), starts - first, stops - first)
        made.append((10.0 * np.log10(np.maximum(power, floor))).astype(np.float32))

    for block in blocks:
        held = np.concatenate((held, block)) if held.size else block
        starts = _frame_starts(frame, first + held.size - window + 1, sample_rate_hz)
        if starts.size:
            measure(starts, starts + window)
            frame += starts.size
            left = round(frame * (HOP_S * sample_rate_hz)) - first
            held, first = held[left:].copy(), first + left
    starts = _frame_starts(frame, first + held.size, sample_rate_hz)
    if starts.size:  # their windows end with the recording
        measure(starts, np.minimum(starts + window, first + held.size))
    return np.concatenate(made) if made else np.zeros(0, dtype=np.float32)


def signal_level_db(waveform_S: NDArray[np.float32], sample_rate_hz: int) -> float:
    """Power of the loudest 25 ms, a constant offset taken out.

    Args:
        waveform_S: Samples, full scale 1.0.
        sample_rate_hz: Rate.

    Returns:
        dB of full scale squared, `NO_SIGNAL_DB` at least: that of zeros, and of any other constant.
    """
    size = max(1, round(WINDOW_S * sample_rate_hz))
    whole = waveform_S.size // size * size
    frames = [part for part in (waveform_S[:whole].reshape(-1, size), waveform_S[None, whole:]) if part.size]
    power = max((float(part.var(axis=1, dtype=np.float64).max()) for part in frames), default=0.0)
    return max(NO_SIGNAL_DB, 10.0 * math.log10(power)) if power > 0 else NO_SIGNAL_DB


def zero_crossings_hz(waveform_S: NDArray[np.float32], sample_rate_hz: int) -> NDArray[np.float32]:
    """Changes of sign per second in each frame: twice the frequency of a tone, high for noise and for `s`.

    Args:
        waveform_S: Samples.
        sample_rate_hz: Rate.

    Returns:
        (T,) changes per second; frames as in `frame_energy_db`.
    """
    negative = np.signbit(waveform_S)
    crossings = np.zeros(waveform_S.size)
    crossings[1:] = negative[1:] != negative[:-1]
    starts, stops = _frames(waveform_S.size, sample_rate_hz)
    rate_T: NDArray[np.float32] = (_frame_means(crossings, starts, stops) * sample_rate_hz).astype(np.float32)
    return rate_T


def speech_mask(
    waveform_S: NDArray[np.float32],
    sample_rate_hz: int,
    *,
    threshold_share: float = 0.35,
    range_db: float = 40.0,
    silence_db: float = -70.0,
    min_speech_s: float = 0.05,
    max_gap_s: float = 0.20,
) -> NDArray[np.bool_]:
    """Mark the frames that are loud for this clip.

    The threshold lies between the clip's quiet level (10th percentile of the energy) and its loud one (95th), so it
    follows gain and steady noise. A clip without contrast (under 6 dB) is all speech, or all silence when it is quiet.

    Args:
        waveform_S: Samples, full scale 1.0.
        sample_rate_hz: Rate.
        threshold_share: Where between quiet (0) and loud (1) the threshold lies, in dB.
        range_db: Frames further than this below the loud level are never speech.
        silence_db: Frames below this are never speech, in dB of full scale.
        min_speech_s: Shorter bursts are dropped (clicks), in seconds.
        max_gap_s: Shorter pauses are filled (stops within words), in seconds.

    Returns:
        (T,) bool; frames as in `frame_energy_db`.
    """
    return loud_frames(
        frame_energy_db(waveform_S, sample_rate_hz),
        threshold_share=threshold_share,
        range_db=range_db,
        silence_db=silence_db,
        min_speech_s=min_speech_s,
        max_gap_s=max_gap_s,
    )


def loud_frames(
    energy_db: NDArray[np.float32],
    *,
    threshold_share: float = 0.35,
    range_db: float = 40.0,
    silence_db: float = -70.0,
    min_speech_s: float = 0.05,
    max_gap_s: float = 0.20,
) -> NDArray[np.bool_]:
    """`speech_mask` of the energies of frames (T,), such as `energy_of_blocks` gives."""
    if not energy_db.size:
        return np.zeros(0, dtype=np.bool_)
    quiet, loud = np.percentile(energy_db, (10, 95))
    if loud - quiet < 6.0:
        return np.full(energy_db.size, bool(loud > silence_db), dtype=np.bool_)
    mask = energy_db > max(quiet + threshold_share * (loud - quiet), loud - range_db, silence_db)
    mask = ~_without_short_runs(~mask, max_gap_s, keep_ends=True)
    return _without_short_runs(mask, min_speech_s, keep_ends=False)


def speech_spans(mask_T: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Turn a mask into spans.

    Args:
        mask_T: What `speech_mask` returns.

    Returns:
        (begin, end) of each run of speech, in seconds.
    """
    starts, stops = _runs(mask_T)
    return [(float(start * HOP_S), float(stop * HOP_S)) for start, stop in zip(starts, stops, strict=True)]


def signal_to_noise_db(waveform_S: NDArray[np.float32], sample_rate_hz: int) -> float | None:
    """Power of the speech frames over that of the others.

    Args:
        waveform_S: Samples, full scale 1.0.
        sample_rate_hz: Rate.

    Returns:
        The ratio in dB, noise taken out of the speech frames; None where the clip has only one of the two kinds, or no
        more power in one than in the other.
    """
    energy_db = frame_energy_db(waveform_S, sample_rate_hz)
    return signal_to_noise_of(energy_db, loud_frames(energy_db))


def signal_to_noise_of(energy_db: NDArray[np.float32], mask: NDArray[np.bool_]) -> float | None:
    """`signal_to_noise_db` by the energies of frames (T,) and which of them are speech (T,)."""
    if mask.all() or not mask.any():
        return None
    power = 10.0 ** (energy_db.astype(np.float64) / 10.0)
    noise = float(power[~mask].mean())
    signal = float(power[mask].mean()) - noise
    return 10.0 * math.log10(signal / noise) if signal > 0 else None


def _frame_starts(first: int, num_samples: int, sample_rate_hz: int) -> NDArray[np.int64]:
    """Start sample of each frame from a first on; positions are rounded one by one, so they never drift."""
    count = math.ceil(num_samples / (HOP_S * sample_rate_hz))
    starts = np.round(np.arange(first, count) * (HOP_S * sample_rate_hz)).astype(np.int64)
    return starts[starts < num_samples]


def _frames(num_samples: int, sample_rate_hz: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and stop sample of each frame."""
    starts = _frame_starts(0, num_samples, sample_rate_hz)
    return starts, np.minimum(starts + max(1, round(WINDOW_S * sample_rate_hz)), num_samples)


def _frame_means(
    values_S: NDArray[np.float64], starts_T: NDArray[np.int64], stops_T: NDArray[np.int64]
) -> NDArray[np.float64]:
    total = np.concatenate(([0.0], np.cumsum(values_S)))
    means: NDArray[np.float64] = (total[stops_T] - total[starts_T]) / np.maximum(stops_T - starts_T, 1)
    return means


def _runs(mask_T: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    edges = np.diff(np.concatenate(([0], mask_T.astype(np.int8), [0])))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def _without_short_runs(mask_T: NDArray[np.bool_], shorter_than_s: float, *, keep_ends: bool) -> NDArray[np.bool_]:
    """Clear the true runs that are too short; with `keep_ends` not those that touch the begin or the end."""
    result = mask_T.copy()
    for start, stop in zip(*_runs(mask_T), strict=True):
        at_end = start == 0 or stop == mask_T.size
        if (stop - start) * HOP_S < shorter_than_s - 1e-9 and not (keep_ends and at_end):
            result[start:stop] = False
    return result
