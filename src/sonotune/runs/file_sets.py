"""Files that belong together, replaced as one, so that a new one is never read beside an old one.

A folder with nothing else in it is swapped for a new one at one instant (`runs.folders.replacing`). In a folder that
holds other things, such as the audio of a corpus, no system replaces several files at once. There the set's own record
(the *mark*) says that it is being replaced before anything is touched, the old files go before the first new one comes,
and whoever reads a file of the set asks `check_whole` first: a kill leaves the old set, the new set, or one that is
refused and that the same command completes.
"""

from __future__ import annotations

import glob
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sonotune.errors import RunDirectoryError, SonotuneError
from sonotune.json_files import read_json
from sonotune.runs.files import (
    atomic_write_bytes,
    atomic_write_json,
    digest_bytes,
    digest_file,
    sync_directory,
    write_error,
)
from sonotune.runs.folders import adding, can_replace, remove_forgotten

_CHOOSE: Final = "another FOLDER"


class _Mark(TypedDict, total=False):
    """What is read of a mark: the digests of the files, and of those they replace while that is going on."""

    files: dict[str, str]
    replaces: dict[str, str]


def write_set(
    folder: Path, files: Mapping[str, bytes], *, mark: str, about: Mapping[str, Any], overwrite: bool = False
) -> None:
    """Write files and their mark; what an earlier call wrote under the same mark is replaced or removed.

    Args:
        folder: Where they go; made where missing.
        files: Name -> content.
        mark: Name of the file that says what belongs to the set.
        about: What else the mark says.
        overwrite: Replace files of these names that no earlier call wrote, or that were changed since.

    Raises:
        RunDirectoryError: A file of another origin would be lost, a link stands in the way, or the folder cannot be
            written. Nothing was changed.
        ResourceError: The disk is full. The old files are whole.
    """
    folder = folder.resolve()
    own = _own_files(folder, mark)
    stale = sorted({*files, *own} - {mark})
    _check_place(folder, stale, own, mark, overwrite=overwrite)
    digests = {name: digest_bytes(data) for name, data in files.items()}
    try:
        if can_replace(folder, {*stale, mark}):
            with adding(folder, {*stale, mark}) as draft:
                for name, data in files.items():
                    (draft / name).write_bytes(data)
                atomic_write_json(draft / mark, {**about, "files": digests})
                _check_place(folder, stale, own, mark, overwrite=overwrite)
            return
        _replace_in_place(folder, files, stale, mark, {**about, "files": digests})
    except OSError as error:
        raise write_error(error, folder, sum(map(len, files.values())), choose=_CHOOSE) from error


def check_whole(file: Path, *, mark: str, again: str, error: type[SonotuneError]) -> None:
    """Refuse a file of a set that is being replaced, or whose replacement was stopped.

    Args:
        file: The file that is to be read.
        mark: Name of its set's mark, in the same folder.
        again: The command that completes the set.
        error: Class of the error that is raised.

    Raises:
        SonotuneError: Of the class `error`: the set is not whole.
    """
    place = file.parent / mark
    if not place.is_file():
        return
    try:
        found = _read(place)
    except RunDirectoryError:
        return  # not ours, or damaged: it says nothing about the file
    if "replaces" in found and file.name in {*found.get("files", {}), *found["replaces"]}:
        raise error(
            f"{file} is replaced together with other files, and {place.name} says that this is not finished: it is "
            f"going on, or was stopped. Wait for it, or run `{again}` once more."
        )


def _read(mark: Path) -> _Mark:
    return read_json(mark, TypeAdapter(_Mark), error=RunDirectoryError, do="Remove it, or give another folder.")


def _own_files(folder: Path, mark: str) -> dict[str, set[str]]:
    """Names of files that an earlier call wrote -> digests they may have."""
    place = folder / mark
    if place.is_symlink() or not place.is_file():
        return {}
    found, own = _read(place), dict[str, set[str]]()
    if "files" not in found:
        raise RunDirectoryError(f"{place} is of another origin, and would be lost. Move it, or give another folder.")
    for table in (found.get("files", {}), found.get("replaces", {})):
        for name, digest in table.items():
            if Path(name).name == name and name != mark:  # a mark from elsewhere names nothing outside its folder
                own.setdefault(name, set()).add(digest)
    return own


def _check_place(
    folder: Path, names: Sequence[str], own: Mapping[str, set[str]], mark: str, *, overwrite: bool
) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunDirectoryError(f"{folder} is a file; a folder is needed. Give another one.")
    for name in (*names, mark):
        place = folder / name
        if place.is_symlink() or (place.exists() and not place.is_file()):
            raise RunDirectoryError(
                f"{place} is a link or no file, and is not replaced. Remove it, or give another folder."
            )
        if name != mark and not overwrite and place.exists() and digest_file(place) not in own.get(name, ()):
            origin = "was changed since it was written" if name in own else f"was not written with {mark}"
            raise RunDirectoryError(
                f"{place} {origin}, and would be lost. Give another folder, or pass --overwrite to replace it."
            )


def _replace_in_place(
    folder: Path, files: Mapping[str, bytes], stale: Sequence[str], mark: str, entries: Mapping[str, Any]
) -> None:
    left = list(folder.glob(f".{glob.escape(mark)}.{'[0-9a-f]' * 8}.tmp"))
    # The letter keeps digits alone from being taken for the number of a process, whose drafts are cleared away.
    draft = folder / f".{mark}.f{secrets.token_hex(4)[1:]}.tmp"
    draft.mkdir()
    try:
        for name, data in files.items():
            atomic_write_bytes(draft / name, data)
        old = {name: digest_file(folder / name) for name in stale if (folder / name).exists()}
        atomic_write_json(folder / mark, {**entries, "replaces": old})
        for name in old:
            (folder / name).unlink()
        sync_directory(folder)
        for name in files:
            (draft / name).rename(folder / name)
        sync_directory(folder)
        atomic_write_json(folder / mark, entries)
        remove_forgotten(left)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
