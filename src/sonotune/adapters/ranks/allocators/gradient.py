"""Ranks where the loss has most to gain, by the whitened gradient.

With A set to principal directions v of the inputs and B to zero, one backward pass gives the gradient G v of the loss
for each. Its squared norm by the variance along v is what the loss gains from the best step in that direction, up to
the curvature on the side of the outputs. It works on a quantised base: no gradient of a frozen weight is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from sonotune.adapters.ranks.budget import apportion, by_components, make_plan, spend
from sonotune.adapters.ranks.plan import Budget, Importance, Needs, RankPlan, Target, gains_of, rows_of


class GradientAllocator:
    """Rank in proportion to the sum of a module's gains to the power of gamma."""

    needs: ClassVar[Needs] = "gradients"

    def allocate(self, sites: Sequence[Target], budget: Budget, *, evidence: Importance, seed: int) -> RankPlan:
        """See `RankAllocator.allocate`."""
        gains = gains_of(evidence, sites, allocator="gradient")
        scores = {name: float(found.sum()) for name, found in gains.items()}
        ranks = apportion(scores, sites, budget)
        return make_plan("gradient", ranks, sites, budget, evidence=scores)


class GradientEvaAllocator:
    """Directions with the largest gain by cost, of all modules; A starts from them, the best first."""

    needs: ClassVar[Needs] = "gradients"

    def allocate(self, sites: Sequence[Target], budget: Budget, *, evidence: Importance, seed: int) -> RankPlan:
        """See `RankAllocator.allocate`."""
        gains = gains_of(evidence, sites, allocator="gradient_eva")
        order = {name: np.argsort(-found, kind="stable") for name, found in gains.items()}
        falling = {name: found[order[name]] for name, found in gains.items()}
        caps = {name: float(len(found)) for name, found in gains.items()}
        ranks = spend(by_components(falling), sites, budget, caps=caps)
        rows = rows_of(evidence, sites, ranks, allocator="gradient_eva", order=order)
        kept = {name: float(found[: ranks[name]].sum()) for name, found in falling.items()}
        return make_plan("gradient_eva", ranks, sites, budget, evidence=kept, initial=rows)
