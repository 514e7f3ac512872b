"""The ablation: arms x learning rates x seeds on one base configuration, and what they say.

Every trial is an ordinary run in a directory of its own below the ablation's. What is done is read from those
directories, so the same line goes on after any interruption, with more arms or seeds as well.
"""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, cast

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sonotune.config.data import DataConfig
from sonotune.config.load import load_run_config
from sonotune.errors import AdapterError, Interrupted, RunDirectoryError
from sonotune.json_files import Number, read_json
from sonotune.metrics.scores import primary_score, score_title, show_value
from sonotune.paths import is_file
from sonotune.registry import split_source
from sonotune.runs import (
    atomic_write_json,
    atomic_write_text,
    clear_drafts,
    code_version,
    digest_file,
    environment,
    make_folder,
)
from sonotune.sweeps.arms import Arm
from sonotune.sweeps.plan import Plan
from sonotune.sweeps.schedule import (
    Choice,
    Outcomes,
    Trial,
    choose,
    expected_trials,
    finalists,
    next_trial,
    waiting_trials,
)
from sonotune.sweeps.trials import (
    REQUIRED,
    Runner,
    TrialResult,
    failed_earlier,
    fails_again,
    read_trial,
    run_trial,
    train_line,
)
from sonotune.sweeps.verdict import EQUAL_SHARE, Candidate, judge, judge_claims
from sonotune.wording import counted

SCHEMA = 1
RECORD, REPORT = "ablation.json", "report.html"
Status = Literal["running", "finished", "stopped", "failed"]


def _manifests(data: DataConfig) -> dict[str, str]:
    """Digests of the manifests that are files, by setting."""
    places = {f"data.{name}": split_source(getattr(data, name))[1] for name in ("train", "eval", "test")}
    return {name: digest_file(Path(place)) for name, place in places.items() if is_file(place)}


@dataclass(slots=True, kw_only=True)
class Session:
    """One sitting of an ablation.

    Attributes:
        plan: What is to be done.
        run: Does what `sonotune train` does.
        hours: No trial is begun that would likely end after this many hours; None sets no limit.
        apart: Whether each trial has a process of its own, so that its peak memory is its own.
        told: Called with a line for a person after every trial.
        clock: Seconds, for the limit.
        results: What is known of trials.
        manifests: Digests of the files of clips, by setting.
        about: Machine and commit, looked at when the session begins.
    """

    plan: Plan
    run: Runner
    hours: float | None = None
    apart: bool = False
    told: Callable[[str], None] = lambda line: None
    clock: Callable[[], float] = time.monotonic
    results: dict[Trial, TrialResult] = field(default_factory=dict)
    manifests: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=lambda: {"machine": environment(), "code": code_version()})

    def go(self) -> dict[str, Any]:
        """Run what is missing, compare, and write `ablation.json` and `report.html` after every trial.

        Returns:
            The content of `ablation.json`; its `status` is `stopped` where the hours were used up.

        Raises:
            Interrupted: A signal came; the same line goes on.
            AdapterError: Arms that must train equally many parameters do not.
            RunDirectoryError: The directory is in use, or holds runs of other settings or other clips.
        """
        from sonotune.training.runtime import stop_on_signals  # noqa: PLC0415  (the package imports torch)

        with _locked(self.plan.folder), stop_on_signals() as stop:
            started = self.clock()
            self._check_manifests()
            self._read_finished()
            status: Status = "finished"
            try:
                while (trial := next_trial(self.plan.schedule, self.outcomes())) is not None:
                    if self._too_late(trial, started):
                        status = "stopped"
                        break
                    self._take(trial)
                    if stop.requested and next_trial(self.plan.schedule, self.outcomes()) is not None:
                        raise Interrupted(f"stopped by {stop.reason} between two runs; the same line goes on.")
            except Interrupted:
                self._write("stopped")
                raise
            except (AdapterError, RunDirectoryError):
                self._write("failed")
                raise
            return self._write(status)

    def _check_manifests(self) -> None:
        """Refuse to train on other clips than the first session did.

        Raises:
            RunDirectoryError: A manifest has changed since.
        """
        earlier = read_ablation(self.plan.folder).get("manifests", {})
        self.manifests = _manifests(load_run_config(self.plan.base, require=REQUIRED).config.data)
        if changed := [name for name, digest in earlier.items() if self.manifests.get(name, digest) != digest]:
            raise RunDirectoryError(
                f"{', '.join(changed)} changed since the first run in {self.plan.folder}, and runs on unlike clips "
                "cannot be compared. Restore the file, or begin anew with another --dir."
            )

    def outcomes(self) -> Outcomes:
        """See `schedule.Outcomes`."""
        return {trial: result.outcome for trial, result in self.results.items()}

    def look(self) -> None:
        """Read what earlier sessions did, without running anything."""
        self._read_finished()

    def seconds_to_come(self) -> float | None:
        """Expected seconds of what is missing, from finished trials; None before there is one."""
        known = [result.seconds for result in self.results.values() if result.status == "finished"]
        if not known:
            return None
        return expected_trials(self.plan.schedule, self.outcomes()) * math.fsum(known) / len(known)

    def _read_finished(self) -> None:
        """Follow the schedule through trials that are finished, and failures that would only repeat."""
        earlier = {(row["run"]): row for row in read_ablation(self.plan.folder).get("trials", ())}
        found = True
        while found:
            found = False
            for trial in waiting_trials(self.plan.schedule, self.outcomes()):
                words, place = self.plan.words(trial), self.plan.place(trial)
                result = read_trial(trial, words, place)
                row = earlier.get(trial.name, {})
                if result is None and fails_again(row) and row.get("line") == train_line(words):
                    result = failed_earlier(trial, row, words, place)
                if result is not None:
                    self.results[trial] = result
                    found = True
        check_alike(self.plan, self.results)

    def _too_late(self, trial: Trial, started: float) -> bool:
        if self.hours is None:
            return False
        mine = [result.seconds for result in self.results.values() if result.trial.arm == trial.arm]
        known = mine or [result.seconds for result in self.results.values()]
        expected = math.fsum(known) / len(known) if known else 0.0
        return self.clock() - started + expected > 3600 * self.hours

    def _take(self, trial: Trial) -> None:
        schedule, done = self.plan.schedule, len(self.results)
        words = self.plan.words(trial)
        self.told(
            f"arm {schedule.arms.index(trial.arm) + 1} of {len(schedule.arms)}, {trial.arm}: learning rate "
            f"{trial.rate:g}, seed {trial.seed} (run {done + 1} of {done + expected_trials(schedule, self.outcomes())})"
        )
        self.told(f"  {train_line(words)}")
        result = run_trial(trial, words, self.plan.place(trial), self.run)
        self.results[trial] = result
        left = expected_trials(schedule, self.outcomes())
        to_go = f"at least {counted(left, 'run')} to go" if left else "no run to go"
        self.told(f"  {trial.name}: {_shown(result)} ({result.seconds:.0f} s; {to_go})")
        check_alike(self.plan, self.results)
        self._write("running", judged=False)

    def _write(self, status: Status, *, judged: bool = True) -> dict[str, Any]:
        body = describe(self.plan, self.results, status=status, apart=self.apart, judged=judged)
        body |= {"manifests": dict(self.manifests), **self.about}
        atomic_write_json(self.plan.folder / RECORD, body)
        if judged:
            from sonotune.reports.ablation import build_ablation_html  # noqa: PLC0415  (jinja2, only for a report)

            atomic_write_text(self.plan.folder / REPORT, build_ablation_html(body))
        return body


def _shown(result: TrialResult) -> str:
    """The score that decides, or why there is none."""
    scores = result.scores.get("after", {})
    if result.score is None or (name := primary_score(scores)) is None:
        return f"failed: {result.error}"
    return f"{score_title(name, scores[name])} {show_value(scores[name], digits=2)} on data.eval"


class _Trial(TypedDict):
    run: str
    status: NotRequired[str]
    line: NotRequired[str]
    error: NotRequired[str]
    exit_code: NotRequired[int]
    seconds: NotRequired[Number]


class _Ablation(TypedDict):
    schema: Literal[1]
    manifests: NotRequired[dict[str, str]]
    trials: NotRequired[list[_Trial]]


_ABLATION = TypeAdapter(_Ablation)


def read_ablation(folder: Path) -> dict[str, Any]:
    """The content of an `ablation.json`; empty where there is none.

    Raises:
        RunDirectoryError: It is damaged, or of a schema this version does not read.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    do = "Remove it: the runs in trials/ are read anew. One of another schema needs the version that wrote it."
    return cast("dict[str, Any]", read_json(path, _ABLATION, error=RunDirectoryError, do=do))


def check_alike(plan: Plan, results: Mapping[Trial, TrialResult]) -> None:
    """Refuse to compare arms that train unlike numbers of parameters, or runs that saw unlike clips.

    Raises:
        AdapterError: Arms that must be equal are more than `EQUAL_SHARE` apart.
        RunDirectoryError: The clips changed between two trials.
    """
    done = [result for result in results.values() if result.status == "finished"]
    if done and any(result.data != done[0].data for result in done):
        other = next(result for result in done if result.data != done[0].data)
        raise RunDirectoryError(
            f"{other.folder} was run on other clips than {done[0].folder}: the manifests have changed since. "
            f"Restore them and remove {other.folder}, or begin anew with another --dir."
        )
    for result in done:
        wanted = plan.budgets.get(result.trial.arm)
        if wanted is not None and abs(result.adapter_parameters - wanted) > EQUAL_SHARE * wanted:
            raise AdapterError(
                f"{result.trial.arm} must have {wanted:,} parameters in adapters and has "
                f"{result.adapter_parameters:,}: more than {100 * EQUAL_SHARE:g} % apart. Raise allocation.max_rank so "
                "that it can spend them, or leave it out with --arms."
            )
    must = {arm.name for arm in plan.arms if arm.equal}
    equal = [result for result in done if result.trial.arm in must]
    if not equal:
        return
    least, most = (pick(equal, key=lambda result: result.parameters) for pick in (min, max))
    # Of adapters: a stem that trains beside them is alike in all, and would make a difference look small.
    adapters = min(result.adapter_parameters for result in equal)
    if most.parameters - least.parameters > EQUAL_SHARE * adapters:
        raise AdapterError(
            f"arms that only move ranks must train equally many parameters; {most.trial.arm} trains "
            f"{most.parameters:,} and {least.trial.arm} {least.parameters:,}, which is "
            f"{100 * (most.parameters - least.parameters) / adapters:.2f} % of their adapters apart and not at most "
            f"{100 * EQUAL_SHARE:g} %. Set adapter.budget or allocation.rank_step so that both can spend alike, or "
            "leave one of them out with --arms."
        )


def describe(
    plan: Plan, results: Mapping[Trial, TrialResult], *, status: Status, apart: bool, judged: bool
) -> dict[str, Any]:
    """The content of `ablation.json`, but for machine and commit."""
    outcomes = {trial: result.outcome for trial, result in results.items()}
    choices = {arm: choice for arm in plan.schedule.arms if (choice := choose(plan.schedule, arm, outcomes))}
    candidates = [_candidate(plan, arm, choice, results) for arm, choice in choices.items()]
    done = [result for result in results.values() if result.status == "finished"]
    score = (primary_score(done[0].scores["test"]) if done else None) or "score"
    tuned = plan.schedule.points > 1
    # Arms that have not had all their seeds are compared on those they had.
    comparisons = judge(candidates, plan.baseline, score=score, tuned=tuned) if judged else []
    claims = judge_claims(candidates, score=score, tuned=tuned) if judged else []
    edges = [arm for arm, choice in choices.items() if choice.at_edge and tuned]
    notes = [f"The best learning rate of {arm} is still the outermost of its grid." for arm in edges]
    commits = sorted({result.code.get("commit", "") for result in done})
    if len(commits) > 1:
        notes.append(f"The runs are of {len(commits)} commits of sonotune: {', '.join(each[:12] for each in commits)}.")
    notes += [f"{result.trial.name} failed: {result.error}" for result in results.values() if result.status == "failed"]
    return {
        "schema": SCHEMA,
        "name": plan.folder.name,
        "status": status,
        "words": list(plan.base),
        "baseline": plan.baseline,
        "score": score,
        "seeds": list(plan.schedule.seeds),
        "final_seeds": list(plan.schedule.final_seeds),
        "finalists": list(finalists(plan.schedule, outcomes)) if plan.schedule.final_seeds else [],
        "points": plan.schedule.points,
        "arms": [_arm_row(plan, arm, choices, results) for arm in plan.arms],
        "trials": [results[trial].to_json() for trial in results],
        "comparisons": comparisons,
        "claims": claims,
        "verdict": [row["sentence"] for row in (*comparisons, *claims)],
        "notes": notes,
        "seconds": math.fsum(result.seconds for result in results.values()),
        "own_processes": apart,
    }


def _candidate(plan: Plan, arm: str, choice: Choice, results: Mapping[Trial, TrialResult]) -> Candidate:
    seeds = (*plan.schedule.seeds, *plan.schedule.final_seeds)
    trials = [plan.schedule.trial(arm, choice.step, seed) for seed in seeds]
    runs = {trial.seed: results[trial] for trial in trials if trial in results}
    finished = {seed: result for seed, result in runs.items() if result.status == "finished"}
    parameters = next((result.parameters for result in finished.values()), 0)
    return Candidate(name=arm, runs={seed: result.folder for seed, result in finished.items()}, parameters=parameters)


def _arm_row(
    plan: Plan, arm: Arm, choices: Mapping[str, Choice], results: Mapping[Trial, TrialResult]
) -> dict[str, Any]:
    choice = choices.get(arm.name)
    candidate = _candidate(plan, arm.name, choice, results) if choice else None
    return {
        "name": arm.name,
        "about": arm.about,
        "words": list(arm.words),
        "equal": arm.equal,
        "centre": plan.schedule.centres[arm.name],
        "learning_rate": choice.rate if choice else None,
        "tried": list(choice.tried) if choice else [],
        "at_edge": plan.schedule.points > 1 and choice is not None and choice.at_edge,
        "seeds": list(candidate.runs) if candidate else [],
    }


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the directory for this process; the kernel lets go of it however the process ends."""
    make_folder(folder, choose="--dir")
    lock = os.open(folder / "ablation.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        # Not flock: a record lock is not inherited by loader processes, which may outlive a killed parent.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise RunDirectoryError(
            f"{folder} is in use by another process. Wait for that ablation, or choose another directory with --dir."
        ) from error
    clear_drafts(folder)
    try:
        yield
    finally:
        os.close(lock)


def exit_code(body: Mapping[str, Any]) -> int:
    """What `sonotune ablate` ends with: 0 done, 75 to be gone on with, else that of the first failed trial."""
    if body["status"] == "stopped":
        return Interrupted.exit_code
    return next((int(row["exit_code"]) for row in body["trials"] if row["status"] == "failed"), 0)
