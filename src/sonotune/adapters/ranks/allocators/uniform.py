"""The same rank everywhere: plain LoRA, and the arm every other allocator is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from sonotune.adapters.ranks.budget import make_plan, uniform_ranks
from sonotune.adapters.ranks.plan import Budget, Importance, Needs, RankPlan, Target


class UniformAllocator:
    """One rank for all modules: the reference rank, or the largest that the budget affords."""

    needs: ClassVar[Needs] = "nothing"

    def allocate(self, sites: Sequence[Target], budget: Budget, *, evidence: Importance, seed: int) -> RankPlan:
        """See `RankAllocator.allocate`."""
        return make_plan("uniform", uniform_ranks(sites, budget), sites, budget)
