"""The command that calibrates the word confidences of a run: calibrate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonotune.arguments import development_clips, evaluation_settings, open_recognizer, run_of, settings_of_use
from sonotune.cli.findings import warning_lines
from sonotune.cli.report import amend_record
from sonotune.cli.shared import Json, Words, app, print_result
from sonotune.metrics.scores import score_title, show_score
from sonotune.progress import phase

if TYPE_CHECKING:
    from sonotune.evaluation.evaluate import EvaluationResult
    from sonotune.types import RunRecord


@app.command()
def calibrate(words: Words = None, as_json: Json = False) -> None:
    """Calibrate the word confidences of a finished run on its development clips, and keep that in its record.

    sonotune calibrate model=runs/x

    data.eval names other clips than those of the run. Clips of a test are refused: a confidence that was fitted on them
    says nothing about them. Afterwards evaluation.confidence=true gives calibrated confidences in evaluate and
    transcribe.
    """
    from sonotune.errors import ConfigError

    with phase("starting"):
        from sonotune.evaluation.confidence import WordConfidence, settings_of
        from sonotune.features.workers import Crew

    config = settings_of_use([*(words or []), "evaluation.confidence=true"]).config
    if (run := run_of(Path(config.model.checkpoint))) is None:
        raise ConfigError(
            f"{config.model.checkpoint} is no run, and a calibration is made in the record of one. Give model=RUN; a "
            "model that was not tuned here has confidences as it gives them."
        )
    with Crew(config.data.loader_workers) as crew:
        recognizer = open_recognizer(config)
        clips = development_clips(config, recognizer)
        settings = evaluation_settings(config) | {"calibration": None}
        result = recognizer.evaluate(clips, crew=crew, **settings)
    used = settings_of(recognizer.opened.loaded, config.evaluation.decoding())
    fitted, findings = WordConfidence(recognizer.task, None, used).fit(result.predictions, clips)
    kept = False
    if fitted is not None:
        entries = fitted.to_json()
        kept = amend_record(
            run,
            lambda record: replace(record, confidence={**record.confidence, "calibration": entries}),
            what="the calibration of word confidences",
        )
    before = {name: score.to_json() for name, score in result.scores.items()}
    body = {
        "run": str(run),
        "calibration": None if fitted is None else fitted.to_json(),
        "before": before,
        "kept": kept,
        "clips": result.clips,
        "seconds": result.seconds,
        "warnings": [finding.message for finding in findings],
    }
    lines = []
    if fitted is not None:
        lines.append(
            f"log-odds of a word become {fitted.slope:.3f} times those of the model {fitted.intercept:+.3f}: fitted on "
            f"{fitted.words} words of {fitted.clips} clips, {'in' if kept else 'not kept in'} {run / 'run.json'}"
        )
    lines += [
        f"before   {score_title(name, before[name])} {show_score(before[name])}"
        for name in ("ece", "auroc", "aurc", "nce")
        if name in before
    ]
    if fitted is not None:
        lines.append("these are the clips that it is fitted on: evaluate others with evaluation.confidence=true")
    print_result(body, as_json=as_json, lines=[*lines, *warning_lines(findings, "--json")])


def record_confidence(checkpoint: Path, source: str, digest: str, result: EvaluationResult) -> None:
    """Put the curves of an evaluation into the record of the run that was evaluated.

    Args:
        checkpoint: What was evaluated.
        source: Its clips, as they were named.
        digest: Of the clips, which tells them from others under the same name (`data.manifest.digest`).
        result: Of the evaluation.
    """
    from sonotune.evaluation.confidence import curves_of_clips, kept_curves, with_curves
    from sonotune.metrics.confidence import is_of_confidence

    scores = {name: score.to_json() for name, score in result.scores.items() if is_of_confidence(name)}
    curves: dict[str, Any] = {**kept_curves(result.details["confidence"], result.slices), "scores": scores}
    name, told = curves_of_clips(source, digest, result.augmentation)

    def with_them(record: RunRecord) -> RunRecord:
        return replace(record, confidence=with_curves(record.confidence, name, {**curves, **told}))

    amend_record(checkpoint, with_them, what="the curves of word confidences")
