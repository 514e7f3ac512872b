"""The command that judges a corpus before it is trained on: audit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sonotune.api import audit as run_audit
from sonotune.cli.shared import Json, Words, app, print_result, tell
from sonotune.wording import counted

if TYPE_CHECKING:
    from sonotune.audit.record import AuditReport


@app.command()
def audit(words: Words = None, as_json: Json = False) -> None:
    """Judge whether transcripts belong to their audio: PROCEED, CAUTION, or STOP (exit code 3).

    sonotune audit model=whisper_base data.train=train.jsonl audit.trusted=checked.jsonl

    A sample is aligned; thresholds are calibrated on trusted clips; `train` refuses clips whose audit said STOP.
    """
    from sonotune.processes import is_main

    report, folder = run_audit(words or [])
    if is_main():
        print_result(_body(report, folder), as_json=as_json, lines=_lines(report, folder))
    if report.decision == "STOP":
        tell(f"sonotune: the audit says STOP: {report.reasons[0]}.")
        raise typer.Exit(3)


def _body(report: AuditReport, folder: Path) -> dict[str, Any]:
    """The keys `audit --json` promises, and more beside them."""
    from sonotune.audit.record import REPORT_FILE

    plain = report.to_json()
    kept = (
        "decision",
        "reasons",
        "remarks",
        "flagged_share",
        "look",
        "level",
        "strata",
        "domains",
        "flags",
        "calibration",
    )
    return {
        **{name: plain[name] for name in kept},
        "low_quality": plain["rate"],
        "seconds": report.seconds,
        "report": str(folder / REPORT_FILE),
    }


def _lines(report: AuditReport, folder: Path) -> list[str]:
    from sonotune.audit.verdict import verdict_line
    from sonotune.reports.audit import PAGE_FILE

    lines = [verdict_line(report), *(f"  {reason}" for reason in (*report.reasons, *report.remarks))]
    for stratum in report.strata:
        lines.append(
            f"{stratum.name}: {stratum.flagged} of {stratum.sampled} clips flagged, {stratum.population} in all"
        )
    found = report.calibration
    if found.sensitivity is not None and found.specificity is not None:
        by_kind = ", ".join(f"{name}: {_percent(one.value)}" for name, one in found.corruptions.items())
        clips = counted(found.specificity.count, "clip with its own transcript", "clips with their own transcripts")
        lines.append(
            f"thresholds flag {_percent(found.sensitivity.value)} of transcripts made wrong on purpose ({by_kind}) and "
            f"{_percent(1 - found.specificity.value)} of {clips}"
        )
    if report.flags:
        lines.append("found     " + ", ".join(f"{code} {count}" for code, count in report.flags.items()))
    return [*lines, f"took      {report.seconds:.0f} s", f"report    {folder / PAGE_FILE}"]


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"
