"""What is kept of a sweep of decoding, `decoding.json`: a row for each way that was scored, and the verdict.

A row is written when its trial has ended, so the same line goes on after any interruption. It counts as long as its
predictions are there, and the model, the clips and the settings are those that it was scored with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, NotRequired, cast

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sonotune.errors import ConfigError
from sonotune.json_files import Count, Number, read_json
from sonotune.runs.record import ScoreEntries

SCHEMA: Final = 1
RECORD: Final = "decoding.json"
_DO: Final = "Name another folder (sweep.dir), or remove the file: everything is decoded again."


class _Difference(TypedDict):
    value: Number
    low: Number
    high: Number
    p: Number
    better: Literal["lower", "higher"]


class _Row(TypedDict):
    identity: NotRequired[str]
    values: dict[str, str]
    name: str
    decoding: dict[str, Any]
    scores: dict[str, ScoreEntries]
    insertion_rate: NotRequired[ScoreEntries]
    insertions: Count
    loops: Count
    cut: Count
    fallbacks: Count
    real_time_factor: Number
    seconds: Number
    predictions: str
    commit: NotRequired[str]
    difference: _Difference | None
    outcome: NotRequired[str]


class _Record(TypedDict):
    schema: Literal[1]
    asked: Count
    clips: Count
    score: str
    trials: list[_Row]
    proposed: Count
    shown: bool
    sentence: str
    model: NotRequired[str]
    axes: NotRequired[dict[str, list[str]]]
    words: NotRequired[list[str]]
    identity: NotRequired[dict[str, str]]
    notes: NotRequired[list[str]]
    code: NotRequired[dict[str, Any]]


_RECORD: Final = TypeAdapter(_Record)


def read_decoding(folder: Path) -> dict[str, Any]:
    """The content of a `decoding.json`; empty where there is none.

    Raises:
        ConfigError: It is damaged, or of a schema this version does not read.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    read = cast("dict[str, Any]", read_json(path, _RECORD, error=ConfigError, do=_DO))
    rows = read["trials"]
    if read["proposed"] >= len(rows) or any(read["score"] not in row["scores"] for row in rows):
        raise ConfigError(f"{path} is damaged: its trials lack what it says of them. {_DO}")
    return read


def check_folder(folder: Path, about: Mapping[str, Any]) -> None:
    """Raise ConfigError where a folder is that of a run or of another sweep, whose predictions would be replaced."""
    if found := next((name for name in ("run.json", "sweep.json") if (folder / name).is_file()), None):
        raise ConfigError(f"sweep.dir={folder} has a {found}: it holds something else. Name another folder.")
    held = read_decoding(folder)
    if held and (unlike := [name for name, value in about.items() if held.get(name) != value]):
        told = ", ".join(_differing(name, held.get(name), about[name]) for name in unlike)
        raise ConfigError(
            f"sweep.dir={folder} has the {RECORD} of another sweep (other {told}). The same line with the same model "
            "and clips goes on; for anything else name another folder."
        )


def _differing(name: str, held: Any, asked: Any) -> str:
    """What differs, in the words of a person: of an identity, its parts."""
    if not (isinstance(held, Mapping) and isinstance(asked, Mapping)):
        return name
    return " and ".join(key for key, value in asked.items() if held.get(key) != value) or name


def kept_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Identity of a trial -> its row, of those whose predictions are there."""
    rows = read_decoding(folder).get("trials", ())
    files = {row["identity"]: f"predictions/{Path(row['predictions']).name}" for row in rows if "identity" in row}
    return {
        row["identity"]: row | {"predictions": files[row["identity"]]}
        for row in rows
        if row.get("identity") in files and (folder / files[row["identity"]]).is_file()
    }
