"""What is known of an optimiser before there is one: its kinds, its memory, and the usual learning rates.

Learning rates where none is given: one for adapters, a lower one for pretrained weights that train themselves. The
larger a pretrained model, the lower a rate its own weights bear; adapters, which start from nothing, bear ten to twenty
times as much. Of the rates below, those of nano models (up to 3 million parameters) were measured
(benchmarks/fsdd_folds), and that of adapters on models of up to 150 million parameters on Whisper-base, of 73 million,
with three corpora and one seed each (benchmarks/real_models). The rates of pretrained weights, and those of larger
models, are the usual ones of the field's guides, and were not varied here.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

OptimizerKind = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]


def choose_optimizer(kind: OptimizerKind, device: str) -> tuple[OptimizerKind, str]:
    """What can be had on a device, and why."""
    if kind == "adamw" or device == "cuda":
        return kind, "as set"
    return "adamw", f"{kind} is for memory on a CUDA card, and this run has none; steps are those of plain AdamW"


def moment_bytes(numel: int, kind: OptimizerKind) -> int:
    """Bytes on the device of what the optimiser keeps of a parameter, for long.

    Source: `bitsandbytes.optim.optimizer.Optimizer2State.init_state`: blocks of 256 codes have a scale each, tensors
    below 4096 numbers stay in fp32, and those below 100,000 are not paged.
    """
    if kind.startswith("paged") and numel >= 100_000:
        return 0
    if kind.endswith("8bit") and numel >= 4096:
        return 2 * (numel + 4 * -(-numel // 256))
    return 8 * numel


class Rates(NamedTuple):
    """Peak learning rates.

    Attributes:
        adapters: Of adapters, and of parts that are as random as they were made.
        weights: Of pretrained weights that train in full.
    """

    adapters: float
    weights: float


_BY_PARAMETERS: tuple[tuple[float, Rates], ...] = (
    (5e6, Rates(2e-3, 3e-4)),
    (150e6, Rates(1e-3, 5e-5)),
    (1e9, Rates(5e-4, 2e-5)),
    (float("inf"), Rates(2e-4, 1e-5)),
)
"""Parameters that a model has at most, and its rates; see above for which were measured."""


def usual_rates(parameters: int) -> Rates:
    """Rates for a model of so many parameters."""
    return next(rates for most, rates in _BY_PARAMETERS if parameters <= most)
