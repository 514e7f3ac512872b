"""What a run costs: memory, energy and time.

Memory of a CUDA device is the caller's to read; here is what the operating system says.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import psutil

logger = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")
_CHILDREN_EVERY_S = 0.5  # listing the children reads the whole process table
_CHILDREN_SHARE = 0.01  # of the time, at most, goes into reading what the children have


class PeakMemory:
    """Highest resident memory of this process and its children while the block runs.

    A thread samples the resident set of this process and adds what each child has for itself alone (its unique set),
    so that pages which forked workers share with their parent count once. Children are read every half second, or more
    rarely where that takes long. A peak of this process alone between two samples is still caught, from the kernel's
    own high-water mark.

    Args:
        interval_s: Seconds between samples.

    Attributes:
        peak_bytes: Highest sum seen, final after the block.
        start_bytes: Sum when the block began.
    """

    def __init__(self, *, interval_s: float = 0.05) -> None:
        if interval_s <= 0:
            raise ValueError(f"interval_s must be above 0 seconds; found {interval_s}.")
        self.peak_bytes = 0
        self.start_bytes = 0
        self._interval_s = interval_s
        self._process = psutil.Process()
        self._children_bytes = 0
        self._read_children_at = float("-inf")
        self._high_water_at_start = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._high_water_at_start = _high_water_bytes()
        self.start_bytes = self._sample()
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="peak-memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._sample()
        high_water = _high_water_bytes()
        if high_water > self._high_water_at_start:  # it grew inside the block, so the block made it
            self.peak_bytes = max(self.peak_bytes, high_water)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._sample()

    def _sample(self) -> int:
        try:
            if time.monotonic() >= self._read_children_at:
                self._read_children()
            total = int(self._process.memory_info().rss) + self._children_bytes
        except psutil.Error:  # a locked-down /proc; the high-water mark still stands
            return self.peak_bytes
        self.peak_bytes = max(self.peak_bytes, total)
        return total

    def _read_children(self) -> None:
        """Add up what the children have, now and then: the kernel walks all their pages for it.

        A forked worker maps all of its parent's pages. Every 50 ms, that took a third of a processor beside training.
        """
        began = time.monotonic()
        self._children_bytes = 0
        for child in self._process.children(recursive=True):
            try:
                self._children_bytes += int(_own_bytes(child))
            except psutil.Error:  # it ended since the list was made
                continue
        now = time.monotonic()
        self._read_children_at = now + max(_CHILDREN_EVERY_S, (now - began) / _CHILDREN_SHARE)


def _own_bytes(process: psutil.Process) -> int:
    """Memory that would be free if this process ended; its resident set where the system does not tell them apart."""
    try:
        return int(process.memory_full_info().uss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)


def _high_water_bytes() -> int:
    """Largest resident size this process ever had; 0 where the system does not say.

    Linux's `ru_maxrss` cannot serve: across fork and exec it begins at the size of the parent (seen here: a test in a
    fresh process inherited pytest's peak).
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return _largest_resident_bytes() if sys.platform == "darwin" else 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _largest_resident_bytes() -> int:
    import resource  # noqa: PLC0415  (not on Windows)

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


class Energy:
    """Energy used while the block runs, from hardware counters, and where the figure comes from.

    Processor packages are read from RAPL (Linux powercap) and NVIDIA boards from NVML (package `nvidia-ml-py`, extra
    `energy`). Counters are of the whole machine: other programs are in the figure. Without a counter the energy is None
    with a reason, unless `assumed_watts` is given, when it is estimated as watts times seconds.

    Args:
        assumed_watts: Mean power to assume where nothing can be read.
        powercap: Folder of the RAPL counters.
        interval_s: Seconds between readings; short enough that a counter cannot wrap round unseen.

    Attributes:
        label: `measured`, `estimated` or `none`.
        sources: Counters that were read.
        reason: Why something could not be read; empty when all could.
    """

    def __init__(
        self, *, assumed_watts: float | None = None, powercap: Path = POWERCAP, interval_s: float = 20.0
    ) -> None:
        self._seconds: float | None = None
        self.label: Literal["measured", "estimated", "none"] = "none"
        self.sources: tuple[str, ...] = ()
        self.reason = ""
        self._assumed_watts = assumed_watts
        self._powercap = powercap
        self._interval_s = interval_s
        self._counters: list[_Counter] = []
        self._started_at = 0.0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        rapl, rapl_reason = _rapl_counters(self._powercap)
        nvml, nvml_reason = _nvml_counters()
        self._counters = rapl + nvml
        self.reason = "; ".join(reason for reason in (rapl_reason, nvml_reason) if reason)
        self._started_at = time.monotonic()
        if self._counters:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="energy", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._read()
        self._seconds = time.monotonic() - self._started_at
        working = [counter for counter in self._counters if not counter.failed]
        if failed := [counter.name for counter in self._counters if counter.failed]:
            self.reason = "; ".join(filter(None, [self.reason, f"stopped answering: {', '.join(failed)}"]))
        if working:
            self.label = "measured"
            self.sources = tuple(counter.name for counter in working)
        elif self._assumed_watts is not None:
            self.label = "estimated"
            self.sources = (f"{self._assumed_watts:g} W assumed",)

    @property
    def joules(self) -> float | None:
        """Energy since the block began, in joules."""
        if self._started_at == 0.0:
            return None
        if self._seconds is None:
            self._read()
        if working := [counter for counter in self._counters if not counter.failed]:
            return sum(counter.joules for counter in working)
        if self._assumed_watts is None:
            return None
        seconds = time.monotonic() - self._started_at if self._seconds is None else self._seconds
        return self._assumed_watts * seconds

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._read()

    def _read(self) -> None:
        with self._lock:
            for counter in self._counters:
                counter.read()


class _Counter:
    """A counter of joules that may wrap round, summed since it was made."""

    def __init__(self, name: str, read_joules: Callable[[], float], wraps_at_joules: float | None) -> None:
        self.name = name
        self.joules = 0.0
        self.failed = False
        self._read_joules = read_joules
        self._wraps_at_joules = wraps_at_joules
        self._last = read_joules()

    def read(self) -> None:
        if self.failed:
            return
        try:
            now = self._read_joules()
        except Exception:  # noqa: BLE001  (a driver's own error types; energy must never stop a run)
            logger.warning("the energy counter %s stopped answering", self.name)
            self.failed = True
            return
        passed = now - self._last
        if passed < 0 and self._wraps_at_joules is not None:
            passed += self._wraps_at_joules
        self.joules += max(0.0, passed)
        self._last = now


def _rapl_counters(powercap: Path) -> tuple[list[_Counter], str]:
    counters: list[_Counter] = []
    denied = ""
    # `intel-rapl:0` is a package (AMD uses the same names); `intel-rapl:0:1` is a part of it and would count twice.
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if folder.name.count(":") != 1:
            continue
        try:
            name = (folder / "name").read_text(encoding="ascii").strip()
            wraps_at = int((folder / "max_energy_range_uj").read_text(encoding="ascii")) / 1e6
            if name == "psys":  # the whole platform, packages included
                continue
            counters.append(_Counter(f"RAPL {name}", _rapl_reader(folder / "energy_uj"), wraps_at))
        except (OSError, ValueError) as error:
            denied = f"RAPL: {folder.name} cannot be read ({type(error).__name__})"
    if counters or denied:
        return counters, denied
    return [], f"RAPL: no processor counters under {powercap}"


def _rapl_reader(path: Path) -> Callable[[], float]:
    return lambda: int(path.read_text(encoding="ascii")) / 1e6


def _nvml_counters() -> tuple[list[_Counter], str]:
    try:
        import pynvml  # noqa: PLC0415  (extra `energy`)
    except ImportError:
        return [], "NVML: nvidia-ml-py is not installed (pip install 'sonotune[energy]')"
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in _visible_boards(pynvml.nvmlDeviceGetCount())]
        counters = [
            _Counter(f"NVML board {position}", _nvml_reader(pynvml, handle), None)
            for position, handle in enumerate(handles)
        ]
    except Exception as error:  # noqa: BLE001  (NVML has its own error tree; energy must never stop a run)
        return [], f"NVML: {type(error).__name__}: {error}"
    return counters, "" if counters else "NVML: no board"


def _visible_boards(count: int) -> list[int]:
    """Indices that CUDA_VISIBLE_DEVICES leaves; identifiers other than numbers leave all."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return list(range(count))
    try:
        return [index for index in (int(word) for word in named.split(",") if word.strip()) if 0 <= index < count]
    except ValueError:
        return list(range(count))


def _nvml_reader(pynvml: Any, handle: Any) -> Callable[[], float]:
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3


def real_time_factor(seconds: float, audio_seconds: float) -> float:
    """Seconds of work per second of audio; below 1 is faster than real time.

    Raises:
        ValueError: There is no audio, or the time is negative.
    """
    if audio_seconds <= 0 or seconds < 0:
        raise ValueError(f"needs audio longer than 0 s and time of at least 0 s; found {audio_seconds} and {seconds}.")
    return seconds / audio_seconds


def per_second(amount: float, seconds: float) -> float:
    """Throughput; 0 before any time has passed, so that a progress bar can ask at once."""
    return amount / seconds if seconds > 0 else 0.0
