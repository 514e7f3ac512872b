"""Which worker runs which trial, on one file system: a kernel lock and a small file for each trial.

A worker holds the lock of a trial as long as it runs it. The kernel lets go of the lock however the worker ends, so a
trial is never run by two workers, and one whose worker was killed is free for the next. A trained process may outlive
a killed worker; it holds the lock of its run directory, and its trial stays taken until it is done.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NotRequired, cast

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sonotune.errors import RunDirectoryError
from sonotune.json_files import Count, Number, read_json
from sonotune.runs import atomic_write_json, make_folder
from sonotune.runs.files import write_error
from sonotune.runs.record import is_locked
from sonotune.sweeps.space import Trial

Status = Literal["waiting", "finished", "failed", "pruned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialState:
    """What is known of a trial besides its run.

    Attributes:
        name: Of the trial.
        values: Axis -> value.
        seed: `training.seed`.
        words: Its settings.
        status: `waiting` until it has ended.
        order: Place among the trials of the sweep, as they began.
        attempts: How often it ended in a failure.
        error: What went wrong in the last one.
        exit_code: What it ended with.
        seconds: Of a trial that failed or was pruned.
        reported: Step -> score, turned so that lower is better, that pruning went by.
        study: Study of Optuna that asked for it; empty for others.
        number: Its number in that study.
    """

    name: str
    values: Mapping[str, str]
    seed: int
    words: tuple[str, ...]
    order: int
    status: Status = "waiting"
    attempts: int = 0
    error: str = ""
    exit_code: int = 0
    seconds: float = 0.0
    reported: Mapping[str, float] = field(default_factory=dict)
    study: str = ""
    number: int = -1

    @property
    def trial(self) -> Trial:
        """What it is."""
        return Trial(name=self.name, values=self.values, seed=self.seed, words=self.words)


class _State(TypedDict):
    name: str
    values: dict[str, str]
    seed: Count
    words: list[str]
    order: Count
    status: Status
    attempts: NotRequired[Count]
    error: NotRequired[str]
    exit_code: NotRequired[int]
    seconds: NotRequired[Number]
    reported: NotRequired[dict[str, Number]]
    study: NotRequired[str]
    number: NotRequired[int]


_STATE = TypeAdapter(_State)
_DO = "Remove the file: a run that it is of is found again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """The trials of one sweep's directory."""

    folder: Path

    def place(self, name: str) -> Path:
        """The run directory of a trial."""
        return self.folder / "trials" / name

    def states(self) -> dict[str, TrialState]:
        """Every trial that was begun or asked for, in that order.

        Raises:
            RunDirectoryError: A file is damaged.
        """
        found = [self._read(path) for path in sorted((self.folder / "state").glob("*.json"))]
        return {state.name: state for state in sorted(found, key=lambda state: (state.order, state.name))}

    def state(self, name: str) -> TrialState | None:
        """One of them."""
        path = self._path(name)
        return self._read(path) if path.is_file() else None

    def write(self, state: TrialState) -> None:
        """Keep what is known of a trial."""
        atomic_write_json(self._path(state.name), asdict(state))

    def add(self, trial: Trial, *, study: str = "", number: int = -1) -> TrialState:
        """Note a trial as the next of the sweep, unless it is there already. The directory must be held."""
        if (known := self.state(trial.name)) is not None:
            return known
        state = TrialState(
            name=trial.name,
            values=dict(trial.values),
            seed=trial.seed,
            words=trial.words,
            order=1 + max((one.order for one in self.states().values()), default=0),
            study=study,
            number=number,
        )
        self.write(state)
        return state

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Hold the directory for what no two workers may do at once; waits for the others. Never held for long."""
        lock = _open(self.folder / "sweep.lock")
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def take(self, name: str) -> int | None:
        """Take a trial for this process; None where another has it. `os.close` gives it back."""
        lock = _open(self.folder / "state" / f"{name}.lock")
        try:
            # Not flock: a record lock is not inherited by the process that trains, which may outlive a killed worker.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        if is_locked(self.place(name)):
            os.close(lock)
            return None
        return lock

    def _path(self, name: str) -> Path:
        return self.folder / "state" / f"{name}.json"

    def _read(self, path: Path) -> TrialState:
        read = cast("dict[str, Any]", read_json(path, _STATE, error=RunDirectoryError, do=_DO))
        known = {name: read[name] for name in TrialState.__dataclass_fields__ if name in read}
        return replace(TrialState(**known), words=tuple(read["words"]))


def open_claims(folder: Path) -> Claims:
    """The trials of a directory, which is made where missing.

    Raises:
        RunDirectoryError: It cannot be made or written.
        ResourceError: The disk is full.
    """
    for place in (folder, folder / "state"):
        make_folder(place, choose="sweep.dir=PATH")
    return Claims(folder=folder)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise write_error(error, path, 0, choose="sweep.dir=PATH") from error
