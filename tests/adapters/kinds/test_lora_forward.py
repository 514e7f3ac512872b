"""The lean pass computes what PEFT computes, gradients and all."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from sonotune.adapters.kinds.lora_forward import make_lean
from sonotune.models.quantize import bitsandbytes


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 128)
        self.second = nn.Linear(128, 64, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(inputs)))


def wrapped(*, dropout: float = 0.0, bits: int = 16) -> tuple[Any, Any]:
    """The same adapters as PEFT computes them, and lean."""
    torch.manual_seed(0)
    module: nn.Module = Pair()
    if bits == 4:
        bnb = bitsandbytes()
        for name in ("first", "second"):
            plain = module.get_submodule(name)
            packed = bnb.nn.Linear4bit(
                plain.in_features, plain.out_features, bias=plain.bias is not None, quant_type="nf4"
            )
            packed.load_state_dict({**plain.state_dict()})
            setattr(module, name, packed.to("cpu"))
    config = LoraConfig(
        r=4, lora_alpha=6, lora_dropout=dropout, target_modules=["first", "second"], init_lora_weights=False
    )
    peft = get_peft_model(module, config)
    lean = copy.deepcopy(peft)
    make_lean(layers(lean))
    return peft, lean


def layers(wrapper: Any) -> list[Any]:
    return [module for module in wrapper.modules() if hasattr(module, "lora_A")]


def gradients(wrapper: Any, inputs: torch.Tensor, precision: str) -> dict[str, torch.Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        outputs = wrapper(inputs)
    outputs.float().square().mean().backward()
    found = {name: value.grad for name, value in wrapper.named_parameters() if value.grad is not None}
    return {"outputs": outputs.detach().float(), **found}


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("shape", [(3, 5, 64), (7, 64), (64,), (0, 5, 64)])
def test_outputs_and_gradients_are_pefts(bits: int, shape: tuple[int, ...]):
    if bits == 4:
        pytest.importorskip("bitsandbytes")
    peft, lean = wrapped(bits=bits)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    usual, found = gradients(peft, inputs, "fp32"), gradients(lean, inputs, "fp32")
    assert usual.keys() == found.keys()
    assert any(".lora_B." in name for name in found)
    for name, value in usual.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("bits", [16, 4])
def test_bf16_is_no_further_from_fp32_than_pefts(bits: int):
    if bits == 4:
        pytest.importorskip("bitsandbytes")
    peft, lean = wrapped(bits=bits)
    inputs = torch.randn(64, 50, 64, generator=torch.Generator().manual_seed(1))
    exact = gradients(copy.deepcopy(peft), inputs, "fp32")
    usual, found = gradients(peft, inputs, "bf16"), gradients(lean, inputs, "bf16")
    for name, value in exact.items():
        errors = [float((one[name] - value).norm() / value.norm()) for one in (usual, found)]
        assert errors[1] <= 1.2 * errors[0] <= 0.1, name
    assert (found["outputs"] - exact["outputs"]).norm() < (usual["outputs"] - exact["outputs"]).norm()


def test_dropout_draws_what_pefts_draws():
    peft, lean = (wrapper.train() for wrapper in wrapped(dropout=0.5))
    inputs = torch.randn(3, 5, 64)
    torch.manual_seed(3)
    usual = peft(inputs)
    torch.manual_seed(3)
    torch.testing.assert_close(lean(inputs), usual)


def test_switched_off_and_merged_adapters_are_pefts_own_affair():
    peft, lean = wrapped()
    inputs = torch.randn(3, 5, 64)
    with peft.disable_adapter(), lean.disable_adapter():
        assert torch.equal(lean(inputs), peft(inputs))
    adapted = lean(inputs)
    lean.merge_adapter()
    torch.testing.assert_close(lean(inputs), adapted)
    lean.unmerge_adapter()


def test_frozen_bf16_weights_without_autocast_are_pefts_own_affair():
    peft, lean = wrapped()
    for wrapper in (peft, lean):
        for layer in layers(wrapper):
            layer.base_layer.to(torch.bfloat16)
    inputs = torch.randn(3, 64).bfloat16()
    assert torch.equal(lean(inputs), peft(inputs))


def test_no_pass_writes_the_sum_a_second_time():
    peft, lean = wrapped()
    inputs = torch.randn(4, 64)
    with torch.profiler.profile() as usual:
        peft(inputs)
    with torch.profiler.profile() as found:
        lean(inputs)
    counts = [
        sum(event.count for event in profile.key_averages() if event.key in {"aten::mul", "aten::add"})
        for profile in (usual, found)
    ]
    assert counts[0] >= 4
    assert counts[1] == 0
