"""Gates on groups of ranks: what they are computed from, and by what.

The ranks of a module are cut into groups. For a frame f of a clip and its properties p (`features.frame_properties`),
`z = SiLU(U p + u)` is shared by all modules, and `g = 2 sigmoid(W z + b)` has a factor between 0 and 2 for each group
of each: `W0 x + s B (g * A x)`. W and b start at 0, where g is exactly 1 and the adapter is LoRA. The gates of all
modules are one matrix product a batch; a factor on the bottleneck makes of k groups a mixture of k smaller adapters
at the price of one. Offsets are the last columns of U and W, so that all of it trains as LoRA's own matrices do.

Source: the mixture follows Zipper-LoRA (arXiv 2603.17558), whose gates depend on the language, and SAML (arXiv
2406.19706), whose depend on the speaker. Gates by frame have not been published.

Shape letters: B clips, P positions, N packed positions, C properties, H hidden, K groups, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from sonotune.adapters.kinds.bottleneck import Between, Rows
from sonotune.errors import AdapterError
from sonotune.features.frame_properties import CHANNELS
from sonotune.models.audio_positions import AudioPositions

HIDDEN: Final = 16
HEAD, TRUNK = "lora_gate_head", "lora_gate_trunk"

Signal = Callable[[AudioPositions, int], Tensor]
"""Positions of a batch and the seed -> what their gates depend on, (B, P, C) or (B, 1, C)."""
Meter = Callable[[str, Tensor, Tensor, Tensor], None]
"""Is told the name of a module, A's output (..., R), factors of its ranks (..., R) and which rows count (...)."""


def by_frame(positions: AudioPositions, seed: int) -> Tensor:
    """Properties of the frames of each position."""
    return positions.properties().at(positions.starts, positions.width)


def by_shuffled_frame(positions: AudioPositions, seed: int) -> Tensor:
    """The same of other frames of the clip: a control with all that `by_frame` has but the time."""
    return positions.properties().shuffled(seed).at(positions.starts, positions.width)


def by_clip(positions: AudioPositions, seed: int) -> Tensor:
    """Properties of the whole clip."""
    return positions.properties().clip.unsqueeze(1)


def groups_of(ranks: int, groups: int) -> Tensor:
    """Group of each rank (R,), never on the meta device: as equal as can be, in order."""
    return torch.arange(ranks, device="cpu") * groups // ranks


def spread(gates: Tensor, ranks: int) -> Tensor:
    """Factors of groups (..., K) -> of ranks (..., R)."""
    return gates[..., groups_of(ranks, gates.shape[-1]).to(gates.device)]


def _affine(inputs: Tensor, weight: Tensor) -> Tensor:
    """A linear map whose offset is the last column of its weight."""
    return F.linear(inputs, weight[:, :-1], weight[:, -1])


def constant_of(head: Any) -> Tensor | None:
    """Gates (K,) of a head whose gates do not depend on what is heard; None where they do."""
    weight: Tensor = head.weight.detach().float()
    return None if bool(weight[:, :-1].any()) else 2 * torch.sigmoid(weight[:, -1])


class Gates(Between):
    """The gates of a batch; see the module.

    Args:
        layers: Full name -> PEFT LoRA layer; each has a head, and the first the trunk.
        rows: Of the batch.
        signal: What the gates depend on.
        seed: Of the signal.
    """

    def __init__(self, layers: Mapping[str, Any], rows: Rows, signal: Signal, *, seed: int) -> None:
        super().__init__(layers, rows)
        self.seed = seed
        self.meter: Meter | None = None
        self._signal = signal
        self._whole = torch.empty(0)
        self._factors: dict[torch.dtype, Mapping[str, Tensor]] = {}
        self._places: Tensor | None = None

    def begin(self, positions: AudioPositions) -> None:
        """Compute the gates of a batch for all ranks of all modules, in single precision."""
        super().begin(positions)
        heads = [getattr(layer, HEAD).weight for layer in self.layers.values()]
        trunk = getattr(next(iter(self.layers.values())), TRUNK).weight
        described = self._described(positions)
        with torch.autocast(described.device.type, enabled=False):
            hidden = F.silu(_affine(described, trunk.float()))
            # A row of the head for each rank: modules then multiply, and nothing else, however small their rows are.
            weight = torch.cat(heads).float()[self._rows_of_ranks(heads).to(described.device)]
            factors = 2 * torch.sigmoid(_affine(hidden, weight))
        self._factors = {torch.float32: self._by_module(factors)}
        self._whole = factors

    def _rows_of_ranks(self, heads: Sequence[Tensor]) -> Tensor:
        """Row of the heads, one behind the other, for each rank of each module."""
        if self._places is None:
            found, first = [], 0
            for head, ranks in zip(heads, self._ranks(), strict=True):
                found.append(first + groups_of(ranks, len(head)))
                first += len(head)
            self._places = torch.cat(found)
        return self._places

    def _ranks(self) -> list[int]:
        return [int(layer.r["default"]) for layer in self.layers.values()]

    def _by_module(self, factors: Tensor) -> Mapping[str, Tensor]:
        pieces: Sequence[Tensor] = torch.split(factors, self._ranks(), dim=-1)
        return dict(zip(self.layers, pieces, strict=True))

    def factors(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """Factors of the ranks of a module (B, P, R), or (B, 1, R), in the last batch.

        Raises:
            AdapterError: There was none.
        """
        if not self._factors:
            raise AdapterError(
                f"{name} has a gate and was asked before its encoder had a batch. Use the model through sonotune: "
                "plain `transformers` does not say which frames are heard."
            )
        if dtype not in self._factors:  # one cast for all modules
            self._factors[dtype] = self._by_module(self._whole.to(dtype))
        return self._factors[dtype][name]

    def of(self, name: str) -> Tensor:
        """Gates of a module (B, P, K), or (B, 1, K), of the last batch."""
        factors = self.factors(name)
        groups = len(getattr(self.layers[name], HEAD).weight)
        firsts = torch.searchsorted(groups_of(factors.shape[-1], groups), torch.arange(groups))
        return factors[..., firsts.to(factors.device)]

    def _described(self, positions: AudioPositions) -> Tensor:
        """What gates depend on; only its shape where `sonotune plan` computes without numbers."""
        if not positions.inputs.is_meta:
            return self._signal(positions, self.seed)
        rows = 1 if self._signal is by_clip else len(positions.starts)
        return torch.empty(len(positions.lengths), rows, len(CHANNELS), device="meta")

    def apply(self, name: str, hidden: Tensor) -> Tensor:
        """See `Between`."""
        factors = self.rows.fit(name, self.factors(name, hidden.dtype), hidden)
        if self.meter is not None:
            own = self.rows.fit(name, self.rows.own(hidden.device), hidden).expand(hidden.shape[:-1])
            self.meter(name, hidden, factors.expand_as(hidden), own)
        return hidden * factors
