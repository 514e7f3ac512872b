"""The seam of losses: an objective is one class in a file of this package and one line in `registry.OBJECTIVES`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

from sonotune.features.batching import Batch
from sonotune.models.base import LoadedModel
from sonotune.models.losses import Losses
from sonotune.registry import resolve
from sonotune.tasks.base import Task
from sonotune.training.teacher import Distillation


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveSettings:
    """What a user decides about the loss; each objective reads what concerns it.

    Attributes:
        label_smoothing: Share of each target's probability spread over the vocabulary or the classes.
        ctc_share: Share of the loss that is CTC on the encoder's states.
        star_bypass_penalty: Nats for a word of the transcript that is left out, under `star`.
        star_speech_penalty: Nats for speech between two words that nobody transcribed, under `star`.
        distillation: The teacher and how it is learned from, under `distill`.
    """

    label_smoothing: float = 0.0
    ctc_share: float = 0.0
    star_bypass_penalty: float = 12.0
    star_speech_penalty: float = 8.0
    distillation: Distillation | None = None


class Objective(Protocol):
    """What training lowers. Made once a run, from the task and the settings."""

    task: Task

    def __init__(self, task: Task, settings: ObjectiveSettings) -> None: ...

    def losses(self, loaded: LoadedModel, batch: Batch) -> Losses:
        """Losses of a batch, clip by clip, as sums and counts, so that accumulation over unequal batches is exact.

        Args:
            loaded: The model that trains.
            batch: With targets; on the model's device.
        """
        ...


class Weighted:
    """An objective whose clips count as much as their `weight` says; the one place where weights are read.

    Args:
        of: Any objective.
    """

    def __init__(self, of: Objective) -> None:
        self.of, self.task = of, of.task

    def losses(self, loaded: LoadedModel, batch: Batch) -> Losses:
        """See `Objective` and `Losses.weighted`."""
        return self.of.losses(loaded, batch).weighted([clip.weight for clip in batch.clips])


def make_objective(name: str, task: Task, settings: ObjectiveSettings) -> Weighted:
    """Make an objective, with the weights of clips.

    Args:
        name: Registry name; `auto` takes `ctc_mix` where a share of the loss is to be CTC, else `task`.
        task: What is learned.
        settings: Of the run.

    Raises:
        ConfigError: No objective has this name.
    """
    chosen = ("ctc_mix" if settings.ctc_share else "task") if name == "auto" else name
    return Weighted(cast(Objective, resolve("objectives", chosen)(task, settings)))
