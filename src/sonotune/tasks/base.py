"""The contract of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sonotune.data.text import Normalizer, get
from sonotune.errors import ConfigError
from sonotune.features.batching import Batch
from sonotune.metrics.confidence import RatedWords
from sonotune.models.base import LoadedModel
from sonotune.models.losses import Losses
from sonotune.types import DEFAULT_DECODING, Clip, DecodingSettings, Finding, LabelTokens, Prediction, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """What a user decides about a task; each task reads what concerns it.

    Attributes:
        training_text: Its training form is applied to transcripts before they become targets.
        scoring_text: Its scoring form is applied to references and hypotheses alike.
        language: Of clips that name none.
        max_label_tokens: Most tokens of a transcript that are learned, those that the architecture puts around it not
            counted; None sets no limit.
        aligned: Whether the loss aligns text with the audio, so that no transcript is learned in part.
        multi_label: Whether a clip may have any number of classes.
        class_weights: `balanced` lets every class weigh the same, however many clips it has.
        verbalize_numbers: Whether a second word error rate is given, of texts whose numbers are written as words;
            `auto` gives it where digits stand on one side of a clip only.
        primary: Name of the score that decides; `auto` leaves it to the task and the references.
        scores: Names of further scores of texts (`registry.SCORES`).
    """

    training_text: Normalizer = field(default_factory=lambda: get("basic"))
    scoring_text: Normalizer = field(default_factory=lambda: get("basic"))
    language: str | None = None
    max_label_tokens: int | None = None
    aligned: bool = False
    multi_label: bool = False
    class_weights: Literal["none", "balanced"] = "none"
    verbalize_numbers: Literal["auto"] | bool = "auto"
    primary: str = "auto"
    scores: tuple[str, ...] = ()

    def check_primary(self, task: str, possible: Sequence[str]) -> None:
        """Refuse a score that a task does not give; raises ConfigError."""
        if self.primary not in ("auto", *possible):
            raise ConfigError(
                f"evaluation.primary={self.primary} is no score that can decide for the task {task}; it has "
                f"{', '.join(possible)}. Name one of these, or leave the setting at auto."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedClips:
    """Clips a task can learn from, with their targets.

    Attributes:
        clips: In the order given, without those that cannot be learned from.
        targets: One (U,) int64 array a clip.
        findings: Why clips were left out, or learned from in part.
        tokens_per_second: Rate of the densest transcripts, beyond those that every text has room for; 0 for classes.
    """

    clips: tuple[Clip, ...]
    targets: tuple[NDArray[np.int64], ...]
    findings: tuple[Finding, ...]
    tokens_per_second: float = 0.0

    @property
    def dropped(self) -> tuple[Finding, ...]:
        """The findings that left clips out."""
        return tuple(finding for finding in self.findings if finding.severity == "error")


class Task(Protocol):
    """What is learned from a clip."""

    name: str
    reference: Literal["text", "label"] | None
    """What a clip must say to be learned from or scored; None where nothing is a reference as well."""

    def outputs(self, clips: Sequence[Clip]) -> tuple[str, ...]:
        """Symbols or classes that an output layer needs to learn from these clips, in order."""
        ...

    def prepare(self, loaded: LoadedModel, clips: Sequence[Clip]) -> PreparedClips:
        """Encode targets once, before training; what cannot be encoded becomes a finding."""
        ...

    def loss(self, loaded: LoadedModel, batch: Batch, *, label_smoothing: float) -> Losses:
        """Summed loss and number of labels of each clip, so that accumulation stays exact."""
        ...

    def predict(
        self, loaded: LoadedModel, batch: Batch, settings: DecodingSettings = DEFAULT_DECODING
    ) -> list[Prediction]:
        """One prediction a clip, in the order of the batch."""
        ...

    def has_reference(self, clip: Clip) -> bool:
        """Whether the clip says what should come out."""
        ...

    def check_references(self, loaded: LoadedModel, clips: Sequence[Clip]) -> None:
        """Refuse what this model can never write or be scored on.

        Raises:
            ManifestError: A clip has such a reference.
            ConfigError: The settings name a language that the model cannot be told.
        """
        ...

    def primary_of(self, clips: Sequence[Clip]) -> tuple[str, str]:
        """Name of the score that decides about these clips (checkpoint, patience, headline), and why it does."""
        ...

    def score(
        self,
        predictions: Sequence[Prediction],
        clips: Sequence[Clip],
        *,
        primary: str | None = None,
        resamples: int,
        seed: int = 0,
    ) -> dict[str, Score]:
        """Scores with intervals over aligned predictions and clips that have a reference.

        The one that decides has the role `primary`: the one that is named, else that of `primary_of` these clips.
        """
        ...

    def details(self, predictions: Sequence[Prediction], clips: Sequence[Clip]) -> tuple[dict[str, Any], list[Finding]]:
        """What a score does not say of aligned predictions and clips, ready for JSON, and warnings."""
        ...

    def row(self, prediction: Prediction, clip: Clip) -> Mapping[str, Any]:
        """What `predictions/*.jsonl` keeps of a clip beside its properties."""
        ...


@runtime_checkable
class LabelTask(Protocol):
    """A task that can rate the transcripts of clips, teacher-forced (`evaluation.teacher_forcing`)."""

    rates_labels: bool
    """Whether one of the scores asks for it."""

    def label_targets(self, loaded: LoadedModel, clips: Sequence[Clip]) -> Mapping[str, NDArray[np.int64]]:
        """Clip id -> target ids (U,), whole; clips whose transcript cannot be written are absent."""
        ...

    def rate_labels(self, loaded: LoadedModel, batch: Batch) -> list[LabelTokens | None]:
        """How the model rates the targets of each clip of a batch; None where it gives no finite number."""
        ...


@runtime_checkable
class WordTask(Protocol):
    """A task whose predictions have words (`Prediction.words`), of which a reference says which are right."""

    def rated_words(self, predictions: Sequence[Prediction], clips: Sequence[Clip]) -> RatedWords:
        """The words of aligned predictions and clips that have a reference, and whether each is right."""
        ...


class Predictor(Protocol):
    """The part of a task that decodes, or what stands in for it."""

    def predict(
        self, loaded: LoadedModel, batch: Batch, settings: DecodingSettings = DEFAULT_DECODING
    ) -> list[Prediction]:
        """See `Task.predict`."""
        ...
