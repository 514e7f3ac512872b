"""The phase of training, as it is shown: step, loss, score, clips a second, and the time left with its evaluations."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from sonotune.metrics.scores import show_value
from sonotune.progress import Phase, changed, note, running
from sonotune.types import Score

_SMOOTHING = 0.95


class TrainingProgress:
    """Shows training as it goes, where phases are shown; see `progress.shown`."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._phase: Phase | None = None
        self._rate = ""
        self._loss, self._weight = 0.0, 0.0  # a mean over recent steps, and the weight that it has gathered
        self._since = ""
        self._score = ""
        self._steps, self._step_s, self._evaluations, self._evaluation_s = 0, 0.0, 0, 0.0
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def started(self, total_steps: int, step: int) -> None:
        """See `Listener.started`."""
        if step:
            note(f"goes on from step {step:,} of {total_steps:,}")
            self._since = f" since step {step:,}"
        self._phase = Phase("training", total_steps, "steps")
        self._phase.begin_at(step)
        self._stack.enter_context(running(self._phase))
        self._last = time.monotonic()

    def stepped(self, values: Mapping[str, Any]) -> None:
        """See `Listener.stepped`."""
        if self._phase is None:
            return
        now = time.monotonic()
        self._steps, self._step_s, self._last = self._steps + 1, self._step_s + now - self._last, now
        if values["loss"] is not None:
            self._loss = _SMOOTHING * self._loss + (1 - _SMOOTHING) * values["loss"]
            self._weight = _SMOOTHING * self._weight + (1 - _SMOOTHING)
        self._rate = f"{values['samples_per_s']:.1f} clips/s"
        self._show(self._phase, values["step"])

    def ended(self) -> None:
        """See `Listener.ended`."""
        self._stack.close()

    def evaluated(self, step: int, scores: Mapping[str, Score]) -> None:
        """See `Listener.evaluated`."""
        now = time.monotonic()
        self._evaluations, self._evaluation_s = self._evaluations + 1, self._evaluation_s + now - self._last
        self._last = now
        primary = next((name for name, score in scores.items() if score.role == "primary"), next(iter(scores), None))
        if primary is not None:
            self._score = f"{scores[primary].title or primary} {show_value(scores[primary].to_json())}"
        if self._phase is not None:
            self._show(self._phase, step)

    def _show(self, phase: Phase, step: int) -> None:
        loss = f"loss {self._loss / self._weight:.3f}{self._since}" if self._weight else "loss -"
        state = ", ".join(part for part in (loss, self._score, self._rate) if part)
        phase.advance(step, state=state, left_s=self._left_s(phase.total, step))
        changed(phase)

    def _left_s(self, total: int | None, step: int) -> float | None:
        """Steps left at the mean of those made, and evaluations as often and as long as so far."""
        if total is None or not self._steps:
            return None
        return (total - step) * (self._step_s + self._evaluation_s) / self._steps
