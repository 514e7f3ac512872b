"""Which number format the matrix products use, and the context that applies it."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Literal

import torch

from sonotune.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_KERNEL_CACHE_VARIABLES: Final = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")
_KERNELS_KEPT: Final = 64


def bound_kernel_cache() -> bool:
    """Let oneDNN keep few compiled kernels; to be called before the process computes anything.

    oneDNN compiles a kernel for each new shape and keeps 1,024 of them with their memory. Batches of clips differ in
    shape from step to step, so that nearly none is used again after its step: training Whisper-base on clips of 1 to
    5.5 s took 2.87 GB with 1,024 kernels and takes 2.16 with 64, no slower (benchmarks/real_models).

    Returns:
        Whether it was done; not where the environment has a number of its own.
    """
    if any(os.environ.get(name) for name in _KERNEL_CACHE_VARIABLES):
        return False
    os.environ[_KERNEL_CACHE_VARIABLES[0]] = str(_KERNELS_KEPT)  # read when the first kernel is compiled
    return True


def choose_precision(requested: Literal["auto"] | Precision) -> tuple[Precision, str]:
    """Decide the precision of this machine.

    Returns:
        The precision and the reason, for the run record.

    Raises:
        ConfigError: fp16 without CUDA: its gradients underflow and no CPU computes it faster.
    """
    cuda = torch.cuda.is_available()
    if requested == "fp16" and not cuda:
        raise ConfigError("training.precision=fp16 needs a CUDA device; use bf16 or fp32 here.")
    if requested != "auto":
        return requested, "asked for"
    if cuda:
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the CUDA device computes bf16"
        return "fp16", "the CUDA device has no bf16"
    if _cpu_has_bf16():
        return "bf16", "the processor has bf16 instructions"
    return "fp32", "the processor has no bf16 instructions"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Matrix products in `precision` within the context; nothing changes for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def _cpu_has_bf16() -> bool:
    # torch has no public name for this question.
    has_avx = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return bool(has_avx or has_amx)
