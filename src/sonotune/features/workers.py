"""Worker processes that compute numbered results ahead of time, handed out in order.

`torch.utils.data.DataLoader` would do, were it not that it answers the death of a worker from a signal handler: the
error then rises wherever the main process happens to be, in the middle of a checkpoint as well. Here a death is seen
when, and only when, the result of that worker is asked for, and the error says which one it was.

Worker `k` of `n` computes every n-th result and writes it to its own pipe; a full pipe makes it wait. No state is
kept in a worker from one job to the next, so it can be killed at any time.
"""

from __future__ import annotations

import atexit
import multiprocessing
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from sonotune.errors import ResourceError
from sonotune.signals import STOP_SIGNALS

Result = TypeVar("Result")

_EXIT_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error on its way to the main process: pickled, or as text where it cannot be pickled."""

    pickled: bytes | None
    text: str


class Crew:
    """Worker processes that live through a run and are given one job after another.

    Start them before anything large is loaded. A worker is a fork: every page that the main process writes while the
    worker lives is copied first, and a worker forked anew for each epoch from a process that trains pays for all of
    its activations (a third of the memory and of the time of a step, `benchmarks/train_throughput`, row `ctc`).

    Args:
        workers: Number of processes. 0: whoever uses the crew computes by itself.
    """

    def __init__(self, workers: int) -> None:
        if workers < 0:
            raise ValueError(f"workers must be 0 or more, got {workers}.")
        self.workers = workers
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._start()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def results(
        self,
        compute: Callable[[int], Result],
        indices: Sequence[int],
        *,
        timeout_s: float,
        describe: Callable[[int], str],
    ) -> Generator[Result, None, None]:
        """Yield `compute(index)` for every index, in order. One job at a time.

        A job that fails or is closed early ends the workers, for they may be in the middle of it; the next job starts
        new ones.

        Args:
            compute: Called in a worker, to which it travels pickled. An error it raises is raised here, when its turn
                comes.
            indices: What to compute.
            timeout_s: How long to wait for one result.
            describe: Names the result of an index in an error.

        Raises:
            ResourceError: A worker ended or gave nothing in time.
        """
        if not self._processes:
            self._start()
        busy = min(self.workers, len(indices))
        job = pickle.dumps(compute)
        missing = len(indices)
        try:
            for worker in range(busy):
                # A worker that ended while it was idle is noticed when its first result is asked for.
                with suppress(BrokenPipeError, ConnectionResetError):
                    self._pipes[worker].send((job, indices[worker::busy]))
            for place, index in enumerate(indices):
                result = self._take(place % busy, timeout_s=timeout_s, name=describe(index))
                missing -= 1
                yield result
        finally:
            if missing:
                self.close()

    def close(self) -> None:
        """End every worker; nothing is lost, a worker keeps no state."""
        atexit.unregister(self.close)
        for process in self._processes:
            process.kill()
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_EXIT_WAIT_S)
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        # Before multiprocessing's own clean-up, which sends a signal that workers ignore and then waits for them.
        atexit.register(self.close)
        # Until a worker ignores them: a fork has the handlers of the main process.
        held_back = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            for _ in range(self.workers):
                ours, theirs = context.Pipe()
                self._pipes.append(ours)
                process = context.Process(target=_work, args=(theirs, list(self._pipes)), daemon=True)
                process.start()
                theirs.close()
                self._processes.append(process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held_back)

    def _take(self, worker: int, *, timeout_s: float, name: str) -> Any:
        """Next result of one worker."""
        pipe = self._pipes[worker]
        started = time.monotonic()
        try:
            if not pipe.poll(timeout_s):
                raise ResourceError(
                    f"{name} was not ready after {timeout_s:g} s; its audio may be on a disk that does not answer. "
                    "Check that the files can be read, or set data.loader_workers=0 to see where it stops."
                )
            result = pipe.recv()
        except (EOFError, OSError) as error:
            process = self._processes[worker]
            process.join(_EXIT_WAIT_S)
            raise ResourceError(
                f"the worker process that made {name} ended ({_how(process.exitcode)}) after "
                f"{time.monotonic() - started:.1f} s of waiting. The usual cause is a lack of memory: lower "
                "data.loader_workers or the seconds of a batch, or set data.loader_workers=0 to see its own error."
            ) from error
        if isinstance(result, _Failure):
            _reraise(result, name)
        return result


def _work(pipe: Connection, others: Sequence[Connection]) -> None:
    """Body of a worker: job after job, until the main process is gone."""
    # A fork inherits the other ends; while one is open here, a worker would not notice that the main process died.
    for other in others:
        other.close()
    # Ctrl-C, a terminal that closes and a scheduler reach the whole process group. The main process decides what a
    # signal means: it finishes its step and saves, and needs its workers until then.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the main process is gone
        while True:
            job, share = pipe.recv()
            compute = pickle.loads(job)  # noqa: S301  (from our own main process)
            for index in share:
                try:
                    result = compute(index)
                except Exception as error:  # noqa: BLE001  (raised again in the main process)
                    result = _failure(error)
                pipe.send(result)


def _failure(error: Exception) -> _Failure:
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)  # noqa: S301  (our own error; some pickle and do not come back)
    except Exception:  # noqa: BLE001  (whatever a foreign error class does)
        pickled = None
    return _Failure(pickled=pickled, text="".join(traceback.format_exception(error)))


def _reraise(failure: _Failure, name: str) -> None:
    origin = RuntimeError(f"in the worker process that made {name}:\n{failure.text}")
    if failure.pickled is None:
        raise origin
    raise pickle.loads(failure.pickled) from origin  # noqa: S301  (from our own worker)


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"signal {signal.Signals(-exitcode).name}"
    return f"exit code {exitcode}"
