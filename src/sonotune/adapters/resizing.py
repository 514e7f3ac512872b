"""Adapters that change their rank while they train, without a jump of the function or of the optimiser.

Growing adds rows to A, drawn as PEFT draws them and orthogonal to those there are, and zero columns to B: the update BA
stays what it was to the last bit, and so does the output, unless the matrix library sums a product of another size in
another order. Shrinking cuts off the smallest singular values of the update BA (`svd`, the least that can be lost)
or drops whole components (`select`, which loses a little more and keeps the others as they are). The scale of a module
stays what it was, and AdamW's moments go along (see `factors`).

Rank moves from adapters that do not use theirs to those that do; what an adapter uses is the effective rank of its
update. What a rank costs is counted in parameters, of which a run never has more than its budget. All of it is a
function of weights, moments, seed and step.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sonotune.adapters.allocation import Budget, Site
from sonotune.adapters.apportion import FREEDOM, bounds_of, shares_of, total_of
from sonotune.adapters.factors import Rows, ShrinkMode, Slots, lost, resized
from sonotune.adapters.lora import lora_layers
from sonotune.adapters.regularizer import effective_ranks, matrix_layers
from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel
from sonotune.runs import torch_seed

__all__ = [
    "Change", "Reallocation", "ShrinkMode", "current_ranks", "keep_directions", "move_ranks", "propose", "resize",
    "set_ranks",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One adapter that was resized.

    Attributes:
        module: Full module name.
        before: Rank.
        after: Rank.
        lost: Share of the update's Frobenius norm that was cut off.
    """

    module: str
    before: int
    after: int
    lost: float


def current_ranks(loaded: LoadedModel) -> dict[str, int]:
    """Full module name -> rank, for every adapter that can be resized; what a checkpoint keeps for `set_ranks`."""
    return {name: int(layer.r["default"]) for name, layer in matrix_layers(loaded).items()}


def resize(
    loaded: LoadedModel,
    optimizer: torch.optim.Optimizer | None,
    new_ranks: Mapping[str, int],
    *,
    seed: int,
    step: int,
    mode: ShrinkMode = "svd",
) -> tuple[Change, ...]:
    """Give adapters other ranks, in place, between two optimiser steps.

    The parameters of a resized adapter are new objects, which take the places of the old ones in the optimiser's
    groups. Whoever else holds parameters has to look them up again by name.

    Args:
        loaded: A model with adapters.
        optimizer: AdamW; None where there is none yet.
        new_ranks: Full module name -> rank; adapters that are not named stay as they are.
        seed: With step and module name decides what new rows are.
        step: Optimiser steps done.
        mode: How to shrink.

    Returns:
        What changed, in model order.

    Raises:
        AdapterError: A name carries no adapter, a rank is impossible, or the optimiser is no AdamW.
    """
    layers = _resizable(loaded, new_ranks)
    slots = Slots(optimizer)
    changes: list[Change] = []
    for name, layer in layers.items():
        before, after = int(layer.r["default"]), new_ranks.get(name, int(layer.r["default"]))
        if before == after:
            continue
        a = slots.read(layer.lora_A["default"].weight, transposed=False)
        b = slots.read(layer.lora_B["default"].weight, transposed=True)
        generator = torch.Generator().manual_seed(torch_seed(seed, "resize", step, name))
        new_a, new_b = resized(a, b, after, mode, generator)
        gone = lost(a, b, new_a, new_b) if after < before else 0.0
        changes.append(Change(module=name, before=before, after=after, lost=gone))
        _install(layer, slots, new_a, new_b)
    _write_patterns(loaded)
    return tuple(changes)


def set_ranks(
    loaded: LoadedModel, ranks: Mapping[str, int], optimizer: torch.optim.Optimizer | None = None
) -> tuple[str, ...]:
    """Give a freshly attached model the ranks of a saved one, before the weights of that are loaded.

    Args:
        loaded: A model with adapters, at the scales they were first given.
        ranks: Full module name -> rank, from `current_ranks`.
        optimizer: One that holds the parameters already; what it knows of resized ones is dropped.

    Returns:
        The adapters whose rank is another now. Their weights are NaN until the saved ones are in.

    Raises:
        AdapterError: A name carries no adapter, or a rank is impossible.
    """
    layers, slots = _resizable(loaded, ranks), Slots(optimizer)
    changed = [name for name, layer in layers.items() if ranks.get(name, layer.r["default"]) != layer.r["default"]]
    for name in changed:
        inputs = layers[name].lora_A["default"].weight.flatten(1).shape[1]
        outputs = layers[name].lora_B["default"].weight.shape[0]
        a, b = (Rows(weight=torch.full((ranks[name], size), math.nan)) for size in (inputs, outputs))
        _install(layers[name], slots, a, b)
    _write_patterns(loaded)
    return tuple(changed)


def keep_directions(loaded: LoadedModel, kept: Mapping[str, Tensor]) -> None:
    """Drop components of adapters once training is over, and leave the others as they are.

    Args:
        loaded: A model with adapters.
        kept: Full module name -> which components stay (R,) bool, at least one.

    Raises:
        AdapterError: A name carries no adapter, or none of its components would be left.
    """
    layers, slots = _resizable(loaded, {name: int(mask_R.sum()) for name, mask_R in kept.items()}), Slots(None)
    for name, mask_R in kept.items():
        if mask_R.all():
            continue
        index = mask_R.cpu().nonzero()[:, 0]
        a, b = (
            slots.read(factor["default"].weight, transposed=transposed).rows(index)
            for factor, transposed in ((layers[name].lora_A, False), (layers[name].lora_B, True))
        )
        _install(layers[name], slots, a, b)
    _write_patterns(loaded)


def _resizable(loaded: LoadedModel, ranks: Mapping[str, int]) -> dict[str, Any]:
    """The LoRA layers, after a look at what is asked of them.

    Raises:
        AdapterError: It cannot be done.
    """
    layers = matrix_layers(loaded)
    if unknown := [name for name in ranks if name not in layers]:
        raise AdapterError(
            f"{unknown[0]} and {len(unknown) - 1} more carry no adapter that can be resized; {len(layers)} modules do."
        )
    if wrong := [name for name, rank in ranks.items() if rank < 1]:
        raise AdapterError(f"{wrong[0]} is to have rank {ranks[wrong[0]]}; the least is 1.")
    for name, rank in ranks.items():
        inputs = layers[name].lora_A["default"].weight.flatten(1).shape[1]
        if rank != layers[name].r["default"] and rank > inputs:
            raise AdapterError(f"{name} is to have rank {rank}; with {inputs} inputs, the most is {inputs}.")
    return layers


def _install(layer: Any, slots: Slots, a: Rows, b: Rows) -> None:
    """Put new factors into a LoRA layer, which keeps its scale."""
    rank = len(a.weight)
    inner, outer = layer.lora_A["default"], layer.lora_B["default"]
    inner.weight = slots.exchange(inner.weight, a, transposed=False)
    outer.weight = slots.exchange(outer.weight, b, transposed=True)
    if isinstance(inner, nn.Linear):
        inner.out_features = outer.in_features = rank
    else:
        inner.out_channels = outer.in_channels = rank
    layer.r["default"] = rank
    layer.lora_alpha["default"] = layer.scaling["default"] * (math.sqrt(rank) if layer.use_rslora["default"] else rank)


def _write_patterns(loaded: LoadedModel) -> None:
    """Tell PEFT's configuration, which is saved with the adapter, the ranks and scales there are."""
    if loaded.adapter is None:
        return
    config = loaded.adapter.peft_config["default"]
    ranks, alphas = dict[str, int](), dict[str, float]()
    for name, layer in lora_layers(loaded).items():
        key = "^" + re.escape(name)  # a key also fits whatever ends in it
        if layer.r["default"] != config.r:
            ranks[key] = layer.r["default"]
        if layer.lora_alpha["default"] != config.lora_alpha:
            alphas[key] = layer.lora_alpha["default"]
    config.rank_pattern, config.alpha_pattern = ranks, alphas


@dataclass(frozen=True, slots=True, kw_only=True)
class Reallocation:
    """When ranks move while a model trains, and which.

    Attributes:
        events: Shares of the run after which they move.
        fraction_moved: Share of the budget that one event may move.
        shrink_below: Adapters whose effective rank is below this share of their rank can be made smaller.
        grow_above: Adapters whose effective rank is above this share of their rank are made larger.
        relative: Whether the adapter in the middle counts as halfway between the two, whatever its own share is. Of an
            adapter that trains the effective rank is seldom above two thirds of its rank, so that none would grow.
        mode: How to shrink.
    """

    events: tuple[float, ...] = (0.10, 0.25, 0.45)
    fraction_moved: float = 0.10
    shrink_below: float = 0.6
    grow_above: float = 0.9
    relative: bool = True
    mode: ShrinkMode = "svd"

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing.

        Raises:
            AdapterError: A share is out of range.
        """
        if not all(0 < event < 1 for event in self.events):
            raise AdapterError(f"ranks are to move at {self.events} of the run; each is a share between 0 and 1.")
        if not 0 < self.fraction_moved <= 1:
            raise AdapterError(
                f"one event is to move {self.fraction_moved} of the budget; a share above 0, at most 1, is needed."
            )
        if not 0 <= self.shrink_below <= self.grow_above <= 1:
            raise AdapterError(
                f"adapters are to shrink below {self.shrink_below} and to grow above {self.grow_above} of their rank; "
                "shares of 0 to 1 are needed, the first no larger than the second."
            )

    def due(self, step: int, total_steps: int) -> bool:
        """Whether ranks move once this many optimiser steps are done."""
        return step in {max(1, round(event * total_steps)) for event in self.events}

    def apply(
        self,
        loaded: LoadedModel,
        optimizer: torch.optim.Optimizer,
        sites: Sequence[Site],
        budget: Budget,
        *,
        seed: int,
        step: int,
        caps: Mapping[str, float] | None = None,
    ) -> tuple[Change, ...]:
        """Move ranks by what the adapters have learned so far: `propose`, then `resize`."""
        new_ranks = propose(
            loaded, sites, current_ranks(loaded), budget, fraction_moved=self.fraction_moved,
            shrink_below=self.shrink_below, grow_above=self.grow_above, relative=self.relative, caps=caps,
        )  # fmt: skip
        return resize(loaded, optimizer, new_ranks, seed=seed, step=step, mode=self.mode)


def propose(
    loaded: LoadedModel,
    sites: Sequence[Site],
    ranks: Mapping[str, int],
    budget: Budget,
    *,
    fraction_moved: float = 0.10,
    shrink_below: float = 0.6,
    grow_above: float = 0.9,
    relative: bool = False,
    caps: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Ranks that suit what the adapters have learned; see `move_ranks` for the other arguments.

    Args:
        loaded: A model with adapters. One that does not train, or whose update is still zero, stays as it is.
        sites: Where ranks may move.
        ranks: Full module name -> present rank, at least of the sites.
        budget: What may be spent on the sites.
        fraction_moved: See `Reallocation`.
        shrink_below: See `Reallocation`.
        grow_above: See `Reallocation`.
        relative: See `Reallocation`.
        caps: Full module name -> rank it cannot make use of, such as the effective rank of its inputs.

    Raises:
        AdapterError: The present ranks cost more than the budget.
    """
    layers = lora_layers(loaded)
    used = {
        name: value
        for name, value in effective_ranks(loaded).items()
        if value > 0 and layers[name].lora_A["default"].weight.requires_grad
    }
    return move_ranks(
        sites, ranks, used, budget, fraction_moved=fraction_moved, shrink_below=shrink_below, grow_above=grow_above,
        relative=relative, caps=caps,
    )  # fmt: skip


def move_ranks(
    sites: Sequence[Site],
    ranks: Mapping[str, int],
    used: Mapping[str, float],
    budget: Budget,
    *,
    fraction_moved: float = 0.10,
    shrink_below: float = 0.6,
    grow_above: float = 0.9,
    relative: bool = False,
    caps: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Give rank to adapters that use all of theirs, from the free budget first and then from those that do not.

    The adapter with the fullest rank is served first, one step at a time, and the one with the emptiest gives first.
    Nobody gives unless somebody takes: rank that is not wanted elsewhere does no harm where it is. Groups keep what
    they have, unless the budget lets them compete.

    Args:
        sites: Where ranks may move, in model order, which decides between equals.
        ranks: Full module name -> present rank.
        used: Full module name -> effective rank of its update; sites without one stay as they are.
        budget: What may be spent on the sites.
        fraction_moved: Share of the budget that may be given, and that may be taken.
        shrink_below: Share of its rank below which an effective rank allows to take.
        grow_above: Share of its rank above which an effective rank asks for more.
        relative: Whether shares are multiplied so that their median is halfway between the two.
        caps: As in `apportion.bounds_of`.

    Returns:
        A rank for every name in `ranks`; those that moved are multiples of the budget's step.

    Raises:
        AdapterError: The present ranks cost more than the budget.
    """
    if relative and (shares := [used[site.name] / ranks[site.name] for site in sites if site.name in used]):
        factor = (shrink_below + grow_above) / 2 / statistics.median(shares)
        used = {name: factor * value for name, value in used.items()}
    moves = _Moves(sites, ranks, used, budget, caps=caps, fraction_moved=fraction_moved, shrink_below=shrink_below)
    unserved = set[str]()
    while takers := [
        site
        for site in moves.sites
        if site.name not in unserved
        and used[site.name] > grow_above * moves.ranks[site.name]
        and moves.larger(site) <= moves.bounds.most[site.name]
    ]:
        taker = max(takers, key=lambda site: used[site.name] / moves.ranks[site.name])
        if not moves.serve(taker):
            unserved.add(taker.name)
    return moves.ranks


class _Moves:
    """Ranks on the move, and what has been moved so far.

    Attributes:
        ranks: Present ranks.
        sites: Those whose use is known.
        bounds: Where ranks begin and end.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        ranks: Mapping[str, int],
        used: Mapping[str, float],
        budget: Budget,
        *,
        caps: Mapping[str, float] | None,
        fraction_moved: float,
        shrink_below: float,
    ) -> None:
        self.ranks, self.bounds = dict(ranks), bounds_of(sites, budget, caps=caps)
        self.sites = [site for site in sites if site.name in used]
        self._used, self._shrink_below = used, shrink_below
        total, self._spent = total_of(sites, budget), dict[str, int]()
        for site in sites:
            self._spent[site.group] = self._spent.get(site.group, 0) + site.cost * ranks[site.name]
        self._free = total - sum(self._spent.values())
        if self._free < 0:
            raise AdapterError(
                f"the adapters hold {total - self._free} parameters, more than the budget of {total}. "
                "Raise adapter.budget."
            )
        self._change: dict[str, int] = {}  # what givers gave beyond what was asked, by group
        self._may_give = self._may_take = fraction_moved * total
        self._served = set[str]()  # they give nothing back at once, however empty the step has left them
        self._shares = shares_of(sites, budget, self.bounds) if budget.cross_modality else None

    def larger(self, site: Site) -> int:
        """The next rank above."""
        return (self.ranks[site.name] // self.bounds.step + 1) * self.bounds.step

    def serve(self, taker: Site) -> bool:
        """Take the next step at a site, if the budget and the others allow it."""
        size = self.larger(taker)
        price = taker.cost * (size - self.ranks[taker.name])
        if price > self._may_take:
            return False
        if self._shares and self._spent[taker.group] + price > FREEDOM * self._shares[taker.group]:
            return False
        purse = "" if self._shares else taker.group
        at_hand = self._change.get(purse, 0)
        cuts = self._cuts(taker, wanted=price - self._free - at_hand)
        won = sum(site.cost * (self.ranks[site.name] - size) for site, size in cuts)
        if won > self._may_give or self._free + at_hand + won < price:
            return False
        for site, smaller in [*cuts, (taker, size)]:
            self._spent[site.group] += site.cost * (smaller - self.ranks[site.name])
            self.ranks[site.name] = smaller
        rest = at_hand + won - price
        self._change[purse], self._free = max(0, rest), self._free + min(0, rest)
        self._may_take, self._may_give = self._may_take - price, self._may_give - won
        self._served.add(taker.name)
        return True

    def _cuts(self, taker: Site, *, wanted: int) -> list[tuple[Site, int]]:
        """Sites that together give at least what is wanted and the ranks they keep; all there is, if that is less."""
        left, spent, cut = dict(self.ranks), dict(self._spent), dict[str, Site]()
        step = self.bounds.step
        while wanted > 0:
            givers: list[tuple[float, Site, int]] = []
            for site in self.sites:
                rank = left[site.name]
                smaller = (rank - 1) // step * step
                share, group = self._used[site.name] / rank, site.group
                if share >= self._shrink_below or smaller < self.bounds.least[site.name] or site.name in self._served:
                    continue
                if self._shares is None and group != taker.group:
                    continue
                if self._shares and spent[group] - site.cost * (rank - smaller) < self._shares[group] / FREEDOM:
                    continue
                givers.append((share, site, smaller))
            if not givers:
                break
            _, giver, smaller = min(givers, key=lambda found: found[0])
            won = giver.cost * (left[giver.name] - smaller)
            wanted, spent[giver.group] = wanted - won, spent[giver.group] - won
            left[giver.name], cut[giver.name] = smaller, giver
        return [(site, left[name]) for name, site in cut.items()]
