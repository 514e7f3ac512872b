"""Settings of distillation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sonotune.config.names import Checkpoint, Share
from sonotune.config.section import LATER, Section


class DistillationConfig(Section):
    """The model that is learned from, under `training.objective=distill`."""

    teacher: Checkpoint | None = Field(default=None, json_schema_extra=LATER)
    """What `model.checkpoint` may be: a model of the same family, tokens and features. It is never trained."""
    teacher_bits: Literal["auto", 4, 8, 16] = Field(default="auto", json_schema_extra=LATER)
    """Bits of the teacher's linear weights; see `quantization.bits`. A teacher that is an adapter or a run has, with
    `auto`, the bits that it was trained with."""
    temperature: float = Field(default=1.0, gt=0, le=100, json_schema_extra=LATER)
    """Divides the logits of both before they are compared; above 1, unlikely tokens count for more."""
    loss_share: Share = Field(default=0.8, json_schema_extra=LATER)
    """Share of the loss of a transcript's tokens that is the divergence from the teacher; the rest is cross-entropy."""
    on_policy_share: Share = Field(default=0.0, json_schema_extra=LATER)
    """Share of the clips for which the model writes the text that the teacher rates, in place of the transcript; clips
    and texts are drawn anew in every epoch (Whisper)."""
