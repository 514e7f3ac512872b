"""How large each adapter is: what may carry one, what is known of it, the budget, the plan, and what can make one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NotRequired, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from torch import nn
from typing_extensions import TypedDict

from sonotune.errors import AdapterError
from sonotune.json_files import Number, check_json
from sonotune.models.base import LoadedModel

Needs = Literal["nothing", "activations", "directions", "gradients"]
Scaling = Literal["balanced", "constant", "rslora"]

_SCHEMA = 1
_Positive = Annotated[int, Field(ge=1, lt=2**31)]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A module that carries an adapter.

    Attributes:
        name: Full module name.
        outputs: Rows of its matrix.
        inputs: Columns.
        group: Whose budget it draws on: a component, or `decoder.cross_attention`.
        kind: What it is within its layer, such as `self_attn.q_proj` or `fc1`.
    """

    name: str
    outputs: int
    inputs: int
    group: str
    kind: str

    @property
    def cost(self) -> int:
        """Adapter parameters of one unit of rank."""
        return self.outputs + self.inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """What calibration found, by full module name; empty where it was not asked for.

    Attributes:
        effective_ranks: exp of the Shannon entropy of the spectrum of the (standardised) inputs' covariance.
        shares: Largest eigenvalues of the plain covariance of the inputs as shares of its trace, falling (P,).
        directions: Their eigenvectors as rows (P, inputs) float32, orthonormal.
        gains: What the loss would gain in each of these directions: squared norm of the gradient along it, whitened by
            its variance (P,).
    """

    effective_ranks: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    directions: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    gains: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be spent, and within which bounds.

    Attributes:
        rank: Reference rank.
        parameters: Adapter parameters at most; None means what the reference rank costs at every site. Where they are
            given, what they buy at every site takes the place of the reference rank in all that follows.
        step: Ranks are multiples of this; None takes 8 from a reference rank of 32 on, 4 from 16 on and 1 below,
            halved until it divides the reference rank.
        least: Least rank of a site; None takes a quarter of the reference rank.
        most: Largest rank of a site; None takes four times the reference rank. A quarter of the smaller side of the
            matrix is a limit as well, where that lies above the reference rank.
        gamma: Exponent on the scores: 0 is uniform, 1 proportional.
        weights: Group -> factor on the share of the budget that uniform ranks would give it, renormalised.
        floors: Group -> least rank of its sites.
        cross_modality: Whether groups compete for the budget, each within half and double of its share.
    """

    rank: int
    parameters: int | None = None
    step: int | None = None
    least: int | None = None
    most: int | None = None
    gamma: float = 0.5
    weights: Mapping[str, float] = field(default_factory=dict)
    floors: Mapping[str, int] = field(default_factory=dict)
    cross_modality: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """A rank for every adapted module, and why.

    Attributes:
        ranks: Full module name -> rank.
        allocator: Registry name.
        parameters: Trainable adapter parameters, sum of rank x (in + out).
        budget: Adapter parameters that could be spent.
        reference: Rank at which an update is scaled by alpha / rank; None leaves it to the settings of a run.
        evidence: Full module name -> the number the allocator decided by, where it used one.
        initial: Full module name -> rows that the A matrix starts from (rank, inputs), where the allocator says. They
            are fewer where calibration knew fewer directions; the rest of A starts as it would without them.
        pruned_to: Adapter parameters that training prunes the ranks down to; None leaves them as they are.
        caps: Full module name -> rank above the reference rank that it cannot make use of, where the allocator knows.
    """

    ranks: Mapping[str, int]
    allocator: str
    parameters: int
    budget: int | None = None
    reference: int | None = None
    evidence: Mapping[str, float] = field(default_factory=dict)
    initial: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False, compare=False)
    pruned_to: int | None = None
    caps: Mapping[str, float] = field(default_factory=dict)


class RankAllocator(Protocol):
    """Spends a budget of adapter parameters over sites."""

    needs: ClassVar[Needs]
    """What calibration must find out first."""

    def allocate(self, sites: Sequence[Target], budget: Budget, *, evidence: Importance, seed: int) -> RankPlan:
        """Give every site a rank.

        Args:
            sites: Where adapters go, in model order.
            budget: What may be spent.
            evidence: What calibration found; at least what `needs` says.
            seed: Decides every draw.

        Raises:
            AdapterError: The budget cannot give every site its least rank (the message says the least budget), or
                evidence is missing.
        """
        ...


def targets_in(loaded: LoadedModel, names: Sequence[str]) -> tuple[Target, ...]:
    """Describe modules of a model as sites.

    Raises:
        AdapterError: A name is neither a linear nor a pointwise convolution.
    """
    return tuple(_site(loaded, name) for name in names)


def _site(loaded: LoadedModel, name: str) -> Target:
    outputs, inputs = matrix_shape(loaded, name)
    owner = next((component for component in loaded.components if component.owns(name)), None)
    group: str = "model" if owner is None else owner.name
    layer = next((prefix for prefix in owner.layers if name.startswith(prefix + ".")), None) if owner else None
    if owner is not None and (pattern := owner.parts.get("cross_attention")) and re.search(pattern, name + ".weight"):
        group = f"{owner.name}.cross_attention"
    kind = name.removeprefix(layer + ".") if layer else name.rpartition(".")[2]
    return Target(name=name, outputs=outputs, inputs=inputs, group=group, kind=kind)


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
    module = getattr(module, "base_layer", module)  # what PEFT wraps
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Conv1d | nn.Conv2d) and set(module.kernel_size) == {1} and module.groups == 1:
        return module.out_channels, module.in_channels
    raise AdapterError(
        f"{name} is a {type(module).__name__}; linears and pointwise convolutions carry an adapter. "
        "Leave it out of adapter.targets."
    )


def alphas(ranks: Mapping[str, int], *, rank: int, alpha: float, scaling: Scaling = "balanced") -> dict[str, float]:
    """`lora_alpha` of each module; PEFT scales an update by alpha / rank of the module (`use_rslora=False`).

    Early in training AdamW moves every entry of B alike, whatever the rank, so that the outputs change with the square
    root of the rank. `balanced` makes up for that and keeps modules of all ranks on one learning rate: at rank 64 the
    outputs change 1.3 times as much as at rank 4, against 5.4 times with a constant scale and 0.3 times with one that
    falls with the rank itself.

    Args:
        ranks: Full module name -> rank.
        rank: Reference rank, at which `balanced` and `constant` scale by `alpha / rank`.
        alpha: Numerator there.
        scaling: `balanced` scales by `alpha / rank * sqrt(rank / own rank)`; `constant` by `alpha / rank`; `rslora`
            (arXiv 2312.03732) by `alpha / sqrt(own rank)`.
    """
    if scaling == "constant":
        return {name: alpha * own / rank for name, own in ranks.items()}
    unit = 1 if scaling == "rslora" else rank
    return {name: alpha * math.sqrt(own / unit) for name, own in ranks.items()}


def evidence_of(found: Mapping[str, _T], sites: Sequence[Target], *, allocator: str, what: str) -> dict[str, _T]:
    """What calibration found of every site.

    Args:
        found: A table of `Importance`.
        sites: Where adapters go.
        allocator: Registry name of who asks.
        what: What it asks for, in words.

    Raises:
        AdapterError: There is nothing of some site.
    """
    if missing := [site.name for site in sites if site.name not in found]:
        raise AdapterError(
            f"adapter.allocator={allocator} decides by the {what}, which are not known of {missing[0]} and "
            f"{len(missing) - 1} more of {len(sites)} modules. Calibration on training clips finds them: "
            f"`sonotune allocate adapter.allocator={allocator} data.train=MANIFEST`; "
            "adapter.allocator=uniform needs none."
        )
    return {site.name: found[site.name] for site in sites}


def gains_of(evidence: Importance, sites: Sequence[Target], *, allocator: str) -> dict[str, NDArray[np.float64]]:
    """Gains of every site, checked.

    Raises:
        AdapterError: They are missing of some site, are no finite numbers from 0 on, or are all zero.
    """
    gains = evidence_of(evidence.gains, sites, allocator=allocator, what="gradients of the loss")
    for name, values in gains.items():
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise AdapterError(f"a gain of {name} is negative or not finite. Calibrate again, in fp32 if this was not.")
    if sites and not any(float(values.sum()) for values in gains.values()):
        raise AdapterError(
            f"adapter.allocator={allocator}: all gradients are zero, so the calibration clips say nothing of these "
            "modules. Calibrate on other clips, or use adapter.allocator=entropy."
        )
    return gains


def rows_of(
    evidence: Importance,
    sites: Sequence[Target],
    ranks: Mapping[str, int],
    *,
    allocator: str,
    order: Mapping[str, NDArray[np.intp]] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Directions that adapters start from, as many as their rank or as are known.

    Args:
        evidence: With directions.
        sites: Where adapters go.
        ranks: Of every site.
        allocator: Registry name of who asks.
        order: Target -> numbers of its directions from the best on; None takes them as they stand.

    Raises:
        AdapterError: They are missing of some site, or of another width.
    """
    found = evidence_of(evidence.directions, sites, allocator=allocator, what="principal directions of the inputs")
    rows = {}
    for site in sites:
        directions = found[site.name]
        if directions.ndim != 2 or directions.shape[1] != site.inputs:
            raise AdapterError(
                f"the directions of {site.name} have shape {directions.shape}, and its inputs are {site.inputs} wide. "
                "Calibrate this model."
            )
        chosen = np.arange(len(directions)) if order is None else order[site.name]
        rows[site.name] = np.ascontiguousarray(directions[chosen[: ranks[site.name]]], dtype=np.float32)
    return rows


def plan_to_json(plan: RankPlan, sites: Sequence[Target]) -> dict[str, Any]:
    """What is kept of a plan in `ranks.json`: all but the rows that adapters start from, and parameters by group."""
    groups: dict[str, int] = {}
    for site in sites:
        groups[site.group] = groups.get(site.group, 0) + site.cost * plan.ranks[site.name]
    return {
        "schema": _SCHEMA,
        "allocator": plan.allocator,
        "parameters": plan.parameters,
        "budget": plan.budget,
        "reference": plan.reference,
        "pruned_to": plan.pruned_to,
        "groups": groups,
        "costs": {site.name: site.cost for site in sites},
        "ranks": dict(plan.ranks),
        "evidence": dict(plan.evidence),
        "caps": dict(plan.caps),
    }


class _Plan(TypedDict):
    """What is read of `ranks.json`."""

    schema: Literal[1]
    allocator: str
    budget: NotRequired[int | None]
    reference: NotRequired[int | None]
    pruned_to: NotRequired[int | None]
    ranks: dict[str, _Positive]
    costs: dict[str, _Positive]
    evidence: dict[str, Number]
    caps: NotRequired[dict[str, Number]]


_PLAN = TypeAdapter(_Plan)


def plan_from_json(entries: object, sites: Sequence[Target], *, where: str = "the rank plan") -> RankPlan:
    """Read a plan back, for exactly these modules; its ranks may have been edited.

    Args:
        entries: As `plan_to_json` made them and a file kept them.
        sites: Where adapters go.
        where: What the messages name.

    Raises:
        AdapterError: A field is missing or of another type, or the plan is that of other modules.
    """
    found = check_json(entries, _PLAN, where=where, error=AdapterError, do="`sonotune allocate` writes one.")
    ranks, evidence, caps, known = found["ranks"], found["evidence"], found.get("caps", {}), found["costs"]
    costs = {site.name: site.cost for site in sites}
    if unknown := list(dict.fromkeys(name for name in (*ranks, *evidence, *caps) if name not in costs)):
        raise AdapterError(
            f"{where} has {unknown[0]} and {len(unknown) - 1} more that are not among the {len(costs)} adapted "
            "modules. Use it with the model and the adapter.targets it was made for."
        )
    if missing := [name for name in costs if name not in ranks]:
        raise AdapterError(
            f"{where} says nothing of {missing[0]} and {len(missing) - 1} more of {len(costs)} adapted modules. "
            "Use it with the model and the adapter.targets it was made for."
        )
    if other := [name for name, cost in costs.items() if known.get(name) != cost]:
        raise AdapterError(
            f"{where} was made for matrices of other sizes: a rank of {other[0]} costs {costs[other[0]]} "
            f"parameters in this model and {known.get(other[0])} there. Make one with `sonotune allocate`."
        )
    return RankPlan(
        ranks={name: ranks[name] for name in costs},
        allocator=found["allocator"],
        parameters=sum(costs[name] * rank for name, rank in ranks.items()),
        budget=found.get("budget"),
        reference=found.get("reference"),
        evidence=evidence,
        pruned_to=found.get("pruned_to"),
        caps=caps,
    )
