"""Explained variance (EVA, arXiv 2410.07170): adapters go where few directions explain most of the inputs.

Of all principal components of all modules those with the largest share of their module's variance are taken, and A
starts from them. The original counts its budget in ranks; here it is in parameters, so that a component is worth its
share by what it costs. `eva_ranks` and `uniform_eva` have one of the two parts each: the ranks, and the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sonotune.adapters.ranks.budget import by_components, make_plan, spend, uniform_ranks
from sonotune.adapters.ranks.plan import (
    Budget,
    Importance,
    Needs,
    RankPlan,
    Target,
    evidence_of,
    rows_of,
)


class EvaAllocator:
    """Components with the largest share of variance by cost; A starts from them."""

    needs: ClassVar[Needs] = "directions"

    def allocate(self, sites: Sequence[Target], budget: Budget, *, evidence: Importance, seed: int) -> RankPlan:
        """See `RankAllocator.allocate`."""
        shares = _shares(evidence, sites, "eva")
        ranks = _ranks(shares, sites, budget, evidence)
        rows = rows_of(evidence, sites, ranks, allocator="eva")
        return make_plan("eva", ranks, sites, budget, evidence=_explained(shares, ranks), initial=rows)


class EvaRanksAllocator:
    """The ranks of `eva`; A starts at random."""

    needs: ClassVar[Needs] = "directions"

    def allocate(self, sites: Sequence[Target], budget: Budget, *, evidence: Importance, seed: int) -> RankPlan:
        """See `RankAllocator.allocate`."""
        shares = _shares(evidence, sites, "eva_ranks")
        ranks = _ranks(shares, sites, budget, evidence)
        return make_plan("eva_ranks", ranks, sites, budget, evidence=_explained(shares, ranks))


class UniformEvaAllocator:
    """The same rank everywhere; A starts from the principal components."""

    needs: ClassVar[Needs] = "directions"

    def allocate(self, sites: Sequence[Target], budget: Budget, *, evidence: Importance, seed: int) -> RankPlan:
        """See `RankAllocator.allocate`."""
        ranks = uniform_ranks(sites, budget)
        rows = rows_of(evidence, sites, ranks, allocator="uniform_eva")
        return make_plan("uniform_eva", ranks, sites, budget, initial=rows)


def _shares(evidence: Importance, sites: Sequence[Target], allocator: str) -> dict[str, NDArray[np.float64]]:
    return evidence_of(evidence.shares, sites, allocator=allocator, what="shares of the inputs' variance")


def _ranks(
    shares: dict[str, NDArray[np.float64]],
    sites: Sequence[Target],
    budget: Budget,
    evidence: Importance,
) -> dict[str, int]:
    caps = {name: float(len(found)) for name, found in shares.items()}  # not effective ranks: they are the rival's
    return spend(by_components(shares), sites, budget, caps=caps)


def _explained(shares: dict[str, NDArray[np.float64]], ranks: dict[str, int]) -> dict[str, float]:
    """Share of a module's variance that its directions explain."""
    return {name: float(found[: ranks[name]].sum()) for name, found in shares.items()}
