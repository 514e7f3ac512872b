"""The sound of a clip as a page plays it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Final

import numpy as np

from sonotune.audio.io import Waveform, encode, read
from sonotune.errors import AudioError

MEDIA_TYPE: Final = "audio/mpeg"
SOUND_RATE_HZ: Final = 16_000


def read_span(
    path: Path, *, start_s: float, duration_s: float | None, channel: int | None = None
) -> tuple[Waveform | None, str]:
    """The samples (S,) of a span at 16 kHz, and nothing; or None, and why there are none."""
    try:
        waveform_S = read(path, start_s=start_s, duration_s=duration_s, channel=channel, sample_rate_hz=SOUND_RATE_HZ)
    except (AudioError, OSError, ValueError) as error:  # a path may hold what no file system takes
        return None, str(error)
    return (waveform_S, "") if waveform_S.size else (None, "There are no samples in this span.")


def encode_sound(waveform_S: Waveform) -> bytes:
    """A whole file of some 3 kB a second.

    MP3, because every browser plays it, older phones included, its bytes are the same again, and libsndfile encodes it
    five times as fast as Opus of that size.
    """
    clipped_S = np.clip(waveform_S, -1.0, 1.0)
    return encode(clipped_S, SOUND_RATE_HZ, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.8)


def data_address(sound: bytes) -> str:
    """The address of a sound that stands in the page itself."""
    return f"data:{MEDIA_TYPE};base64,{base64.b64encode(sound).decode('ascii')}"
