"""Worker processes: order, errors, death, silence, and nothing left behind."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from sonotune.errors import AudioError, ResourceError
from sonotune.features.batching import ClipBatches, batch_loader
from sonotune.features.frontend import LogMel
from sonotune.features.workers import Crew
from sonotune.signals import STOP_SIGNALS
from sonotune.types import Clip


def results(compute, count=8, *, workers=2, timeout_s=30.0):
    with Crew(workers) as crew:
        yield from job(crew, compute, count, timeout_s=timeout_s)


def job(crew, compute, count=8, *, timeout_s=30.0):
    return crew.results(compute, range(count), timeout_s=timeout_s, describe=lambda index: f"batch {index}")


def children() -> list[multiprocessing.Process]:
    return multiprocessing.active_children()


def gone(pid: int, *, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def who(index: int) -> tuple[int, int]:
    time.sleep(0.02 * (index % 3))
    return index, os.getpid()


def plain(index: int) -> int:
    return index


def slow(index: int) -> int:
    time.sleep(0.2)
    return index


def large(index: int) -> bytes:
    return bytes(50_000_000)  # far beyond what a pipe holds


def truncated_at_3(index: int) -> int:
    if index == 3:
        raise AudioError("truncated", "the file ends early")
    return index


def killed_at_3(index: int) -> int:
    if index == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return index


def crashes_at_3(index: int) -> int:
    if index == 3:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # a test runner may have a handler that writes a traceback
        os.kill(os.getpid(), signal.SIGSEGV)
    return index


def silent_at_1(index: int) -> int:
    if index == 1:
        time.sleep(600)
    return index


def unpicklable_error(index: int) -> int:
    class LocalError(Exception):
        pass

    raise LocalError("made up here")


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_from_other_processes(workers):
    found = list(results(who, workers=workers))
    assert [index for index, _ in found] == list(range(8))
    pids = {pid for _, pid in found}
    assert len(pids) == workers
    assert os.getpid() not in pids
    assert children() == []


def test_one_job_after_another_goes_to_the_same_processes():
    with Crew(2) as crew:
        first, second = ({pid for _, pid in job(crew, who)} for _ in range(2))
        assert first == second == {child.pid for child in children()}
        assert list(job(crew, plain, 1)) == [0]  # fewer results than workers
        assert list(job(crew, plain, 0)) == []
        stopped = job(crew, plain)
        for _ in range(8):
            next(stopped)
        stopped.close()  # after the last result, though before its end
        assert {pid for _, pid in job(crew, who)} == first
    assert children() == []


def test_workers_hold_none_of_what_the_main_process_writes_later():
    """The reason for starting them first: a page that is shared at the fork is copied when it is written."""
    others = set(children())
    early = Crew(1)
    [first] = set(children()) - others
    # Pages of its own: what the allocator hands out may have been there before the fork.
    pages = mmap.mmap(-1, 256_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ballast = np.frombuffer(pages, dtype=np.float64)
    ballast += 1.0
    late = Crew(1)
    try:
        ballast += 1.0
        [second] = set(children()) - others - {first}
        shared = [psutil.Process(worker.pid).memory_full_info().uss for worker in (first, second)]
    finally:
        early.close()
        late.close()
    assert shared[1] - shared[0] > 0.9 * ballast.nbytes
    # What else it wrote itself: reference counts of all that this process had loaded at the fork.
    assert shared[0] < 0.5 * ballast.nbytes


def test_job_after_a_failed_or_unfinished_one_has_new_workers():
    with Crew(2) as crew:
        with pytest.raises(AudioError):
            list(job(crew, truncated_at_3))
        assert list(job(crew, plain)) == list(range(8))
        unfinished = job(crew, slow)
        assert next(unfinished) == 0
        unfinished.close()
        assert list(job(crew, plain)) == list(range(8))


def test_worker_that_died_between_jobs_is_named():
    with Crew(2) as crew:
        assert list(job(crew, plain, 4)) == list(range(4))
        os.kill(children()[0].pid, signal.SIGKILL)
        time.sleep(0.3)
        with pytest.raises(ResourceError, match=r"ended \(signal SIGKILL\)"):
            list(job(crew, plain))


def test_error_of_a_worker_rises_in_its_turn_with_its_class():
    stream = results(truncated_at_3)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(AudioError, match="ends early") as caught:
        next(stream)
    assert caught.value.reason == "truncated"
    assert "batch 3" in str(caught.value.__cause__)
    assert "in truncated_at_3" in str(caught.value.__cause__)
    assert children() == []


def test_error_that_cannot_be_pickled_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="made up here"):
        next(results(unpicklable_error))


@pytest.mark.parametrize(("work", "name"), [(killed_at_3, "SIGKILL"), (crashes_at_3, "SIGSEGV")])
def test_killed_worker_is_named_with_its_batch_and_signal(work: Callable[[int], int], name: str):
    started = time.monotonic()
    stream = results(work)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ResourceError, match=rf"made batch 3 ended \(signal {name}\).*memory.*loader_workers"):
        next(stream)
    assert time.monotonic() - started < 15
    assert children() == []


def test_worker_killed_in_the_middle_of_writing_is_an_error_not_a_hang():
    stream = results(large, workers=1)
    next(stream)
    time.sleep(0.5)
    (worker,) = children()
    os.kill(worker.pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(ResourceError, match="batch 1"):
        next(stream)
    assert time.monotonic() - started < 15


def test_silent_worker_is_given_up_after_the_timeout():
    stream = results(silent_at_1, timeout_s=0.5)
    assert next(stream) == 0
    started = time.monotonic()
    with pytest.raises(ResourceError, match=r"batch 1 was not ready after 0\.5 s"):
        next(stream)
    assert time.monotonic() - started < 15
    assert children() == []


def test_closing_early_ends_the_workers_at_once():
    stream = results(large, 50)
    next(stream)
    assert len(children()) == 2
    started = time.monotonic()
    stream.close()
    assert children() == []
    assert time.monotonic() - started < 4


def test_stop_signals_to_the_group_do_not_end_the_workers():
    stream = results(slow, 4)
    assert next(stream) == 0
    for worker in children():
        for number in STOP_SIGNALS:
            os.kill(worker.pid, number)
    assert list(stream) == [1, 2, 3]


def test_negative_number_of_workers_is_refused():
    with pytest.raises(ValueError, match="workers must be 0 or more"):
        Crew(-1)


PROGRAM = """
import sys, time, multiprocessing
from sonotune.features.workers import Crew
crew = Crew(2)
stream = crew.results(bytearray, range(1_000_000, 100_000_000), timeout_s=30, describe=str)
if sys.argv[1] != "idle":
    next(stream)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
if sys.argv[1] != "exit":
    time.sleep(60)
"""


@pytest.mark.parametrize("end", ["killed", "idle", "exit"])
def test_no_worker_outlives_its_main_process(end):
    with subprocess.Popen([sys.executable, "-c", PROGRAM, end], stdout=subprocess.PIPE, text=True) as main:
        assert main.stdout is not None
        pids = [int(word) for word in main.stdout.readline().split()]
        try:
            assert len(pids) == 2
            if end != "exit":
                main.kill()
            assert main.wait(timeout=20) == (0 if end == "exit" else -signal.SIGKILL)
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
        context="cut",
    )
    with Crew(2) as crew:
        stream = batch_loader(data, crew, timeout_s=30)
        assert [clip.id for clip in next(stream).clips] == ["c0", "c1"]
        with pytest.raises(ResourceError, match=r"batch 1 \(c2, c3\) ended \(signal SIGKILL\)"):
            next(stream)
    assert children() == []
