"""The spectrogram of a clip as an image of a page: log-mel power, time to the right, low frequencies below.

Shape letters: S samples, T columns, F mel bands, N samples of the transform.
"""

from __future__ import annotations

import base64
import io
from typing import Final

import numpy as np

from sonotune.audio.io import Waveform
from sonotune.features.mel import slaney_filters

_BANDS: Final = 48
_COLUMNS: Final = 500
_WINDOW_S: Final = 0.025
_HOP_S: Final = 0.010
_RANGE_DB: Final = 60.0
"""What is further below the loudest point is drawn as silence."""
_SMALLEST_POWER: Final = 1e-10


def spectrogram_address(waveform_S: Waveform, sample_rate_hz: int) -> str:
    """The address (`data:`) of a grey PNG of at most `_COLUMNS` by `_BANDS` points; what is loud is dark.

    Args:
        waveform_S: At least one sample, full scale 1.0.
        sample_rate_hz: Rate.
    """
    from PIL import Image  # noqa: PLC0415  (pictures only)

    darkness_FT = np.round(255.0 * -_levels(waveform_S, sample_rate_hz)[::-1] / _RANGE_DB).astype(np.uint8)
    picture = io.BytesIO()
    Image.fromarray(darkness_FT).save(picture, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode('ascii')}"


def _levels(waveform_S: Waveform, sample_rate_hz: int) -> Waveform:
    """Power (F, T) in dB below the loudest point, `-_RANGE_DB` at least."""
    window = max(2, round(_WINDOW_S * sample_rate_hz))
    hop = max(1, round(_HOP_S * sample_rate_hz), -(-waveform_S.size // _COLUMNS))
    padded_S = np.pad(waveform_S, (window // 2, window))
    frames_TN = np.lib.stride_tricks.sliding_window_view(padded_S, window)[: waveform_S.size : hop]
    transform = 1 << (window - 1).bit_length()
    spectrum_TN = np.fft.rfft(frames_TN * np.hanning(window), n=transform)
    power_FT = slaney_filters(_BANDS, transform, sample_rate_hz) @ np.square(np.abs(spectrum_TN)).T
    level_FT = 10.0 * np.log10(np.maximum(power_FT, _SMALLEST_POWER))
    below_FT: Waveform = np.maximum(level_FT - level_FT.max(), -_RANGE_DB).astype(np.float32)
    return below_FT
