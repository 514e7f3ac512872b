"""SpecAugment: time warp, frequency masks and time masks on a batch of features.

Every draw belongs to one clip in one epoch, so a clip is changed in the same way whatever batch it is in, and frames
after a clip's end are never touched.

Shape letters: B clips, T frames, F feature bins, M masks.

Source: Park et al. 2019, "SpecAugment", arXiv:1904.08779; the share limit is from arXiv:1912.05533.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sonotune.features.normalization import valid_frames
from sonotune.runs import generator


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecAugmentSettings:
    """How much is masked and warped; the default does nothing.

    Attributes:
        frequency_masks: Bands masked in each clip.
        frequency_mask_bins: Widest band, in bins; each width is uniform from 0.
        time_masks: Spans masked in each clip.
        time_mask_frames: Longest span, in frames; each length is uniform from 0.
        time_mask_fraction: Longest span, as a share of the clip's own frames.
        time_warp_frames: Furthest that the time warp moves a point, in frames.
        fill: What stands in a mask: the clip's mean, its lowest value, or a number.
    """

    frequency_masks: int = 0
    frequency_mask_bins: int = 27
    time_masks: int = 0
    time_mask_frames: int = 40
    time_mask_fraction: float = 0.15
    time_warp_frames: int = 0
    fill: Literal["mean", "floor"] | float = "mean"

    def __post_init__(self) -> None:
        for name in ("frequency_masks", "frequency_mask_bins", "time_masks", "time_mask_frames", "time_warp_frames"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}. Use 0 to switch it off.")
        if not 0.0 <= self.time_mask_fraction <= 1.0:
            raise ValueError(f"time_mask_fraction must be from 0 to 1, got {self.time_mask_fraction}.")
        if isinstance(self.fill, str) and self.fill not in ("mean", "floor"):
            raise ValueError(f"fill must be `mean`, `floor` or a number, got {self.fill!r}.")

    @property
    def changes_something(self) -> bool:
        """Whether any clip can come out different."""
        bands = self.frequency_masks and self.frequency_mask_bins
        spans = self.time_masks and self.time_mask_frames and self.time_mask_fraction
        return bool(bands or spans or self.time_warp_frames)


def spec_augment(
    features_BTF: Tensor,
    lengths_B: Tensor,
    *,
    clip_ids: Sequence[str],
    seed: int,
    epoch: int,
    settings: SpecAugmentSettings,
) -> Tensor:
    """Warp and mask the valid frames of each clip.

    Args:
        features_BTF: Features; not changed in place.
        lengths_B: Valid frames of each clip.
        clip_ids: Ids in the order of the batch; they choose the draws.
        seed: The run's seed.
        epoch: Epoch, from 0.
        settings: What to do.

    Returns:
        New features of the same shape, or the given ones where the settings do nothing.
    """
    if not settings.changes_something or features_BTF.shape[0] == 0:
        return features_BTF
    bands, spans = settings.frequency_masks, settings.time_masks
    drawn = [generator(seed, epoch, clip_id, "spec_augment").random(2 + 2 * (bands + spans)) for clip_id in clip_ids]
    draws_BK = torch.from_numpy(np.stack(drawn)).to(features_BTF.device)
    warp_B2, band_BK, span_BK = torch.split(draws_BK, [2, 2 * bands, 2 * spans], dim=1)

    frames, bins = features_BTF.shape[1:]
    valid_BT = valid_frames(lengths_B, frames)
    fill_B11 = _fill(features_BTF, lengths_B, settings.fill)
    warped_BTF = _warp(features_BTF, lengths_B, warp_B2, settings.time_warp_frames)
    all_bins_B = torch.full_like(lengths_B, bins)
    band_BF = _masks(band_BK, all_bins_B.clamp(max=settings.frequency_mask_bins), all_bins_B, bins)
    longest_B = (lengths_B * settings.time_mask_fraction).floor().long().clamp(max=settings.time_mask_frames)
    span_BT = _masks(span_BK, longest_B, lengths_B, frames)
    masked_BTF = (band_BF.unsqueeze(1) | span_BT.unsqueeze(2)) & valid_BT.unsqueeze(2)
    return torch.where(masked_BTF, fill_B11, warped_BTF)


def _masks(draws_BK: Tensor, widest_B: Tensor, limit_B: Tensor, size: int) -> Tensor:
    """Union (B, size) of M masks, each of uniform width in [0, widest] and uniform place within [0, limit)."""
    width_BM = (draws_BK[:, 0::2] * (widest_B.unsqueeze(1) + 1)).long()
    start_BM = (draws_BK[:, 1::2] * (limit_B.unsqueeze(1) - width_BM + 1)).long()
    places = torch.arange(size, device=draws_BK.device)
    inside_BMT = (places >= start_BM.unsqueeze(2)) & (places < (start_BM + width_BM).unsqueeze(2))
    return inside_BMT.any(dim=1)


def _fill(features_BTF: Tensor, lengths_B: Tensor, fill: str | float) -> Tensor:
    """Value (B, 1, 1) that stands in masks, from the clip's own frames only."""
    if not isinstance(fill, str):
        return features_BTF.new_full((features_BTF.shape[0], 1, 1), fill)
    # One clip at a time: a sum over a padded batch rounds differently in batches of different length.
    own = [features[:length] for features, length in zip(features_BTF, lengths_B.tolist(), strict=True)]
    values = [frames.mean() if fill == "mean" else frames.amin() for frames in own]
    return torch.stack(values).view(-1, 1, 1)


def _warp(features_BTF: Tensor, lengths_B: Tensor, draws_B2: Tensor, furthest: int) -> Tensor:
    """Move a random inner point of each clip and stretch both sides linearly; ends and padding stay in place."""
    if furthest == 0:
        return features_BTF
    frames = features_BTF.shape[1]
    last_B1 = (lengths_B - 1).unsqueeze(1).double()
    reach_B1 = ((lengths_B - 3) // 2).clamp(min=0, max=furthest).unsqueeze(1).double()
    centre_B1 = (reach_B1 + 1 + draws_B2[:, :1] * (last_B1 - 2 - 2 * reach_B1)).clamp(min=1)
    moved_B1 = centre_B1 + (2 * draws_B2[:, 1:] - 1) * reach_B1
    places_T = torch.arange(frames, device=features_BTF.device, dtype=torch.float64)
    left_BT = places_T * centre_B1 / moved_B1
    right_BT = centre_B1 + (places_T - moved_B1) * (last_B1 - centre_B1) / (last_B1 - moved_B1).clamp(min=1e-9)
    source_BT = torch.where(places_T <= moved_B1, left_BT, right_BT).clamp(min=0).minimum(last_B1)
    # A clip too short to have an inner point, and every frame after a clip, stays as it is.
    still_BT = (reach_B1 == 0) | (places_T > last_B1)
    source_BT = torch.where(still_BT, places_T.expand_as(source_BT), source_BT)
    before_BT = source_BT.floor().long()
    after_BT = (before_BT + 1).clamp(max=frames - 1)
    share_BT1 = (source_BT - before_BT).to(features_BTF.dtype).unsqueeze(2)
    before_BTF = features_BTF.gather(1, before_BT.unsqueeze(2).expand_as(features_BTF))
    after_BTF = features_BTF.gather(1, after_BT.unsqueeze(2).expand_as(features_BTF))
    return before_BTF.lerp(after_BTF, share_BT1)
