"""The command that makes a run: train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sonotune.cli.findings import clips_left_out, removed_clips, warning_lines, worth_telling
from sonotune.cli.report import REPORT, write_cards, write_report
from sonotune.cli.retention import retention_lines
from sonotune.cli.shared import Json, Words, app, emit, print_result
from sonotune.errors import RunDirectoryError
from sonotune.metrics.retention import BROKE
from sonotune.metrics.scores import WORSE, decoding_note, score_title, show_score, spelling_of_numbers
from sonotune.progress import hide, note, phase
from sonotune.wording import counted, memory_size

if TYPE_CHECKING:
    from sonotune.config.load import LoadedConfig
    from sonotune.types import RunRecord

Dump = Annotated[bool, typer.Option("--dump-config", help="Print the resolved settings as YAML and stop.")]

_MOST_LEFT_OUT = 3  # findings that a person reads at once


@app.command()
def train(words: Words = None, as_json: Json = False, dump_config: Dump = False) -> None:
    """Fine-tune a model.

    sonotune train model=whisper_nano data.train=train.jsonl data.eval=dev.jsonl

    The same line again goes on where a stopped run left off. Ctrl-C stops after the current step with the state saved.
    """
    from sonotune.config.load import dump_yaml, load_run_config

    settings = load_run_config(words or [], require=("data.train",))
    if dump_config:
        emit(dump_yaml(settings.config), end="")
        return
    run_summary(settings, as_json=as_json)


def run_summary(settings: LoadedConfig, *, as_json: bool) -> None:
    """Train, write the report, and print what came of it."""
    from sonotune.processes import is_main

    record, folder = run_and_report(settings, quiet=as_json)
    if is_main():
        print_result(_summary(record, folder), as_json=as_json, lines=_run_lines(record, folder))


def run_and_report(settings: LoadedConfig, *, quiet: bool) -> tuple[RunRecord, Path]:
    """Train and write the report; returns the record and the run's directory."""
    from sonotune.processes import is_main

    if not settings.config.run.progress:
        hide()
    with phase("starting"):
        from sonotune.training.logging.progress import TrainingProgress
        from sonotune.training.run import run
    try:
        with TrainingProgress() as training:
            record, folder = run(settings, listeners=[training])
    except RunDirectoryError:
        if (left := _without_report(settings)) is None:
            raise
        record, folder = left
        note(f"{folder} holds this run, finished and without a report, as a kill leaves it: the report is made now.")
    if is_main():
        write_report(folder)
        write_cards(folder)
    return record, folder


def _without_report(settings: LoadedConfig) -> tuple[RunRecord, Path] | None:
    """A finished run of these settings whose process was killed before it wrote the report."""
    from sonotune.runs import read_record

    folder = settings.run_dir()
    if not (folder / "run.json").is_file() or (folder / REPORT).is_file():
        return None
    record = read_record(folder)
    same = record.status == "finished" and record.config_digest == settings.digest
    return (record, folder) if same else None


def _summary(record: RunRecord, folder: Path) -> dict[str, Any]:
    """The keys `train --json` promises, and more beside them."""
    last = record.scores.get("test") or record.scores.get("after") or {}
    return {
        "run": str(folder),
        "status": record.status,
        "scores": last,
        "before": record.scores.get("before", {}),
        "after": record.scores.get("after", {}),
        "retention": list(record.retention),
        "adapter_scales": dict(record.adapter_scales),
        "seconds": record.seconds,
        "peak_bytes": record.peak_memory_bytes,
        "findings": len(record.findings),
        "left_out": clips_left_out(record.findings),
        "warnings": [finding.message for finding in worth_telling(record.findings)],
    }


def _run_lines(record: RunRecord, folder: Path) -> list[str]:
    told = worth_telling(record.findings)
    worse = [finding for finding in told if finding.check == WORSE]
    lines = [*(f"WORSE    {finding.message}" for finding in worse), f"run      {folder}"]
    if changed := record.choices.get("run.allow_change"):
        lines.append(f"changed  {changed}")
    for moment in ("before", "after", "test"):
        if scores := record.scores.get(moment):
            shown = "   ".join(
                f"{score_title(name, score)} {show_score(score)}{decoding_note(score)}"
                for name, score in scores.items()
            )
            lines.append(f"{moment:<8} {shown}")
    if respelt := spelling_of_numbers(record.scores.get("before", {}), record.scores.get("after", {})):
        lines.append(f"numbers  {respelt}")
    lines += retention_lines(record.retention, record.adapter_scales)
    if decides := record.choices.get("evaluation.primary"):
        lines.append(f"decides  {decides}")
    trainable = sum(row["trainable"] for row in record.model.get("components", {}).values())
    total = sum(row["parameters"] for row in record.model.get("components", {}).values())
    if total:
        whole = record.config.get("adapter", {}).get("kind") == "none"
        lines.append(
            f"trained  {trainable:,} {'of' if whole else 'parameters beside'} {total:,}{' parameters' * whole}"
        )
    lines.append(f"took     {record.seconds:.0f} s, peak memory {memory_size(record.peak_memory_bytes)}")
    if left_out := clips_left_out(record.findings):
        lines.append(f"left out {counted(left_out, 'clip')}; run.json says why")
        removing = dict.fromkeys(one for one in record.findings if removed_clips(one) and one.severity != "note")
        lines += [f"{one.severity:<8} {one.message}" for one in list(removing)[:_MOST_LEFT_OUT]]
    others = [finding for finding in told if finding not in worse and finding.check != BROKE]
    lines += warning_lines(others, "run.json")
    lines += [f"note     {found.message}" for found in record.findings if found.check == "training.still_improving"]
    lines.append(f"report   {folder / REPORT}")
    return lines
