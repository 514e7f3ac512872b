"""The record of a run, `run.json`, and its older schemas."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sonotune.errors import RunDirectoryError
from sonotune.runs.files import to_plain
from sonotune.types import Finding, RunRecord

RECORD_SCHEMA = 1


def record_to_json(record: RunRecord) -> dict[str, Any]:
    """The record as it stands in `run.json`."""
    plain: dict[str, Any] = to_plain(record)
    return plain


def record_from_json(value: Mapping[str, Any], *, where: str = "the record") -> RunRecord:
    """Read a record of this or an older schema.

    Raises:
        RunDirectoryError: The schema is unknown, or fields are missing or not known.
    """
    schema = value.get("schema")
    if not isinstance(schema, int) or schema not in _READERS:
        raise RunDirectoryError(
            f"{where} has schema {schema!r}; this version reads {', '.join(str(known) for known in _READERS)}. "
            "Read it with the version of sonotune that wrote it, or a newer one."
        )
    return _READERS[schema](value, where)


def read_record(path: Path) -> RunRecord:
    """Read a run's record.

    Args:
        path: `run.json`, or the run directory that holds it.

    Raises:
        RunDirectoryError: There is none, or it is damaged.
    """
    path = path / "run.json" if path.is_dir() else path
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read: {error.strerror}. A run directory holds run.json.") from error
    except ValueError as error:
        raise RunDirectoryError(
            f"{path} is damaged: {error}. It is written whole, so something else changed it."
        ) from error
    if not isinstance(value, dict):
        raise RunDirectoryError(f"{path} is no run record: it holds a {type(value).__name__}, not an object.")
    return record_from_json(value, where=str(path))


def _read_schema_1(value: Mapping[str, Any], where: str) -> RunRecord:
    known = {field.name for field in fields(RunRecord)}
    required = known - {"energy_joules"}
    wrong = [f"lacks {name}" for name in sorted(required - value.keys())]
    wrong += [f"has an unknown {name}" for name in sorted(value.keys() - known)]
    if wrong:
        raise RunDirectoryError(f"{where} is no run record of schema 1: it {', '.join(wrong)}.")
    plain = dict(value)
    plain["findings"] = tuple(
        Finding(**{**finding, "clip_ids": tuple(finding.get("clip_ids", ()))}) for finding in value["findings"]
    )
    plain["stages"] = tuple(value["stages"])
    return RunRecord(**plain)


_READERS: Mapping[int, Callable[[Mapping[str, Any], str], RunRecord]] = {1: _read_schema_1}


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
