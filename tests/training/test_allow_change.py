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
    assert changed["what"] == {"training.max_epochs": {"was": 1, "now": 2}}
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


def test_other_batches_begin_the_epoch_anew_and_what_is_left_is_counted_from_there(settings: Settings):
    stop(settings(), 7)  # two steps into the second of two epochs
    folder = settings().run_dir()
    changed = settings("training.batch_max_clips=2", "run.allow_change=training.batch_max_clips")
    with pytest.raises(Interrupted):
        run(changed, listeners=[StopAfter(11)])
    record, _ = run(changed)
    assert record.status == "finished"
    taken = events(folder, "step")
    assert [event["clips"] for event in taken] == [*[4] * 7, *[2] * 10]
    assert {event["epoch"] for event in taken[7:16]} == {1}


def test_stages_are_as_long_as_they_say_in_the_new_batches(settings: Settings):
    stages = (
        "training.stages=[{name: first, adapters: all, max_epochs: 2}, {name: second, adapters: all, max_epochs: 1}]"
    )
    stop(settings(stages), 6)
    record, folder = run(settings(stages, "training.batch_max_clips=10", "run.allow_change=training.batch_max_clips"))
    assert record.status == "finished"
    made = [event["stage"] for event in events(folder, "step")]
    assert made == [*["first"] * (6 + 2), *["second"] * 2]


def test_other_clips_are_refused_until_they_may_change(settings: Settings, clips: Callable[..., Path], tmp_path: Path):
    manifest = clips(tmp_path / "clips", "train", 8)
    words = (f"data.train={manifest}", "training.save_steps=1", "training.batch_max_clips=2")
    stop(settings(*words), 5)
    folder = settings().run_dir()
    before = (folder / "run.json").read_bytes()
    clips(tmp_path / "clips", "train", 12)
    with pytest.raises(CheckpointError, match=r"training data was .*run\.allow_change \(data\.train"):
        run(settings(*words))
    assert (folder / "run.json").read_bytes() == before  # the run was not touched, and is not called failed
    record, _ = run(settings(*words, "run.allow_change=data.train"))
    assert record.status == "finished"
    assert len(steps(folder)) == 5 + 6
    now = record.data_digest["train"]
    assert now != json.loads(before)["data_digest"]["train"]
    [changed] = events(folder, "changed")
    assert changed["what"]["training data"]["now"] == now
    assert "training data was" in record.choices["run.allow_change"]


def test_a_finished_run_takes_other_clips_under_the_same_name_and_no_fewer(
    settings: Settings, clips: Callable[..., Path], tmp_path: Path
):
    manifest = clips(tmp_path / "clips", "train", 8)
    words = (f"data.train={manifest}", "training.max_epochs=1", "run.allow_change=data.train,training.max_epochs")
    _, folder = run(settings(*words))
    before = (folder / "run.json").read_bytes()
    with pytest.raises(RunDirectoryError, match="finished run of these settings and these clips"):
        run(settings(*words))
    clips(tmp_path / "clips", "train", 4)
    with pytest.raises(ConfigError, match="nothing is left to train: 2 steps are made"):
        run(settings(*words))
    assert (folder / "run.json").read_bytes() == before
    clips(tmp_path / "clips", "train", 12)
    record, _ = run(settings(*words, "training.max_epochs=2"))
    assert len(steps(folder)) == 2 + 3
    assert set(record.scores) == {"before", "after"}


def test_patience_that_ran_out_is_named(settings: Settings):
    words = ("training.max_epochs=4", "training.patience=1", "training.learning_rate=1e-9")
    _, folder = run(settings(*words))
    assert len(steps(folder)) < 20
    with pytest.raises(ConfigError, match=r"nothing is left to train.*training\.patience where that ran out"):
        run(settings(*words, "training.max_epochs=9", "run.allow_change=training.max_epochs"))
    more = ("training.patience=3", "run.allow_change=training.max_epochs,training.patience", "training.max_epochs=5")
    record, _ = run(settings(*words[2:], *more))
    assert record.status == "finished"


def test_what_was_changed_stays_in_the_record(settings: Settings):
    stop(settings("training.learning_rate=1e-3"), 2)
    first = ("training.learning_rate=2e-3", "run.allow_change=training.learning_rate")
    stop(settings(*first), 4)
    stop(settings(*first), 6)
    second = ("training.learning_rate=2e-3", "training.max_epochs=3", "run.allow_change=training.max_epochs")
    record, _ = run(settings(*second))
    assert record.choices["run.allow_change"] == (
        "from step 2 on, training.learning_rate was 0.001 and is 0.002; "
        "from step 6 on, training.max_epochs was 2 and is 3"
    )


def test_a_setting_that_looks_like_a_secret_changes_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    _, folder = run(settings("training.max_epochs=1"))
    monkeypatch.setenv("MY_KEY", folder.name)
    with pytest.raises(RunDirectoryError, match="finished run"):
        run(settings("training.max_epochs=1"))


@pytest.mark.parametrize(
    "name",
    [
        "adapter.rank",
        "training.stages",
        "training.optimizer",
        "model.checkpoint",
        "nil",
        "training.nil",
        "training.seed",
        "data",
        "data.eval",
        "evaluation.beam_size",
    ],
)
def test_what_says_what_a_run_is_cannot_change(settings: Settings, name: str):
    with pytest.raises(ConfigError, match=r"run\.allow_change names"):
        settings(f"run.allow_change={name}")


def test_a_misspelt_name_is_guessed(settings: Settings):
    with pytest.raises(ConfigError, match=r"did you mean 'training\.max_steps'"):
        settings("run.allow_change=training.max_step")


def test_ranks_that_move_with_the_steps_keep_their_steps(settings: Settings):
    with pytest.raises(ConfigError, match="ranks move at shares of the steps"):
        settings("reallocation.at=[0.5]", "run.allow_change=training.max_epochs")
    settings("reallocation.at=[0.5]", "run.allow_change=training.learning_rate")


def test_a_change_needs_the_directory_of_the_run(settings: Settings):
    with pytest.raises(ConfigError, match=r"run\.dir is auto"):
        settings("run.allow_change=training.max_epochs", "run.dir=auto")
