"""4- and 8-bit base weights, and a pure-torch NF4 that bitsandbytes is tested against.

NF4 with double quantisation stores, per weight, 4 bits of code, 8/64 bits of block scale and 32/(64·256) bits of scale
of scales: 4.126953125 bits. Frozen quantised weights never train and are never merged into (an update of 3 % of the
weight's norm survives re-quantisation with a cosine of 0.08).

Source: Dettmers et al. 2023 (arXiv 2305.14314), appendix E for the code book.
"""

from __future__ import annotations

import functools
import importlib
import io
import logging
from collections.abc import Collection
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonotune.errors import ModelError
from sonotune.models.base import LoadedModel

NF4_CODE = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)
BITS_PER_NF4_WEIGHT = 4 + 8 / 64 + 32 / (64 * 256)
SMALL_MODEL_PARAMETERS = 300_000_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nf4Weight:
    """A matrix in 4-bit NormalFloat.

    Attributes:
        codes: uint8, two codes a byte, high nibble first.
        scales: fp32 absolute maximum of each block of `block` weights (already de-quantised if double).
        shape: Shape of the matrix.
        block: Weights a block.
    """

    codes: Tensor
    scales: Tensor
    shape: torch.Size
    block: int


def nf4_quantize(weight: Tensor, *, block: int = 64) -> Nf4Weight:
    """Quantise a matrix to NF4 without double quantisation: the oracle for bitsandbytes.

    Args:
        weight: Any shape; its size must be a multiple of `block`.
        block: Weights that share one scale.

    Raises:
        ModelError: The size is not a multiple of the block.
    """
    if weight.numel() % block:
        raise ModelError(f"a weight of {weight.numel()} values cannot be cut into blocks of {block}.")
    blocks = weight.detach().float().reshape(-1, block)
    scales = blocks.abs().amax(dim=1)
    unit = blocks / scales.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
    borders = (NF4_CODE[1:] + NF4_CODE[:-1]) / 2
    codes = torch.bucketize(unit.reshape(-1), borders).to(torch.uint8)
    packed = (codes[0::2] << 4) | codes[1::2]
    return Nf4Weight(codes=packed, scales=scales, shape=weight.shape, block=block)


def nf4_dequantize(weight: Nf4Weight) -> Tensor:
    """The fp32 matrix an NF4 weight stands for."""
    codes = torch.stack((weight.codes >> 4, weight.codes & 0xF), dim=-1).reshape(-1)
    values = NF4_CODE[codes.long()].reshape(-1, weight.block) * weight.scales.unsqueeze(1)
    return values.reshape(weight.shape)


def nf4_linear(inputs: Tensor, weight: Nf4Weight, bias: Tensor | None = None) -> Tensor:
    """`inputs @ W.T + bias` with W de-quantised to the inputs' type; (..., in) -> (..., out)."""
    return F.linear(inputs, nf4_dequantize(weight).to(inputs.dtype), bias)


def packed_bytes(rows: int, columns: int, *, bits: int, double: bool = True) -> int:
    """Bytes that a matrix would take quantised, with its scales.

    Args:
        rows: Outputs.
        columns: Inputs.
        bits: 4 (NF4, blocks of 64; their scales in 8 bits with a scale of 32 bits to 256 of them if `double`, else in
            32 bits) or 8 (one scale of 32 bits a row).
        double: Double quantisation.
    """
    weights = rows * columns
    if bits == 8:
        return weights + 4 * rows
    return round(weights * (BITS_PER_NF4_WEIGHT if double else 4 + 32 / 64) / 8)


@functools.cache
def bitsandbytes() -> ModuleType:
    """Import bitsandbytes once, without the line it prints about a kernel hub that is never used here."""
    quiet = logging.getLogger("bitsandbytes")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            module = importlib.import_module("bitsandbytes")  # 1.5 s; only quantised runs pay
    finally:
        quiet.setLevel(level)
    return module


def choose_bits(requested: Literal["auto"] | int, *, parameters: int, device: str) -> tuple[int, str]:
    """Decide how many bits the frozen weights get.

    Args:
        requested: 4, 8, 16 or "auto".
        parameters: Size of the model.
        device: `cpu` or `cuda`.

    Returns:
        The bits and the reason, for the run record.
    """
    if requested != "auto":
        return int(requested), "asked for"
    if parameters < SMALL_MODEL_PARAMETERS:
        return 16, f"{parameters / 1e6:.1f} M parameters: below 300 M, 4 bits save little memory and cost accuracy"
    if device == "cpu":
        return 16, "on a CPU 4-bit weights are slower and memory is seldom the limit"
    return 4, f"{parameters / 1e6:.0f} M parameters on {device}: NF4 cuts the frozen weights to a quarter"


def quantize(
    loaded: LoadedModel,
    *,
    bits: Literal[4, 8],
    keep: Collection[str] = (),
    double: bool = True,
    compute_dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> LoadedModel:
    """Replace the adaptable linears by quantised ones, in place.

    One linear after the other goes to the device and is quantised there, so that a model of fp32 weights that is larger
    than the card can be opened on it.

    Args:
        loaded: The model, in 16 or 32 bits.
        bits: 4 (NF4) or 8 (LLM.int8).
        keep: Full module names that stay as they are, because a stage will train them.
        double: Quantise the block scales as well (4 bits only).
        compute_dtype: Type of the matrix products.
        device: Where the quantised linears go; None leaves each where it is.

    Returns:
        The model with `quantized` filled.

    Raises:
        ModelError: Nothing is left to quantise.
    """
    names = [
        name for name in loaded.linears if name not in keep and isinstance(loaded.module.get_submodule(name), nn.Linear)
    ]
    if not names:
        raise ModelError(f"nothing to quantise: all {len(loaded.linears)} linears are kept in full precision.")
    for name in names:
        parent_name, _, child = name.rpartition(".")
        parent = loaded.module.get_submodule(parent_name)
        linear = getattr(parent, child)
        build = _linear_4bit if bits == 4 else _linear_8bit
        setattr(parent, child, build(linear, double=double, compute_dtype=compute_dtype, device=device))
    # PEFT chooses its quantised LoRA layers by these marks of a `transformers` load.
    setattr(loaded.module, "is_loaded_in_4bit" if bits == 4 else "is_loaded_in_8bit", True)
    logger.info("quantised %d linears to %d bits", len(names), bits)
    return loaded.with_(quantized=dict.fromkeys(names, bits))


def _linear_4bit(
    linear: nn.Linear, *, double: bool, compute_dtype: torch.dtype, device: torch.device | str | None = None
) -> nn.Module:
    bnb = bitsandbytes()
    quantized = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=compute_dtype,
        compress_statistics=double,
        quant_type="nf4",
        device="meta",
    )
    quantized.weight = bnb.nn.Params4bit(
        linear.weight.detach().contiguous(),
        requires_grad=False,
        quant_type="nf4",
        compress_statistics=double,
        module=quantized,
    )
    if linear.bias is not None:
        # bitsandbytes casts the bias inside forward otherwise, which would change a frozen parameter.
        quantized.bias = nn.Parameter(linear.bias.detach().to(compute_dtype), requires_grad=False)
    quantized = quantized.to(linear.weight.device if device is None else device)
    # bitsandbytes 0.50.2 repacks the weights in the first evaluation on such processors and the next training step
    # then loses its gradients (no autograd kernel for the packed layout).
    quantized.support_avx512bf16_for_cpu = False
    quantized.train(linear.training)
    return quantized  # type: ignore[no-any-return]


def _linear_8bit(
    linear: nn.Linear, *, double: bool, compute_dtype: torch.dtype, device: torch.device | str | None = None
) -> nn.Module:
    bnb = bitsandbytes()
    quantized = bnb.nn.Linear8bitLt(
        linear.in_features, linear.out_features, bias=linear.bias is not None, has_fp16_weights=False, threshold=0.0
    )
    quantized.weight = bnb.nn.Int8Params(
        linear.weight.detach().to(torch.float16).contiguous(), requires_grad=False, has_fp16_weights=False
    )
    if linear.bias is not None:
        quantized.bias = nn.Parameter(linear.bias.detach().to(compute_dtype), requires_grad=False)
    quantized = quantized.to(linear.weight.device if device is None else device)
    quantized.train(linear.training)
    return quantized  # type: ignore[no-any-return]


def dequantized_weight(module: nn.Module) -> Tensor:
    """The fp32 weight a linear computes with, (out, in), whatever it is stored as."""
    weight: Any = module.weight
    if (state := getattr(weight, "quant_state", None)) is not None:
        values: Tensor = bitsandbytes().functional.dequantize_4bit(weight.data, state)
        return values.float()
    if weight.dtype == torch.int8:
        holder: Any = module
        scale: Tensor = weight.SCB if weight.SCB is not None else holder.state.SCB
        restored: Tensor = weight.data.float() * scale.float().unsqueeze(1) / 127.0
        return restored
    plain: Tensor = weight.detach().float()
    return plain


def cast_frozen(loaded: LoadedModel, dtype: torch.dtype) -> None:
    """Store frozen, unquantised matrices in `dtype`, so that no step casts them again.

    Norms, biases and everything that trains keep fp32: they are small and their updates are not.
    """
    for parameter in loaded.module.parameters():
        if not parameter.requires_grad and parameter.ndim > 1 and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def quantized_bytes(loaded: LoadedModel) -> int:
    """Bytes of the quantised weights with their scales."""
    weights: list[Any] = [_base(loaded.module.get_submodule(name)).weight for name in loaded.quantized]
    return sum(_bytes(weight) + _scale_bytes(weight) for weight in weights)


def held_bytes(loaded: LoadedModel) -> int:
    """Bytes of all parameters as they are held: tied ones once, scales of quantised ones included."""
    return sum(_bytes(weight) + _scale_bytes(weight) for weight in loaded.module.parameters())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _scale_bytes(weight: Any) -> int:
    state = getattr(weight, "quant_state", None)
    if state is None:
        return 0
    return sum(_bytes(value) for value in state.as_dict(packed=True).values() if isinstance(value, Tensor))


def _base(module: nn.Module) -> nn.Module:
    return getattr(module, "base_layer", module)
