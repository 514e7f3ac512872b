"""One process that runs cases and reports each on a pipe, and its parent, which starts the next where one died.

A case that hangs is ended from outside the interpreter's reach: a signal and a thread of `faulthandler` print the stack
and end the process, also where a C library never comes back. Its limit is of the processor's time, so that a machine
that does other things makes no case slow; `WAITING` times as long on the clock ends one that waits.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Final

import targets
from harness import MAX_BYTES, MAX_SECONDS, Fault, build, end_of, load, peak_bytes, refused, run_case, save, seeds_of

CASES_A_PROCESS: Final = 2_000
"""After which a new one is begun, so that what a library keeps is not laid at the door of a case."""
EXAMPLES: Final = 3
"""Cases that are kept of each signature."""
WAITING: Final = 6
_ADDRESS_SPACE: Final = 3 * 2**30
"""What a case may ask for beyond what the process holds: a wild request fails at once and fills no machine."""


@dataclass(slots=True)
class Tally:
    """What came of the cases of one target."""

    cases: int = 0
    refused: int = 0
    seeds_refused: list[int] = field(default_factory=list)
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, -1)
    peak: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    kept: dict[str, list[str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Ready for JSON."""
        return {
            "cases": self.cases,
            "refused": self.refused,
            "seeds_refused": self.seeds_refused,
            "seconds": round(self.seconds, 1),
            "slowest": {"seconds": round(self.slowest[0], 2), "index": self.slowest[1]},
            "peak_mb": self.peak // 10**6,
            "faults": dict(self.faults),
            "kept": self.kept,
        }


# --- the worker ----------------------------------------------------------------------------------


def work(name: str, seed: int, first: int, last: int, seconds: float, limit: float, most: int) -> None:
    """Run cases `first` to `last` of a target and report on the standard output that this process was given."""
    channel, trace = os.dup(1), os.dup(2)
    sys.excepthook = lambda *error: os.write(trace, "".join(traceback.format_exception(*error)).encode()) and None
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # what the tool prints is not looked at
    os.dup2(quiet, 2)
    target = targets.find(name)
    _guard(trace, 300.0)
    metadata.entry_points = functools.cache(metadata.entry_points)  # a walk over all that is installed, at each name
    for files in seeds_of(target):
        run_case(target, files)  # loads what the reader needs, so that no case is blamed for it
    _limit_address_space()
    end = time.monotonic() + seconds
    for index in range(first, last):
        if time.monotonic() > end:
            break
        files, before = build(target, seed, index), refused.total()
        os.write(channel, f"case {index}\n".encode())
        started = time.monotonic()
        _guard(trace, limit)
        fault = run_case(target, files)
        _unguard()
        peak = peak_bytes()
        if fault is None and peak > most:
            fault = Fault(kind="memory", signature="memory", text=f"{peak:,} bytes at the most\n")
        told = {"seconds": time.monotonic() - started, "peak": peak, "fault": fault and asdict(fault)}
        told |= {"refused": refused.total() > before, "valid": index < len(seeds_of(target))}
        os.write(channel, f"end {json.dumps(told)}\n".encode())
        if peak > most:
            break  # the peak of this process stays where it is
    os.write(channel, b"done\n")


def _guard(trace: int, seconds: float) -> None:
    """End the process after so many seconds of computing, and of waiting after `WAITING` times as many."""
    faulthandler.register(signal.SIGPROF, file=trace, chain=True)  # whose usual end is that of the process
    signal.setitimer(signal.ITIMER_PROF, seconds)
    faulthandler.dump_traceback_later(WAITING * seconds, exit=True, file=trace)


def _unguard() -> None:
    signal.setitimer(signal.ITIMER_PROF, 0)
    faulthandler.cancel_dump_traceback_later()


def _limit_address_space() -> None:
    held = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + _ADDRESS_SPACE, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# --- its parent ----------------------------------------------------------------------------------


def fuzz(
    name: str, *, seed: int, first: int, cases: int, seconds: float, limits: tuple[float, int], out: Path
) -> Tally:
    """Run cases of a target, in one process after another.

    Args:
        name: Of the target.
        seed: Of the cases.
        first: Number of the first.
        cases: How many.
        seconds: After which no further one is begun.
        limits: Seconds that a case may take, and bytes that its process may.
        out: Where failing cases are kept.
    """
    tally, index, last = Tally(), first, first + cases
    end = time.monotonic() + seconds
    while index < last and (left := end - time.monotonic()) > 0:
        begun = index
        until = min(last, index + CASES_A_PROCESS)
        command = ["work", name, *map(str, (seed, index, until, left, *limits))]
        for number, fault in _one_process(tally, name, command):
            index = number + 1
            if fault is not None:
                _keep(tally, out, name, seed, number, fault)
        if index == begun:  # the time was over before the first case
            break
    return tally


def _one_process(tally: Tally, name: str, command: Sequence[str]) -> Iterator[tuple[int, Fault | None]]:
    """Yields the number of each case that was run, with its fault if it had one."""
    at, running = 0, False
    with tempfile.TemporaryFile() as trace, _started(command, trace) as process:
        assert process.stdout is not None
        for line in process.stdout:
            word, _, rest = line.partition(" ")
            if word == "case":
                at, running = int(rest), True
            elif word == "end":
                told = json.loads(rest)
                running = False
                tally.cases += 1
                tally.refused += told["refused"]
                tally.seeds_refused += [at] if told["valid"] and told["refused"] else []
                tally.seconds += told["seconds"]
                tally.slowest = max(tally.slowest, (told["seconds"], at))
                tally.peak = max(tally.peak, told["peak"])
                yield at, Fault(**told["fault"]) if told["fault"] else None
        code = process.wait()
        if running:
            tally.cases += 1
            yield at, _death(code, _text(trace))
        elif code:
            raise RuntimeError(f"the worker of {name} failed between cases ({end_of(code)}):\n{_text(trace)}")


def _started(command: Sequence[str], trace: IO[bytes]) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    return subprocess.Popen(
        [sys.executable, str(here), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=trace,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1", "SONOTUNE_PROGRESS": "never"},
    )


def _text(trace: IO[bytes]) -> str:
    trace.seek(0)
    return trace.read().decode("utf-8", "replace")


def _death(code: int, trace: str) -> Fault:
    if "Timeout (" in trace or code == -signal.SIGPROF:
        frames = [line.strip() for line in trace.splitlines() if line.startswith("  File ")]
        own = next((line for line in frames if "sonotune" in line), frames[0] if frames else "?")
        return Fault(kind="hang", signature=f"hang at {own.rpartition('/')[2]}", text=trace)
    return Fault(kind="crash", signature=f"crash: {end_of(code)}", text=f"{end_of(code)}\n{trace}")


def _keep(tally: Tally, out: Path, name: str, seed: int, index: int, fault: Fault) -> None:
    tally.faults[fault.signature] += 1
    if tally.faults[fault.signature] <= EXAMPLES:
        files = build(targets.find(name), seed, index)
        folder = save(out, name, seed, index, fault, files)
        tally.kept.setdefault(fault.signature, []).append(str(folder))


# --- one case again ------------------------------------------------------------------------------


def replay_here(folder: Path) -> None:
    """Run a case that was kept, in this process, and report as a worker does."""
    trace = os.dup(2)
    name, files = load(folder)
    target = targets.find(name)
    _guard(trace, 300.0)
    for valid in seeds_of(target):
        run_case(target, valid)
    _limit_address_space()
    _guard(trace, MAX_SECONDS)
    fault = run_case(target, files)
    _unguard()
    if fault is None and (peak := peak_bytes()) > MAX_BYTES:
        fault = Fault(kind="memory", signature="memory", text=f"{peak:,} bytes at the most\n")
    if fault is None:
        print(f"{folder}: no fault")
        return
    print(fault.text)
    print(f"{folder}: {fault.signature}")
    sys.exit(1)
