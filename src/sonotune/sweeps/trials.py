"""One run of an ablation: how it is started, and what is read of it when it is done."""

from __future__ import annotations

import gc
import logging
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final, Literal

from sonotune.config.load import load_run_config
from sonotune.errors import Interrupted, RunDirectoryError, SonotuneError, out_of_memory
from sonotune.metrics.scores import better_sign, primary_score
from sonotune.progress import note, phase
from sonotune.runs import read_record
from sonotune.sweeps.schedule import Trial
from sonotune.types import RunRecord

logger = logging.getLogger(__name__)

Runner = Callable[[Sequence[str]], None]
"""Does what `sonotune train WORDS` does; what it leaves is in the run's directory."""

REQUIRED = ("data.train", "data.eval", "data.test")
"""Without clips of its own for evaluation, each seed would split off others."""
NUMERIC: Final = 4
"""Exit code of a failure that the same line would only repeat."""
_OUT_OF_MEMORY = 5
_LOOK_EVERY_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """What is kept of a trial.

    Attributes:
        trial: Which one.
        words: Its settings.
        folder: Its run directory.
        status: `finished`, or `failed` with `error` and `exit_code`.
        score: That decides, on the development clips; None for a failed trial.
        sign: What makes the better of two such scores the smaller.
        scores: Moment -> score name -> score in JSON form.
        parameters: Trainable parameters.
        adapter_parameters: Those in adapters when training began; AdaLoRA prunes some away until the end.
        seconds: Wall time of the run, calibration and scoring included.
        peak_bytes: Peak memory of the process it ran in.
        data: Split -> digest.
        code: Version, commit and state of the tree.
        error: What went wrong.
        exit_code: What `sonotune train` ends with.
    """

    trial: Trial
    words: tuple[str, ...]
    folder: Path
    status: Literal["finished", "failed"]
    score: float | None = None
    sign: int = 1
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]]
    parameters: int = 0
    adapter_parameters: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    data: Mapping[str, str]
    code: Mapping[str, str]
    error: str = ""
    exit_code: int = 0

    @property
    def outcome(self) -> float | None:
        """The score turned so that lower is better."""
        return None if self.score is None else self.sign * self.score

    def to_json(self) -> dict[str, Any]:
        """The form kept in `ablation.json`."""
        return {
            "arm": self.trial.arm,
            "step": self.trial.step,
            "learning_rate": self.trial.rate,
            "seed": self.trial.seed,
            "status": self.status,
            "run": self.trial.name,
            "line": train_line(self.words),
            "score": self.score,
            "scores": self.scores,
            "parameters": self.parameters,
            "adapter_parameters": self.adapter_parameters,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "data": dict(self.data),
            "code": dict(self.code),
            "error": self.error,
            "exit_code": self.exit_code,
        }


def train_line(words: Sequence[str]) -> str:
    """The command that repeats a trial, in a directory of its own."""
    return f"sonotune train {shlex.join(word for word in words if not word.startswith('run.dir='))}"


def read_trial(trial: Trial, words: Sequence[str], folder: Path) -> TrialResult | None:
    """What a finished trial left; None where there is none or it did not finish.

    Raises:
        ConfigError: A word is wrong.
        RunDirectoryError: The folder holds a run of other settings, or one without the score that is needed.
    """
    if not (folder / "run.json").is_file():
        return None
    record = read_record(folder)
    if record.config_digest != load_run_config(words, require=REQUIRED).digest and record.status != "failed":
        raise RunDirectoryError(
            f"{folder} holds a run of other settings ({record.status}). An ablation is gone on with by the same line; "
            "choose another directory with --dir, or remove this run."
        )
    return _of_record(trial, words, folder, record) if record.status == "finished" else None


def _of_record(trial: Trial, words: Sequence[str], folder: Path, record: RunRecord) -> TrialResult:
    found = record.scores.get("after", {})
    name = primary_score(found)
    if name is None or name not in record.scores.get("test", {}):
        raise RunDirectoryError(
            f"{folder} has no score of both data.eval and data.test, which an ablation compares; "
            f"found {', '.join(record.scores) or 'no scores'}."
        )
    measured = costs(record)
    return TrialResult(
        trial=trial,
        words=tuple(words),
        folder=folder,
        status="finished",
        score=float(found[name]["value"]),
        sign=better_sign(found[name].get("better", "lower")),
        scores=record.scores,
        parameters=int(measured["parameters"]),
        adapter_parameters=int(measured["adapter_parameters"]),
        seconds=measured["seconds"],
        peak_bytes=int(measured["peak_bytes"]),
        data=record.data_digest,
        code=record.code,
    )


def costs(record: RunRecord) -> dict[str, float]:
    """What a run cost: trainable `parameters`, those in adapters when training began, `seconds` and `peak_bytes`."""
    components = record.model.get("components", {})
    groups = [group for stage in record.stages for group in stage.get("groups", ())]
    return {
        "parameters": sum(row["trainable"] for row in components.values()),
        "adapter_parameters": sum(group["parameters"] for group in groups if group["name"].startswith("adapters")),
        "seconds": record.seconds,
        "peak_bytes": record.peak_memory_bytes,
    }


def run_trial(trial: Trial, words: Sequence[str], folder: Path, run: Runner) -> TrialResult:
    """Run a trial, or go on with it; what it raises is kept as its result, so that the others go on.

    Raises:
        Interrupted: It was stopped; its state is saved.
    """
    started = time.monotonic()
    try:
        run(words)
        result = read_trial(trial, words, folder)
        if result is None:
            raise RunDirectoryError(f"{folder} holds no finished run although training ended without an error.")
    except Interrupted:
        raise
    except Exception as error:  # one bad trial must not cost the others
        logger.warning("trial %s failed: %s", trial.name, error, exc_info=not isinstance(error, SonotuneError))
        failure = TrialResult(
            trial=trial,
            words=tuple(words),
            folder=folder,
            status="failed",
            scores={},
            data={},
            code={},
            seconds=time.monotonic() - started,
            error=f"{type(error).__name__}: {error}",
            exit_code=exit_code_of(error),
        )
    else:
        return result
    # Outside the handler the traceback, and with it the model of the failed run, is let go.
    gc.collect()
    return failure


def exit_code_of(error: Exception) -> int:
    """What `sonotune train` ends with for an error."""
    if isinstance(error, SonotuneError):
        return error.exit_code
    return _OUT_OF_MEMORY if out_of_memory(error) else 1


def fails_again(row: Mapping[str, Any]) -> bool:
    """Whether a failed trial of an earlier session need not be tried again."""
    return row.get("status") == "failed" and row.get("exit_code") == NUMERIC


def failed_earlier(trial: Trial, row: Mapping[str, Any], words: Sequence[str], folder: Path) -> TrialResult:
    """A failure that an earlier session kept."""
    result = TrialResult(
        trial=trial,
        words=tuple(words),
        folder=folder,
        status="failed",
        scores={},
        data={},
        code={},
        error=str(row.get("error", "")),
        exit_code=int(row["exit_code"]),
    )
    return replace(result, seconds=float(row.get("seconds", 0.0)))


# --- runners -----------------------------------------------------------------------------------------


def run_here(words: Sequence[str]) -> None:
    """Train in this process, which has paid for its imports already."""
    with phase("starting"):
        from sonotune.training.logging.progress import TrainingProgress  # noqa: PLC0415
        from sonotune.training.run import run  # noqa: PLC0415  (torch, only when run)
    with TrainingProgress() as training:
        run(load_run_config(words, require=REQUIRED), listeners=[training])
    gc.collect()


def run_apart(words: Sequence[str], *, hopeless: Callable[[], bool] = lambda: False) -> None:
    """Train in a process of its own, whose peak memory is then that of this run alone.

    Args:
        words: Its settings.
        hopeless: Asked while it trains; once it says yes, the process is asked to stop.

    Raises:
        Interrupted: It, or this process, was asked to stop; its state is saved.
        Pruned: It was stopped because it is hopeless.
        TrialProcessError: It failed; carries its exit code.
    """
    from sonotune.training.runtime import stop_on_signals  # noqa: PLC0415  (the package imports torch)

    command = [sys.executable, "-m", "sonotune", "train", *words]
    with (
        stop_on_signals() as stop,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child,  # noqa: S603  (our own command)
    ):
        said: list[str] = []
        relay = threading.Thread(target=_relay, args=(child.stderr, said))
        relay.start()
        asked = pruned = False
        while child.poll() is None:
            time.sleep(_LOOK_EVERY_S)
            if not asked and (stop.requested or (pruned := hopeless())):
                asked = True
                child.terminate()
        relay.join()
    if pruned and child.returncode == Interrupted.exit_code:
        raise Pruned("stopped early, for its scores are behind those of the other trials at the same step.")
    if child.returncode == Interrupted.exit_code or stop.requested:
        raise Interrupted(f"stopped by {stop.reason or 'a signal'}; run the same line again to go on.")
    if child.returncode != 0:
        raise TrialProcessError(child.returncode, error_in("".join(said)))


def _relay(stream: IO[str] | None, said: list[str]) -> None:
    """Show what a process says as it comes, and keep it."""
    for line in stream or ():
        note(line.rstrip("\n"))
        said.append(line)


def error_in(said: str) -> str:
    """The end of what a process said: its message or traceback, without what it showed of its progress."""
    begins = max(said.rfind(head) for head in ("\nsonotune: ", "\nTraceback "))
    return said[max(begins, 0) :].strip()[-2000:]


class TrialProcessError(SonotuneError):
    """A trial in a process of its own failed.

    Args:
        exit_code: What it ended with.
        message: The end of what it said.
    """

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Pruned(SonotuneError):  # noqa: N818  (a state, not a fault)
    """A trial was stopped early because others are better."""
