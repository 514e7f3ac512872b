"""The thinned window: every position of a clip, and a few of the silence behind it that stand for all of it.

Whisper is pretrained on a window of 30 s that is mostly silence behind the clip, and attends to that silence: cut it
off, and pretrained weights loop. They do not need all of it. Behind a clip and a margin, every `spacing`-th position
on a grid of the window is kept, and log(spacing) is added to its logit as a key, in the encoder's self-attention and
in the decoder's cross-attention: one kept key takes the share of attention that `spacing` keys like it would take.
The grid is fixed in the window, so what is kept of a clip does not depend on the other clips of a batch.

Picking positions works and averaging them does not, for they differ by their positional codes.

Source: proportional attention, Bolya et al. 2023 (token merging); measured in benchmarks/real_models.

Shape letters: B clips, P kept positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sonotune.types import Context

POSITIONS_PER_SECOND = 50
"""Of Whisper's encoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinning:
    """Which positions of a window are kept.

    Attributes:
        margin: Positions behind a clip's own that are all kept (20 ms each).
        spacing: Of the silent positions after that, one of so many is kept.
    """

    margin: int = 50
    spacing: int = 30

    def __post_init__(self) -> None:
        if self.margin < 0 or self.spacing < 1:
            raise ValueError(f"margin must be 0 or more and spacing 1 or more; got {self.margin} and {self.spacing}.")

    def keep(self, positions_B: Tensor, window: int) -> tuple[Tensor, Tensor]:
        """Choose the positions that a batch computes.

        Args:
            positions_B: Positions of each clip itself, int64.
            window: Positions of the whole window.

        Returns:
            Places in the window (P,) int64, rising, those of every clip first; and the logarithm of how many positions
            each stands for (B, P) float32: 0 for itself, log(spacing) on the grid, -inf where a clip leaves out what
            another keeps.
        """
        ends_B1 = (positions_B.cpu() + self.margin).clamp_max(window).unsqueeze(1)
        places = torch.arange(window)
        on_grid = places % self.spacing == self.spacing // 2
        places_P = places[(places < ends_B1.max()) | on_grid]
        whole_BP = places_P < ends_B1
        weights_BP = torch.where(on_grid[places_P], math.log(self.spacing), -math.inf).expand(whole_BP.shape)
        return places_P, weights_BP.masked_fill(whole_BP, 0.0)

    def computed_s(self, duration_s: float, window_s: float) -> float:
        """Seconds of positions that are kept for a clip of so many seconds."""
        whole_s = min(duration_s + self.margin / POSITIONS_PER_SECOND, window_s)
        return whole_s + (window_s - whole_s) / self.spacing


DEFAULT_THINNING = Thinning()
"""A second behind the clip, then one position in 0.6 s: what was measured of others is in benchmarks/real_models."""


def made_for(trained: Sequence[Context]) -> str:
    """How weights came to the contexts that they may be used in, in words.

    Args:
        trained: Those contexts, as `LoadedModel.trained_contexts` has them. Training at `thinned` names it first, so
            that `full` before `thinned` are weights as they were published.
    """
    if tuple(trained) == ("full", "thinned"):
        return "pretrained over the whole window, which may be thinned"
    return f"trained for {' and '.join(trained)}"


def contexts_of_training(
    context: Context, *, full_after_thinned: bool, full_context_share: float = 0.0
) -> tuple[Context, ...]:
    """Contexts that weights may be used in after training, the one they were trained in first.

    Weights that were trained over the thinned window score the same over the whole one. The converse does not hold:
    weights that were trained over the whole window may come to attend to single positions in its silence, and end
    their texts early where these are left out (decision 24).

    Args:
        context: Of the training batches.
        full_after_thinned: `LoadedModel.full_after_thinned`.
        full_context_share: Share of the batches that had the whole window.
    """
    trained: list[Context] = [context, *(("full",) if full_context_share > 0 else ())]
    if full_after_thinned and "thinned" in trained:
        trained.append("full")
    return tuple(dict.fromkeys(trained))
