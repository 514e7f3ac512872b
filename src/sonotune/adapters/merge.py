"""Fold an adapter into plain weights, and prove that the function is the same.

An adapter that was trained over 4-bit weights is merged into those weights *de-quantised*: that is the function that
was trained. Merging into the original 16-bit weights is a different function (the quantisation error the adapter never
saw comes back), so it has to be asked for and evaluated again. Merging into 4-bit codes is refused: rounding would
swallow the update.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sonotune.adapters.kinds.base import kind_of
from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel
from sonotune.models.quantize import dequantized_weight

MergeTarget = Literal["dequantized", "original"]

# What bitsandbytes keeps beside a weight. Weight norm also has names with `.weight.` in them, which are weights.
_QUANTIZATION = re.compile(r"\.(weight\.(nested_)?(absmax|quant_map|quant_state)|SCB$|weight_format$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeProof:
    """How far the merged model's outputs are from the adapted model's.

    Attributes:
        largest: Largest absolute difference of the logits on the probe batch.
        scale: Largest absolute logit, for reference.
        agreement: Share of positions whose best token is the same.
    """

    largest: float
    scale: float
    agreement: float


def merged_state(
    loaded: LoadedModel, original: Mapping[str, Tensor] | None = None, *, apart: Collection[str] = ()
) -> dict[str, Tensor]:
    """Weights of the bare model with the adapter folded in, fp32, under their bare names.

    Args:
        loaded: A model, adapted or not, quantised or not.
        original: Weights to merge into instead of those the model computes with (`target="original"`).
        apart: Parameters whose adapter is not folded in.

    Raises:
        AdapterError: An adapter cannot be folded in.
    """
    names, kind = loaded.names, kind_of(loaded)
    updates = kind.merge(loaded)
    if updates is None:
        raise AdapterError(f"adapters of the kind {kind.name!r} fold into no plain weights; export them as they are.")
    state: dict[str, Tensor] = {}
    learned: dict[str, Tensor] = {}
    for name, tensor in loaded.module.state_dict().items():
        if names.owns(name) or _QUANTIZATION.search(name):
            continue
        if names.is_copy(name):
            learned[names.unwrapped(name)] = tensor.float()
        elif tensor.is_floating_point():
            state[names.unwrapped(name)] = tensor.float()
        elif tensor.dtype not in (torch.uint8, torch.int8):
            state[names.unwrapped(name)] = tensor
    for name in loaded.quantized:
        module: Any = loaded.module.get_submodule(name)
        state[f"{name}.weight"] = dequantized_weight(getattr(module, "base_layer", module))
    if original is not None:
        state |= {name: tensor.float() for name, tensor in original.items() if name in state}
    for name, update in updates.items():
        if name in apart:
            continue
        state[name] = state[name] + update.to(state[name].device)
    return state | learned


def merge_into(
    loaded: LoadedModel, fresh: LoadedModel, *, target: MergeTarget = "dequantized", apart: Collection[str] = ()
) -> LoadedModel:
    """Load the merged weights into a freshly loaded plain model.

    Args:
        loaded: The adapted model.
        fresh: The same checkpoint, loaded again, without adapter or quantisation.
        target: Merge into the weights the adapter was trained over, or into the checkpoint's own.
        apart: Full names of modules whose adapter is not folded in.

    Returns:
        `fresh`, whose module is now a plain `transformers` model of the same function, but for what is kept apart.

    Raises:
        AdapterError: The two models differ in their parameters.
    """
    if fresh.adapter is not None or fresh.quantized:
        raise AdapterError("a merge goes into plain 16- or 32-bit weights; load the target without quantisation.")
    original = fresh.module.state_dict() if target == "original" else None
    state = merged_state(loaded, original, apart={f"{name}.weight" for name in apart})
    expected = set(fresh.module.state_dict())
    if missing := expected - set(state):
        raise AdapterError(f"the merge lacks {len(missing)} weights, the first is {min(missing)}.")
    fresh.module.load_state_dict({name: state[name] for name in expected})
    return fresh


@torch.no_grad()
def compare_logits(adapted: Tensor, merged: Tensor) -> MergeProof:
    """Compare the logits of the adapted and the merged model on the same positions; both (N, V)."""
    adapted, merged = adapted.float(), merged.float()
    return MergeProof(
        largest=float((adapted - merged).abs().max()),
        scale=float(adapted.abs().max()),
        agreement=float((adapted.argmax(-1) == merged.argmax(-1)).float().mean()),
    )
