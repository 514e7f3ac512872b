"""Mixup: a clip with a weaker one laid over it, and targets in the same shares.

Shape letters: B clips, T frames, F feature bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sonotune.features.normalization import valid_frames
from sonotune.runs import generator


@dataclass(frozen=True, slots=True, kw_only=True)
class MixupSettings:
    """How clips are mixed.

    Attributes:
        probability: Share of clips that are mixed.
        alpha: Both parameters of the Beta distribution of the share; small values mix little.
        domain: What is mixed: samples, or features after the frontend.
    """

    probability: float
    alpha: float = 0.4
    domain: Literal["waveform", "features"] = "waveform"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What is laid over each clip of a batch.

    Attributes:
        partners: Row of the other clip; its own where nothing is mixed.
        shares: Share of the other clip, at most one half (B,) float32.
    """

    partners: tuple[int, ...]
    shares: NDArray[np.float32]


def draw_mix(clip_ids: Sequence[str], *, seed: int, epoch: int, settings: MixupSettings) -> Mix:
    """Draw partners and shares; a function of the seed, the epoch and who is in the batch.

    Source: Zhang et al. 2018 (arXiv 1710.09412); the share is folded to at most one half, so that a clip keeps its own
    length and remains the louder of the two.
    """
    partners, shares = list(range(len(clip_ids))), np.zeros(len(clip_ids), dtype=np.float32)
    for row, clip_id in enumerate(clip_ids):
        rng = generator(seed, epoch, "mixup", clip_id)
        if len(clip_ids) > 1 and rng.random() < settings.probability:
            partners[row] = (row + int(rng.integers(1, len(clip_ids)))) % len(clip_ids)
            share = rng.beta(settings.alpha, settings.alpha)
            shares[row] = min(share, 1 - share)
    return Mix(partners=tuple(partners), shares=shares)


def mix_waveforms(waveforms: Sequence[NDArray[np.float32]], mix: Mix) -> list[NDArray[np.float32]]:
    """Each waveform with its partner under it; the partner is cut, or followed by silence."""
    mixed = []
    for waveform, partner, share in zip(waveforms, mix.partners, mix.shares, strict=True):
        other = waveforms[partner][: waveform.size]
        made = waveform * (1 - share)
        made[: other.size] += share * other
        mixed.append(made.astype(np.float32))
    return mixed


def mix_features(features_BTF: Tensor, lengths_B: Tensor, mix: Mix) -> Tensor:
    """Features of each clip with those of its partner under them, as far as the clip goes."""
    shares_B11 = torch.from_numpy(mix.shares)[:, None, None]
    mixed_BTF = features_BTF * (1 - shares_B11) + features_BTF[list(mix.partners)] * shares_B11
    return torch.where(valid_frames(lengths_B, features_BTF.shape[1]).unsqueeze(-1), mixed_BTF, features_BTF)
