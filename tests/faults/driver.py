"""Runs commands that are killed at a file-system operation: a warmed process that forks one for every kill.

Reads a request a line, `{"words", "watch", "at", "exchange"}`, and answers each with
`{"killed", "code", "operations", "said"}`. The forked process runs the command in this interpreter. Before its `at`-th
operation that changes something below the folder `watch` it kills itself with SIGKILL; a write is cut in half first.
With `exchange` false the system cannot swap two folders.

Python announces what it opens for writing, renames, removes and makes (`sys.addaudithook`); `os.write` and `os.fsync`
are wrapped, and nothing is flushed to the disk, which a kill does not ask for. What a library writes by itself
(safetensors) lies between the operations before and after it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class KillPoint:
    """Counts the operations that change a folder, and kills the process at one of them.

    Args:
        watch: The folder.
        at: Which operation is the last, from 1; None counts all.
        note: Descriptor that each operation is written to.
    """

    def __init__(self, watch: Path, at: int | None, note: int) -> None:
        self._watch, self._at, self._note, self._count = watch.resolve(), at, note, 0
        self._write = os.write
        self._getpid = os.getpid()

    def install(self) -> None:
        """From now on operations count."""
        sys.addaudithook(self._heard)

        def write(descriptor: int, data: bytes) -> int:
            self._reach(f"write {self._of(descriptor)}", [self._of(descriptor)], lambda: self._half(descriptor, data))
            return self._write(descriptor, data)

        def fsync(descriptor: int) -> None:
            self._reach(f"fsync {self._of(descriptor)}", [self._of(descriptor)])

        os.write, os.fsync = write, fsync

    def _half(self, descriptor: int, data: bytes) -> None:
        self._write(descriptor, bytes(data)[: len(data) // 2])

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes) and isinstance(flags, int) and flags & CHANGES:
                self._reach(f"open {path!r}", [path])
        elif event == "ctypes.dlsym" and arguments[1] == "renameat2":
            self._reach("exchange", [self._watch])
        elif event in ("os.rename", "os.link"):
            self._reach(f"{event} {arguments[:2]}", [self._at_folder(arguments[0], arguments[2]), arguments[1]])
        elif event in ("os.remove", "os.rmdir"):
            self._reach(f"{event} {arguments[0]!r}", [self._at_folder(*arguments)])
        elif event in ("os.mkdir", "os.chmod"):
            self._reach(f"{event} {arguments[0]!r}", [self._at_folder(arguments[0], arguments[2])])
        elif event in ("os.symlink", "os.truncate", "os.utime", "os.chown"):
            self._reach(f"{event} {arguments[:2]}", list(arguments[:2]))

    def _at_folder(self, path: Any, folder: int) -> Any:
        """A path that may be relative to an open folder."""
        if isinstance(path, str | bytes) and folder >= 0:
            return Path(self._of(folder)) / os.fsdecode(path)
        return path

    def _of(self, descriptor: int) -> str:
        try:
            return str(Path(f"/proc/self/fd/{descriptor}").readlink())
        except OSError:
            return ""

    def _reach(self, what: str, paths: list[Any], before: Callable[[], None] | None = None) -> None:
        if os.getpid() != self._getpid or not any(self._watched(path) for path in paths):
            return
        self._count += 1
        self._write(self._note, f"{what}\n".encode(errors="replace"))
        if self._count == self._at:
            if before is not None:
                before()
            os.kill(self._getpid, signal.SIGKILL)

    def _watched(self, path: Any) -> bool:
        if isinstance(path, int):
            path = self._of(path)
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        return Path(os.fsdecode(path)).absolute().is_relative_to(self._watch)


def run(request: dict[str, Any], note: int, said: int) -> int:
    """Run the command in this process; its exit code."""
    from sonotune import cli
    from sonotune.runs import folders

    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout = sys.stderr = io.TextIOWrapper(os.fdopen(1, "wb", 0), write_through=True)
    os.environ["SONOTUNE_PROGRESS"] = "never"
    if not request.get("exchange", True):
        folders.sys = type(sys)("sys")  # type: ignore[misc]
        folders.sys.platform = "elsewhere"
    KillPoint(Path(request["watch"]), request.get("at"), note).install()
    try:
        cli.main(request["words"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Fork, run, wait."""
    with tempfile.TemporaryFile() as note, tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as imported:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = run(request, note.fileno(), said.fileno())
                imported.write("\n".join(sys.modules).encode())
                imported.flush()
            except BaseException:  # noqa: BLE001  (a forked process must not go on as this one)
                os.write(said.fileno(), traceback.format_exc().encode())
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (note, said, imported):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    warm(texts[2].split())
    return {
        "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "operations": texts[0].splitlines(),
        "said": texts[1][-2000:],
    }


def warm(modules: Iterable[str]) -> None:
    """Import what a command imported, so that the next one need not; what cannot be imported alone is left to it."""
    for name in modules:
        if name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def say(line: str) -> None:
    """Write a line to whoever started this."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Answer requests."""
    warm(sys.argv[1:])
    say("ready")
    for line in sys.stdin:
        if (threads := len(list(Path("/proc/self/task").iterdir()))) != 1:
            raise SystemExit(f"{threads} threads run, and a fork would have one of them")
        say(json.dumps(answer(json.loads(line))))


if __name__ == "__main__":
    main()
