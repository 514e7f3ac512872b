"""Trials without training: what a run leaves behind, made up from its settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sonotune.config.load import load_run_config
from sonotune.errors import Interrupted
from sonotune.runs import atomic_write_json, atomic_write_text, record_to_json
from sonotune.sweeps.ablation import Session
from sonotune.sweeps.arms import choose_arms
from sonotune.sweeps.plan import Plan, plan_ablation
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
