"""A few steps of published Whisper-base on real recordings: scored, trained, killed, resumed, exported and served."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sonotune.data.chunking import join
from sonotune.data.importers import load_fsdd
from sonotune.data.manifest import write_manifest

pytestmark = pytest.mark.realdata

STEPS, SAVED_AT = 6, 3
WAIT_S = 300


@pytest.fixture(scope="module")
def strings(fsdd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.jsonl and eval.jsonl: short strings of digits, of other speakers in each."""
    folder = tmp_path_factory.mktemp("strings")
    clips = load_fsdd(fsdd)
    for split, speakers, count in (("train", ("jackson", "nicolas"), 4 * STEPS), ("eval", ("theo",), 10)):
        own = [replace(clip, language="en") for clip in clips if clip.speaker in speakers]
        made = join(own, folder / split, max_duration_s=2.5, limit=count, seed=1)
        write_manifest(folder / f"{split}.jsonl", made)
    return folder


def line(command: str, words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "sonotune", command, *words]


def run(command: str, *words: str) -> Any:
    done = subprocess.run(
        [*line(command, words), "--json"], capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def training(whisper_base: Path, strings: Path) -> list[str]:
    return [
        f"model.checkpoint={whisper_base}",
        f"data.train={strings / 'train.jsonl'}",
        f"data.eval={strings / 'eval.jsonl'}",
        "training.max_epochs=1",
        "training.batch_max_clips=4",
        "training.batch_seconds=1000",
        f"training.save_steps={SAVED_AT}",
        "training.eval_steps=never",
        "evaluation.zero_shot=false",
        "evaluation.bootstrap=100",
        "run.progress=false",
    ]


@pytest.fixture(scope="module")
def trained(training: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    place = tmp_path_factory.mktemp("runs") / "whole"
    return place, run("train", *training, f"run.dir={place}")


@pytest.fixture(scope="module")
def untuned(whisper_base: Path, strings: Path) -> Any:
    words = [f"model.checkpoint={whisper_base}", f"data.test={strings / 'eval.jsonl'}", "evaluation.bootstrap=100"]
    return run("evaluate", *words, "model.context=full")


def test_untuned_weights_do_not_run_away_over_their_whole_window(untuned: Any) -> None:
    assert untuned["scores"]["wer"]["value"] < 1.5
    assert untuned["clips"] == 10


def test_a_few_steps_are_worth_something(trained: tuple[Path, Any], untuned: Any) -> None:
    _, result = trained
    assert result["status"] == "finished"
    assert result["scores"]["wer"]["value"] < untuned["scores"]["wer"]["value"]


def test_the_export_is_served_as_it_was_scored(trained: tuple[Path, Any], tmp_path: Path) -> None:
    place, _ = trained
    found = run("export", str(place), str(tmp_path / "export"), "--strict", "--parity-clips", "10")["parity"]
    assert found["clips"] == 10
    assert found["context"] == "thinned"
    assert found["tool"].startswith("transformers")
    assert abs(found["difference"]["wer"]["value"]) <= 0.01
    assert json.loads((tmp_path / "export" / "parity.json").read_text("utf-8"))["equal"] == found["equal"]


def test_a_killed_run_goes_on_to_the_same_bits(training: list[str], trained: tuple[Path, Any], tmp_path: Path) -> None:
    whole, _ = trained
    place = tmp_path / "killed"
    process = subprocess.Popen(
        line("train", [*training, f"run.dir={place}"]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    ends = time.monotonic() + WAIT_S
    while not (place / "checkpoints" / f"step-{SAVED_AT:06d}").is_dir():
        assert process.poll() is None, "the run ended before it saved"
        assert time.monotonic() < ends, "nothing was saved"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run("train", *training, f"run.dir={place}")
    name = "adapter/adapter_model.safetensors"
    assert (place / name).read_bytes() == (whole / name).read_bytes()
