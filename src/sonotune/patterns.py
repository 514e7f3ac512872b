"""Regular expressions that somebody else wrote, tried in a process of their own before they are matched here.

Python's matcher can go back without end, and nothing but the end of its process stops it from another thread.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from typing import Final, NamedTuple

SECONDS: Final = 10.0
"""In which patterns have to be matched."""
MOST_CHARACTERS: Final = 10_000
"""Of all patterns of one file or setting."""

_TRY: Final = """
import json, re, sys
for tries, texts in json.load(sys.stdin):
    for method, pattern, flags in tries:
        tried = getattr(re.compile(pattern, flags), method)
        for text in texts:
            tried(text)
"""


class Try(NamedTuple):
    """How a pattern is matched.

    Attributes:
        method: Of a compiled pattern: `search`, `match` or `fullmatch`.
        pattern: The regular expression.
        flags: Of `re`.
    """

    method: str
    pattern: str
    flags: int = 0


def problem_of(pattern: str) -> str | None:
    """Why a text is no regular expression; None where it is one."""
    if len(pattern) > MOST_CHARACTERS:
        return f"it has more than {MOST_CHARACTERS} characters"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return str(error)
    return None


def ends_in_time(groups: Sequence[tuple[Sequence[Try], Sequence[str]]], *, seconds: float = SECONDS) -> bool:
    """Match patterns with texts in another process, which is stopped after some seconds.

    Args:
        groups: Patterns, and the texts that each of them is matched with.
        seconds: For all of it.
    """
    try:
        subprocess.run(  # noqa: S603 - our own program; patterns and texts are its input
            [sys.executable, "-I", "-S", "-c", _TRY],
            input=json.dumps(groups).encode(),
            timeout=seconds,
            capture_output=True,
            check=True,
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError, OSError):
        return False
    return True
