"""`sonotune ablate`, `compare` and `sweep` with real runs of the packaged model."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from accelerate.state import AcceleratorState
from safetensors.numpy import load_file

import sonotune.cli.ablate  # noqa: F401  (registers its commands)
from sonotune.cli import main
from sonotune.runs import read_record
from sonotune.runs.record import is_locked

RATE_HZ = 16_000
TEXTS = ("one", "two", "three seven", "nine")

Command = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate remembers the precision of the first run of a process; tests use several."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Settings of two steps on tones in noise."""
    made = []
    for split, first, count in (("train", 0, 8), ("eval", 8, 6), ("test", 14, 12)):
        lines = []
        for index in range(first, first + count):
            rng = np.random.default_rng(index)
            time_S = np.arange(round(RATE_HZ * (0.5 + 0.05 * (index % 5)))) / RATE_HZ
            tone_S = 0.3 * np.sin(2 * np.pi * (200 + 150 * (index % 4)) * time_S)
            soundfile.write(tmp_path / f"{index}.wav", tone_S + 0.02 * rng.standard_normal(time_S.size), RATE_HZ)
            lines.append(
                {
                    "id": f"c{index}",
                    "path": f"{index}.wav",
                    "text": TEXTS[index % 4],
                    "speaker": f"{split}{index % 6}",
                    "language": "en",
                }
            )
        manifest = tmp_path / f"{split}.jsonl"
        manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        made.append(f"data.{split}={manifest}")
    return [
        "model=whisper_nano",
        *made,
        "adapter.rank=4",
        "training.max_steps=2",
        "training.batch_max_clips=4",
        "training.precision=fp32",
        "training.eval_steps=never",
        "data.loader_workers=0",
        "run.progress=false",
        "evaluation.bootstrap=100",
        "evaluation.max_new_tokens=4",
        "training.threads=1",
    ]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command with `--json`: exit code, the object on stdout, and stderr."""

    def go(*arguments: str) -> tuple[int, dict[str, Any], str]:
        with pytest.raises(SystemExit) as caught:
            main([*arguments, "--json"])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), json.loads(out), err

    return go


@pytest.mark.slow
def test_an_ablation_of_two_arms_and_two_rates(command: Command, words: list[str], tmp_path: Path):
    folder = tmp_path / "ablation"
    line = ["ablate", *words, "--arms", "uniform,inverse", "--seeds", "3", "--rates", "2", "--dir", str(folder)]
    code, planned, _ = command(*line, "--dry-run")
    assert code == 0
    assert planned["expected_runs"] == len(planned["runs"]) == 4
    assert planned["seconds"] is None
    assert not folder.exists()

    code, body, err = command(*line)
    assert code == 0, err
    assert body["status"] == "finished"
    assert body["ablation"] == str(folder)
    records = {trial["run"]: read_record(folder / "trials" / trial["run"]) for trial in body["trials"]}
    assert len(records) >= 4
    for trial in body["trials"]:
        record = records[trial["run"]]
        assert record.status == "finished"
        assert "before" not in record.scores
        assert record.config["training"]["learning_rate"] == trial["learning_rate"]
        assert trial["parameters"] == sum(row["trainable"] for row in record.model["components"].values())
        assert 0 < trial["adapter_parameters"] < trial["parameters"]
    by_arm = {trial["arm"]: trial["parameters"] for trial in body["trials"]}
    assert abs(by_arm["uniform"] - by_arm["inverse"]) <= 0.005 * by_arm["uniform"]
    ranks = {arm: read_record(folder / "trials" / f"{arm}/lr0.002-seed3").ranks for arm in ("uniform", "inverse")}
    assert set(ranks["uniform"].values()) == {4}
    assert len(set(ranks["inverse"].values())) > 1
    assert {row["arm"] for row in body["comparisons"]} == {"inverse"}
    for row in body["comparisons"]:
        assert row["count"] == 12
        assert row["seeds"] == [1, 1]
        assert row["low"] <= row["value"] <= row["high"]
    assert len(body["verdict"]) == 1
    report = (folder / "report.html").read_text("utf-8")
    assert json.loads((folder / "ablation.json").read_text("utf-8"))["trials"] == body["trials"]
    assert all(arm in report for arm in ("uniform", "inverse"))

    # The printed line, elsewhere, gives the same weights.
    first = body["trials"][0]
    again = shlex.split(first["line"])[1:]
    code, _, err = command(*again, f"run.dir={tmp_path / 'again'}")
    assert code == 0, err
    weights = [
        load_file(place / "adapter" / "adapter_model.safetensors")
        for place in (folder / "trials" / first["run"], tmp_path / "again")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(value, weights[1][name]) for name, value in weights[0].items())

    # Two of its runs are compared as any others.
    pair = [str(folder / "trials" / f"{arm}/lr0.002-seed3") for arm in ("uniform", "inverse")]
    code, compared, _ = command("compare", *pair)
    assert code == 0
    assert compared["difference"]["wer"]["count"] == 12
    assert {"value", "low", "high", "count", "unit", "p"} <= compared["difference"]["wer"].keys()
    assert compared["minimum_detectable"] > 0
    assert compared["slices"]
    code, compared, _ = command("compare", *pair, "--moment", "before")
    assert (code, compared["exit_code"]) == (2, 2)


def test_a_wrong_arm_ends_with_two(command: Command, words: list[str]):
    code, body, _ = command("ablate", *words, "--arms", "unifrom")
    assert (code, body["exit_code"]) == (2, 2)
    assert "did you mean 'uniform'" in body["error"]
    code, body, _ = command("ablate", *words, "--seeds", "a")
    assert code == 2
    assert "--seeds" in body["error"]


def test_the_plan_of_a_split_has_the_budget_of_the_baseline(command: Command, words: list[str], tmp_path: Path):
    code, body, err = command(
        "ablate", *words, "--arms", "uniform,encoder_only", "--dir", str(tmp_path / "a"), "--dry-run"
    )
    assert code == 0, err
    lines = [run["line"] for run in body["runs"] if run["run"].startswith("encoder_only")]
    budgets = {word for line in lines for word in shlex.split(line) if word.startswith("adapter.budget=")}
    assert len(budgets) == 1
    assert all("allocation.rank_step=1" in line for line in lines)  # so that no rest of it is left
    assert int(budgets.pop().partition("=")[2]) > 10_000


def sweep_process(line: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "SONOTUNE_PROGRESS": "never"}
    command = [sys.executable, "-m", "sonotune", "sweep", *line, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_a_sweep_killed_in_a_trial_goes_on_and_its_lines_repeat(command: Command, words: list[str], tmp_path: Path):
    folder = tmp_path / "sweep"
    own = [word for word in words if not word.startswith("adapter.rank=")]
    line = [*own, "adapter.rank=2,4", f"sweep.dir={folder}"]
    with sweep_process(line) as killed:
        until = time.monotonic() + 300
        while not list(folder.glob("trials/*/run.json")) and time.monotonic() < until:
            assert killed.poll() is None, killed.communicate()
            time.sleep(0.1)
        killed.kill()  # its run goes on by itself, and is waited for below
    [begun] = [path.parent for path in folder.glob("trials/*/run.json")]
    while is_locked(begun) and time.monotonic() < until:
        time.sleep(0.1)
    with sweep_process(line) as again:
        out, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    body = json.loads(out)
    assert body["status"] == "finished"
    assert [row["status"] for row in body["trials"]] == ["finished", "finished"]
    assert {row["values"]["adapter.rank"] for row in body["trials"]} == {"2", "4"}
    assert body["report"] == str(folder / "report.html")
    # data.test was kept from the trials, and the best was scored on it.
    assert all(set(read_record(folder / row["run"]).scores) == {"after"} for row in body["trials"])
    [tested] = body["winner"]["test"]
    assert tested["scores"]["wer"]["count"] == 12
    assert tested["line"].startswith("sonotune evaluate model=")
    assert not (folder / body["trials"][0]["run"] / "checkpoints").exists()

    first = body["trials"][0]
    code, _, err = command(*shlex.split(first["line"])[1:], f"run.dir={tmp_path / 'again'}")
    assert code == 0, err
    weights = [
        load_file(place / "adapter" / "adapter_model.safetensors")
        for place in (folder / first["run"], tmp_path / "again")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(value, weights[1][name]) for name, value in weights[0].items())

    code, rebuilt, _ = command("report", str(folder))
    assert (code, rebuilt["report"]) == (0, str(folder / "report.html"))


def test_the_plan_of_a_sweep_is_printed_and_nothing_made(command: Command, words: list[str], tmp_path: Path):
    line = [*words, "sweep=bits", f"sweep.dir={tmp_path / 'sweep'}"]
    code, planned, err = command("sweep", *line, "--dry-run")
    assert code == 0, err
    assert planned["method"] == "grid"
    assert [trial["values"]["bits"] for trial in planned["trials"]] == ["16", "8", "4", "4_single", "full"]
    assert not (tmp_path / "sweep").exists()


def test_a_wrong_sweep_ends_with_two(command: Command, words: list[str], tmp_path: Path):
    for wrong, says in [
        ([], "nothing varies"),
        (["training.learning_rate=1e-3:1e-5:log"], "a range rises"),
        (["training.learning_rate=0.1,7"], "training.learning_rate=7"),
        (["sweep=rnak"], "did you mean 'rank'"),
        (["training.schedule=[cosine,linear"], "bracket is not closed"),
    ]:
        code, body, _ = command("sweep", *words, *wrong)
        assert (code, body["exit_code"]) == (2, 2)
        assert says in body["error"]


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        '{"schema": 1}',
        '{"schema": 2, "line": "", "words": [], "axes": []}',
        '{"schema": 1, "line": "", "axes": []}',
        "[1]",
    ],
)
def test_a_damaged_record_of_a_sweep_is_said(command: Command, words: list[str], tmp_path: Path, damage: str):
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "sweep.json").write_text(damage)
    for line in (["sweep", *words, "training.schedule=cosine,linear", f"sweep.dir={folder}"], ["report", str(folder)]):
        code, body, _ = command(*line)
        assert code == 2
        assert "sweep.json" in body["error"]
