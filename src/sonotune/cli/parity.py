"""Comparing an export with its run: what is compared, what is told, and the run's record of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sonotune.cli.shared import tell


def parity_lines(parity: Mapping[str, Any]) -> list[str]:
    """What a person reads beside the export; a warning goes to stderr as well."""
    from sonotune.serving.parity import finding_of

    found = finding_of(parity)
    if found.severity == "warning":
        tell(f"sonotune: WARNING: {found.message}")
        return [f"parity   {parity['sentence'] or 'NOT CHECKED; the warning says why'}"]
    return [f"parity   {found.message}"]


def record_parity(checkpoint: Path, parity: Mapping[str, Any]) -> None:
    """Put what was found into the record of a finished run, and into its report."""
    from dataclasses import replace

    from sonotune.arguments import run_of
    from sonotune.cli.report import write_report
    from sonotune.runs import atomic_write_json, read_record, record_to_json
    from sonotune.serving.parity import finding_of, with_finding

    run = run_of(checkpoint)
    if run is None:
        return
    record = read_record(run)
    if record.status == "running":  # its own process writes the record
        return
    changed = replace(record, findings=with_finding(record.findings, finding_of(parity)))
    atomic_write_json(run / "run.json", record_to_json(changed))
    if (run / "report.html").is_file():
        write_report(run)
