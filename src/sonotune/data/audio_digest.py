"""What recordings contain, in one digest. A file that was read once is not read again while it stays as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, TypeAdapter

from sonotune.errors import RunDirectoryError
from sonotune.json_files import read_json
from sonotune.runs import atomic_write_text, digest_file, digest_json
from sonotune.types import Clip

_THREADS: Final = 4  # SHA-256 runs beside Python; more wait for the disk
_MISSING: Final = "missing"
_ENTRIES: Final = TypeAdapter(dict[str, Annotated[list[int | str], Field(min_length=4, max_length=4)]])


class AudioDigests:
    """SHA-256 of audio files, remembered in a file by path, size, time of change and inode.

    Args:
        file: Where they are remembered; None reads every file.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._known: dict[str, list[int | str]] = _read(file) if file is not None else {}

    def of(self, clips: Iterable[Clip]) -> str:
        """One digest over the content of the files of some clips, in order; what cannot be read counts as missing."""
        paths = [clip.path.absolute() for clip in clips]
        with ThreadPoolExecutor(_THREADS) as threads:
            found = dict(zip(files := list(dict.fromkeys(paths)), threads.map(self._of_file, files), strict=True))
        return digest_json([found[path] for path in paths])

    def save(self) -> None:
        """Write down what is known now."""
        if self._file is not None:
            atomic_write_text(self._file, json.dumps(self._known) + "\n")

    def _of_file(self, path: Path) -> str:
        try:
            status = path.stat()
            mark: list[int | str] = [status.st_size, status.st_mtime_ns, status.st_ino]
            name = os.fsencode(path).decode("utf-8", "backslashreplace")
            if (kept := self._known.get(name)) and kept[:-1] == mark:
                return str(kept[-1])
            digest = digest_file(path)
        except OSError:
            return _MISSING  # a state of the data set too
        self._known[name] = [*mark, digest]
        return digest


def _read(file: Path) -> dict[str, list[int | str]]:
    """What was remembered; a damaged file is as good as none."""
    if not file.is_file():
        return {}
    try:
        return read_json(file, _ENTRIES, error=RunDirectoryError, do="It is made again.")
    except RunDirectoryError:
        return {}
