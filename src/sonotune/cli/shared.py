"""What the commands share: the application, types of options, and how a result is printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
import typer.core

from sonotune.progress import hide

ORDER = (
    *("quickstart", "data", "settings", "inspect", "plan", "train", "evaluate", "compare", "report", "export"),
    *("transcribe", "classify", "allocate", "ablate", "compose"),
)
"""Commands as they are met in the work."""
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


class _InOrder(typer.core.TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


app = typer.Typer(
    name="sonotune",
    cls=_InOrder,
    context_settings=HELP_OPTIONS,
    help="Fine-tune pretrained audio models on modest hardware.",
    epilog="Settings are words: model=whisper_nano data.train=train.jsonl training.max_epochs=5. "
    "`sonotune settings` lists them, and `sonotune settings learning_rate` those about something.",
    add_completion=True,
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
