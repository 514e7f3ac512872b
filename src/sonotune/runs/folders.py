"""A folder of files that is there whole or not at all, and that replaces an earlier one at one instant."""

from __future__ import annotations

import ctypes
import glob
import os
import secrets
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from sonotune.errors import RunDirectoryError
from sonotune.runs.files import sync_directory

_AT_FDCWD: Final = -100
_FORGOTTEN_S: Final = 86_400
_EXCHANGE: Final = 2  # RENAME_EXCHANGE of Linux's renameat2


@contextmanager
def replacing(folder: Path, *, alone: bool = False) -> Iterator[Path]:
    """A new folder to fill. It takes the name of `folder` when the block ends well, and is removed when it does not.

    What had that name is whole until then, and gone after. A kill at any instant leaves the one or the other whole,
    and may leave a folder beside it whose name begins with a dot: the new one, or the old one on its way out. Where
    the system cannot swap two folders at once, it may be only there; the next call puts it back.

    Args:
        folder: The name; of a link, what it names is replaced. Its parent is created where missing.
        alone: No other process writes this folder, so what a killed one left beside it is removed in the end;
            otherwise what is older than a day.

    Raises:
        OSError: Something cannot be written.
    """
    folder = folder.resolve()
    draft = folder.with_name(f".{folder.name}.f{secrets.token_hex(4)[1:]}.tmp")  # no number of a process
    draft.parent.mkdir(parents=True, exist_ok=True)
    left = list(draft.parent.glob(f".{glob.escape(folder.name)}.{'[0-9a-f]' * 8}.tmp*"))
    if alone and not folder.exists() and (old := next((one for one in left if one.suffix == ".old"), None)):
        old.rename(folder)
    draft.mkdir()
    try:
        yield draft
        _flush(draft)
        if folder.exists():
            exchange(draft, folder)
        else:
            draft.rename(folder)
        sync_directory(folder.parent)
        remove_forgotten(left, alone=alone)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def adding(folder: Path, own: Collection[str] = ()) -> Iterator[Path]:
    """A place to write files of `folder` to: a new folder for it where that can be, which is there whole or not at all.

    Where the folder holds other things, it is the place itself, and what says that all is there must be written last.

    Args:
        folder: The folder.
        own: Names of files in it that a new folder does without.

    Raises:
        OSError: Something cannot be written.
        RunDirectoryError: Something else came into the folder meanwhile, and would be lost.
    """
    if can_replace(folder, own):
        with replacing(folder) as draft:
            yield draft
            if not can_replace(folder, own):
                raise RunDirectoryError(f"{folder} was changed meanwhile, and is not replaced. Run the command again.")
    else:
        yield folder


def can_replace(folder: Path, own: Collection[str] = ()) -> bool:
    """Whether a folder may give way to a new one: it is absent, or holds nothing else and can be renamed.

    Args:
        folder: The folder.
        own: Names of files that may go with it.
    """
    folder = folder.resolve()
    if not folder.exists():
        return True
    if not folder.is_dir() or folder.is_mount() or in_use(folder) or not os.access(folder.parent, os.W_OK):
        return False
    return {entry.name for entry in folder.iterdir()} <= set(own)


def in_use(folder: Path) -> bool:
    """Whether this process was started in the folder or below; its user would be left in one that is gone."""
    here = Path.cwd()
    return folder.resolve() in (here, *here.parents)


def remove_forgotten(left: Iterable[Path], *, alone: bool = False) -> None:
    """Remove drafts that killed processes left.

    Args:
        left: Such folders.
        alone: No other process can be filling one; otherwise only those older than a day go.
    """
    for one in left:
        if alone or time.time() - one.lstat().st_mtime > _FORGOTTEN_S:
            shutil.rmtree(one, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Bring every file to the disk, with the permissions that new files have here; links are left alone."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for place, _, names in os.walk(folder):
        for name in names:
            file = Path(place) / name
            if file.is_symlink():
                continue
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_mode & 0o777 != mode:
                    with suppress(OSError):  # some mounts have no permissions
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
