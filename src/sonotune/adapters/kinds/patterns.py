"""Patterns of an adapter that somebody else wrote: tried before PEFT matches them with no limit of time.

PEFT takes the names of modules, of ranks and of scales as regular expressions. One that goes back without end hangs
whatever opens the adapter. Plain names, which sonotune writes, cost nothing here; anything else is tried on the
model's modules in a process of its own, which is stopped after some seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from sonotune.errors import AdapterError
from sonotune.patterns import MOST_CHARACTERS, SECONDS, Try, ends_in_time, problem_of

_PLAIN: Final = re.compile(r"[\w.\-]*")


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
        if problem := problem_of(text):
            raise AdapterError(f"{file}: {text[:80]!r} is no regular expression: {problem}. Copy the adapter again.")
    tries = [one for text in patterns for one in (Try("fullmatch", text), Try("match", rf"(.*\.)?({text})$"))]
    if not ends_in_time([(tries, modules)], seconds=SECONDS):
        raise AdapterError(
            f"{file}: its patterns, such as {patterns[0][:80]!r}, are not matched with the modules of the model within "
            f"{SECONDS:g} s. Name the modules instead."
        )


def _patterns(config: Mapping[str, Any]) -> list[str]:
    found: list[Any] = [config.get(name) for name in ("target_modules", "exclude_modules", "layers_pattern")]
    for name in ("rank_pattern", "alpha_pattern"):
        found += [*config[name]] if isinstance(config.get(name), Mapping) else []
    for listed in [one for one in found if isinstance(one, list)]:
        found += listed
    return [one for one in found if isinstance(one, str)]
