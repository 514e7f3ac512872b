"""The command that scores a model: evaluate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sonotune.arguments import corpus_to_score, open_recognizer, score_clips, settings_of_use
from sonotune.cli.calibrate import record_confidence
from sonotune.cli.ensemble import ensemble_lines, evaluate_members, named_members
from sonotune.cli.findings import removed_clips, warning_lines
from sonotune.cli.retention import record_retention, retention_lines
from sonotune.cli.shared import Json, Words, app, check_output, print_result, tell
from sonotune.metrics.confidence import show_confidence
from sonotune.metrics.retention import BROKE
from sonotune.metrics.scores import decoding_note, primary_score, score_title, show_score
from sonotune.progress import phase
from sonotune.wording import counted

if TYPE_CHECKING:
    from sonotune.evaluation.evaluate import EvaluationResult
    from sonotune.tasks.base import Task
    from sonotune.types import Clip

_SHOWN_NOTES = (
    "text.numbers",
    "audio.silent",
    "evaluation.augmented",
    "evaluation.windows",
    "evaluation.labels",
    "evaluation.no_score",
    "evaluation.confidence",
)
Predictions = Annotated[Path | None, typer.Option(help="Write every prediction to this JSONL file.")]


@app.command()
def evaluate(words: Words = None, as_json: Json = False, out: Predictions = None) -> None:
    """Score a model, adapter or run on a manifest, whole and by domain, duration, speaker and language.

    sonotune evaluate model=runs/x data.test=test.jsonl

    Several models, 'model=[runs/a,runs/b,runs/c]', are scored one by one and as an ensemble (settings of `ensemble`).
    """
    from sonotune.errors import SonotuneError

    with phase("starting"):
        from sonotune.evaluation.evaluate import write_predictions
        from sonotune.features.workers import Crew
        from sonotune.runs.predictions import are_predictions

    members = named_members(words or [], require=("data.test",))
    config = members.config if members is not None else settings_of_use(words or [], require=("data.test",)).config
    check_output(out, instead="predictions.jsonl", is_ours=are_predictions)
    ensemble: dict[str, Any] = {}
    of_members: list[str] = []
    why = None
    if members is not None:
        task, corpus, found = evaluate_members(members)
        result = found.combined
        ensemble = {"ensemble": {"method": config.ensemble.method, **found.to_json()}}
        of_members = ensemble_lines(found, config.ensemble.method)
    else:
        with Crew(config.data.loader_workers) as crew:
            recognizer = open_recognizer(config)
            task, corpus = recognizer.task, corpus_to_score(config, recognizer)
            why = recognizer.opened.choices.get("model.context")
            result = score_clips(config, recognizer, corpus.splits["test"], crew=crew)
        record_retention(Path(config.model.checkpoint), result.retention, result.adapter_scales)
        if "confidence" in result.details:
            record_confidence(Path(config.model.checkpoint), str(config.data.test), corpus.digests["test"], result)
    clips = corpus.splits["test"]
    left_out = [finding for finding in corpus.findings if removed_clips(finding)]
    told = [*(finding for finding in corpus.findings if finding not in left_out), *result.findings]
    result = replace(result, findings=told)
    body = (
        result.to_json()
        | ensemble
        | {
            "left_out": [finding.message for finding in left_out],
            "warnings": [finding.message for finding in told if finding.severity != "note"],
        }
    )
    problem: SonotuneError | None = None
    if out is not None:
        try:
            write_predictions(out, task, result.predictions, clips)
        except SonotuneError as error:  # the scores have cost more than the file
            problem, body = error, body | {"error": str(error), "exit_code": error.exit_code}
    lines = _score_lines(body, result, task, clips)
    lines += of_members
    window = f", model.context={why or result.context}" if result.context else ""
    lines += retention_lines(result.retention, result.adapter_scales)
    lines.append(f"{result.audio_seconds:.0f} s of audio in {result.seconds:.1f} s{window}")
    lines += [f"left out: {finding.message}" for finding in left_out]
    warned = [finding for finding in result.findings if finding.severity != "note" and finding.check != BROKE]
    lines += warning_lines(warned, "--json")  # what broke has its line above
    notes = [finding for finding in result.findings if finding.severity == "note" and finding.check in _SHOWN_NOTES]
    lines += [f"note: {finding.message}" for finding in notes]
    print_result(body, as_json=as_json, lines=lines)
    if problem is not None:
        tell(f"sonotune: {problem}")
        raise typer.Exit(problem.exit_code)


def _score_lines(body: Mapping[str, Any], result: EvaluationResult, task: Task, clips: Sequence[Clip]) -> list[str]:
    """The scores, which one decides and why, and that one by slices."""
    width = max((len(score_title(name, score)) for name, score in body["scores"].items()), default=5)
    lines = [
        f"{score_title(name, score):<{width}} {show_score(score)}  on {counted(score['count'], 'clip')}"
        f"{decoding_note(score)}"
        for name, score in body["scores"].items()
    ]
    if fallbacks := result.details.get("decoding", {}).get("fallbacks"):
        lines.append(f"{fallbacks} of {result.clips} clips were decoded again, because the first text looked wrong")
    decides = primary_score(body["scores"])
    if decides is not None:
        scored = [clip for clip in clips if task.has_reference(clip)]
        lines.append(f"{score_title(decides, body['scores'][decides])} decides: {task.primary_of(scored)[1]}")
        lines += [
            f"  {row['by']}={row['value']}: {score_title(decides, body['scores'][decides])} "
            f"{show_score(row['scores'].get(decides))} on {row['clips']} clips"
            for row in result.slices
        ]
    lines += [
        f"  {row['by']}={row['value']}: {', '.join(f'{name.upper()} {shown}' for name, shown in sure.items())}"
        for row in result.slices
        if (sure := show_confidence(row["scores"], show_score))
    ]
    return lines
