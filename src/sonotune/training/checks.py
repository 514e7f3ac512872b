"""Did anything train, and did nothing else?

Silent failures of fine-tuning (an adapter that never got a gradient, a base that moved, an adapter that is not applied)
cost whole runs, so they are errors here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sonotune.adapters.kinds.base import kind_of
from sonotune.errors import TrainingCheckError
from sonotune.models.base import LoadedModel
from sonotune.models.probe import probe_logits
from sonotune.processes import Processes
from sonotune.stages import Stage
from sonotune.training.sharding import is_shard, local


def fingerprint(module: nn.Module, *, exclude: frozenset[str]) -> dict[str, str]:
    """Digest of every parameter not excluded, by name."""
    return {name: _digest(value) for name, value in module.named_parameters() if name not in exclude}


def _digest(tensor: Tensor) -> str:
    data = local(tensor).detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.blake2b(data.data, digest_size=16).hexdigest()


def check_frozen(before: Mapping[str, str], module: nn.Module, *, exclude: frozenset[str]) -> None:
    """Frozen parameters are byte-identical.

    Raises:
        TrainingCheckError: Some have changed.
    """
    after = fingerprint(module, exclude=exclude)
    if changed := [name for name, digest in before.items() if after.get(name) != digest]:
        raise TrainingCheckError(f"{len(changed)} frozen parameters have changed, the first is {changed[0]}.")


def check_agreement(parameters: Mapping[str, Tensor], processes: Processes, *, step: int) -> None:
    """All processes have the same weights, to the last bit; of weights in parts there is nothing to compare.

    Raises:
        TrainingCheckError: Some differ: their gradients were not added up, or they began with other weights.
    """
    if processes.world_size == 1:
        return
    shares = processes.all_gather({name: _digest(value) for name, value in parameters.items() if not is_shard(value)})
    for rank, share in enumerate(shares):
        if differing := [name for name, digest in shares[0].items() if share.get(name) != digest]:
            raise TrainingCheckError(
                f"after step {step} process {rank} has other values than process 0 in {len(differing)} of "
                f"{len(shares[0])} tensors that train, the first is {differing[0]}: they train apart."
            )


def check_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Every group got a gradient in the first steps.

    Raises:
        TrainingCheckError: A whole group got none.
    """
    for group in optimizer.param_groups:
        if group["group"] is None:  # of another stage
            continue
        moments = [_first_moment(optimizer.state.get(parameter, {})) for parameter in group["params"]]
        if not any(moment is not None and bool(moment.abs().max() > 0) for moment in moments):
            raise TrainingCheckError(
                f"no gradient reached the {len(moments)} tensors of group {group['group']!r} in the first steps; "
                f"the first is {group['names'][0]}."
            )


def _first_moment(state: Mapping[str, Any]) -> Tensor | None:
    """Zero as long as no gradient came: the moment itself, or the scales of its codes of 8 bits."""
    return next((local(state[key]) for key in ("exp_avg", "absmax1", "state1") if key in state), None)


def check_moved(before: Mapping[str, str], module: nn.Module, stages: Sequence[Stage], loaded: LoadedModel) -> None:
    """Every group moved, and no adapter is still at its start.

    Args:
        before: Digests of the trainable parameters before training.
        module: The module after training.
        stages: What should have trained.
        loaded: The model, for its adapters.

    Raises:
        TrainingCheckError: A group did not move, or every adapter's B matrix is zero.
    """
    parameters = dict(module.named_parameters())
    for group in (group for stage in stages for group in stage.groups):
        if all(_digest(parameters[name]) == before[name] for name in group.parameters):
            raise TrainingCheckError(
                f"group {group.name!r} did not move: {len(group.parameters)} tensors are as before."
            )
    if any(loaded.names.owns(name) for stage in stages for name in stage.trainable):
        norms = kind_of(loaded).update_norms(loaded)
        if norms and not any(norms.values()):
            raise TrainingCheckError(f"all {len(norms)} adapters are still zero after training.")


def check_applied(loaded: LoadedModel, *, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
    """The adapter changes what the model computes.

    Args:
        loaded: The trained model.
        autocast: Makes the precision context the model was trained in, which frozen 16-bit weights need.

    Raises:
        TrainingCheckError: Outputs are the same with the adapter on and off.
    """
    if loaded.adapter is None:
        return
    with autocast():
        on = probe_logits(loaded)
        with kind_of(loaded).disabled(loaded):
            off = probe_logits(loaded)
    if torch.equal(on, off):
        raise TrainingCheckError("the adapter is not applied: outputs are the same with it on and off.")
