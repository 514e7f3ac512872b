"""A progress bar on stderr: loss, WER, samples/s, padding share, time left."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sonotune.metrics.scores import show_value
from sonotune.types import Score

_SMOOTHING = 0.95


class ProgressBar:
    """Shows a run as it goes; silent where `enabled` is false."""

    def __init__(self, *, enabled: bool) -> None:
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not enabled,
        )
        self._task: TaskID | None = None
        self._loss: float | None = None
        self._rate = 0.0
        self._score = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def started(self, total_steps: int, step: int) -> None:
        """See `Listener.started`."""
        self._task = self._bar.add_task("training", total=total_steps, completed=step, state="")

    def stepped(self, values: Mapping[str, Any]) -> None:
        """See `Listener.stepped`."""
        if self._task is None:
            return
        loss = values["loss"]
        if loss is not None:
            self._loss = loss if self._loss is None else _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        rate = values["samples_per_s"]
        self._rate = rate if not self._rate else _SMOOTHING * self._rate + (1 - _SMOOTHING) * rate
        parts = [
            f"loss {self._loss:.3f}" if self._loss is not None else "loss -",
            self._score,
            f"{self._rate:.1f} clips/s",
            f"padding {100 * values['padding_share']:.0f} %",
        ]
        self._bar.update(self._task, completed=values["step"], state="  ".join(part for part in parts if part))

    def evaluated(self, step: int, scores: Mapping[str, Score]) -> None:
        """See `Listener.evaluated`."""
        self._score = "  ".join(
            f"{score.title or name} {show_value(score.to_json())}" for name, score in scores.items()
        )
