"""What can be wrong with a recording whatever is said in it: clipping, silence, noise, a narrower band than its rate.

Each is measured on the samples of one channel at the file's own rate: a resampled waveform has the band of the narrower
of both rates.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sonotune.audio.activity import (
    frame_energy_db,
    loud_frames,
    signal_level_db,
    signal_to_noise_of,
)

FULL_SCALE: Final = 0.999
"""Samples from this amplitude on are at full scale."""
CLIPPED_RUN: Final = 3
"""So many samples in a row at full scale, or equal at the peak, are clipped."""
CLIFF_DB: Final = 30.0
"""The spectrum of a resampled recording falls by more than this where its band ended. Voices fall more slowly: real
speech at 16 kHz fell by at most 16 dB, the same at 8 kHz by 45 to 60 dB."""
RATES_HZ: Final = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)

_SAME: Final = 1e-4  # of the peak: equal samples, up to a step of 16 bit
_WINDOW_S: Final = 0.032
_BELOW_HZ: Final = 500.0  # of the band under a cliff, whose level is compared
_EDGE_HZ: Final = 600.0  # in which a filter falls
_EXACT_HZ: Final = 150.0  # how well the end of a band is measured
_LOWEST_HZ: Final = 1_500.0  # a narrower band is no sampling rate of speech
_BLOCK: Final = 4096  # windows transformed at once


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalQuality:
    """What was measured on a recording.

    Attributes:
        level_db: Power of the loudest 25 ms, in dB of full scale squared.
        clipped_share: Part of the samples in clipped runs.
        silent_share: Part of the frames that are not loud.
        signal_to_noise_db: Of loud over other frames; None where there is only one of the two kinds.
        bandwidth_hz: Where the band of the recording ends: half its rate, or where the spectrum falls off a cliff.
        recorded_rate_hz: The usual sampling rate that has this band, where it is lower than the file's; else None.
    """

    level_db: float
    clipped_share: float
    silent_share: float
    signal_to_noise_db: float | None
    bandwidth_hz: float
    recorded_rate_hz: int | None


def measure_quality(
    waveform_S: NDArray[np.float32], sample_rate_hz: int, *, energy_db: NDArray[np.float32] | None = None
) -> SignalQuality:
    """Measure a recording.

    Args:
        waveform_S: Samples of one channel at the file's own rate, full scale 1.0; at least one.
        sample_rate_hz: That rate.
        energy_db: Its energies (`frame_energy_db`), where they are known already.
    """
    bandwidth_hz = band_limit_hz(waveform_S, sample_rate_hz)
    energy_T = frame_energy_db(waveform_S, sample_rate_hz) if energy_db is None else energy_db
    loud_T = loud_frames(energy_T)
    return SignalQuality(
        level_db=signal_level_db(waveform_S, sample_rate_hz),
        clipped_share=clipped_share(waveform_S),
        silent_share=float(1.0 - loud_T.mean()) if loud_T.size else 1.0,
        signal_to_noise_db=signal_to_noise_of(energy_T, loud_T),
        bandwidth_hz=bandwidth_hz if bandwidth_hz is not None else sample_rate_hz / 2,
        recorded_rate_hz=None if bandwidth_hz is None else recorded_rate_hz(bandwidth_hz, sample_rate_hz),
    )


def clipped_share(waveform_S: NDArray[np.float32]) -> float:
    """Part of the samples that a limit cut off.

    A run of samples at full scale is clipped, and so is one of equal samples at the peak of the recording, which is
    what clipping leaves after the gain was changed. A waveform that does not change has no peak.

    Args:
        waveform_S: Samples, full scale 1.0.
    """
    size = np.abs(waveform_S)
    peak = float(size.max(initial=0.0))
    if peak == 0.0 or float(np.ptp(waveform_S)) <= _SAME * peak:
        return 0.0
    clipped = np.zeros(waveform_S.size, dtype=np.bool_)
    for side in (waveform_S, -waveform_S):
        top = float(side.max(initial=0.0))
        limit = min(FULL_SCALE, top * (1 - _SAME)) if top >= FULL_SCALE or top >= 0.5 * peak else np.inf
        at_limit = side >= limit
        edges = np.diff(np.concatenate(([0], at_limit.astype(np.int8), [0])))
        for start, stop in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
            if stop - start >= CLIPPED_RUN:
                clipped[start:stop] = True
    return float(clipped.mean())


def band_limit_hz(waveform_S: NDArray[np.float32], sample_rate_hz: int) -> float | None:
    """Where the long-term spectrum of the louder half of a recording falls off a cliff and stays down.

    The lowest frequency is taken above which everything is `CLIFF_DB` below the band just under it. A recording that
    was resampled from a lower rate has one near half that rate; a lossy encoder that cut a band off makes one too.

    Args:
        waveform_S: Samples of one channel, full scale 1.0.
        sample_rate_hz: Rate.

    Returns:
        The frequency in Hz, some 100 Hz exact; None where there is no cliff, or less than 0.1 s or no signal.
    """
    window = round(_WINDOW_S * sample_rate_hz)
    if waveform_S.size < 3 * window:
        return None
    spectrum_db = _long_term_spectrum_db(waveform_S, window)
    if spectrum_db is None:
        return None
    step_hz = sample_rate_hz / window
    power = 10.0 ** (spectrum_db / 10)
    total = np.concatenate(([0.0], np.cumsum(power)))
    below, edge = round(_BELOW_HZ / step_hz), round(_EDGE_HZ / step_hz)
    smooth = 5  # bins: a line in the empty band is no speech
    smoothed = np.convolve(power, np.ones(smooth) / smooth, "same")
    above = np.maximum.accumulate(smoothed[::-1])[::-1]  # the loudest from each bin on
    for bin_index in range(max(below, round(_LOWEST_HZ / step_hz)), power.size - edge):
        under = (total[bin_index] - total[bin_index - below]) / below
        if under > above[bin_index + edge] * 10.0 ** (CLIFF_DB / 10):
            return _edge_hz(spectrum_db, bin_index, edge) * step_hz
    return None


def recorded_rate_hz(bandwidth_hz: float, sample_rate_hz: int) -> int | None:
    """The usual sampling rate that has a band, where it is lower than that of the file.

    Args:
        bandwidth_hz: Where the band ends.
        sample_rate_hz: Rate of the file.
    """
    lower = [rate for rate in RATES_HZ if rate < 0.95 * sample_rate_hz and rate / 2 >= bandwidth_hz - _EXACT_HZ]
    return lower[0] if lower else None


def samples_digest(waveform_S: NDArray[np.float32]) -> str:
    """SHA-256 of what is heard, at 16 bit: the same for copies of a recording in any lossless format.

    Args:
        waveform_S: Samples at the file's own rate, full scale 1.0.
    """
    steps = np.clip(np.round(waveform_S * 32768.0), -32768, 32767).astype("<i2")
    return hashlib.sha256(steps.tobytes()).hexdigest()


def _long_term_spectrum_db(waveform_S: NDArray[np.float32], window: int) -> NDArray[np.float64] | None:
    """Mean power of the louder half of the windows, (window // 2 + 1,) in dB; None without a signal."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform_S, window)[:: window // 2]
    energies = np.concatenate(
        [frames[at : at + _BLOCK].var(axis=1, dtype=np.float64) for at in range(0, len(frames), _BLOCK)]
    )
    chosen = np.flatnonzero(energies >= np.median(energies))
    if float(energies.max(initial=0.0)) <= 0.0:
        return None
    shape = np.hanning(window)
    power = np.zeros(window // 2 + 1)
    for at in range(0, chosen.size, _BLOCK):
        part = frames[chosen[at : at + _BLOCK]].astype(np.float64)
        power += (np.abs(np.fft.rfft((part - part.mean(axis=1, keepdims=True)) * shape, axis=1)) ** 2).sum(axis=0)
    result: NDArray[np.float64] = 10.0 * np.log10(power / chosen.size + 1e-20)
    return result


def _edge_hz(spectrum_db: NDArray[np.float64], first: int, width: int) -> float:
    """The bin inside an edge where the spectrum crosses the middle between both sides."""
    top, bottom = float(spectrum_db[first - 3 : first + 1].mean()), float(spectrum_db[first + width :][:5].mean())
    inside = np.flatnonzero(spectrum_db[first : first + width + 1] < (top + bottom) / 2)
    return float(first + (int(inside[0]) if inside.size else width))
