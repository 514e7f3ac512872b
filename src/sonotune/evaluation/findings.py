"""What an evaluation has to say besides its scores: clips that were lost or not scored, memory, and the context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sonotune.errors import NumericError
from sonotune.evaluation.decode import some_of
from sonotune.models.thinning import made_for
from sonotune.types import Clip, Context, Finding, Prediction


def not_finite(predictions: Sequence[Prediction], pieces: Sequence[Prediction], loaded: Any) -> list[Finding]:
    """The clips for which the model computed no numbers.

    Raises:
        NumericError: These are all of them.
    """
    lost = tuple(prediction.clip_id for prediction in predictions if not prediction.finite)
    if not lost:
        return []
    found = f"{loaded.checkpoint} gives NaN or infinity instead of numbers"
    if not any(piece.finite for piece in pieces):
        raise NumericError(
            f"{found} for each of the {len(lost)} clips, such as {lost[0]}: nothing can be recognised or scored. Take "
            "training.precision=fp32; where that fails too, look at the scale of the adapter (lora_alpha), or take "
            "other weights."
        )
    return [
        Finding(
            check="evaluation.not_finite",
            severity="error",
            message=f"{found} for {len(lost)} of {len(predictions)} clips, which count as empty: {some_of(lost)}. Of a "
            "long clip it is one window or more. "
            "Listen to them, or take training.precision=fp32.",
            clip_ids=lost,
            measured=float(len(lost)),
            limit=0.0,
            unit="clips",
        )
    ]


def did_not_fit(cut: int, batches: int, batch_seconds: float) -> Finding:
    """A note on batches that had to be decoded in parts."""
    return Finding(
        check="evaluation.memory",
        severity="note",
        message=f"{cut} of {batches} batches did not fit into memory and were decoded in parts. Lower "
        f"evaluation.batch_seconds, which is {batch_seconds:g}.",
        measured=float(cut),
        unit="batches",
    )


def foreign_context(loaded: Any, context: Context) -> list[Finding]:
    """A warning where weights are scored in a context that they were not trained for."""
    trained = loaded.trained_contexts
    if not trained or context in trained:
        return []
    best = "thinned" if "thinned" in trained else trained[0]
    others = "" if context == "full" else "; other tools compute the whole window"
    return [
        Finding(
            check="model.context",
            severity="warning",
            message=f"scored with model.context={context}, and the weights were {made_for(trained)}: the score is not "
            f"the one that they have in the context of their training{others}. Compare with model.context={best}.",
        )
    ]


def without_reference(clips: Sequence[Clip], told: Sequence[int]) -> list[Finding]:
    """A note on the clips that do not say what should come out."""
    known = set(told)
    without = tuple(clip.id for index, clip in enumerate(clips) if index not in known)
    if not without:
        return []
    return [
        Finding(
            check="evaluation.no_truth",
            severity="note",
            message=f"{len(without)} of {len(clips)} clips have no transcript or class: they were decoded and not "
            "scored.",
            clip_ids=without,
            measured=float(len(without)),
            unit="clips",
        )
    ]
