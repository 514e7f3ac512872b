"""Mel filters: the triangles that sum a power spectrum into bands.

Shape letters: F bands, N frequencies of the transform.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Slaney's scale (Auditory Toolbox, 1998): linear to 1 kHz, then logarithmic, 27 mels for each factor of 6.4.
_LINEAR_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0


def slaney_filters(bands: int, transform_samples: int, sample_rate_hz: int) -> NDArray[np.float64]:
    """Filters (F, N) of equal area on Slaney's mel scale, from 0 Hz to 8 kHz or half the rate if that is lower.

    Source: `librosa.filters.mel`, `transformers.audio_utils.mel_filter_bank(norm="slaney", mel_scale="slaney")`.
    """
    highest_hz = min(8000.0, sample_rate_hz / 2)
    edges_hz = _slaney_to_hz(np.linspace(0.0, _hz_to_slaney(highest_hz), bands + 2))
    frequencies_hz = np.linspace(0.0, sample_rate_hz / 2, transform_samples // 2 + 1)
    width_F1 = (edges_hz[2:] - edges_hz[:-2])[:, None]
    return _triangles(edges_hz, frequencies_hz) * 2.0 / width_F1


def kaldi_filters(bands: int, transform_samples: int, sample_rate_hz: int) -> NDArray[np.float64]:
    """Filters (F, N) that are triangles on the mel axis, from 20 Hz to half the rate.

    Source: Kaldi `MelBanks`; `mel_filter_bank(mel_scale="kaldi", triangularize_in_mel_space=True)`.
    """
    edges = np.linspace(_hz_to_kaldi(20.0), _hz_to_kaldi(sample_rate_hz / 2), bands + 2)
    frequencies = _hz_to_kaldi(np.arange(transform_samples // 2 + 1) * sample_rate_hz / transform_samples)
    return _triangles(edges, frequencies)


def _triangles(edges: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Height (F, N) at each point of the triangle over each three neighbouring edges."""
    low_F1, peak_F1, high_F1 = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising_FN = (points - low_F1) / (peak_F1 - low_F1)
    falling_FN = (high_F1 - points) / (high_F1 - peak_F1)
    return np.maximum(0.0, np.minimum(rising_FN, falling_FN))


def _hz_to_slaney(frequency_hz: float) -> float:
    if frequency_hz < _BREAK_HZ:
        return frequency_hz / _LINEAR_HZ_PER_MEL
    return float(_BREAK_MEL + np.log(frequency_hz / _BREAK_HZ) / _LOG_STEP)


def _slaney_to_hz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    logarithmic = _BREAK_HZ * np.exp(_LOG_STEP * (mels - _BREAK_MEL))
    return np.where(mels < _BREAK_MEL, mels * _LINEAR_HZ_PER_MEL, logarithmic)


def _hz_to_kaldi(frequency_hz: float | NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1127.0 * np.log1p(np.asarray(frequency_hz) / 700.0), dtype=np.float64)
