"""Patterns of an adapter that somebody else wrote: tried before PEFT matches them with no limit of time.

PEFT takes the names of modules, of ranks and of scales as regular expressions. One that goes back without end hangs
whatever opens the adapter. Plain names, which sonotune writes, cost nothing here; anything else is tried on the
model's modules in a process of its own, which is stopped after some seconds.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Final

from sonotune.errors import AdapterError

SECONDS: Final = 10.0
"""In which all patterns of an adapter have to be matched with all modules of a model."""
MOST_CHARACTERS: Final = 10_000
_PLAIN: Final = re.compile(r"[\w.\-]*")
_TRY: Final = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    whole, end = re.compile(pattern), re.compile(rf"(.*\\.)?({pattern})$")
    for name in names:
        whole.fullmatch(name), end.match(name)
"""


def check_patterns(config: Mapping[str, Any], modules: Iterable[str], *, file: str) -> None:
    """Refuse patterns that are none, or that do not come to an end.

    Args:
        config: Content of `adapter_config.json`.
        modules: Full names of the modules of the base model.
        file: Its name, for the message.

    Raises:
        AdapterError: A pattern is no regular expression, or takes too long; or there are more names than modules, all
            of which PEFT would compare with each other.
    """
    modules = list(modules)
    named = _patterns(config)
    if len(named) > 4 * len(modules):
        raise AdapterError(
            f"{file} names {len(named)} modules, and the model has {len(modules)}. Copy the adapter again."
        )
    patterns = [text for text in named if not _PLAIN.fullmatch(text)]
    if not patterns:
        return
    if sum(map(len, patterns)) > MOST_CHARACTERS:
        raise AdapterError(f"{file} has patterns of more than {MOST_CHARACTERS} characters. Copy the adapter again.")
    for text in patterns:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise AdapterError(
                f"{file}: {text[:80]!r} is no regular expression: {error}. Copy the adapter again."
            ) from error
    try:
        subprocess.run(  # noqa: S603 - our own program; the patterns are its input
            [sys.executable, "-I", "-S", "-c", _TRY],
            input=json.dumps([patterns, modules]).encode(),
            timeout=SECONDS,
            capture_output=True,
            check=True,
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError, OSError) as error:
        raise AdapterError(
            f"{file}: its patterns, such as {patterns[0][:80]!r}, are not matched with the modules of the model within "
            f"{SECONDS:g} s. Name the modules instead."
        ) from error


def _patterns(config: Mapping[str, Any]) -> list[str]:
    found: list[Any] = [config.get(name) for name in ("target_modules", "exclude_modules", "layers_pattern")]
    for name in ("rank_pattern", "alpha_pattern"):
        found += [*config[name]] if isinstance(config.get(name), Mapping) else []
    for listed in [one for one in found if isinstance(one, list)]:
        found += listed
    return [one for one in found if isinstance(one, str)]
