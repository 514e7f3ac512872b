"""The same rank everywhere: plain LoRA, and the arm every other allocator is compared with."""

from __future__ import annotations

from collections.abc import Mapping

from sonotune.adapters.allocation import RankPlan
from sonotune.errors import AdapterError


class UniformAllocator:
    """One rank for all modules: the reference rank, or the largest that the budget affords."""

    def allocate(self, costs: Mapping[str, int], *, rank: int, budget: int | None) -> RankPlan:
        """See `RankAllocator.allocate`."""
        per_rank = sum(costs.values())
        chosen = rank if budget is None else budget // per_rank
        if chosen < 1:
            raise AdapterError(
                f"adapter.budget={budget} cannot give {len(costs)} modules rank 1; the least is {per_rank} parameters."
            )
        return RankPlan(ranks=dict.fromkeys(costs, chosen), allocator="uniform", parameters=chosen * per_rank)
