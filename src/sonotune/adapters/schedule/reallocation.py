"""Ranks that move between adapters while they train.

Rank moves from adapters that do not use theirs to those that do; what an adapter uses is the effective rank of its
update. What a rank costs is counted in parameters, of which a run never has more than its budget. All of it is a
function of weights, moments, seed and step.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from sonotune.adapters.kinds.lora import lora_layers
from sonotune.adapters.ranks.budget import MAX_SHARE_RATIO, bounds_of, shares_of, total_of
from sonotune.adapters.ranks.plan import Budget, RankPlan, Target, targets_in
from sonotune.adapters.schedule.callback import AdapterCallback, Event
from sonotune.adapters.schedule.entropy_penalty import effective_ranks
from sonotune.adapters.schedule.factors import ShrinkMode
from sonotune.adapters.schedule.resize import Change, current_ranks, resize, set_ranks
from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel


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
        sites: Sequence[Target],
        budget: Budget,
        *,
        seed: int,
        step: int,
        caps: Mapping[str, float] | None = None,
    ) -> tuple[Change, ...]:
        """Move ranks by what the adapters have learned so far: `propose`, then `resize`."""
        new_ranks = propose(
            loaded,
            sites,
            current_ranks(loaded),
            budget,
            fraction_moved=self.fraction_moved,
            shrink_below=self.shrink_below,
            grow_above=self.grow_above,
            relative=self.relative,
            caps=caps,
        )
        return resize(loaded, optimizer, new_ranks, seed=seed, step=step, mode=self.mode)


def propose(
    loaded: LoadedModel,
    sites: Sequence[Target],
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
        sites,
        ranks,
        used,
        budget,
        fraction_moved=fraction_moved,
        shrink_below=shrink_below,
        grow_above=grow_above,
        relative=relative,
        caps=caps,
    )


def move_ranks(
    sites: Sequence[Target],
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
        caps: As in `budget.bounds_of`.

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
    while receivers := [
        site
        for site in moves.sites
        if site.name not in unserved
        and used[site.name] > grow_above * moves.ranks[site.name]
        and moves.larger(site) <= moves.bounds.most[site.name]
    ]:
        receiver = max(receivers, key=lambda site: used[site.name] / moves.ranks[site.name])
        if not moves.serve(receiver):
            unserved.add(receiver.name)
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
        sites: Sequence[Target],
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
        self._remainder: dict[str, int] = {}  # what donors gave beyond what was asked, by group
        self._may_give = self._may_take = fraction_moved * total
        self._served = set[str]()  # they give nothing back at once, however empty the step has left them
        self._shares = shares_of(sites, budget, self.bounds) if budget.cross_modality else None

    def larger(self, site: Target) -> int:
        """The next rank above."""
        return (self.ranks[site.name] // self.bounds.step + 1) * self.bounds.step

    def serve(self, receiver: Target) -> bool:
        """Take the next step at a site, if the budget and the others allow it."""
        size = self.larger(receiver)
        price = receiver.cost * (size - self.ranks[receiver.name])
        if price > self._may_take:
            return False
        if self._shares and self._spent[receiver.group] + price > MAX_SHARE_RATIO * self._shares[receiver.group]:
            return False
        pool = "" if self._shares else receiver.group
        at_hand = self._remainder.get(pool, 0)
        cuts = self._cuts(receiver, wanted=price - self._free - at_hand)
        won = sum(site.cost * (self.ranks[site.name] - size) for site, size in cuts)
        if won > self._may_give or self._free + at_hand + won < price:
            return False
        for site, smaller in [*cuts, (receiver, size)]:
            self._spent[site.group] += site.cost * (smaller - self.ranks[site.name])
            self.ranks[site.name] = smaller
        rest = at_hand + won - price
        self._remainder[pool], self._free = max(0, rest), self._free + min(0, rest)
        self._may_take, self._may_give = self._may_take - price, self._may_give - won
        self._served.add(receiver.name)
        return True

    def _cuts(self, receiver: Target, *, wanted: int) -> list[tuple[Target, int]]:
        """Sites that together give at least what is wanted and the ranks they keep; all there is, if that is less."""
        left, spent, cut = dict(self.ranks), dict(self._spent), dict[str, Target]()
        step = self.bounds.step
        while wanted > 0:
            donors: list[tuple[float, Target, int]] = []
            for site in self.sites:
                rank = left[site.name]
                smaller = (rank - 1) // step * step
                share, group = self._used[site.name] / rank, site.group
                if share >= self._shrink_below or smaller < self.bounds.least[site.name] or site.name in self._served:
                    continue
                if self._shares is None and group != receiver.group:
                    continue
                if self._shares and spent[group] - site.cost * (rank - smaller) < self._shares[group] / MAX_SHARE_RATIO:
                    continue
                donors.append((share, site, smaller))
            if not donors:
                break
            _, donor, smaller = min(donors, key=lambda found: found[0])
            won = donor.cost * (left[donor.name] - smaller)
            wanted, spent[donor.group] = wanted - won, spent[donor.group] - won
            left[donor.name], cut[donor.name] = smaller, donor
        return [(site, left[name]) for name, site in cut.items()]


class MovingRanks(AdapterCallback):
    """Ranks that move between adapters at set times.

    Args:
        loaded: A model with adapters.
        plan: The ranks it has, and what they may cost.
        budget: Bounds of the ranks.
        schedule: When ranks move, and which.
        seed: Draws new rows.
    """

    def __init__(
        self, loaded: LoadedModel, plan: RankPlan, budget: Budget, schedule: Reallocation, *, seed: int
    ) -> None:
        self._loaded, self._budget, self._schedule, self._seed = loaded, budget, schedule, seed
        self._sites, self._caps = targets_in(loaded, list(plan.ranks)), plan.caps
        self._moved = False

    def after_step(self, step: int, total_steps: int, optimizer: torch.optim.Optimizer) -> Event | None:
        """Move ranks where it is time."""
        if not self._schedule.due(step, total_steps):
            return None
        changes = self._schedule.apply(
            self._loaded, optimizer, self._sites, self._budget, seed=self._seed, step=step, caps=self._caps or None
        )
        self._moved = True
        return "ranks", {"changes": [asdict(change) for change in changes], "ranks": current_ranks(self._loaded)}

    def final(self, step: int, total_steps: int) -> bool:
        """Whether the last move is over."""
        return all(step >= event * total_steps for event in self._schedule.events)

    def tensors(self) -> dict[str, Tensor]:
        """The present ranks."""
        return {name: torch.tensor(rank) for name, rank in current_ranks(self._loaded).items()}

    def restore(self, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Give the adapters the ranks of the checkpoint."""
        set_ranks(self._loaded, {name: int(rank) for name, rank in tensors.items()}, optimizer)

    def finalise(self) -> Mapping[str, int] | None:
        """The ranks in the end."""
        return current_ranks(self._loaded)
