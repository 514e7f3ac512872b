"""NF4: our pure-torch oracle against bitsandbytes, storage, and gradients that survive an evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sonotune.errors import ModelError
from sonotune.models.quantize import (
    BITS_PER_NF4_WEIGHT,
    _linear_4bit,
    _linear_8bit,
    bitsandbytes,
    choose_bits,
    dequantized_weight,
    nf4_dequantize,
    nf4_linear,
    nf4_quantize,
)


def linear(inputs: int = 64, outputs: int = 128, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias)


def test_oracle_agrees_with_bitsandbytes_without_double_quantisation():
    base = linear()
    ours = nf4_dequantize(nf4_quantize(base.weight))
    theirs = dequantized_weight(_linear_4bit(base, double=False, compute_dtype=torch.float32))
    assert torch.equal(ours, theirs)


def test_double_quantisation_changes_the_scales_a_little_and_is_seen():
    base = linear(256, 256)
    plain = dequantized_weight(_linear_4bit(base, double=False, compute_dtype=torch.float32))
    double = dequantized_weight(_linear_4bit(base, double=True, compute_dtype=torch.float32))
    difference = (plain - double).norm() / plain.norm()
    assert 0 < difference < 0.02


def test_codes_pack_two_to_a_byte_and_the_error_is_that_of_nf4():
    torch.manual_seed(1)
    weight = torch.randn(512, 512)
    quantized = nf4_quantize(weight)
    assert quantized.codes.numel() == weight.numel() // 2
    relative = ((nf4_dequantize(quantized) - weight) ** 2).mean() / (weight**2).mean()
    assert 0.0080 < relative < 0.0089  # 0.00846 for Gaussian weights at block 64


def test_quantising_twice_changes_nothing():
    once = nf4_dequantize(nf4_quantize(torch.randn(64, 64)))
    assert torch.equal(nf4_dequantize(nf4_quantize(once)), once)


def test_zero_block_stays_zero():
    assert torch.equal(nf4_dequantize(nf4_quantize(torch.zeros(2, 64))), torch.zeros(2, 64))


def test_size_that_is_no_multiple_of_the_block_is_refused():
    with pytest.raises(ModelError, match="blocks of 64"):
        nf4_quantize(torch.zeros(3, 5))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_agrees_with_the_oracle(bias: bool, dtype: torch.dtype):
    base = linear(bias=bias)
    module = _linear_4bit(base, double=False, compute_dtype=dtype)
    inputs = torch.randn(2, 7, 64, dtype=dtype)
    expected = nf4_linear(inputs, nf4_quantize(base.weight), None if base.bias is None else base.bias.to(dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(module(inputs), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_are_the_same_before_and_after_an_evaluation(bias: bool, dtype: torch.dtype, bits: int):
    """Bitsandbytes 0.50.2 repacks the weights in the first evaluation on AVX512-BF16 processors and loses them."""
    build = _linear_4bit if bits == 4 else _linear_8bit
    module = build(linear(bias=bias), double=True, compute_dtype=dtype).train()
    inputs = torch.randn(3, 5, 64, dtype=dtype, requires_grad=True)
    module(inputs).float().square().sum().backward()
    before = inputs.grad.clone()
    inputs.grad = None
    module.eval()
    with torch.no_grad():
        module(inputs.detach())
    module.train()
    module(inputs).float().square().sum().backward()
    assert inputs.grad is not None
    assert before.norm() > 0
    assert torch.equal(before, inputs.grad)


def test_the_base_bias_is_not_changed_by_a_forward_pass():
    module = _linear_4bit(linear(), double=True, compute_dtype=torch.bfloat16)
    before = module.bias.detach().clone()
    module(torch.randn(2, 64, dtype=torch.bfloat16))
    assert module.bias.dtype == before.dtype
    assert torch.equal(module.bias, before)


def test_eight_bits_are_closer_than_four():
    base = linear(256, 256)
    four = dequantized_weight(_linear_4bit(base, double=True, compute_dtype=torch.float32))
    eight = dequantized_weight(_linear_8bit(base, double=True, compute_dtype=torch.float32))
    truth = base.weight.detach()
    error = {bits: float((weight - truth).norm() / truth.norm()) for bits, weight in ((4, four), (8, eight))}
    assert error[8] < 0.01 < 0.08 < error[4] < 0.11


def test_bits_per_weight_are_those_stored():
    bnb = bitsandbytes()
    weight = bnb.nn.Params4bit(torch.randn(1024, 1024), quant_type="nf4", compress_statistics=True).to("cpu")
    state = weight.quant_state
    stored = weight.numel() + state.absmax.numel() + 4 * state.state2.absmax.numel()
    assert 8 * stored / 1024**2 == BITS_PER_NF4_WEIGHT == 4.126953125


def test_small_models_and_processors_are_not_quantised_by_default():
    assert choose_bits("auto", parameters=2_000_000, device="cuda")[0] == 16
    assert choose_bits("auto", parameters=2_000_000_000, device="cpu")[0] == 16
    bits, reason = choose_bits("auto", parameters=2_000_000_000, device="cuda")
    assert bits == 4
    assert "2000 M" in reason
    assert choose_bits(8, parameters=1, device="cpu")[0] == 8
