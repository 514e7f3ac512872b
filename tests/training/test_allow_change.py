"""A run that goes on with other settings or other clips, where it is told that they may change."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sonotune.config.load import LoadedConfig
from sonotune.errors import CheckpointError, ConfigError, Interrupted, RunDirectoryError
from sonotune.runs import read_events, read_record
from sonotune.training.run import run

Settings = Callable[..., LoadedConfig]


class StopAfter:
    """Sends this process a signal after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def started(self, total_steps: int, step: int) -> None:
        pass

    def stepped(self, values: Mapping[str, Any]) -> None:
        if values["step"] == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def evaluated(self, step: int, scores: Mapping[str, Any]) -> None:
        pass


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder / "events.jsonl") if event["kind"] == kind]


def steps(folder: Path) -> list[int]:
    return [event["step"] for event in events(folder, "step")]


def stop(settings: LoadedConfig, step: int) -> None:
    with pytest.raises(Interrupted):
        run(settings, listeners=[StopAfter(step)])


def test_a_finished_run_is_made_longer(settings: Settings):
    first, folder = run(settings("training.max_epochs=1"))
    longer = ("training.max_epochs=2", "run.allow_change=training.max_epochs")
    record, again = run(settings(*longer))
    assert again == folder
    assert steps(folder) == list(range(1, 11))
    assert record.config["training"]["max_epochs"] == 2
    assert record.seconds > first.seconds
    (changed,) = events(folder, "changed")
    assert changed["step"] == 5
    assert changed["settings"] == {"training.max_epochs": {"was": 1, "now": 2}}
    assert record.choices["run.allow_change"] == "from step 5 on, training.max_epochs was 1 and is 2"
    assert {event["step"] for event in events(folder, "evaluation")} == {5, 10}
    with pytest.raises(RunDirectoryError, match="finished run of these settings"):  # the change was made
        run(settings(*longer))


def test_a_crash_right_after_a_change_goes_on_with_the_same_line(settings: Settings):
    class Crash(StopAfter):
        def stepped(self, values: Mapping[str, Any]) -> None:
            raise RuntimeError("no checkpoint knows of the change yet")

    stop(settings(), 2)
    changed = settings("training.learning_rate=2e-3", "run.allow_change=training.learning_rate")
    with pytest.raises(RuntimeError, match="no checkpoint"):
        run(changed, listeners=[Crash(3)])
    record, folder = run(changed)
    assert record.status == "finished"
    assert steps(folder) == list(range(1, 11))


def test_only_what_is_named_may_change(settings: Settings):
    stop(settings(), 2)
    before = read_record(settings().run_dir())
    with pytest.raises(RunDirectoryError) as caught:
        run(settings("training.learning_rate=2e-3", "adapter.rank=4", "run.allow_change=training.learning_rate"))
    assert "adapter.rank: was 8, now 4" in str(caught.value)
    assert "learning_rate: was" not in str(caught.value)
    assert "run.allow_change" in str(caught.value)
    assert read_record(settings().run_dir()) == before


def test_other_batches_begin_the_epoch_anew(settings: Settings):
    stop(settings(), 2)
    folder = settings().run_dir()
    record, _ = run(settings("training.batch_max_clips=2", "run.allow_change=training.batch_max_clips"))
    assert record.status == "finished"
    taken = events(folder, "step")
    assert [event["clips"] for event in taken] == [4, 4, *[2] * (len(taken) - 2)]
    assert [event["epoch"] for event in taken][2:4] == [1, 1]  # of the second epoch: the first was left
    assert len(taken) == 20  # as many as two epochs of the new batches


def test_other_clips_are_refused_until_they_may_change(settings: Settings, clips: Callable[..., Path], tmp_path: Path):
    manifest = clips(tmp_path / "clips", "train", 8)
    words = (f"data.train={manifest}", "training.save_steps=1", "training.batch_max_clips=2")
    stop(settings(*words), 3)
    folder = settings().run_dir()
    before = (folder / "run.json").read_bytes()
    clips(tmp_path / "clips", "train", 12)
    with pytest.raises(CheckpointError, match=r"training data was .*run\.allow_change=data\.train"):
        run(settings(*words))
    assert (folder / "run.json").read_bytes() == before  # the run was not touched, and is not called failed
    record, _ = run(settings(*words, "run.allow_change=data.train"))
    assert record.status == "finished"
    assert len(steps(folder)) == 2 * 6
    assert record.data_digest["train"] != json.loads(before)["data_digest"]["train"]


def test_other_development_clips_make_earlier_scores_count_no_more(
    settings: Settings, clips: Callable[..., Path], tmp_path: Path
):
    run(settings("training.max_epochs=1"))
    held_out = clips(tmp_path / "clips", "eval", 5, first=30, speaker="e")
    record, folder = run(
        settings("training.max_epochs=2", f"data.eval={held_out}", "run.allow_change=data.eval,training.max_epochs")
    )
    first, second = events(folder, "evaluation")
    assert first["best"]
    assert second["best"]
    assert record.status == "finished"


@pytest.mark.parametrize("name", ["adapter.rank", "training.stages", "training.optimizer", "model.checkpoint", "nil",
                                  "training.nil", "training.seed", "data"])  # fmt: skip
def test_what_says_what_a_run_is_cannot_change(settings: Settings, name: str):
    with pytest.raises(ConfigError, match=r"run\.allow_change names"):
        settings(f"run.allow_change={name}")


def test_a_change_needs_the_directory_of_the_run(settings: Settings):
    with pytest.raises(ConfigError, match=r"run\.dir is auto"):
        settings("run.allow_change=training.max_epochs", "run.dir=auto")
