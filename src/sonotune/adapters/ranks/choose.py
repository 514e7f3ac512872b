"""Ranks for a run: what carries an adapter, what calibration hears, what the allocator makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sonotune.adapters.calibration.activations import Objective
from sonotune.adapters.calibration.calibrate import Calibration, collect
from sonotune.adapters.kinds.lora import stem_cost
from sonotune.adapters.ranks.budget import bounds_of
from sonotune.adapters.ranks.components import MEASURE_AGAIN, Split
from sonotune.adapters.ranks.plan import (
    Budget,
    Importance,
    RankPlan,
    Target,
    plan_from_json,
    plan_to_json,
    targets_in,
)
from sonotune.adapters.targets import modules_of, resolve_targets
from sonotune.errors import AdapterError
from sonotune.json_files import OBJECT, read_json
from sonotune.models.base import LoadedModel
from sonotune.processes import SINGLE_PROCESS, Processes
from sonotune.registry import resolve
from sonotune.runs import generator
from sonotune.types import Clip

MIN_DIRECTIONS = 64
"""Leading directions of an input that calibration finds, or as many as the largest rank."""
GRADIENT_CLIPS = 32
"""Clips whose gradients are looked at; each costs a backward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSettings:
    """How the ranks of a run are chosen: the sections `adapter` and `allocation` of its settings."""

    targets: str | Sequence[str] = "all_linear"
    unfreeze: Sequence[str] = ()
    allocator: str = "uniform"
    stem: str = "train"
    rank: int = 8
    budget: int | None = None
    gamma: float = 0.5
    rank_step: int | None = None
    min_rank: int | None = None
    max_rank: int | None = None
    group_weights: Mapping[str, float] = field(default_factory=dict)
    group_floors: Mapping[str, int] = field(default_factory=dict)
    cross_modality: bool = False
    clips: int = 64
    tokens: int = 1024
    seed: int = 0
    draw: int = 0
    file: Path | None = None

    @classmethod
    def of(cls, adapter: Mapping[str, Any], allocation: Mapping[str, Any]) -> RankSettings:
        """From the two sections of the settings."""
        own = ("targets", "unfreeze", "allocator", "stem", "rank", "budget")
        return cls(**{name: adapter[name] for name in own}, **allocation)

    def bounds_in(self, loaded: LoadedModel) -> Budget:
        """What may be spent on the linears of a model, and within which bounds; adapters of its stem are paid first."""
        parameters = self.budget
        if parameters is not None and self.stem == "lora":
            parameters -= stem_cost(loaded) * self.rank
        return Budget(
            rank=self.rank,
            parameters=parameters,
            step=self.rank_step,
            least=self.min_rank,
            most=self.max_rank,
            gamma=self.gamma,
            weights=self.group_weights,
            floors=self.group_floors,
            cross_modality=self.cross_modality,
        )


def adapted_modules(loaded: LoadedModel, settings: RankSettings) -> tuple[Target, ...]:
    """What carries an adapter, in model order; what trains in full precision carries none.

    Raises:
        AdapterError: A target matches nothing, or all of them train in full precision.
    """
    unfrozen = modules_of(loaded, settings.unfreeze) if settings.unfreeze else ()
    targets = [name for name in resolve_targets(loaded, settings.targets) if name not in unfrozen]
    if not targets:
        raise AdapterError(
            f"adapter.targets names {settings.targets} alone, which trains in full: it is new, or stands in "
            "adapter.unfreeze. Name what else is to carry adapters. To train nothing else, write a stage with "
            "adapters: none."
        )
    return targets_in(loaded, targets)


def calibration_clips(clips: Sequence[Clip], settings: RankSettings) -> list[Clip]:
    """A sample of the clips that depends on their ids and the seed alone."""
    drawn = {clip.id: generator(settings.seed, "calibration", clip.id).random() for clip in clips}
    return sorted(clips, key=lambda clip: (drawn[clip.id], clip.id))[: settings.clips]


def calibrate(
    loaded: LoadedModel,
    objective: Objective,
    clips: Sequence[Clip],
    settings: RankSettings,
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    processes: Processes = SINGLE_PROCESS,
) -> Calibration | None:
    """Listen to what the allocator needs, the clips shared by all processes; None where it needs nothing."""
    needs = resolve("allocators", settings.allocator).needs
    if needs == "nothing" or settings.file is not None:
        return None
    sites = adapted_modules(loaded, settings)
    largest = max(bounds_of(sites, settings.bounds_in(loaded)).most.values())
    return collect(
        loaded,
        objective,
        calibration_clips(clips, settings),
        tokens=settings.tokens,
        seed=settings.seed,
        autocast=autocast,
        directions=0 if needs == "activations" else max(MIN_DIRECTIONS, largest),
        gradient_clips=GRADIENT_CLIPS if needs == "gradients" else 0,
        names=[site.name for site in sites],
        processes=processes,
    )


def plan_ranks(loaded: LoadedModel, settings: RankSettings, evidence: Importance | None = None) -> RankPlan:
    """Ranks within the budget.

    Args:
        loaded: The model, without adapters.
        settings: How.
        evidence: What calibration found.

    Raises:
        AdapterError: The budget is too small, evidence is missing, or a file of ranks is for another model.
    """
    sites = adapted_modules(loaded, settings)
    if settings.file is not None:
        return _read(settings.file, sites)
    plan: RankPlan = resolve("allocators", settings.allocator)().allocate(
        sites, settings.bounds_in(loaded), evidence=evidence or Importance(), seed=settings.draw
    )
    return replace(plan, reference=settings.rank)


def plan_uncalibrated(loaded: LoadedModel, settings: RankSettings) -> RankPlan:
    """Ranks without clips: those that need calibration are planned as uniform ones, which spend the same.

    Raises:
        AdapterError: As `plan_ranks`.
    """
    known = settings.file is not None or resolve("allocators", settings.allocator).needs == "nothing"
    return plan_ranks(loaded, settings if known else replace(settings, allocator="uniform"))


def ranks_text(plan: RankPlan, loaded: LoadedModel) -> str:
    """What `ranks.json` holds."""
    return json.dumps(plan_to_json(plan, targets_in(loaded, list(plan.ranks))), indent=1, ensure_ascii=False) + "\n"


def components_text(split: Split) -> str:
    """What `split.json` holds."""
    return json.dumps(split.to_json(), indent=1, ensure_ascii=False) + "\n"


def read_components(path: Path) -> Split:
    """Read a `split.json`.

    Raises:
        AdapterError: It cannot be read.
    """
    return Split.from_json(read_json(path, OBJECT, error=AdapterError, do=MEASURE_AGAIN), where=str(path))


def _read(path: Path, sites: Sequence[Target]) -> RankPlan:
    do = "Make one with `sonotune allocate`."
    return plan_from_json(read_json(path, OBJECT, error=AdapterError, do=do), sites, where=str(path))
