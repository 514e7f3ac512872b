"""What is measured in the process of each side. Linux only: peak memory is the kernel's own figure."""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil


class Memory:
    """Peak resident memory of this process since it was made, and of its children's own pages beside it."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark starts again from here
        self.baseline = self._status("VmRSS")
        self._children, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, int]:
        """The figures in bytes. Pages that a forked child shares with this process count once."""
        self._done.set()
        self._thread.join()
        peak = self._status("VmHWM") + self._children
        return {"baseline": self.baseline, "peak": peak, "above": peak - self.baseline, "children": self._children}

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._done.wait(0.5):
            try:
                total = sum(child.memory_full_info().uss for child in process.children(recursive=True))
            except psutil.Error:  # one ended between being listed and being read
                continue
            self._children = max(self._children, total)

    @staticmethod
    def _status(key: str) -> int:
        found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024


class Clock:
    """Seconds from the beginning of training to its last step: of the wall, and of processors, the loader's too."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.seconds = self.processor_s = 0.0
        self._started = self._used = 0.0

    def started(self, total_steps: int = 0, step: int = 0) -> None:
        self._used = processor_seconds()
        self._started = time.perf_counter()

    def stepped(self, values: Mapping[str, Any]) -> None:
        self.seconds = time.perf_counter() - self._started
        self.processor_s = processor_seconds() - self._used
        self.losses.append(float(values["loss"]) if values["loss"] is not None else math.nan)

    def evaluated(self, step: int, scores: Mapping[str, Any]) -> None:
        """Nothing is evaluated here."""


def processor_seconds() -> float:
    """What this process and its children, ended or running, have used."""
    running = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(os.times()[:4]) + sum(times.user + times.system for times in running)


def report(clock: Clock, memory: Memory, *, clips: int, preparation_s: float) -> dict[str, Any]:
    """What a side tells."""
    return {
        "clips": clips,
        "seconds": clock.seconds,
        "preparation_s": preparation_s,
        "losses": clock.losses,
        "samples_per_s": clips / clock.seconds,
        "one_epoch_samples_per_s": clips / (clock.seconds + preparation_s),
        "memory": memory.stop(),
        "processor_s": clock.processor_s,
    }
