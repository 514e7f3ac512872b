"""The seam of adapters: what a kind of adapter must do for everything else to train, keep, plan and export it.

A kind is one object in a file of this package and one line in `registry.ADAPTERS`; no other code knows what its
parameters are called (docs/how-to/add-an-adapter-kind.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from sonotune.adapters.metadata import ADAPTER_WEIGHTS
from sonotune.adapters.ranks.plan import RankPlan, Scaling
from sonotune.adapters.targets import modules_of
from sonotune.errors import AdapterError, first_line
from sonotune.models.base import LoadedModel, ParameterNames
from sonotune.models.pretrained import not_finite
from sonotune.registry import resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """How adapters are attached, and what trains beside them: those of the section `adapter` that every kind gets.

    A kind takes those that are its own.

    Attributes:
        rank: Reference rank, where the plan has none of its own.
        alpha: Numerator of the scale at the reference rank; `auto` takes the rank.
        scaling: Of other ranks.
        dropout: On the inputs of the adapters.
        stem: Train, adapt or freeze the convolutional stem.
        unfreeze: Component selectors trained in full precision.
        gate_groups: Groups of ranks that have a gate of their own, where the kind has gates.
        gate_seed: Of the weights that gates start from, and of the order of frames in the kind that shuffles them.
        conv_kernel: Positions of a filter over time, where the kind has filters; odd.
    """

    rank: int = 8
    alpha: float | Literal["auto"] = "auto"
    scaling: Scaling = "balanced"
    dropout: float = 0.0
    stem: Literal["train", "lora", "frozen"] = "train"
    unfreeze: Sequence[str] = ()
    gate_groups: int = 4
    gate_seed: int = 0
    conv_kernel: int = 3


class AdapterKind(ParameterNames, Protocol):
    """One kind of adapter. It names parameters as well (`ParameterNames`), in models that carry it.

    Its `name` is that of the registry, of `adapter.kind` and of `sonotune.json`.
    """

    folder: str
    """Of a run directory, where what was trained is kept."""
    ranked: bool
    """Whether its adapters have ranks, which an allocator chooses."""

    def attach(
        self, loaded: LoadedModel, targets: Sequence[str], settings: AdapterSettings, plan: RankPlan | None
    ) -> LoadedModel:
        """Put untrained adapters on the module, in place, freeze everything else and mark what trains (fp32).

        The outputs of the model stay what they were.

        Args:
            loaded: A model without adapters.
            targets: Full names of the modules that carry one.
            settings: How.
            plan: Rank of every target, for kinds that have ranks; else None.

        Returns:
            The model with `adapter` and `names` set; a kind that trains the model itself returns it as it was.

        Raises:
            AdapterError: A module cannot carry one, or cannot train.
        """
        ...

    def save(
        self, loaded: LoadedModel, folder: Path, *, extra: dict[str, Any], weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write what was trained, and `sonotune.json` beside it.

        Args:
            loaded: The trained model.
            folder: Created if absent.
            extra: Further entries of `sonotune.json`.
            weights: Unsharded state of the module, where its own parameters are shards.
        """
        ...

    def load(self, loaded: LoadedModel, folder: Path, *, trainable: bool = False) -> LoadedModel:
        """Put saved adapters on the model that they were trained on; raises AdapterError where they do not fit."""
        ...

    def outline(self, loaded: LoadedModel, folder: Path) -> LoadedModel:
        """Give a module on the meta device the shapes of saved adapters; raises AdapterError where they do not fit."""
        ...

    def disabled(self, loaded: LoadedModel) -> AbstractContextManager[Any]:
        """The model computes as if it had no adapters, inside."""
        ...

    def update_norms(self, loaded: LoadedModel) -> dict[str, float]:
        """Full module name -> Frobenius norm of what its adapter has learned; zero where it has not trained."""
        ...

    def merge(self, loaded: LoadedModel) -> dict[str, Tensor] | None:
        """What adapters add to parameters of the plain model, by full name; None where no plain model computes it."""
        ...

    def low_rank(self, loaded: LoadedModel) -> dict[str, tuple[Tensor, Tensor]] | None:
        """Adapted module -> A (R, I, ...) and B (O, R) in fp32; their product is what `merge` adds to its weight.

        None where that is no product of two matrices.
        """
        ...

    def activations(self, module: nn.Module) -> tuple[int, float]:
        """Features that the adapter of a module keeps for its backward pass beside its input, and its dropout."""
        ...


@runtime_checkable
class Scalable(Protocol):
    """A kind whose adapters can be used at a part of their strength."""

    def scaled(self, loaded: LoadedModel, scale: float) -> AbstractContextManager[None]:
        """The model computes with what was learned at `scale` of its strength, inside: 0 is the base, 1 as trained."""
        ...


def kind_of(loaded: LoadedModel) -> AdapterKind:
    """The kind of adapters that a model carries; `none` where it carries none."""
    return cast(AdapterKind, loaded.names) if loaded.adapter is not None else kind_named("none")


def kind_named(name: str) -> AdapterKind:
    """A kind by its registry name; raises ConfigError."""
    return cast(AdapterKind, resolve("adapters", name))


def carries_one(why: str) -> str:
    """What a user is told who would train over an adapter."""
    return (
        f"{why}, but this model already carries an adapter. "
        "Merge it first: sonotune export RUN FOLDER, then model=FOLDER."
    )


def trained_in_full(loaded: LoadedModel, settings: AdapterSettings) -> tuple[str, ...]:
    """Full names of the modules that train in full precision beside adapters.

    Raises:
        AdapterError: One is quantised, or shares its weights.
        ModelError: A selector matches nothing.
    """
    beside = modules_of(loaded, settings.unfreeze) if settings.unfreeze else ()
    return tuple(dict.fromkeys((*stem_modules(loaded), *beside))) if settings.stem == "train" else beside


def stem_modules(loaded: LoadedModel) -> tuple[str, ...]:
    """Convolutions of the stem; its linears where it has none; or what the family names."""
    if loaded.stem_modules:
        return loaded.stem_modules
    stem = loaded.component("stem")
    inside = [(name, module) for name, module in loaded.module.named_modules() if stem.owns(name + ".weight")]
    convolutions = [name for name, module in inside if isinstance(module, nn.Conv1d | nn.Conv2d)]
    return tuple(convolutions or [name for name, module in inside if isinstance(module, nn.Linear)])


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """What a saved adapter learned, by the names in its file.

    Raises:
        AdapterError: The file is missing or damaged, or holds NaN, infinity, or anything but floats of 16 bits or more.
    """
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    path = folder / ADAPTER_WEIGHTS
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise AdapterError(f"{path} is damaged or empty: {first_line(error)}. Copy the adapter again.") from error
    if wrong := sorted(name for name, tensor in tensors.items() if tensor.dtype not in _FLOATS):
        raise AdapterError(
            f"{path} holds {wrong[0]} as {str(tensors[wrong[0]].dtype).removeprefix('torch.')}, and adapters are "
            f"floats of 16 bits or more; {len(wrong)} of {len(tensors)} tensors are stored so. Save the adapter in 16 "
            "or 32 bits."
        )
    if lost := not_finite(tensors):
        raise AdapterError(
            f"{path} holds NaN or infinity in {len(lost)} of {len(tensors)} tensors, such as {min(lost)}. "
            "Take an adapter from before its training failed."
        )
    return tensors


_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def each_module(module: nn.Module, names: ParameterNames) -> Iterator[tuple[str, nn.Module]]:
    """Modules that no adapter owns, by their names in the plain model; for kinds that wrap nothing."""
    for name, child in module.named_modules():
        if not names.owns(name):
            yield names.unwrapped(name), child
