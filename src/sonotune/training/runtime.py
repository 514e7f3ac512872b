"""Where a run computes, what it does with memory, and the signals that ask it to stop.

The signals of `sonotune.signals` ask a run to stop. While steps are made it stops after the current one; while it
loads, calibrates or scores it stops at once, for all that would be lost is done again. A second SIGINT stops it at
once in any case. One of several processes waits for the others instead: `torchrun` passes on a Ctrl-C that
each of them got already.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from sonotune.errors import Interrupted
from sonotune.models.precision import Precision, bound_kernel_cache, choose_precision
from sonotune.processes import Processes, started
from sonotune.signals import heeded, tell_at_once

# <malloc.h>
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGEST: Final = 2**31 - 1

_ALLOCATOR_VARIABLES: Final = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeSetup:
    """Where a run computes, how precisely and with whom; `why` says why so precisely."""

    accelerator: Accelerator
    processes: Processes
    precision: Precision
    why: str


def set_up_compute(precision: Literal["auto"] | Precision, *, threads: Literal["auto"] | int = "auto") -> ComputeSetup:
    """Prepare device and memory, and find the other processes, before anything can be refused, so that all hear of it.

    Args:
        precision: Of the matrix products; `auto` takes bf16 where the hardware has it.
        threads: Of the processor; `auto` leaves them to torch.

    Raises:
        ConfigError: The precision is not to be had here, or the processes do not find each other.
    """
    chosen, why = choose_precision(precision)
    if threads != "auto":
        torch.set_num_threads(threads)
    let_segments_grow()
    bound_kernel_cache()
    accelerator = accelerator_for(chosen)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    processes = Processes.from_env(accelerator.num_processes)
    return ComputeSetup(accelerator=accelerator, processes=processes, precision=chosen, why=why)


def accelerator_for(precision: Precision) -> Accelerator:
    """The accelerator that computes in this precision: a GPU where there is one.

    `accelerate` keeps one state in a process, and refuses another precision; a second run, or an audit before it, may
    have one.
    """
    wanted = "no" if precision == "fp32" else precision
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != wanted:
        AcceleratorState._reset_state(reset_partial_state=False)
    return Accelerator(mixed_precision=wanted, cpu=not torch.cuda.is_available())


# --- memory ------------------------------------------------------------------------------------------


def keep_freed_memory() -> bool:
    """Tell glibc to use freed memory again instead of handing it back to the kernel.

    Activations of a step on the processor are freed and wanted again a moment later. Blocks above 32 MiB would come
    from the kernel each time, page by page and zeroed: a fifth of a step's time (`benchmarks/train_throughput`, row
    `ctc`). The process keeps at most what it has needed at once, and what lies between (5 to 15 % there).

    Returns:
        Whether it was done; not where the C library is another.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    # glibc before 2.35 takes no threshold above 32 MiB.
    mapped = mallopt(_M_MMAP_THRESHOLD, _LARGEST) or mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    return bool(mapped and mallopt(_M_TRIM_THRESHOLD, _LARGEST))


def let_segments_grow() -> bool:
    """Tell CUDA's allocator to extend segments instead of taking new ones.

    Batches of clips differ in shape from step to step; without this, blocks that fit none of the next are given back
    and taken again, which costs time and leaves holes. To be called before anything is put on the card.

    Returns:
        Whether it was done; not without a card, nor where the environment has settings for the allocator.
    """
    if not torch.cuda.is_available() or any(os.environ.get(name) for name in _ALLOCATOR_VARIABLES):
        return False
    torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    return True


# --- signals -----------------------------------------------------------------------------------------


class StopRequest:
    """Whether a signal has asked to stop, and which."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.patient = True

    @contextmanager
    def waits(self, patient: bool) -> Iterator[None]:
        """Whether a signal waits inside until it is asked for, or raises `Interrupted` at once."""
        before, self.patient = self.patient, patient
        try:
            yield
        finally:
            self.patient = before

    @property
    def requested(self) -> bool:
        """Whether the run should stop after this step."""
        return self.reason is not None

    def ask(self, reason: str) -> None:
        """Ask for a stop."""
        self.reason = reason


_ACTIVE: list[StopRequest] = []  # the outermost first: an ablation, and the run that it is at


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Install the handlers for the time of a run; outside the main thread there is nothing to install.

    One inside another passes the request on, so that what runs many runs hears of a signal that came when one of them
    was past stopping.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and request.requested and started() == 1:
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        if not request.requested:
            after = " after this step, with the state saved; SIGINT again stops at once" if request.patient else ""
            tell_at_once(f"{name}: stopping{after}.")
        for one in _ACTIVE:
            one.ask(name)
        if not request.patient:
            raise Interrupted(
                f"stopped by {request.reason} outside the steps of training; what was saved is intact. Run the same "
                "command again to go on."
            )

    _ACTIVE.append(request)
    previous = {number: signal.signal(number, handle) for number in heeded()}
    try:
        yield request
    finally:
        _ACTIVE.remove(request)
        for number, handler in previous.items():
            signal.signal(number, handler)
