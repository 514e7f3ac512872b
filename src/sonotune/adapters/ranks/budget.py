"""Spending a budget of adapter parameters: the bounds of every rank, the shares of the groups, and step after step.

Ranks grow by greedy highest averages: of all next steps the one with the largest gain per parameter is taken first. It
is a divisor method, so that more budget or a higher score never costs a module rank, which rounding the shares of a
largest-remainder method would.

Caps never lie below the reference rank. Uniform ranks are therefore always one of the plans: equal scores lead to
them, small modules included, and a budget of the reference rank can always be spent.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sonotune.adapters.ranks.plan import Budget, RankPlan, Target
from sonotune.errors import AdapterError

Fill = Literal["tight", "prefix"]
"""When the best step does not fit, cheaper ones still may (`tight`), or nothing more is spent (`prefix`)."""

Gain = Callable[[Target, int, int], float]
"""Target, rank, step -> what each parameter of the next step is worth; never rising with the rank."""

MAX_SHARE_RATIO = 2
"""Groups that compete may spend from the inverse of this times their share up to this times their share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Which ranks a plan may hold.

    Attributes:
        step: All are multiples of it.
        least: Target -> least rank, such a multiple.
        most: Target -> largest rank, such a multiple and no smaller.
    """

    step: int
    least: Mapping[str, int]
    most: Mapping[str, int]


def total_of(sites: Sequence[Target], budget: Budget) -> int:
    """Parameters that may be spent."""
    return budget.rank * _per_rank(sites) if budget.parameters is None else budget.parameters


def apportion(
    scores: Mapping[str, float],
    sites: Sequence[Target],
    budget: Budget,
    *,
    caps: Mapping[str, float] | None = None,
    fill: Fill = "tight",
) -> dict[str, int]:
    """Ranks in proportion to score^gamma, as nearly as budget, bounds and whole steps allow.

    Maximises the sum of cost x score^gamma x ln(rank) under the budget. Equal scores get equal ranks as far as the
    budget goes; what is left for some of them goes to those that come first in the model.

    Args:
        scores: Of every site, not negative; only their proportions count.
        sites: Where adapters go, in model order.
        budget: What may be spent.
        caps: Target -> rank above the reference rank that it cannot make use of, such as an effective rank.
        fill: `tight` spends all that can be spent. With `prefix`, and step and bounds that are given, no rank falls
            when the budget or its own score rises; a group then leaves what its best next step exceeds its share by.

    Raises:
        AdapterError: The budget is below the least ranks, a score is no such number, or settings contradict each other.
    """
    for site in sites:
        score = scores.get(site.name, math.nan)
        if not 0 <= score < math.inf:
            raise AdapterError(
                f"the score of {site.name} is {score}; finite numbers from 0 on are allowed. Calibrate again."
            )
    _check(sites, budget)
    highest = max((scores[site.name] for site in sites), default=1.0) or 1.0
    worth = {site.name: math.pow(scores[site.name] / highest, budget.gamma) for site in sites}

    def gain(site: Target, rank: int, step: int) -> float:
        return worth[site.name] * math.log((rank + step) / rank) / step

    return spend(gain, sites, budget, caps=caps, fill=fill)


def by_components(gains: Mapping[str, NDArray[np.float64]]) -> Gain:
    """What steps are worth where every single direction has a gain: the sum over its directions, by cost.

    Args:
        gains: Target -> gains in falling order (P,). Directions beyond them are worth nothing.
    """

    def gain(site: Target, rank: int, step: int) -> float:
        return float(gains[site.name][rank : rank + step].sum()) / (step * site.cost)

    return gain


def spend(
    gain: Gain,
    sites: Sequence[Target],
    budget: Budget,
    *,
    caps: Mapping[str, float] | None = None,
    fill: Fill = "tight",
) -> dict[str, int]:
    """Raise ranks from their least, always by the step that is worth most by parameter.

    Every group first spends its own share; what whole steps leave of the shares is then spent wherever it is worth
    most. Groups that compete spend half of their share first and then draw on the rest together, each up to double.

    Args:
        gain: What a step is worth.
        sites: Where adapters go, in model order.
        budget: What may be spent.
        caps: See `apportion`.
        fill: See `apportion`.

    Raises:
        AdapterError: The budget is below the least ranks, or settings contradict each other.
    """
    if not sites:
        return {}
    bounds = bounds_of(sites, budget, caps=caps)
    shares = shares_of(sites, budget, bounds)
    spending = _Spending(gain, sites, bounds, total_of(sites, budget))
    if budget.cross_modality:
        spending.grow({group: share / MAX_SHARE_RATIO for group, share in shares.items()}, "prefix")
        spending.grow({group: MAX_SHARE_RATIO * share for group, share in shares.items()}, fill)
    else:
        spending.grow(shares, fill)
        if fill == "tight":
            spending.grow({}, fill)
    return spending.ranks


class _Spending:
    """Ranks on their way up, and what they have cost.

    Args:
        gain: What a step is worth.
        sites: In model order.
        bounds: Where ranks begin and end.
        total: Parameters that may be spent.
    """

    def __init__(self, gain: Gain, sites: Sequence[Target], bounds: Bounds, total: int) -> None:
        self.ranks = dict(bounds.least)
        self._gain, self._sites, self._bounds = gain, sites, bounds
        self._left = total - sum(site.cost * self.ranks[site.name] for site in sites)
        self._used = _by_group(sites, self.ranks)

    def grow(self, limits: Mapping[str, Fraction], fill: Fill) -> None:
        """Take steps while they fit the budget and the limit of their group, where it has one."""
        heap = [entry for index in range(len(self._sites)) if (entry := self._entry(index))]
        heapq.heapify(heap)
        stopped: set[str] = set()
        while heap:
            index = heapq.heappop(heap)[-1]
            site = self._sites[index]
            price = self._bounds.step * site.cost
            if site.group in stopped:
                continue
            limit = limits.get(site.group)
            # What is used only grows, so that a site whose step does not fit now will not fit later.
            if limit is not None and self._used[site.group] + price > limit:
                if fill == "prefix":
                    stopped.add(site.group)
                continue
            if price > self._left:
                if fill == "prefix":
                    return
                continue
            self.ranks[site.name] += self._bounds.step
            self._left -= price
            self._used[site.group] += price
            if entry := self._entry(index):
                heapq.heappush(heap, entry)

    def _entry(self, index: int) -> tuple[float, int, int] | None:
        """Place in the queue: worth, then lower ranks, then model order; None for a site at its largest rank."""
        site = self._sites[index]
        rank = self.ranks[site.name]
        if rank >= self._bounds.most[site.name]:
            return None
        return -self._gain(site, rank, self._bounds.step), rank, index


def bounds_of(sites: Sequence[Target], budget: Budget, *, caps: Mapping[str, float] | None = None) -> Bounds:
    """The ranks that each site may have.

    The reference rank of a budget is what it buys at every site. By default the step is 8 from a reference rank of 32
    on, 4 from 16 on and 1 below, where larger steps would leave nothing to decide; it is halved until it divides a
    whole reference rank. Ranks lie between a quarter of the reference rank and four times it, and exceed it neither
    beyond a quarter of the smaller side of the matrix nor beyond the cap.

    Raises:
        AdapterError: The budget is below the least ranks, or settings contradict each other.
    """
    _check(sites, budget)
    total = total_of(sites, budget)
    bounds = _bounds(sites, budget, total, caps or {})
    least = sum(_by_group(sites, bounds.least).values())
    if least <= total:
        return bounds
    while (more := sum(_by_group(sites, _bounds(sites, budget, least, caps or {}).least).values())) > least:
        least = more  # a larger budget has a larger reference rank, and with it perhaps larger least ranks
    asked = f"adapter.budget={total}"
    if budget.parameters is None:
        asked = f"the budget of adapter.rank={budget.rank}, {total} parameters,"
    raise AdapterError(
        f"{asked} cannot give {len(sites)} modules their least ranks; the least budget is {least} parameters. "
        f"Set adapter.budget={least} or more, adapt fewer modules (adapter.targets), or lower "
        "allocation.min_rank or allocation.group_floors."
    )


def _bounds(sites: Sequence[Target], budget: Budget, total: int, caps: Mapping[str, float]) -> Bounds:
    mean = Fraction(total, _per_rank(sites))
    step = _step(mean) if budget.step is None else budget.step
    reference = _up(mean, step)
    lowest = _up(max(1, mean / 4 if budget.least is None else budget.least), step)
    highest = math.floor(4 * mean) if budget.most is None else budget.most
    least, most = {}, {}
    for site in sites:
        least[site.name] = max(lowest, _up(budget.floors.get(site.group, 0), step))
        useful = min(min(site.outputs, site.inputs) // 4, _up(caps.get(site.name, highest), step))
        rank = min(highest, max(useful, reference)) // step * step
        most[site.name] = max(rank, least[site.name])
    return Bounds(step=step, least=least, most=most)


def _step(mean: Fraction) -> int:
    """Coarser where ranks are large; a step of half the mean would leave most ranks where equal ones are."""
    step = 8 if mean >= 32 else 4 if mean >= 16 else 1
    while mean.denominator == 1 and mean.numerator % step:
        step //= 2
    return step


def _up(value: float | Fraction, step: int) -> int:
    """The least multiple of a step that is no smaller."""
    return math.ceil(value / step) * step


def _check(sites: Sequence[Target], budget: Budget) -> None:
    groups = list(dict.fromkeys(site.group for site in sites))
    for name, given in (("group_weights", budget.weights), ("group_floors", budget.floors)):
        if unknown := [group for group in given if group not in groups]:
            raise AdapterError(
                f"allocation.{name} has {unknown[0]!r}, and no adapted module is in such a group. "
                f"The groups are {', '.join(groups)}."
            )
    for group, weight in budget.weights.items():
        if not 0 <= weight < math.inf:
            raise AdapterError(
                f"allocation.group_weights gives {group} {weight}; finite numbers from 0 on are allowed."
            )
    if not 0 <= budget.gamma < math.inf:
        raise AdapterError(f"allocation.gamma is {budget.gamma}; it is 0 (equal ranks) or more.")
    names = {
        "adapter.rank": budget.rank,
        "allocation.rank_step": budget.step,
        "allocation.min_rank": budget.least,
        "allocation.max_rank": budget.most,
    }
    for name, value in names.items():
        if value is not None and value < 1:
            raise AdapterError(f"{name} is {value}; it is 1 or more.")
    if budget.least is not None and budget.most is not None and budget.least > budget.most:
        raise AdapterError(
            f"allocation.min_rank is {budget.least}, above allocation.max_rank, which is {budget.most}. "
            "Lower the one or raise the other."
        )


def shares_of(sites: Sequence[Target], budget: Budget, bounds: Bounds) -> dict[str, Fraction]:
    """Parameters of each group: what uniform ranks would give it, times its weight, renormalised to the budget.

    A group whose bounds cannot be kept with its share gets what they need, and the others share the difference.
    """
    costs = _by_group(sites, dict.fromkeys((site.name for site in sites), 1))
    wants = {group: cost * Fraction(budget.weights.get(group, 1.0)) for group, cost in costs.items()}
    lows = {group: Fraction(value) for group, value in _by_group(sites, bounds.least).items()}
    highs = {group: Fraction(value) for group, value in _by_group(sites, bounds.most).items()}
    return divide(Fraction(total_of(sites, budget)), wants, lows, highs)


def divide(
    total: Fraction, wants: Mapping[str, Fraction], lows: Mapping[str, Fraction], highs: Mapping[str, Fraction]
) -> dict[str, Fraction]:
    """Parts in proportion to what is wanted, each within its limits, that sum up to the total.

    Fractions, because a share that is one parameter short of a step loses the step.

    Args:
        total: No less than the sum of the lows. Of one above what the limits allow, a rest remains.
        wants: Part -> weight.
        lows: Part -> least.
        highs: Part -> most.
    """

    def at(level: Fraction) -> dict[str, Fraction]:
        return {part: min(max(level * want, lows[part]), highs[part]) for part, want in wants.items()}

    # The sum rises with the level, along straight lines between the levels at which a part leaves or meets a limit.
    below = Fraction(0)
    for level in sorted({limit / want for part, want in wants.items() if want for limit in (lows[part], highs[part])}):
        found, start = sum(at(level).values()), sum(at(below).values())
        if found > total:
            return at(below + (level - below) * (total - start) / (found - start))
        below = level
    return at(below)


def uniform_ranks(sites: Sequence[Target], budget: Budget) -> dict[str, int]:
    """One rank for all: the reference rank, or the largest that the budget affords.

    Weights, floors and bounds that are given hold here too; ranks are then equal within each group, up to a step.

    Raises:
        AdapterError: The budget cannot give every site rank 1.
    """
    if budget.weights or budget.floors or (budget.step, budget.least, budget.most) != (None, None, None):
        return apportion({site.name: 1.0 for site in sites}, sites, budget)
    per_rank = _per_rank(sites)
    chosen = budget.rank if budget.parameters is None or not sites else budget.parameters // per_rank
    if chosen < 1:
        raise AdapterError(
            f"adapter.budget={budget.parameters} cannot give {len(sites)} modules rank 1; "
            f"the least is {per_rank} parameters. Set adapter.budget={per_rank} or more, or adapt fewer modules "
            "(adapter.targets)."
        )
    return {site.name: chosen for site in sites}


def make_plan(
    allocator: str,
    ranks: Mapping[str, int],
    sites: Sequence[Target],
    budget: Budget,
    *,
    evidence: Mapping[str, float] | None = None,
    initial: Mapping[str, NDArray[np.float32]] | None = None,
    caps: Mapping[str, float] | None = None,
) -> RankPlan:
    """A plan with its parameters counted; see `RankPlan` for the arguments."""
    return RankPlan(
        ranks={site.name: ranks[site.name] for site in sites},
        allocator=allocator,
        parameters=sum(_by_group(sites, ranks).values()),
        budget=total_of(sites, budget),
        evidence={site.name: float(evidence[site.name]) for site in sites} if evidence else {},
        initial=initial or {},
        caps={site.name: float(caps[site.name]) for site in sites} if caps else {},
    )


def _per_rank(sites: Sequence[Target]) -> int:
    return sum(site.cost for site in sites)


def _by_group(sites: Sequence[Target], ranks: Mapping[str, int]) -> dict[str, int]:
    """Group -> parameters of these ranks."""
    found: dict[str, int] = {}
    for site in sites:
        found[site.group] = found.get(site.group, 0) + site.cost * ranks[site.name]
    return found
