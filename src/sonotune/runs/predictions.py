"""Predictions that a run or `sonotune evaluate --out` kept: a JSON object a clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Required, cast

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sonotune.errors import RunDirectoryError
from sonotune.json_files import Number, read_json_lines


class _Prediction(TypedDict, total=False):
    """What is read of a clip: texts of a recogniser, or classes."""

    id: Required[str]
    duration_s: Number | None
    domain: str | None
    speaker: str | None
    session: str | float | None
    language: str | None
    reference: str | None
    hypothesis: str | None
    scored_reference: str | None
    scored_hypothesis: str | None
    labels: list[str]
    decided: list[str]
    scores: dict[str, Any]


_PREDICTION = TypeAdapter(_Prediction)


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Read a file that `evaluation.evaluate.write_predictions` wrote.

    Raises:
        RunDirectoryError: It is missing, or a line is not the JSON object of a clip.
    """
    do = "Give a run directory, or a file that `sonotune evaluate --out FILE` wrote."
    rows = read_json_lines(path, _PREDICTION, error=RunDirectoryError, do=do)
    return [cast("dict[str, Any]", row) for row in rows]
