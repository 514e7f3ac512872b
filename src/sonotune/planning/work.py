"""Arithmetic of an encoder for a batch, from shapes alone.

A product of a linear takes 2 N i o operations for N rows, an attention 4 P P d for each clip. Embeddings, norms,
activations and the stem are left out, so a ratio of two numbers from here is that of the layers.

Shape letters: B clips, P positions, N rows of a batch (B P).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sonotune.features.batching import Batch
from sonotune.models.base import PADDING, LoadedModel
from sonotune.planning.memory import matrix_widths


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderWork:
    """What an encoder's layers compute in a forward pass.

    Attributes:
        positions: Positions of a clip itself that go into each layer, of the longest clip.
        flops: Operations of all layers, padding included.
    """

    positions: tuple[int, ...]
    flops: float


def encoder_work(loaded: LoadedModel, batch: Batch) -> EncoderWork | None:
    """The work of a forward pass; None for a model whose layers are not known.

    Args:
        loaded: On the meta device or not.
        batch: Shapes and lengths count alone.
    """
    component = next((one for one in loaded.components if one.name == "encoder"), None)
    if component is None or not component.layers:
        return None
    streams, modules = loaded.family.streams(loaded, batch), dict(loaded.names.modules(loaded.module))
    positions, flops, clips = [], 0.0, len(batch.clips)
    for prefix in component.layers:
        own, attended = 0, 0.0
        for name in (one for one in loaded.linears if one.startswith(prefix + ".")):
            kinds = next(stream.kinds for stream in streams if re.search(stream.modules, name))
            inputs, outputs = matrix_widths(modules[name])
            flops += 2.0 * kinds.numel() * inputs * outputs
            if name.endswith((".k_proj", ".key", ".linear_k")):
                attended = 4.0 * kinds.numel() ** 2 / clips * outputs
                own = int(kinds.ne(PADDING).sum(dim=1).max()) if kinds.ndim > 1 else kinds.numel()
        flops += attended
        positions.append(own)
    return EncoderWork(positions=tuple(positions), flops=flops)
