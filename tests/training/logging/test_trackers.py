"""Trackers are told what happens, and one that fails stops nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from sonotune.config.load import LoadedConfig
from sonotune.errors import ConfigError, MissingExtraError
from sonotune.runs import read_events
from sonotune.training.logging import trackers
from sonotune.training.logging.trackers import Trackers, check_trackers
from sonotune.training.run import run

Settings = Callable[..., LoadedConfig]
STAGES = (
    "training.stages=[{name: first, adapters: [decoder], max_steps: 2}, "
    "{name: second, weights: [encoder.norms], max_steps: 2}]"
)


class Notebook:
    """A tracker that writes down what it is told, and fails at one of its calls."""

    requires_logging_directory = True
    told: list[tuple[int, dict[str, Any]]]
    finished: bool
    fails_at: str = ""

    def __init__(self, name: str, place: str) -> None:
        type(self).told, type(self).finished = [], False
        assert Path(place).is_dir()

    def _act(self, what: str) -> None:
        if self.fails_at == what:
            raise OSError(f"no network for {what}")

    def start(self) -> None:
        self._act("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._act("configuration")
        assert values["training.learning_rate"] in (0.001, "auto")

    def log(self, values: dict[str, Any], step: int) -> None:
        self._act("log")
        self.told.append((step, values))

    def finish(self) -> None:
        type(self).finished = True
        self._act("finish")


class OfflineService:
    """What `accelerate` asks of the package wandb."""

    def __init__(self) -> None:
        self.begun: dict[str, Any] = {}
        self.told: list[tuple[int, dict[str, Any]]] = []
        self.mode = ""

    def init(self, **given: Any) -> OfflineService:
        self.begun, self.mode = given, os.environ.get("WANDB_MODE", "online")
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.told.append((-1, {}))


@pytest.mark.parametrize("mode", [None, "online"])
def test_wandb_is_offline_unless_told_otherwise_and_keeps_to_the_run(
    mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    PartialState(cpu=True)
    service = OfflineService()
    monkeypatch.setitem(sys.modules, "wandb", service)  # type: ignore[arg-type]
    monkeypatch.setenv("WANDB_MODE", mode or "")
    if mode is None:
        monkeypatch.delenv("WANDB_MODE")
    events: list[str] = []
    config = {"training": {"learning_rate": 0.001, "stages": []}}
    with Trackers(["wandb"], folder=tmp_path, config=config, event=lambda kind, **_: events.append(kind)) as told:
        told.stepped({"step": 3, "stage": "only", "loss": 0.5, "learning_rates": {"adapter": 0.1}})
    assert service.mode == (mode or "offline")
    assert service.begun["project"] == "sonotune"
    assert (service.begun["id"], service.begun["resume"]) == (tmp_path.name, "allow")  # a resumed run is the same one
    assert Path(service.begun["dir"]) == tmp_path / "trackers"
    assert service.begun["config"]["training.learning_rate"] == 0.001
    [(step, values), (end, _)] = service.told
    assert (step, end) == (3, -1)
    assert values["train/loss"] == 0.5
    assert values["train/learning_rates/adapter"] == 0.1
    assert not events


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> type[Notebook]:
    kind = type("Kind", (Notebook,), {})
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "json", kind)  # a name that is a module, as those of trackers are
    return kind


def test_a_tracker_sees_steps_stages_and_scores(settings: Settings, notebook: type[Notebook]):
    record, _ = run(settings("run.trackers=[json]", STAGES, "training.learning_rate=0.001"))
    steps = [(step, values) for step, values in notebook.told if "train/loss" in values]
    assert [step for step, _ in steps] == [1, 2, 3, 4]
    assert [values.get("train/stage") for _, values in steps] == ["first", None, "second", None]
    assert all(values["train/learning_rates/adapters"] > 0 for _, values in steps)
    moments = [name.partition("/")[0] for _, values in notebook.told for name in values]
    assert {"before", "train", "eval", "after"} <= set(moments)
    [after] = [values for _, values in notebook.told if "after/wer" in values]
    assert after["after/wer"] == record.scores["after"]["wer"]["value"]
    assert notebook.finished


@pytest.mark.parametrize("moment", ["start", "configuration", "log", "finish"])
def test_a_tracker_that_fails_is_left_out(
    moment: str, settings: Settings, notebook: type[Notebook], caplog: pytest.LogCaptureFixture
):
    notebook.fails_at = moment
    record, folder = run(settings("run.trackers=[json]", "training.max_steps=2"))
    assert record.status == "finished"
    [failed] = [event for event in read_events(folder / "events.jsonl") if event["kind"] == "tracker_failed"]
    assert failed["tracker"] == "json"
    assert f"no network for {moment}" in failed["problem"]
    assert "left out from here on" in caplog.text


def test_trackers_change_nothing(settings: Settings, notebook: type[Notebook], tmp_path: Path):
    with_one, without = settings("run.trackers=[json]"), settings()
    assert with_one.digest == without.digest


def test_unknown_and_missing_trackers_are_refused_first(settings: Settings, tmp_path: Path, monkeypatch):
    with pytest.raises(ConfigError, match="no tracker called 'tensorbord'"):
        run(settings("run.trackers=[tensorbord]"))
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sonotune\[wandb\]'"):
        check_trackers(["wandb"])
    with pytest.raises(MissingExtraError, match="pip install mlflow"):
        check_trackers(["mlflow"])
    assert not (tmp_path / "run").exists()


def test_tensorboard_has_what_it_was_told(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: list[Any] = []
    with Trackers(
        ["tensorboard"],
        folder=tmp_path,
        config={"a": {"b": [1, None]}, "c": 2.5},
        event=lambda *told, **fields: events.append((told, fields)),
    ) as made:
        for step in (1, 2):
            made.stepped({"step": step, "stage": "train", "loss": 1.0 / step, "learning_rates": {"adapters": 1e-3}})
    assert events == []
    found = EventAccumulator(str(tmp_path / "trackers" / tmp_path.name)).Reload()
    assert [(point.step, point.value) for point in found.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]
    assert found.Scalars("train/learning_rates/adapters")[0].value == pytest.approx(1e-3)
