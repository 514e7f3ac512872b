"""Fewer audio tokens for a language model: what a projector gives is merged before it stands in the prompt.

`mean` takes the means of neighbouring tokens at an even rate, the plain baseline. `merge` joins the most similar
neighbours until as many are left, weighted by how many each stands for. The language model is not told how many tokens
one stands for: its attention goes by distance in the prompt, and a bias on some keys would take its fast kernels away.

A clip of N tokens gives ceil((1 - audio_ratio) N), by its own length alone.

Source: Bolya et al. 2023 (arXiv 2210.09461); average pooling as in arXiv 2511.20973, the baseline to beat.

Shape letters: B clips, Q audio tokens before, R audio tokens after, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sonotune.models.frame_merging.pairs import choose_pairs, merge_pairs
from sonotune.models.frame_merging.settings import FrameMerging


def compress(audio_BQD: Tensor, lengths: Sequence[int], merging: FrameMerging) -> tuple[Tensor, list[int]]:
    """Audio tokens of a batch -> fewer (B, R, D), and how many are each clip's.

    Args:
        audio_BQD: From the projector, padded behind each clip.
        lengths: Tokens of each clip.
        merging: The settings; without `audio_ratio` nothing changes.
    """
    wanted = [merging.audio_tokens(length) for length in lengths]
    if wanted == list(lengths):
        return audio_BQD, wanted
    if merging.audio_method == "mean":
        return _means(audio_BQD, lengths, wanted), wanted
    return _merged(audio_BQD, lengths, wanted), wanted


def _means(audio_BQD: Tensor, lengths: Sequence[int], wanted: Sequence[int]) -> Tensor:
    device = audio_BQD.device
    places_Q = torch.arange(audio_BQD.shape[1], device=device)
    lengths_B1, wanted_B1 = (torch.tensor(one, device=device).unsqueeze(1) for one in (lengths, wanted))
    group_BQ = (places_Q * wanted_B1 // lengths_B1).masked_fill(places_Q >= lengths_B1, max(wanted))
    weights_BQR = F.one_hot(group_BQ, max(wanted) + 1)[..., :-1].to(audio_BQD.dtype)
    weights_BQR = weights_BQR / weights_BQR.sum(dim=1, keepdim=True).clamp_min(1)
    return weights_BQR.transpose(1, 2) @ audio_BQD


def _merged(audio_BQD: Tensor, lengths: Sequence[int], wanted: Sequence[int]) -> Tensor:
    left = list(lengths)
    own_BQ = torch.arange(audio_BQD.shape[1], device=audio_BQD.device) < torch.tensor(
        left, device=audio_BQD.device
    ).unsqueeze(1)
    sizes_BQ = own_BQ.float()
    while left != list(wanted):
        pairs = [min(one - end, one // 2) for one, end in zip(left, wanted, strict=True)]
        with torch.no_grad():
            tokens_BQD = audio_BQD.detach().float()
            scores_BS = F.cosine_similarity(tokens_BQD[:, 1:], tokens_BQD[:, :-1], dim=-1)
            chosen_BS = choose_pairs(scores_BS, left, pairs)
        left = [one - count for one, count in zip(left, pairs, strict=True)]
        merged = merge_pairs(audio_BQD, sizes_BQ, chosen_BS, max(left))
        audio_BQD, sizes_BQ = merged.states, merged.sizes
    return audio_BQD
