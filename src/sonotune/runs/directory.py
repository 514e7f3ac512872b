"""A run's directory: the lock, the event log and the record.

It holds `run.json` (the record), `events.jsonl` (one line per thing that happened), `checkpoints/`, `adapter/`,
`predictions/` and `run.lock`. The lock is the kernel's (`flock`), which lets go when its process dies, however it dies.
Under several processes (`torchrun`) the first opens the directory and the others visit it: they read, and what they
write goes nowhere.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sonotune.errors import RunDirectoryError, SonotuneError
from sonotune.json_files import Number, read_json_lines
from sonotune.runs.files import (
    append_bytes,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    clear_drafts,
    make_folder,
    redact,
    to_plain,
    write_error,
    write_listing,
)
from sonotune.runs.record import LOCK, ScoreEntries, read_record, record_to_json
from sonotune.types import RunRecord

logger = logging.getLogger(__name__)

ResumeMode = Literal["auto", "never", "must"]

REFUSED = "refused.txt"
"""Every problem of data that a run was refused for."""
TRAINED_ON = "trained_on.jsonl"
"""The training clips of a run, and what their recordings contain."""
_OWN_FILES = frozenset({LOCK, "events.jsonl", REFUSED})
_LOCK_TRIES, _LOCK_WAIT_S = 3, 0.02


class RunDirectory:
    """An open, locked run directory. Make one with `create_or_open`; close it, or use it as a context manager.

    Attributes:
        path: The directory.
        resumed: Whether an unfinished run was here already, or one whose settings may change.
        changed: Dotted setting -> what it was in that run and what it is now, where it was allowed to change.
    """

    def __init__(
        self,
        path: Path,
        lock: int | None,
        *,
        resumed: bool,
        changed: Mapping[str, tuple[Any, Any]] | None = None,
        visiting: bool = False,
        own: bool = False,
    ) -> None:
        self.path = path
        self._own = own
        self.resumed, self.changed = resumed, dict(changed or {})
        self._lock, self._visiting = lock, visiting
        _OPEN.add(self)

    @classmethod
    def visit(cls, path: Path) -> Self:
        """A directory that another process writes; nothing is made, locked or written."""
        return cls(path, None, resumed=False, visiting=True)

    @classmethod
    def create_or_open(
        cls,
        path: Path,
        *,
        config_digest: str,
        settings: Mapping[str, Any] | None = None,
        resume: ResumeMode = "auto",
        allow_change: Collection[str] = (),
    ) -> Self:
        """Make a run directory, or open the one of an unfinished run to go on with it.

        Args:
            path: The directory; made where missing.
            config_digest: Digest of the settings that can change the result.
            settings: Those that the digest is over, by dotted name, to say what differs from an earlier run.
            resume: `auto` goes on where there is something to go on with, `never` wants a fresh directory, `must`
                wants an earlier run.
            allow_change: Settings that may be others than those of the earlier run, which may then be finished too.

        Raises:
            RunDirectoryError: Another process holds the directory; it belongs to another configuration, to a finished
                run or to something else; or it cannot be written.
            ResourceError: The disk is full.
        """
        own = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(error, path, 0) from error
        lock = _take_lock(path)
        try:
            changed = _changes_since_earlier_run(path, config_digest, settings or {}, resume, allow_change)
            for name in ("checkpoints", "predictions"):
                make_folder(path / name)
            directory = cls(path, lock, resumed=changed is not None, changed=changed, own=own)
            directory._drop_torn_line()
            (path / REFUSED).unlink(missing_ok=True)  # of an earlier try
            for folder in (path, directory.predictions_dir):
                clear_drafts(folder)
        except BaseException:
            os.close(lock)
            raise
        return directory

    @property
    def checkpoints_dir(self) -> Path:
        """Where checkpoints are published."""
        return self.path / "checkpoints"

    @property
    def adapter_dir(self) -> Path:
        """Where the adapter is saved, in PEFT format."""
        return self.path / "adapter"

    @property
    def predictions_dir(self) -> Path:
        """Where predictions are kept."""
        return self.path / "predictions"

    @property
    def record_path(self) -> Path:
        """The record, `run.json`."""
        return self.path / "run.json"

    @property
    def events_path(self) -> Path:
        """The event log, `events.jsonl`."""
        return self.path / "events.jsonl"

    def event(self, kind: str, /, **fields: Any) -> None:
        """Append one line to the event log: `time` (seconds since 1970), `kind` and the fields.

        Raises:
            ResourceError: The disk is full. The log keeps whole lines only.
            RunDirectoryError: The directory is closed or the log cannot be written.
        """
        if not self._may_write():
            return
        line = {"time": round(time.time(), 3), "kind": kind, **fields}
        data = _event_line(redact(to_plain(line)))
        append_bytes(self.events_path, data)

    def events(self) -> Iterator[Mapping[str, Any]]:
        """Every event, oldest first. A last line cut off by a crash is left out."""
        return read_events(self.events_path)

    def truncate_events_after(self, step: int) -> None:
        """Drop the events of later steps, because a resumed run takes those steps again."""
        if self._visiting:
            return
        kept = [line for line in self.events() if not _is_after(line, step)]
        atomic_write_bytes(self.events_path, b"".join(_event_line(line) for line in kept))

    def write_record(self, record: RunRecord) -> None:
        """Replace `run.json` whole.

        Raises:
            ResourceError: The disk is full; the earlier record is untouched.
            RunDirectoryError: The directory is closed or cannot be written.
        """
        if self._may_write():
            atomic_write_json(self.record_path, record_to_json(record))

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the directory whole.

        Raises:
            ResourceError: The disk is full; an earlier file is untouched.
            RunDirectoryError: The directory is closed or cannot be written.
        """
        if self._may_write():
            atomic_write_text(self.path / name, text)

    def list_problems(self, error: BaseException) -> None:
        """Write all problems of an error that shows the first ones only."""
        if isinstance(error, SonotuneError) and error.listing and self._may_write() and not self._visiting:
            write_listing(error, self.path / REFUSED)

    def drop_predictions(self, *moments: str) -> None:
        """Remove predictions of moments that a run which goes on comes to again."""
        for moment in () if self._visiting else moments:
            (self.predictions_dir / f"{moment}.jsonl").unlink(missing_ok=True)

    def read_record(self) -> RunRecord:
        """The record as it stands on disk. See the function `read_record`."""
        return read_record(self.record_path)

    def discard(self) -> bool:
        """Remove a directory that was made for this run and holds no result; whether it was removed."""
        if not self._own or self._lock is None or _has_results(self.path):
            return False
        shutil.rmtree(self.path)
        return True

    def close(self) -> None:
        """Release the lock. Closing twice is allowed."""
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _may_write(self) -> bool:
        """Whether what is written goes anywhere; raises where the directory is closed."""
        if self._lock is None and not self._visiting:
            raise RunDirectoryError(f"{self.path} is closed; only the process that holds its lock may write to it.")
        return not self._visiting

    def _drop_torn_line(self) -> None:
        """Cut off what a crash left of a line, so that the next event starts on a line of its own."""
        if not self.events_path.is_file():
            return
        data = self.events_path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            logger.warning("%s ended in the middle of a line; that event is lost", self.events_path)
            os.truncate(self.events_path, len(whole))

    def _forget(self) -> None:
        """In a forked child: drop the copy of the lock, which would outlive a killed parent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


_OPEN: weakref.WeakSet[RunDirectory] = weakref.WeakSet()


def _forget_locks() -> None:
    for directory in _OPEN:
        directory._forget()


os.register_at_fork(after_in_child=_forget_locks)


def _take_lock(path: Path) -> int:
    lock_path = path / LOCK
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise write_error(error, lock_path, 0) from error
    try:
        _wait_briefly(lock)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise RunDirectoryError(
            f"{path} is in use by process {holder}. Two runs cannot share a directory; "
            "wait for that run, stop it, or choose another directory with run.dir=PATH."
        ) from error
    except OSError as error:
        os.close(lock)
        raise write_error(error, lock_path, 16) from error
    return lock


def _wait_briefly(lock: int) -> None:
    """Take a lock that who asks whether it is held may hold for an instant (`is_locked`)."""
    for _ in range(_LOCK_TRIES):
        with suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(_LOCK_WAIT_S)
    return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _failed_with_nothing(path: Path, record: RunRecord) -> bool:
    """Whether a run was refused before it made anything: the user mends a setting and runs the line again."""
    return record.status == "failed" and not record.scores and not _has_results(path)


def _has_results(path: Path) -> bool:
    return any(next((path / name).glob("*"), None) for name in ("checkpoints", "predictions", "adapter", "model"))


def _changes_since_earlier_run(
    path: Path, config_digest: str, settings: Mapping[str, Any], resume: ResumeMode, allow_change: Collection[str]
) -> dict[str, tuple[Any, Any]] | None:
    """What is to change in an earlier run that goes on; None where there is none.

    Raises:
        RunDirectoryError: What is there may not be touched.
    """
    record_path = path / "run.json"
    other = "Choose another directory with run.dir=PATH, or remove this one."
    if not record_path.is_file():
        checkpoints = path / "checkpoints"
        if checkpoints.is_dir() and any(checkpoints.glob("step-*")):
            raise RunDirectoryError(f"{path} holds checkpoints, but no run.json says what they are of. {other}")
        if strange := sorted(child.name for child in path.iterdir() if not _is_leftover(child)):
            raise RunDirectoryError(f"{path} is not a run directory: it holds {', '.join(strange[:3])}. {other}")
        if resume == "must":
            raise RunDirectoryError(f"{path} holds no run to resume. Take run.resume=auto to start one.")
        return None
    record = read_record(record_path)
    if resume != "must" and record.config_digest != config_digest and _failed_with_nothing(path, record):
        logger.info("%s holds a run that failed before it had any result; a new one takes its place", path)
        for name in ("run.json", "events.jsonl", REFUSED, TRAINED_ON):
            (path / name).unlink(missing_ok=True)
        return None
    if resume == "never":
        raise RunDirectoryError(f"{path} holds a run ({record.status}), and run.resume is never. {other}")
    changed = _differences(record.config, settings) if record.config_digest != config_digest else {}
    refused = {name: both for name, both in changed.items() if name not in allow_change}
    if record.config_digest != config_digest and (refused or not changed):
        lines = "".join(f"\n  - {name}: was {was!r}, now {now!r}" for name, (was, now) in refused.items())
        raise RunDirectoryError(
            f"{path} holds a run of another configuration.{lines}\n"
            f"Use the same settings to go on with it, or name those that may change in run.allow_change. {other}"
        )
    if record.status == "finished" and not changed and "data.train" not in allow_change:  # whose clips may be others
        raise RunDirectoryError(
            f"{path} holds a finished run of these settings, which is not overwritten. To make it longer, raise "
            f"training.max_epochs and name that in run.allow_change. {other}"
        )
    return changed


def _is_leftover(child: Path) -> bool:
    """Whether a file may stand in a run directory that was made but not yet begun."""
    if child.is_dir():
        return child.name in {"checkpoints", "predictions"} and not any(child.iterdir())
    return child.name in _OWN_FILES or (child.name.startswith(".run.json.") and child.name.endswith(".tmp"))


def _differences(before: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted setting -> what it was in nested settings and what it is now, where that is not the same."""
    found = {}
    for name, now in redact(to_plain(settings)).items():
        section, _, setting = name.partition(".")
        was = before.get(section, {}).get(setting)
        if was != now:
            found[name] = (was, now)
    return found


class _Event(TypedDict, total=False):
    """What is read of events, each kind of which has some of these and others."""

    kind: str
    step: int | None
    audio_s: Number
    seconds: Number | dict[str, Number]
    scores: dict[str, ScoreEntries]


_EVENT = TypeAdapter(_Event)


def read_events(path: Path) -> Iterator[Mapping[str, Any]]:
    """Every event of a log, oldest first; none where there is no log. A last line cut off by a crash is left out.

    Raises:
        RunDirectoryError: A line is no event.
    """
    if path.exists():
        do = "The log was changed; restore it, or move it away."
        for event in read_json_lines(path, _EVENT, error=RunDirectoryError, do=do, whole=True):
            yield cast("Mapping[str, Any]", event)


def _event_line(event: Mapping[str, Any]) -> bytes:
    text = json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def _is_after(event: Mapping[str, Any], step: int) -> bool:
    found = event.get("step")
    return isinstance(found, int) and found > step
