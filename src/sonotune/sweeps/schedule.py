"""Which trial comes next: a function of the arms and of what the finished trials scored, and of nothing else.

Every arm gets its own learning rate, because arms that share one are compared by how well that rate happens to suit
them (arXiv 2602.04998). The rate is chosen by one seed on the development clips; then the other seeds run at it, and
last the further seeds of those that the development clips like best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

STEP = math.sqrt(10)
"""Factor from one learning rate of a grid to the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of an ablation.

    Attributes:
        arm: Name of the arm.
        step: Place of the learning rate on the arm's grid; 0 is its centre.
        rate: The learning rate.
        seed: The run's seed.
    """

    arm: str
    step: int
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Folder of the run below the ablation's."""
        return f"{self.arm}/lr{self.rate:g}-seed{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What an ablation runs.

    Attributes:
        arms: Names, in order.
        centres: Arm -> learning rate in the middle of its grid.
        seeds: Of every arm; the first chooses the learning rate.
        final_seeds: Further seeds of the first arm and of the finalists.
        finalists: How many arms beside the first get them.
        out_of_final: Arms that are never finalists, such as ceilings.
        points: Learning rates of a grid to begin with.
        extensions: Rates that may be added beyond each end of the grid while the best is the outermost.
    """

    arms: tuple[str, ...]
    centres: Mapping[str, float]
    seeds: tuple[int, ...]
    final_seeds: tuple[int, ...] = ()
    finalists: int = 2
    out_of_final: tuple[str, ...] = ()
    points: int = 3
    extensions: int = 2

    def trial(self, arm: str, step: int, seed: int) -> Trial:
        """The trial at a place of an arm's grid."""
        return Trial(arm=arm, step=step, rate=float(f"{self.centres[arm] * STEP**step:.3g}"), seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The learning rate of an arm.

    Attributes:
        step: Its place on the grid.
        rate: The learning rate.
        tried: Every rate that was tried, rising.
        at_edge: Whether no more rates were allowed although the best is the outermost.
    """

    step: int
    rate: float
    tried: tuple[float, ...]
    at_edge: bool


Outcomes = Mapping[Trial, float | None]
"""Finished trials -> score on the development clips, turned so that lower is better; None for one that failed."""


def next_trial(schedule: Schedule, outcomes: Outcomes) -> Trial | None:
    """The trial to run now; None when all is done.

    The middle of every arm's grid comes first, so that what is wrong with an arm shows before much time is spent.
    """
    waiting = waiting_trials(schedule, outcomes)
    return waiting[0] if waiting else None


def waiting_trials(schedule: Schedule, outcomes: Outcomes) -> list[Trial]:
    """All trials known to be needed by now, in order; a grid may still grow, and arms still choosing have no seeds."""
    return _before_the_final(schedule, outcomes) or [
        trial
        for seed in schedule.final_seeds
        for arm in finalists(schedule, outcomes)
        if (trial := _chosen(schedule, arm, seed, outcomes)) is not None and trial not in outcomes
    ]


def _before_the_final(schedule: Schedule, outcomes: Outcomes) -> list[Trial]:
    grid = [
        (abs(step), place, step)
        for place, arm in enumerate(schedule.arms)
        for step in _steps(schedule, arm, outcomes)
        if schedule.trial(arm, step, schedule.seeds[0]) not in outcomes
    ]
    found = [schedule.trial(schedule.arms[place], step, schedule.seeds[0]) for _, place, step in sorted(grid)]
    return found + [
        trial
        for seed in schedule.seeds[1:]
        for arm in schedule.arms
        if (trial := _chosen(schedule, arm, seed, outcomes)) is not None and trial not in outcomes
    ]


def _chosen(schedule: Schedule, arm: str, seed: int, outcomes: Outcomes) -> Trial | None:
    """The trial of a seed at the arm's learning rate; None while that is not chosen."""
    choice = choose(schedule, arm, outcomes)
    return None if choice is None else schedule.trial(arm, choice.step, seed)


def finalists(schedule: Schedule, outcomes: Outcomes) -> tuple[str, ...]:
    """The first arm, and those with the best mean over the seeds on the development clips, best first.

    The test clips have no say, so that what is later said of them holds. Empty while trials before it are missing.
    """
    if _before_the_final(schedule, outcomes):
        return ()
    means: dict[str, float] = {}
    for arm in schedule.arms:
        trials = [_chosen(schedule, arm, seed, outcomes) for seed in schedule.seeds]
        scores = [score for trial in trials if trial and (score := outcomes[trial]) is not None]
        if len(scores) == len(schedule.seeds):
            means[arm] = math.fsum(scores)
    first = [arm for arm in schedule.arms[:1] if arm in means]
    others = [arm for arm in means if arm not in (*first, *schedule.out_of_final)]
    return (*first, *sorted(others, key=means.__getitem__)[: schedule.finalists])


def expected_trials(schedule: Schedule, outcomes: Outcomes) -> int:
    """How many trials are still to come if no grid grows further."""
    waiting = waiting_trials(schedule, outcomes)
    open_arms = {trial.arm for trial in waiting if trial.seed == schedule.seeds[0]}
    last = len(schedule.final_seeds) * min(1 + schedule.finalists, len(schedule.arms))
    begun = not waiting or any(trial.seed in schedule.final_seeds for trial in waiting)
    return len(waiting) + len(open_arms) * (len(schedule.seeds) - 1) + (0 if begun else last)


def choose(schedule: Schedule, arm: str, outcomes: Outcomes) -> Choice | None:
    """The arm's learning rate; None while its grid has gaps, or where every rate failed."""
    steps = _steps(schedule, arm, outcomes)
    trials = [schedule.trial(arm, step, schedule.seeds[0]) for step in steps]
    best = _best(schedule, arm, steps, outcomes)
    if best is None or any(trial not in outcomes for trial in trials):
        return None
    return Choice(
        step=best,
        rate=schedule.trial(arm, best, schedule.seeds[0]).rate,
        tried=tuple(trial.rate for trial in trials),
        at_edge=best in (steps[0], steps[-1]),
    )


def _steps(schedule: Schedule, arm: str, outcomes: Outcomes) -> list[int]:
    """Places of an arm's grid, rising, with those that its outcomes have added."""
    low = -((schedule.points - 1) // 2)
    high = low + schedule.points - 1
    steps = list(range(low, high + 1))
    while all(schedule.trial(arm, step, schedule.seeds[0]) in outcomes for step in steps):
        best = _best(schedule, arm, steps, outcomes)
        if best == steps[0] and low - steps[0] < schedule.extensions:
            steps.insert(0, steps[0] - 1)
        elif best == steps[-1] and steps[-1] - high < schedule.extensions and _allowed(schedule, arm, steps[-1] + 1):
            steps.append(steps[-1] + 1)
        else:
            break
    return steps


def _allowed(schedule: Schedule, arm: str, step: int) -> bool:
    return schedule.trial(arm, step, schedule.seeds[0]).rate <= 1


def _best(schedule: Schedule, arm: str, steps: list[int], outcomes: Outcomes) -> int | None:
    """The step with the best score; of equal ones that nearest to the centre, then the lower."""
    scored = [
        (score, abs(step), step)
        for step in steps
        if (score := outcomes.get(schedule.trial(arm, step, schedule.seeds[0]))) is not None
    ]
    return min(scored)[2] if scored else None
