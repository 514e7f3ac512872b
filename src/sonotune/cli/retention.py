"""What tuning broke, as lines of a command and in the record of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sonotune.cli.shared import tell
from sonotune.metrics.retention import BROKE, retention_findings, retention_sentence
from sonotune.metrics.scores import score_title, show_score

_MARKS = {"broke": "broke", "better": "better", "no clear change": "unclear", "too few clips": "too few"}


def retention_lines(rows: Sequence[Mapping[str, Any]], scales: Mapping[str, Any]) -> list[str]:
    """A line for each panel, one for each scale, and the scale that is proposed."""
    lines = [f"{_MARKS[row['outcome']]:<8} {retention_sentence(row)}" for row in rows]
    name = scales.get("score", "")
    for point in scales.get("points", ()):
        shown = [f"{score_title(name, point['scores'][name])} {show_score(point['scores'][name])}"]
        for panel, found in point["panels"].items():
            shown.append(f"{panel} {show_score(found['scores'][found['score']])}")
        lines.append(f"scale    {point['scale']:g}: {'   '.join(shown)}")
    if scales:
        knee = "none" if scales["knee"] is None else f"{scales['knee']:g}"
        lines.append(f"proposed {knee}: {scales['rule']}")
    return lines


def record_retention(checkpoint: Path, rows: Sequence[Mapping[str, Any]], scales: Mapping[str, Any]) -> None:
    """Put what an evaluation found into the record of a finished run, and into its report."""
    from dataclasses import replace

    from sonotune.arguments import run_of
    from sonotune.cli.report import write_report
    from sonotune.errors import SonotuneError
    from sonotune.runs import atomic_write_json, read_record, record_to_json

    run = run_of(checkpoint)
    if run is None or not (rows or scales):
        return
    record = read_record(run)
    if record.status == "running":  # its own process writes the record
        return
    findings = [finding for finding in record.findings if finding.check != BROKE]
    measured = {row.get("source", row["panel"]): row for row in (*record.retention, *rows)}
    kept = tuple(measured.values())
    changed = replace(
        record,
        retention=kept,
        adapter_scales=scales or record.adapter_scales,
        findings=(*findings, *retention_findings(kept)),
    )
    try:
        atomic_write_json(run / "run.json", record_to_json(changed))
        if (run / "report.html").is_file():
            write_report(run)
    except SonotuneError as error:  # a run that may only be read; the figures have cost more than its record
        tell(f"sonotune: what tuning broke is not in the record of {run}: {error}")
