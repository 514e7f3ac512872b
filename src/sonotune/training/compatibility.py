"""What a checkpoint must share with the run that goes on from it, and what of that may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sonotune.audit.audio_digest import AudioDigests
from sonotune.data.corpus import Corpus
from sonotune.data.trained_on import write_trained_on
from sonotune.models.base import LoadedModel
from sonotune.models.checkpoints import settings_digest
from sonotune.processes import Processes
from sonotune.runs import digest_json
from sonotune.training.state import LoopSettings

SETTINGS, TRAINING_DATA = "settings", "training data"
MICRO_BATCHES, BATCHES = "micro-batches of a step", "batches"
TRAINING_AUDIO, EVALUATION_AUDIO = "content of the training audio", "content of the evaluation audio"
BASE_SETTINGS = "configuration of the base model"
AUDIO_FILE = "audio.json"

ADDED_LATER = frozenset({TRAINING_AUDIO, EVALUATION_AUDIO, BASE_SETTINGS})
"""Keys that checkpoints of older versions lack, which cannot tell."""

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
        audio: Mapping[str, str],
        precision: str,
        bits: int,
        teacher: str | None = None,
        allow_change: Sequence[str] = (),
    ) -> Fingerprint:
        """From what decides the result.

        Args:
            corpus: Clips of the run.
            loaded: The model as it was opened.
            steps: How large batches and steps are.
            settings: Digest of all settings that decide the result.
            audio: Split -> digest of what its recordings contain.
            precision: Arithmetic of the forward pass.
            bits: Of the frozen weights.
            teacher: Digest and bits of the model that is learned from; None without one.
            allow_change: Settings that may differ from those of the checkpoint.
        """
        values = {
            SETTINGS: settings,
            TRAINING_DATA: corpus.digests["train"],
            "evaluation data": corpus.digests.get("eval", "none"),
            TRAINING_AUDIO: audio["train"],
            EVALUATION_AUDIO: audio.get("eval", "none"),
            "base model": loaded.revision,
            BASE_SETTINGS: settings_digest(loaded.checkpoint),
            "context": f"{loaded.context}, {loaded.thinning.margin} and {loaded.thinning.spacing}",
            **({"frame merging": digest_json(loaded.merging.plain())} if loaded.merging.parts else {}),
            "outputs": digest_json(list(loaded.new_outputs)),
            "precision": precision,
            "bits of the frozen weights": str(bits),
            **({} if teacher is None else {"teacher": teacher}),
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


def digest_audio(corpus: Corpus, directory: Path, processes: Processes, *, resumed: bool) -> dict[str, str]:
    """Split -> digest of what its recordings contain, of those that decide what is trained and chosen.

    Args:
        corpus: Clips of the run.
        directory: Of the run, which remembers the digests of files, and which clips were trained on.
        processes: All of them call this, and share the files.
        resumed: Whether it was trained on clips before.
    """
    digests = AudioDigests(directory / AUDIO_FILE, keep=processes.main)
    decide = ("train", "eval")
    found = {name: digests.of(clips, processes=processes) for name, clips in corpus.splits.items() if name in decide}
    if processes.main:
        write_trained_on(directory, corpus.splits["train"], digests.found, add=resumed)
    return found


def may_differ(changing: Sequence[str]) -> set[str]:
    """Keys that need not be the same when some settings may change."""
    keys = {SETTINGS} if changing else set()
    for name in changing:
        keys.update(_DECIDED_BY.get(name, ()))
    return keys


_DECIDED_BY = {
    "data.train": (TRAINING_DATA, TRAINING_AUDIO),
    "training.accumulation_steps": (MICRO_BATCHES,),
    "training.batch_max_clips": (BATCHES,),
    "training.batch_seconds": (BATCHES,),
}
"""Setting -> the keys that it decides."""
