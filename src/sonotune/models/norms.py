"""Batch normalisation that keeps its statistics."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class _Fixed:
    """Uses the running statistics in training as well."""

    def forward(self: nn.modules.batchnorm._BatchNorm, inputs: Tensor) -> Tensor:  # type: ignore[misc]
        return F.batch_norm(
            inputs, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class FixedBatchNorm1d(_Fixed, nn.BatchNorm1d):
    """See `fix_batch_norms`."""


class FixedBatchNorm2d(_Fixed, nn.BatchNorm2d):
    """See `fix_batch_norms`."""


def fix_batch_norms(module: nn.Module) -> None:
    """Let every batch normalisation use the statistics it was pretrained with, in training as in evaluation; in place.

    Statistics of a batch would make the loss of a clip depend on its neighbours and on padding, and would move
    numbers that no optimiser knows of and no adapter holds.
    """
    for child in module.modules():
        if type(child) is nn.BatchNorm1d:
            child.__class__ = FixedBatchNorm1d
        elif type(child) is nn.BatchNorm2d:
            child.__class__ = FixedBatchNorm2d
