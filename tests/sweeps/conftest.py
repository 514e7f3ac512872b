"""Trials of ablations and sweeps without training: what a run leaves behind, made up from its settings."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sonotune.config.load import load_run_config
from sonotune.errors import Interrupted
from sonotune.runs import atomic_write_json, atomic_write_text, record_to_json
from sonotune.runs.directory import _event_line
from sonotune.sweeps.ablation import Session
from sonotune.sweeps.arms import choose_arms
from sonotune.sweeps.plan import Plan, plan_ablation
from sonotune.sweeps.sweep import Worker
from sonotune.sweeps.sweep_plan import plan_sweep
from sonotune.sweeps.trials import Pruned
from sonotune.types import RunRecord

CLIPS, SPEAKERS, WORDS = 80, 8, 10


@dataclass(kw_only=True)
class FakeRuns:
    """Does what `sonotune train` does, without a model.

    Attributes:
        rate_of: (arm, learning rate, seed) -> error rate on the development clips.
        errors_of: (arm, seed, clip) -> wrong words of a test clip.
        parameters: Arm -> trainable parameters; others train 10 000.
        fail: Arm, or (arm, rate) -> what is raised instead.
        stop_at: Number of the call that is killed inside, leaving an unfinished run.
        calls: Trials run, as `arm/lrRATE-seedSEED`.
        resumed: Those of them that found an unfinished run of their own.
        data: Digest of the clips.
        commit: Of the code.
    """

    rate_of: Callable[[str, float, int], float] = lambda arm, rate, seed: 0.2
    errors_of: Callable[[str, int, int], int] = lambda arm, seed, clip: 2
    parameters: dict[str, int] = field(default_factory=dict)
    fail: dict[Any, Exception] = field(default_factory=dict)
    stop_at: int | None = None
    calls: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    data: str = "d" * 64
    commit: str = "c"

    def __call__(self, words: Sequence[str]) -> None:
        settings = load_run_config(words, require=("data.train", "data.test"))
        folder = Path(settings.config.run.dir)
        arm, rate, seed = folder.parent.name, settings.config.training.learning_rate, settings.config.training.seed
        self.calls.append(f"{arm}/{folder.name}")
        if (folder / "run.json").is_file():
            self.resumed.append(self.calls[-1])
        record = RunRecord(
            schema=1,
            run_id=folder.name,
            status="running",
            config=settings.plain(),
            config_origin={},
            config_digest=settings.digest,
            data_digest={"train": "t", "eval": "e", "test": self.data},
            code={"version": "0", "commit": self.commit},
            environment={},
            model={"components": {"encoder": {"parameters": 100_000, "trainable": self.parameters.get(arm, 10_000)}}},
            ranks={},
            findings=(),
            scores={},
            stages=(
                {
                    "groups": [
                        {"name": "adapters", "parameters": self.parameters.get(arm, 10_000) - 1000},
                        {"name": "weights", "parameters": 1000},
                    ]
                },
            ),
            choices={},
            peak_memory_bytes=10**9,
            seconds=60.0,
        )
        atomic_write_json(folder / "run.json", record_to_json(record))
        if len(self.calls) == self.stop_at:
            raise Interrupted("stopped by SIGTERM")
        for key in (arm, (arm, rate)):
            if key in self.fail:
                raise self.fail[key]
        score = {"low": 0.0, "high": 1.0, "count": CLIPS, "unit": "fraction"}
        tested = sum(self.errors_of(arm, seed, clip) for clip in range(CLIPS)) / (CLIPS * WORDS)
        scores = {
            "after": {"wer": score | {"value": self.rate_of(arm, rate, seed)}},
            "test": {"wer": score | {"value": tested}},
        }
        self._predict(folder, arm, seed)
        plain = record_to_json(record) | {"status": "finished", "scores": scores}
        atomic_write_json(folder / "run.json", plain)

    def _predict(self, folder: Path, arm: str, seed: int) -> None:
        said = " ".join(["word"] * WORDS)
        rows = [
            {
                "id": f"c{clip}",
                "scored_reference": said,
                "duration_s": 2.0,
                "speaker": f"s{clip % SPEAKERS}",
                "scored_hypothesis": " ".join(["word"] * (WORDS - self.errors_of(arm, seed, clip))),
            }
            for clip in range(CLIPS)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        atomic_write_text(folder / "predictions" / "test.jsonl", text)


@dataclass(kw_only=True)
class FakeTrials:
    """Does what a trial does, without a model.

    Attributes:
        error_rate: Configuration -> word error rate on the development clips.
        costs: Configuration -> trainable parameters, seconds, bytes.
        fail: Asked with the configuration; what it returns is raised.
        stop_at: Number of the call that is killed inside.
        steps: Evaluations before the end, each of which asks whether the trial is hopeless.
        wait_s: Seconds that a trial takes.
        calls: Names of the trials run.
    """

    error_rate: Callable[[Any], float] = lambda config: 0.3
    costs: Callable[[Any], tuple[int, float, int]] = lambda config: (10_000, 60.0, 2**30)
    fail: Callable[[Any], Exception | None] = lambda config: None
    stop_at: int | None = None
    steps: int = 0
    wait_s: float = 0.0
    data: str = "e" * 64
    calls: list[str] = field(default_factory=list)

    def __call__(self, words: Sequence[str], *, hopeless: Callable[[], bool] = lambda: False) -> None:
        settings = load_run_config(words, require=("data.train",))
        config = settings.config
        folder = Path(config.run.dir)
        self.calls.append(folder.name)
        parameters, seconds, peak = self.costs(config)
        record = RunRecord(
            schema=1,
            run_id=folder.name,
            status="running",
            config=settings.plain(),
            config_origin={},
            config_digest=settings.digest,
            data_digest={"train": "t", "eval": self.data},
            code={"version": "0", "commit": "c"},
            environment={},
            model={"components": {"encoder": {"parameters": 100_000, "trainable": parameters}}},
            ranks={},
            findings=(),
            scores={},
            stages=({"groups": [{"name": "adapters", "parameters": parameters}]},),
            choices={},
            peak_memory_bytes=peak,
            seconds=seconds,
        )
        atomic_write_json(folder / "run.json", record_to_json(record))
        if len(self.calls) == self.stop_at:
            raise Interrupted("stopped by SIGTERM")
        if (error := self.fail(config)) is not None:
            raise error
        rate = self.error_rate(config)
        for step in range(1, self.steps + 1):
            event = {"kind": "evaluation", "step": step, "scores": {"wer": _score(rate + 0.5 / step)}}
            with (folder / "events.jsonl").open("ab") as log:
                log.write(_event_line(event))
            if hopeless():
                raise Pruned("behind the others")
        time.sleep(self.wait_s)
        for kind in ("checkpoints/step-000001", "adapter"):
            atomic_write_text(folder / kind / "weights", "w")
        self._predict(folder, rate)
        scores = {"after": {"wer": _score(rate), "cer": _score(rate / 2) | {"role": "plain"}}}
        atomic_write_json(folder / "run.json", record_to_json(record) | {"status": "finished", "scores": scores})

    def _predict(self, folder: Path, rate: float) -> None:
        rows = []
        for clip in range(CLIPS // 2):
            wrong = round(rate * WORDS * (clip + 1)) - round(rate * WORDS * clip)
            said = ["word"] * WORDS
            hypothesis = said[: WORDS - min(WORDS, wrong)]
            rows.append(
                {
                    "id": f"c{clip}",
                    "scored_reference": " ".join(said),
                    "scored_hypothesis": " ".join(hypothesis),
                    "duration_s": 2.0,
                    "speaker": f"s{clip % 8}",
                }
            )
        atomic_write_text(folder / "predictions" / "after.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _score(value: float) -> dict[str, Any]:
    return {
        "value": value,
        "low": max(0.0, value - 0.04),
        "high": value + 0.05,
        "count": CLIPS // 2,
        "unit": "fraction",
        "better": "lower",
        "title": "WER",
        "role": "primary",
    }


@pytest.fixture
def base(tmp_path: Path) -> list[str]:
    """Settings that all runs share; of the clips they name only the files are there."""
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.jsonl").write_text(name, "utf-8")
    return [
        "model=whisper_nano",
        f"data.train={tmp_path}/train.jsonl",
        f"data.eval={tmp_path}/dev.jsonl",
        f"data.test={tmp_path}/test.jsonl",
        "training.learning_rate=1e-3",
        "adapter.rank=4",
    ]


@pytest.fixture
def plan(base: list[str], tmp_path: Path) -> Callable[..., Plan]:
    """Names of arms -> a plan in `tmp_path / "ablation"`."""

    def build(arms: str = "uniform,entropy_half", *, own: Sequence[str] = (), **changes: Any) -> Plan:
        options = {"seeds": (0, 1), "folder": tmp_path / "ablation"} | changes
        return plan_ablation(base, choose_arms(arms, own), **options)

    return build


@pytest.fixture
def sit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs a session of a plan with fake runs; the report, which takes most of the time, has tests of its own."""
    monkeypatch.setattr("sonotune.reports.ablation.build_ablation_html", lambda body: body["name"])

    def go(plan: Plan, runs: FakeRuns, **changes: Any) -> dict[str, Any]:
        return Session(plan=plan, run=runs, **changes).go()

    return go


@pytest.fixture
def fake() -> type[FakeRuns]:
    """Makes fake runs."""
    return FakeRuns


@pytest.fixture
def trials() -> type[FakeTrials]:
    """Makes runners of made-up trials."""
    return FakeTrials


@pytest.fixture
def line(base: list[str], tmp_path: Path) -> list[str]:
    """The line of a sweep in `tmp_path / "sweep"`, without axes and test clips."""
    own = ("training.learning_rate=", "adapter.rank=", "data.test=")
    return [*(word for word in base if not word.startswith(own)), f"sweep.dir={tmp_path / 'sweep'}"]


@pytest.fixture
def work(line: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs a worker of a sweep with made-up trials; the report has tests of its own."""
    monkeypatch.setattr("sonotune.reports.sweep.build_sweep_html", lambda body: body["name"])

    def go(runs: FakeTrials, *words: str, **changes: Any) -> dict[str, Any]:
        return Worker(plan=plan_sweep([*line, *words]), run=runs, **changes).go()

    return go
