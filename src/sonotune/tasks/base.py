"""The contract of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sonotune.features.batching import Batch
from sonotune.models.base import LoadedModel, Losses
from sonotune.types import Clip, Finding, Prediction, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Clips a task can learn from, with their targets.

    Attributes:
        clips: In the order given, without those that cannot be learned from.
        targets: One (U,) int64 array a clip.
        findings: Why clips were left out.
    """

    clips: tuple[Clip, ...]
    targets: tuple[NDArray[np.int64], ...]
    findings: tuple[Finding, ...]


class Task(Protocol):
    """What is learned from a clip."""

    name: str
    primary: str
    """Name of the score that chooses the best checkpoint."""

    def prepare(self, loaded: LoadedModel, clips: Sequence[Clip]) -> Prepared:
        """Encode targets once, before training; what cannot be encoded becomes a finding."""
        ...

    def loss(self, loaded: LoadedModel, batch: Batch, *, label_smoothing: float) -> Losses:
        """Summed loss and number of labels of each clip, so that accumulation stays exact."""
        ...

    def predict(
        self, loaded: LoadedModel, batch: Batch, *, beam_size: int = 1, max_new_tokens: int | None = None
    ) -> list[Prediction]:
        """One prediction a clip, in the order of the batch."""
        ...

    def score(self, predictions: Sequence[Prediction], clips: Sequence[Clip], *, resamples: int) -> dict[str, Score]:
        """Scores with intervals over aligned predictions and clips."""
        ...
