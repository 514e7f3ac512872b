"""Where the audit of a corpus is kept, and what it means for training."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

from sonotune.audit.record import REPORT_FILE, AuditReport, read_report
from sonotune.data.corpus import format_of
from sonotune.errors import GateError, ManifestError
from sonotune.registry import is_asset, split_source
from sonotune.types import Finding

SUFFIX: Final = ".audit"
AUDITS: Final = Path("audits")
VERDICT: Final = "audit.verdict"
"""The finding that has the verdict on the training clips."""
VERDICT_COLUMN: Final = "audit"
"""Column of a clip that a filter has judged: `good` or `bad`."""
REASONS_COLUMN: Final = "audit_reasons"
"""Column of a bad clip: codes of `audit.scores.CODES`, with spaces between them."""


def audit_folder(source: str, chosen: Path | None = None) -> Path:
    """The folder of the audit of a source.

    Args:
        source: As `data.train` names it.
        chosen: `audit.dir`; None takes `NAME.audit` beside a file, else a folder under `audits`.
    """
    if chosen is not None:
        return chosen
    rest = split_source(source)[1]
    place = Path(format_of(source)[1])
    if place.is_file() and not is_asset(rest):
        return place.with_name(place.name + SUFFIX)
    name = "".join(one if one.isalnum() or one in "-_." else "_" for one in rest).strip("._") or "corpus"
    return AUDITS / f"{name}{SUFFIX}"


def check_verdict(
    folder: Path, digest: Callable[[], str], audio: Callable[[Path], str] | None = None, *, require: bool
) -> list[Finding]:
    """What an earlier audit said of the clips that are to be trained on; nothing where there was none.

    Args:
        folder: Of the audit.
        digest: Gives the digest of the clips as they are now (`data.manifest.digest`).
        audio: Gives that of the contents of their audio (`audit.sources.audio_digest`), for the folder of an audit.
        require: Whether clips that failed, or have changed since, are refused.

    Returns:
        The verdict as a finding.

    Raises:
        GateError: They are refused.
        ManifestError: The report is damaged.
    """
    digest = cache(digest)
    if not (folder / REPORT_FILE).is_file():
        other = _audit_of_same_clips(folder, digest)
        if other is None:
            return []
        folder = other
    report = read_report(folder)
    changed = report.data_digest != digest()
    if not changed and audio is not None and report.audio_digest:
        changed = report.audio_digest != audio(folder)
    if require and changed:
        raise GateError(
            f"the clips of data.train have changed since their audit in {folder}, which said {report.decision}. Audit "
            "them again with `sonotune audit`; audit.require=false trains on them as they are."
        )
    if require and report.decision == "STOP":
        raise GateError(
            f"the audit in {folder} says STOP: {report.reasons[0]}. Mend or leave out the bad clips "
            "(`sonotune data filter`), and audit again; audit.require=false trains on them as they are."
        )
    said = f"the audit of the training clips said {report.decision}: {report.reasons[0]}"
    if changed:
        said += "; the clips have changed since"
    return [
        Finding(
            check=VERDICT,
            severity="note" if report.decision == "PROCEED" and not changed else "warning",
            message=f"{said}.",
            path=str(folder / REPORT_FILE),
            measured=report.rate.value,
            unit="fraction",
        )
    ]


def _audit_of_same_clips(folder: Path, digest: Callable[[], str]) -> Path | None:
    """An audit of the same clips under another name in the same place: a renamed manifest keeps its verdict."""
    if folder.parent.is_dir():
        for other in sorted(folder.parent.glob(f"*{SUFFIX}")):
            if (other / REPORT_FILE).is_file() and _digest_in(other) == digest():
                return other
    return None


def _digest_in(folder: Path) -> str | None:
    try:
        return read_report(folder).data_digest
    except ManifestError:  # that of another corpus is none of this run's business
        return None


def verdict_line(report: AuditReport) -> str:
    """The verdict and the rate it rests on, in one line."""
    rate, what = report.rate, "bad" if report.correction == "applied" else "flagged"
    interval = "" if report.correction == "refused" else f" [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
    return f"{report.decision}  {100 * rate.value:.1f} %{interval} of the clips are {what}"
