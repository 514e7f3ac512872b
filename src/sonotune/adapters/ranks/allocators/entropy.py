"""Ranks follow the entropy of what a module sees: inputs that fill more directions get an adapter that spans more.

The score is the effective rank, exp of the Shannon entropy of the spectrum of the inputs (Roy and Vetterli, 2007).
Ranks in proportion to it lose to uniform ranks at small budgets in simulation. In proportion to its square root, and
within a quarter and four times the reference rank, they lose little anywhere and gain where updates follow the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from sonotune.adapters.ranks.budget import apportion, make_plan
from sonotune.adapters.ranks.plan import Budget, Importance, Needs, RankPlan, Target, evidence_of

_WHAT = "effective ranks of the inputs"


class EntropyAllocator:
    """Rank in proportion to effective rank to the power of gamma."""

    needs: ClassVar[Needs] = "activations"

    def allocate(self, sites: Sequence[Target], budget: Budget, *, evidence: Importance, seed: int) -> RankPlan:
        """See `RankAllocator.allocate`."""
        scores = evidence_of(evidence.effective_ranks, sites, allocator="entropy", what=_WHAT)
        ranks = apportion(scores, sites, budget, caps=scores)
        return make_plan("entropy", ranks, sites, budget, evidence=scores, caps=scores)


class InverseAllocator:
    """The negative control: rank in proportion to the inverse of what `entropy` goes by.

    An effective rank is no cap here, or those that are to get most could not have it.
    """

    needs: ClassVar[Needs] = "activations"

    def allocate(self, sites: Sequence[Target], budget: Budget, *, evidence: Importance, seed: int) -> RankPlan:
        """See `RankAllocator.allocate`."""
        found = evidence_of(evidence.effective_ranks, sites, allocator="inverse", what=_WHAT)
        scores = {name: 1 / value if value > 0 else float("nan") for name, value in found.items()}
        return make_plan("inverse", apportion(scores, sites, budget), sites, budget, evidence=scores)
