"""Worker processes: order, errors, death, silence, and nothing left behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from sonotune.errors import AudioError, ResourceError
from sonotune.features.batching import ClipBatches, batch_loader
from sonotune.features.frontend import LogMel
from sonotune.features.workers import ordered_results
from sonotune.types import Clip


def results(compute, count=8, *, workers=2, timeout_s=30.0):
    return ordered_results(
        compute, range(count), workers=workers, timeout_s=timeout_s, describe=lambda index: f"batch {index}"
    )


def children() -> list[multiprocessing.Process]:
    return multiprocessing.active_children()


def gone(pid: int, *, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_from_other_processes(workers):
    def compute(index: int) -> tuple[int, int]:
        time.sleep(0.02 * (index % 3))
        return index, os.getpid()

    found = list(results(compute, workers=workers))
    assert [index for index, _ in found] == list(range(8))
    pids = {pid for _, pid in found}
    assert len(pids) == workers
    assert os.getpid() not in pids
    assert children() == []


def test_error_of_a_worker_rises_in_its_turn_with_its_class():
    def compute(index: int) -> int:
        if index == 3:
            raise AudioError("truncated", "the file ends early")
        return index

    stream = results(compute)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(AudioError, match="ends early") as caught:
        next(stream)
    assert caught.value.reason == "truncated"
    assert "batch 3" in str(caught.value.__cause__)
    assert "in compute" in str(caught.value.__cause__)
    assert children() == []


def test_error_that_cannot_be_pickled_keeps_its_traceback():
    def compute(index: int) -> int:
        class LocalError(Exception):
            pass

        raise LocalError("made up here")

    with pytest.raises(RuntimeError, match="made up here"):
        next(results(compute))


def test_killed_worker_is_named_with_its_batch_and_signal():
    def compute(index: int) -> int:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return index

    started = time.monotonic()
    stream = results(compute)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ResourceError, match=r"made batch 3 ended \(signal SIGKILL\).*memory.*loader_workers"):
        next(stream)
    assert time.monotonic() - started < 15
    assert children() == []


def test_worker_killed_in_the_middle_of_writing_is_an_error_not_a_hang():
    def compute(index: int) -> bytes:
        return bytes(50_000_000)  # far beyond what a pipe holds

    stream = results(compute, workers=1)
    next(stream)
    time.sleep(0.5)
    (worker,) = children()
    os.kill(worker.pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(ResourceError, match="batch 1"):
        next(stream)
    assert time.monotonic() - started < 15


def test_silent_worker_is_given_up_after_the_timeout():
    def compute(index: int) -> int:
        if index == 1:
            time.sleep(600)
        return index

    stream = results(compute, timeout_s=0.5)
    assert next(stream) == 0
    started = time.monotonic()
    with pytest.raises(ResourceError, match=r"batch 1 was not ready after 0\.5 s"):
        next(stream)
    assert time.monotonic() - started < 15
    assert children() == []


def test_closing_early_ends_the_workers_at_once():
    def compute(index: int) -> bytes:
        return bytes(5_000_000)

    stream = results(compute, 50)
    next(stream)
    assert len(children()) == 2
    started = time.monotonic()
    stream.close()
    assert children() == []
    assert time.monotonic() - started < 4


def test_stop_signals_to_the_group_do_not_end_the_workers():
    def compute(index: int) -> int:
        time.sleep(0.2)
        return index

    stream = results(compute, 4)
    assert next(stream) == 0
    for worker in children():
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
    assert list(stream) == [1, 2, 3]


PROGRAM = """
import sys, time, multiprocessing
from sonotune.features.workers import ordered_results
stream = ordered_results(
    lambda index: bytes(1_000_000), range(100), workers=2, timeout_s=30, describe=lambda index: f"batch {index}"
)
next(stream)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
if sys.argv[1] == "wait":
    time.sleep(60)
"""


@pytest.mark.parametrize("end", ["killed", "exit"])
def test_no_worker_outlives_its_main_process(end):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "wait" if end == "killed" else "exit"], stdout=subprocess.PIPE, text=True
    ) as main:
        assert main.stdout is not None
        pids = [int(word) for word in main.stdout.readline().split()]
        try:
            assert len(pids) == 2
            if end == "killed":
                main.kill()
            assert main.wait(timeout=20) == (-signal.SIGKILL if end == "killed" else 0)
            assert all(gone(pid) for pid in pids)
        finally:
            for pid in (main.pid, *pids):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


class Deadly:
    """A waveform transform that kills its process at one clip, as the kernel does when memory runs out."""

    def __call__(self, waveform_S, sample_rate_hz, *, seed, epoch, clip_id):
        if clip_id == "c3":
            os.kill(os.getpid(), signal.SIGKILL)
        return waveform_S


def test_batch_loader_names_the_batch_and_clips_of_a_dead_worker(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", np.zeros(3200), 16_000)
    clips = [Clip(id=f"c{index}", path=tmp_path / "a.wav", duration_s=0.2) for index in range(6)]
    data = ClipBatches(
        clips,
        [np.zeros(1, dtype=np.int64)] * 6,
        LogMel(80),
        batches=[(0, 1), (2, 3), (4, 5)],
        seed=0,
        epoch=0,
        waveform_augmenter=Deadly(),
    )
    stream = batch_loader(data, workers=2, timeout_s=30)
    assert [clip.id for clip in next(stream).clips] == ["c0", "c1"]
    with pytest.raises(ResourceError, match=r"batch 1 \(c2, c3\) ended \(signal SIGKILL\)"):
        next(stream)
    assert children() == []
