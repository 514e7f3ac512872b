"""LoRA whose groups of ranks are gated, by frame or by clip: the kinds, and what a merge of them is.

`gated_lora` opens and closes groups of ranks frame by frame, by properties of the frame. `clip_gated_lora` has one
decision a clip, by properties of the whole clip, as a router has that mounts adapters. `shuffled_gated_lora` is a
control: the gates and parameters of `gated_lora`, and the properties of the clip's frames in another order.

Gates stand where a row is a position of the audio: in the layers of the encoder, and at the keys and values of
cross-attention. Elsewhere, and so at every text position, the adapter is LoRA.

A gate that does not depend on its input is a factor on rows of A, and merges. Any other has to be baked first
(`gate_baking`), which is another function by an error that is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sonotune.adapters.kinds.base import AdapterSettings
from sonotune.adapters.kinds.bottleneck import Between, BetweenLora, Rows, between_of
from sonotune.adapters.kinds.gates import (
    HEAD,
    HIDDEN,
    TRUNK,
    Gates,
    Signal,
    by_clip,
    by_frame,
    by_shuffled_frame,
    constant_of,
    spread,
)
from sonotune.features.frame_properties import CHANNELS
from sonotune.models.base import LoadedModel
from sonotune.runs import torch_seed


class GatedLora(BetweenLora):
    """See the module.

    Args:
        name: Of the kind.
        signal: What its gates depend on.
    """

    own, crosses = "lora_gate_", True

    def __init__(self, name: str, signal: Signal) -> None:
        self.name = name
        self._signal = signal

    def shape(self, layer: Any, settings: AdapterSettings) -> dict[str, tuple[int, ...]]:
        """A head, for at most as many groups as there are ranks."""
        groups = min(settings.gate_groups, layer.r["default"])
        return {f"{HEAD}.weight": (groups, HIDDEN + 1)}

    def shared(self, settings: AdapterSettings) -> dict[str, tuple[int, ...]]:
        """The trunk."""
        return {f"{TRUNK}.weight": (HIDDEN, len(CHANNELS) + 1)}

    def start(self, layers: Mapping[str, Any], *, seed: int) -> None:
        """Draw the trunk, by a generator of its own: A and all else start as in plain LoRA."""
        weight = getattr(next(iter(layers.values())), TRUNK).weight
        if weight.is_meta:
            return
        generator = torch.Generator().manual_seed(torch_seed(seed, "gate trunk"))
        bound = 1 / math.sqrt(len(CHANNELS))
        with torch.no_grad():
            weight.copy_(torch.empty(weight.shape, device="cpu").uniform_(-bound, bound, generator=generator))

    def between(self, layers: Mapping[str, Any], rows: Rows, *, seed: int) -> Between:
        """The gates."""
        return Gates(layers, rows, self._signal, seed=seed)

    def merge(self, loaded: LoadedModel) -> dict[str, Tensor] | None:
        """The update of every adapted weight; None where a gate depends on what is heard."""
        factors = self.low_rank(loaded)
        if factors is None:
            return None
        return {f"{name}.weight": torch.einsum("or,r...->o...", b_OR, a) for name, (a, b_OR) in factors.items()}

    def low_rank(self, loaded: LoadedModel) -> dict[str, tuple[Tensor, Tensor]] | None:
        """A, with constant gates on its rows, and s B; None where a gate depends on what is heard."""
        layers = between_of(loaded).layers
        constants = {name: constant_of(getattr(layer, HEAD)) for name, layer in layers.items()}
        factors = super().low_rank(loaded) or {}
        for name, gates_K in constants.items():
            if gates_K is None:
                return None
            a_RI, b_OR = factors[name]
            gates_R = spread(gates_K, len(a_RI))
            factors[name] = (a_RI * gates_R.view(-1, *[1] * (a_RI.ndim - 1)), b_OR)
        return factors

    def activations(self, module: nn.Module) -> tuple[int, float]:
        """Of LoRA; with a gate, A's output before it and its factors as well."""
        rank, dropout = super().activations(module)
        return (3 * rank if hasattr(module, HEAD) else rank), dropout


GATED_LORA = GatedLora("gated_lora", by_frame)
CLIP_GATED_LORA = GatedLora("clip_gated_lora", by_clip)
SHUFFLED_GATED_LORA = GatedLora("shuffled_gated_lora", by_shuffled_frame)
