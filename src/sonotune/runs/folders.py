"""A folder of files that is there whole or not at all, and that replaces an earlier one at one instant."""

from __future__ import annotations

import ctypes
import fcntl
import glob
import os
import secrets
import shutil
import sys
import time
from collections.abc import Collection, Iterator
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
    and may leave a folder beside it whose name begins with a dot: the new one, or the old one on its way out. The next
    call removes it (`drafting`). Where the system cannot swap two folders at once, the old one may be only there; the
    next call puts it back.

    Args:
        folder: The name; of a link, what it names is replaced. Its parent is created where missing.
        alone: No other process writes this folder, so all that a killed one left beside it is removed in the end.

    Raises:
        OSError: Something cannot be written.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    left = _left_beside(folder)
    if alone and not folder.exists() and (old := next((one for one in left if one.suffix == ".old"), None)):
        old.rename(folder)
    with drafting(folder) as draft:
        yield draft
        _flush(draft)
        if folder.exists():
            exchange(draft, folder)
        else:
            draft.rename(folder)
        sync_directory(folder.parent)
        if alone:
            for one in left:
                shutil.rmtree(one, ignore_errors=True)


@contextmanager
def drafting(target: Path) -> Iterator[Path]:
    """A new folder beside a target, to fill; what is there in the end is removed.

    A lock of the system on the folder says that its process lives. Drafts of the same target that nobody holds are
    removed first; where there are no such locks, those older than a day.

    Args:
        target: A file or folder whose name the draft has, with a dot before it and a number behind.
    """
    for one in _left_beside(target):
        if one.suffix != ".old" or target.exists():  # else it is all that there is of the target
            _remove_if_left(one)
    while True:
        # The letter keeps digits alone from being taken for the number of a process, whose drafts are cleared away.
        draft = target.with_name(f".{target.name}.f{secrets.token_hex(4)[1:]}.tmp")
        draft.mkdir()
        lock = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with suppress(OSError):  # some mounts have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if draft.exists():
            break
        os.close(lock)  # another process took it for left, in the instant before it was locked
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(lock)


def _left_beside(target: Path) -> list[Path]:
    return list(target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}.tmp*"))


def _remove_if_left(draft: Path) -> None:
    with suppress(OSError):
        lock = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if _is_left(draft, lock):
                shutil.rmtree(draft, ignore_errors=True)
        finally:
            os.close(lock)


def _is_left(draft: Path, lock: int) -> bool:
    """Whether the process of a draft is gone. The lock is taken where it is free."""
    old = time.time() - os.fstat(lock).st_mtime > _FORGOTTEN_S
    if draft.suffix == ".old":  # the folder that is replaced, which nobody locks
        return old
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # there are no locks here
        return old
    return True


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
