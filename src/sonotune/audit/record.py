"""The report of an audit, `alignment_report.json`: written whole, read back bounded and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NotRequired

import numpy as np
from pydantic import BeforeValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from sonotune.audit.calibration import Calibration, CalibrationEntries, calibration_from_json
from sonotune.audit.gate import BadShare, Decision, StratumCount, Verdict
from sonotune.errors import ManifestError
from sonotune.json_files import OBJECT, Count, Number, check_json, read_json
from sonotune.paths import is_folder
from sonotune.runs import atomic_write_json, to_plain

REPORT_SCHEMA: Final = 1
REPORT_FILE: Final = "alignment_report.json"
CLIPS_FILE: Final = "clips.jsonl"
"""Beside the report: every clip that was looked at, the worst first."""
PERCENTILES: Final = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_DO: Final = "An audit writes this file whole: something else changed it. Audit again with `sonotune audit`."


def _pair(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value  # JSON has no tuples, and they are checked strictly


WordEntries = Annotated[tuple[str, Number, Number, Number | None], BeforeValidator(_pair)]
"""A word in time in JSON form: text, start and end in seconds, score."""
SpanEntries = Annotated[tuple[Number, Number], BeforeValidator(_pair)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareOfBad:
    """A share of bad clips as the report has it.

    Attributes:
        value: The estimate.
        low: Lower end of its interval.
        high: Upper end of its interval.
        count: Clips that were looked at.
    """

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StratumReport:
    """A stratum, or a domain.

    Attributes:
        name: Its name.
        population: Clips of the corpus in it.
        sampled: Clips that were looked at.
        flagged: Clips of those that were flagged.
        rate: Bad clips of it; None where none was looked at.
        decision: What is said of it by itself; None of domains, which are told and not judged.
        p_value: Adjusted over the strata; None of domains.
    """

    name: str
    population: int
    sampled: int
    flagged: int
    rate: ShareOfBad | None = None
    decision: Decision | None = None
    p_value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """All that is kept of an audit beside its clips.

    Attributes:
        schema: Version of this layout.
        decision: What to do.
        reasons: Why, in sentences.
        remarks: What else to know of it, in sentences, such as clips that it could not be about.
        rate: Bad clips of the corpus.
        level: Confidence of the intervals.
        correction: `applied`, `none` or `refused` (`audit.gate.BadShare`).
        flagged_share: Weighted share of flagged clips.
        look: The look that decided, from 1 on.
        strata: By what the sample was drawn.
        domains: By domain.
        coverage_percentiles: Percentile, such as `5` -> coverage of the clips that were looked at.
        flags: Code of a reason -> clips of the sample that have it.
        calibration: Thresholds and how often they are right.
        model: Aligner, family, checkpoint, digest.
        data_digest: SHA-256 of the corpus (`training.inputs`).
        audio_digest: SHA-256 over the contents of its audio files (`audit.audio_digest`); empty in older reports.
        normalizer: Name of the normaliser and a digest of it.
        versions: Package -> version.
        settings: Of the audit.
        seconds: Wall time.
        started: When, ISO 8601 in UTC.
    """

    schema: int = REPORT_SCHEMA
    decision: Decision
    reasons: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    rate: ShareOfBad
    level: float
    correction: Literal["applied", "none", "refused"]
    flagged_share: float
    look: int
    strata: tuple[StratumReport, ...]
    domains: tuple[StratumReport, ...] = ()
    coverage_percentiles: Mapping[str, float] = field(default_factory=dict)
    flags: Mapping[str, int] = field(default_factory=dict)
    calibration: Calibration
    model: Mapping[str, str | None]
    data_digest: str
    audio_digest: str = ""
    normalizer: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    started: str = ""

    def to_json(self) -> dict[str, Any]:
        """The report as it stands in its file."""
        plain: dict[str, Any] = to_plain(self)
        plain["calibration"] = self.calibration.to_json()
        return plain


def rate_of(share: BadShare) -> ShareOfBad:
    """A share of the gate as the report has it."""
    return ShareOfBad(value=share.value, low=share.low, high=share.high, count=share.count)


def stratum_reports(verdict: Verdict, counts: Sequence[StratumCount]) -> tuple[StratumReport, ...]:
    """What the gate said of each stratum, beside what was found in it.

    Args:
        verdict: Of the gate.
        counts: The `StratumCount`s that it judged, in the same order.
    """
    return tuple(
        StratumReport(
            name=said.name,
            population=count.population,
            sampled=count.sampled,
            flagged=count.flagged,
            rate=rate_of(said.share),
            decision=said.decision,
            p_value=said.p_value,
        )
        for said, count in zip(verdict.strata, counts, strict=True)
    )


def percentiles(values: Sequence[float | None]) -> dict[str, float]:
    """The percentiles of the report; empty where there is no value."""
    known = [value for value in values if value is not None]
    if not known:
        return {}
    return {str(at): float(value) for at, value in zip(PERCENTILES, np.percentile(known, PERCENTILES), strict=True)}


def write_report(report: AuditReport, folder: Path) -> Path:
    """Write `alignment_report.json` into a folder, whole or not at all.

    Raises:
        ResourceError: The disk is full.
        RunDirectoryError: The folder cannot be written.
    """
    path = folder / REPORT_FILE
    atomic_write_json(path, report.to_json())
    return path


def read_report(path: Path) -> AuditReport:
    """Read a report.

    Args:
        path: `alignment_report.json`, or the folder that holds it.

    Raises:
        ManifestError: There is none, or it is damaged, or of another version; names the file and what is wrong.
    """
    path = path / REPORT_FILE if is_folder(path) else path
    entries = read_json(path, OBJECT, error=ManifestError, do=_DO)
    return report_from_json(entries, where=str(path))


def report_from_json(value: Mapping[str, Any], *, where: str = "the report") -> AuditReport:
    """Read what `AuditReport.to_json` made; keys that are not known are left out.

    Raises:
        ManifestError: The schema is unknown, or something is missing or of another type.
    """
    schema = value.get("schema")
    if schema != REPORT_SCHEMA or isinstance(schema, bool):
        raise ManifestError(
            f"{where} has schema {schema!r:.60}; this version reads {REPORT_SCHEMA}. Audit again, or read it with the "
            "version of sonotune that wrote it."
        )
    entries = check_json(value, _REPORT, where=where, error=ManifestError, do=_DO)
    return AuditReport(
        decision=entries["decision"],
        reasons=tuple(entries["reasons"]),
        remarks=tuple(entries.get("remarks", ())),
        rate=_read_share(entries["rate"], where),
        level=entries["level"],
        correction=entries["correction"],
        flagged_share=entries["flagged_share"],
        look=entries["look"],
        strata=tuple(_read_stratum(one, where) for one in entries["strata"]),
        domains=tuple(_read_stratum(one, where) for one in entries["domains"]),
        coverage_percentiles=entries["coverage_percentiles"],
        flags=entries["flags"],
        calibration=calibration_from_json(entries["calibration"], where=f"{where}, calibration", error=ManifestError),
        model=entries["model"],
        data_digest=entries["data_digest"],
        audio_digest=entries.get("audio_digest", ""),
        normalizer=entries["normalizer"],
        versions=entries["versions"],
        settings=entries["settings"],
        seconds=entries["seconds"],
        started=entries["started"],
    )


_Unit = Annotated[Number, Field(ge=0, le=1)]


class _Share(TypedDict):
    value: _Unit
    low: _Unit
    high: _Unit
    count: Count


class _Stratum(TypedDict):
    name: str
    population: Count
    sampled: Count
    flagged: Count
    rate: _Share | None
    decision: NotRequired[Decision | None]
    p_value: NotRequired[_Unit | None]


class _Schema1(TypedDict):
    schema: Literal[1]
    decision: Decision
    reasons: list[str]
    remarks: NotRequired[list[str]]
    rate: _Share
    level: _Unit
    correction: Literal["applied", "none", "refused"]
    flagged_share: _Unit
    look: Annotated[Count, Field(ge=1)]
    strata: list[_Stratum]
    domains: list[_Stratum]
    coverage_percentiles: dict[str, Number]
    flags: dict[str, Count]
    calibration: CalibrationEntries
    model: dict[str, str | None]
    data_digest: str
    audio_digest: NotRequired[str]
    normalizer: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, Any]
    seconds: Number
    started: str


_REPORT: Final = TypeAdapter(_Schema1)


def _read_share(entries: _Share, where: str) -> ShareOfBad:
    if not entries["low"] <= entries["value"] <= entries["high"]:
        raise ManifestError(
            f"{where} has the rate {entries['value']} outside of its interval {entries['low']} to {entries['high']}. "
            f"{_DO}"
        )
    return ShareOfBad(value=entries["value"], low=entries["low"], high=entries["high"], count=entries["count"])


def _read_stratum(entries: _Stratum, where: str) -> StratumReport:
    rate = entries["rate"]
    return StratumReport(
        name=entries["name"],
        population=entries["population"],
        sampled=entries["sampled"],
        flagged=entries["flagged"],
        rate=None if rate is None else _read_share(rate, where),
        decision=entries.get("decision"),
        p_value=entries.get("p_value"),
    )
