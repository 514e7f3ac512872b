"""Merging disjoint pairs of neighbours into their means, in order, each weighted by what it stands for.

A pair is (t, t + 1). All chosen pairs of a clip begin at even places, or all at odd ones, so none overlap. What is
merged is a prefix of every row, the clip's own positions; behind it, positions are kept as they are, and padding is
left out. Order is kept, and no position moves by more than the pairs before it.

Source: Bolya et al. 2023 (arXiv 2210.09461) for sizes; Li et al. 2023 (arXiv 2306.16009) for neighbours.

Shape letters: B clips, P positions, S neighbouring pairs (P - 1), Q positions that are left, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What is left after merging.

    Attributes:
        states: (B, Q, D).
        sizes: How many positions each stands for (B, Q); 0 for padding.
        source: Where each position went (B, P) int64: rising, by 1 at most; 0 for padding.
    """

    states: Tensor
    sizes: Tensor
    source: Tensor


def choose_pairs(scores_BS: Tensor, lengths: Sequence[int], pairs: Sequence[int]) -> Tensor:
    """Which pairs are merged (B, S) bool: the highest scores of all that begin at even places, or at odd ones.

    Of the two, the places whose chosen scores have the higher sum are taken.

    Args:
        scores_BS: Higher is merged first; what belongs to padding is not looked at.
        lengths: Positions of each clip that may be merged, a prefix of its row.
        pairs: How many pairs of each, at most length // 2.
    """
    device, count = scores_BS.device, scores_BS.shape[1]
    wanted_B1 = torch.tensor(pairs, device=device).unsqueeze(1)
    outside_BS = torch.arange(count, device=device) >= torch.tensor(lengths, device=device).unsqueeze(1) - 1
    scores_BS = scores_BS.masked_fill(outside_BS, -torch.inf)
    chosen, totals = [], []
    for start in (0, 1):
        values_BH, order_BH = scores_BS[:, start::2].sort(dim=1, descending=True, stable=True)
        first_BH = (torch.arange(values_BH.shape[1], device=device) < wanted_B1).expand(values_BH.shape)
        # A sum in double precision is the same to the last digit that counts, however wide the batch is.
        total_B = values_BH.double().masked_fill(~first_BH, 0.0).sum(dim=1)
        totals.append(total_B.masked_fill(wanted_B1[:, 0] > values_BH.shape[1], -torch.inf))
        own_BS = torch.zeros_like(outside_BS)
        own_BS[:, start::2] = torch.zeros_like(first_BH).scatter(1, order_BH, first_BH)
        chosen.append(own_BS)
    return torch.where((totals[0] >= totals[1]).unsqueeze(1), chosen[0], chosen[1])


def merge_pairs(states_BPD: Tensor, sizes_BP: Tensor, chosen_BS: Tensor, width: int) -> Merged:
    """Put the size-weighted mean for each chosen pair, and leave padding out.

    Args:
        states_BPD: What is merged.
        sizes_BP: How many positions each stands for; 0 is padding, wherever it is.
        chosen_BS: From `choose_pairs`; S may be smaller than P - 1.
        width: Q, at least as many as any clip keeps.
    """
    clips, positions, size_type = *sizes_BP.shape, sizes_BP.dtype
    second_BP = F.pad(chosen_BS, (1, positions - 1 - chosen_BS.shape[1]))  # is merged into the one before it
    begins_BP = (sizes_BP > 0) & ~second_BP
    target_BP = (begins_BP.cumsum(dim=1) - 1).clamp_min(0)
    places_BP = torch.arange(positions, device=sizes_BP.device).expand(clips, positions)
    # Where nothing begins, the place is written behind the last column, which is cut off.
    first_BQ = places_BP.new_zeros(clips, width + 1).scatter(1, target_BP.where(begins_BP, width), places_BP)[:, :width]
    filled_BQ = torch.arange(width, device=sizes_BP.device) < begins_BP.sum(dim=1, keepdim=True)
    next_BQ = (first_BQ + 1).clamp_max(positions - 1)
    pair_BQ = second_BP.gather(1, next_BQ) & filled_BQ & (next_BQ > first_BQ)
    last_BQ = next_BQ.where(pair_BQ, first_BQ)
    zero = torch.zeros((), dtype=size_type, device=sizes_BP.device)
    one_BQ, other_BQ = sizes_BP.gather(1, first_BQ).where(filled_BQ, zero), sizes_BP.gather(1, last_BQ)
    other_BQ = other_BQ.where(pair_BQ, zero)
    total_BQ = one_BQ + other_BQ
    shares_BQ1 = (other_BQ / total_BQ.clamp_min(1)).unsqueeze(2).to(states_BPD.dtype)
    # `lerp` of a state with itself is that state, to the bit.
    merged_BQD = torch.lerp(take(states_BPD, first_BQ), take(states_BPD, last_BQ), shares_BQ1)
    return Merged(states=merged_BQD, sizes=total_BQ, source=target_BP.where(sizes_BP > 0, 0))


def take(states_BPD: Tensor, places_BQ: Tensor) -> Tensor:
    """The states of each clip at some places (B, Q, D)."""
    clips, positions, _ = states_BPD.shape
    rows_B1 = torch.arange(clips, device=places_BQ.device).unsqueeze(1) * positions
    # One selection of rows: its backward pass adds rows, and is faster than that of `gather`.
    flat = states_BPD.reshape(clips * positions, -1).index_select(0, (rows_B1 + places_BQ).flatten())
    return flat.view(clips, places_BQ.shape[1], -1)
