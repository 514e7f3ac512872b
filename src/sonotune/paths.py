"""Names from outside: whether something is there (a name that no file system takes names nothing), and short ones.

`Path.is_file` and its like raise for a name that is too long, on Python 3.11 to 3.13.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
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


def short_names(places: Sequence[str | Path]) -> list[str]:
    """The last parts of paths, as many as tell all of them apart; the paths themselves where one stands twice."""
    parts = [Path(place).parts for place in places]
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def _names_something(error: OSError) -> bool:
    if error.errno not in _IMPOSSIBLE:
        raise error
    return False
