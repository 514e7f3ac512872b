"""What a stage loop is given, and where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sonotune.audio.augment import WaveformAugmenter
from sonotune.features.mixup import MixupSettings
from sonotune.features.specaugment import SpecAugmentSettings
from sonotune.features.workers import Crew
from sonotune.optimizers import OptimizerKind
from sonotune.training.optimizer import Schedule
from sonotune.types import Clip


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """How a stage steps. Seconds are seconds of audio unless named otherwise."""

    seed: int
    batch_seconds: float
    batch_max_clips: int
    accumulation_steps: int
    schedule: Schedule
    learning_rate_floor: float
    weight_decay: float
    betas: tuple[float, float]
    clip_norm: float
    eval_steps: int | Literal["epoch", "never"]
    save_steps: int | Literal["epoch"]
    keep_checkpoints: int
    full_context_share: float
    average_checkpoints: int = 1
    optimizer: OptimizerKind = "adamw"
    optimizer_reason: str = ""
    memory_limit_bytes: int | None = None
    max_bad_steps: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """Clips with targets, how their audio is varied, and the worker pool that makes their batches."""

    clips: Sequence[Clip]
    targets: Sequence[NDArray[np.int64]]
    augmenter: WaveformAugmenter | None
    spec_augment: SpecAugmentSettings | None
    mixup: MixupSettings | None = None
    crew: Crew | None = None


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """Where a run stands; all of it is in every checkpoint.

    Attributes:
        step: Optimiser steps done.
        stage: Which of the stages, from 0.
        stage_step: Step at which it began.
        stage_epoch: Epoch at which it began.
        counted: Step and epoch from which the steps of the present stage are counted, where its batches have changed.
        epoch: Zero-based pass over the clips.
        batch: Micro-batches of this epoch already used.
        clips: Clips seen.
        audio_s: Seconds of audio seen.
        primary: Name of the score that decides; empty before the first evaluation.
        best: Best primary score so far.
        best_step: Step of the best evaluation.
        runners_up: Steps of the next best ones, as many as are averaged in the end.
        stage_best: Best primary score of the present stage.
        stage_ties: What tells it apart from others that are equal; as in `ties`.
        stale: Evaluations since it.
        bad_steps: Steps in a row whose loss or gradient was not finite, or whose loss leapt.
        recent_losses: Of the last steps of this stage that were learned from.
        first_loss: Highest of the first of them.
        evaluated_step: Last step that was evaluated.
        largest_s: Padded seconds that a micro-batch may have, where a larger one did not fit.
        recompute: Whether activations are recomputed because a single clip did not fit.
        seconds: Wall seconds of training, over all sessions.
        spent: Where they went.
        scores: Primary score by step.
        ties: What tells evaluations of equal primary score apart, by step: each number better where it is smaller.
    """

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    stage_epoch: int = 0
    counted: Sequence[int] | None = None
    epoch: int = 0
    batch: int = 0
    clips: int = 0
    audio_s: float = 0.0
    primary: str = ""
    best: float | None = None
    best_step: int | None = None
    runners_up: list[int] = field(default_factory=list)
    stage_best: float | None = None
    stage_ties: list[float] = field(default_factory=list)
    stale: int = 0
    bad_steps: int = 0
    recent_losses: list[float] = field(default_factory=list)
    first_loss: float = 0.0
    evaluated_step: int = -1
    largest_s: float | None = None
    recompute: bool = False
    seconds: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    ties: dict[str, list[float]] = field(default_factory=dict)

    @property
    def best_steps(self) -> list[int]:
        """Steps of the best score and of the runners-up, whose weights are still wanted."""
        return [] if self.best_step is None else [self.best_step, *self.runners_up]
