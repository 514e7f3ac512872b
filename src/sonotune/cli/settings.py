"""The command that lists what can be set."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

from sonotune.cli.shared import Json, app, print_result

_WIDTH, _INDENT = 100, " " * 6
_SHORT, _WORD_ENDS = 2, r"(?![^\W_])"


@app.command()
def settings(
    words: Annotated[list[str] | None, typer.Argument(help="Show those alone whose name or meaning has them.")] = None,
    as_json: Json = False,
) -> None:
    """List the settings of a run by group, or those about something.

    sonotune settings learning rate
    """
    from sonotune.config.hints import OTHER_NAMES
    from sonotune.config.load import describe_settings
    from sonotune.errors import ConfigError

    wanted = [word.lower() for text in words or [] for word in text.split()]
    meant = OTHER_NAMES.get("_".join(wanted).rpartition(".")[2], "").partition("=")[0]
    found = [one for one in describe_settings() if one.name == meant or _is_about(f"{one.name} {one.doc}", wanted)]
    if not found:
        asked = " ".join(wanted)
        options = _options_about(wanted)
        raise ConfigError(
            f"no setting is about {asked!r}{f', but {options} is' if options else ''}. "
            "`sonotune settings` lists all of them."
        )
    lines: list[str] = []
    section = ""
    for one in found:
        if section != (section := one.name.partition(".")[0]):
            lines += [*([""] if lines else []), section]
        lines.append(f"  {one.name}={one.default}")
        meaning = f"{' '.join(one.doc.split())} ({one.type})"
        lines += textwrap.wrap(meaning, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    body: dict[str, Any] = {
        "settings": [{"name": one.name, "type": one.type, "default": one.default, "meaning": one.doc} for one in found]
    }
    print_result(body, as_json=as_json, lines=lines)


def _is_about(text: str, wanted: Iterable[str]) -> bool:
    """Whether a text has all of some words; a word of three letters and more may go on, as `quant` does."""
    patterns = [rf"(?<![^\W_]){re.escape(word)}" + _WORD_ENDS * (len(word) <= _SHORT) for word in wanted]
    return all(re.search(pattern, text.lower()) for pattern in patterns)


def _options_about(wanted: Sequence[str]) -> str:
    """Commands with an option of that name."""
    command = typer.main.get_command(app)
    return ", ".join(
        f"`sonotune {name} {option}`"
        for name, one in getattr(command, "commands", {}).items()
        for parameter in one.params
        for option in parameter.opts
        if option.startswith("--") and option.removeprefix("--").split("-") == list(wanted)
    )
