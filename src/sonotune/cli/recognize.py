"""Commands that use a model on audio files: transcribe, classify."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sonotune.arguments import open_recognizer, recognition_settings, refuse_augmented, settings_of_use
from sonotune.cli.shared import Files, Json, app, one_field, print_result, tell
from sonotune.progress import printable_name

if TYPE_CHECKING:
    from sonotune.types import Prediction

_SHOWN_NOTES = ("evaluation.windows", "evaluation.confidence")


@app.command()
def transcribe(
    words: Files,
    as_json: Json = False,
) -> None:
    """Write what is said in audio files.

    sonotune transcribe model=runs/x recordings/ note.mp3

    evaluation.confidence=true gives every word in --json the probability that it is right. A file that is named and
    cannot be read ends the command with exit code 2, after the others are written.
    """
    result, _, code = _recognize(words, task="transcribe")
    texts = [
        {"path": one.clip_id, "text": one.text, "cut": one.cut, "no_signal": one.no_signal, **_words(one)}
        for one in result.predictions
    ]
    lines = [f"{printable_name(one_field(item['path']))}\t{one_field(item['text'])}" for item in texts]
    print_result({"transcripts": texts, **_told(result)}, as_json=as_json, lines=lines, transcripts=True)
    raise typer.Exit(code)


@app.command()
def classify(
    words: Files,
    top: Annotated[int, typer.Option(min=1, help="How many classes to print, best first.")] = 3,
    as_json: Json = False,
) -> None:
    """Say which classes audio files belong to.

    sonotune classify model=runs/x recordings/ hit.wav

    A file that is named and cannot be read ends the command with exit code 2, after the others are written.
    """
    result, task, code = _recognize(words, task="classify")
    labels = [
        {"path": prediction.clip_id, "labels": task.decide(prediction), "scores": dict(prediction.scores)}
        for prediction in result.predictions
    ]
    lines = []
    for item in labels:
        best = sorted(item["scores"].items(), key=lambda pair: -pair[1])[:top]
        shown = "  ".join(f"{label} {100 * score:.0f} %" for label, score in best)
        lines.append(f"{one_field(item['path'])}\t{', '.join(item['labels']) or '-'}\t{shown}")
    print_result({"predictions": labels, **_told(result)}, as_json=as_json, lines=lines)
    raise typer.Exit(code)


def _recognize(words: Sequence[str], *, task: str) -> tuple[Any, Any, int]:
    """Predictions of the files among the words, by the model that the others name; the task; and the exit code."""
    from sonotune.errors import ManifestError
    from sonotune.paths import exists, is_folder

    files = [Path(word) for word in words if "=" not in word or exists(word)]
    others = [word for word in words if Path(word) not in files]
    config = settings_of_use([*others, f"model.task={task}"]).config
    refuse_augmented(config)
    if missing := [path for path in files if not exists(path)]:
        more = f", and neither do {len(missing) - 1} others that are named" if len(missing) > 1 else ""
        raise ManifestError(f"{missing[0]} does not exist{more}. Check the path.")
    recognizer = open_recognizer(config)
    result = recognizer.recognize(files, **recognition_settings(config))
    for finding in result.findings:
        if finding.severity != "note" or finding.check in _SHOWN_NOTES:
            tell(f"sonotune: {'WARNING: ' * (finding.severity == 'warning')}{finding.message}")
    named = {str(path) for path in files if not is_folder(path)}
    unread = any(finding.severity == "error" and finding.path in named for finding in result.findings)
    return result, recognizer.task, ManifestError.exit_code if unread else 0


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
