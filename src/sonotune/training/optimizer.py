"""AdamW over named groups, and learning rates that are pure functions of the step.

Without a scheduler object there is nothing to fall out of step with the optimiser when a run resumes or a stage
changes.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn

from sonotune.errors import CheckpointError
from sonotune.training.stages import Stage

Schedule = Literal["cosine", "linear", "constant"]


def build_optimizer(
    module: nn.Module, stage: Stage, *, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW, fused, with one group per `ParameterGroup`; each group keeps its name and peak learning rate."""
    parameters = dict(module.named_parameters())
    groups = [
        {
            "params": [parameters[name] for name in group.parameters],
            "names": list(group.parameters),
            "group": group.name,
            "peak": group.learning_rate,
            "lr": group.learning_rate,
            "weight_decay": weight_decay if group.decay else 0.0,
        }
        for group in stage.groups
    ]
    return torch.optim.AdamW(groups, betas=betas, fused=True)


def learning_rate_factor(
    step: int, *, total_steps: int, warmup_steps: int, schedule: Schedule, floor: float = 0.1
) -> float:
    """Share of the peak learning rate at a step.

    Args:
        step: Zero-based optimiser step.
        total_steps: Length of the stage.
        warmup_steps: Linear rise from 1/warmup to 1.
        schedule: What follows the rise.
        floor: Share left at the end of `cosine` and `linear`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    falling = 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1.0 - done
    return floor + (1 - floor) * falling


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Apply the factor to every group; returns the learning rate of each group name."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return {group["group"]: group["lr"] for group in optimizer.param_groups}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of the optimiser keyed `name/moment`, by parameter name."""
    tensors: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = value
    return tensors


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], *, required: Collection[str]
) -> None:
    """Put saved state back, by parameter name.

    Args:
        optimizer: Freshly built.
        tensors: From `optimizer_tensors`.
        required: Parameters that had state when it was saved; those that never got a gradient have none.

    Raises:
        CheckpointError: A parameter's state is missing.
    """
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, moment = key.rpartition("/")
        by_name.setdefault(name, {})[moment] = value
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            saved = by_name.get(name)
            if saved is None:
                if name in required:
                    raise CheckpointError(f"the checkpoint has no optimiser state for {name}; it is incomplete.")
                continue
            optimizer.state[parameter] = {
                key: value.to(parameter.device) if key != "step" else value.cpu() for key, value in saved.items()
            }
