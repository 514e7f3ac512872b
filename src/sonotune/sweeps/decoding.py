"""How a trained model is best decoded: settings of decoding, tried on the development clips, without training again.

Every combination of the values is one pass over the clips. Each is compared with the decoding that the run is scored
with now, clip by clip, and one is called better only where the paired interval, and Holm's correction over all that
were tried, leave out that it is chance. The clips of a test choose nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from sonotune.errors import ConfigError, problem_list
from sonotune.evaluation.compare import compare
from sonotune.evaluation.confidence import decoding_entries
from sonotune.evaluation.evaluate import EvaluationResult, write_predictions
from sonotune.json_files import read_json
from sonotune.metrics.paired import holm
from sonotune.metrics.scores import better_sign, change_of, deciding
from sonotune.runs import atomic_write_json, code_version, make_folder
from sonotune.sweeps.axes import Axis
from sonotune.sweeps.space import Point, show_point, sort_words
from sonotune.sweeps.verdict import LEVEL
from sonotune.tasks.base import Task
from sonotune.types import Clip, DecodingSettings
from sonotune.wording import counted

RECORD: Final = "decoding.json"
SWEPT: Final = tuple(f"evaluation.{field.name}" for field in fields(DecodingSettings) if field.name != "confidence")
"""Settings that can vary."""
MOST: Final = 200
"""Combinations, each of which is an evaluation."""
CURRENT: Final = "the current decoding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One way of decoding.

    Attributes:
        values: Axis -> value; empty for the decoding that the run is scored with.
        decoding: All of its settings.
    """

    values: Point
    decoding: DecodingSettings

    @property
    def name(self) -> str:
        """As a person writes it."""
        return show_point(self.values) if self.values else CURRENT


def decoding_axes(words: Sequence[str]) -> tuple[dict[str, str], dict[str, Axis]]:
    """The words of `sonotune sweep decode` that have one value, and those that vary.

    Raises:
        ConfigError: A word is wrong, nothing varies, or something that is no decoding does; or a test is named.
    """
    fixed, axes, problems = sort_words(words)
    problems += [
        f"{name}={axis.text}: only decoding can vary without training, which is {', '.join(SWEPT)}; "
        "`sonotune sweep` trains"
        for name, axis in axes.items()
        if name not in SWEPT
    ]
    problems += [
        f"{name}={axis.text}: a range has no end of values; list a few"
        for name, axis in axes.items()
        if name in SWEPT and not axis.values
    ]
    if any(name in ("data.test", "data.train") for name in fixed):
        problems.append(
            "decoding is chosen on development clips (data.eval, or those of the run), and never on data.test or "
            "data.train: a score of clips that chose is too good"
        )
    if not axes:
        problems.append("nothing varies: give a setting several values, such as evaluation.beam_size=1,4")
    if problems:
        raise ConfigError(problem_list(f"{counted(len(problems), 'problem')} in the sweep:", problems))
    return fixed, axes


def decoding_trials(
    axes: Mapping[str, Axis], settings_of: Callable[[Point], tuple[Point, DecodingSettings]]
) -> list[Trial]:
    """The current decoding, and every other combination, those that mean the same once.

    Args:
        axes: What varies.
        settings_of: Values -> those of them that have an effect beside the others, and the settings; without values,
            the decoding that the run is scored with.

    Raises:
        ConfigError: A value is wrong, a setting has no effect beside the others, or there are too many combinations.
    """
    size = math.prod(len(axis.values) for axis in axes.values())
    if size > MOST:
        raise ConfigError(f"the values have {size:,} combinations, each an evaluation; at most {MOST} are tried.")
    current = settings_of({})[1]
    trials = {current: Trial(values={}, decoding=current)}
    effective = set[str]()
    for values in itertools.product(*(axis.values for axis in axes.values())):
        point, decoding = settings_of(dict(zip(axes, values, strict=True)))
        effective |= point.keys()
        trials.setdefault(decoding, Trial(values=point, decoding=decoding))
    if idle := [name for name in axes if name not in effective]:
        raise ConfigError(
            f"{', '.join(idle)} has no effect beside the other settings, such as a length penalty without beams. Leave "
            "it out, or give the setting that it needs."
        )
    return list(trials.values())


def sweep_decoding(
    trials: Sequence[Trial],
    clips: Sequence[Clip],
    task: Task,
    recognize: Callable[[DecodingSettings], EvaluationResult],
    *,
    folder: Path,
    about: Mapping[str, Any],
    told: Callable[[str], None],
    resamples: int = 10_000,
) -> dict[str, Any]:
    """Decode the clips in every way, and say which is best and whether it is shown to be.

    Args:
        trials: Ways, the current one first.
        clips: Development clips.
        task: Writes predictions.
        recognize: Decodes and scores `clips`.
        folder: Takes predictions and `decoding.json`.
        about: What else the record says, such as the model.
        told: Hears of each trial when it is done.
        resamples: Of the paired comparison.

    Returns:
        What `decoding.json` holds: `score` (the name of the one that decides), `trials` (rows), `proposed`,
        `sentence`.
    """
    _check_folder(folder, about)
    make_folder(folder / "predictions", choose="sweep.dir=PATH")
    rows: list[dict[str, Any]] = []
    body: dict[str, Any] = {}
    score = ""
    for number, trial in enumerate(trials):
        result = recognize(trial.decoding)
        score = score or deciding(result.scores)
        path = folder / "predictions" / f"{number:03d}.jsonl"
        write_predictions(path, task, result.predictions, clips)
        row = _row(trial, result, path)
        if number:
            found = compare([folder / rows[0]["predictions"]], [path], primary=score, slices=False, resamples=resamples)
            row["difference"] = found.differences[score].to_json()
        rows.append(row)
        body = {"schema": 1, **about, "asked": len(trials), "clips": len(clips), "score": score, "trials": rows}
        body |= {"code": code_version(), **judge_decoding(rows, score)}
        atomic_write_json(folder / RECORD, body)  # what stopped half way has what it found
        told(f"{number + 1} of {len(trials)}: {trial.name}")
    return body


def _check_folder(folder: Path, about: Mapping[str, Any]) -> None:
    """Raise ConfigError where a folder is that of a run or of another sweep, whose predictions would be replaced."""
    if found := next((name for name in ("run.json", "sweep.json") if (folder / name).is_file()), None):
        raise ConfigError(f"sweep.dir={folder} has a {found}: it holds something else. Name another folder.")
    record = folder / RECORD
    if not record.is_file():
        return
    held = read_json(record, TypeAdapter(dict[str, Any]), error=ConfigError, do="Name another folder (sweep.dir).")
    if any(held.get(name) != value for name, value in about.items()):
        raise ConfigError(f"sweep.dir={folder} has the {RECORD} of another sweep. Name another folder.")


def _row(trial: Trial, result: EvaluationResult, path: Path) -> dict[str, Any]:
    counts = result.scores["wer"].detail
    return {
        "values": dict(trial.values),
        "name": trial.name,
        "decoding": decoding_entries(trial.decoding),
        "scores": {name: one.to_json() for name, one in result.scores.items()},
        "insertions": int(counts["insertions"]),
        "loops": int(counts["loops"]),
        "cut": int(counts["cut"]),
        "fallbacks": int(result.details["decoding"]["fallbacks"]),
        "real_time_factor": result.real_time_factor,
        "seconds": result.seconds,
        "predictions": f"{path.parent.name}/{path.name}",
        "difference": None,
    }


def judge_decoding(rows: Sequence[dict[str, Any]], score: str) -> dict[str, Any]:
    """Add `p_holm` and `outcome` to the rows of other decodings, and say which is proposed.

    Returns:
        `proposed`: number of the row with the best score. `shown`: whether it is shown to be better than the current
        decoding. `sentence`: both in words.
    """
    others = [row for row in rows if row["difference"] is not None]
    for row, adjusted in zip(others, holm([row["difference"]["p"] for row in others]), strict=True):
        found = row["difference"] | {"p_holm": adjusted}
        change = change_of(found) if adjusted < LEVEL else "none"
        row |= {"difference": found, "outcome": "no difference shown" if change == "none" else change}
    sign = better_sign(rows[0]["scores"][score]["better"])
    best = min(range(len(rows)), key=lambda number: sign * rows[number]["scores"][score]["value"])
    shown = bool(best) and rows[best]["outcome"] == "better"
    if not best:
        sentence = f"keep {CURRENT}: none of {counted(len(others), 'other')} has a better score"
    elif shown:
        sentence = f"{rows[best]['name']} is better than {CURRENT}"
    else:
        sentence = f"{rows[best]['name']} has the best score, and no difference shown from {CURRENT}: keep that"
    return {"proposed": best, "shown": shown, "sentence": sentence}
