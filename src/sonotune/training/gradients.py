"""The gradient of the mean loss over the micro-batches of a step, in whatever parts they fit."""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from sonotune.errors import out_of_memory
from sonotune.features.batching import Batch
from sonotune.models.base import LoadedModel, Losses
from sonotune.runs import torch_seed
from sonotune.tasks.base import Task
from sonotune.training.memory_guard import MemoryGuard


class MeanLoss(NamedTuple):
    """Mean loss of a step, the labels it is the mean over, and the same by domain where clips come from several."""

    loss: float
    labels: int
    by_domain: dict[str, float]


class _Objective(nn.Module):
    """The loss as a module's forward, which is what accelerate wraps in mixed precision and, later, in DDP."""

    def __init__(self, task: Task, loaded: LoadedModel, label_smoothing: float) -> None:
        super().__init__()
        self.module = loaded.module
        self._task, self._loaded, self._label_smoothing = task, loaded, label_smoothing

    def forward(self, batch: Batch) -> Losses:
        """Losses of one micro-batch."""
        return self._task.loss(self._loaded, batch, label_smoothing=self._label_smoothing)


class Gradients:
    """Adds up gradients over micro-batches; exact for unequal ones, and for any parts they are cut into.

    Args:
        task: Gives the loss.
        loaded: The model.
        label_smoothing: Share of each target's probability spread over the others.
        seed: Of dropout, with the step and the number of the micro-batch.
        accelerator: Device, precision, gradient scaling.
        guard: Says what fits.
        spend: Adds the seconds since a moment to a phase of the run.
    """

    def __init__(
        self,
        task: Task,
        loaded: LoadedModel,
        *,
        label_smoothing: float,
        seed: int,
        accelerator: Accelerator,
        guard: MemoryGuard,
        spend: Callable[[str, float], None],
    ) -> None:
        self._task, self._loaded, self._label_smoothing, self._seed = task, loaded, label_smoothing, seed
        self._accelerator, self._guard, self._spend = accelerator, guard, spend

    def wrap(self) -> None:
        """Wrap the model, when a stage begins: what synchronises gradients has to know which parameters have one."""
        self._objective = self._accelerator.prepare_model(_Objective(self._task, self._loaded, self._label_smoothing))

    def accumulate(
        self, batches: Sequence[Batch], parameters: Mapping[str, nn.Parameter], *, step: int, domains: bool
    ) -> MeanLoss:
        """Leave the gradient of the mean loss over all labels in the parameters.

        Where memory runs out, the step begins again with smaller parts: the batch that is averaged over, and so the
        gradient, stay the same.

        Args:
            batches: Micro-batches of the step.
            parameters: What trains now.
            step: Zero-based optimiser step.
            domains: Whether the loss is wanted by domain.

        Raises:
            ResourceError: Nothing smaller is left to try.
        """
        self._loaded.module.train()
        while True:
            parts = [part for batch in batches for part in self._guard.parts(batch)]
            failed, reason = None, ""
            total = _Total()
            for index, part in enumerate(parts):
                try:
                    self._add(part, total, seed=torch_seed(self._seed, "step", step, index), domains=domains)
                except Exception as error:
                    if not out_of_memory(error):
                        raise
                    failed, reason = part, str(error)
                    break
            if failed is None:
                return total.mean(parameters)
            # Outside the handler, where the traceback no longer holds the activations.
            for parameter in parameters.values():
                parameter.grad = None
            gc.collect()
            if self._accelerator.device.type == "cuda":
                torch.cuda.empty_cache()
            self._guard.lower(failed, step=step + 1, reason=reason)

    def _add(self, batch: Batch, total: _Total, *, seed: int, domains: bool) -> None:
        torch.manual_seed(seed)
        before = time.perf_counter()
        with self._guard.watching():
            losses: Losses = self._objective(batch.to(self._accelerator.device))
        loss, count = losses.total, losses.count
        self._spend("forward", before)
        if count == 0:
            return
        total.divisor = total.divisor or count  # keeps fp16 gradients in range; made exact in the end
        before = time.perf_counter()
        self._accelerator.backward(loss / total.divisor)
        total.loss, total.labels = total.loss + float(loss.detach()), total.labels + count
        self._spend("backward", before)
        if domains:
            rows = zip(losses.sums.tolist(), losses.counts.tolist(), strict=True)
            for clip, row in zip(batch.clips, rows, strict=True):
                total.domains[clip.domain or "unknown"] += row


class _Total:
    """Sums over the micro-batches."""

    def __init__(self) -> None:
        self.loss, self.labels, self.divisor = 0.0, 0, 0
        self.domains: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(2))

    def mean(self, parameters: Mapping[str, nn.Parameter]) -> MeanLoss:
        """Divide gradients and losses by the labels."""
        if self.labels and self.labels != self.divisor:
            for parameter in parameters.values():
                if parameter.grad is not None:
                    parameter.grad.mul_(self.divisor / self.labels)
        by_domain = {name: float(part) / count for name, (part, count) in sorted(self.domains.items()) if count}
        return MeanLoss(self.loss / self.labels if self.labels else 0.0, self.labels, by_domain)
