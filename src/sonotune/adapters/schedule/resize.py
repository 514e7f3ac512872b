"""Adapters that change their rank while they train, without a jump of the function or of the optimiser.

Growing adds rows to A, drawn as PEFT draws them and orthogonal to those there are, and zero columns to B: the update BA
stays what it was to the last bit, and so does the output, unless the matrix library sums a product of another size in
another order. Shrinking cuts off the smallest singular values of the update BA (`svd`, the least that can be lost)
or drops whole components (`select`, which loses a little more and keeps the others as they are). The scale of a module
stays what it was, and AdamW's moments go along (see `factors`).

All of it is a function of weights, moments, seed and step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sonotune.adapters.kinds.lora import lora_layers
from sonotune.adapters.schedule.entropy_penalty import matrix_layers
from sonotune.adapters.schedule.factors import Rows, ShrinkMode, Slots, lost, resized
from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel
from sonotune.runs import torch_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One adapter that was resized.

    Attributes:
        module: Full module name.
        before: Rank.
        after: Rank.
        lost: Share of the update's Frobenius norm that was cut off.
    """

    module: str
    before: int
    after: int
    lost: float


def current_ranks(loaded: LoadedModel) -> dict[str, int]:
    """Full module name -> rank, for every adapter that can be resized; what a checkpoint keeps for `set_ranks`."""
    return {name: int(layer.r["default"]) for name, layer in matrix_layers(loaded).items()}


def resize(
    loaded: LoadedModel,
    optimizer: torch.optim.Optimizer | None,
    new_ranks: Mapping[str, int],
    *,
    seed: int,
    step: int,
    mode: ShrinkMode = "svd",
) -> tuple[Change, ...]:
    """Give adapters other ranks, in place, between two optimiser steps.

    The parameters of a resized adapter are new objects, which take the places of the old ones in the optimiser's
    groups. Whoever else holds parameters has to look them up again by name.

    Args:
        loaded: A model with adapters.
        optimizer: AdamW; None where there is none yet.
        new_ranks: Full module name -> rank; adapters that are not named stay as they are.
        seed: With step and module name decides what new rows are.
        step: Optimiser steps done.
        mode: How to shrink.

    Returns:
        What changed, in model order.

    Raises:
        AdapterError: A name carries no adapter, a rank is impossible, or the optimiser is no AdamW.
    """
    layers = _resizable(loaded, new_ranks)
    slots = Slots(optimizer)
    changes: list[Change] = []
    for name, layer in layers.items():
        before, after = int(layer.r["default"]), new_ranks.get(name, int(layer.r["default"]))
        if before == after:
            continue
        a = slots.read(layer.lora_A["default"].weight, transposed=False)
        b = slots.read(layer.lora_B["default"].weight, transposed=True)
        generator = torch.Generator().manual_seed(torch_seed(seed, "resize", step, name))
        new_a, new_b = resized(a, b, after, mode, generator)
        gone = lost(a, b, new_a, new_b) if after < before else 0.0
        changes.append(Change(module=name, before=before, after=after, lost=gone))
        _install(layer, slots, new_a, new_b)
    _write_patterns(loaded)
    return tuple(changes)


def set_ranks(
    loaded: LoadedModel, ranks: Mapping[str, int], optimizer: torch.optim.Optimizer | None = None
) -> tuple[str, ...]:
    """Give a freshly attached model the ranks of a saved one, before the weights of that are loaded.

    Args:
        loaded: A model with adapters, at the scales they were first given.
        ranks: Full module name -> rank, from `current_ranks`.
        optimizer: One that holds the parameters already; what it knows of resized ones is dropped.

    Returns:
        The adapters whose rank is another now. Their weights are NaN until the saved ones are in.

    Raises:
        AdapterError: A name carries no adapter, or a rank is impossible.
    """
    layers, slots = _resizable(loaded, ranks), Slots(optimizer)
    changed = [name for name, layer in layers.items() if ranks.get(name, layer.r["default"]) != layer.r["default"]]
    for name in changed:
        inputs = layers[name].lora_A["default"].weight.flatten(1).shape[1]
        outputs = layers[name].lora_B["default"].weight.shape[0]
        a, b = (Rows(weight=torch.full((ranks[name], size), math.nan)) for size in (inputs, outputs))
        _install(layers[name], slots, a, b)
    _write_patterns(loaded)
    return tuple(changed)


def keep_directions(loaded: LoadedModel, kept: Mapping[str, Tensor]) -> None:
    """Drop components of adapters once training is over, and leave the others as they are.

    Args:
        loaded: A model with adapters.
        kept: Full module name -> which components stay (R,) bool, at least one.

    Raises:
        AdapterError: A name carries no adapter, or none of its components would be left.
    """
    layers, slots = _resizable(loaded, {name: int(mask_R.sum()) for name, mask_R in kept.items()}), Slots(None)
    for name, mask_R in kept.items():
        if mask_R.all():
            continue
        index = mask_R.cpu().nonzero()[:, 0]
        a, b = (
            slots.read(factor["default"].weight, transposed=transposed).rows(index)
            for factor, transposed in ((layers[name].lora_A, False), (layers[name].lora_B, True))
        )
        _install(layers[name], slots, a, b)
    _write_patterns(loaded)


def _resizable(loaded: LoadedModel, ranks: Mapping[str, int]) -> dict[str, Any]:
    """The LoRA layers, after a look at what is asked of them.

    Raises:
        AdapterError: It cannot be done.
    """
    layers = matrix_layers(loaded)
    if unknown := [name for name in ranks if name not in layers]:
        raise AdapterError(
            f"{unknown[0]} and {len(unknown) - 1} more carry no adapter that can be resized; {len(layers)} modules do."
        )
    if wrong := [name for name, rank in ranks.items() if rank < 1]:
        raise AdapterError(f"{wrong[0]} is to have rank {ranks[wrong[0]]}; the least is 1.")
    for name, rank in ranks.items():
        inputs = layers[name].lora_A["default"].weight.flatten(1).shape[1]
        if rank != layers[name].r["default"] and rank > inputs:
            raise AdapterError(f"{name} is to have rank {rank}; with {inputs} inputs, the most is {inputs}.")
    return layers


def _install(layer: Any, slots: Slots, a: Rows, b: Rows) -> None:
    """Put new factors into a LoRA layer, which keeps its scale."""
    rank = len(a.weight)
    inner, outer = layer.lora_A["default"], layer.lora_B["default"]
    inner.weight = slots.exchange(inner.weight, a, transposed=False)
    outer.weight = slots.exchange(outer.weight, b, transposed=True)
    if isinstance(inner, nn.Linear):
        inner.out_features = outer.in_features = rank
    else:
        inner.out_channels = outer.in_channels = rank
    layer.r["default"] = rank
    layer.lora_alpha["default"] = layer.scaling["default"] * (math.sqrt(rank) if layer.use_rslora["default"] else rank)


def _write_patterns(loaded: LoadedModel) -> None:
    """Tell PEFT's configuration, which is saved with the adapter, the ranks and scales there are."""
    if loaded.adapter is None:
        return
    config = loaded.adapter.peft_config["default"]
    ranks, alphas = dict[str, int](), dict[str, float]()
    for name, layer in lora_layers(loaded).items():
        key = "^" + re.escape(name)  # a key also fits whatever ends in it
        if layer.r["default"] != config.r:
            ranks[key] = layer.r["default"]
        if layer.lora_alpha["default"] != config.lora_alpha:
            alphas[key] = layer.lora_alpha["default"]
    config.rank_pattern, config.alpha_pattern = ranks, alphas
