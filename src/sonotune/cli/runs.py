"""Commands that make runs: train, quickstart, report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sonotune.cli.findings import clips_left_out, warning_lines, worth_telling
from sonotune.cli.shared import Json, Words, app, loops_note, percent, print_result, score_name

if TYPE_CHECKING:
    from sonotune.config.load import LoadedConfig
    from sonotune.types import RunRecord

KINDS: tuple[Literal["adapter"], Literal["model"]] = ("adapter", "model")
"""Folders of a run that hold what was trained."""
Dump = Annotated[bool, typer.Option("--dump-config", help="Print the resolved settings as YAML and stop.")]


@app.command()
def train(words: Words = None, as_json: Json = False, dump_config: Dump = False) -> None:
    """Fine-tune a model.

    sonotune train model=whisper_nano data.train=train.jsonl data.eval=dev.jsonl

    The same line again goes on where a stopped run left off. Ctrl-C stops after the step in hand with the state saved.
    """
    from sonotune.config.load import dump_yaml, load_run_config

    settings = load_run_config(words or [], require=("data.train",))
    if dump_config:
        print(dump_yaml(settings.config), end="")
        return
    from sonotune.processes import is_main

    record, folder = _run(settings, quiet=as_json)
    if is_main():
        print_result(_summary(record, folder), as_json=as_json, lines=_run_lines(record, folder))


def _run(settings: LoadedConfig, *, quiet: bool) -> tuple[RunRecord, Path]:
    """Train and write the report; returns the record and the run's directory."""
    from sonotune.processes import is_main
    from sonotune.training.logging.progress import ProgressBar
    from sonotune.training.run import run

    shown = settings.config.run.progress and not quiet and is_main() and sys.stderr.isatty()
    with ProgressBar(enabled=shown) as progress:
        record, folder = run(settings, listeners=[progress])
    if is_main():
        _write_report(folder)
        for kind in KINDS:
            if (folder / kind).is_dir():
                write_card(folder, folder / kind, kind)
    return record, folder


def _write_report(folder: Path) -> Path:
    from sonotune.reports.rank_heatmap import read_plan
    from sonotune.reports.record import build_html, read_predictions
    from sonotune.runs import atomic_write_text, read_events, read_record

    record = read_record(folder / "run.json")
    predictions: list[dict[str, Any]] = []
    for moment in ("test", "after"):
        if (path := folder / "predictions" / f"{moment}.jsonl").is_file():
            predictions = read_predictions(path)
            break
    ranks, target = folder / "ranks.json", folder / "report.html"
    plan = read_plan(ranks.read_text("utf-8")) if ranks.is_file() else None
    atomic_write_text(target, build_html(record, read_events(folder / "events.jsonl"), predictions, plan))
    return target


def write_card(run: Path, folder: Path, kind: Literal["adapter", "model"]) -> None:
    """The model card of what a run made, as `README.md` of a folder."""
    from sonotune.cli.usage import usage_in
    from sonotune.reports.card import build_card
    from sonotune.runs import atomic_write_text, read_record

    record = read_record(run)
    task = "classify" if {"accuracy", "map"} & set(record.scores.get("after", {})) else "transcribe"
    path = folder / "parity.json"
    parity = json.loads(path.read_text("utf-8")) if path.is_file() else None
    usage = usage_in(folder, record, kind)
    atomic_write_text(folder / "README.md", build_card(record, kind=kind, task=task, usage=usage, parity=parity))


def _summary(record: RunRecord, folder: Path) -> dict[str, Any]:
    """The keys `train --json` promises, and more beside them."""
    last = record.scores.get("test") or record.scores.get("after") or {}
    return {
        "run": str(folder),
        "status": record.status,
        "scores": last,
        "before": record.scores.get("before", {}),
        "after": record.scores.get("after", {}),
        "seconds": record.seconds,
        "peak_bytes": record.peak_memory_bytes,
        "findings": len(record.findings),
        "left_out": clips_left_out(record.findings),
        "warnings": [finding.message for finding in worth_telling(record.findings)],
    }


def _run_lines(record: RunRecord, folder: Path) -> list[str]:
    lines = [f"run      {folder}"]
    if changed := record.choices.get("run.allow_change"):
        lines.append(f"changed  {changed}")
    for moment, title in (("before", "before"), ("after", "after"), ("test", "test")):
        if scores := record.scores.get(moment):
            shown = "   ".join(
                f"{score_name(name)} {percent(score)}{loops_note(score)}" for name, score in scores.items()
            )
            lines.append(f"{title:<8} {shown}")
    trainable = sum(row["trainable"] for row in record.model.get("components", {}).values())
    total = sum(row["parameters"] for row in record.model.get("components", {}).values())
    if total:
        lines.append(f"trained  {trainable:,} parameters beside {total:,}")
    lines.append(f"took     {record.seconds:.0f} s, peak memory {record.peak_memory_bytes / 2**20:.0f} MiB")
    if left_out := clips_left_out(record.findings):
        lines.append(f"left out {left_out} clip{'s' * (left_out > 1)}; run.json says why")
    lines += warning_lines(worth_telling(record.findings), "run.json")
    lines.append(f"report   {folder / 'report.html'}")
    return lines


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run directory.")], as_json: Json = False) -> None:
    """(Re)build the HTML report of a run."""
    from sonotune.errors import RunDirectoryError

    if not (run / "run.json").is_file():
        raise RunDirectoryError(f"{run} is not a run directory: run.json is missing.")
    target = _write_report(run)
    print_result({"report": str(target)}, as_json=as_json, lines=[str(target)])


@app.command()
def quickstart(
    folder: Annotated[Path | None, typer.Option("--dir", help="Run directory; default runs/quickstart-<time>.")] = None,
    as_json: Json = False,
) -> None:
    """Run the whole pipeline on packaged data, offline: check, QLoRA-train whisper-nano, score, report, export."""
    from sonotune.cli.parity import parity_lines, parity_settings, record_parity
    from sonotune.quickstart import quickstart as run_quickstart

    result, lines = run_quickstart(
        folder,
        run=lambda settings: _run(settings, quiet=as_json),
        parity=lambda place: parity_settings(str(place), manifest=None, clips=50),
    )
    record_parity(Path(result["run"]), result["parity"])
    lines += parity_lines(result["parity"])
    print_result(result, as_json=as_json, lines=lines)
