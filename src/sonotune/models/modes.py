"""A model used beside its training: no dropout, no gradients, and every flag as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every training flag as it was outside, whatever happens."""
    flags = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, flag in flags:
            child.training = flag


@contextmanager
def inference(module: nn.Module) -> Iterator[None]:
    """`undisturbed`, without gradients.

    `no_grad` rather than `inference_mode`: quantised layers cache tensors at their first forward, and a tensor made in
    inference mode can never take part in a later backward.
    """
    with undisturbed(module), torch.no_grad():
        yield
