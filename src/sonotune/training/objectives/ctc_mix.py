"""The loss of speech-to-text with a share of CTC on the encoder's states, which teaches a new model to listen.

Source: Watanabe et al. 2017, hybrid CTC/attention; decision 12.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from sonotune.features.batching import Batch
from sonotune.models.base import LoadedModel
from sonotune.models.losses import Losses
from sonotune.tasks.base import Task
from sonotune.tasks.transcribe import Transcribe
from sonotune.training.objectives.base import ObjectiveSettings


class CtcMix:
    """See `Objective`; a family without such states, and a classifier, keep the loss of their task."""

    def __init__(self, task: Task, settings: ObjectiveSettings) -> None:
        self.task, self._settings = task, settings

    def losses(self, loaded: LoadedModel, batch: Batch) -> Losses:
        """The mixture, clip by clip."""
        smoothing, share = self._settings.label_smoothing, self._settings.ctc_share
        if self.task.name != "transcribe":
            return self.task.loss(loaded, batch, label_smoothing=smoothing)
        outputs = cast(Transcribe, self.task).family.forward(loaded, batch)
        losses, ctc_B = outputs.losses(label_smoothing=smoothing), outputs.ctc_losses()
        return losses if ctc_B is None else replace(losses, sums=(1 - share) * losses.sums + share * ctc_B)
