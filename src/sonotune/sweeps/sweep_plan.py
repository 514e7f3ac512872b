"""What a sweep will do, and whether it can: asked before the first trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from sonotune.config.sweep import SweepConfig
from sonotune.errors import ConfigError
from sonotune.runs import digest_json
from sonotune.sweeps.optuna_study import load_optuna
from sonotune.sweeps.space import Space, Trial, distinct, read_space

DEFAULT_TRIALS: Final = 20
_MAX_GRID: Final = 10_000
Method = Literal["grid", "random", "optuna"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """Everything that decides a sweep.

    Attributes:
        space: What is tried.
        settings: The section `sweep`.
        method: How trials are chosen.
        why: What chose the method.
        folder: Directory of the sweep.
        listed: The trials of a grid or of random draws, by configuration; empty where Optuna chooses.
        left_out: Combinations that are no valid settings, each with what is wrong.
        limit: Configurations in all.
    """

    space: Space
    settings: SweepConfig
    method: Method
    why: str
    folder: Path
    listed: tuple[tuple[Trial, ...], ...]
    left_out: tuple[str, ...]
    limit: int


def plan_sweep(words: Sequence[str]) -> SweepPlan:
    """Check a sweep before anything runs.

    Args:
        words: As `sonotune sweep` takes them.

    Raises:
        ConfigError: A word, a value, or the number of trials is wrong.
        MissingExtraError: Optuna is asked for and not installed.
    """
    settings, space = read_space(words)
    method, why = _method(settings, space)
    listed: list[list[Trial]] = []
    left_out: list[str] = []
    limit = settings.trials or DEFAULT_TRIALS
    if method == "optuna":
        load_optuna()
        if space.seeds:
            raise ConfigError(
                "training.seed varies, and Optuna would look for the luckiest seed. Give one seed, or take "
                "sweep.method=random, which trains every configuration with every seed."
            )
    else:
        points = space.grid() if method == "grid" else space.draws(settings.seed)
        listed, left_out = distinct(space, points, None if method == "grid" else limit)
        limit = len(listed)
    if method != "optuna" and not listed:
        raise ConfigError(f"no combination of the values is a valid configuration; the first: {left_out[0]}.")
    name = digest_json([sorted(space.base), sorted(axis.name for axis in space.axes), method])[:8]
    return SweepPlan(
        space=space,
        settings=settings,
        method=method,
        why=why,
        folder=settings.dir if isinstance(settings.dir, Path) else Path("runs") / f"sweep-{name}",
        listed=tuple(tuple(trials) for trials in listed),
        left_out=tuple(left_out),
        limit=limit,
    )


def _method(settings: SweepConfig, space: Space) -> tuple[Method, str]:
    if settings.method == "optuna":
        return "optuna", "sweep.method"
    if settings.method == "random":
        return "random", "sweep.method"
    if not space.finite:
        if settings.method == "auto":
            return "random", "an axis is a range"
        ranges = next(axis for axis in space.axes if not axis.values)
        raise ConfigError(
            f"{ranges.name}={ranges.text}: a grid needs a list of values. Write them, or LOW:HIGH:log:POINTS or "
            "LOW:HIGH:STEP; or take sweep.method=random."
        )
    if settings.trials is not None and settings.trials < space.size:
        if settings.method == "auto":
            return "random", f"the grid has {space.size:,} combinations, and sweep.trials is {settings.trials:,}"
        raise ConfigError(
            f"the grid has {space.size:,} combinations, and sweep.trials is {settings.trials:,}. Its first ones would "
            "say nothing of the others: take sweep.method=random, or fewer values."
        )
    if space.size > _MAX_GRID:
        raise ConfigError(
            f"the grid has {space.size:,} combinations; at most {_MAX_GRID:,} are allowed. Take "
            "sweep.method=random with sweep.trials=N."
        )
    return "grid", "sweep.method" if settings.method == "grid" else "every axis is a list of values"
