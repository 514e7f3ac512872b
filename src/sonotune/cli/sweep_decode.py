"""`sonotune sweep decode`: settings of decoding of a trained run, on its development clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonotune.arguments import development_clips, evaluation_settings, open_recognizer, run_of, settings_of_use
from sonotune.cli.report import write_decoding_report
from sonotune.cli.shared import print_result, tell
from sonotune.metrics.scores import better_sign, score_title, show_change, show_score, show_signed
from sonotune.progress import phase
from sonotune.wording import counted

if TYPE_CHECKING:
    from sonotune.config.schema import RunConfig
    from sonotune.evaluation.evaluate import EvaluationResult
    from sonotune.sweeps.decoding import Trial
    from sonotune.types import DecodingSettings

_WARM_UP = 2


def sweep_decode(words: Sequence[str], *, dry_run: bool, as_json: bool) -> None:
    """Decode the development clips in every way, and propose one; see `sweeps.decoding`."""
    with phase("starting"):
        from sonotune.config.load import idle_settings
        from sonotune.errors import ConfigError
        from sonotune.sweeps.decoding import decoding_axes, decoding_trials
        from sonotune.sweeps.decoding_record import RECORD
        from sonotune.sweeps.winner_test import evaluation_words

    from sonotune.runs import digest_json

    fixed, axes = decoding_axes(words)
    given = settings_of_use(list(fixed.values())).config
    run = run_of(Path(given.model.checkpoint))
    if run is not None:  # as the run is scored, where the line does not say otherwise
        own = {word.partition("=")[0]: word for word in evaluation_words(run, "")}
        fixed = {name: word for name, word in own.items() if name not in ("data.test", "model")} | fixed
    fixed |= {"evaluation.confidence": "evaluation.confidence=false"}  # not all ways of decoding have one
    if given.model.task == "classify" or (run is not None and given.model.task == "auto" and _classifies(run)):
        raise ConfigError("classes are not decoded: there is no setting to sweep.")

    def settings_of(point: Mapping[str, str]) -> tuple[dict[str, str], RunConfig]:
        line = fixed | {name: f"{name}={value}" for name, value in point.items()}
        for idle in idle_settings(list(line.values())):
            line.pop(idle, None)
        values = {name: value for name, value in point.items() if name in line}
        return values, settings_of_use(list(line.values())).config

    def decoding_of(point: Mapping[str, str]) -> tuple[dict[str, str], DecodingSettings]:
        values, config = settings_of(point)
        return values, config.evaluation.decoding()

    base = settings_of({})[1]
    trials = decoding_trials(axes, decoding_of)
    name = digest_json([sorted(fixed.values()), sorted(axis.text for axis in axes.values())])[:8]
    folder = base.sweep.dir if isinstance(base.sweep.dir, Path) else Path("runs") / f"decode-{name}"
    if dry_run:
        body = {"sweep": str(folder), "trials": [{"name": one.name, "values": dict(one.values)} for one in trials]}
        lines = [*(one.name for one in trials), f"{counted(len(trials), 'evaluation')}, in {folder}"]
        print_result(body, as_json=as_json, lines=lines)
        return
    about = {
        "model": base.model.checkpoint,
        "axes": {axis.name: list(axis.values) for axis in axes.values()},
        "words": list(words),
    }
    body = _sweep(base, trials, folder, about, told=lambda line: tell(line, stdout=not as_json))
    body |= {"sweep": str(folder), "record": str(folder / RECORD), "report": str(write_decoding_report(folder))}
    print_result(body, as_json=as_json, lines=_lines(body))


def _sweep(
    base: RunConfig, trials: Sequence[Trial], folder: Path, about: Mapping[str, Any], told: Callable[[str], None]
) -> dict[str, Any]:
    """Open the model, and decode what is not decoded yet."""
    from sonotune.data.text import get
    from sonotune.features.workers import Crew
    from sonotune.sweeps.decoding import sweep_decoding, sweep_identity

    with Crew(base.data.loader_workers) as crew:
        recognizer = open_recognizer(base)
        clips = development_clips(base, recognizer)
        scoring = evaluation_settings(base) | {"calibration": None}
        decides = [base.evaluation.model_dump(), get(base.data.text_scoring).digest, base.model.language]
        identity = sweep_identity(recognizer, base.model.checkpoint, clips, {"settings": decides})
        warm = False

        def recognize(decoding: DecodingSettings) -> EvaluationResult:
            nonlocal warm
            if not warm:  # the first pass is slower than the others
                recognizer.evaluate(clips[:_WARM_UP], crew=crew, **scoring)
                warm = True
            return recognizer.evaluate(clips, crew=crew, **(scoring | {"decoding": decoding}))

        return sweep_decoding(
            trials,
            clips,
            recognizer.task,
            recognize,
            folder=folder,
            about={**about, "identity": identity},
            told=told,
        )


def _classifies(run: Path) -> bool:
    from sonotune.runs import read_record
    from sonotune.runs.record import task_of

    return task_of(read_record(run)) == "classify"


def _lines(body: Mapping[str, Any]) -> list[str]:
    """A line a way of decoding, the best first, and what is proposed."""
    name = body["score"]
    first = body["trials"][0]["scores"][name]
    sign = better_sign(first["better"])
    rows = sorted(body["trials"], key=lambda row: sign * row["scores"][name]["value"])
    width = max(len(row["name"]) for row in rows)
    lines = [f"{score_title(name, first)} of {counted(body['clips'], 'development clip')}"]
    for row in rows:
        score, found = row["scores"][name], row["difference"]
        told = ""
        if found is not None:
            low, high = show_signed(score, found["low"]), show_signed(score, found["high"])
            told = f"   {show_change(score, found['value'])} [{low}, {high}], {row['outcome']}"
        lines.append(
            f"{row['name']:<{width}}  {show_score(score)}  {row['insertions']} insertions, {row['loops']} loops, "
            f"{row['real_time_factor']:.2f} s a second of audio{told}"
        )
    lines.append(f"proposed: {body['sentence']}")
    lines += [f"note: {note}" for note in body["notes"]]
    return [*lines, f"report   {body['report']}"]
