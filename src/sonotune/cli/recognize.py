"""Commands that use a model on audio files: transcribe, classify."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sonotune.arguments import open_recognizer, recognition_settings, refuse_augmented, settings_of_use
from sonotune.cli.ensemble import ensemble_lines, named_members, recognize_members
from sonotune.cli.shared import Files, Json, app, one_field, print_result, tell
from sonotune.progress import printable_name

if TYPE_CHECKING:
    from sonotune.evaluation.evaluate import EvaluationResult
    from sonotune.types import Prediction

_SHOWN_NOTES = ("evaluation.windows", "evaluation.confidence")


@app.command()
def transcribe(
    words: Files,
    as_json: Json = False,
) -> None:
    """Write what is said in audio files.

    sonotune transcribe model=runs/x recordings/ note.mp3

    evaluation.confidence=true gives every word in --json the probability that it is right. Several models,
    'model=[runs/a,runs/b,runs/c]', vote on every text (settings of `ensemble`); name the best one first.

    A file that is named and cannot be read ends the command with exit code 2, after the others are written.
    """
    result, _, code, ensemble = _recognize(words, task="transcribe")
    texts = [
        {"path": one.clip_id, "text": one.text, "cut": one.cut, "no_signal": one.no_signal, **_words(one)}
        for one in result.predictions
    ]
    lines = [f"{printable_name(one_field(item['path']))}\t{one_field(item['text'])}" for item in texts]
    print_result({"transcripts": texts, **_told(result), **ensemble}, as_json=as_json, lines=lines, transcripts=True)
    raise typer.Exit(code)


@app.command()
def classify(
    words: Files,
    top: Annotated[int, typer.Option(min=1, help="How many classes to print, best first.")] = 3,
    as_json: Json = False,
) -> None:
    """Say which classes audio files belong to.

    sonotune classify model=runs/x recordings/ hit.wav

    Of several models, 'model=[runs/a,runs/b]', the probabilities are averaged.

    A file that is named and cannot be read ends the command with exit code 2, after the others are written.
    """
    result, task, code, ensemble = _recognize(words, task="classify")
    labels = [
        {"path": prediction.clip_id, "labels": task.decide(prediction), "scores": dict(prediction.scores)}
        for prediction in result.predictions
    ]
    lines = []
    for item in labels:
        best = sorted(item["scores"].items(), key=lambda pair: -pair[1])[:top]
        shown = "  ".join(f"{label} {100 * score:.0f} %" for label, score in best)
        lines.append(f"{one_field(item['path'])}\t{', '.join(item['labels']) or '-'}\t{shown}")
    print_result({"predictions": labels, **_told(result), **ensemble}, as_json=as_json, lines=lines)
    raise typer.Exit(code)


def _recognize(words: Sequence[str], *, task: str) -> tuple[EvaluationResult, Any, int, dict[str, Any]]:
    """Predictions of the files among the words, by what the others name; task, exit code, and `ensemble` of --json."""
    from sonotune.errors import ManifestError
    from sonotune.paths import exists, is_folder

    files = [Path(word) for word in words if "=" not in word or exists(word)]
    others = [*(word for word in words if Path(word) not in files), f"model.task={task}"]
    members = named_members(others)
    config = members.config if members is not None else settings_of_use(others).config
    refuse_augmented(config)
    if missing := [path for path in files if not exists(path)]:
        more = f", and neither do {len(missing) - 1} others that are named" if len(missing) > 1 else ""
        raise ManifestError(f"{missing[0]} does not exist{more}. Check the path.")
    made: Any
    ensemble: dict[str, Any] = {}
    if members is not None:
        made, found = recognize_members(members, files)
        result, ensemble = found.combined, {"ensemble": {"method": config.ensemble.method, **found.to_json()}}
        for line in ensemble_lines(found, config.ensemble.method):
            tell(f"sonotune: {line}")
    else:
        recognizer = open_recognizer(config)
        made, result = recognizer.task, recognizer.recognize(files, **recognition_settings(config))
    for finding in result.findings:
        if finding.severity != "note" or finding.check in _SHOWN_NOTES:
            tell(f"sonotune: {'WARNING: ' * (finding.severity == 'warning')}{finding.message}")
    named = {str(path) for path in files if not is_folder(path)}
    unread = any(finding.severity == "error" and finding.path in named for finding in result.findings)
    return result, made, ManifestError.exit_code if unread else 0, ensemble


def _words(prediction: Prediction) -> dict[str, Any]:
    """Its words, each with its confidence, where they were asked for; a file that was not decoded has none."""
    if prediction.words is None:
        return {}
    return {"words": [{"text": word.text, "confidence": word.confidence} for word in prediction.words]}


def _told(result: Any) -> dict[str, Any]:
    """What `transcribe --json` and `classify --json` say beside the predictions."""
    return {
        "seconds": result.seconds,
        "audio_seconds": result.audio_seconds,
        "context": result.context,
        "left_out": [finding.message for finding in result.findings if finding.severity == "error"],
        "warnings": [finding.message for finding in result.findings if finding.severity == "warning"],
    }
