"""The command that (re)builds a report: report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sonotune.cli.shared import Json, app, print_result, tell

if TYPE_CHECKING:
    from sonotune.evaluation.compare import Comparison
    from sonotune.types import RunRecord

REPORT = "report.html"
KINDS: tuple[Literal["adapter"], Literal["model"]] = ("adapter", "model")
"""Folders of a run that hold what was trained."""
_RESAMPLES = 2000


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run directory.")], as_json: Json = False) -> None:
    """(Re)build the HTML report of a run, and the card of what it trained where that is missing; or of a sweep."""
    from sonotune.errors import RunDirectoryError

    if (run / "sweep.json").is_file():
        target = write_sweep_report(run)
        print_result({"report": str(target)}, as_json=as_json, lines=[str(target)])
        return
    if (run / "decoding.json").is_file():
        target = write_decoding_report(run)
        print_result({"report": str(target)}, as_json=as_json, lines=[str(target)])
        return
    if (run / "ablation.json").is_file():
        raise RunDirectoryError(
            f"{run} is the folder of an ablation: `sonotune ablate` writes its report, {run / REPORT}. "
            f"`sonotune report {run}/trials/NAME` builds that of one of its runs."
        )
    if not (run / "run.json").is_file():
        raise RunDirectoryError(f"{run} is not a run directory: run.json is missing.")
    target = write_report(run)
    write_cards(run, missing=True)
    print_result({"report": str(target)}, as_json=as_json, lines=[str(target)])


def amend_record(checkpoint: Path, change: Callable[[RunRecord], RunRecord], *, what: str) -> bool:
    """Put what was found later into the record of a finished run, and into its report; no run has none.

    Args:
        checkpoint: A run, or the adapter or model of one.
        change: The record -> the record with what was found.
        what: It is, for the message of a run that may only be read.

    Returns:
        Whether it stands there now.
    """
    from sonotune.arguments import run_of
    from sonotune.errors import SonotuneError
    from sonotune.runs import atomic_write_json, read_record, record_to_json

    run = run_of(checkpoint)
    if run is None:
        return False
    record = read_record(run)
    if record.status == "running":  # its own process writes the record
        return False
    try:
        atomic_write_json(run / "run.json", record_to_json(change(record)))
        if (run / REPORT).is_file():
            write_report(run)
    except SonotuneError as error:  # what was found has cost more than its record
        tell(f"sonotune: {what} is not in the record of {run}: {error}")
        return False
    return True


def write_report(folder: Path) -> Path:
    """Write `report.html` of a run, and its error browser where texts were recognised; returns the report."""
    from sonotune.reports.browser import ERRORS_FILE, build_errors_html
    from sonotune.reports.rank_heatmap import read_plan
    from sonotune.reports.record import build_html
    from sonotune.runs import atomic_write_text, read_events, read_predictions, read_record

    record = read_record(folder / "run.json")
    files = {moment: folder / "predictions" / f"{moment}.jsonl" for moment in ("test", "after", "before")}
    split = next((moment for moment, path in files.items() if path.is_file()), None)
    predictions = read_predictions(files[split]) if split is not None else []
    errors = build_errors_html(record.run_id, predictions)
    if errors is not None:
        atomic_write_text(folder / ERRORS_FILE, errors)
    ranks, target = folder / "ranks.json", folder / REPORT
    html = build_html(
        record,
        read_events(folder / "events.jsonl"),
        predictions,
        read_plan(ranks) if ranks.is_file() else None,
        split=split,
        change=_change(files["before"], files["after"]),
        place=str(folder),
        browser=None if errors is None else ERRORS_FILE,
    )
    atomic_write_text(target, html)
    return target


def write_sweep_report(folder: Path) -> Path:
    """Write `report.html` of a sweep, finished or not, from its `sweep.json`; returns where."""
    from sonotune.reports.sweep import build_sweep_html
    from sonotune.runs import atomic_write_text
    from sonotune.sweeps.sweep_record import read_sweep

    target = folder / REPORT
    atomic_write_text(target, build_sweep_html(read_sweep(folder)))
    return target


def write_decoding_report(folder: Path) -> Path:
    """Write `report.html` of a sweep of decoding, finished or not, from its `decoding.json`; returns where."""
    from sonotune.reports.decoding import build_decoding_html
    from sonotune.runs import atomic_write_text
    from sonotune.sweeps.decoding_record import read_decoding

    target = folder / REPORT
    atomic_write_text(target, build_decoding_html(read_decoding(folder), name=folder.absolute().name))
    return target


def _change(before: Path, after: Path) -> Comparison | None:
    """What training changed on the development clips; None where they were not scored twice, or are too few."""
    from sonotune.errors import SonotuneError
    from sonotune.evaluation.compare import compare

    if not (before.is_file() and after.is_file()):
        return None
    try:
        return compare([before], [after], resamples=_RESAMPLES)
    except SonotuneError:  # too few clips, or clips without words
        return None


def write_cards(run: Path, *, missing: bool = False) -> None:
    """The model cards of what lies in a run; with `missing`, those that are not there yet."""
    for kind in KINDS:
        if (run / kind).is_dir() and not (missing and (run / kind / "README.md").is_file()):
            write_card(run, run / kind, kind)


def write_card(run: Path, folder: Path, kind: Literal["adapter", "model"]) -> None:
    """The model card of what a run made, as `README.md` of a folder."""
    from sonotune.cli.usage import usage_in
    from sonotune.reports.card import build_card, read_parity
    from sonotune.runs import atomic_write_text, read_record
    from sonotune.runs.record import task_of

    record = read_record(run)
    task = task_of(record)
    path = folder / "parity.json"
    parity = read_parity(path) if path.is_file() else None
    usage = usage_in(folder, record, kind)
    atomic_write_text(folder / "README.md", build_card(record, kind=kind, task=task, usage=usage, parity=parity))
