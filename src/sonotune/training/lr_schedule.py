"""Where each stage of a run begins and ends, and what the learning rates are at a step: functions of the step alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sonotune.stages import Stage
from sonotune.training.optimizer import Schedule, learning_rate_factor

MAX_WARMUP = 500
"""Steps that an automatic warm-up takes at most; it takes 5 % of its stage."""


class StageSchedule:
    """The stages of a run in steps.

    Args:
        stages: In order.
        schedule: How learning rates fall within a stage.
        floor: Share of the peak that they end at.
        steps_of: Zero-based epoch -> its optimiser steps.

    Attributes:
        index: Which stage is on.
        begin: Step at which it began.
        end: Step at which it ends at the latest.
        total: Step at which the run ends if no stage ends early.
    """

    def __init__(
        self, stages: Sequence[Stage], *, schedule: Schedule, floor: float, steps_of: Callable[[int], int]
    ) -> None:
        self._stages, self._schedule, self._floor, self._steps_of = tuple(stages), schedule, floor, steps_of
        self.index = self.begin = self.end = self.total = 0

    def enter(self, index: int, *, step: int, epoch: int, counted: Sequence[int] | None = None) -> None:
        """A stage begins at a step, with a fresh pass over the clips.

        Args:
            index: Which.
            step: At which it began.
            epoch: At which it began.
            counted: Step and epoch from which its batches are those of `steps_of`, where that was later.
        """
        self.index, self.begin = index, step
        counted_step, counted_epoch = counted or (step, epoch)
        length, epoch = self._length(self._stages[index], epoch, made=counted_step - step, since=counted_epoch)
        self.end = self.total = step + length
        for later in self._stages[index + 1 :]:
            length, epoch = self._length(later, epoch, made=0, since=epoch)
            self.total += length

    @property
    def stage(self) -> Stage:
        """The stage that is on."""
        return self._stages[self.index]

    @property
    def last(self) -> bool:
        """Whether no stage follows."""
        return self.index == len(self._stages) - 1

    def factors(self, step: int) -> tuple[float, float]:
        """Shares of the peak learning rate: of groups that begin to train in this stage, and of those that did before.

        The first rise over the warm-up. The others dip to a share and rise over the same steps, where the stage says.
        """
        length, at = self.end - self.begin, step - self.begin
        wanted = self.stage.warmup_steps
        warmup = min(MAX_WARMUP, max(1, length // 20)) if wanted == "auto" else wanted
        new, trained = (
            learning_rate_factor(at, total_steps=length, warmup_steps=rise, schedule=self._schedule, floor=self._floor)
            for rise in (warmup, 0)
        )
        dip = self.stage.dip
        return new, trained * (dip + (1 - dip) * min(1.0, at / max(1, warmup)))

    def _length(self, stage: Stage, epoch: int, *, made: int, since: int) -> tuple[int, int]:
        """Steps of a stage that begins with an epoch and has made some before another, and the epoch after it."""
        steps = made
        for each in range(since, epoch + stage.max_epochs):
            steps += self._steps_of(each)
            if stage.max_steps is not None and steps >= stage.max_steps:
                return stage.max_steps, each + 1
        return steps, epoch + stage.max_epochs
