"""The command that lists what can be set."""

from __future__ import annotations

import textwrap
from typing import Annotated, Any

import typer

from sonotune.cli.shared import Json, app, print_result

_WIDTH, _INDENT = 100, " " * 6


@app.command()
def settings(
    word: Annotated[str | None, typer.Argument(help="Show those alone whose name or meaning has this word.")] = None,
    as_json: Json = False,
) -> None:
    """List the settings of a run by group, or those about something.

    sonotune settings learning_rate
    """
    from sonotune.config.hints import OTHER_NAMES
    from sonotune.config.load import describe_settings
    from sonotune.errors import ConfigError

    wanted = (word or "").lower()
    meant = OTHER_NAMES.get(wanted.rpartition(".")[2], "").partition("=")[0]
    found = [one for one in describe_settings() if wanted in f"{one.name} {one.doc}".lower() or one.name == meant]
    if not found:
        raise ConfigError(f"no setting is about {word!r}. `sonotune settings` lists all of them.")
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
