"""An encoder's layers, one after the other, with pairs of positions merged between them.

After some layers, neighbours whose keys in that layer are alike become one position, their mean weighted by how many
positions each stands for. The logarithm of that number is added to the logit of the position as a key of every later
attention (proportional attention), as the thinned window adds that of its spacing, and both combine: what is kept of
the window behind a clip counts for as many positions as before.

Its cost is one comparison of neighbours and one selection of rows for each of these layers. Positions must be in the
states and not in the attention: an encoder whose attention goes by distance would see other distances.

Source: Bolya et al. 2023 (arXiv 2210.09461), sections 3 and 3.3; Li et al. 2023 (arXiv 2306.16009) for neighbours.

Shape letters: B clips, P positions before, Q positions after, L own positions of the longest clip, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from sonotune.models.frame_merging.pairs import Merged, choose_pairs, merge_pairs
from sonotune.models.frame_merging.rules import RULES, SKETCH_ROWS, Evidence, sketch_error
from sonotune.models.frame_merging.settings import NOISE_RULES, FrameMerging, MergeStep

SKETCH: Final = "key_noise_sketch"
"""Buffer of a layer that holds the random signs of its key projection's error; it is not saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedStates:
    """What the layers give.

    Attributes:
        states: (B, Q, D); each clip's own first, in order.
        log_weights: Logarithm of how many positions each stands for (B, Q), -inf for padding.
        own: How many are each clip's own.
        source: Where the own positions of each clip went (B, L) int64: rising, by 1 at most; what lies behind a
            clip's own has no meaning.
    """

    states: Tensor
    log_weights: Tensor
    own: tuple[int, ...]
    source: Tensor


def key_projection(layer: Any) -> nn.Module:
    """The module that makes the keys of a layer's self-attention, with whatever is wrapped around it."""
    attention = getattr(layer, "self_attn", None) or layer.attention
    return attention.k_proj  # type: ignore[no-any-return]


def run_layers(
    layers: Sequence[Any],
    states_BPD: Tensor,
    log_weights_BP: Tensor | None,
    *,
    steps: dict[int, MergeStep],
    merging: FrameMerging,
) -> MergedStates:
    """Compute the layers, and merge after those that have a step.

    Args:
        layers: Each takes states and an additive mask (B, 1, 1, P).
        states_BPD: What the first reads.
        log_weights_BP: As in the result; None where every position stands for itself.
        steps: Layer -> what is merged after it, at least one.
        merging: The settings.
    """
    sizes_BP = torch.ones(states_BPD.shape[:2], device=states_BPD.device)
    if log_weights_BP is not None:
        sizes_BP = log_weights_BP.float().exp()
    longest = max(next(iter(steps.values())).before)
    source_BL = torch.arange(longest, device=states_BPD.device).expand(len(states_BPD), longest)
    own: tuple[int, ...] = ()
    for number, layer in enumerate(layers, 1):
        mask = None if log_weights_BP is None else log_weights_BP[:, None, None, :]
        step = steps.get(number)
        if step is None:
            states_BPD = layer(states_BPD, mask)
            continue
        with _watched_keys(layer) as seen:
            states_BPD = layer(states_BPD, mask)
        merged = _merge(states_BPD, sizes_BP, seen[0], layer, number, step, merging)
        states_BPD, sizes_BP, own = merged.states, merged.sizes, step.after
        source_BL = merged.source.gather(1, source_BL)
        log_weights_BP = sizes_BP.log().to(states_BPD.dtype)
    weights_BP = sizes_BP.log().to(states_BPD.dtype)
    return MergedStates(states=states_BPD, log_weights=weights_BP, own=own, source=source_BL)


@torch.no_grad()
def _chosen(states_BPD: Tensor, seen: tuple[Tensor, Tensor], layer: Any, evidence: dict[str, Any], rule: str) -> Tensor:
    longest = max(evidence["lengths"])
    inputs_BPD, keys_BPK = (one.detach()[:, :longest] for one in seen)
    found = Evidence(
        keys=keys_BPK,
        inputs=inputs_BPD,
        states=states_BPD.detach()[:, :longest],
        sketch=getattr(layer, SKETCH, None) if rule in NOISE_RULES else None,
        **evidence,
    )
    return choose_pairs(RULES[rule](found), found.lengths, found.pairs)


def _merge(
    states_BPD: Tensor,
    sizes_BP: Tensor,
    seen: tuple[Tensor, Tensor],
    layer: Any,
    number: int,
    step: MergeStep,
    merging: FrameMerging,
) -> Merged:
    evidence = {
        "lengths": step.before,
        "pairs": step.pairs,
        "layer": number,
        "noise_weight": merging.noise_weight,
    }
    chosen_BS = _chosen(states_BPD, seen, layer, evidence, merging.rule)
    return merge_pairs(states_BPD, sizes_BP, chosen_BS, step.width)


@contextmanager
def _watched_keys(layer: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inputs and outputs of a layer's key projection, as it is computed now: adapters may have been put around it."""
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen.append((inputs[0], output))

    handle = key_projection(layer).register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def keep_sketch(layer: Any, error_KD: Tensor, number: int) -> None:
    """Give a layer the sketch of its key projection's quantisation error (de-quantised weight minus weight)."""
    if error_KD.is_meta:
        sketch_RD = error_KD.new_empty(SKETCH_ROWS, error_KD.shape[1])
    else:
        sketch_RD = sketch_error(error_KD, number)
    layer.register_buffer(SKETCH, sketch_RD, persistent=False)
