"""Trials of a sweep without training: a runner that leaves what `sonotune train` would."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sonotune.config.load import load_run_config
from sonotune.errors import Interrupted
from sonotune.runs import atomic_write_json, atomic_write_text, record_to_json
from sonotune.runs.directory import _event_line
from sonotune.sweeps.trials import Pruned
from sonotune.types import RunRecord

CLIPS, WORDS = 40, 10


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
        for clip in range(CLIPS):
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
        "count": CLIPS,
        "unit": "fraction",
        "better": "lower",
        "title": "WER",
        "role": "primary",
    }
