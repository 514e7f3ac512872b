"""Optuna as the one that chooses trials: its journal lies in the directory of the sweep, and all workers share it.

Scores are turned so that lower is better before Optuna hears of them: which direction is better is known from the first
score alone. Every call is made while the directory is held, so that what one worker is told the next one knows.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

from sonotune.errors import MissingExtraError
from sonotune.runs import digest_json, torch_seed
from sonotune.sweeps.axes import Axis
from sonotune.sweeps.claims import TrialState
from sonotune.sweeps.space import Point

INSTALL: Final = "pip install 'sonotune[sweep]'"
JOURNAL: Final = "optuna.journal"


def load_optuna() -> ModuleType:
    """The library, which says nothing of its own.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import optuna  # noqa: PLC0415  (optional)
    except ImportError as error:
        raise MissingExtraError(
            f"sweep.method=optuna needs the package optuna, which is not installed. Install it with {INSTALL}, or take "
            "sweep.method=random, which needs nothing."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    module: ModuleType = optuna
    return module


class _JournalLock:
    """The lock that Optuna's journal asks for. The kernel lets go of it, which a lock file of a killed process cannot.

    Args:
        path: Of the lock.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = -1

    def acquire(self) -> bool:
        """Wait for it."""
        self._lock = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Give it back."""
        os.close(self._lock)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptunaStudy:
    """The study of one space.

    Attributes:
        name: Follows from the axes, so that a space that grew has a study of its own.
        axes: What varies.
        journal: The file.
        seed: Of the draws.
        pruning: Which trials are stopped early.
    """

    name: str
    axes: tuple[Axis, ...]
    journal: Path
    seed: int
    pruning: Literal["none", "median", "hyperband"]

    @classmethod
    def of(
        cls, axes: tuple[Axis, ...], folder: Path, *, seed: int, pruning: Literal["none", "median", "hyperband"]
    ) -> OptunaStudy:
        """The study of some axes in the directory of a sweep."""
        name = digest_json([(axis.name, axis.text, axis.choice) for axis in axes])[:10]
        return cls(name=name, axes=axes, journal=folder / JOURNAL, seed=seed, pruning=pruning)

    def ask(self) -> tuple[int, Point]:
        """A new trial: its number in the study, and what it tries."""
        study = self._open()
        trial = study.ask(distributions(self.axes))
        return trial.number, {axis.name: _text(axis, trial.params[axis.name]) for axis in self.axes}

    def settle(self, states: Iterable[TrialState], outcomes: Mapping[str, float | None]) -> None:
        """Tell the study what became of its trials since it was last told.

        A trial that a worker was killed over before it was noted counts as failed.

        Args:
            states: Every trial of the sweep.
            outcomes: Name of a finished trial -> score, lower being better.
        """
        optuna, study = load_optuna(), self._open()
        kinds = optuna.trial.TrialState
        mine = {state.number: state for state in states if state.study == self.name}
        for trial in study.get_trials(deepcopy=False):
            state = mine.get(trial.number)
            finished = state is not None and state.status == "finished"
            if trial.state == kinds.RUNNING and (state is None or state.status != "waiting"):
                if finished and state is not None and outcomes.get(state.name) is not None:
                    study.tell(trial.number, outcomes[state.name])
                elif state is not None and state.status == "pruned":
                    study.tell(trial.number, state=kinds.PRUNED)
                else:
                    study.tell(trial.number, state=kinds.FAIL)

    def known(self, number: int, outcome: float | None) -> None:
        """Tell the study that it asked for a trial that was made before, or for settings that do not go together."""
        kinds = load_optuna().trial.TrialState
        self._open().tell(number, outcome, state=kinds.FAIL if outcome is None else kinds.COMPLETE)

    def should_prune(self, number: int, reported: Mapping[int, float]) -> bool:
        """Report scores of a running trial, and ask whether to stop it.

        Args:
            number: Of the trial.
            reported: Step -> score, lower being better; those that were reported before may be among them.
        """
        if self.pruning == "none" or not reported:
            return False
        optuna, study = load_optuna(), self._open()
        frozen = study.get_trials(deepcopy=False)[number]
        trial = optuna.trial.Trial(study, frozen._trial_id)
        for step, score in sorted(reported.items()):
            if step not in frozen.intermediate_values:
                trial.report(score, step)
        return bool(trial.should_prune())

    def _open(self) -> Any:
        """The study as the journal has it now."""
        optuna = load_optuna()
        from optuna.storages import JournalStorage  # noqa: PLC0415  (optional)
        from optuna.storages.journal import JournalFileBackend  # noqa: PLC0415

        backend = JournalFileBackend(str(self.journal), lock_obj=_JournalLock(self.journal.with_suffix(".lock")))
        pruner = {
            "none": optuna.pruners.NopPruner,
            "median": optuna.pruners.MedianPruner,
            "hyperband": optuna.pruners.HyperbandPruner,
        }[self.pruning]()
        study = optuna.create_study(
            storage=JournalStorage(backend), study_name=self.name, load_if_exists=True, pruner=pruner
        )
        # A draw follows from the seed and from how many were made, not from which worker makes it.
        seed = torch_seed(self.seed, "optuna", len(study.get_trials(deepcopy=False))) % 2**32
        study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        return study


def distributions(axes: Iterable[Axis]) -> dict[str, Any]:
    """Axes as Optuna knows them: lists as categories, ranges as numbers."""
    kinds = load_optuna().distributions
    found: dict[str, Any] = {}
    for axis in axes:
        span = axis.span
        high = 0.0 if span is None else float(axis.values[-1]) if span.step else span.high  # what the steps reach
        if span is None or span.points is not None:
            found[axis.name] = kinds.CategoricalDistribution(axis.values)
        elif span.integer:
            step = None if span.step is None else int(span.step)
            found[axis.name] = kinds.IntDistribution(int(span.low), int(high), log=span.log, step=step or 1)
        else:
            found[axis.name] = kinds.FloatDistribution(span.low, high, log=span.log, step=span.step)
    return found


def _text(axis: Axis, value: Any) -> str:
    return value if isinstance(value, str) or axis.span is None else axis.span.show(float(value))
