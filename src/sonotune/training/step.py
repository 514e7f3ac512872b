"""A step: the gradient of the mean loss over its micro-batches, in whatever parts they fit, and loss spikes.

A loss spike is a loss far beyond anything a run has seen, which one step would carry into the weights. Hard clips have
a loss several times the usual one, and where training has nearly reached zero even hundreds of times; so a spike is a
loss of twenty times the recent median that is also twice the highest of the stage's first steps, when nothing had been
learned.
"""

from __future__ import annotations

import gc
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sonotune.errors import out_of_memory
from sonotune.features.batching import Batch
from sonotune.models.base import LoadedModel
from sonotune.models.losses import Losses
from sonotune.processes import Processes, exchanging
from sonotune.runs import torch_seed
from sonotune.training.logging.run_log import EventLog
from sonotune.training.objectives.base import Objective
from sonotune.training.oom import MemoryGuard
from sonotune.training.runtime import ComputeSetup
from sonotune.training.sharding import is_shard, is_sharded
from sonotune.training.state import TrainingState


class MeanLoss(NamedTuple):
    """Mean loss of a step, the labels it is the mean over (by weight), and the same by domain if there are several."""

    loss: float
    labels: float
    by_domain: dict[str, float]


class _LossModule(nn.Module):
    """The loss as a module's forward, which is what accelerate wraps in mixed precision."""

    def __init__(self, objective: Objective, loaded: LoadedModel) -> None:
        super().__init__()
        self.module = loaded.module
        self._losses, self._loaded = objective.losses, loaded

    def forward(self, batch: Batch) -> Losses:
        """Losses of one micro-batch."""
        return self._losses(self._loaded, batch)


class Gradients:
    """Adds up gradients over micro-batches; exact for unequal ones, and for any parts they are cut into.

    Args:
        objective: Gives the loss.
        loaded: The model.
        seed: Of dropout, with the step and the number of the micro-batch.
        compute: Device, precision, gradient scaling, and the processes that share the micro-batches of a step.
        guard: Says what fits.
        log: Hears of the time that both passes take.
    """

    def __init__(
        self,
        objective: Objective,
        loaded: LoadedModel,
        *,
        seed: int,
        compute: ComputeSetup,
        guard: MemoryGuard,
        log: EventLog,
    ) -> None:
        self._loaded, self._seed, self._guard, self._log = loaded, seed, guard, log
        self._accelerator, self._processes = compute.accelerator, compute.processes
        self._sharded = is_sharded(loaded.module)
        # Not in DDP, whose hooks are on the parameters that trained when it was made, and on no others.
        self._objective = self._accelerator.prepare_model(_LossModule(objective, loaded), evaluation_mode=True)

    def accumulate(
        self,
        batches: Mapping[int, Batch],
        parameters: Mapping[str, nn.Parameter],
        *,
        step: int,
        clips: int,
        domains: bool,
        idle: Sequence[Batch] = (),
    ) -> MeanLoss:
        """Leave the gradient of the mean loss over all labels of all processes in the parameters.

        Where memory runs out, the step begins again with smaller parts: the batch that is averaged over, and so the
        gradient, stay the same.

        Args:
            batches: Micro-batches of the step by their number in it, those of this process.
            parameters: What trains now.
            step: Zero-based optimiser step.
            clips: Of the step, in all processes.
            domains: Whether the loss is wanted by domain.
            idle: Batches that this process goes through without counting them, to keep pace with the others.

        Raises:
            ResourceError: Nothing smaller is left to try.
        """
        total = self._pass(batches, parameters, step=step, clips=clips, domains=domains)
        for batch in idle:
            self._go_through(batch)
        return total.mean(parameters, self._processes)

    def dry_run(self, batch: Batch, parameters: Mapping[str, nn.Parameter], *, step: int) -> None:
        """Go through a micro-batch and learn nothing of it but whether it fits.

        Args:
            batch: Any; every process has the same.
            parameters: What trains now.
            step: Zero-based optimiser step that follows.

        Raises:
            ResourceError: Nothing smaller is left to try.
        """
        self._pass({0: batch}, parameters, step=step, clips=len(batch.clips), domains=False)
        self._forget(parameters)

    def _pass(
        self,
        batches: Mapping[int, Batch],
        parameters: Mapping[str, nn.Parameter],
        *,
        step: int,
        clips: int,
        domains: bool,
    ) -> _Total:
        """Leave gradients of a sum in the parameters, begun again with smaller parts until all fit."""
        self._loaded.module.train()
        while True:
            parts = [
                (torch_seed(self._seed, "step", step, number, index), part)
                for number, batch in batches.items()
                for index, part in enumerate(self._guard.parts(batch))
            ]
            failed, reason = None, ""
            total = _Total(clips)  # the divisor keeps fp16 gradients in range; made exact in the end
            for seed, part in parts:
                try:
                    self._add(part, total, seed=seed, domains=domains)
                except Exception as error:
                    if not out_of_memory(error):
                        raise
                    failed, reason = part, str(error)
                    break
            if failed is None:
                return total
            self._forget(parameters)  # outside the handler, where the traceback no longer holds the activations
            self._guard.lower(failed, step=step + 1, reason=reason)

    def _forget(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for parameter in parameters.values():
            parameter.grad = None
        gc.collect()
        if self._accelerator.device.type == "cuda":
            torch.cuda.empty_cache()

    def _go_through(self, batch: Batch) -> None:
        """Exchange what the others need, and learn nothing."""
        with exchanging():
            losses: Losses = self._objective(batch.to(self._accelerator.device))
            self._accelerator.backward(0 * losses.total)

    def _add(self, batch: Batch, total: _Total, *, seed: int, domains: bool) -> None:
        torch.manual_seed(seed)
        with self._log.timed("forward"):
            with self._guard.watching(), exchanging():
                losses: Losses = self._objective(batch.to(self._accelerator.device))
            loss, count = losses.total, losses.count
        if count == 0 and not self._sharded:
            return
        with self._log.timed("backward"):
            with exchanging():
                self._accelerator.backward(loss / total.divisor)
            total.loss, total.labels = total.loss + float(loss.detach()), total.labels + count
        if domains:
            rows = zip(losses.sums.tolist(), losses.counts.tolist(), strict=True)
            for clip, row in zip(batch.clips, rows, strict=True):
                total.domains[clip.domain or "unknown"] += row


class _Total:
    """Sums over the micro-batches of this process; gradients are divided by a number that all processes share."""

    def __init__(self, divisor: int) -> None:
        self.loss, self.divisor = 0.0, max(1, divisor)
        self.labels: float = 0
        self.domains: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(2))

    def mean(self, parameters: Mapping[str, nn.Parameter], processes: Processes) -> MeanLoss:
        """Divide gradients and losses by the labels of all processes, and add the gradients up."""
        reached = [name for name, parameter in parameters.items() if parameter.grad is not None]
        shares = processes.all_gather((self.loss, self.labels, dict(self.domains), reached))
        labels = sum(share[1] for share in shares)
        if labels and labels != self.divisor:
            for name in reached:
                parameters[name].grad.mul_(self.divisor / labels)  # type: ignore[union-attr]
        if processes.world_size > 1:
            anywhere = {name for share in shares for name in share[3]}
            whole = [name for name, value in parameters.items() if name in anywhere and not is_shard(value)]
            processes.all_reduce([_gradient(parameters[name]) for name in whole])  # those in parts are summed already
        domains: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(2))
        for share in shares:
            for name, row in share[2].items():
                domains[name] = domains[name] + row
        by_domain = {name: float(part) / count for name, (part, count) in sorted(domains.items()) if count}
        loss = sum(share[0] for share in shares)
        return MeanLoss(loss / labels if labels else 0.0, labels, by_domain)


def _gradient(parameter: nn.Parameter) -> Tensor:
    """The gradient, zero where this process had no micro-batch that reaches the parameter."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


# --- loss spikes -------------------------------------------------------------------------------------

SPIKE_WINDOW, SPIKE_FIRST = 32, 16
"""Steps whose losses are remembered, and those at the beginning of a stage in which nothing is a spike."""
SPIKE_FACTOR, SPIKE_CEILING = 20.0, 2.0


def is_spike(loss: float, state: TrainingState) -> bool:
    """Whether a finite loss is one."""
    if len(state.recent_losses) < SPIKE_FIRST:
        return False
    return loss > max(SPIKE_FACTOR * statistics.median(state.recent_losses), SPIKE_CEILING * state.first_loss)


def record_loss(loss: float, state: TrainingState) -> None:
    """Count a loss that was learned from."""
    if len(state.recent_losses) < SPIKE_FIRST:
        state.first_loss = max(state.first_loss, loss)
    state.recent_losses = [*state.recent_losses, loss][-SPIKE_WINDOW:]


def reset_losses(state: TrainingState) -> None:
    """Begin anew, with a stage."""
    state.recent_losses, state.first_loss = [], 0.0
