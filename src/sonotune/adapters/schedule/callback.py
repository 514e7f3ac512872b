"""What happens to adapters while they train, beside the gradient of the loss: a penalty, ranks that move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Event = tuple[str, Mapping[str, Any]]
"""Kind and fields of a line in `events.jsonl`."""


class AdapterCallback:
    """Called by the training loop in every optimiser step; each method does nothing unless it is overridden.

    `step` is the number of optimiser steps done, `total_steps` the length of the stage.
    """

    def penalty(self, step: int, total_steps: int) -> Tensor | None:
        """A scalar added to the mean loss of a label, differentiable in the adapters; None adds nothing."""
        return None

    def on_gradients(self, step: int, total_steps: int) -> None:
        """Look at the gradients of the current step, before the optimiser moves anything."""

    def after_step(self, step: int, total_steps: int, optimizer: torch.optim.Optimizer) -> Event | None:
        """Look at adapters, or change them, after the optimiser has moved them; returns what to log, if anything."""
        return None

    def final(self, step: int, total_steps: int) -> bool:
        """Whether no later step changes ranks. The best checkpoint is sought only from there on."""
        return True

    def tensors(self) -> dict[str, Tensor]:
        """State that a resumed run needs, by name."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Take up `tensors` of a checkpoint, before its weights are loaded into the shapes that are left behind."""

    def finalise(self) -> Mapping[str, int] | None:
        """Leave plain LoRA behind once training is over; returns the ranks where they are others than at the start."""
        return None
