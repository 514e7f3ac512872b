"""What recordings contain, in one digest. A file that was read once is not read again while it stays as it is."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, TypeAdapter

from sonotune.errors import RunDirectoryError
from sonotune.json_files import read_json
from sonotune.processes import SINGLE_PROCESS, Processes
from sonotune.progress import phase
from sonotune.runs import atomic_write_text, digest_file, digest_json
from sonotune.types import Clip

_THREADS: Final = 4  # SHA-256 runs beside Python; more wait for the disk
_TOGETHER: Final = 2000  # files between two exchanges of several processes
_SAVE_EVERY_S: Final = 30.0
_MISSING: Final = "missing"
_ENTRIES: Final = TypeAdapter(dict[str, Annotated[list[int | str], Field(min_length=5, max_length=5)]])


class AudioDigests:
    """SHA-256 of audio files, remembered in a file by path, size, times of change and inode.

    Args:
        file: Where they are remembered; None reads every file.
        keep: Whether this process writes it.

    Attributes:
        found: Absolute path -> SHA-256, of the files that were asked for and could be read.
    """

    def __init__(self, file: Path | None = None, *, keep: bool = True) -> None:
        self._file, self._keep, self._new, self._saved = file, keep, False, time.monotonic()
        self._known: dict[str, list[int | str]] = _read(file) if file is not None else {}
        self.found: dict[Path, str] = {}

    def of(self, clips: Sequence[Clip], *, processes: Processes = SINGLE_PROCESS) -> str:
        """One digest over the content of the files of some clips, in order; what cannot be read counts as missing.

        Args:
            clips: Whose files.
            processes: Share the files; all of them get the digest.
        """
        paths = [clip.path.absolute() for clip in clips]
        files = list(dict.fromkeys(paths))
        found: dict[Path, str] = {}
        with phase("reading audio", len(files), "files") as advance, ThreadPoolExecutor(_THREADS) as threads:
            for start in range(0, len(files), _TOGETHER):  # so that no process waits for long, and a kill loses little
                share = processes.shard(files[start : start + _TOGETHER])
                own = dict(zip(share, threads.map(self._of_file, share), strict=True))
                entries = {name: self._known[name] for name in map(_name, share) if name in self._known}
                for digests, known in processes.all_gather((own, entries)):
                    found |= digests
                    self._new |= any(self._known.get(name) != entry for name, entry in known.items())
                    self._known |= known
                advance(len(found))
                if time.monotonic() - self._saved > _SAVE_EVERY_S:
                    self._save()
        # Processes that were started with other clips share other files; that is refused when they compare digests.
        found |= {path: self._of_file(path) for path in files if path not in found}
        self._save()
        self.found |= {path: digest for path, digest in found.items() if digest != _MISSING}
        return digest_json([found[path] for path in paths])

    def _save(self) -> None:
        """Write down what is known now: all of it, and so not after every exchange."""
        self._saved = time.monotonic()
        if self._file is not None and self._keep and self._new:
            atomic_write_text(self._file, json.dumps(self._known) + "\n")
            self._new = False

    def _of_file(self, path: Path) -> str:
        try:
            status = path.stat()
            state: list[int | str] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            name = _name(path)
            if (kept := self._known.get(name)) and kept[:-1] == state:
                return str(kept[-1])
            digest = digest_file(path)
        except OSError:
            return _MISSING  # a state of the data set too
        self._known[name] = [*state, digest]
        self._new = True
        return digest


def _name(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _read(file: Path) -> dict[str, list[int | str]]:
    """What was remembered; a damaged file is as good as none."""
    if not file.is_file():
        return {}
    try:
        return read_json(file, _ENTRIES, error=RunDirectoryError, do="It is made again.")
    except RunDirectoryError:
        return {}
