"""Predictions that a run or `sonotune evaluate --out` kept: a JSON object a clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Required, cast

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from sonotune.errors import RunDirectoryError
from sonotune.json_files import Number, read_json_lines

_Name = Annotated[str, Field(max_length=5_000)]
"""More than a path has, which is the id of a file that was recognised; messages name it."""


class _LabelTokens(TypedDict):
    """What is read of `types.LabelTokens`."""

    nll: Number
    count: Annotated[int, Field(ge=0)]
    right: Annotated[int, Field(ge=0)]


class _Prediction(TypedDict, total=False):
    """What is read of a clip: texts of a recogniser, or classes."""

    id: Required[_Name]
    duration_s: Number | None
    domain: _Name | None
    speaker: _Name | None
    session: _Name | float | None
    language: _Name | None
    signal_to_noise: _Name | None
    reference: str | None
    hypothesis: str | None
    scored_reference: str | None
    scored_hypothesis: str | None
    labels: list[_Name]
    decided: list[_Name]
    scores: dict[str, Any]
    label_tokens: _LabelTokens
    words: object
    no_signal: bool


_PREDICTION = TypeAdapter(_Prediction)
_LONGEST_LINE = 10_000_000


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Read a file that `evaluation.evaluate.write_predictions` wrote.

    Raises:
        RunDirectoryError: It is missing, or a line is not the JSON object of a clip.
    """
    do = "Give a run directory, or a file that `sonotune evaluate --out FILE` wrote."
    rows = read_json_lines(path, _PREDICTION, error=RunDirectoryError, do=do)
    return [cast("dict[str, Any]", row) for row in rows]


def are_predictions(path: Path) -> bool:
    """Whether a file begins as one that `evaluation.evaluate.write_predictions` wrote."""
    with path.open("rb") as file:
        line = file.readline(_LONGEST_LINE)
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and "id" in row and bool({"hypothesis", "decided"} & row.keys())
