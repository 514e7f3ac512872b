"""Evaluate a model on clips: the scores, where they come from, and every prediction.

Shape letters: B clips, T frames, F feature bins, U target tokens.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from sonotune.errors import ManifestError
from sonotune.evaluation.decode import DecodingHealth, decoding_health, in_clip_order, token_limit
from sonotune.features.batching import Batch, ClipBatches, batch_loader, plan_batches
from sonotune.metrics.efficiency import real_time_factor
from sonotune.metrics.error_rate import edit_counts
from sonotune.metrics.slices import DURATION_EDGES_S, ScoredText, slice_scores, text_scores
from sonotune.runs import atomic_write_text
from sonotune.types import Clip, Finding, Prediction, Score

logger = logging.getLogger(__name__)


class Recognizer(Protocol):
    """What evaluation asks of a task; `sonotune.tasks.transcribe.Transcribe` is one."""

    def predict(self, loaded: Any, batch: Batch, *, beam_size: int, max_new_tokens: int | None) -> list[Prediction]:
        """One prediction per clip, in the order of `batch.clips`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """What a model did on a list of clips.

    Attributes:
        scores: `wer` and `cer` over the clips that have a transcript; empty when none has one.
        slices: One JSON-ready mapping per slice: `by`, `value`, `clips`, `seconds`, `insertions`, `scores`.
        predictions: One per clip, in the order of the clips; empty text where a clip could not be read.
        findings: Clips that could not be read, have no transcript, or whose text loops.
        decoding: Shares of loops, empty texts and invented words; None when no clip has a transcript.
        clips: Number of clips.
        seconds: Wall time of reading, decoding and scoring.
        audio_seconds: Length of all clips.
        real_time_factor: Seconds of work per second of audio.
    """

    scores: dict[str, Score]
    slices: list[dict[str, Any]]
    predictions: list[Prediction]
    findings: list[Finding]
    decoding: DecodingHealth | None
    clips: int
    seconds: float
    audio_seconds: float
    real_time_factor: float

    def to_json(self) -> dict[str, Any]:
        """The keys that `sonotune evaluate --json` promises, and more beside them."""
        return {
            "scores": {name: score.to_json() for name, score in self.scores.items()},
            "slices": self.slices,
            "clips": self.clips,
            "seconds": self.seconds,
            "audio_seconds": self.audio_seconds,
            "real_time_factor": self.real_time_factor,
            "decoding": None if self.decoding is None else self.decoding.to_json(),
            "findings": [
                {"check": finding.check, "severity": finding.severity, "message": finding.message}
                for finding in self.findings
            ],
        }


def evaluate(
    task: Recognizer,
    loaded: Any,
    clips: Sequence[Clip],
    *,
    scoring_normalizer: Callable[[str], str],
    batch_seconds: float = 240.0,
    max_clips: int = 64,
    beam_size: int = 1,
    max_new_tokens: int | Literal["auto"] | None = "auto",
    bootstrap: int = 1000,
    seed: int = 0,
    duration_edges_s: Sequence[float] = DURATION_EDGES_S,
    full_context: bool | None = None,
    workers: int = 0,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Decode every clip and score the texts against the transcripts.

    Args:
        task: Turns a batch into predictions.
        loaded: The model (`sonotune.models.base.LoadedModel`).
        clips: What to decode. Those without a transcript are decoded and not scored.
        scoring_normalizer: Text -> scoring form, applied to references and hypotheses alike.
        batch_seconds: See `predict_clips`, as for every argument that is not named here.
        max_clips: Most clips in a batch.
        beam_size: 1 is greedy.
        max_new_tokens: Limit of a text.
        bootstrap: Resamples for the intervals.
        seed: Seed of the resampling.
        duration_edges_s: Borders of the duration slices, in seconds.
        full_context: Pad every clip to the model's window.
        workers: Loader processes.
        autocast: Makes the precision context of each batch.
        progress: Called after every batch.

    Raises:
        ManifestError: There are no clips, or an id stands twice.
        TextError: There are transcripts, and none has a word after normalisation.
    """
    started_at = time.monotonic()
    predictions, findings = predict_clips(
        task,
        loaded,
        clips,
        batch_seconds=batch_seconds,
        max_clips=max_clips,
        beam_size=beam_size,
        max_new_tokens=max_new_tokens,
        full_context=full_context,
        workers=workers,
        autocast=autocast,
        progress=progress,
    )
    ids, items, note = _scored_texts(clips, predictions, scoring_normalizer)
    findings += note
    scores: dict[str, Score] = {}
    slices: list[dict[str, Any]] = []
    decoding: DecodingHealth | None = None
    if items:
        scores = text_scores(items, bootstrap=bootstrap, seed=seed)
        slices = slice_scores(items, duration_edges_s=duration_edges_s, bootstrap=bootstrap, seed=seed)
        references, hypotheses = [item.reference for item in items], [item.hypothesis for item in items]
        decoding = decoding_health(ids, references, hypotheses, edit_counts(references, hypotheses, unit="word"))
        findings += decoding.findings()
    seconds = time.monotonic() - started_at
    audio_seconds = math.fsum(clip.duration_s for clip in clips)
    return EvaluationResult(
        scores=scores,
        slices=slices,
        predictions=predictions,
        findings=findings,
        decoding=decoding,
        clips=len(clips),
        seconds=seconds,
        audio_seconds=audio_seconds,
        real_time_factor=real_time_factor(seconds, audio_seconds),
    )


def predict_clips(
    task: Recognizer,
    loaded: Any,
    clips: Sequence[Clip],
    *,
    batch_seconds: float = 240.0,
    max_clips: int = 64,
    beam_size: int = 1,
    max_new_tokens: int | Literal["auto"] | None = "auto",
    full_context: bool | None = None,
    workers: int = 0,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Prediction], list[Finding]]:
    """Decode every clip, without gradients, in batches of similar length.

    Args:
        task: Turns a batch into predictions.
        loaded: The model; which of its parts are in training mode is restored afterwards.
        clips: What to decode; transcripts are not looked at.
        batch_seconds: Padded seconds of one batch.
        max_clips: Most clips in a batch.
        beam_size: 1 is greedy.
        max_new_tokens: Limit of a text; `auto` takes it from the longest clip of each batch
            (`decode.token_limit`), None leaves it to the model.
        full_context: Pad every clip to the model's window, as the original Whisper does; None does as the model was
            loaded (`loaded.context`).
        workers: Loader processes; changes nothing but the speed.
        autocast: Makes the precision context of each batch.
        progress: Called with clips done and clips in all after every batch.

    Returns:
        One prediction per clip in the order of the clips, empty for a clip that could not be read or is longer than the
        model's window, and the findings that name those clips.

    Raises:
        ManifestError: There are no clips, or an id stands twice.
        ValueError: The task broke its promise of one prediction per clip, in order.
    """
    _check_clips(clips)
    fitting, findings = _within_window(clips, loaded.frontend.max_duration_s)
    durations_s = [clip.duration_s for clip in fitting]
    padded = loaded.context == "full" if full_context is None else full_context
    batches = plan_batches(
        durations_s, max_seconds=batch_seconds, max_clips=max_clips, seed=0, epoch=0, shuffle=False, jitter_s=0.0
    )
    dataset = ClipBatches(
        fitting,
        [np.zeros(0, dtype=np.int64)] * len(fitting),
        loaded.frontend,
        batches=batches,
        seed=0,
        epoch=0,
        full_context_share=1.0 if padded else 0.0,
    )
    predictions: list[Prediction] = []
    done = len(clips) - len(fitting)
    # Closing the loader when something goes wrong ends its workers at once.
    with _inference(loaded.module), closing(batch_loader(dataset, workers=workers)) as loader:
        for planned, batch in zip(batches, loader, strict=True):
            findings += batch.findings
            if batch.clips:
                longest_s = max(clip.duration_s for clip in batch.clips)
                limit = token_limit(longest_s) if max_new_tokens == "auto" else max_new_tokens
                with autocast():
                    batch = batch.to(loaded.device)
                    predicted = task.predict(loaded, batch, beam_size=beam_size, max_new_tokens=limit)
                predictions += _checked(predicted, batch.clips)
            done += len(planned)
            if progress is not None:
                progress(done, len(clips))
    return in_clip_order([clip.id for clip in clips], predictions, findings)


def _scored_texts(
    clips: Sequence[Clip], predictions: Sequence[Prediction], scoring_normalizer: Callable[[str], str]
) -> tuple[list[str], list[ScoredText], list[Finding]]:
    """Ids and texts of the clips that have a transcript, and a note on those that have none."""
    ids: list[str] = []
    items: list[ScoredText] = []
    for clip, prediction in zip(clips, predictions, strict=True):
        if clip.text is not None:
            ids.append(clip.id)
            items.append(
                ScoredText(
                    reference=scoring_normalizer(clip.text),
                    hypothesis=scoring_normalizer(prediction.text or ""),
                    duration_s=clip.duration_s,
                    domain=clip.domain,
                    speaker=clip.speaker,
                    language=clip.language,
                )
            )
    without = tuple(clip.id for clip in clips if clip.text is None)
    if not without:
        return ids, items, []
    note = Finding(
        check="evaluation.no_transcript",
        severity="note",
        message=f"{len(without)} of {len(clips)} clips have no transcript: they were decoded and not scored.",
        clip_ids=without,
        measured=float(len(without)),
        unit="clips",
    )
    return ids, items, [note]


def write_predictions(
    path: Path,
    predictions: Sequence[Prediction],
    clips: Sequence[Clip],
    *,
    scoring_normalizer: Callable[[str], str],
) -> None:
    """Write one JSON line per clip, atomically.

    Keys: `id`, `reference`, `hypothesis` (as they came), `scored_reference`, `scored_hypothesis` (what was compared),
    `edits` (words: `substitutions`, `deletions`, `insertions`, `hits`, `reference`; None without a transcript),
    `duration_s`, `domain`, `speaker`, `language`. Classification adds `scores`.

    Args:
        path: The file, usually `predictions/<where>.jsonl` in a run directory.
        predictions: In the order of the clips.
        clips: The clips that were decoded.
        scoring_normalizer: The one the scores were made with; with another, a report would show errors that were not
            counted.

    Raises:
        ValueError: Predictions and clips do not belong together.
        ResourceError: The disk is full.
    """
    lines: list[str] = []
    for clip, prediction in zip(clips, _checked(predictions, clips), strict=True):
        hypothesis = prediction.text or ""
        row: dict[str, Any] = {"id": clip.id, "reference": clip.text, "hypothesis": hypothesis}
        if clip.text is not None:
            reference, scored = scoring_normalizer(clip.text), scoring_normalizer(hypothesis)
            edits = edit_counts([reference], [scored], unit="word")[0]
            row |= {"scored_reference": reference, "scored_hypothesis": scored, "edits": edits.to_json()}
        else:
            row |= {"scored_reference": None, "scored_hypothesis": None, "edits": None}
        row |= {
            "duration_s": clip.duration_s,
            "domain": clip.domain,
            "speaker": clip.speaker,
            "language": clip.language,
        }
        if prediction.scores:
            row["scores"] = dict(prediction.scores)
        lines.append(_json_line(row))
    atomic_write_text(path, "".join(lines))


def _json_line(row: Mapping[str, Any]) -> str:
    # A tokenizer can produce half a surrogate pair, which no UTF-8 file can hold.
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8") + "\n"


def _check_clips(clips: Sequence[Clip]) -> None:
    if not clips:
        raise ManifestError(
            "the evaluation set is empty: 0 clips were found after the checks, at least 1 is needed. Look at the "
            "findings of the data check, and at `data.min_duration_s` and `data.max_duration_s`."
        )
    twice = [clip_id for clip_id, times in Counter(clip.id for clip in clips).items() if times > 1]
    if twice:
        raise ManifestError(f"clip ids must be unique in an evaluation set; found twice: {', '.join(twice[:10])}.")


def _checked(predictions: Sequence[Prediction], clips: Sequence[Clip]) -> list[Prediction]:
    if [prediction.clip_id for prediction in predictions] != [clip.id for clip in clips]:
        raise ValueError(
            f"a task must return one prediction per clip in the order of the batch; found {len(predictions)} for "
            f"{len(clips)} clips, or other ids. This is a defect of the task."
        )
    return list(predictions)


def _within_window(clips: Sequence[Clip], max_duration_s: float | None) -> tuple[list[Clip], list[Finding]]:
    """Leave out clips longer than the model's window: cut short they would be scored on words never heard."""
    if max_duration_s is None:
        return list(clips), []
    too_long = [clip for clip in clips if clip.duration_s > max_duration_s]
    findings = [
        Finding(
            check="evaluation.too_long",
            severity="error",
            message=(
                f"clip {clip.id} lasts {clip.duration_s:.2f} s and the model hears {max_duration_s:g} s at a time; "
                "it counts as an empty text. Cut it with `start_s` and `duration_s`, or set `data.max_duration_s`."
            ),
            clip_ids=(clip.id,),
            path=str(clip.path),
            measured=clip.duration_s,
            limit=max_duration_s,
            unit="s",
        )
        for clip in too_long
    ]
    return [clip for clip in clips if clip.duration_s <= max_duration_s], findings


@contextmanager
def _inference(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each submodule gets back the mode it had.

    `no_grad` rather than `inference_mode`: quantised layers cache tensors at their first forward, and a tensor made in
    inference mode can never take part in a later backward.
    """
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in training.items():
            part.training = mode
