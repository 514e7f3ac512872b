"""Waveforms on their way into a frontend: checked, and put into one tensor.

Shape letters: B clips, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sonotune.errors import AudioError

Waveforms = Sequence[NDArray[np.float32]]


def check_waveforms(waveforms: Waveforms, sample_rate_hz: int, *, max_samples: int | None) -> list[int]:
    """Number of samples of each clip, all of them usable.

    Raises:
        AudioError: A clip has no samples, or more than `max_samples`.
        ValueError: There are no clips, or one is not a (S,) array of float32.
    """
    if not waveforms:
        raise ValueError("a frontend needs at least one waveform, got none.")
    for index, waveform in enumerate(waveforms):
        if waveform.ndim != 1 or waveform.dtype != np.float32:
            raise ValueError(
                f"waveform {index} must be a (S,) float32 array, got {waveform.shape} {waveform.dtype}. "
                "Read it with sonotune.audio.io.read."
            )
        if waveform.size == 0:
            raise AudioError("no_samples", f"waveform {index} has no samples; one is needed. Leave the clip out.")
        if max_samples is not None and waveform.size > max_samples:
            raise AudioError(
                "too_long",
                f"waveform {index} lasts {waveform.size / sample_rate_hz:.2f} s; the model's window is "
                f"{max_samples / sample_rate_hz:g} s. Cut the clip with `start_s` and `duration_s`, or leave it out.",
            )
    return [waveform.size for waveform in waveforms]


def pad_waveforms(waveforms: Waveforms, samples: int) -> Tensor:
    """Put clips of different length into one (B, S) float32 tensor, with silence after each."""
    padded_BS = np.zeros((len(waveforms), samples), dtype=np.float32)
    for row, waveform in zip(padded_BS, waveforms, strict=True):
        row[: waveform.size] = waveform
    return torch.from_numpy(padded_BS)
