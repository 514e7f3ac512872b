"""Channels of synthetic corpora: what stands between a voice and the recording, the same for every clip.

`audio.augment` draws a new condition for each clip, so that a model learns to ignore them. A channel is one fixed
condition that a model has to adapt to. Shape letters: S samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sonotune.audio import augment

Waveform = NDArray[np.float32]

_MAINS_HZ: Final = 50.0
# How bad the intercom is: power of hum and noise against the speech, and of the resonance, in dB.
_HUM_DB: Final = 0.0
_NOISE_DB: Final = -22.0
_RESONANCE_DB: Final = 12.0


def intercom(waveform_S: Waveform, sample_rate_hz: int, rng: np.random.Generator) -> Waveform:
    """A cheap door intercom: small speaker in a metal box, long unshielded wires, GSM on the way.

    In order: two reflections within the box, a resonance and a band of 350 to 2700 Hz, hum of the mains with its
    harmonics as loud as the speech, noise at 22 dB below it, GSM full rate. Only the noise and the phase of the hum
    differ between clips.

    Args:
        waveform_S: Samples.
        sample_rate_hz: Rate.
        rng: Source of the noise and of the hum's phase.

    Returns:
        (S,) samples, in place in time.
    """
    boxed_S = _reflected(waveform_S, sample_rate_hz, delays_s=(0.0021, 0.0067), gains=(0.8, -0.6))
    narrow_S = _filtered(boxed_S, sample_rate_hz, low_hz=350.0, high_hz=2700.0, peak_hz=1150.0, peak_db=_RESONANCE_DB)
    speech = np.abs(narrow_S) > 0.05 * np.abs(narrow_S).max()
    level = float(np.sqrt(np.square(narrow_S[speech], dtype=np.float64).mean()))
    hum_S = _hum(narrow_S.size, sample_rate_hz, phase=rng.uniform(0, 2 * np.pi))
    buzzing_S = (narrow_S + level * 10 ** (_HUM_DB / 20) * hum_S).astype(np.float32)
    noisy_S = augment.noise(buzzing_S, sample_rate_hz, rng, snr_low_db=-_NOISE_DB, snr_high_db=-_NOISE_DB)
    return augment.codec(noisy_S, sample_rate_hz, rng, names=("gsm",))


def _reflected(
    waveform_S: Waveform, sample_rate_hz: int, *, delays_s: tuple[float, ...], gains: tuple[float, ...]
) -> Waveform:
    out_S = waveform_S.copy()
    for delay_s, gain in zip(delays_s, gains, strict=True):
        delay = round(delay_s * sample_rate_hz)
        out_S[delay:] += np.float32(gain) * waveform_S[:-delay]
    return out_S


def _filtered(
    waveform_S: Waveform, sample_rate_hz: int, *, low_hz: float, high_hz: float, peak_hz: float, peak_db: float
) -> Waveform:
    """Band pass with slopes of a sixth of an octave to each side, and a resonance a third of an octave wide."""
    length = waveform_S.size + sample_rate_hz // 20  # what the filter rings on is cut, not wrapped to the start
    frequency = np.fft.rfftfreq(length, 1 / sample_rate_hz).clip(1.0)
    octaves = np.stack([np.log2(frequency / low_hz), np.log2(high_hz / frequency)])
    slopes = np.sin((octaves * 3 + 0.5).clip(0, 1) * (np.pi / 2)) ** 2
    resonance = 10 ** (peak_db / 20 * np.exp(-0.5 * (np.log2(frequency / peak_hz) * 6) ** 2))
    spectrum = np.fft.rfft(waveform_S, length) * slopes.prod(axis=0) * resonance
    return np.fft.irfft(spectrum, length)[: waveform_S.size].astype(np.float32)


def _hum(num_samples: int, sample_rate_hz: int, *, phase: float) -> NDArray[np.float64]:
    """Odd harmonics of the mains that fall as 1/n, at a mean power of 1."""
    angle_S = 2 * np.pi * _MAINS_HZ / sample_rate_hz * np.arange(num_samples) + phase
    orders = np.arange(1, 40, 2)
    wave_S = np.zeros(num_samples)
    for order in orders:
        wave_S += np.sin(order * angle_S) / order
    wave_S /= float(np.sqrt(np.sum(0.5 / orders**2)))
    return wave_S


CHANNELS: Final[Mapping[str, Callable[[Waveform, int, np.random.Generator], Waveform]]] = {"intercom": intercom}
