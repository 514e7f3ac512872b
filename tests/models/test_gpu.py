"""What needs a CUDA device: NF4 on it against the CPU, and a QLoRA step in bf16. Skipped elsewhere."""

from __future__ import annotations

import pytest
import torch

from sonotune.adapters.kinds import lora
from sonotune.adapters.ranks.allocators.uniform import UniformAllocator
from sonotune.adapters.ranks.plan import Budget, Importance, targets_in
from sonotune.models.families.whisper import WhisperFamily
from sonotune.models.precision import autocast
from sonotune.models.probe import probe_batch, probe_logits
from sonotune.models.quantize import dequantized_weight, quantize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_nf4_on_the_device_is_nf4_on_the_processor():
    family = WhisperFamily()
    weights = []
    for device in ("cpu", "cuda"):
        loaded = family.load("assets:whisper-nano")
        loaded.module.to(device)
        name = loaded.linears[0]
        loaded = quantize(loaded, bits=4)
        weights.append(dequantized_weight(loaded.module.get_submodule(name)).cpu())
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=1e-5)


def test_a_qlora_step_in_bf16_trains_adapters_and_nothing_else():
    torch.manual_seed(0)
    family = WhisperFamily()
    loaded = family.load("assets:whisper-nano")
    loaded.module.to("cuda")
    loaded = quantize(loaded, bits=4, compute_dtype=torch.bfloat16)
    sites = targets_in(loaded, loaded.linears)
    plan = UniformAllocator().allocate(sites, Budget(rank=8), evidence=Importance(), seed=0)
    loaded = lora.attach(loaded, plan, rank=8, alpha=8.0)
    before = probe_logits(loaded)
    optimizer = torch.optim.AdamW([p for p in loaded.module.parameters() if p.requires_grad], lr=1e-2, fused=True)
    batch = probe_batch(loaded).to("cuda")
    losses = []
    for _ in range(10):
        with autocast("bf16", torch.device("cuda")):
            result = family.forward(loaded, batch).losses()
        loss = result.total / result.count
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert not torch.equal(before, probe_logits(loaded))
    assert all(
        parameter.requires_grad == (".lora_" in name or "modules_to_save" in name)
        for name, parameter in loaded.module.named_parameters()
    )
