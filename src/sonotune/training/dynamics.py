"""Which dynamics of the adapters a run has, from its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Final, Literal

import torch
from torch import Tensor

from sonotune.adapters.adalora import AdaLora
from sonotune.adapters.allocation import Budget, RankPlan, sites_of
from sonotune.adapters.dynamics import Dynamics, Event
from sonotune.adapters.regularizer import EntropyRegularizer, effective_ranks
from sonotune.adapters.resizing import Reallocation, ShrinkMode, current_ranks, set_ranks
from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel

TRACKED: Final = 20
"""Looks at the spectra of adapters over a run."""


class MovingRanks(Dynamics):
    """Ranks that move between adapters at set times.

    Args:
        loaded: A model with adapters.
        plan: The ranks it has, and what they may cost.
        budget: Bounds of the ranks.
        schedule: When ranks move, and which.
        seed: Draws new rows.
    """

    def __init__(
        self, loaded: LoadedModel, plan: RankPlan, budget: Budget, schedule: Reallocation, *, seed: int
    ) -> None:
        self._loaded, self._budget, self._schedule, self._seed = loaded, budget, schedule, seed
        self._sites, self._caps = sites_of(loaded, list(plan.ranks)), plan.caps
        self._moved = False

    def after_step(self, step: int, total_steps: int, optimizer: torch.optim.Optimizer) -> Event | None:
        """Move ranks where it is time."""
        if not self._schedule.due(step, total_steps):
            return None
        changes = self._schedule.apply(
            self._loaded, optimizer, self._sites, self._budget, seed=self._seed, step=step, caps=self._caps or None
        )
        self._moved = True
        return "ranks", {"changes": [asdict(change) for change in changes], "ranks": current_ranks(self._loaded)}

    def settled(self, step: int, total_steps: int) -> bool:
        """Whether the last move is over."""
        return all(step >= event * total_steps for event in self._schedule.events)

    def tensors(self) -> dict[str, Tensor]:
        """The present ranks."""
        return {name: torch.tensor(rank) for name, rank in current_ranks(self._loaded).items()}

    def restore(self, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Give the adapters the ranks of the checkpoint."""
        set_ranks(self._loaded, {name: int(rank) for name, rank in tensors.items()}, optimizer)

    def finish(self) -> Mapping[str, int] | None:
        """The ranks in the end."""
        return current_ranks(self._loaded)


class SpectrumTracker(Dynamics):
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


def build_dynamics(
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
) -> list[Dynamics]:
    """Penalties and moving ranks of a run, in the order in which they act.

    Args:
        loaded: A model with adapters.
        plan: Its ranks; None for full fine-tuning, which has no dynamics.
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
    found: list[Dynamics] = []
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
