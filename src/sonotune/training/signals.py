"""Signals that ask a run to stop: SIGTERM, SIGUSR1 (a scheduler's warning) and SIGINT.

While steps are made it stops after the one in hand; while it loads, calibrates or scores it stops at once, for all that
would be lost is done again. A second SIGINT stops it at once in any case. One of several processes waits for the others
instead: `torchrun` passes on a Ctrl-C that each of them got already.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sonotune.errors import Interrupted
from sonotune.processes import started


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
        for one in _ACTIVE:
            one.ask(signal.Signals(number).name)
        if not request.patient:
            raise Interrupted(
                f"stopped by {request.reason} outside the steps of training; what was saved is intact. Run the same "
                "command again to go on."
            )

    _ACTIVE.append(request)
    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield request
    finally:
        _ACTIVE.remove(request)
        for number, handler in previous.items():
            signal.signal(number, handler)
