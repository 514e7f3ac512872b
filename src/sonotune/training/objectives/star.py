"""CTC that lets a wrong, missing or superfluous word of a transcript pass, for a penalty.

A word whose symbols cost more than its penalty is left out, softly, and speech that nobody transcribed is read as any
symbols, so that a few flawed transcripts cannot pull the model away. In return a right word that the model does not
know yet is left out as well: the model has to write most words already, so this objective is for tuning a trained
model, and not for training one from nothing. Penalties are fixed. In the source they fall while a model trains from
nothing, which a trained one has no need of.

Source: Gao et al. 2023, "Learning from Flawed Data: Weakly Supervised Automatic Speech Recognition".
"""

from __future__ import annotations

from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from sonotune.errors import ConfigError
from sonotune.features.batching import Batch
from sonotune.models.base import LoadedModel
from sonotune.models.losses import FrameOutputs, Losses
from sonotune.tasks.base import Task
from sonotune.training.objectives.base import ObjectiveSettings
from sonotune.training.objectives.star_graph import Penalties, star_ctc_loss


@runtime_checkable
class FrameFamily(Protocol):
    """A family that writes at most one symbol a frame, and knows which symbols begin a word."""

    name: str

    def forward(self, loaded: LoadedModel, batch: Batch) -> FrameOutputs:
        """Log-probabilities of every frame."""
        ...

    def word_starts(self, loaded: LoadedModel) -> Tensor:
        """Whether each symbol begins a word (V,)."""
        ...


class Star:
    """See `Objective`.

    Raises:
        ConfigError: The model is no CTC model.
    """

    def __init__(self, task: Task, settings: ObjectiveSettings) -> None:
        family = getattr(task, "family", None)
        if task.name != "transcribe" or not isinstance(family, FrameFamily):
            raise ConfigError(
                f"training.objective=star needs a CTC model, which says at every frame what is heard; the family "
                f"{getattr(family, 'name', task.name)} does not. Take model.family=ctc, or training.objective=auto and "
                "leave flawed clips out or give them a lower `weight` in the manifest."
            )
        self.task, self._label_smoothing = task, settings.label_smoothing
        self._penalties = Penalties(bypass=settings.star_bypass_penalty, star=settings.star_speech_penalty)
        self._begins: dict[int, Tensor] = {}

    def losses(self, loaded: LoadedModel, batch: Batch) -> Losses:
        """Negative log-probability of all readings of each transcript; a clip without frames counts for nothing."""
        family = cast(FrameFamily, getattr(self.task, "family", None))
        outputs = family.forward(loaded, batch)
        log_probs_BTV, targets_BU = outputs.log_probs.float(), outputs.targets.clamp_min(0)
        begins_V = self._begins.get(id(loaded.processor))
        if begins_V is None:
            begins_V = self._begins[id(loaded.processor)] = family.word_starts(loaded)
        sums_B = star_ctc_loss(
            log_probs_BTV,
            targets_BU,
            outputs.lengths,
            outputs.target_lengths,
            begins_V.to(targets_BU.device)[targets_BU],
            blank=outputs.blank,
            penalties=self._penalties,
        )
        fits_B = (outputs.lengths > 0) & sums_B.isfinite()
        sums_B = outputs.smoothed(torch.where(fits_B, sums_B, 0.0), self._label_smoothing)
        return Losses(sums=sums_B * fits_B, counts=outputs.target_lengths.clamp_min(1) * fits_B)
