"""What is kept of a sweep, `sweep.json`: every trial, the configurations by their scores, and what follows from them.

The best configuration is chosen on the development clips alone. The clips of the test are scored with its runs, after
the choice.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sonotune.errors import RunDirectoryError, SonotuneError
from sonotune.evaluation.compare import compare
from sonotune.json_files import Number, read_json
from sonotune.metrics.scores import score_title
from sonotune.runs import digest_json
from sonotune.sweeps.claims import TrialState
from sonotune.sweeps.importance import importance, is_numeric
from sonotune.sweeps.space import Space
from sonotune.sweeps.trials import train_line
from sonotune.sweeps.winner_test import score_on_test
from sonotune.wording import counted

SCHEMA: Final = 1
RECORD, REPORT = "sweep.json", "report.html"
COSTS: Final = ("parameters", "peak_bytes", "seconds")
"""What a score is weighed against."""
_COMPARED: Final = 20
"""Configurations next to the best that are compared with it, clip by clip."""
_RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """A trial and what its run left.

    Attributes:
        state: How it stands.
        score_name: Name of the score that chooses.
        score: That score on the development clips, in JSON form.
        outcome: Its value, turned so that lower is better.
        scores: All scores of the development clips.
        error: Why there is no score.
        parameters: Trainable parameters.
        adapter_parameters: Those in adapters.
        seconds: Wall time of the run.
        peak_bytes: Peak memory of its process.
        data: Split -> digest.
        commit: Of the code.
    """

    state: TrialState
    score_name: str = ""
    score: Mapping[str, Any] | None = None
    outcome: float | None = None
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    error: str = ""
    parameters: float = 0
    adapter_parameters: float = 0
    seconds: float = 0.0
    peak_bytes: float = 0
    data: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""

    def to_json(self) -> dict[str, Any]:
        """The form kept in `sweep.json`."""
        state = self.state
        return {
            "name": state.name,
            "run": f"trials/{state.name}",
            "order": state.order,
            "values": dict(state.values),
            "seed": state.seed,
            "status": state.status,
            "line": train_line(state.words),
            "score": self.score,
            "scores": self.scores,
            "reported": dict(state.reported),
            "parameters": int(self.parameters),
            "adapter_parameters": int(self.adapter_parameters),
            "seconds": self.seconds,
            "peak_bytes": int(self.peak_bytes),
            "error": self.error,
            "exit_code": state.exit_code,
            "commit": self.commit,
        }


class _Axis(TypedDict):
    name: str
    text: str
    numeric: bool
    log: bool


class _Sweep(TypedDict):
    schema: Literal[1]
    name: str
    status: str
    line: str
    method: str
    why: str
    words: list[str]
    axes: list[_Axis]
    seeds: list[int]
    score: str | None
    title: str | None
    unit: str | None
    better: str | None
    trials_asked: int
    trials: list[dict[str, Any]]
    configurations: list[dict[str, Any]]
    winner: dict[str, Any] | None
    importance: dict[str, Any] | None
    notes: list[str]
    seconds: Number
    machine: dict[str, Any]
    code: dict[str, Any]


_SWEEP = TypeAdapter(_Sweep)


def read_sweep(folder: Path) -> dict[str, Any]:
    """The content of a `sweep.json`; empty where there is none.

    Raises:
        RunDirectoryError: It is damaged, or of a schema this version does not read.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    do = "Remove it: the trials are read anew. One of another schema needs the version that wrote it."
    return cast("dict[str, Any]", read_json(path, _SWEEP, error=RunDirectoryError, do=do))


def line_digest(space: Space) -> str:
    """What a directory of trials belongs to: the settings that all share, and which others vary."""
    return digest_json([list(space.base), sorted(axis.name for axis in space.axes), space.test])


def first_words(error: str) -> str:
    """The first line of a message, shortened."""
    return next(iter(error.strip().splitlines()), "no message")[:300]


def describe(folder: Path, space: Space, rows: Sequence[TrialRow], *, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `sweep.json` while trials run; `finish` adds what needs all of them.

    Args:
        folder: Of the sweep.
        space: What is tried.
        rows: Every trial that was begun, in that order.
        facts: Further keys, such as `method`.
    """
    scored = [row for row in rows if row.outcome is not None]
    # Scores on other clips cannot be compared; those of the first trial count.
    unlike = [row for row in scored if row.data.get("eval") != scored[0].data.get("eval")]
    configurations = _configurations(space, [row for row in scored if row not in unlike])
    first = scored[0] if scored else None
    best = configurations[0] if configurations else None
    notes = [
        f"{row.state.name} was scored on other clips of data.eval than {scored[0].state.name}, and is not compared."
        for row in unlike
    ]
    notes += _failures(rows)
    if len(commits := sorted({row.commit for row in scored})) > 1:
        notes.append(f"The runs are of {len(commits)} commits of sonotune: {', '.join(one[:12] for one in commits)}.")
    return {
        "schema": SCHEMA,
        "name": folder.name,
        "status": "unfinished",
        "line": line_digest(space),
        "words": list(space.base),
        "axes": [
            {
                "name": axis.name,
                "text": axis.text,
                "numeric": is_numeric(axis),
                "log": axis.span is not None and axis.span.log,
            }
            for axis in space.axes
        ],
        "seeds": list(space.seeds),
        "score": first.score_name if first else None,
        "title": score_title(first.score_name, first.score) if first else None,
        "unit": (first.score or {}).get("unit", "fraction") if first else None,
        "better": (first.score or {}).get("better", "lower") if first else None,
        **facts,
        "trials": [row.to_json() for row in rows],
        "configurations": configurations,
        "winner": None if best is None else _winner(folder, best, rows, read_sweep(folder)),
        "importance": None,
        "notes": notes,
        "seconds": math.fsum(row.seconds for row in rows),
    }


def _failures(rows: Sequence[TrialRow]) -> list[str]:
    """A sentence for each way in which trials failed."""
    failed: dict[str, list[str]] = {}
    for row in rows:
        if row.state.status == "failed":
            failed.setdefault(first_words(row.error), []).append(row.state.name)
    return [
        f"{names[0]} failed: {error}"
        if len(names) == 1
        else f"{len(names)} trials failed alike ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''}): {error}"
        for error, names in failed.items()
    ]


def _configurations(space: Space, rows: Sequence[TrialRow]) -> list[dict[str, Any]]:
    """Configurations with a score, the best first; those that lack seeds last.

    `low` and `high` are the ends of the interval over clips; of several seeds, the means of the ends.
    """
    groups: dict[str, list[TrialRow]] = {}
    for row in rows:
        groups.setdefault(digest_json(dict(row.state.values)), []).append(row)
    found = []
    for group in groups.values():
        group.sort(key=lambda row: row.state.seed)
        scores = [row.score for row in group if row.score is not None]
        values = [float(score["value"]) for score in scores]
        found.append(
            {
                "values": dict(group[0].state.values),
                "trials": [row.state.name for row in group],
                "seeds": [row.state.seed for row in group],
                "complete": len(group) >= len(space.seeds),
                **{key: statistics.fmean(float(score[key]) for score in scores) for key in ("value", "low", "high")},
                "count": scores[0]["count"],
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                "outcome": statistics.fmean(row.outcome for row in group if row.outcome is not None),
                "parameters": statistics.fmean(row.parameters for row in group),
                "peak_bytes": max(row.peak_bytes for row in group),
                "seconds": statistics.median(row.seconds for row in group),
                "order": group[0].state.order,
                "difference": None,
            }
        )
    found.sort(key=lambda one: (not one["complete"], one["outcome"], one["parameters"], one["order"]))
    for rank, one in enumerate(found, start=1):
        one["rank"] = rank if one["complete"] else None
        one["pareto"] = [cost for cost in COSTS if not any(_dominates(other, one, cost) for other in found)]
    return found


def _dominates(one: Mapping[str, Any], other: Mapping[str, Any], cost: str) -> bool:
    left, right = ((each["outcome"], each[cost]) for each in (one, other))
    return left != right and left[0] <= right[0] and left[1] <= right[1]


def _winner(
    folder: Path, best: Mapping[str, Any], rows: Sequence[TrialRow], earlier: Mapping[str, Any]
) -> dict[str, Any]:
    lines = {row.state.name: train_line(row.state.words) for row in rows}
    before = earlier.get("winner") or {}
    return {
        "values": best["values"],
        "trials": best["trials"],
        "runs": [str(folder / "trials" / name) for name in best["trials"]],
        "lines": [lines[name] for name in best["trials"]],
        "score": {key: best[key] for key in ("value", "low", "high", "count")},
        "test": before.get("test") if before.get("trials") == best["trials"] else None,
    }


def finish(
    body: Mapping[str, Any], folder: Path, space: Space, *, told: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """What follows from all trials: differences from the best, importances, its score on the test clips.

    Args:
        body: Of `describe`.
        folder: Of the sweep.
        space: What was tried.
        told: Called with a line for a person.
    """
    configurations = [dict(one) for one in body["configurations"]]
    notes = list(body["notes"])
    complete = [one for one in configurations if one["complete"]]
    for one in complete[1 : _COMPARED + 1]:
        one["difference"] = _difference(folder, complete[0], one, str(body["score"]))
    if complete:
        notes += _edges(space, complete[0]["values"], len(complete))
    if pruned := sum(row["status"] == "pruned" for row in body["trials"]):
        notes.append(f"{counted(pruned, 'trial')} stopped early (sweep.pruning), without a score of the end.")
    if body["left_out"]:
        shown = "; ".join(body["left_out"][:3])
        notes.append(f"{counted(len(body['left_out']), 'combination')} left out as no valid settings: {shown}")
    if body["missing"]:
        notes.append(f"{counted(body['missing'], 'trial')} not made: draws brought nothing new any more.")
    winner = None if body["winner"] is None else dict(body["winner"])
    if winner is not None and winner["test"] is None and space.test is not None:
        winner["test"], problem = score_on_test(folder, winner, space.test, told=told)
        notes += [] if problem is None else [f"The best trial could not be scored on data.test: {problem}"]
    return {
        **body,
        "status": "finished",
        "configurations": configurations,
        "winner": winner,
        "importance": importance(space.axes, [one["values"] for one in complete], [one["outcome"] for one in complete]),
        "notes": notes,
    }


def _difference(folder: Path, best: Mapping[str, Any], other: Mapping[str, Any], score: str) -> dict[str, Any] | None:
    """A configuration minus the best, on the same development clips; None where the two cannot be compared."""
    first, second = ([folder / "trials" / name for name in one["trials"]] for one in (best, other))
    try:
        found = compare(
            first, second, moment="after", same_seeds=len(first) > 1, resamples=_RESAMPLES, slices=False
        ).differences
    except SonotuneError:  # too few clips, or classes without a paired test
        return None
    return found[score].to_json() if score in found else None


def _edges(space: Space, best: Mapping[str, str], count: int) -> list[str]:
    """Where the best value is the outermost of an axis of numbers."""
    notes = []
    for axis in space.axes:
        ends = [float(value) for value in axis.ends] if is_numeric(axis) and axis.name in best else []
        # Of a range a draw hardly meets the end itself: one in ten of its length, or of its logarithm, counts as it.
        if len(ends) < 3 and axis.span is None:
            continue
        value, low, high = float(best[axis.name]), min(ends), max(ends)
        near = value in (low, high)
        if axis.span is not None and not axis.values and count > 1:
            scale = math.log if axis.span.log else float
            place = (scale(value) - scale(low)) / (scale(high) - scale(low))
            near = not 0.1 < place < 0.9
        if near:
            side = "lower" if abs(value - low) <= abs(high - value) else "upper"
            notes.append(f"The best {axis.name}, {best[axis.name]}, is at the {side} end of its values: widen them.")
    return notes


def winner_line(body: Mapping[str, Any]) -> str:
    """The best configuration in words."""
    winner = body["winner"]
    values = " ".join(f"{name}={value}" for name, value in winner["values"].items())
    return f"best     {values or 'the line as it stands'}: {body['title']} {show(body, winner['score'])} on data.eval"


def show(body: Mapping[str, Any], score: Mapping[str, Any]) -> str:
    """A score of the sweep with its interval."""
    scale, unit = (100.0, " %") if body["unit"] == "fraction" else (1.0, "")
    value, low, high = (f"{scale * float(score[key]):.2f}" for key in ("value", "low", "high"))
    return f"{value}{unit} [{low}, {high}]"
