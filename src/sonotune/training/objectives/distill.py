"""Learn from a teacher: its distribution of every token beside the transcript, or on texts that the student draws.

A text that a student writes from transcripts alone leaves the road that it was trained on with its first error. Where
the student itself draws the text, the teacher says at every token what should have followed what the student really
wrote (on-policy). Both cost one forward pass of either model; drawing costs the student's decoder once more, token by
token. Gradients do not go through the draw.

Source: Hinton et al. 2015; Gandhi et al. 2023 (distil-whisper); Agarwal et al. 2023, "On-Policy Distillation of
Language Models: Learning from Self-Generated Mistakes".

Shape letters: B clips, U target tokens, N labels of a batch, D width of the teacher, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sonotune.errors import ConfigError
from sonotune.features.batching import Batch, pad_targets
from sonotune.models.base import LoadedModel
from sonotune.models.losses import LabelOutputs, Losses
from sonotune.models.modes import inference, undisturbed
from sonotune.runs import generator
from sonotune.tasks.base import Task
from sonotune.tasks.transcribe import Transcribe
from sonotune.training.objectives.base import ObjectiveSettings
from sonotune.training.objectives.star import FrameFamily

_MOST_TIMES, _MARGIN = 2, 16  # tokens of a drawn text: so many times those of the transcript, and so many more


@runtime_checkable
class DrawingFamily(Protocol):
    """A family that can draw texts, each of which depends on its clip and its key alone."""

    def draw_targets(
        self, loaded: LoadedModel, batch: Batch, *, limits: Sequence[int], draw_keys: Sequence[str]
    ) -> list[list[int]]:
        """Draw a text for each clip from the model's own distribution, as target ids with the special tokens.

        Args:
            loaded: The model.
            batch: With targets, of which the prompt is taken.
            limits: Most tokens of each text.
            draw_keys: Seeds the draws of each clip.
        """
        ...


class Distill:
    """See `Objective`.

    Raises:
        ConfigError: There is no teacher, the task is another one, or the family predicts frames, or cannot draw texts.
    """

    def __init__(self, task: Task, settings: ObjectiveSettings) -> None:
        found = settings.distillation
        if found is None:
            raise ConfigError("training.objective=distill needs a model to learn from: name distillation.teacher.")
        if task.name != "transcribe":
            raise ConfigError(
                f"training.objective=distill is for speech-to-text, and the task is {task.name}. Leave it out."
            )
        family = cast(Transcribe, task).family
        if isinstance(family, FrameFamily):
            raise ConfigError(
                f"training.objective=distill compares tokens, and the family {family.name} writes frames. Have the "
                "teacher write texts with `sonotune data label`, and train on them."
            )
        if found.on_policy_share and not isinstance(family, DrawingFamily):
            raise ConfigError(
                f"distillation.on_policy_share={found.on_policy_share:g} needs a model that draws texts clip by clip "
                f"(whisper); the family {family.name} does not. Set it to 0."
            )
        self.task, self._settings, self._label_smoothing = task, found, settings.label_smoothing
        self._family = family

    def losses(self, loaded: LoadedModel, batch: Batch) -> Losses:
        """Divergence and cross-entropy of each token of a transcript, divergence of each token that was drawn."""
        settings = self._settings
        drawn_B = self._drawn(batch)
        if drawn_B.any():
            batch = self._with_drawn_texts(loaded, batch, drawn_B.nonzero()[0].tolist())
        teacher = settings.teacher.loaded
        with inference(teacher.module):
            theirs = cast(LabelOutputs, self._family.forward(teacher, batch))
        outputs = cast(LabelOutputs, self._family.forward(loaded, batch))
        rows_N = outputs.places.nonzero()[:, 0]
        drawn_N = torch.from_numpy(drawn_B).to(rows_N.device)[rows_N]
        share_N = torch.where(drawn_N, 1.0, settings.loss_share)

        def of_labels(logits_NV: Tensor, labels_N: Tensor, states_ND: Tensor, share_N: Tensor) -> Tensor:
            with inference(teacher.module):
                wanted_NV = theirs.head(states_ND)
            divergence_N = divergence(logits_NV, wanted_NV, temperature=settings.temperature)
            spelt_N = F.cross_entropy(
                logits_NV.float(), labels_N, reduction="none", label_smoothing=self._label_smoothing
            )
            return share_N * divergence_N + (1 - share_N) * spelt_N

        return Losses.of_labels(outputs.by_part(of_labels, theirs.states, share_N), outputs.places)

    def _drawn(self, batch: Batch) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """For which clips the student draws the text, by seed, epoch and clip (B,)."""
        share, seed = self._settings.on_policy_share, self._settings.seed
        draws = [generator(seed, batch.epoch, clip.id, "on_policy").random() for clip in batch.clips]
        return np.array(draws) < share

    def _with_drawn_texts(self, loaded: LoadedModel, batch: Batch, rows: Sequence[int]) -> Batch:
        """The batch with texts of the student in the place of the transcripts of some rows."""
        part = batch.rows(rows)
        keys = [f"{self._settings.seed} {batch.epoch} {clip.id}" for clip in part.clips]
        limits = [_MOST_TIMES * length + _MARGIN for length in part.target_lengths.tolist()]
        with undisturbed(loaded.module):
            written = cast(DrawingFamily, self._family).draw_targets(loaded, part, limits=limits, draw_keys=keys)
        targets = [
            row[:length] for row, length in zip(batch.targets.tolist(), batch.target_lengths.tolist(), strict=True)
        ]
        for row, ids in zip(rows, written, strict=True):
            targets[row] = ids
        targets_BU, lengths_B = pad_targets([np.array(ids, dtype=np.int64) for ids in targets])
        device = batch.targets.device
        return replace(batch, targets=targets_BU.to(device), target_lengths=lengths_B.to(device))


def divergence(logits_NV: Tensor, wanted_NV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence (N,) from wanted distributions to those of logits, in nats.

    Both are softened by the temperature, and the result has its square as a factor, so that gradients keep their size
    (Hinton et al. 2015).

    Args:
        logits_NV: That learn.
        wanted_NV: Of the teacher, constant.
        temperature: Divides both.
    """
    ours_NV = (logits_NV.float() / temperature).log_softmax(dim=-1)
    theirs_NV = (wanted_NV.detach().float() / temperature).log_softmax(dim=-1)
    return temperature**2 * F.kl_div(ours_NV, theirs_NV, reduction="none", log_target=True).sum(dim=-1)
