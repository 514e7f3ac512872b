"""Evaluate a model on clips: the scores, where they come from, and every prediction.

Shape letters: B clips, T frames, F feature bins, U target tokens.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sonotune.errors import ManifestError, ResourceError, out_of_memory
from sonotune.evaluation.augmented import EvaluationChain
from sonotune.evaluation.confidence import WordConfidence, settings_of
from sonotune.evaluation.decode import cut_texts, in_clip_order
from sonotune.evaluation.findings import did_not_fit, foreign_context, not_finite
from sonotune.evaluation.scoring import score_predictions
from sonotune.evaluation.teacher_forcing import LabelPass
from sonotune.evaluation.windows import cut_into_windows
from sonotune.features.batching import Batch, ClipBatches, batch_loader, plan_batches
from sonotune.features.workers import Crew
from sonotune.metrics.confidence import Calibration
from sonotune.metrics.efficiency import real_time_factor
from sonotune.metrics.slices import DURATION_EDGES_S, NOISE
from sonotune.models.modes import inference
from sonotune.processes import SINGLE_PROCESS, Processes
from sonotune.progress import note, phase
from sonotune.runs import atomic_write_text
from sonotune.tasks.base import LabelTask, Predictor, Task
from sonotune.types import DEFAULT_DECODING, Clip, Context, DecodingSettings, Finding, Prediction, Score

logger = logging.getLogger(__name__)

_NO_TARGET = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """What a model did on a list of clips.

    Attributes:
        scores: Of the clips that say what should come out (`wer`, `cer`; `accuracy`, `f1_macro`, `map`); empty when
            none does. The one that decides has the role `primary`.
        slices: One JSON-ready mapping per slice: `by`, `value`, `clips`, `seconds`, `scores`, and for texts
            `insertions`. Scores of word confidences stand in those with `confidence.MIN_WORDS` words or more.
        predictions: One per clip, in the order of the clips; empty where a clip could not be read.
        findings: Clips that could not be read or have no reference, and warnings of the task.
        details: What the task tells besides: `decoding` (loops, fallbacks, empty texts and invented words), or
            `classes` and `confusion`; empty when no clip has a reference.
        clips: Number of clips.
        seconds: Wall time of reading, decoding and scoring.
        audio_seconds: Length of all clips.
        real_time_factor: Seconds of work per second of audio.
        context: How much of the model's window was computed; None where it has none.
        augmentation: The chain that the clips were scored through; None scored them as they are.
        retention: What tuning broke, a panel each (`retention.measure.compare_panel`); empty where none was asked for.
        adapter_scales: Scores over the strength of the adapter (`retention.scales`); empty where that was not asked.
    """

    scores: dict[str, Score]
    slices: list[dict[str, Any]]
    predictions: list[Prediction]
    findings: list[Finding]
    details: dict[str, Any]
    clips: int
    seconds: float
    audio_seconds: float
    real_time_factor: float
    context: Context | None = None
    augmentation: EvaluationChain | None = None
    retention: Sequence[Mapping[str, Any]] = ()
    adapter_scales: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The keys that `sonotune evaluate --json` promises, and more beside them."""
        return {
            "scores": {name: score.to_json() for name, score in self.scores.items()},
            "slices": self.slices,
            "clips": self.clips,
            "seconds": self.seconds,
            "audio_seconds": self.audio_seconds,
            "real_time_factor": self.real_time_factor,
            "context": self.context,
            "augmentation": None if self.augmentation is None else self.augmentation.to_json(),
            "retention": list(self.retention),
            "adapter_scales": dict(self.adapter_scales),
            **self.details,
            "findings": [
                {"check": finding.check, "severity": finding.severity, "message": finding.message}
                for finding in self.findings
            ],
        }


def evaluate(
    task: Task,
    loaded: Any,
    clips: Sequence[Clip],
    *,
    batch_seconds: float = 240.0,
    max_clips: int = 64,
    decoding: DecodingSettings = DEFAULT_DECODING,
    bootstrap: int = 1000,
    seed: int = 0,
    duration_edges_s: Sequence[float] = DURATION_EDGES_S,
    context: Context | None = None,
    crew: Crew | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    processes: Processes = SINGLE_PROCESS,
    primary: str | None = None,
    no_signal: Collection[str] = (),
    augmentation: EvaluationChain | None = None,
    calibration: Calibration | None = None,
) -> EvaluationResult:
    """Decode every clip and score the predictions.

    Args:
        task: Turns a batch into predictions, and scores them.
        loaded: The model (`sonotune.models.base.LoadedModel`).
        clips: What to decode. Those that do not say what should come out are decoded and not scored.
        batch_seconds: See `predict_clips`, as for every argument that is not named here.
        max_clips: Most clips in a batch.
        decoding: Beams, limits and fallback of texts.
        bootstrap: Resamples for the intervals.
        seed: Seed of the resampling.
        duration_edges_s: Borders of the duration slices, in seconds.
        context: How much of the model's window is computed.
        crew: Loader processes.
        autocast: Makes the precision context of each batch.
        processes: Share the batches; each has all predictions and scores in the end.
        primary: Name of the score that decides; None asks the task for these clips.
        no_signal: See `predict_clips`.
        augmentation: See `predict_clips`; the titles of the scores say which.
        calibration: Makes confidences of the words, where `decoding.confidence` asks for them; None takes them as the
            model gives them.

    Raises:
        ManifestError: There are no clips, an id stands twice, or a clip has a class that the model does not know.
        NumericError: The model gives NaN or infinity for every clip.
        TextError: The score that is to decide cannot be given of these clips.
    """
    started_at = time.monotonic()
    task.check_references(loaded, clips)
    words = (
        WordConfidence(task, calibration, settings_of(loaded, decoding, context=context))
        if decoding.confidence
        else None
    )
    read = partial(
        predict_clips,
        batch_seconds=batch_seconds,
        max_clips=max_clips,
        decoding=decoding,
        context=context,
        crew=crew,
        autocast=autocast,
        processes=processes,
        augmentation=augmentation,
    )
    labels = LabelPass.of(task, loaded, clips) if isinstance(task, LabelTask) and task.rates_labels else None
    if labels is not None and labels.clips:  # first, for a model that cannot do it is told so before it decodes
        rated, _ = read(labels, loaded, labels.clips, targets=labels.targets)
        labels = labels.with_ratings(rated)
    foreign = foreign_context(loaded, context or loaded.context)
    for finding in foreign:  # texts may loop there, which takes long
        note(f"warning: {finding.message}")
    predictions, findings = read(task, loaded, clips, no_signal=no_signal)
    if labels is not None:
        predictions = labels.merge(predictions)
        findings += labels.left_out
    findings += [augmentation.finding()] if augmentation is not None else []
    findings += cut_texts(predictions, decoding)
    if words is not None:
        predictions = words.rate(predictions)
    scored = score_predictions(
        task,
        predictions,
        clips,
        primary=primary,
        bootstrap=bootstrap,
        seed=seed,
        duration_edges_s=duration_edges_s,
        titled=dict if augmentation is None else augmentation.titled,
        words=words,
    )
    findings += [*foreign, *scored.findings]
    seconds = time.monotonic() - started_at
    audio_seconds = math.fsum(clip.duration_s for clip in clips)
    return EvaluationResult(
        scores=scored.scores,
        slices=scored.slices,
        predictions=predictions,
        findings=findings,
        details=scored.details,
        clips=len(clips),
        seconds=seconds,
        audio_seconds=audio_seconds,
        real_time_factor=real_time_factor(seconds, audio_seconds),
        context=(context or loaded.context) if getattr(loaded, "trained_contexts", ()) else None,
        augmentation=augmentation,
    )


def predict_clips(
    task: Predictor,
    loaded: Any,
    clips: Sequence[Clip],
    *,
    batch_seconds: float = 240.0,
    max_clips: int = 64,
    decoding: DecodingSettings = DEFAULT_DECODING,
    context: Context | None = None,
    crew: Crew | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    processes: Processes = SINGLE_PROCESS,
    no_signal: Collection[str] = (),
    augmentation: EvaluationChain | None = None,
    targets: Mapping[str, NDArray[np.int64]] | None = None,
) -> tuple[list[Prediction], list[Finding]]:
    """Decode every clip, without gradients, in batches of similar length.

    A clip longer than the model's window is decoded in windows, and its texts are merged (`evaluation.windows`).

    Args:
        task: Turns a batch into predictions.
        loaded: The model; which of its parts are in training mode is restored afterwards.
        clips: What to decode; transcripts are not looked at.
        batch_seconds: Padded seconds of one batch.
        max_clips: Most clips in a batch.
        decoding: Beams, limits and fallback of texts.
        context: How much of the model's window is computed; None does as the model was loaded (`loaded.context`).
        crew: Loader processes; they change nothing but the speed. None reads here.
        autocast: Makes the precision context of each batch.
        processes: Share the batches; each has all predictions in the end.
        no_signal: Ids of clips that are not decoded, for there is nothing on them: their text is empty.
        augmentation: What the clips are put through before they are decoded.
        targets: Clip id -> target ids that batches carry, for a task that asks for them; None carries none.

    Returns:
        One prediction per clip in the order of the clips, empty for a clip that could not be read or for which the
        model gives NaN or infinity, and the findings that name those clips and the clips decoded in windows.

    Raises:
        ManifestError: There are no clips, or an id stands twice.
        NumericError: The model gives NaN or infinity for every clip.
        ResourceError: A single clip does not fit into memory.
        ValueError: The task broke its promise of one prediction per clip, in order.
    """
    _check_clips(clips)
    silent = frozenset(no_signal)
    heard = [clip for clip in clips if clip.id not in silent]
    windows = cut_into_windows(heard, loaded.frontend.max_duration_s)
    pieces = windows.pieces
    unit = "windows" if max(windows.parts.values(), default=1) > 1 else "clips"
    durations_s = [loaded.computed_s(piece.duration_s, context) for piece in pieces]
    batches = plan_batches(
        durations_s, max_seconds=batch_seconds, max_clips=max_clips, seed=0, epoch=0, shuffle=False, jitter_s=0.0
    )
    dataset = ClipBatches(
        pieces,
        [(targets or {}).get(piece.id, _NO_TARGET) for piece in pieces],
        loaded.frontend,
        batches=batches,
        seed=0,
        epoch=0,
        context=context or loaded.context,
        waveform_augmenter=None if augmentation is None else replace(augmentation, owners=windows.owners()),
    )
    predictions: list[Prediction] = []
    unheard: list[Finding] = []
    cut = 0
    places = processes.shard(range(len(batches)))
    done = 0
    # Closing the loader when something goes wrong ends its workers at once.
    with (
        phase("recognising", sum(len(batches[place]) for place in places), unit) as advance,
        inference(loaded.module),
        closing(batch_loader(dataset, crew, places=places)) as loader,
    ):
        for place, batch in zip(places, loader, strict=True):
            unheard += batch.findings
            if batch.clips:
                with autocast():
                    predict = partial(task.predict, loaded, settings=decoding)
                    predicted, parts = _predict(predict, batch, loaded.device)
                predictions += _checked(predicted, batch.clips)
                cut += parts > 1
            done += len(batches[place])
            advance(done)
    if cut:
        unheard.append(did_not_fit(cut, len(places), batch_seconds))
    shares = processes.all_gather((predictions, unheard))
    predictions = [prediction for share, _ in shares for prediction in share]
    findings = [finding for _, share in shares for finding in share]
    merged, findings = windows.merge(heard, *in_clip_order([piece.id for piece in pieces], predictions, findings))
    findings = [*findings, *not_finite(merged, predictions, loaded)]
    by_id = {prediction.clip_id: prediction for prediction in merged}
    by_id |= {name: Prediction(clip_id=name, text="", no_signal=True) for name in silent}
    return [by_id[clip.id] for clip in clips], findings


def _predict(
    predict: Callable[[Batch], list[Prediction]], batch: Batch, device: torch.device
) -> tuple[list[Prediction], int]:
    """Predictions of a batch, and in how many parts it fitted into memory.

    Raises:
        ResourceError: A single clip does not fit.
    """
    try:
        return predict(batch.to(device)), 1
    except Exception as error:
        if not out_of_memory(error):
            raise
        reason = str(error)
    # Outside the handler, where the traceback no longer holds what was computed.
    if len(batch.clips) == 1:
        [clip] = batch.clips
        raise ResourceError(
            f"out of memory while decoding {clip.id} alone, of {clip.duration_s:.1f} s: {reason[:300]}. Lower "
            "evaluation.beam_size, take quantization.bits=4, or cut the clip with `start_s` and `duration_s`."
        )
    halves = [_predict(predict, half, device) for half in batch.split(2)]
    return [prediction for found, _ in halves for prediction in found], sum(parts for _, parts in halves)


def write_predictions(path: Path, task: Task, predictions: Sequence[Prediction], clips: Sequence[Clip]) -> None:
    """Write one JSON line per clip, atomically.

    Keys: `id`; for texts `reference`, `hypothesis` (as they came), `scored_reference`, `scored_hypothesis` (what was
    compared) and `edits` (words: `substitutions`, `deletions`, `insertions`, `hits`, `reference`; None without a
    transcript), `cut` or `no_signal` where they are true, and `attempts` above 1; for classes `labels`, `decided` and
    `scores`; `duration_s`, `domain`, `speaker`, `language`, and `signal_to_noise` where it was measured.

    Args:
        path: The file, usually `predictions/<where>.jsonl` in a run directory.
        task: The one that made the predictions and scores them.
        predictions: In the order of the clips.
        clips: The clips that were decoded.

    Raises:
        ValueError: Predictions and clips do not belong together.
        ResourceError: The disk is full.
    """
    rows = [
        {
            "id": clip.id,
            **task.row(prediction, clip),
            "duration_s": clip.duration_s,
            "domain": clip.domain,
            "speaker": clip.speaker,
            "language": clip.language,
            **({NOISE: clip.extra[NOISE]} if NOISE in clip.extra else {}),
        }
        for clip, prediction in zip(clips, _checked(predictions, clips), strict=True)
    ]
    atomic_write_text(path, "".join(map(_json_line, rows)))


def _json_line(row: Mapping[str, Any]) -> str:
    # A tokenizer can produce half a surrogate pair, which is no text. An id keeps those of a name that is no UTF-8.
    others = {name: value for name, value in row.items() if name != "id"}
    cleaned = json.loads(json.dumps(others, ensure_ascii=False).encode("utf-8", "replace"))
    return json.dumps({"id": row["id"], **cleaned}, ensure_ascii=False) + "\n"


def _check_clips(clips: Sequence[Clip]) -> None:
    if not clips:
        raise ManifestError(
            "the evaluation set is empty: 0 clips were found after the checks, at least 1 is needed. Look at the "
            "findings of the data check."
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
