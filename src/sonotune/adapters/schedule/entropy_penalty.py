"""How many directions an adapter's update uses, to look at, and as a penalty that makes them fewer or more.

The eigenvalues of G = BᵀB·AAᵀ (R, R) are the squared singular values σ² of the update BA. With t = tr G and t₂ = tr G²,
the order-2 (Rényi) entropy of p_i = (σ_i² + ε/R) / (Σσ² + ε) is

    H = 2 ln(t + ε) - ln(t₂ + 2εt/R + ε²/R),        Ĥ = H / ln R in [0, 1]

so neither BA nor a decomposition is formed. ε = (1e-3·‖W₀‖)² makes it smooth where an adapter begins: at B = 0 the
entropy is ln R and its gradient is zero, where that of a singular value decomposition is NaN.

Entropies are of BA, whatever the adapter's scale, and do not change under (cA, B/c) and (QA, BQᵀ).

Shape letters: M modules of one rank, R rank, I inputs, O outputs.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor

from sonotune.adapters.kinds.lora import lora_layers
from sonotune.adapters.schedule.callback import AdapterCallback, Event
from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel
from sonotune.models.quantize import dequantized_weight
from sonotune.types import Finding

Mode = Literal["off", "concentrate", "spread"]
SIGNS: Mapping[Mode, float] = {"off": 0.0, "concentrate": 1.0, "spread": -1.0}
COLLAPSED = 2.0
"""Effective rank that half of the adapters must stay above while their entropy is made smaller."""
LOOK_EVERY = 10
"""Steps between two looks at whether they do."""

_RELATIVE_SMOOTHING = 1e-3
_LEAST_SMOOTHING = 1e-30  # of a layer of zeros; the entropy of a zero update is then still defined

logger = logging.getLogger(__name__)


def matrices(layer: Any) -> tuple[Tensor, Tensor]:
    """The two matrices of a PEFT LoRA layer, A (R, I) and B (O, R), whose product is the update.

    The kernel of a convolution counts as inputs. What AdaLoRA multiplies each direction by counts to A.
    """
    down = layer.lora_A["default"]
    a_RI, values_R = down.weight.flatten(1), getattr(down, "values", None)
    return a_RI if values_R is None else values_R[:, None] * a_RI, layer.lora_B["default"].weight.flatten(1)


def matrix_layers(loaded: LoadedModel) -> dict[str, Any]:
    """Full name -> LoRA layer, for those whose update is one matrix product, which a grouped convolution's is not."""
    return {
        name: layer
        for name, layer in lora_layers(loaded).items()
        if "default" in layer.lora_A and getattr(layer.get_base_layer(), "groups", 1) == 1
    }


def smoothed_entropies(gram_a_MRR: Tensor, gram_b_MRR: Tensor, smoothing_M: Tensor) -> Tensor:
    """Order-2 entropy of updates from the Gram matrices of their factors, as a share of the most that is possible.

    Args:
        gram_a_MRR: AAᵀ.
        gram_b_MRR: BᵀB.
        smoothing_M: ε, above zero.

    Returns:
        Ĥ (M,): 0 for one direction, 1 for equal singular values or a zero update. Needs R of at least 2.
    """
    rank = gram_a_MRR.shape[-1]
    product_MRR = gram_b_MRR @ gram_a_MRR
    trace_M = product_MRR.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(0)
    # Shares of t + ε: the squares of large and of tiny updates leave the range of fp32.
    whole_M = trace_M + smoothing_M
    product_MRR = product_MRR / whole_M[:, None, None]
    smooth_M = smoothing_M / whole_M
    squares_M = (product_MRR * product_MRR.mT).sum((-2, -1)).clamp_min(0)
    squares_M = squares_M + (2 * smooth_M * (trace_M / whole_M) + smooth_M.square()) / rank
    return -squares_M.log() / math.log(rank)


def reference_norms(loaded: LoadedModel) -> dict[str, float]:
    """Frobenius norm of the frozen weight under each adapter; quantised weights are de-quantised for it, one by one."""
    with torch.no_grad():
        return {
            name: float(torch.linalg.vector_norm(dequantized_weight(layer.get_base_layer())))
            for name, layer in matrix_layers(loaded).items()
        }


def adapter_entropies(loaded: LoadedModel, norms: Mapping[str, float] | None = None) -> dict[str, float]:
    """Ĥ of every adapter of rank 2 and more, by full module name.

    Args:
        loaded: A model with an adapter.
        norms: From `reference_norms`, which takes longer than all the rest; None computes them.
    """
    norms = reference_norms(loaded) if norms is None else norms
    with torch.no_grad():
        found = {
            name: float(value)
            for _, names, entropies_M in _by_rank(matrix_layers(loaded), norms)
            for name, value in zip(names, entropies_M.clamp(0, 1).tolist(), strict=True)
        }
    return {name: found[name] for name in norms if name in found}


def effective_ranks(loaded: LoadedModel) -> dict[str, float]:
    """Effective rank of every adapter's update, by full module name.

    It is exp(-Σ p ln p) with p the shares of the squared singular values of BA, in double precision and not smoothed:
    between 1 and the rank, and 0 for an update that is still zero (Roy and Vetterli 2007).
    """
    layers = matrix_layers(loaded)
    found: dict[str, float] = {}
    with torch.no_grad():
        for names in _names_by_rank(layers).values():
            gram_a_MRR, gram_b_MRR = (gram.cpu() for gram in _grams([layers[name] for name in names], torch.float64))
            values_MR, vectors_MRR = torch.linalg.eigh(gram_a_MRR)
            root_MRR = vectors_MRR * values_MR.clamp_min(0).sqrt().unsqueeze(-2)
            squares_MR = torch.linalg.eigvalsh(root_MRR.mT @ gram_b_MRR @ root_MRR).clamp_min(0)
            totals_M1 = squares_MR.sum(-1, keepdim=True)
            shares_MR = squares_MR / totals_M1.clamp_min(torch.finfo(torch.float64).tiny)
            ranks_M = torch.special.entr(shares_MR).sum(-1).exp().clamp(1, shares_MR.shape[-1])
            ranks_M = torch.where(totals_M1[:, 0] > 0, ranks_M, 0.0)
            found |= zip(names, ranks_M.tolist(), strict=True)
    return {name: found[name] for name in layers}


class EntropyRegularizer(AdapterCallback):
    """Adds λ·mean(Ĥ) to the loss (`concentrate`), or takes it away (`spread`).

    `concentrate` puts an update into few directions, so that the others can be cut off at a known price: it is the
    companion of ranks that change while training. `spread` works against the collapse of ranks that are fixed.

    The penalty is a function of the weights and the step, so a checkpoint need not know of it. Adapters may be
    resized at any time.

    Args:
        loaded: A model with an adapter.
        mode: What becomes of the entropy.
        weight: λ.
        ramp: Shares of the run at which λ begins to rise from zero, and at which it is whole.

    Raises:
        AdapterError: A setting is out of range, or no adapter has two directions to choose between.
    """

    def __init__(
        self, loaded: LoadedModel, mode: Mode, weight: float = 0.01, ramp: tuple[float, float] = (0.1, 0.3)
    ) -> None:
        start, end = ramp
        if mode not in SIGNS:
            raise AdapterError(f"{mode!r} is no mode of the entropy penalty; use {', '.join(SIGNS)}.")
        if not (math.isfinite(weight) and weight >= 0):
            raise AdapterError(
                f"the weight of the entropy penalty is {weight}; it is zero or more, and the mode sets its direction."
            )
        if not 0 <= start <= end <= 1:
            raise AdapterError(f"the ramp of the entropy penalty is {start} to {end}; both are shares of the run, 0-1.")
        self.mode: Mode = mode
        self._layers, self._device = matrix_layers(loaded), loaded.device.type
        self._loaded, self._weight, self._start, self._end = loaded, weight, start, end
        self._norms = reference_norms(loaded)  # here, where every process has all of the frozen weights
        self._effective: Tensor | None = None
        self._alarmed = False
        if self.active and not any(layer.r["default"] > 1 for layer in self._layers.values()):
            raise AdapterError(
                "no adapter has a rank of 2 or more, so there is no entropy to change. Raise adapter.rank."
            )

    @property
    def active(self) -> bool:
        """Whether there ever is a penalty."""
        return self.mode != "off" and self._weight > 0

    def weight_at(self, step: int, total_steps: int) -> float:
        """λ at a zero-based optimiser step, without sign."""
        if not self.active:
            return 0.0
        done = step / max(1, total_steps)
        if done >= self._end:
            return self._weight
        return self._weight * max(0.0, done - self._start) / (self._end - self._start)

    def penalty(self, step: int, total_steps: int) -> Tensor | None:
        """What to add to the mean loss of an optimiser step, a scalar in fp32.

        Args:
            step: Zero-based optimiser step.
            total_steps: Length of the run.

        Returns:
            None where there is none: before the ramp, when off, or when no adapter trains.
        """
        weight = self.weight_at(step, total_steps)
        if not weight:
            return None
        layers = {
            name: layer
            for name, layer in self._layers.items()
            if any(factor.requires_grad for factor in matrices(layer))
        }
        with torch.autocast(self._device, enabled=False):
            groups = list(_by_rank(layers, self._norms))
            if not groups:
                return None
            self._effective = torch.cat(
                [
                    (entropies_M.detach() * math.log(rank)).exp()
                    for rank, _, entropies_M in groups
                    if rank > COLLAPSED  # at most 2 whatever the penalty does
                ]
                or [torch.empty(0)]
            )
            return SIGNS[self.mode] * weight * torch.cat([entropies_M for *_, entropies_M in groups]).mean()

    def after_step(self, step: int, total_steps: int, optimizer: torch.optim.Optimizer) -> Event | None:
        """Say so, now and then, when the penalty found the adapters collapsed."""
        finding = None if step % LOOK_EVERY else self.alarm()
        return None if finding is None else ("finding", asdict(finding))

    def alarm(self) -> Finding | None:
        """A warning, once, when `concentrate` has left half of the adapters an effective rank below 2."""
        if self.mode != "concentrate" or self._alarmed or self._effective is None or not len(self._effective):
            return None
        # The exponential of an entropy of order 2 is at hand, and never above that of order 1.
        if float(self._effective.median()) >= COLLAPSED:
            return None
        used = effective_ranks(self._loaded)
        middle = statistics.median(used[name] for name, layer in self._layers.items() if layer.r["default"] > COLLAPSED)
        if middle >= COLLAPSED:
            return None
        self._alarmed = True
        message = (
            f"the entropy penalty has left half of the adapters an effective rank of {middle:.2f} or less: they use "
            f"hardly more than one direction each. Lower its weight (now {self._weight}), or the ranks."
        )
        logger.warning(message)
        return Finding(
            check="adapter.entropy", severity="warning", message=message, measured=middle, limit=COLLAPSED, unit="rank"
        )

    def entropies(self) -> dict[str, float]:
        """Ĥ of every adapter of rank 2 and more; see `adapter_entropies`."""
        return adapter_entropies(self._loaded, self._norms)


def _by_rank(layers: Mapping[str, Any], norms: Mapping[str, float]) -> list[tuple[int, list[str], Tensor]]:
    """Rank, names and Ĥ (M,) of the modules of each rank above 1."""
    found: list[tuple[int, list[str], Tensor]] = []
    for rank, names in _names_by_rank(layers).items():
        if rank < 2:
            continue
        gram_a_MRR, gram_b_MRR = _grams([layers[name] for name in names], torch.float32)
        smoothing = [max((_RELATIVE_SMOOTHING * norms[name]) ** 2, _LEAST_SMOOTHING) for name in names]
        smoothing_M = torch.tensor(smoothing, dtype=torch.float32, device=gram_a_MRR.device)
        found.append((rank, names, smoothed_entropies(gram_a_MRR, gram_b_MRR, smoothing_M)))
    return found


def _names_by_rank(layers: Mapping[str, Any]) -> dict[int, list[str]]:
    groups: dict[int, list[str]] = {}
    for name, layer in layers.items():
        groups.setdefault(layer.r["default"], []).append(name)
    return groups


def _grams(layers: Sequence[Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """AAᵀ and BᵀB of adapters of one rank, (M, R, R) each."""
    pairs = [matrices(layer) for layer in layers]
    return (
        torch.stack([(a := a_RI.to(dtype)) @ a.mT for a_RI, _ in pairs]),
        torch.stack([(b := b_OR.to(dtype)).mT @ b for _, b_OR in pairs]),
    )
