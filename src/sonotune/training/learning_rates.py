"""Learning rates where none is given: one for adapters, a lower one for pretrained weights that train themselves.

The larger a pretrained model, the lower a rate its own weights bear; adapters, which start from nothing, bear ten times
as much. Of the rates below, those of nano models were measured (benchmarks/fsdd_folds), and the one of adapters on
Whisper-base was tried on real recordings (benchmarks/real_models). The others are the usual ones of the field's
guides, and were not measured here.
"""

from __future__ import annotations

from typing import NamedTuple


class Rates(NamedTuple):
    """Peak learning rates.

    Attributes:
        adapters: Of adapters, and of parts that are as random as they were made.
        weights: Of pretrained weights that train in full.
    """

    adapters: float
    weights: float


_BY_PARAMETERS: tuple[tuple[float, Rates], ...] = (
    (20e6, Rates(2e-3, 3e-4)),
    (150e6, Rates(5e-4, 5e-5)),
    (1e9, Rates(5e-4, 2e-5)),
    (float("inf"), Rates(2e-4, 1e-5)),
)
"""Parameters that a model has at most, and its rates."""


def usual_rates(parameters: int) -> Rates:
    """Rates for a model of so many parameters."""
    return next(rates for most, rates in _BY_PARAMETERS if parameters <= most)
