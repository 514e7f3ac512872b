"""A loss that leaps far beyond anything a run has seen, which one step would carry into the weights.

Hard clips have a loss several times the usual one, and where training has nearly reached zero even hundreds of times;
so a leap is a loss of twenty times the recent median that is also twice the highest of the stage's first steps, when
nothing had been learned.
"""

from __future__ import annotations

import statistics

from sonotune.training.loop_settings import Position

WINDOW, FIRST = 32, 16
"""Steps whose losses are remembered, and those at the beginning of a stage in which nothing is a leap."""
FACTOR, CEILING_FACTOR = 20.0, 2.0


def leaps(loss: float, position: Position) -> bool:
    """Whether a finite loss is one."""
    if len(position.recent_losses) < FIRST:
        return False
    return loss > max(FACTOR * statistics.median(position.recent_losses), CEILING_FACTOR * position.first_loss)


def remember(loss: float, position: Position) -> None:
    """Count a loss that was learned from."""
    if len(position.recent_losses) < FIRST:
        position.first_loss = max(position.first_loss, loss)
    position.recent_losses = [*position.recent_losses, loss][-WINDOW:]


def forget(position: Position) -> None:
    """Begin anew, with a stage."""
    position.recent_losses, position.first_loss = [], 0.0
