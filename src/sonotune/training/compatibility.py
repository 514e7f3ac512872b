"""What a checkpoint must share with the run that goes on from it, and what of that may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sonotune.data.corpus import Corpus
from sonotune.models.base import LoadedModel
from sonotune.runs import digest_json
from sonotune.training.state import LoopSettings

SETTINGS, TRAINING_DATA = "settings", "training data"
MICRO_BATCHES, BATCHES = "micro-batches of a step", "batches"

DECIDE_BATCHES = (TRAINING_DATA, MICRO_BATCHES, BATCHES)
"""A place in an epoch means another clip where one of these differs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """The resume fingerprint of a run.

    Attributes:
        values: Key -> digest or value.
        may_differ: Keys that `run.allow_change` lets differ.
    """

    values: Mapping[str, str]
    may_differ: frozenset[str]

    @classmethod
    def of(
        cls,
        corpus: Corpus,
        loaded: LoadedModel,
        steps: LoopSettings,
        *,
        settings: str,
        precision: str,
        bits: int,
        allow_change: Sequence[str] = (),
    ) -> Fingerprint:
        """From what decides the result.

        Args:
            corpus: Clips of the run.
            loaded: The model as it was opened.
            steps: How large batches and steps are.
            settings: Digest of all settings that decide the result.
            precision: Arithmetic of the forward pass.
            bits: Of the frozen weights.
            allow_change: Settings that may differ from those of the checkpoint.
        """
        values = {
            SETTINGS: settings,
            TRAINING_DATA: corpus.digests["train"],
            "evaluation data": corpus.digests.get("eval", "none"),
            "base model": loaded.revision,
            "context": f"{loaded.context}, {loaded.thinning.margin} and {loaded.thinning.spacing}",
            "outputs": digest_json(list(loaded.new_outputs)),
            "precision": precision,
            "bits of the frozen weights": str(bits),
            MICRO_BATCHES: str(steps.accumulation_steps),
            BATCHES: f"{steps.batch_seconds:g} s, {steps.batch_max_clips} clips",
        }
        return cls(values=values, may_differ=frozenset(may_differ(allow_change)))


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPlace:
    """Where checkpoints go, and what one must share with the run that resumes from it.

    Attributes:
        folder: Of checkpoints.
        fingerprint: Of the run.
    """

    folder: Path
    fingerprint: Fingerprint


def may_differ(changing: Sequence[str]) -> set[str]:
    """Keys that need not be the same when some settings may change."""
    keys = {SETTINGS} if changing else set()
    for name in changing:
        keys.update(_DECIDED_BY.get(name, ()))
    return keys


_DECIDED_BY = {
    "data.train": (TRAINING_DATA,),
    "training.accumulation_steps": (MICRO_BATCHES,),
    "training.batch_max_clips": (BATCHES,),
    "training.batch_seconds": (BATCHES,),
}
"""Setting -> the keys that it decides."""
