"""Which evaluations are the best, and whose weights are kept in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sonotune.metrics.scores import better_sign
from sonotune.training import checkpoint
from sonotune.training.logging.run_log import EventLog
from sonotune.training.state import TrainingState
from sonotune.types import Score


class BestCheckpoint:
    """Scores the weights as they are, and remembers in the training state how they compare.

    Args:
        evaluate: Scores the development clips, or None where there are none.
        primary: Name of the score that decides.
        average: How many of the best are averaged in the end.
        final: Step -> whether the adapters have the ranks that they are kept with, so that a score counts.
        folder: Of checkpoints.
        log: Hears of every evaluation, and of the time it takes.
    """

    def __init__(
        self,
        evaluate: Callable[[], Mapping[str, Score]] | None,
        *,
        primary: str,
        average: int,
        final: Callable[[int], bool],
        folder: Path,
        log: EventLog,
    ) -> None:
        self._evaluate, self._primary, self._average = evaluate, primary, average
        self._final, self._folder, self._log = final, folder, log

    def score(self, state: TrainingState) -> None:
        """Evaluate, once a step."""
        if self._evaluate is None or state.evaluated_step == state.step:
            return
        with self._log.timed("evaluation"):
            scores = self._evaluate()
        score, final = scores[self._primary], self._final(state.step)
        better, of_stage = (
            final and (best is None or better_sign(score.better) * score.value < better_sign(score.better) * best)
            for best in (state.best, state.stage_best)
        )
        state.evaluated_step = state.step
        state.scores[str(state.step)] = score.value
        state.stage_best = score.value if of_stage else state.stage_best
        state.stale = 0 if of_stage or not final else state.stale + 1
        if final:
            self._rank(state, score, better=better)
        self._log.evaluated(state.step, scores, best=better)

    def _rank(self, state: TrainingState, score: Score, *, better: bool) -> None:
        """Keep the step of the best score, and of those that are averaged with it."""
        others = state.best_steps
        if better:
            state.best, state.best_step = score.value, state.step
        else:
            others.append(state.step)
        others.sort(key=lambda step: (better_sign(score.better) * state.scores[str(step)], step))
        state.runners_up = [step for step in others if step != state.best_step][: self._average - 1]

    def put_best(self, state: TrainingState, put: Callable[[Mapping[str, Tensor]], None]) -> int | None:
        """Put the best weights in place: those of the best evaluation, or the average of the best few.

        The average is taken of the factors of an adapter and not of their product, and kept only where the development
        clips like it at least as well.

        Args:
            state: At the end of training.
            put: Takes weights by name.

        Returns:
            The step of the best evaluation; None where nothing was evaluated.
        """
        best, steps = state.best_step, state.best_steps
        if best is None or steps == [state.step]:
            return best
        weights = [checkpoint.read(checkpoint.step_path(self._folder, step)).weights for step in steps]
        if len(steps) > 1 and self._evaluate is not None:
            put({name: torch.stack([one[name] for one in weights]).mean(0) for name in weights[0]})
            score = self._evaluate()[self._primary]
            kept = better_sign(score.better) * score.value <= better_sign(score.better) * state.scores[str(best)]
            self._log.event("average", step=state.step, steps=steps, score=score.to_json(), kept=kept)
            if kept:
                return best
        put(weights[0])
        return best
