"""LoRA at a part of its strength: the base model plus s times what was learned, s from 0 (base) to 1 (tuned).

The scale of each low-rank product is multiplied by s. Weights that trained in full beside the products (PEFT's
`modules_to_save`) are interpolated between the base's and the trained ones, so that 0 is the base model and nothing
else. Both are linear in what was learned: this is the linear path of Wortsman et al. 2022, "Robust fine-tuning of
zero-shot models" (WiSE-FT), taken in the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def scaled(module: nn.Module, layers: Mapping[str, Any], scale: float) -> Iterator[None]:
    """The model computes with its adapter at a part of its strength, inside.

    Args:
        module: The module that carries the adapter.
        layers: Full name -> PEFT LoRA layer.
        scale: From 0 to 1.
    """
    strengths = {name: layer.scaling["default"] for name, layer in layers.items()}
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for name, layer in layers.items():
            layer.scaling["default"] = strengths[name] * scale
        if scale != 1:
            kept = _interpolate(module, scale)
        yield
    finally:
        for name, layer in layers.items():
            layer.scaling["default"] = strengths[name]
        with torch.no_grad():
            for trained, copy in kept:
                trained.copy_(copy)


def _interpolate(module: nn.Module, scale: float) -> list[tuple[Tensor, Tensor]]:
    """Move weights that trained in full towards the base's, in place; returns them with copies of what they were."""
    from peft.utils.other import ModulesToSaveWrapper  # noqa: PLC0415  (one second; only adapted models pay)

    kept = []
    with torch.no_grad():
        for child in module.modules():
            if not isinstance(child, ModulesToSaveWrapper) or "default" not in child.modules_to_save:
                continue
            base = dict(child.original_module.named_parameters())
            for name, trained in child.modules_to_save["default"].named_parameters():
                kept.append((trained, trained.detach().clone()))
                start = base[name].to(trained.dtype)
                trained.copy_(torch.lerp(start, trained, scale))
    return kept
