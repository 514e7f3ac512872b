"""AdamW over named groups, and learning rates that are pure functions of the step.

One optimiser holds what any stage trains, from the start: what is frozen in a stage has no gradient, so that AdamW
leaves it and its moments alone, and what goes on training keeps its moments because nothing is built anew. Without a
scheduler object there is nothing to fall out of step with the optimiser when a run resumes or a stage changes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sonotune.errors import CheckpointError
from sonotune.optimizers import OptimizerKind, moment_bytes
from sonotune.stages import Stage
from sonotune.training.sharding import is_shard, like, local

Schedule = Literal["cosine", "linear", "constant"]


def build_optimizer(
    module: nn.Module,
    stages: Sequence[Stage],
    *,
    weight_decay: float,
    betas: tuple[float, float],
    kind: OptimizerKind = "adamw",
) -> torch.optim.Optimizer:
    """AdamW over all that any stage trains, each parameter once; `enter_stage` says what trains now.

    Args:
        module: Holds the parameters.
        stages: Of the run.
        weight_decay: Of groups that decay.
        betas: Decay of the two moments.
        kind: Torch's own, fused; or that of bitsandbytes with moments in 8 bits (of tensors from 4096 numbers on), or
            paged between card and host.
    """
    parameters = dict(module.named_parameters())
    roles: dict[str, list[tuple[str, float] | None]] = {}
    decays: dict[str, bool] = {}
    for index, stage in enumerate(stages):
        for group in stage.groups:
            for name in group.parameters:
                roles.setdefault(name, [None] * len(stages))[index] = (group.name, group.learning_rate)
                decays[name] = group.decay
    cells: dict[tuple[object, ...], list[str]] = {}
    for name, role in roles.items():
        # Torch steps many tensors at once, and these must be of one kind.
        cells.setdefault((is_shard(parameters[name]), decays[name], *role), []).append(name)
    groups = [
        {
            "params": [parameters[name] for name in names],
            "names": names,
            "roles": role,
            "weight_decay": weight_decay if decay else 0.0,
        }
        for (_, decay, *role), names in cells.items()
    ]
    if kind == "adamw":
        return torch.optim.AdamW(groups, betas=betas, fused=True)
    from bitsandbytes.optim import AdamW  # noqa: PLC0415  (a second to import, and most runs have no use for it)

    made: torch.optim.Optimizer = AdamW(
        groups, betas=betas, optim_bits=8 if kind.endswith("8bit") else 32, is_paged=kind.startswith("paged")
    )
    return made


def enter_stage(optimizer: torch.optim.Optimizer, index: int) -> None:
    """Let train what trains in a stage, at its learning rates, and nothing else."""
    for group in optimizer.param_groups:
        role = group["roles"][index]
        group["group"], group["peak"] = role or (None, 0.0)
        group["lr"] = group["peak"]
        group["trained"] = any(group["roles"][:index])
        for parameter in group["params"]:
            parameter.requires_grad_(role is not None)
            if role is None:
                parameter.grad = None


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


def set_learning_rates(
    optimizer: torch.optim.Optimizer, factor: float, *, of_trained: float | None = None
) -> dict[str, float]:
    """Apply a factor to the peak of every group of the stage.

    Args:
        optimizer: In a stage.
        factor: Of groups that begin to train in this stage.
        of_trained: Of groups that trained before; None takes the same.

    Returns:
        The learning rate of each group name that trains.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * (of_trained if group["trained"] and of_trained is not None else factor)
    return {group["group"]: group["lr"] for group in optimizer.param_groups if group["group"] is not None}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of the optimiser keyed `name/moment`, by parameter name."""
    tensors: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if key not in _TABLES:
                    tensors[f"{name}/{key}"] = torch.as_tensor(value)
    return tensors


_TABLES = ("qmap1", "qmap2")  # what codes of 8 bits mean: the same for all, and always


def moments_to_come(optimizer: torch.optim.Optimizer, kind: OptimizerKind) -> int:
    """Bytes of what the first step of a stage makes for the parameters that train in it."""
    return sum(
        moment_bytes(local(parameter).numel(), kind)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad and parameter not in optimizer.state
    )


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
    for place, group in enumerate(optimizer.param_groups):
        for index, (name, parameter) in enumerate(zip(group["names"], group["params"], strict=True)):
            saved = by_name.get(name)
            if saved is None:
                if name in required:
                    raise CheckpointError(f"the checkpoint has no optimiser state for {name}; it is incomplete.")
                continue
            if isinstance(optimizer, torch.optim.AdamW):
                optimizer.state[parameter] = {
                    key: like(parameter, value) if key != "step" else value.cpu() for key, value in saved.items()
                }
                continue
            _restore_into(optimizer, parameter, saved, place, index)


def _restore_into(optimizer: Any, parameter: Tensor, saved: dict[str, Tensor], place: int, index: int) -> None:
    """Fill the buffers that bitsandbytes makes, which know whether they are paged."""
    optimizer.init_state(optimizer.param_groups[place], parameter, place, index)
    state = optimizer.state[parameter]
    for key, value in saved.items():
        if key == "step":
            state[key] = int(value)
        else:
            state[key].copy_(value)
