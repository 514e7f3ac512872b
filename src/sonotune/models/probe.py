"""Logits of a model on a fixed probe, to compare two forms of the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sonotune.features.batching import Batch
from sonotune.models.base import LoadedModel
from sonotune.runs import generator
from sonotune.types import Clip


def probe_batch(loaded: LoadedModel, *, clips: int = 3, seed: int = 0) -> Batch:
    """Modulated noise of several lengths: enough to pass through every weight, and the same everywhere.

    Args:
        loaded: Gives the frontend.
        clips: How many.
        seed: Of the noise.
    """
    rate = loaded.frontend.sample_rate_hz
    window_s = loaded.frontend.max_duration_s
    longest = 10 * clips * rate if window_s is None else int(window_s * rate)
    waveforms = []
    for index in range(clips):
        noise = generator(seed, "probe", index)
        length = min(rate + index * rate // 2, longest * (index + 1) // clips)
        envelope = 0.5 + 0.5 * np.sin(np.arange(length) * (2 * np.pi * (3 + index) / rate))
        waveforms.append((0.1 * noise.standard_normal(length) * envelope).astype(np.float32))
    inputs, lengths = loaded.frontend(waveforms, full_context=loaded.context == "full")
    tokens = torch.from_numpy(generator(seed, "probe", "tokens").integers(0, 50, (clips, 12)))
    made = tuple(
        Clip(id=f"probe-{index}", path=Path("probe"), duration_s=len(waveform) / rate)
        for index, waveform in enumerate(waveforms)
    )
    return Batch(
        inputs=inputs,
        input_lengths=lengths,
        targets=tokens,
        target_lengths=torch.full((clips,), 12),
        clips=made,
        context=loaded.context,
    )


@torch.no_grad()
def probe_logits(loaded: LoadedModel) -> Tensor:
    """Logits (N, V) at every position of the probe, in evaluation mode and fp32."""
    was_training = loaded.module.training
    loaded.module.eval()
    try:
        return loaded.family.logits(loaded, probe_batch(loaded).to(loaded.device)).float()
    finally:
        loaded.module.train(was_training)
