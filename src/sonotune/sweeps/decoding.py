"""How a trained model is best decoded: settings of decoding, tried on the development clips, without training again.

Every combination of the values is one pass over the clips. Each is compared with the decoding that the run is scored
with now, clip by clip, and one is called better only where the paired interval, and Holm's correction over all that
were tried, leave out that it is chance. The clips of a test choose nothing.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from sonotune.audit.audio_digest import AudioDigests
from sonotune.data.manifest import digest
from sonotune.errors import ConfigError, problem_list
from sonotune.evaluation.compare import compare
from sonotune.evaluation.confidence import decoding_entries
from sonotune.evaluation.evaluate import EvaluationResult, write_predictions
from sonotune.loading import content_digests
from sonotune.metrics.error_rate import EditCounts, error_rate
from sonotune.metrics.paired import holm
from sonotune.metrics.scores import better_sign, change_of, primary_score
from sonotune.runs import atomic_write_json, code_version, digest_json, make_folder
from sonotune.serving.recognizer import Recognizer
from sonotune.sweeps.axes import Axis
from sonotune.sweeps.claims import open_claims
from sonotune.sweeps.decoding_record import RECORD, SCHEMA, check_folder, kept_rows
from sonotune.sweeps.space import Point, show_point, sort_words
from sonotune.sweeps.verdict import LEVEL
from sonotune.tasks.base import Task
from sonotune.types import Clip, DecodingSettings, Prediction, Score
from sonotune.wording import counted

SWEPT: Final = tuple(f"evaluation.{field.name}" for field in fields(DecodingSettings) if field.name != "confidence")
"""Settings that can vary."""
MOST: Final = 200
"""Combinations, each of which is an evaluation."""
_WORKER: Final = "decoding"
"""What a process takes for all trials: each is compared with the first."""
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


def sweep_identity(
    recognizer: Recognizer, checkpoint: str, clips: Sequence[Clip], scoring: Mapping[str, Any]
) -> dict[str, str]:
    """What every trial of a sweep shares, by digests: `model`, `clips` (their lines and recordings) and `settings`.

    Args:
        recognizer: The model in use.
        checkpoint: What it was opened from.
        clips: Development clips.
        scoring: What decides scores besides the model and the decoding.
    """
    loaded = recognizer.opened.loaded
    computed = [*content_digests(checkpoint, loaded), loaded.context, asdict(loaded.thinning), recognizer.precision]
    return {
        "model": digest_json([*computed, dict(loaded.quantized)]),
        "clips": digest_json([digest(clips), AudioDigests().of(clips)]),
        "settings": digest_json(dict(scoring)),
    }


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
    """Decode the clips in every way that is not scored yet, and say which is best and whether it is shown to be.

    Args:
        trials: Ways, the current one first.
        clips: Development clips.
        task: Writes predictions.
        recognize: Decodes and scores `clips`.
        folder: Takes predictions and `decoding.json`; what an earlier call of the same sweep scored is taken from it.
        about: What else the record says, such as the model, and `identity` (`sweep_identity`); the sweep is another
            one where any of it differs.
        told: Hears of each trial when it is done.
        resamples: Of the paired comparison.

    Returns:
        What `decoding.json` holds: `score` (the name of the one that decides), `trials` (rows), `proposed`,
        `sentence`.

    Raises:
        ConfigError: The folder holds something else, or another process is at work on it.
    """
    check_folder(folder, about)
    lock = open_claims(folder).take(_WORKER)
    if lock is None:
        raise ConfigError(f"another process is at work on sweep.dir={folder}. Wait for it, or name another folder.")
    try:
        check_folder(folder, about)  # that process may have written it
        make_folder(folder / "predictions", choose="sweep.dir=PATH")
        names = [digest_json([dict(about), decoding_entries(trial.decoding)]) for trial in trials]
        rows = _kept(folder, names)
        for number, (name, trial) in enumerate(zip(names, trials, strict=True)):
            if earlier := name in rows:
                rows[name]["name"] = trial.name
            else:
                path = folder / "predictions" / f"{number:03d}.jsonl"
                rows[name] = _row(trial, recognize(trial.decoding), task, clips, path) | {"identity": name}
                # What is stopped half way has what it found.
                _write(folder, [rows[one] for one in names if one in rows], about, len(trials), len(clips), resamples)
            told(f"{number + 1} of {len(trials)}: {trial.name}{' (scored earlier)' if earlier else ''}")
        return _write(folder, [rows[name] for name in names], about, len(trials), len(clips), resamples)
    finally:
        os.close(lock)


def _kept(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows of an earlier call by identity; differences count where the predictions they are from are there."""
    rows = {name: row for name, row in kept_rows(folder).items() if name in names}
    return rows if names[0] in rows else {name: row | {"difference": None} for name, row in rows.items()}


def _write(
    folder: Path, rows: Sequence[dict[str, Any]], about: Mapping[str, Any], asked: int, clips: int, resamples: int
) -> dict[str, Any]:
    """Compare what is not compared yet with the current decoding, judge, and write the record."""
    score = str(primary_score(rows[0]["scores"]))
    for row in rows[1:]:
        if row["difference"] is None:
            sides = ([folder / one["predictions"]] for one in (rows[0], row))
            found = compare(*sides, primary=score, slices=False, resamples=resamples)
            row["difference"] = found.differences[score].to_json()
    commits = sorted({str(row["commit"]) for row in rows})
    body = {
        "schema": SCHEMA,
        **about,
        "asked": asked,
        "clips": clips,
        "score": score,
        "trials": list(rows),
        "notes": [f"the trials are of {len(commits)} commits of sonotune: {', '.join(one[:12] for one in commits)}"]
        if len(commits) > 1
        else [],
        "code": code_version(),
        **judge_decoding(rows, score),
    }
    atomic_write_json(folder / RECORD, body)
    return body


def _row(trial: Trial, result: EvaluationResult, task: Task, clips: Sequence[Clip], path: Path) -> dict[str, Any]:
    """What is kept of a trial; writes its predictions."""
    write_predictions(path, task, result.predictions, clips)
    counts = result.scores["wer"].detail
    return {
        "values": dict(trial.values),
        "name": trial.name,
        "decoding": decoding_entries(trial.decoding),
        "scores": {name: one.to_json() for name, one in result.scores.items()},
        "insertion_rate": _insertion_rate(result.predictions, task, clips).to_json(),
        "insertions": int(counts["insertions"]),
        "loops": int(counts["loops"]),
        "cut": int(counts["cut"]),
        "fallbacks": int(result.details["decoding"]["fallbacks"]),
        "real_time_factor": result.real_time_factor,
        "seconds": result.seconds,
        "predictions": f"{path.parent.name}/{path.name}",
        "commit": code_version().get("commit", ""),
        "difference": None,
    }


def _insertion_rate(predictions: Sequence[Prediction], task: Task, clips: Sequence[Clip]) -> Score:
    """Inserted words over reference words, with the interval of a word error rate that counts nothing else."""
    told = [(one, clip) for one, clip in zip(predictions, clips, strict=True) if task.has_reference(clip)]
    edits = [task.row(*pair)["edits"] for pair in told]
    counts = [EditCounts(insertions=one["insertions"], reference=one["reference"]) for one in edits]
    return error_rate("insertions", counts, title="Inserted words", speakers=[clip.speaker for _, clip in told])


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
