"""A sweep: trials of one space, each a process that runs `sonotune train`, and what they say.

Any number of workers may run the same line on one file system. What is done is read from the directory of the sweep,
so the same line goes on after any interruption, and takes more trials and more values as well.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from sonotune.errors import ConfigError, Interrupted, RunDirectoryError, SonotuneError
from sonotune.metrics.scores import better_sign, primary_score, score_title, show_score
from sonotune.runs import atomic_write_json, atomic_write_text, code_version, environment, read_record
from sonotune.sweeps.claims import Claims, TrialState, open_claims
from sonotune.sweeps.optuna_study import OptunaStudy
from sonotune.sweeps.sweep_plan import SweepPlan
from sonotune.sweeps.sweep_record import (
    RECORD,
    REPORT,
    TrialRow,
    describe,
    finish,
    first_words,
    line_digest,
    read_sweep,
)
from sonotune.sweeps.trials import NUMERIC, Pruned, costs, exit_code_of, run_apart, train_line
from sonotune.wording import counted, long_time

logger = logging.getLogger(__name__)

_FRUITLESS: Final = 50
_LOOK_EVERY_S: Final = 2.0


class SweepRunner(Protocol):
    """Does what `sonotune train WORDS` does, unless it is `hopeless`; what it leaves is in the run's directory."""

    def __call__(self, words: Sequence[str], *, hopeless: Callable[[], bool]) -> None:
        """Run it."""


@dataclass(slots=True, kw_only=True)
class Worker:
    """One process that takes trials until none is left for it.

    Attributes:
        plan: What is to be done.
        run: Trains.
        told: Called with a line for a person before and after every trial.
        rows: What is known of finished trials, by name.
    """

    plan: SweepPlan
    run: SweepRunner = run_apart
    told: Callable[[str], None] = lambda line: None
    rows: dict[str, TrialRow] = field(default_factory=dict)
    _claims: Claims = field(init=False)
    _again: dict[str, int] = field(default_factory=dict, init=False)
    _about: Mapping[str, Any] = field(
        default_factory=lambda: {"machine": environment(), "code": code_version()}, init=False
    )

    def go(self) -> dict[str, Any]:
        """Take trials, and write `sweep.json` after each; the last worker writes the report.

        Returns:
            The content of `sweep.json`. Its `status` is `unfinished` where other workers still have trials.

        Raises:
            Interrupted: A signal came; the same line goes on.
            RunDirectoryError: The directory holds another sweep.
        """
        from sonotune.training.runtime import stop_on_signals  # noqa: PLC0415  (the package imports torch)

        self._claims = open_claims(self.plan.folder)
        with stop_on_signals() as stop:
            self._begin()
            while (taken := self._take()) is not None:
                state, lock = taken
                try:
                    self._do(state)
                finally:
                    os.close(lock)
                self._write()
                if stop.requested:
                    raise Interrupted(f"stopped by {stop.reason} between two trials; the same line goes on.")
            return self._end()

    def _begin(self) -> None:
        """Refuse the directory of another sweep, and note which failures may be tried once more."""
        earlier = read_sweep(self.plan.folder)
        if earlier and earlier["line"] != line_digest(self.plan.space):
            theirs = " ".join([*earlier["words"], *(f"{axis['name']}={axis['text']}" for axis in earlier["axes"])])
            raise RunDirectoryError(
                f"{self.plan.folder} holds another sweep: {theirs}. A sweep is gone on with by the same settings and "
                "axes; values and trials may be added. Choose another directory with sweep.dir=PATH."
            )
        for state in self._claims.states().values():
            if state.status == "failed" and state.exit_code != NUMERIC:
                self._again[state.name] = state.attempts
        self._write()

    # --- which trial -----------------------------------------------------------------------------------

    def _take(self) -> tuple[TrialState, int] | None:
        """A trial for this worker and its lock; None where nothing is left, or others have the rest."""
        if self.plan.method == "optuna":
            with self._claims.holding():
                return self._ask()
        states = self._claims.states()
        # All configurations once before the second seed of any.
        rounds = max(len(trials) for trials in self.plan.listed)
        for trial in (trials[turn] for turn in range(rounds) for trials in self.plan.listed):
            state = states.get(trial.name)
            if state is not None and not self._is_open(state):
                continue
            if (lock := self._claims.take(trial.name)) is None:
                continue
            with self._claims.holding():
                state = self._claims.add(trial)
            if self._is_open(state):
                return replace(state, words=trial.words), lock
            os.close(lock)
        return None

    def _ask(self) -> tuple[TrialState, int] | None:
        study, states = self._study(), self._claims.states()
        study.settle(states.values(), self._outcomes(states))
        for state in states.values():
            if self._is_open(state) and (lock := self._claims.take(state.name)) is not None:
                return state, lock
        space = self.plan.space
        limit = min(self.plan.limit, space.size) if space.finite else self.plan.limit
        for _ in range(_FRUITLESS if len(states) < limit else 0):
            number, point = study.ask()
            try:
                trial = space.trial(point)
            except ConfigError as error:
                logger.info("a draw is no valid configuration: %s", error)
                study.known(number, None)
                continue
            if trial.name in states:
                study.known(number, self._outcomes(states).get(trial.name))
                continue
            state = self._claims.add(trial, study=study.name, number=number)
            if (lock := self._claims.take(trial.name)) is not None:
                return replace(state, words=trial.words), lock
        return None

    def _is_open(self, state: TrialState) -> bool:
        return state.status == "waiting" or (state.status == "failed" and self._again.get(state.name) == state.attempts)

    def _study(self) -> OptunaStudy:
        settings = self.plan.settings
        return OptunaStudy.of(self.plan.space.axes, self.plan.folder, seed=settings.seed, pruning=settings.pruning)

    def _outcomes(self, states: Mapping[str, TrialState]) -> dict[str, float | None]:
        """Score of every finished trial, turned so that lower is better."""
        rows = {name: self._row(state) for name, state in states.items()}
        return {name: row.outcome for name, row in rows.items() if row.outcome is not None}

    # --- one trial -------------------------------------------------------------------------------------

    def _do(self, state: TrialState) -> None:
        """Run a trial, or go on with it; what it raises is kept, so that the others go on.

        Raises:
            Interrupted: It was stopped; its state is saved.
        """
        place, started = self._claims.place(state.name), time.monotonic()
        values = " ".join(f"{name}={value}" for name, value in state.values.items())
        seed = f" seed {state.seed}" if self.plan.space.seeds else ""
        self.told(f"trial {state.order} of {self._asked()}, {state.name}: {values}{seed}")
        self.told(f"  {train_line(state.words)}")
        scores: dict[int, float] = {}
        try:
            if self._finished(state) is None:
                # Steps of an earlier session are reported again from its log.
                watch = _Watch(place / "events.jsonl", scores, self.plan.settings.primary)
                self.run([*state.words, f"run.dir={place}"], hopeless=partial(self._hopeless, state, watch))
            state = replace(state, status="finished", error="")
            problem = self._row(state).error
            if problem:
                state = replace(state, status="failed", error=problem, exit_code=2, attempts=state.attempts + 1)
        except Interrupted:
            raise
        except Pruned as error:
            state = replace(state, status="pruned", error=str(error))
        except Exception as error:  # one bad trial must not cost the others
            logger.warning("trial %s failed: %s", state.name, error, exc_info=not isinstance(error, SonotuneError))
            told = str(error) if isinstance(error, SonotuneError) else f"{type(error).__name__}: {error}"
            state = replace(
                state, status="failed", error=told, exit_code=exit_code_of(error), attempts=state.attempts + 1
            )
        reported = {str(step): score for step, score in scores.items()}
        state = replace(state, seconds=time.monotonic() - started, reported=reported)
        self._claims.write(state)
        self.rows.pop(state.name, None)
        self._tidy(state)
        row = self._row(state)
        shown = (
            f"{score_title(row.score_name, row.score)} {show_score(row.score)} on data.eval"
            if row.score
            else f"{state.status}: {first_words(state.error)}"
        )
        self.told(f"  {state.name}: {shown} ({row.seconds:.0f} s{self._left()})")

    def _hopeless(self, state: TrialState, watch: _Watch) -> bool:
        if self.plan.method != "optuna" or self.plan.settings.pruning == "none" or not watch.look():
            return False
        with self._claims.holding():
            return self._study().should_prune(state.number, watch.scores)

    def _finished(self, state: TrialState) -> TrialRow | None:
        """What a finished run of a trial left; None where there is none.

        Raises:
            RunDirectoryError: The directory holds a run of other settings.
        """
        place = self._claims.place(state.name)
        if not (place / "run.json").is_file():
            return None
        record = read_record(place)
        if not record.config_digest.startswith(state.name) and record.status != "failed":
            raise RunDirectoryError(
                f"{place} holds a run of other settings ({record.status}). Remove it, or choose another directory with "
                "sweep.dir=PATH."
            )
        if record.status != "finished":
            return None
        scores = record.scores.get("after", {})
        name = primary_score(scores) if self.plan.settings.primary == "auto" else self.plan.settings.primary
        problem = ""
        if name is None or name not in scores:
            known = ", ".join(scores) or "none, for there are no clips of data.eval"
            problem = f"the run has no score {name or ''} of data.eval; it has {known}. See sweep.primary."
        score = scores[name] if name is not None and not problem else None
        return TrialRow(
            state=state,
            score_name=name or "",
            score=score,
            outcome=None if score is None else better_sign(score.get("better", "lower")) * float(score["value"]),
            scores=scores,
            error=problem,
            **costs(record),
            data=record.data_digest,
            commit=record.code.get("commit", ""),
        )

    def _row(self, state: TrialState) -> TrialRow:
        """What is known of a trial; kept once it has ended."""
        if (row := self.rows.get(state.name)) is not None and row.state.status == state.status:
            return row
        found = self._finished(state) if state.status == "finished" else None
        row = found or TrialRow(state=state, error=state.error, seconds=state.seconds)
        if state.status != "waiting":
            self.rows[state.name] = row
        return row

    def _asked(self) -> int:
        """Trials in all."""
        return sum(len(trials) for trials in self.plan.listed) or self.plan.limit

    def _left(self) -> str:
        """How many trials are to come, and how long they may take this worker alone."""
        ended = [row for row in map(self._row, self._claims.states().values()) if row.state.status != "waiting"]
        left = self._asked() - len(ended)
        known = [row.seconds for row in ended if row.state.status == "finished"]
        if left <= 0 or not known:
            return ""
        return f"; {counted(left, 'trial')} to go, about {long_time(left * math.fsum(known) / len(known))}"

    # --- what is kept ----------------------------------------------------------------------------------

    def _tidy(self, state: TrialState) -> None:
        """Remove what nobody asked to keep of a trial that has ended: trial checkpoints fill disks."""
        if self.plan.settings.keep == "all" or state.status not in {"finished", "pruned"}:
            return
        shutil.rmtree(self._claims.place(state.name) / "checkpoints", ignore_errors=True)

    def _write(self) -> dict[str, Any]:
        """Write `sweep.json` as it stands."""
        with self._claims.holding():
            body = self._describe()
            if self.plan.settings.keep == "best" and body["winner"]:
                best = {trial for row in body["configurations"] if row["rank"] in (1, None) for trial in row["trials"]}
                for row in body["trials"]:
                    if row["status"] == "finished" and row["name"] not in best:
                        for kind in ("adapter", "model"):
                            shutil.rmtree(self._claims.place(row["name"]) / kind, ignore_errors=True)
            atomic_write_json(self.plan.folder / RECORD, body)
        return body

    def _describe(self) -> dict[str, Any]:
        states = self._claims.states()
        wanted = {trial.name for trials in self.plan.listed for trial in trials}
        missing = len(wanted - states.keys()) or max(0, self.plan.limit - len(states)) * (self.plan.method == "optuna")
        rows = [self._row(state) for state in states.values()]
        return describe(
            self.plan.folder,
            self.plan.space,
            rows,
            facts={
                "method": self.plan.method,
                "why": self.plan.why,
                "trials_asked": self._asked(),
                "left_out": list(self.plan.left_out),
                "missing": missing,
                **self._about,
            },
        )

    def _end(self) -> dict[str, Any]:
        """Finish the sweep where every trial has ended and no other worker does so."""
        body = self._write()
        taken = body["missing"] and self.plan.method != "optuna"  # by a worker that has not noted it yet
        if taken or any(row["status"] == "waiting" for row in body["trials"]):
            return body  # other workers have the rest
        lock = self._claims.take("report")
        if lock is None:
            return body
        try:
            body = finish(body, self.plan.folder, self.plan.space, told=self.told)
            with self._claims.holding():
                atomic_write_json(self.plan.folder / RECORD, body)
            from sonotune.reports.sweep import build_sweep_html  # noqa: PLC0415  (jinja2, only for a report)

            atomic_write_text(self.plan.folder / REPORT, build_sweep_html(body))
        finally:
            os.close(lock)
        return body


class _Watch:
    """Scores of the evaluations of a run, read from its event log as it grows.

    Args:
        log: The event log.
        scores: Filled with step -> score, turned so that lower is better.
        primary: Name of the score; `auto` takes the one that decides.
    """

    def __init__(self, log: Path, scores: dict[int, float], primary: str) -> None:
        self.scores = scores
        self._log, self._primary = log, primary
        self._place, self._looked = 0, 0.0

    def look(self) -> bool:
        """Whether there are new scores; looks every two seconds at most."""
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return False
        self._looked = time.monotonic()
        before = len(self.scores)
        for line in self._new_lines():
            if '"evaluation"' in line:
                self._keep(json.loads(line))
        return len(self.scores) > before

    def _new_lines(self) -> list[str]:
        if not self._log.is_file():
            return []
        with self._log.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._place:  # the run goes on from an earlier step
                self._place = 0
            file.seek(self._place)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._place += len(whole)
        return whole.decode("utf-8", "replace").splitlines()

    def _keep(self, event: Mapping[str, Any]) -> None:
        scores = event.get("scores", {})
        name = primary_score(scores) if self._primary == "auto" else self._primary
        if event.get("kind") == "evaluation" and name in scores:
            score = scores[name]
            self.scores[int(event["step"])] = better_sign(score.get("better", "lower")) * float(score["value"])


def exit_code(body: Mapping[str, Any]) -> int:
    """What `sonotune sweep` ends with: 0 where a trial won or others still run, else that of the first failed trial."""
    if body["winner"] is not None or body["status"] == "unfinished":
        return 0
    return next((int(row["exit_code"]) for row in body["trials"] if row["status"] == "failed"), 0)
