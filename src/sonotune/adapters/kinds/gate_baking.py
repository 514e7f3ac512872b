"""Baking: gates put at their means, so that an adapter is LoRA again and merges; and what that changes.

For a module with A's output u and factors g of a frame, baking takes the mean m of g for g. What the module adds then
differs by s B ((g - m) * u). Its energy over that of s B (g * u), over all frames of the clips, is the error of baking:
0 where a gate is constant, and about the share of the adapter's work that depended on time. Both energies follow from
sums of R x R products, so one pass over the clips is enough.

Shape letters: N rows, R ranks, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from sonotune.adapters.kinds.base import kind_of
from sonotune.adapters.kinds.bottleneck import between_of
from sonotune.adapters.kinds.gates import HEAD, Gates
from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel

TOLERANCE: Final = 0.05
"""Largest error of baking that is taken for none."""


@dataclass(slots=True)
class _Sums:
    """Of rows: their number, their factors (R,), and products of outputs of A before and behind the gate (R, R)."""

    rows: int
    gate: Tensor
    plain: Tensor
    mixed: Tensor
    gated: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Baked:
    """What baking changes.

    Attributes:
        error: Energy of the difference over the energy of what the adapters add, over all modules.
        worst: Module with the largest error of its own.
        worst_error: That error.
        rows: Frames that each module saw.
        means: Module -> mean of each rank's factor.
    """

    error: float
    worst: str
    worst_error: float
    rows: int
    means: Mapping[str, Tensor] = field(repr=False)


class GateMeter:
    """Sums over the rows of the clips themselves; see the module."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}

    @torch.no_grad()
    def __call__(self, name: str, hidden: Tensor, factors: Tensor, own: Tensor) -> None:
        """Add the rows of one forward pass; see `gates.Meter`."""
        plain_NR, factors_NR = hidden[own].double(), factors[own].double()
        gated_NR = plain_NR * factors_NR
        found = (
            len(plain_NR),
            factors_NR.sum(dim=0),
            plain_NR.T @ plain_NR,
            gated_NR.T @ plain_NR,
            gated_NR.T @ gated_NR,
        )
        if name not in self._sums:
            self._sums[name] = _Sums(*found)
            return
        sums = self._sums[name]
        sums.rows += found[0]
        sums.gate += found[1]
        sums.plain += found[2]
        sums.mixed += found[3]
        sums.gated += found[4]

    def result(self, layers: Mapping[str, Any]) -> Baked:
        """What baking would change.

        Args:
            layers: Full name -> PEFT LoRA layer with a gate.

        Raises:
            AdapterError: A gate saw no frame.
        """
        if missing := [name for name in layers if name not in self._sums or not self._sums[name].rows]:
            raise AdapterError(f"no frame of the clips came to {missing[0]} and {len(missing) - 1} more with gates.")
        errors, changed, added = dict[str, float](), 0.0, 0.0
        means = {name: self._sums[name].gate / self._sums[name].rows for name in layers}
        for name, layer in layers.items():
            sums, mean_R = self._sums[name], means[name]
            up_OR = layer.scaling["default"] * layer.lora_B["default"].weight.detach().double()
            square_RR = up_OR.T @ up_OR
            mixed_RR = sums.mixed * mean_R
            difference_RR = sums.gated - mixed_RR - mixed_RR.T + mean_R[:, None] * sums.plain * mean_R
            own_changed = max(0.0, float((square_RR * difference_RR).sum()))
            own_added = float((square_RR * sums.gated).sum())
            errors[name] = own_changed / own_added if own_added else 0.0
            changed, added = changed + own_changed, added + own_added
        worst = max(errors, key=errors.__getitem__)
        return Baked(
            error=changed / added if added else 0.0,
            worst=worst,
            worst_error=errors[worst],
            rows=max(self._sums[name].rows for name in layers),
            means=means,
        )


def has_gates(loaded: LoadedModel) -> bool:
    """Whether an adapter depends on what is heard by gates, which baking would take out."""
    return loaded.adapter is not None and isinstance(getattr(loaded.adapter, "between", None), Gates)


def needs_baking(loaded: LoadedModel) -> bool:
    """Whether an adapter has gates that are not constant."""
    return has_gates(loaded) and kind_of(loaded).merge(loaded) is None


@contextmanager
def metered(loaded: LoadedModel) -> Iterator[GateMeter]:
    """Measure the gates in what the model computes inside."""
    gates = _gates(loaded)
    meter = GateMeter()
    gates.meter = meter
    try:
        yield meter
    finally:
        gates.meter = None


def bake(loaded: LoadedModel, meter: GateMeter, *, tolerance: float = TOLERANCE) -> Baked:
    """Put the gates of a model at their means, in place: A <- diag(m) A, and gates that are 1.

    Args:
        loaded: A model with gates.
        meter: That measured them, on clips like those that it is for.
        tolerance: Largest error that is taken.

    Returns:
        What it changed.

    Raises:
        AdapterError: It would change more than that; the model is as it was.
    """
    gates = _gates(loaded)
    found = meter.result(gates.layers)
    if not found.error <= tolerance:
        raise AdapterError(
            f"putting the gates at their means would change {found.error:.1%} of what the adapter adds (by energy; "
            f"most in {found.worst}, {found.worst_error:.1%}), and {tolerance:.1%} is allowed. The gates do something "
            "that no plain model does: export with --adapter and serve with sonotune, or allow it with "
            "--bake-tolerance and score the export again."
        )
    with torch.no_grad():
        for name, layer in gates.layers.items():
            down = layer.lora_A["default"].weight
            down.mul_(found.means[name].to(down).unsqueeze(1))
            getattr(layer, HEAD).weight.zero_()
    return found


def _gates(loaded: LoadedModel) -> Gates:
    between = between_of(loaded)
    if not isinstance(between, Gates):
        raise AdapterError(f"adapters of the kind {kind_of(loaded).name!r} have no gates to bake.")
    return between
