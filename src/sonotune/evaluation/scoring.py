"""Scores of predictions that are there, whichever model or models made them: whole and by slices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sonotune.errors import TextError
from sonotune.evaluation.confidence import WordConfidence
from sonotune.evaluation.findings import without_reference
from sonotune.metrics.slices import DURATION_EDGES_S, Slice, slice_clips
from sonotune.tasks.base import Task
from sonotune.types import Clip, Finding, Prediction, Score


class ScoredPredictions(NamedTuple):
    """Scores, slices, details and findings, as `evaluation.evaluate.EvaluationResult` has them."""

    scores: dict[str, Score]
    slices: list[dict[str, Any]]
    details: dict[str, Any]
    findings: list[Finding]


def score_predictions(
    task: Task,
    predictions: Sequence[Prediction],
    clips: Sequence[Clip],
    *,
    primary: str | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    duration_edges_s: Sequence[float] = DURATION_EDGES_S,
    titled: Callable[[Mapping[str, Score]], dict[str, Score]] = dict,
    words: WordConfidence | None = None,
) -> ScoredPredictions:
    """Score predictions of the clips that say what should come out.

    Args:
        task: Scores them.
        predictions: In the order of the clips.
        clips: With or without references.
        primary: Name of the score that decides; None asks the task for these clips.
        bootstrap: Resamples for the intervals.
        seed: Seed of the resampling.
        duration_edges_s: Borders of the duration slices, in seconds.
        titled: Changes the titles of the scores.
        words: Scores the confidences of words; None where there are none.

    Raises:
        TextError: The score that is to decide cannot be given of these clips.
    """
    told = [index for index, clip in enumerate(clips) if task.has_reference(clip)]
    findings = without_reference(clips, told)
    if not told:
        return ScoredPredictions({}, [], {}, findings)
    true, found = [clips[index] for index in told], [predictions[index] for index in told]
    primary = primary or task.primary_of(true)[0]
    scores = task.score(found, true, primary=primary, resamples=bootstrap, seed=seed)
    if words is not None:
        scores |= words.score(found, true, resamples=bootstrap, seed=seed)
    scores = titled(scores)
    if primary not in scores:
        raise TextError(
            f"{primary} is to decide (evaluation.primary), and none of the {len(true)} clips has anything that it "
            f"is counted on; found {', '.join(scores)}. Name one of these, or leave the setting at auto."
        )
    details, warnings = task.details(found, true)
    findings += warnings
    if words is not None:
        details, findings = details | words.details(found, true), findings + words.findings(found, true)
    parts = slice_clips(true, duration_edges_s=duration_edges_s)
    slices = score_slices(
        task, found, true, parts, primary=primary, bootstrap=bootstrap, seed=seed, titled=titled, words=words
    )
    return ScoredPredictions(scores, slices, details, findings)


def score_slices(
    task: Task,
    predictions: Sequence[Prediction],
    clips: Sequence[Clip],
    slices: Sequence[Slice],
    *,
    primary: str,
    bootstrap: int,
    seed: int = 0,
    titled: Callable[[Mapping[str, Score]], dict[str, Score]] = dict,
    words: WordConfidence | None = None,
) -> list[dict[str, Any]]:
    """The rows of `EvaluationResult.slices`.

    Args:
        task: Scores.
        predictions: Of `clips`, in their order.
        clips: With a reference each.
        slices: Of `clips`.
        primary: Name of the score that decides.
        bootstrap: Resamples for the intervals.
        seed: Of the resampling.
        titled: Changes titles of scores.
        words: Scores word confidences, where there are any.
    """
    rows = []
    for part in slices:
        members, found = [clips[index] for index in part.members], [predictions[index] for index in part.members]
        scores = task.score(found, members, primary=primary, resamples=bootstrap, seed=seed)
        scores |= {} if words is None else words.score_slice(found, members, resamples=bootstrap, seed=seed)
        scores = titled(scores)
        row: dict[str, Any] = {
            "by": part.by,
            "value": part.value,
            "clips": len(members),
            "seconds": math.fsum(clip.duration_s for clip in members),
            "scores": {name: score.to_json() for name, score in scores.items()},
        }
        details, _ = task.details(found, members)
        rows.append(row | {name: details[name] for name in _DETAILS_OF_SLICES if name in details})
    return rows


_DETAILS_OF_SLICES = ("insertions",)
