"""What a checkpoint must share with the run that goes on from it, and what of that may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sonotune.data.corpus import Corpus
from sonotune.models.base import LoadedModel
from sonotune.runs import digest_json
from sonotune.training.loop_settings import LoopSettings

SETTINGS, TRAINING_DATA, EVALUATION_DATA, SCORING = "settings", "training data", "evaluation data", "scoring"
MICRO_BATCHES, BATCHES, PRECISION = "micro-batches of a step", "batches", "precision"

DECIDE_BATCHES = (TRAINING_DATA, MICRO_BATCHES, BATCHES)
"""A place in an epoch means another clip where one of these differs."""
DECIDE_SCORES = (EVALUATION_DATA, SCORING)
"""Scores cannot be compared where one of these differs."""


def identity_of(
    corpus: Corpus,
    loaded: LoadedModel,
    steps: LoopSettings,
    *,
    settings: str,
    scoring: Mapping[str, Any],
    precision: str,
) -> dict[str, str]:
    """Key -> digest or value.

    Args:
        corpus: Clips of the run.
        loaded: The model as it was opened.
        steps: How large batches and steps are.
        settings: Digest of all settings that decide the result.
        scoring: Those of them that say how clips are decoded and scored.
        precision: Arithmetic of the forward pass.
    """
    return {
        SETTINGS: settings,
        TRAINING_DATA: corpus.digests["train"],
        EVALUATION_DATA: corpus.digests.get("eval", "none"),
        SCORING: digest_json(dict(scoring)),
        "base model": loaded.revision,
        "outputs": digest_json(list(loaded.new_outputs)),
        PRECISION: precision,
        "bits of the frozen weights": str(max(loaded.quantized.values(), default=16)),
        MICRO_BATCHES: str(steps.accumulation_steps),
        BATCHES: f"{steps.batch_seconds:g} s, {steps.batch_max_clips} clips",
    }


def may_differ(changing: Sequence[str]) -> set[str]:
    """Keys that need not be the same when some settings may change."""
    keys = {SETTINGS} if changing else set()
    for name in changing:
        keys.update(_DECIDED_BY.get(name, _DECIDED_BY.get(name.partition(".")[0], ())))
    return keys


_DECIDED_BY = {
    "data": (TRAINING_DATA, EVALUATION_DATA, SCORING),
    "evaluation": (SCORING,),
    "training.accumulation_steps": (MICRO_BATCHES,),
    "training.batch_max_clips": (BATCHES,),
    "training.batch_seconds": (BATCHES,),
    "training.precision": (PRECISION,),
}
"""Setting, or section -> the keys that it decides."""
