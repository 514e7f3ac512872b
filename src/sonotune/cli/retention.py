"""What tuning broke, as lines of a command and in the record of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonotune.cli.report import amend_record
from sonotune.metrics.retention import BROKE, retention_findings, retention_sentence
from sonotune.metrics.scores import score_title, show_score

if TYPE_CHECKING:
    from sonotune.types import RunRecord

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

    def found(record: RunRecord) -> RunRecord:
        findings = [finding for finding in record.findings if finding.check != BROKE]
        measured = {row.get("source", row["panel"]): row for row in (*record.retention, *rows)}
        alike = Counter(row["panel"] for row in measured.values())
        kept = tuple(
            {**row, "panel": row["source"]} if alike[row["panel"]] > 1 and "source" in row else row
            for row in measured.values()
        )
        return replace(
            record,
            retention=kept,
            adapter_scales=scales or record.adapter_scales,
            findings=(*findings, *retention_findings(kept)),
        )

    if rows or scales:
        amend_record(checkpoint, found, what="what tuning broke")
