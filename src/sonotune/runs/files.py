"""Files that are replaced whole or not at all, digests, and values made plain and free of secrets.

Bytes go to a file beside the target, are flushed to disk and then renamed, so a kill or a power cut at any instant
leaves the old file or the new one.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sonotune.errors import ResourceError, RunDirectoryError, SonotuneError

logger = logging.getLogger(__name__)

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def digest_bytes(data: bytes) -> str:
    """SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 over the canonical JSON of a value: sorted keys, no spaces, UTF-8."""
    text = json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return digest_bytes(text.encode("utf-8", "backslashreplace"))


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Replace a file whole: write beside it, flush to disk, rename, flush the folder.

    Args:
        path: The file to create or replace. Its folder is created where missing.
        data: The new content.

    Raises:
        ResourceError: The disk is full; names the path and the bytes needed. The old file is untouched.
        RunDirectoryError: The folder cannot be written for another reason.
    """
    if _is_device(path):
        _write_to_device(path, data)
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        beside.replace(path)
        sync_directory(path.parent)
    except BaseException as error:
        try:
            beside.unlink(missing_ok=True)
        except OSError:
            logger.warning("%s is left behind: it could not be removed", beside)
        if isinstance(error, OSError):
            raise write_error(error, path, len(data)) from error
        raise


_DRAFT = re.compile(r"\.(?P<name>.+)\.(?P<process>[0-9]+)\.tmp")
_FORGOTTEN_S = 86_400.0  # a process of this number may be another one by now, or run on another machine


def clear_drafts(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left of files that were never finished: `.NAME.PROCESS.tmp`.

    A draft stays while its process runs, for a day at most. Nothing else is touched, and nothing is raised: what
    cannot be removed does no harm.

    Args:
        folder: Where they lie; may be missing.
        name: Of the one file whose drafts are removed, in a folder that others use as well; None takes all.
    """
    try:
        drafts = [(Path(entry.path), match) for entry in os.scandir(folder) if (match := _DRAFT.fullmatch(entry.name))]
    except OSError:
        return
    for path, match in drafts:
        if name is not None and match["name"] != name:
            continue
        with suppress(OSError):
            if not _is_running(int(match["process"])) or time.time() - path.lstat().st_mtime > _FORGOTTEN_S:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _is_device(path: Path) -> bool:
    """Whether a name is no file that could be replaced: `/dev/stdout`, `/dev/full`, a pipe.

    A redirected `/dev/stdout` leads to a file by way of `/proc`; a file in `/dev/shm` is one like any other.
    """
    try:
        mode = path.stat().st_mode
        places = [path.parent.resolve(), *([path.readlink()] if path.is_symlink() else [])]
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or any(place.is_relative_to("/proc") for place in places)


def _write_to_device(path: Path, data: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            write_all(descriptor, data)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise write_error(error, path, len(data), choose="another file") from error


def atomic_write_text(path: Path, text: str) -> None:
    """Replace a text file whole, as UTF-8. See `atomic_write_bytes`.

    Halves of characters, which UTF-8 cannot hold, are escaped as JSON escapes them: a file name that is not UTF-8 has
    some, and so may a transcript.
    """
    atomic_write_bytes(path, text.encode("utf-8", "backslashreplace"))
    clear_drafts(path.parent, path.name)


def atomic_write_json(path: Path, value: Any) -> None:
    """Replace a JSON file whole, indented, with secrets redacted. See `atomic_write_bytes` and `to_plain`."""
    text = json.dumps(redact(to_plain(value)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write_text(path, text)


def write_listing(error: SonotuneError, path: Path | None = None) -> None:
    """Write every problem of an error, a line each, and note in the error where they are.

    Args:
        error: One with a `listing`.
        path: Where to; None takes a new file among the temporary ones.
    """
    text = "".join(f"{' '.join(line.split())}\n" for line in error.listing)
    if path is None:
        descriptor, name = tempfile.mkstemp(prefix="sonotune-problems-", suffix=".txt")
        os.close(descriptor)
        path = Path(name)
    atomic_write_bytes(path, text.encode("utf-8", "backslashreplace"))
    error.kept_in(str(path))


def sync_directory(path: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_bytes(path: Path, data: bytes) -> None:
    """Append to a file, whole or not at all where the disk is full; makes it where it is missing.

    Raises:
        ResourceError: The disk is full. The file is as it was.
        RunDirectoryError: It cannot be written.
    """
    try:
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        try:
            size = os.fstat(log).st_size
            try:
                write_all(log, data)
            except OSError:
                os.ftruncate(log, size)
                raise
        finally:
            os.close(log)
    except OSError as error:
        raise write_error(error, path, len(data)) from error


def write_error(
    error: OSError, path: Path, num_bytes: int, *, choose: str = "run.dir=PATH"
) -> ResourceError | RunDirectoryError:
    """Turn a failed write into the error to raise: a full disk is exit 5, anything else exit 2.

    Args:
        error: What the operating system said.
        path: The file that was being written.
        num_bytes: How many bytes were to be written.
        choose: What names the place.
    """
    if error.errno not in DISK_FULL:
        return RunDirectoryError(
            f"{path} cannot be written: {error.strerror or error}. Name a place that may be written to ({choose})."
        )
    return ResourceError(
        f"the disk is full: {path} needs {num_bytes} bytes, and {_free_bytes(path)} are free. "
        f"Nothing that was saved before is lost; free some space, or name another place ({choose}), "
        "and run the same line again."
    )


def make_folder(path: Path, *, choose: str = "run.dir=PATH") -> None:
    """Make a folder and those above it, where they are missing, and see that files can be made in it.

    Args:
        path: The folder.
        choose: What names the place, for the error.

    Raises:
        RunDirectoryError: It cannot be made or written.
        ResourceError: The disk is full.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise write_error(error, path, 0, choose=choose) from error


def _free_bytes(path: Path) -> str:
    for folder in path.parents:
        try:
            return str(shutil.disk_usage(folder).free)
        except OSError:
            continue
    return "an unknown number"


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte to an open file, however many calls it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def to_plain(value: Any) -> Any:
    """Turn a value into what JSON can hold.

    Dataclasses become mappings; tuples, sets and arrays lists; paths text; NaN and infinities the strings `nan`,
    `inf` and `-inf`, because JSON has no such numbers and a lost loss must stay visible.

    Raises:
        TypeError: The value, or something in it, has no JSON form.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): to_plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(child) for child in value]
    if isinstance(value, (set, frozenset)):
        return [to_plain(child) for child in sorted(value)]
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (np.generic, np.ndarray)):
        return to_plain(value.tolist())
    raise TypeError(f"{value!r} of type {type(value).__name__} has no JSON form")


_SECRET_NAME = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|KEY|CREDENTIALS?)$", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b|(?<=://)[^/@\s\"]+:[^/@\s\"]+(?=@)")


def redact(value: Any) -> Any:
    """Replace secrets by `***` in a text, or in every text of nested plain values (names stay).

    Secrets are the values of environment variables whose names say so, model hub tokens, and passwords in addresses.
    Every record and event passes through here, because an exception's text may quote an address or a header.
    """
    secrets = [text for name, text in os.environ.items() if len(text) >= 8 and _SECRET_NAME.search(name)]
    return _redact(value, sorted(secrets, key=len, reverse=True))


def _redact(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "***")
        return _SECRET_TEXT.sub("***", value)
    if isinstance(value, dict):
        return {name: _redact(child, secrets) for name, child in value.items()}
    if isinstance(value, list):
        return [_redact(child, secrets) for child in value]
    return value
