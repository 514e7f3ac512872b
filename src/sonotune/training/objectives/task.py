"""The loss of the task by itself: cross-entropy of tokens or classes, or CTC of a CTC model."""

from __future__ import annotations

from sonotune.features.batching import Batch
from sonotune.models.base import LoadedModel
from sonotune.models.losses import Losses
from sonotune.tasks.base import Task
from sonotune.training.objectives.base import ObjectiveSettings


class TaskObjective:
    """See `Objective`."""

    def __init__(self, task: Task, settings: ObjectiveSettings) -> None:
        self.task, self._label_smoothing = task, settings.label_smoothing

    def losses(self, loaded: LoadedModel, batch: Batch) -> Losses:
        """See `Task.loss`."""
        return self.task.loss(loaded, batch, label_smoothing=self._label_smoothing)
