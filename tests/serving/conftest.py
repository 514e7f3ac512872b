"""Adapters and runs to hand on, and audio to recognise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sonotune.adapters import lora
from sonotune.adapters.allocation import RankPlan
from sonotune.models.base import LoadedModel
from sonotune.models.families.whisper import WhisperFamily
from sonotune.models.quantize import quantize


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., tuple[Path, LoadedModel]]:
    """An adapter folder as a run keeps it, and the model it was saved from."""

    def build(*, bits: int = 16, context: str = "cut", stem: str = "train") -> tuple[Path, LoadedModel]:
        loaded = WhisperFamily().load("assets:whisper-nano", context=context)  # type: ignore[arg-type]
        if bits != 16:
            loaded = quantize(loaded, bits=bits)  # type: ignore[arg-type]
        plan = RankPlan(ranks=dict.fromkeys(loaded.linears, 2), allocator="test", parameters=0)
        loaded = lora.attach(loaded, plan, rank=2, alpha=2.0, stem=stem)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in loaded.module.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        loaded.module.eval()
        folder = tmp_path / "run" / "adapter"
        lora.save(loaded, folder, extra={"bits": bits, "language": "en"})
        return folder, loaded

    return build


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """`a.wav`, `b.flac` and `deep/c.ogg`, three tones of half a second."""
    folder = tmp_path / "recordings"
    (folder / "deep").mkdir(parents=True)
    for index, name in enumerate(("a.wav", "b.flac", "deep/c.ogg")):
        tone = 0.3 * np.sin(2 * np.pi * (300 + 200 * index) * np.arange(8000) / 16000)
        soundfile.write(folder / name, tone, 16000)
    return folder
