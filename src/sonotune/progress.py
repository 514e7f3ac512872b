"""What is being done, how far it is and how long it takes: a bar on a terminal, plain lines elsewhere.

Code that takes time opens a `phase`; nothing is shown unless somebody asked for a display with `shown`, as the command
line does. A phase that is over within a second is never shown. Without a terminal (a scheduler's log, a pipe) a phase
is a line when it has taken a second, one every half minute, and one when it ends, if that is not a moment later.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, TextIO

# Control codes but tab and line end, and halves of characters, as which names appear that are no UTF-8.
_CONTROLS: Final = r"\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff"
BIDI_CONTROLS: Final = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""What changes the direction of text: legal in a transcript, while in a name it can show another name."""
_UNPRINTABLE: Final = re.compile(f"[{_CONTROLS}]")
_UNPRINTABLE_NAME: Final = re.compile(f"[{_CONTROLS}{BIDI_CONTROLS}]")


def printable(text: str) -> str:
    """A text as it may be shown: control codes, which a terminal would obey, and bytes that are no text are escaped.

    Ids, transcripts and file names come from strangers. Everything that is shown passes through here or, unless it is
    a transcript, through `printable_name`.
    """
    return _UNPRINTABLE.sub(_escaped, text)


def printable_name(text: str) -> str:
    """A name or a message as it may be shown: controls of direction are escaped as well."""
    return _UNPRINTABLE_NAME.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


SHOWN_AFTER_S: Final = 1.0
LINE_EVERY_S: Final = 25.0  # with the second between two looks, and a busy machine, at most half a minute
LOOK_EVERY_S: Final = 1.0


class Phase:
    """Something that takes time.

    Attributes:
        title: What is done, such as `loading whisper_small`.
        total: Units in all; None where that is not known.
        unit: What is counted.
        done: Units done.
        state: What else there is to tell, such as a loss.
        left_s: Seconds that are left, where the phase knows better than its rate so far.
    """

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.state = 0, ""
        self.left_s: float | None = None
        self.started = time.monotonic()
        self._first = 0

    def advance(self, done: int, *, state: str = "", left_s: float | None = None) -> None:
        """Say how many units are done now."""
        self.done, self.state, self.left_s = done, state, left_s

    def begin_at(self, done: int) -> None:
        """Units that an earlier session has done."""
        self._first = self.done = done

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.started

    @property
    def remaining_s(self) -> float | None:
        """Seconds left: what the phase says, else by the mean rate so far; None where nothing is known."""
        if self.left_s is not None:
            return self.left_s
        own = self.done - self._first
        if self.total is None or own <= 0:
            return None
        return self.elapsed_s / own * (self.total - self.done)

    def line(self, *, ended: bool = False) -> str:
        """One line that says all of it."""
        count = f"{self.done:,} of {self.total:,} {self.unit}".rstrip() if self.total is not None else ""
        if ended and self.total is not None and self.done >= self.total:
            count = f"{self.total:,} {self.unit}".rstrip()
        left = self.remaining_s
        parts = [count, self.state, f"{'took ' if ended else ''}{duration(self.elapsed_s)}"]
        if not ended and left is not None:
            parts.append(f"about {duration(left)} left")
        return f"{self.title}: {', '.join(part for part in parts if part)}"


class _Forgiving:
    """A stream whose reader may be gone, which is no reason to stop the work: what cannot be written is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


class Lines:
    """Plain lines, for what is no terminal. A thread looks at the innermost open phase every second.

    Args:
        stream: Where they go.
    """

    def __init__(self, stream: _Forgiving) -> None:
        self._stream = stream
        self._open: list[Phase] = []
        self._told: dict[int, float] = {}  # phase -> when it last had a line
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def begin(self, phase: Phase) -> None:
        """A phase begins; those that are open go on."""
        with self._lock:
            self._open.append(phase)

    def changed(self, phase: Phase) -> None:
        """A phase got on; the thread looks by itself."""

    def end(self, phase: Phase) -> None:
        """A phase is over."""
        with self._lock:
            if phase not in self._open:
                return
            self._open.remove(phase)
            told = self._told.pop(id(phase), None) is not None
            if told and phase.elapsed_s >= 2 * SHOWN_AFTER_S:
                self.note(phase.line(ended=True))

    def note(self, text: str) -> None:
        """Print lines between phases."""
        print(printable_name(text), file=self._stream, flush=True)

    def close(self) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join(timeout=5)

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            with self._lock:
                if not self._open:
                    continue
                phase, now = self._open[-1], time.monotonic()
                told = self._told.get(id(phase))
                due = phase.elapsed_s >= SHOWN_AFTER_S if told is None else now - told >= LINE_EVERY_S
                if due:
                    self._told[id(phase)] = now
                    self.note(phase.line())


class Bars:
    """Bars on a terminal, one for each open phase."""

    def __init__(self, stream: _Forgiving) -> None:
        from rich.console import Console  # noqa: PLC0415 - 50 ms that a help text need not pay
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            Progress,
            ProgressColumn,
            SpinnerColumn,
            Task,
            TaskID,
            TextColumn,
        )
        from rich.text import Text  # noqa: PLC0415

        class Said(ProgressColumn):
            """How far a phase is, asked whenever the bars are drawn, so that its seconds go on."""

            def render(self, task: Task) -> Text:
                shown: Phase = task.fields["phase"]
                return Text(printable_name(shown.line().removeprefix(f"{shown.title}: ")))

        self._console = Console(file=stream)  # type: ignore[arg-type]  # it has what is used of a stream
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            Said(),
            console=self._console,
            transient=True,
            refresh_per_second=4,
            redirect_stdout=False,  # results are for programs too, and not to be broken into lines
            redirect_stderr=False,
            get_time=time.monotonic,
        )
        self._tasks: dict[int, TaskID] = {}
        self._bars.start()

    def begin(self, phase: Phase) -> None:
        """A phase begins; those that are open go on."""
        title = printable_name(phase.title)
        self._tasks[id(phase)] = self._bars.add_task(title, total=phase.total, completed=phase.done, phase=phase)

    def changed(self, phase: Phase) -> None:
        """A phase got on; one that is not shown is passed over."""
        if (task := self._tasks.get(id(phase))) is not None:
            self._bars.update(task, completed=phase.done)

    def end(self, phase: Phase) -> None:
        """A phase is over; one that took a while leaves a line."""
        if (task := self._tasks.pop(id(phase), None)) is not None:
            self._bars.remove_task(task)
            if phase.elapsed_s >= SHOWN_AFTER_S:
                self.note(phase.line(ended=True))

    def note(self, text: str) -> None:
        """Print lines between phases."""
        self._console.print(printable_name(text), markup=False, highlight=False)

    def close(self) -> None:
        """Take the bars away."""
        self._bars.stop()


class _Shown:
    """The display of a process, which is made when the first phase begins."""

    def __init__(self) -> None:
        self.asked: TextIO | None = None
        self.display: Lines | Bars | None = None

    def get(self) -> Lines | Bars | None:
        if self.asked is not None and self.display is None:
            stream = _Forgiving(self.asked)
            self.display = Bars(stream) if stream.isatty() else Lines(stream)
        return self.display


_shown = _Shown()


def _forget() -> None:
    """A process that was forked has no thread that shows anything, and maybe a lock that nobody frees."""
    _shown.asked = _shown.display = None


os.register_at_fork(after_in_child=_forget)


@contextmanager
def shown(*, enabled: bool = True, stream: TextIO | None = None) -> Iterator[None]:
    """Show phases in the block, unless a block around it does.

    Args:
        enabled: Whether anything is shown.
        stream: Where; None takes stderr.
    """
    if not enabled or _shown.asked is not None:
        yield
        return
    _shown.asked = sys.stderr if stream is None else stream
    try:
        yield
    finally:
        hide()


def hide() -> None:
    """Show nothing more."""
    display, _shown.display, _shown.asked = _shown.display, None, None
    if display is not None:
        display.close()


_about: list[str] = []


@contextmanager
def about(what: str) -> Iterator[None]:
    """Say what the phases are about that begin in the block: `recognising` becomes `recognising WHAT`."""
    _about.append(what)
    try:
        yield
    finally:
        _about.remove(what)


@contextmanager
def phase(title: str, total: int | None = None, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Something that takes time; gives the function that takes how many units are done.

    Args:
        title: What is done.
        total: Units in all, where that is known.
        unit: What is counted, such as `clips`.
    """
    made = Phase(" ".join([title, *_about]), total, unit)

    def advance(done: int) -> None:
        made.advance(done)
        changed(made)

    with running(made):
        yield advance


@contextmanager
def running(made: Phase) -> Iterator[None]:
    """Show a phase in the block."""
    display = _shown.get()
    if display is not None:
        display.begin(made)
    try:
        yield
    finally:
        if display is not None and display is _shown.display:
            display.end(made)


def changed(made: Phase) -> None:
    """A phase that is shown got on."""
    if _shown.display is not None:
        _shown.display.changed(made)


def note(text: str) -> None:
    """Print lines where phases are shown."""
    if (display := _shown.get()) is not None:
        display.note(text)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
