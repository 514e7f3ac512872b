"""Which evaluations are the best, and whose weights are kept in the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sonotune.training import checkpoint
from sonotune.training.loop_settings import Listener, Position
from sonotune.types import Score


class Selection:
    """Scores the weights as they are, and remembers in the position how they compare.

    Args:
        evaluate: Scores the development clips, or None where there are none.
        primary: Name of the score that decides.
        average: How many of the best are averaged in the end.
        settled: Step -> whether the adapters have the ranks that they are kept with, so that a score counts.
        checkpoints: Folder of checkpoints.
        event: Writes one line of `events.jsonl`.
        listeners: Hear of every evaluation.
        spend: Adds the seconds since a moment to a phase of the run.
    """

    def __init__(
        self,
        evaluate: Callable[[], Mapping[str, Score]] | None,
        *,
        primary: str,
        average: int,
        settled: Callable[[int], bool],
        checkpoints: Path,
        event: Callable[..., None],
        listeners: Sequence[Listener],
        spend: Callable[[str, float], None],
    ) -> None:
        self._evaluate, self._primary, self._average, self._settled = evaluate, primary, average, settled
        self._checkpoints, self._event, self._listeners, self._spend = checkpoints, event, listeners, spend

    def score(self, position: Position) -> None:
        """Evaluate, once a step."""
        if self._evaluate is None or position.evaluated_step == position.step:
            return
        started = time.perf_counter()
        scores = self._evaluate()
        self._spend("evaluation", started)
        score, settled = scores[self._primary], self._settled(position.step)
        better, of_stage = (
            settled and (best is None or _sign(score) * score.value < _sign(score) * best)
            for best in (position.best, position.stage_best)
        )
        position.evaluated_step = position.step
        position.scores[str(position.step)] = score.value
        position.stage_best = score.value if of_stage else position.stage_best
        position.stale = 0 if of_stage or not settled else position.stale + 1
        if settled:
            self._rank(position, score, better=better)
        self._event("evaluation", step=position.step, best=better, scores={k: v.to_json() for k, v in scores.items()})
        for listener in self._listeners:
            listener.evaluated(position.step, scores)

    def _rank(self, position: Position, score: Score, *, better: bool) -> None:
        """Keep the step of the best score, and of those that are averaged with it."""
        others = position.best_steps
        if better:
            position.best, position.best_step = score.value, position.step
        else:
            others.append(position.step)
        others.sort(key=lambda step: (_sign(score) * position.scores[str(step)], step))
        position.runners_up = [step for step in others if step != position.best_step][: self._average - 1]

    def put_best(self, position: Position, put: Callable[[Mapping[str, Tensor]], None]) -> int | None:
        """Put the best weights in place: those of the best evaluation, or the average of the best few.

        The average is taken of the factors of an adapter and not of their product, and kept only where the development
        clips like it at least as well.

        Args:
            position: At the end of training.
            put: Takes weights by name.

        Returns:
            The step of the best evaluation; None where nothing was evaluated.
        """
        best, steps = position.best_step, position.best_steps
        if best is None or steps == [position.step]:
            return best
        weights = [checkpoint.read(checkpoint.step_path(self._checkpoints, step)).weights for step in steps]
        if len(steps) > 1 and self._evaluate is not None:
            put({name: torch.stack([one[name] for one in weights]).mean(0) for name in weights[0]})
            score = self._evaluate()[self._primary]
            kept = _sign(score) * score.value <= _sign(score) * position.scores[str(best)]
            self._event("average", step=position.step, steps=steps, score=score.to_json(), kept=kept)
            if kept:
                return best
        put(weights[0])
        return best


def _sign(score: Score) -> int:
    """What makes the better of two scores the smaller."""
    return 1 if score.better == "lower" else -1
