"""Controls that spread ranks as unevenly as `entropy` does, but not by entropy.

An uneven plan differs from a uniform one in more than what it was made by. These have the same unevenness, so that what
`entropy` gains over them comes from its evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import ClassVar, TypeVar

from sonotune.adapters.ranks.budget import apportion, make_plan
from sonotune.adapters.ranks.plan import Budget, Importance, Needs, RankPlan, Target, evidence_of
from sonotune.runs.seeds import generator

_WHAT = "effective ranks of the inputs"
_T = TypeVar("_T")


class ShuffledAllocator:
    """The scores of `entropy`, exchanged at random among modules of the same kind in the same group.

    What is true of a kind stays (all `fc1` may have more than all `q_proj`); what is true of a layer is lost.
    """

    needs: ClassVar[Needs] = "activations"

    def allocate(self, sites: Sequence[Target], budget: Budget, *, evidence: Importance, seed: int) -> RankPlan:
        """See `RankAllocator.allocate`."""
        found = evidence_of(evidence.effective_ranks, sites, allocator="shuffled", what=_WHAT)
        scores = _exchange(found, sites, lambda site: (site.group, site.kind), seed, "shuffled")
        return make_plan("shuffled", apportion(scores, sites, budget, caps=scores), sites, budget, evidence=scores)


class RandomAllocator:
    """The ranks of `entropy`, exchanged at random among modules of the same cost in the same group.

    As many modules have each rank, and every group has as many parameters.
    """

    needs: ClassVar[Needs] = "activations"

    def allocate(self, sites: Sequence[Target], budget: Budget, *, evidence: Importance, seed: int) -> RankPlan:
        """See `RankAllocator.allocate`."""
        found = evidence_of(evidence.effective_ranks, sites, allocator="random", what=_WHAT)
        ranks = apportion(found, sites, budget, caps=found)
        return make_plan(
            "random", _exchange(ranks, sites, lambda site: (site.group, site.cost), seed, "random"), sites, budget
        )


def _exchange(
    values: Mapping[str, _T],
    sites: Sequence[Target],
    alike: Callable[[Target], Hashable],
    seed: int,
    purpose: str,
) -> dict[str, _T]:
    """Permute values among sites that are alike. The draw depends on their names, not on the order they come in."""
    classes: dict[Hashable, list[str]] = {}
    for site in sites:
        classes.setdefault(alike(site), []).append(site.name)
    found = {}
    for names in map(sorted, classes.values()):
        order = generator(seed, purpose, names[0]).permutation(len(names))
        found.update({name: values[names[source]] for name, source in zip(names, order, strict=True)})
    return found
