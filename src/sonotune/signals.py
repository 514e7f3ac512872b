"""Signals that ask a process to stop: what a terminal, a scheduler and a user send."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C, a stop, a terminal that closes, and the warning of a scheduler."""
_AGAIN_S: Final = 5.0  # by then a stop that nobody has taken up was lost, as in a finaliser


class Stopped(BaseException):
    """A signal has ended a command; what it was writing is removed on the way out.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def heeded() -> list[signal.Signals]:
    """The signals that stop this process: not SIGHUP where it is ignored, as `nohup` leaves it."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOP_SIGNALS if not (ignored and number == signal.SIGHUP)]


def tell_at_once(text: str) -> None:
    """Write a line to stderr from a signal handler, which must not wait for the lock of a stream."""
    with suppress(OSError):
        os.write(2, f"\nsonotune: {text}\n".encode())


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Raise `Stopped` in the block when a signal comes, and say so; outside the main thread nothing is done.

    While the block is left, a second Ctrl-C ends the process as it stands, and other signals change nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked_s: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if asked_s and now_s - asked_s[-1] < _AGAIN_S:
            return
        asked_s.append(now_s)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        tell_at_once(f"{signal.Signals(number).name}: stopping.")
        raise Stopped(number)

    previous = {number: signal.signal(number, handle) for number in heeded()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
