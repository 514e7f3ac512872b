"""How large each adapter is: the plan, and what can make one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """A rank for every adapted module, and why.

    Attributes:
        ranks: Full module name -> rank.
        evidence: Full module name -> the number the allocator decided by, where it used one.
        allocator: Registry name.
        parameters: Trainable adapter parameters, sum of rank x (in + out).
    """

    ranks: Mapping[str, int]
    allocator: str
    parameters: int
    evidence: Mapping[str, float] = field(default_factory=dict)


class RankAllocator(Protocol):
    """Spends a budget of adapter parameters over modules."""

    def allocate(self, costs: Mapping[str, int], *, rank: int, budget: int | None) -> RankPlan:
        """Give every module a rank.

        Args:
            costs: Full module name -> parameters per unit of rank.
            rank: Reference rank.
            budget: Adapter parameters at most; None means what the reference rank costs.

        Raises:
            AdapterError: The budget cannot give every module rank one.
        """
        ...


def unit_costs(loaded: LoadedModel, names: Sequence[str]) -> dict[str, int]:
    """Parameters that one unit of rank costs in each module: inputs + outputs.

    Raises:
        AdapterError: A name is neither a linear nor a pointwise convolution.
    """
    return {name: sum(matrix_shape(loaded, name)) for name in names}


def matrix_shape(loaded: LoadedModel, name: str) -> tuple[int, int]:
    """Outputs and inputs of a linear, or of a pointwise convolution, which is a linear at every place.

    Raises:
        AdapterError: The module is neither.
    """
    module = loaded.module.get_submodule(name)
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Conv1d | nn.Conv2d) and set(module.kernel_size) == {1} and module.groups == 1:
        return module.out_channels, module.in_channels
    raise AdapterError(
        f"{name} is a {type(module).__name__}; linears and pointwise convolutions carry an adapter. "
        "Leave it out of adapter.targets."
    )
