"""Open a model, adapter or run and use it: score manifests, transcribe files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sonotune.audio import io
from sonotune.data import text
from sonotune.data.audio_checks import SILENT, silent
from sonotune.data.audio_files import find_audio, left_out
from sonotune.errors import AudioError, ManifestError
from sonotune.evaluation.evaluate import EvaluationResult, evaluate
from sonotune.loading import Opened, choose_family, open_model
from sonotune.models.base import MULTI_LABEL
from sonotune.models.precision import autocast, bound_kernel_cache, choose_precision
from sonotune.paths import is_folder
from sonotune.progress import phase
from sonotune.registry import resolve
from sonotune.serving.speech_check import SpeechCheck, clips_without_speech
from sonotune.tasks.base import Task, TaskSettings
from sonotune.types import SILENCE_DB, Clip, Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognizer:
    """A model that is ready to recognise.

    Attributes:
        opened: The model and what was decided about it.
        task: Predicts and scores.
        precision: Of the matrix products.
    """

    opened: Opened
    task: Task
    precision: str

    @classmethod
    def open(
        cls,
        checkpoint: str,
        *,
        task: str = "auto",
        family: str = "auto",
        revision: str | None = None,
        language: str | None = None,
        multi_label: bool = False,
        text_scoring: str = "basic",
        verbalize_numbers: Literal["auto"] | bool = "auto",
        primary: str = "auto",
        scores: tuple[str, ...] = (),
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
        device: str | None = None,
        **model_settings: Any,
    ) -> Recognizer:
        """Open what was named.

        Args:
            checkpoint: Packaged, hub or local model, adapter folder, or run directory.
            task: Registry name; `auto` takes what the model was made for.
            family: Registry name of the architecture, or `auto`.
            revision: Hub revision.
            language: Of clips that name none; None takes the adapter's, or detects it.
            multi_label: Whether a clip may have several classes; an adapter and a saved model know.
            text_scoring: Normaliser for scoring.
            verbalize_numbers: See `TaskSettings`.
            primary: See `TaskSettings`.
            scores: See `TaskSettings`.
            precision: Of the matrix products.
            device: `cpu` or `cuda`; None takes CUDA where there is one.
            **model_settings: Further arguments of `loading.open_model`.

        Raises:
            ModelError: Nothing usable is there.
        """
        import torch  # noqa: PLC0415

        bound_kernel_cache()
        chosen, _ = choose_precision(precision)
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        architecture = choose_family(checkpoint, revision=revision, family=family, task=task)
        opened = open_model(
            checkpoint, family=architecture, revision=revision, precision=chosen, device=place, **model_settings
        )
        kind = getattr(opened.loaded.module.config, "problem_type", None)
        settings = TaskSettings(
            scoring_text=text.get(text_scoring),
            verbalize_numbers=verbalize_numbers,
            primary=primary,
            scores=scores,
            language=language or opened.settings.get("language"),
            multi_label=multi_label or opened.settings.get("multi_label", False) or kind == MULTI_LABEL,
        )
        made: Task = resolve("tasks", architecture.task)(architecture, settings)
        return cls(opened=opened, task=made, precision=chosen)

    def evaluate(self, clips: Sequence[Clip], **settings: Any) -> EvaluationResult:
        """Decode and score; see `evaluation.evaluate.evaluate` for the settings."""
        loaded = self.opened.loaded
        return evaluate(
            self.task,
            loaded,
            clips,
            autocast=self.autocast,
            **settings,
        )

    def recognize(
        self,
        paths: Sequence[Path],
        *,
        silence_db: float = SILENCE_DB,
        speech_check: SpeechCheck = "energy",
        **settings: Any,
    ) -> EvaluationResult:
        """Transcribe or classify audio files and every audio file in folders, in the order given.

        A file longer than the model's window is decoded in windows, as everywhere (`evaluation.windows`). A file
        without signal, or without speech where that is asked for, is named, and its text is empty, whatever the model
        would write on it; `evaluate` asks the model.

        Args:
            paths: Files or folders.
            silence_db: Level below which a file has no signal (`audio.activity.signal_level_db`).
            speech_check: `energy` goes by that level; `silero` asks a detector about the files above it; `off` asks
                the model about every file. Classes have none of it.
            **settings: As for `evaluate`.

        Returns:
            Predictions in the order of `clips_of(paths)`, without scores.

        Raises:
            ManifestError: No audio file is there, or none can be read.
            MissingExtraError: The detector is not installed.
        """
        clips, findings = clips_of(paths, silence_db=silence_db)
        if not clips:
            reasons = "; ".join(finding.message for finding in findings[:5])
            raise ManifestError(f"nothing to {self.task.name}: {reasons or 'no audio file in the folders given'}.")
        empty = {name for finding in findings if finding.check == SILENT for name in finding.clip_ids}
        if speech_check == "off" or self.task.reference != "text":
            empty = set()
        elif speech_check == "silero":
            mute = clips_without_speech([clip for clip in clips if clip.id not in empty])
            findings += mute
            empty |= {name for finding in mute for name in finding.clip_ids}
        result = self.evaluate(clips, no_signal=empty, **settings)
        return replace(result, findings=[*findings, *result.findings])

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the matrix products, for one batch."""
        return autocast(self.precision, self.opened.loaded.device)


def clips_of(
    paths: Sequence[Path], *, language: str | None = None, silence_db: float = SILENCE_DB
) -> tuple[list[Clip], list[Finding]]:
    """Clips of audio files and of every audio file in folders; no usable audio, or no signal, becomes a finding."""
    files: list[Path] = []
    clips: list[Clip] = []
    findings: list[Finding] = []
    for path in paths:
        if is_folder(path):
            readable, unreadable = find_audio(path)
            files += readable
            if unreadable:
                findings.append(left_out(unreadable, path))
        else:
            files.append(path)
    files = list(dict.fromkeys(files))  # a file may be named by itself and by its folder
    with phase("reading audio", len(files), "files") as advance:
        for done, file in enumerate(files, 1):
            clip, found = _clip_of(file, language=language, silence_db=silence_db)
            clips += [clip] if clip is not None else []
            findings += found
            advance(done)
    return clips, findings


def _clip_of(file: Path, *, language: str | None, silence_db: float) -> tuple[Clip | None, list[Finding]]:
    try:
        measured = io.measure(file)
    except AudioError as error:
        return None, [Finding(check=f"audio.{error.reason}", severity="error", message=str(error), path=str(file))]
    findings: list[Finding] = []
    info = measured.info
    if info.missing_s:
        message = f"{file} ends {info.missing_s:.3f} s before its header says; it is read as far as it goes."
        findings.append(Finding(check="audio.shortened", severity="warning", message=message, path=str(file)))
    clip = Clip(id=str(file), path=file.resolve(), duration_s=info.duration_s, language=language)
    level_db = measured.level_db
    if level_db is not None and (found := silent(clip, level_db, silence_db=silence_db)) is not None:
        findings.append(found)
    return clip, findings
