"""Normalisation of features to zero mean and unit variance, over valid frames only.

Shape letters: B clips, T frames, F feature bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from sonotune.errors import ModelError

_LEAST_STD = 1e-5  # a bin that never changes becomes 0, not noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalizer:
    """Brings each feature bin to zero mean and unit variance.

    Attributes:
        per: `utterance` takes the statistics of each clip; `dataset` those given here.
        mean: Mean of each bin over the training data, F values; empty for `utterance`.
        std: Standard deviation of each bin over the training data, F values; empty for `utterance`.
    """

    per: Literal["utterance", "dataset"]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.per not in ("utterance", "dataset"):
            raise ValueError(f"per must be `utterance` or `dataset`, got {self.per!r}.")
        given = len(self.mean)
        if given != len(self.std) or (given > 0) != (self.per == "dataset"):
            raise ValueError(
                f"a normaliser per {self.per} was given {given} means and {len(self.std)} deviations; `dataset` needs "
                "one of each for every bin (see compute_statistics), `utterance` needs none."
            )

    def __call__(self, features_BTF: Tensor, lengths_B: Tensor) -> Tensor:
        """Normalise the valid frames; frames after a clip become 0.

        Args:
            features_BTF: Features; not changed in place.
            lengths_B: Valid frames of each clip.

        Raises:
            ValueError: The features have another number of bins than the statistics.
        """
        valid_BT1 = valid_frames(lengths_B, features_BTF.shape[1]).unsqueeze(2)
        if self.per == "dataset":
            if features_BTF.shape[2] != len(self.mean):
                raise ValueError(
                    f"the statistics have {len(self.mean)} bins, the features {features_BTF.shape[2]}. "
                    "Compute the statistics with the same frontend."
                )
            mean, std = features_BTF.new_tensor(self.mean), features_BTF.new_tensor(self.std)
        else:
            count_B11 = lengths_B.clamp(min=1).view(-1, 1, 1)
            own_BTF = features_BTF.double().masked_fill(~valid_BT1, 0.0)
            mean = own_BTF.sum(dim=1, keepdim=True) / count_B11
            away_BTF = (own_BTF - mean).masked_fill(~valid_BT1, 0.0)
            std = (away_BTF.square().sum(dim=1, keepdim=True) / count_B11).sqrt()
        normal_BTF = (features_BTF - mean) / std.clamp(min=_LEAST_STD)
        return normal_BTF.masked_fill(~valid_BT1, 0.0).to(features_BTF.dtype)

    def state(self) -> dict[str, Any]:
        """The statistics in JSON form, kept with the model."""
        return {"per": self.per, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Read what `state` wrote.

        Raises:
            ModelError: Something is missing or does not fit together.
        """
        try:
            return cls(per=state["per"], mean=tuple(state["mean"]), std=tuple(state["std"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"the saved feature statistics cannot be used: {error!r}; they need `per`, `mean` and `std`. "
                "Compute them again with compute_statistics."
            ) from error


def compute_statistics(batches: Iterable[tuple[Tensor, Tensor]]) -> Normalizer:
    """Mean and standard deviation of each bin over the valid frames of a data set, in one pass.

    Args:
        batches: Features (B, T, F) and valid frames (B,).

    Returns:
        A normaliser per data set.

    Raises:
        ValueError: There is no valid frame.

    Source: Chan, Golub and LeVeque 1979, for joining the moments of two parts without cancellation.
    """
    count, mean_F, squares_F = 0, np.zeros(0), np.zeros(0)
    for features_BTF, lengths_B in batches:
        frames_NF = features_BTF[valid_frames(lengths_B, features_BTF.shape[1])].double().numpy()
        added = len(frames_NF)
        if added == 0:
            continue
        own_F = frames_NF.mean(axis=0)
        own_squares_F = np.square(frames_NF - own_F).sum(axis=0)
        if count == 0:
            mean_F, squares_F = np.zeros_like(own_F), np.zeros_like(own_F)
        away_F = own_F - mean_F
        total = count + added
        squares_F = squares_F + own_squares_F + np.square(away_F) * count * added / total
        mean_F = mean_F + away_F * added / total
        count = total
    if count == 0:
        raise ValueError(
            "feature statistics need at least one valid frame, found none. Check that the split has clips."
        )
    return Normalizer(per="dataset", mean=tuple(mean_F.tolist()), std=tuple(np.sqrt(squares_F / count).tolist()))


def valid_frames(lengths_B: Tensor, frames: int) -> Tensor:
    """Which frames belong to a clip: (B, T) bool."""
    return torch.arange(frames, device=lengths_B.device) < lengths_B.unsqueeze(1)
