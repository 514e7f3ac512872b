"""The split between groups found from calibration data: what the loss has to gain there; entropy within each group.

How much of a budget belongs to the audio encoder, and how much to the decoder, depends on what is new in the data: its
sound or its language. Entropy cannot say, because it looks at inputs alone, and inputs of one group are not comparable
with those of another. The gradient of the loss can: it is the same loss in all groups.

What adapters of the reference rank could gain in a group, to first order and with whitened inputs, is the sum over its
modules of their largest gains, as many as that rank. By the parameters they cost, that is the gain per parameter e_g.
The groups are then treated as modules are within a group: maximising the sum of C_g x e_g^gamma x ln(P_g), where C_g is
the cost of a rank throughout the group, gives P_g ~ C_g x e_g^gamma. So equal gains per parameter leave the default
split, and gamma tempers them as it tempers scores: gains leave out the curvature on the side of the outputs, which
differs between groups, and say nothing of what comes after the first steps. Each share stays within half and double of
what it would have been. Weights that are given apply first, and these factors multiply what they lead to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sonotune.adapters.allocation import Budget, Evidence, Needs, RankPlan, Site, evidence_of, gains_of
from sonotune.adapters.apportion import apportion, make_plan, total_of, weighted


class ModalityAllocator:
    """Groups by gain per parameter, modules within them by effective rank.

    The shares that it finds are kept: `Budget.cross_modality` has no effect.
    """

    needs: ClassVar[Needs] = "gradients"

    def allocate(self, sites: Sequence[Site], budget: Budget, *, evidence: Evidence, seed: int) -> RankPlan:
        """See `RankAllocator.allocate`."""
        gains = gains_of(evidence, sites, allocator="modality")
        scores = evidence_of(
            evidence.effective_ranks, sites, allocator="modality", what="effective ranks of the inputs"
        )
        if sites:
            budget = weighted(sites, budget, gain_per_parameter(gains, sites, budget))
        return make_plan("modality", apportion(scores, sites, budget, caps=scores), sites, budget, evidence=scores)


def gain_per_parameter(
    gains: Mapping[str, NDArray[np.float64]], sites: Sequence[Site], budget: Budget
) -> dict[str, float]:
    """What the loss could gain from adapters of the reference rank in each group, by what they cost.

    Args:
        gains: Of every site, in any order (P,).
        sites: Where adapters go.
        budget: Its reference rank is what it buys at every site.
    """
    rank = max(1, round(total_of(sites, budget) / sum(site.cost for site in sites)))
    gained: dict[str, list[float]] = {}
    costs: dict[str, int] = {}
    for site in sites:
        gained.setdefault(site.group, []).extend(np.sort(gains[site.name])[::-1][:rank].tolist())
        costs[site.group] = costs.get(site.group, 0) + site.cost * rank
    return {group: math.fsum(values) / costs[group] for group, values in gained.items()}  # whatever their order
