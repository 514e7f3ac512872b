"""Whether something is there under a name that came from outside: one that no file system takes names nothing.

`Path.is_file` and its like raise for a name that is too long, on Python 3.11 to 3.13.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

_IMPOSSIBLE: Final = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ})


def is_folder(place: str | Path) -> bool:
    """Whether it is a folder; a folder that may not be looked into raises its OSError."""
    try:
        return Path(place).is_dir()
    except OSError as error:
        return _names_something(error)


def is_file(place: str | Path) -> bool:
    """Whether it is a regular file; as `is_folder`."""
    try:
        return Path(place).is_file()
    except OSError as error:
        return _names_something(error)


def exists(place: str | Path) -> bool:
    """Whether anything is there; as `is_folder`."""
    try:
        return Path(place).exists()
    except OSError as error:
        return _names_something(error)


def _names_something(error: OSError) -> bool:
    if error.errno not in _IMPOSSIBLE:
        raise error
    return False
