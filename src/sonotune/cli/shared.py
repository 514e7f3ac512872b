"""What the commands share: the application, types of options, and how a result is printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from sonotune.progress import hide

app = typer.Typer(
    name="sonotune",
    help="Fine-tune pretrained audio models on modest hardware.",
    epilog="Settings are words: model=whisper_nano data.train=train.jsonl training.max_epochs=5. "
    "`sonotune train --help` lists what a run takes; docs/reference/config.md has every setting.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Words = Annotated[
    list[str] | None, typer.Argument(metavar="[SETTING=VALUE]...", help="Settings, presets, config=FILE.")
]
Files = Annotated[list[str], typer.Argument(metavar="[SETTING=VALUE]... FILE|FOLDER...", help="A model and audio.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def print_result(result: Mapping[str, Any], *, as_json: bool, lines: Sequence[str]) -> None:
    """One JSON object, or the lines, on stdout. A reader that has seen enough, such as `head`, is no failure."""
    hide()
    try:
        print(json.dumps(result, ensure_ascii=False, allow_nan=False) if as_json else "\n".join(lines), flush=True)
    except BrokenPipeError:
        # The interpreter flushes once more when it ends, and would fail there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
