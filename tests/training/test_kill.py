"""Processes that are killed, stopped and started twice, as they would be by a user or a scheduler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sonotune.runs import read_events, read_record
from sonotune.training import checkpoint

pytestmark = pytest.mark.slow

STEPS = 40
WAIT_S = 240
KILLS = int(os.environ.get("SONOTUNE_KILLS", "2"))  # of the run with everything; ten take some minutes
AUGMENTED = (
    "augmentation.speed_probability=0.5",
    "augmentation.gain_probability=0.5",
    "augmentation.noise_probability=0.5",
    "augmentation.pad_probability=0.5",
    "augmentation.frequency_masks=1",
    "augmentation.time_masks=1",
    "augmentation.time_warp_frames=5",
    "adapter.dropout=0.1",
    "model.dropout=0.1",
)

EVERYTHING = (
    "training.stages=[{name: first, adapters: [decoder], max_steps: 12}, {name: second, weights: [encoder.norms], "
    "adapters: all, max_steps: 14, learning_rates: {encoder.norms: 0.5}, dip: 0.5}, "
    "{name: third, weights: [encoder.norms], adapters: [encoder], max_steps: 14}]",
    "training.layer_decay=0.9",
    "adapter.allocator=entropy",
    "allocation.clips=8",
    "regularization.entropy=spread",
    "reallocation.at=[0.4,0.7]",
    "quantization.bits=4",
    "training.average_checkpoints=3",
    "training.memory_limit_bytes=700000",
    "evaluation.entropy_clips=4",
    "training.accumulation_steps=2",
)

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tiny_model: Path, corpus: Path) -> Iterator[Start]:
    """Starts `python -m sonotune train` on the small corpus in a folder; whatever still runs is ended."""
    processes = []

    def begin(folder: Path, *words: str) -> subprocess.Popen[str]:
        line = [
            sys.executable,
            "-m",
            "sonotune",
            "train",
            f"model={tiny_model}",
            f"data.train={corpus / 'train.jsonl'}",
            f"data.eval={corpus / 'eval.jsonl'}",
            f"run.dir={folder}",
            "training.batch_max_clips=4",
            *([] if "training.stages" in "".join(words) else [f"training.max_epochs={STEPS // 5}"]),
            "training.eval_steps=20" if "training.stages" not in "".join(words) else "training.eval_steps=5",
            "training.threads=1",
            "evaluation.bootstrap=100",
            "evaluation.max_new_tokens=4",
            *AUGMENTED,
            *words,
        ]
        process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=WAIT_S)
    return process.returncode, said


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool], *, pause_s: float = 0.001) -> None:
    """Look closely until something is so; a run that ends first is a failure."""
    ends = time.monotonic() + WAIT_S
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < ends, "nothing happened"
        time.sleep(pause_s)


def newest_step(folder: Path) -> int:
    return max((int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*")), default=0)


def steps_of(folder: Path) -> list[int]:
    return [event["step"] for event in read_events(folder / "events.jsonl") if event["kind"] == "step"]


@pytest.mark.parametrize(("words", "kills"), [((), 5), (EVERYTHING, KILLS)], ids=["plain", "everything"])
def test_killed_at_random_moments_and_resumed_the_adapter_is_bit_identical(
    words: tuple[str, ...], kills: int, start: Start, tmp_path: Path
):
    """Two kills come while a checkpoint is being written; every session has another number of loader workers."""
    rng = np.random.default_rng(7)
    straight = start(tmp_path / "straight", *words, "data.loader_workers=1", "training.save_steps=epoch")
    folder = tmp_path / "killed"
    during_save = 0
    for count in range(kills):
        process = start(folder, *words, f"data.loader_workers={count % 3}", "training.save_steps=1")
        before = newest_step(folder)
        further = int(rng.integers(1, STEPS // kills - 2 if kills > 5 else 5))
        wait_for(process, lambda least=before + further: newest_step(folder) >= least)
        if count in (1, 3):
            wait_for(process, lambda: any((folder / "checkpoints").glob(".tmp-0*")), pause_s=0.0)
        else:
            time.sleep(float(rng.uniform(0.0, 0.05)))
        process.send_signal(signal.SIGKILL)
        assert finish(process)[0] == -signal.SIGKILL
        during_save += any((folder / "checkpoints").glob(".tmp-0*"))
        for published in (folder / "checkpoints").glob("step-*"):
            assert checkpoint.damage(published) is None, published
    assert during_save >= 1
    assert newest_step(folder) < STEPS
    assert finish(start(folder, *words, "data.loader_workers=2"))[0] == 0
    assert finish(straight)[0] == 0

    expected = load_file(tmp_path / "straight" / "adapter" / "adapter_model.safetensors")
    found = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert any(bool(value.abs().max() > 0) for name, value in expected.items() if "lora_B" in name)
    assert steps_of(folder) == list(range(1, STEPS + 1)) == steps_of(tmp_path / "straight")
    kinds = [event["kind"] for event in read_events(folder / "events.jsonl")]
    assert "quarantined" not in kinds
    assert kinds.count("resumed") == kills
    if words:
        assert {"stage", "ranks", "average", "memory", "adapter_entropy"} <= set(kinds)
    assert read_record(folder).scores == read_record(tmp_path / "straight").scores
    assert not list((folder / "checkpoints").glob(".tmp-*"))


def test_a_stop_signal_saves_exits_75_and_the_same_line_goes_on(start: Start, tmp_path: Path):
    """The signal goes to the whole process group, as a scheduler and Ctrl-C send it: workers must outlive it."""
    folder = tmp_path / "run"
    process = start(folder, "data.loader_workers=2")
    wait_for(process, lambda: (folder / "events.jsonl").is_file() and len(steps_of(folder)) >= 3)
    process.send_signal(signal.SIGSTOP)  # so that it does not end while the second one starts
    code, said = finish(start(folder))
    assert code == 2
    assert f"in use by process {process.pid}" in said
    assert "Traceback" not in said
    process.send_signal(signal.SIGCONT)
    for child in children(process.pid):
        os.kill(child, signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert code == 75
    assert "Traceback" not in said
    assert "stopped by SIGTERM" in said
    assert "same command" in said
    assert read_record(folder).status == "interrupted"
    stopped = newest_step(folder)
    assert steps_of(folder) == list(range(1, stopped + 1))
    assert finish(start(folder))[0] == 0
    assert steps_of(folder) == list(range(1, STEPS + 1))


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    return [int(child) for child in listed]
