"""Which evaluations are the best, and whose weights are kept in the end.

The primary score decides. Evaluations of equal score, as at a word error rate of 100 % or 0 %, are told apart by the
other error rate (characters, else words), and then by the loss of the last training steps. The loss is that of clips
the model has seen, which falls anyway: it chooses weights, and no run goes on for it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from sonotune.metrics.scores import better_sign, deciding
from sonotune.training import checkpoint
from sonotune.training.logging.run_log import EventLog
from sonotune.training.state import TrainingState
from sonotune.types import Score

_RATES: Final = ("cer", "wer")
_EARLIER: Final = "wer"  # what decided about texts in checkpoints that do not say what did


class BestCheckpoint:
    """Scores the weights as they are, and remembers in the training state how they compare.

    Args:
        evaluate: Scores the development clips, or None where there are none; the score whose role is `primary` decides.
        average: How many of the best are averaged in the end.
        final: Step -> whether the adapters have the ranks that they are kept with, so that a score counts.
        folder: Of checkpoints.
        log: Hears of every evaluation, and of the time it takes.
    """

    def __init__(
        self,
        evaluate: Callable[[], Mapping[str, Score]] | None,
        *,
        average: int,
        final: Callable[[int], bool],
        folder: Path,
        log: EventLog,
    ) -> None:
        self._evaluate, self._average = evaluate, average
        self._final, self._folder, self._log = final, folder, log

    def score(self, state: TrainingState) -> None:
        """Evaluate, once a step."""
        if self._evaluate is None or state.evaluated_step == state.step:
            return
        with self._log.timed("evaluation"):
            scores = self._evaluate()
        self._begin(state, scores)
        name, final = deciding(scores), self._final(state.step)
        value, sign, rates = scores[name].value, better_sign(scores[name].better), _other_rates(scores)
        losses = [statistics.fmean(state.recent_losses)] if rates and state.recent_losses else []
        key = [sign * value, *rates, *losses]
        better = final and (state.best is None or key < self._key(state, state.best_step, sign))
        stage_key = None if state.stage_best is None else [sign * state.stage_best, *state.stage_ties]
        progress = final and (stage_key is None or [sign * value, *rates] < stage_key)
        state.evaluated_step = state.step
        state.scores[str(state.step)], state.ties[str(state.step)] = value, [*rates, *losses]
        if progress:
            state.stage_best, state.stage_ties = value, rates
        state.stale = 0 if progress or not final else state.stale + 1
        if final:
            self._rank(state, sign, better=better)
        self._log.evaluated(state.step, scores, best=better)

    def _begin(self, state: TrainingState, scores: Mapping[str, Score]) -> None:
        """Forget earlier evaluations where another score decided, which an older version may have gone by."""
        name = deciding(scores)
        earlier = state.primary or (_EARLIER if _EARLIER in scores else name)
        if earlier != name and state.scores:
            self._log.event("primary", step=state.step, score=name, earlier=earlier)
            state.best = state.best_step = state.stage_best = None
            state.runners_up, state.stage_ties, state.stale = [], [], 0
            state.scores, state.ties = {}, {}
        state.primary = name

    @staticmethod
    def _key(state: TrainingState, step: int | None, sign: int) -> list[float]:
        """What an evaluation is compared by: the smaller, number by number, is the better."""
        return [sign * state.scores[str(step)], *state.ties.get(str(step), [])]

    def _rank(self, state: TrainingState, sign: int, *, better: bool) -> None:
        """Keep the step of the best score, and of those that are averaged with it."""
        others = state.best_steps
        if better:
            state.best, state.best_step = state.scores[str(state.step)], state.step
        else:
            others.append(state.step)
        others.sort(key=lambda step: (self._key(state, step, sign), step))
        state.runners_up = [step for step in others if step != state.best_step][: self._average - 1]

    def put_best(
        self,
        state: TrainingState,
        put: Callable[[Mapping[str, Tensor]], None],
        *,
        now: Mapping[str, Tensor],
        start: Mapping[str, Mapping[str, Any]],
    ) -> int | None:
        """Put the best weights in place: those of the best evaluation, the average of the best few, or of the start.

        The average is taken of the factors of an adapter and not of their product, and kept only where the development
        clips like it at least as well.

        Args:
            state: At the end of training.
            put: Takes weights by name.
            now: The weights that are in place. Those of the start are a candidate where they have the same shapes:
                adapters whose ranks have changed since cannot hold them.
            start: Scores of the development clips before training, as in `run.json`; empty where there are none.

        Returns:
            The step of the best evaluation; 0 where none was better than the start. None where nothing was evaluated.
        """
        if self._is_beaten_by(state, start):
            first = checkpoint.read_start(self._folder)
            if first is not None and all(first[name].shape == value.shape for name, value in now.items()):
                put(first)
                return 0
        best, steps = state.best_step, state.best_steps
        if best is None or steps == [state.step]:
            return best
        weights = [checkpoint.read(checkpoint.step_path(self._folder, step)).weights for step in steps]
        if len(steps) > 1 and self._evaluate is not None:
            put({name: torch.stack([one[name] for one in weights]).mean(0) for name in weights[0]})
            scores = self._evaluate()
            score, rates = scores[deciding(scores)], _other_rates(scores)
            sign = better_sign(score.better)
            kept = [sign * score.value, *rates] <= self._key(state, best, sign)[: 1 + len(rates)]
            self._log.event("average", step=state.step, steps=steps, score=score.to_json(), kept=kept)
            if kept:
                return best
        put(weights[0])
        return best

    def _is_beaten_by(self, state: TrainingState, start: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether the model before training is better than the best since."""
        if state.best_step is None or state.primary not in start:
            return False
        sign = better_sign(start[state.primary]["better"])
        rates = [start[name]["value"] for name in _rates_beside(state.primary, start)]
        key = [sign * start[state.primary]["value"], *rates]
        return key < self._key(state, state.best_step, sign)[: len(key)]


def _rates_beside(name: str, scores: Collection[str]) -> list[str]:
    """Names of the error rates beside the one that decides; none where another score does."""
    return [other for other in _RATES if name in _RATES and other in scores and other != name]


def _other_rates(scores: Mapping[str, Score]) -> list[float]:
    """Values of the error rates beside the one that decides."""
    return [scores[other].value for other in _rates_beside(deciding(scores), scores)]
