"""What the commands share: the application, types of options, and how a result is printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

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
    try:
        print(json.dumps(result, ensure_ascii=False, allow_nan=False) if as_json else "\n".join(lines), flush=True)
    except BrokenPipeError:
        # The interpreter flushes once more when it ends, and would fail there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def inspected(words: Sequence[str]) -> Any:
    """What a model of some settings is made of (`planning.inspection.Inspection`); no weights are read."""
    from sonotune.config.load import load_run_config
    from sonotune.planning.inspection import inspect_model
    from sonotune.training.adaptation import adapter_settings, rank_settings

    config = load_run_config(words).config
    return inspect_model(
        config.model.checkpoint,
        family=config.model.family,
        task=config.model.task,
        num_labels=config.model.num_labels,
        context=config.model.asked_context,
        revision=config.model.revision,
        bits=config.quantization.bits,
        double=config.quantization.double,
        skip=config.quantization.skip,
        kind=config.adapter.kind,
        ranks=rank_settings(config),
        adapter=adapter_settings(config),
    )


def score_name(name: str) -> str:
    """A score as lines of text name it."""
    return {"wer_loops_cut": "WER with loops cut"}.get(name, name.upper())


def loops_note(score: Mapping[str, Any]) -> str:
    """How many texts of a rate loop, for the end of its line; nothing where none does."""
    count = int(score.get("detail", {}).get("loops", 0))
    return f", {count} of {score['count']} texts loop ({100 * count / score['count']:.1f} %)" if count else ""


def percent(score: Mapping[str, Any] | None) -> str:
    """A score in per cent with its interval."""
    if score is None:
        return "-"
    return f"{100 * score['value']:.1f} % [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
