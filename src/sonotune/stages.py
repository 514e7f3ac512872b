"""A stage lists what trains. Nothing is ever unfrozen by exclusion.

A run has one stage or several. All of them are known before the model is loaded, because what any of them trains in
full precision must not be quantised, and goes into the optimiser from the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel, select


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
        patience: Evaluations without a better score before it ends, or None.
        warmup_steps: Linear rise of groups that begin to train in this stage; `auto` takes 5 % of its steps, 500 at
            most.
        dip: Share of the peak learning rate at which groups that trained in an earlier stage start; they rise to the
            peak over the same steps.
    """

    name: str
    groups: tuple[ParameterGroup, ...]
    max_epochs: int
    max_steps: int | None
    patience: int | None
    warmup_steps: int | Literal["auto"] = "auto"
    dip: float = 1.0

    @property
    def trainable(self) -> frozenset[str]:
        """All parameter names that train."""
        return frozenset(name for group in self.groups for name in group.parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings:
    """A stage as its user wrote it.

    Attributes:
        name: For events and the record.
        weights: Component selectors trained in full precision.
        adapters: Whether all adapters train, none, or those on the modules of some selectors.
        learning_rate: Peak; None takes that of the run.
        learning_rates: Selector -> factor on it, after those of the run; a later entry wins.
        max_epochs: See `Stage`.
        max_steps: See `Stage`.
        patience: See `Stage`.
        warmup_steps: See `Stage`.
        dip: See `Stage`.
    """

    name: str
    weights: Sequence[str] = ()
    adapters: Literal["all", "none"] | Sequence[str] = "all"
    learning_rate: float | None = None
    learning_rates: Mapping[str, float]
    max_epochs: int
    max_steps: int | None = None
    patience: int | None = None
    warmup_steps: int | Literal["auto"] = "auto"
    dip: float = 1.0


def all_stages(*stages: Stage) -> frozenset[str]:
    """Names of all parameters that train in any stage."""
    return frozenset[str]().union(*(stage.trainable for stage in stages))


def whole_run(
    loaded: LoadedModel,
    *,
    learning_rate: float,
    learning_rates: Mapping[str, float],
    max_epochs: int,
    max_steps: int | None,
    patience: int | None,
    warmup_steps: int | Literal["auto"] = "auto",
    layer_decay: float = 1.0,
) -> Stage:
    """The single stage that trains everything the adapters marked trainable.

    Args:
        loaded: A model whose trainable parameters are marked.
        learning_rate: Peak.
        learning_rates: Component selector -> factor on the learning rate; a later entry wins.
        max_epochs: See `Stage`.
        max_steps: See `Stage`.
        patience: See `Stage`.
        warmup_steps: See `Stage`.
        layer_decay: Factor on the learning rate from each numbered layer to the one below.

    Raises:
        AdapterError: Nothing trains.
        ModelError: A selector matches nothing.
    """
    trainable = [name for name, parameter in loaded.module.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise AdapterError("nothing trains: no parameter is marked trainable. Check adapter.targets and adapter.stem.")
    return Stage(
        name="train",
        groups=_groups(loaded, trainable, learning_rate, learning_rates, layer_decay),
        max_epochs=max_epochs,
        max_steps=max_steps,
        patience=patience,
        warmup_steps=warmup_steps,
    )


def build_stages(
    loaded: LoadedModel,
    wanted: Sequence[StageSettings],
    *,
    learning_rate: float,
    learning_rates: Mapping[str, float],
    layer_decay: float = 1.0,
) -> tuple[Stage, ...]:
    """The stages of a run, on a model whose adapters are attached and whose trainable parameters are marked.

    Args:
        loaded: The model; what any stage trains is marked trainable.
        wanted: The stages, in order.
        learning_rate: Peak, where a stage has none of its own.
        learning_rates: Component selector -> factor on the learning rate, in all stages.
        layer_decay: See `whole_run`.

    Raises:
        AdapterError: A stage trains nothing, or a weight that cannot train.
        ModelError: A selector matches nothing.
    """
    return tuple(
        Stage(
            name=stage.name,
            groups=_groups(
                loaded,
                _chosen(loaded, stage),
                stage.learning_rate or learning_rate,
                {**learning_rates, **stage.learning_rates},
                layer_decay,
            ),
            max_epochs=stage.max_epochs,
            max_steps=stage.max_steps,
            patience=stage.patience,
            warmup_steps=stage.warmup_steps,
            dip=stage.dip,
        )
        for stage in wanted
    )


def _chosen(loaded: LoadedModel, stage: StageSettings) -> list[str]:
    """Names of what a stage trains, in model order."""
    marked = [name for name, parameter in loaded.module.named_parameters() if parameter.requires_grad]
    weights = set(select(loaded, stage.weights)) if stage.weights else set[str]()
    adapters: set[str] | None = None
    if not isinstance(stage.adapters, str):
        adapters = set(select(loaded, stage.adapters))
    chosen = [
        name
        for name in marked
        if (
            stage.adapters == "all" or (adapters is not None and loaded.names.base_name(name) in adapters)
            if loaded.names.owns(name)
            else loaded.names.base_name(name) in weights
        )
    ]
    held = {loaded.names.base_name(name) for name in chosen if not loaded.names.owns(name)}
    if lost := [name for name in weights - held if name not in loaded.constant]:
        raise AdapterError(
            f"stage {stage.name!r} is to train {sorted(lost)[0]} and {len(lost) - 1} more in full precision, and they "
            "cannot: they are quantised, or tied to weights that stay. Choose other weights, or quantization.skip."
        )
    if not chosen:
        raise AdapterError(
            f"stage {stage.name!r} trains nothing: it names no weights, and no adapters lie where it says. "
            "Name weights or adapters, or leave the stage out."
        )
    return chosen


def _groups(
    loaded: LoadedModel,
    trainable: Sequence[str],
    learning_rate: float,
    learning_rates: Mapping[str, float],
    layer_decay: float,
) -> tuple[ParameterGroup, ...]:
    factors: dict[str, tuple[str, float]] = {}
    for selector, factor in learning_rates.items():
        factors |= dict.fromkeys(select(loaded, [selector]), (selector, factor))
    parameters = dict(loaded.module.named_parameters())
    beside = "weights" if loaded.adapter is not None else "all"
    members: dict[tuple[str, float, bool], list[str]] = {}
    for name in trainable:
        selector, factor = factors.get(loaded.names.base_name(name), ("", 1.0))
        below = _layers_above(loaded, loaded.names.base_name(name)) if layer_decay != 1 else 0
        label = ":".join(filter(None, ("adapters" if loaded.names.owns(name) else beside, selector)))
        key = f"{label}, {below} layers down" if below else label
        members.setdefault((key, factor * layer_decay**below, parameters[name].ndim > 1), []).append(name)
    return tuple(
        ParameterGroup(name=kind, parameters=tuple(names), learning_rate=learning_rate * factor, decay=decay)
        for (kind, factor, decay), names in sorted(members.items())
    )


def _layers_above(loaded: LoadedModel, name: str) -> int:
    """Numbered layers of its component above a parameter; all of the encoder's for the stem, which lies below it."""
    for component in loaded.components:
        for index, prefix in enumerate(component.layers):
            if name.startswith(prefix + "."):
                return len(component.layers) - 1 - index
    owner = next((component.name for component in loaded.components if component.owns(name)), None)
    below = {"stem": "encoder", "embeddings": "decoder"}.get(owner or "")
    return next((len(component.layers) for component in loaded.components if component.name == below), 0)


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
                "tensors": [loaded.names.unwrapped(name) for name in group.parameters],
            }
            for group in stage.groups
        ],
    }


def parameters_by_name(module: nn.Module, names: frozenset[str]) -> dict[str, nn.Parameter]:
    """The named parameters, in model order."""
    return {name: parameter for name, parameter in module.named_parameters() if name in names}
