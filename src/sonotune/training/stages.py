"""A stage lists what trains. Nothing is ever unfrozen by exclusion.

One stage a run for now; the loop, the checkpoint and the record already count stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel, bare_name, carrier, select


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a learning rate.

    Attributes:
        name: `adapters`, `weights` (full precision beside adapters) or `all` (full fine-tuning), with the selector
            that set its learning rate, where one did.
        parameters: Names in `module.named_parameters()`, in model order.
        learning_rate: Peak.
        decay: Whether weight decay applies (matrices only).
    """

    name: str
    parameters: tuple[str, ...]
    learning_rate: float
    decay: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One phase of training: what moves, how fast, until when.

    Attributes:
        name: For events and the record.
        groups: What trains; every trainable parameter is in exactly one.
        max_epochs: Passes over the training clips at most.
        max_steps: Optimiser steps at most, or None.
        patience: Evaluations without a better score before stopping, or None.
    """

    name: str
    groups: tuple[ParameterGroup, ...]
    max_epochs: int
    max_steps: int | None
    patience: int | None

    @property
    def trainable(self) -> frozenset[str]:
        """All parameter names that train."""
        return frozenset(name for group in self.groups for name in group.parameters)


def whole_run(
    loaded: LoadedModel,
    *,
    learning_rate: float,
    learning_rates: Mapping[str, float],
    max_epochs: int,
    max_steps: int | None,
    patience: int | None,
) -> Stage:
    """The single stage that trains everything the adapters marked trainable.

    Args:
        loaded: A model whose trainable parameters are marked.
        learning_rate: Peak.
        learning_rates: Component selector -> factor on the learning rate; a later entry wins.
        max_epochs: See `Stage`.
        max_steps: See `Stage`.
        patience: See `Stage`.

    Raises:
        AdapterError: Nothing trains.
        ModelError: A selector matches nothing.
    """
    trainable = {name: parameter for name, parameter in loaded.module.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise AdapterError("nothing trains: no parameter is marked trainable. Check adapter.targets and adapter.stem.")
    factors: dict[str, tuple[str, float]] = {}
    for selector, factor in learning_rates.items():
        factors |= dict.fromkeys(select(loaded, [selector]), (selector, factor))
    beside = "weights" if loaded.adapter is not None else "all"
    members: dict[tuple[str, float, bool], list[str]] = {}
    for name, parameter in trainable.items():
        kind = "adapters" if ".lora_" in name else beside
        selector, factor = factors.get(carrier(name), ("", 1.0))
        members.setdefault((f"{kind}:{selector}" if selector else kind, factor, parameter.ndim > 1), []).append(name)
    groups = tuple(
        ParameterGroup(name=kind, parameters=tuple(names), learning_rate=learning_rate * factor, decay=decay)
        for (kind, factor, decay), names in sorted(members.items())
    )
    return Stage(name="train", groups=groups, max_epochs=max_epochs, max_steps=max_steps, patience=patience)


def describe(stage: Stage, loaded: LoadedModel) -> Mapping[str, object]:
    """What the run record keeps of a stage."""
    sizes = {name: parameter.numel() for name, parameter in loaded.module.named_parameters()}
    return {
        "name": stage.name,
        "max_epochs": stage.max_epochs,
        "max_steps": stage.max_steps,
        "groups": [
            {
                "name": group.name,
                "learning_rate": group.learning_rate,
                "decay": group.decay,
                "parameters": sum(sizes[name] for name in group.parameters),
                "tensors": [bare_name(name) for name in group.parameters],
            }
            for group in stage.groups
        ],
    }


def parameters_by_name(module: nn.Module, names: frozenset[str]) -> dict[str, nn.Parameter]:
    """The named parameters, in model order."""
    return {name: parameter for name, parameter in module.named_parameters() if name in names}
