"""The record of a run, `run.json`, and its older schemas."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Required

from pydantic import AfterValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from sonotune.errors import RunDirectoryError
from sonotune.json_files import OBJECT, Count, Logged, Number, check_json, read_json
from sonotune.paths import is_folder
from sonotune.runs.files import to_plain
from sonotune.types import Finding, RunRecord, RunStatus, Severity

RECORD_SCHEMA = 1
LOCK = "run.lock"
_DO = "A run directory holds run.json, which is written whole: something else changed it. Restore the file."


class ScoreEntries(TypedDict, total=False):
    """A score in JSON form (`types.Score.to_json`); older ones have neither title nor role."""

    value: Required[Logged]
    low: Required[Logged]
    high: Required[Logged]
    count: Required[Count]
    unit: str
    better: str
    title: str
    role: str
    detail: dict[str, Any]


class _Finding(TypedDict):
    check: str
    severity: Severity
    message: str
    clip_ids: NotRequired[list[str]]
    path: NotRequired[str | None]
    measured: NotRequired[Number | None]
    limit: NotRequired[Number | None]
    unit: NotRequired[str]


class _Group(TypedDict):
    name: str
    parameters: Count
    tensors: NotRequired[list[str]]


class _Stage(TypedDict, total=False):
    groups: list[_Group]


class _Component(TypedDict):
    parameters: Count
    trainable: Count
    bytes: NotRequired[Count | None]


class _Model(TypedDict, total=False):
    family: str
    checkpoint: str
    revision: str | None
    language: str | None
    task: str | None
    context: str | None
    components: dict[str, _Component]


class _Environment(TypedDict, total=False):
    packages: dict[str, Any]
    world_size: Count


class _Split(TypedDict, total=False):
    clips: Required[Count]
    hours: Required[Number]
    duration_s: dict[str, Number]
    speakers: Count
    domains: dict[str, Count]
    languages: dict[str, Count]
    labels: Count


class _Difference(TypedDict, total=False):
    value: Required[Logged]
    low: Required[Logged]
    high: Required[Logged]
    better: Required[str]


class _RetentionSlice(TypedDict):
    value: str
    clips: Count
    before: Number
    after: Number


class _Example(TypedDict):
    id: str
    reference: str
    before: str
    after: str


class _Retention(TypedDict, total=False):
    """A panel before and after tuning (`evaluation.retention.measure.compare_panel`)."""

    panel: Required[str]
    clips: Required[Count]
    score: Required[str]
    before: Required[dict[str, ScoreEntries]]
    after: Required[dict[str, ScoreEntries]]
    difference: Required[dict[str, _Difference | None]]
    outcome: Required[Literal["broke", "better", "no clear change", "too few clips"]]
    kind: str
    source: str
    digest: str
    slices: list[_RetentionSlice]
    examples: list[_Example]


class _ScaledPanel(TypedDict):
    score: str
    scores: dict[str, ScoreEntries]
    outcome: str


class _ScalePoint(TypedDict):
    scale: Number
    scores: dict[str, ScoreEntries]
    panels: dict[str, _ScaledPanel]


class _Scales(TypedDict, total=False):
    points: list[_ScalePoint]
    score: str
    knee: Number | None
    rule: str


class CalibrationEntries(TypedDict):
    """How word confidences are made of log-odds (`metrics.confidence.Calibration`)."""

    method: Literal["platt"]
    slope: Annotated[Number, Field(gt=0)]
    intercept: Number
    words: Count
    clips: Count
    settings: dict[str, Any]


class _ReliabilityBin(TypedDict):
    confidence: Number
    right: Number
    words: Number


class _Coverage(TypedDict):
    coverage: Number
    risk: Number
    confidence: Number


class _ConfidenceSlice(TypedDict):
    by: str
    value: str
    clips: Count
    scores: dict[str, ScoreEntries]


class _Curves(TypedDict):
    """Of the words of some clips (`metrics.confidence.confidence_curves`)."""

    words: Count
    wrong: Count
    calibrated: bool
    reliability: list[_ReliabilityBin]
    uncalibrated: NotRequired[list[_ReliabilityBin]]
    risk_coverage: list[_Coverage]
    scores: NotRequired[dict[str, ScoreEntries]]
    slices: NotRequired[list[_ConfidenceSlice]]
    source: NotRequired[str]
    digest: NotRequired[str]
    chain: NotRequired[str]


class _Confidence(TypedDict, total=False):
    calibration: CalibrationEntries
    curves: dict[str, _Curves]


class _Schema1(TypedDict):
    schema: Literal[1]
    run_id: str
    status: RunStatus
    config: dict[str, dict[str, Any]]
    config_origin: dict[str, str]
    config_digest: str
    data_digest: dict[str, str]
    code: dict[str, str]
    environment: _Environment
    model: _Model
    ranks: dict[str, Count]
    findings: list[_Finding]
    scores: dict[str, dict[str, ScoreEntries]]
    stages: list[_Stage]
    choices: dict[str, str]
    peak_memory_bytes: Count
    seconds: Number
    energy_joules: NotRequired[Number | None]
    data: NotRequired[dict[str, _Split]]
    retention: NotRequired[list[_Retention]]
    adapter_scales: NotRequired[_Scales]
    confidence: NotRequired[_Confidence]


def _ascending(edges: list[Logged]) -> list[Logged]:
    if any(not float(low) < float(high) for low, high in pairwise(edges)):
        raise ValueError("the borders must ascend")
    return edges


class _EvaluationSettings(TypedDict, total=False):
    duration_edges_s: Annotated[list[Logged], AfterValidator(_ascending)] | None


class _ModelSettings(TypedDict, total=False):
    language: str | None


class _Settings(TypedDict, total=False):
    evaluation: _EvaluationSettings
    model: _ModelSettings


_RECORD, _SETTINGS = TypeAdapter(_Schema1), TypeAdapter(_Settings)


def record_to_json(record: RunRecord) -> dict[str, Any]:
    """The record as it stands in `run.json`."""
    plain: dict[str, Any] = to_plain(record)
    return plain


def record_from_json(value: Mapping[str, Any], *, where: str = "the record") -> RunRecord:
    """Read a record; keys that are not known are left out.

    Raises:
        RunDirectoryError: The schema is unknown, or fields are missing or of another type.
    """
    schema = value.get("schema")
    if schema != RECORD_SCHEMA or isinstance(schema, bool):
        raise RunDirectoryError(
            f"{where} has schema {schema!r:.60}; this version reads {RECORD_SCHEMA}. "
            "Read it with the version of sonotune that wrote it, or a newer one."
        )
    entries = check_json(value, _RECORD, where=where, error=RunDirectoryError, do=_DO)
    check_json(entries["config"], _SETTINGS, where=f"{where}, config", error=RunDirectoryError, do=_DO)
    plain = _known(RunRecord, entries)
    findings = (_known(Finding, {**one, "clip_ids": tuple(one.get("clip_ids", ()))}) for one in entries["findings"])
    plain["findings"] = tuple(Finding(**one) for one in findings)
    plain["stages"] = tuple(entries["stages"])
    plain["retention"] = tuple(entries.get("retention", ()))
    return RunRecord(**plain)


def _known(kind: type[RunRecord | Finding], entries: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: entries[field.name] for field in fields(kind) if field.name in entries}


def read_record(path: Path) -> RunRecord:
    """Read a run's record.

    Args:
        path: `run.json`, or the run directory that holds it.

    Returns:
        The record; one that says `running` is `interrupted` where its process is gone, which could not write that.

    Raises:
        RunDirectoryError: There is none, or it is damaged.
    """
    path = path / "run.json" if is_folder(path) else path
    entries = read_json(path, OBJECT, error=RunDirectoryError, do=_DO)
    record = record_from_json(entries, where=str(path))
    if record.status == "running" and not is_locked(path.parent):
        return replace(record, status="interrupted")
    return record


def is_locked(folder: Path) -> bool:
    """Whether a process holds a run directory. The lock is the kernel's, which lets go when the process dies."""
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # nobody can tell
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two who ask do not see each other
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def language_of(record: RunRecord) -> str | None:
    """The language of a run: the one that all of its training clips name, else that of its settings."""
    found: str | None = record.model.get("language") or record.config.get("model", {}).get("language")
    return found


def task_of(record: RunRecord) -> str:
    """Registry name of the task of a run; one from before records had it classifies where higher scores are better."""
    if named := record.model.get("task"):
        return str(named)
    higher = any(score.get("better") == "higher" for scores in record.scores.values() for score in scores.values())
    return "classify" if higher else "transcribe"
