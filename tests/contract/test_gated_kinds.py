"""Adapters that know where in the audio a row lies, in every family: what they promise whatever the encoder is."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sonotune.adapters.kinds.base import AdapterSettings, kind_named
from sonotune.adapters.kinds.bottleneck import between_of
from sonotune.adapters.ranks.choose import RankSettings
from sonotune.adapters.trainable import adapt_uncalibrated
from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel

FRAME, CLIP, SHUFFLED, CONV = KINDS = ("gated_lora", "clip_gated_lora", "shuffled_gated_lora", "conv_lora")
REFUSED = {("wav2vec2-classifier", FRAME), ("wav2vec2-classifier", CONV), ("ast", CONV)}


def _beside(name: str) -> Any:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"gated_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Case = _beside("test_families").Case


@pytest.fixture(scope="module")
def case(row: str, checkpoint: Callable[[str], tuple[str, str]]) -> Any:
    return Case(*checkpoint(row))


def attached(case: Any, kind: str) -> LoadedModel:
    """LoRA whose B is not 0, the same for all kinds, and whose gates and filters are as they start."""
    torch.manual_seed(1)
    ranks = RankSettings(rank=6, stem="frozen")
    loaded = adapt_uncalibrated(case.fresh(), kind_named(kind), ranks, AdapterSettings(rank=6, stem="frozen"))
    move(loaded, ".lora_B", 0.3)
    loaded.module.eval()
    return loaded


def move(loaded: LoadedModel, part: str, size: float) -> None:
    with torch.no_grad():
        for name, parameter in loaded.module.named_parameters():
            if part in name:
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))


def contexts(case: Any) -> list[str]:
    return [*{case.loaded.context, "full" if case.loaded.context == "full" else "cut"}]


@torch.no_grad()
def logits(loaded: LoadedModel, batch: Any) -> torch.Tensor:
    found: torch.Tensor = loaded.family.logits(loaded, batch)
    return found


@pytest.mark.parametrize("kind", [FRAME, CONV])
def test_a_kind_starts_as_lora_and_hears_each_clip_alone(case: Any, kind: str, row: str):
    """To the bit at first; and then whatever lies behind a clip or beside it, in every context."""
    if (row, kind) in REFUSED:
        with pytest.raises(AdapterError, match=f"adapter.kind={kind}"):
            attached(case, kind)
        return
    batch = case.batch([0, 1, 2], context=case.loaded.context)
    plain, loaded = logits(attached(case, "lora"), batch), attached(case, kind)
    assert torch.equal(plain, logits(loaded, batch))
    move(loaded, ".lora_gate_head", 0.7)
    move(loaded, ".lora_conv_", 0.4)
    assert not torch.allclose(plain, logits(loaded, batch), atol=1e-3)
    for context in contexts(case):
        together = logits(loaded, case.batch([0, 1, 2], context=context))
        alone = torch.cat([logits(loaded, case.batch([index], context=context)) for index in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=2e-4)
    if kind == FRAME:
        _check_gates(loaded, batch)


def _check_gates(loaded: LoadedModel, batch: Any) -> None:
    """They read no frame behind a clip, differ from frame to frame, and lie between 0 and 2."""
    gates: Any = between_of(loaded)
    logits(loaded, batch)
    before = {name: gates.of(name).clone() for name in gates.layers}
    inputs = batch.inputs.clone()
    for index, length in enumerate(batch.input_lengths.tolist()):
        inputs[index, length:] = torch.linspace(-9, 9, inputs[index, length:].numel()).view_as(inputs[index, length:])
    logits(loaded, replace(batch, inputs=inputs))
    for name, gate_BPK in before.items():
        assert 0 < float(gate_BPK.min()) <= float(gate_BPK.max()) < 2
        assert torch.equal(gates.of(name), gate_BPK)
    assert max(float((gate_BPK.amax(dim=1) - gate_BPK.amin(dim=1)).max()) for gate_BPK in before.values()) > 0.05
