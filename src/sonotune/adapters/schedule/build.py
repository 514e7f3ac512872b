"""Which callbacks of the adapters a run has, from its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal

import torch

from sonotune.adapters.ranks.plan import Budget, RankPlan
from sonotune.adapters.schedule.adalora import AdaLora
from sonotune.adapters.schedule.callback import AdapterCallback, Event
from sonotune.adapters.schedule.entropy_penalty import EntropyRegularizer, effective_ranks
from sonotune.adapters.schedule.factors import ShrinkMode
from sonotune.adapters.schedule.reallocation import MovingRanks, Reallocation
from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel

TRACKED: Final = 20
"""Looks at the spectra of adapters over a run."""


class SpectrumTracker(AdapterCallback):
    """Logs how many directions each adapter uses, about twenty times over a run.

    Args:
        loaded: A model with adapters.
        regularizer: Knows the frozen weights that entropies are measured against, on or off.
    """

    def __init__(self, loaded: LoadedModel, regularizer: EntropyRegularizer) -> None:
        self._loaded, self._regularizer = loaded, regularizer

    def after_step(self, step: int, total_steps: int, optimizer: torch.optim.Optimizer) -> Event | None:
        """Look, where it is time."""
        if step % max(1, total_steps // TRACKED) and step != total_steps:
            return None
        found = {"entropy": self._regularizer.entropies(), "effective_rank": effective_ranks(self._loaded)}
        return "adapter_entropy", found


def build_callbacks(
    loaded: LoadedModel,
    plan: RankPlan | None,
    budget: Budget,
    *,
    seed: int,
    entropy: Literal["off", "concentrate", "spread"] = "off",
    weight: float = 0.01,
    ramp: tuple[float, float] = (0.1, 0.3),
    at: Sequence[float] = (),
    share: float = 0.1,
    shrink: ShrinkMode = "svd",
) -> list[AdapterCallback]:
    """Penalties and moving ranks of a run, in the order in which they act.

    Args:
        loaded: A model with adapters.
        plan: Its ranks; None for full fine-tuning, which has none.
        budget: Bounds of the ranks.
        seed: Of the run.
        entropy: Mode of the entropy penalty.
        weight: Its weight.
        ramp: Shares of the steps between which the weight rises.
        at: Shares of the steps at which ranks move.
        share: Largest share of the budget that moves at a time.
        shrink: How ranks are taken away.

    Raises:
        AdapterError: The settings fit no adapter of this model.
    """
    if plan is None:
        return []
    found: list[AdapterCallback] = []
    if plan.pruned_to is not None:
        if at:
            raise AdapterError(
                "adapter.allocator=adalora prunes ranks by itself, and reallocation.at would move them besides. "
                "Take one of the two."
            )
        found.append(AdaLora(loaded, plan.ranks.keys(), budget=plan.pruned_to, seed=seed))
    regularizer = EntropyRegularizer(loaded, mode=entropy, weight=weight, ramp=ramp)
    found.append(regularizer)
    if at:
        schedule = Reallocation(events=tuple(at), fraction_moved=share, mode=shrink)
        spent = replace(budget, parameters=plan.budget or plan.parameters)
        found.append(MovingRanks(loaded, plan, spent, schedule, seed=seed))
    return [*found, SpectrumTracker(loaded, regularizer)]
