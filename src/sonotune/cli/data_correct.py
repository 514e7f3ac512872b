"""The command that brings listeners' corrections into a manifest: data correct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sonotune.cli.data import Outside, Root, data_app
from sonotune.cli.data_repair import Out, Source, tell_findings
from sonotune.cli.shared import Json, print_result, tell
from sonotune.paths import short_names

if TYPE_CHECKING:
    from sonotune.audit.record import AuditReport
    from sonotune.types import Clip, Finding


@data_app.command("correct")
def data_correct(
    source: Source,
    choices: Annotated[str, typer.Argument(metavar="CHOICES", help="What listeners saved; several: C1,C2.")],
    out: Out,
    scored: Annotated[
        list[str] | None,
        typer.Option("--scored", help="Clips that are scored, to be checked for leaks; eval and test beside MANIFEST."),
    ] = None,
    audit: Annotated[bool, typer.Option(help="Audit OUT where MANIFEST has an audit, by the same settings.")] = True,
    root: Root = None,
    allow_outside_root: Outside = False,
    as_json: Json = False,
) -> None:
    """Bring corrections of transcripts into a new revision of a manifest; the old one stays as it is.

    A corrected clip has `corrected_by`, `corrected_at` and `text_before`. A correction is made only where the
    transcript still is what its listener saw. Where MANIFEST has an audit, OUT is audited again by the same settings
    (exit code 3 where it says STOP), and the training clips are checked for leaks again.
    """
    from sonotune.audit.repair_manifest import check_output, plain, read_clips
    from sonotune.cli.listen import choice_files
    from sonotune.data.manifest import manifest_text
    from sonotune.errors import ManifestError
    from sonotune.listening.choices import last_corrections, read_choices
    from sonotune.listening.corrections import correct
    from sonotune.runs import atomic_write_text
    from sonotune.wording import counted

    files = choice_files(choices)
    check_output(source, out)
    if any(file.exists() and out.exists() and out.samefile(file) for file in files):
        raise ManifestError(f"{out} is what is read, and would be lost. Give OUT another name.")
    corrections = last_corrections([entry for file in files for entry in read_choices(file)[1]])
    if not corrections:
        raise ManifestError(f"{choices} has no correction. Correct transcripts on a page of `sonotune listen`.")
    clips, findings = read_clips(source, root, outside=allow_outside_root)
    made = correct(clips, corrections)
    atomic_write_text(out, manifest_text(out, made.clips))
    findings += made.findings
    findings += _leaks(made.clips, _scored(source, scored), root, outside=allow_outside_root)
    tell_findings(findings)
    report = _audit_again(source, out, root, outside=allow_outside_root) if audit else None
    body: dict[str, Any] = {
        "manifest": str(out),
        "clips": len(made.clips),
        "corrected": len(made.changed),
        "unchanged": made.unchanged,
        "audit": report,
        "findings": plain(findings),
    }
    lines = [f"{out}: {len(made.changed)} of {counted(len(made.clips), 'clip')} corrected"]
    if made.unchanged:
        lines.append(f"{counted(made.unchanged, 'correction')} that it already had")
    lines += [f"audit     {report['before']} -> {report['line']}", f"report    {report['page']}"] if report else []
    print_result(body, as_json=as_json, lines=lines)
    if report is not None and report["decision"] == "STOP":
        tell("sonotune: the audit still says STOP.")
        raise typer.Exit(3)


# --- leaks ---------------------------------------------------------------------------------------


def _scored(source: str, named: Sequence[str] | None) -> dict[str, str]:
    """Clips that are scored: those that are named, else the other parts of the split that the manifest is of."""
    from sonotune.data.corpus import format_of
    from sonotune.data.manifest import SPLIT_MARK

    if named:
        return dict(zip(short_names(named), named, strict=True))
    place = Path(format_of(source)[1])
    if not place.with_name(SPLIT_MARK).is_file() or place.name != "train.jsonl":
        return {}
    beside = {part: place.with_name(f"{part}.jsonl") for part in ("eval", "test")}
    return {part: str(path) for part, path in beside.items() if path.is_file()}


def _leaks(clips: Sequence[Clip], scored: Mapping[str, str], root: Path | None, *, outside: bool) -> list[Finding]:
    from sonotune.audit.repair_manifest import read_clips
    from sonotune.data.splits import check_leaks

    others = {part: read_clips(place, root, outside=outside)[0] for part, place in scored.items()}
    return [finding for found in check_leaks(clips, others).values() for finding in found]


# --- the audit -----------------------------------------------------------------------------------


def _audit_again(source: str, out: Path, root: Path | None, *, outside: bool) -> dict[str, Any] | None:
    """Audit the new revision as the old one was; None where the old one was not audited."""
    from sonotune.api import audit
    from sonotune.audit.record import REPORT_FILE, read_report
    from sonotune.audit.verdict import audit_folder, verdict_line
    from sonotune.reports.audit import PAGE_FILE

    folder = audit_folder(source)
    if not (folder / REPORT_FILE).is_file():
        return None
    before = read_report(folder)
    report, place = audit(audit_words(before, source, out, root, outside=outside))
    return {
        "before": before.decision,
        "decision": report.decision,
        "line": verdict_line(report),
        "low_quality": report.to_json()["rate"],
        "page": str(place / PAGE_FILE),
        "report": str(place / REPORT_FILE),
    }


def audit_words(report: AuditReport, source: str, out: Path, root: Path | None, *, outside: bool) -> list[str]:
    """The settings by which another manifest is audited as an earlier one was.

    Args:
        report: Of the earlier audit.
        source: The manifest that it is of.
        out: The manifest that is audited.
        root: Folder that paths stay in.
        outside: Whether they may leave it.
    """
    from sonotune.runs.files import to_plain

    known = report.settings
    kept = {name: value for name, value in known.items() if name in _AUDIT_SETTINGS and value is not None}
    trusted = known.get("trusted")
    given = {f"audit.{name}": value for name, value in kept.items()}
    given |= {
        "model.checkpoint": report.model.get("checkpoint"),
        # Without trusted clips an audit takes those that it judges, and says less; so does the new one.
        "audit.trusted": None if trusted == source else trusted,
        "data.train": str(out),
        "data.text_scoring": report.normalizer.get("name"),
        "data.text_training": known.get("text"),
        "data.root": root,
        "data.allow_outside_root": True if outside else None,
        "model.language": known.get("language"),
        "training.precision": known.get("precision"),
        "model.context": known.get("context"),
    }
    return [f"{name}={_word(to_plain(value))}" for name, value in given.items() if value is not None]


_AUDIT_SETTINGS = frozenset(
    {
        *("trusted_clips", "thresholds", "false_positive_rate", "strata", "fraction", "n_per_stratum", "min_clips"),
        *("aligner", "max_clips", "looks", "rule", "proceed_below", "stop_above", "cluster_correlation", "seed"),
    }
)


def _word(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
