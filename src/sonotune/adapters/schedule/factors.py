"""The two factors of an adapter at another rank, and what AdamW knows of them.

Both factors are held as one row for each component: A (R, I) as it is, and Bᵀ (R, O). The update is the sum over
components of column r of B times row r of A.

A component that is new has a zero column in B, so that the update stays what it was. AdamW's moments go along with the
others; with fresh second moments and a step count in the thousands, its first updates would be three to six times too
large, so that a new component gets the mean of the others.

Everything is computed on the CPU in double precision: processes that train together, on whatever devices, come to the
same result without talking to each other.

Shape letters: R rank, K rank that is left, N new components, I inputs, O outputs, D either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sonotune.errors import AdapterError

ShrinkMode = Literal["svd", "select"]

_MOMENTS = frozenset({"step", "exp_avg", "exp_avg_sq"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A factor of an adapter as one row for each component, A (R, I) or Bᵀ (R, O), with AdamW's moments of it.

    Everything is in double precision on the CPU, which holds fp32 and 16-bit values exactly.

    Attributes:
        weight: The factor (R, D).
        average: Mean of the gradients (R, D), None where the optimiser has no state.
        square: Mean of their squares (R, D).
        bound: How many times √square a mean of gradients that always agreed is at this step.
    """

    weight: Tensor
    average: Tensor | None = None
    square: Tensor | None = None
    bound: float = math.inf

    def rows(self, index: Tensor) -> Rows:
        """Some of the components, as they are."""
        average, square = (None if part is None else part[index] for part in (self.average, self.square))
        return replace(self, weight=self.weight[index], average=average, square=square)


def resized(a: Rows, b: Rows, rank: int, mode: ShrinkMode, generator: torch.Generator) -> tuple[Rows, Rows]:
    """The factors of another rank."""
    if rank > len(a.weight):
        return _grown(a, b, rank, generator)
    if mode == "svd":
        return _truncated(a, b, rank, generator)
    kept = selected(a.weight, b.weight, rank)
    return a.rows(kept), b.rows(kept)


def _grown(a: Rows, b: Rows, rank: int, generator: torch.Generator) -> tuple[Rows, Rows]:
    """Add components that do nothing yet: new rows in A, zeros in B.

    New rows point where PEFT's draw points once what A spans already is taken out of it. They are as long as A's rows
    are in the mean, so that the gradients of B's new columns are of the size that B's second moments are made for.
    """
    before, inputs = a.weight.shape
    drawn_ND = torch.empty(rank - before, inputs, dtype=torch.float64).uniform_(-1, 1, generator=generator)
    directions_DR = torch.linalg.qr(torch.cat([a.weight, drawn_ND]).mT).Q
    length = a.weight.square().sum(1).mean().sqrt()
    new_ND = length * directions_DR[:, before:].mT
    return _extended(a, new_ND), _extended(b, new_ND.new_zeros(rank - before, b.weight.shape[1]))


def _extended(rows: Rows, new_ND: Tensor) -> Rows:
    """More rows, whose gradients have been zero so far and are expected to be as large as the others'."""
    average = square = None
    if rows.average is not None and rows.square is not None:
        average = torch.cat([rows.average, torch.zeros_like(new_ND)])
        square = torch.cat([rows.square, rows.square.mean(0, keepdim=True).expand_as(new_ND)])
    return replace(rows, weight=torch.cat([rows.weight, new_ND]), average=average, square=square)


def selected(a_RI: Tensor, b_RO: Tensor, rank: int) -> Tensor:
    """The components to keep so that little is lost, by dropping one after the other.

    Dropping a set D loses Σ_{i,j in D} M_ij of the update's squared norm, with M = (BᵀB)∘(AAᵀ).

    Args:
        a_RI: A.
        b_RO: Bᵀ.
        rank: How many to keep.

    Returns:
        Their indices, rising (rank,).
    """
    overlap_RR = (b_RO @ b_RO.mT) * (a_RI @ a_RI.mT)
    price_R = overlap_RR.diagonal().clone()
    for _ in range(len(a_RI) - rank):
        worst = len(price_R) - 1 - int(price_R.flip(0).argmin())  # the last of equals goes first
        price_R += 2 * overlap_RR[worst]
        price_R[worst] = math.inf
    return price_R.isfinite().nonzero()[:, 0]


def _truncated(a: Rows, b: Rows, rank: int, generator: torch.Generator) -> tuple[Rows, Rows]:
    """The nearest update of a lower rank, its singular values split evenly between the factors.

    The new factors are A' = P·A and B' = B·Q, so that the gradients that were met would have been QᵀdA and dB·Pᵀ.
    Components that the update does not use would never move again with zeros on both sides: they begin anew.
    """
    left_OR, core_b_RR = torch.linalg.qr(b.weight.mT)
    right_IR, core_a_RR = torch.linalg.qr(a.weight.mT)
    u_RR, sigma_R, v_RR = torch.linalg.svd(core_b_RR @ core_a_RR.mT, full_matrices=False)
    least = len(a.weight) * torch.finfo(torch.float32).eps * float(sigma_R[0])
    live = min(rank, int((sigma_R > least).sum()))
    if live == 0:
        return a.rows(torch.arange(rank)), b.rows(torch.arange(rank))
    root_K1, u_KR, v_KR = sigma_R[:live, None].sqrt(), u_RR[:, :live].mT, v_RR[:live]
    new_a, new_b = root_K1 * (v_KR @ right_IR.mT), root_K1 * (u_KR @ left_OR.mT)
    turned_a = _turned(a, new_a, v_KR @ core_a_RR / root_K1, gain=_gain(b.weight, new_b))
    turned_b = _turned(b, new_b, u_KR @ core_b_RR / root_K1, gain=_gain(a.weight, new_a))
    return (turned_a, turned_b) if live == rank else _grown(turned_a, turned_b, rank, generator)


def _gain(before_RD: Tensor, after_KD: Tensor) -> Tensor:
    """How much larger the squared gradients of a factor are, behind the other factor's new rows (K, 1)."""
    return after_KD.square().sum(1, keepdim=True) / before_RD.square().sum(1).mean()


def _turned(rows: Rows, weight_KD: Tensor, turn_KR: Tensor, *, gain: Tensor) -> Rows:
    """A factor in new coordinates.

    The mean of the gradients turns with it. The squares do not: every row gets their mean over rows, times the gain.
    No mean may ask for a larger step than gradients that always agreed, which rounding could otherwise make of it.
    """
    if rows.average is None or rows.square is None:
        return replace(rows, weight=weight_KD)
    square = gain * rows.square.mean(0, keepdim=True)
    limit = rows.bound * square.sqrt()
    average = torch.minimum(torch.maximum(turn_KR @ rows.average, -limit), limit)
    return replace(rows, weight=weight_KD, average=average, square=square)


def lost(a: Rows, b: Rows, new_a: Rows, new_b: Rows) -> float:
    """Frobenius norm of what is no longer in the update, as a share of the update's."""
    whole = float(((b.weight @ b.weight.mT) * (a.weight @ a.weight.mT)).sum())
    inside = torch.cat([a.weight, new_a.weight])
    outside = torch.cat([b.weight, -new_b.weight])
    gone = float(((outside @ outside.mT) * (inside @ inside.mT)).sum())
    return math.sqrt(max(0.0, gone) / whole) if whole > 0 else 0.0


class Slots:
    """The places of parameters in an optimiser.

    Raises:
        AdapterError: It keeps other things of a parameter than AdamW does.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None) -> None:
        self._state: dict[Any, Any] = {} if optimizer is None else optimizer.state
        groups = [] if optimizer is None else optimizer.param_groups
        self._places = {
            id(parameter): (group, index) for group in groups for index, parameter in enumerate(group["params"])
        }
        found = {key for state in self._state.values() for key in state}
        if strange := sorted(found - _MOMENTS):
            raise AdapterError(
                f"the optimiser keeps {', '.join(strange)}, of which it is not known how it goes along when an adapter "
                "changes its rank; exp_avg, exp_avg_sq and step do. Use plain AdamW, or keep the ranks fixed."
            )

    def read(self, parameter: Tensor, *, transposed: bool) -> Rows:
        """A factor and its moments; `transposed` for B, whose second dimension is the rank."""
        state = self._state.get(parameter, {})

        def rows(tensor: Tensor) -> Tensor:
            flat = tensor.detach().flatten(1).to("cpu", torch.float64)
            return flat.mT if transposed else flat

        if not state:
            return Rows(weight=rows(parameter))
        group, _ = self._places[id(parameter)]
        steps, (fast, slow) = float(state["step"]), group["betas"]
        return Rows(
            weight=rows(parameter),
            average=rows(state["exp_avg"]),
            square=rows(state["exp_avg_sq"]),
            bound=(1 - fast**steps) / math.sqrt(1 - slow**steps),
        )

    def exchange(self, old: nn.Parameter, rows: Rows, *, transposed: bool) -> nn.Parameter:
        """Make the parameter that takes the place of another, in its group and with its step count."""

        def shaped(part: Tensor) -> Tensor:
            matrix = part.mT if transposed else part
            shape = (*matrix.shape, *old.shape[2:]) if transposed else (len(matrix), *old.shape[1:])
            return matrix.to(old.device, old.dtype).reshape(shape).contiguous()

        new = nn.Parameter(shaped(rows.weight), requires_grad=old.requires_grad)
        if place := self._places.pop(id(old), None):
            group, index = place
            group["params"][index] = new
            self._places[id(new)] = place
        state = self._state.pop(old, {})
        if state and rows.average is not None and rows.square is not None:
            self._state[new] = {**state, "exp_avg": shaped(rows.average), "exp_avg_sq": shaped(rows.square)}
        return new
