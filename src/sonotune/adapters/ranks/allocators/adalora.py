"""Equal ranks to begin with, half as large again, that AdaLoRA prunes to the budget while they train."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from sonotune.adapters.ranks.budget import total_of
from sonotune.adapters.ranks.plan import Budget, Importance, Needs, RankPlan, Target
from sonotune.adapters.schedule.adalora import FACTOR
from sonotune.errors import AdapterError


class AdaLoraAllocator:
    """The ranks that `sonotune.adapters.schedule.adalora.AdaLora` starts from; it decides the ranks in the end."""

    needs: ClassVar[Needs] = "nothing"

    def allocate(self, sites: Sequence[Target], budget: Budget, *, evidence: Importance, seed: int) -> RankPlan:
        """See `RankAllocator.allocate`."""
        per_rank, total = sum(site.cost for site in sites), total_of(sites, budget)
        if total < per_rank:
            raise AdapterError(
                f"adapter.budget={total} cannot leave {len(sites)} modules rank 1; the least is {per_rank} parameters."
            )
        rank = math.ceil(FACTOR * total / per_rank) if sites else 0
        return RankPlan(
            ranks={site.name: min(rank, site.inputs, site.outputs) for site in sites},
            allocator="adalora",
            parameters=sum(min(rank, site.inputs, site.outputs) * site.cost for site in sites),
            budget=total,
            pruned_to=total,
        )
