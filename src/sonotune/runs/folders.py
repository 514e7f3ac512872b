"""A folder of files that is there whole or not at all, and that replaces an earlier one at one instant."""

from __future__ import annotations

import ctypes
import glob
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sonotune.runs.files import sync_directory

_AT_FDCWD: Final = -100
_EXCHANGE: Final = 2  # RENAME_EXCHANGE of Linux's renameat2


@contextmanager
def replacing(folder: Path, *, alone: bool = False) -> Iterator[Path]:
    """A new folder to fill. It takes the name of `folder` when the block ends well, and is removed when it does not.

    What had that name is whole until then, and gone after. A kill at any instant leaves the one or the other, and at
    worst the new folder under its own name, which begins with a dot.

    Args:
        folder: The name. Its parent is created where missing.
        alone: No other process writes this folder, so what a killed one left of it is removed.

    Raises:
        OSError: Something cannot be written.
    """
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    draft.parent.mkdir(parents=True, exist_ok=True)
    for left in draft.parent.glob(f".{glob.escape(folder.name)}.{'[0-9a-f]' * 8}.tmp*") if alone else ():
        shutil.rmtree(left, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        _flush(draft)
        if folder.exists():
            exchange(draft, folder)
        else:
            draft.rename(folder)
        sync_directory(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Bring every file to the disk, with the permissions that new files have here."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for place, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(place) / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fchmod(descriptor, mode)  # libraries write weights that no other user can read
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(place))


def exchange(draft: Path, folder: Path) -> None:
    """Swap two folders; where the system cannot do it at once, in two steps."""
    if _exchanged(draft, folder):
        return
    old = draft.with_name(f"{draft.name}.old")
    folder.rename(old)
    try:
        draft.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    old.rename(draft)


def _exchanged(first: Path, second: Path) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    paths = (os.fsencode(first), os.fsencode(second))
    return bool(rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _EXCHANGE) == 0)
