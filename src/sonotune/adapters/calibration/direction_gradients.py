"""What the loss would gain in each direction of the input of each linear, without adapters and without a step.

With A = V and B = 0 an adapter changes nothing, and the gradient of its B is G Vᵀ, where G is the gradient of the
frozen weight. It is the sum over rows of (gradient of the output) (V input)ᵀ, so neither adapters nor trainable weights
are needed, and the weights may have 4 bits.

Shape letters: N valid rows, D inputs of a linear, E its outputs, P directions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sonotune.adapters.calibration.activations import (
    Autocast,
    Objective,
    Rows,
    channels_last,
    check_reached,
    input_of,
    single_clips,
    stream_of,
    streams_of,
)
from sonotune.adapters.calibration.spectrum import Directions
from sonotune.adapters.ranks.plan import matrix_shape
from sonotune.errors import AdapterError
from sonotune.features.batching import Batch
from sonotune.models.base import LoadedModel, Stream
from sonotune.models.modes import undisturbed
from sonotune.types import Clip, Finding

_DAMPING = 1e-3  # of the mean variance of a channel, added to the variance along a direction
_LOSS_SCALE = 1024.0  # keeps small gradients above what fp16 can hold; a power of two changes no digit


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientEvidence:
    """What the gradient of the mean loss says of every module, by full name.

    Attributes:
        gains: Squared norm of the gradient along each direction over the damped variance there (P,).
        squared_norms: Squared norm of the gradient of the weight, of the mean loss of each clip by itself, averaged
            over the clips; a diagnostic.
        clips: Clips with a gradient.
        labels: Labels that the loss is the mean over.
        dropped: Rows left out because an activation or a gradient was not finite.
    """

    gains: Mapping[str, NDArray[np.float64]]
    squared_norms: Mapping[str, float]
    clips: int
    labels: float
    dropped: int = 0


def gradient_gains(
    loaded: LoadedModel,
    objective: Objective,
    clips: Sequence[Clip],
    directions: Mapping[str, Directions],
    *,
    autocast: Autocast = nullcontext,
) -> GradientEvidence:
    """Differentiate the mean loss over all labels of some clips; nothing of the model changes.

    Args:
        loaded: The model as adapters will find it.
        objective: Gives targets and the loss.
        clips: 8 to 32; each is a forward and a backward pass.
        directions: Full module name -> directions of its input.
        autocast: Makes the precision context of each forward pass.

    Raises:
        AdapterError: There are no directions, no clip can be used, or a module is never reached.

    Source: Paischer et al. 2024, EVA (arXiv 2410.07170), for the directions; weighting them by the gradient is this
    project's own.
    """
    findings: list[Finding] = []
    batches = single_clips(loaded, objective, clips, findings)
    found = differentiate(loaded, objective, batches, directions, autocast=autocast)
    if found is None:
        raise AdapterError(_no_gradient(len(clips), findings))
    return found


def differentiate(
    loaded: LoadedModel,
    objective: Objective,
    batches: Iterable[Batch],
    directions: Mapping[str, Directions],
    *,
    autocast: Autocast = nullcontext,
) -> GradientEvidence | None:
    """As `gradient_gains`, of batches of one clip each; None where none has a label."""
    if not directions:
        raise AdapterError("gradients are taken along directions, and there are none. Give collect directions=64.")
    tap = _Tap(loaded, {name: found.vectors for name, found in directions.items()}, norms=True)
    with _training(loaded.module, ()):
        _backward(loaded, objective, batches, tap, autocast)
    return tap.evidence(directions) if tap.clips else None


def mean_gradients(
    loaded: LoadedModel,
    objective: Objective,
    clips: Sequence[Clip],
    rows: Mapping[str, Tensor],
    parameters: Collection[str],
    *,
    autocast: Autocast = nullcontext,
) -> dict[str, Tensor]:
    """Gradient of the mean loss over all labels, for adapters that are not there yet and for weights as they are.

    Args:
        loaded: The model without adapters; nothing of it changes.
        objective: Gives targets and the loss.
        clips: Each is a forward and a backward pass.
        rows: Full module name -> the A matrix that its adapter would start from (P, D).
        parameters: Full names of weights.
        autocast: Makes the precision context of each forward pass.

    Returns:
        Module name -> gradient of B at zero (E, P), and parameter name -> its gradient, in fp32 on the model's device;
        of what the loss does not depend on, zeros.

    Raises:
        AdapterError: No clip can be used, or a module is never reached.
    """
    findings: list[Finding] = []
    tap = _Tap(loaded, rows)
    with _training(loaded.module, parameters) as weights:
        _backward(loaded, objective, single_clips(loaded, objective, clips, findings), tap, autocast)
        if not tap.clips:
            raise AdapterError(_no_gradient(len(clips), findings))
        scale = _LOSS_SCALE * tap.labels
        of_weights = {
            name: torch.zeros_like(weight, dtype=torch.float32) if weight.grad is None else weight.grad.float() / scale
            for name, weight in weights.items()
        }
    return tap.means() | of_weights


def _no_gradient(clips: int, findings: Sequence[Finding]) -> str:
    reasons = "; ".join(finding.message for finding in findings[:3]) or "none of them has a label."
    return f"calibration could take no gradient of {clips} clips: {reasons} Give it others."


def _backward(
    loaded: LoadedModel, objective: Objective, batches: Iterable[Batch], tap: _Tap, autocast: Autocast
) -> None:
    """Run batches of one clip through the model and back, with the tap on."""
    with undisturbed(loaded.module), torch.enable_grad(), tap.attached():
        for batch in batches:
            tap.begin(streams_of(loaded, batch))
            with autocast():
                losses = objective.losses(loaded, batch)
            tap.check()
            if losses.count and losses.sums.requires_grad:
                tap.count(losses.count)
                (losses.total * _LOSS_SCALE).backward()  # type: ignore[no-untyped-call]


@contextmanager
def _training(module: nn.Module, names: Collection[str]) -> Iterator[dict[str, nn.Parameter]]:
    """These parameters and no others require a gradient inside, and have none yet; all are as before afterwards."""
    wanted, parameters = set(names), dict(module.named_parameters())
    before = {name: (parameter.requires_grad, parameter.grad) for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        if parameter.requires_grad != (name in wanted):
            parameter.requires_grad_(name in wanted)
        if name in wanted:
            parameter.grad = None
    try:
        yield {name: parameter for name, parameter in parameters.items() if name in wanted}
    finally:
        for name, parameter in parameters.items():
            required, gradient = before[name]
            if parameter.requires_grad != required:
                parameter.requires_grad_(required)
            if name in wanted:
                parameter.grad = gradient


class _Tap:
    """Adds up gradients along directions while losses are differentiated.

    Args:
        loaded: The model.
        vectors: Full module name -> directions as rows (P, D).
        norms: Whether the squared norms of whole gradients are added up as well.
    """

    def __init__(self, loaded: LoadedModel, vectors: Mapping[str, Tensor], *, norms: bool = False) -> None:
        self._loaded, self._with_norms = loaded, norms
        device = loaded.device
        # Modules with the same input have the same object here, and share what was moved.
        moved = {id(found): found.to(device).T.contiguous() for found in vectors.values()}
        self._vectors_DP = {name: moved[id(found)] for name, found in vectors.items()}
        self._sums_EP: dict[str, Tensor] = {}
        self._norms: dict[str, Tensor] = {}
        self._rows: dict[int, Rows] = {}
        self._streams: dict[str, int] = {}
        # What nothing before it makes differentiable becomes so by adding this zero, which has no weight.
        self._spark = torch.zeros((), device=device, requires_grad=True)
        self._clip_labels: float = 0
        self.labels: float = 0
        self.clips = 0
        self._dropped = torch.zeros((), dtype=torch.int64, device=device)
        self.reached: dict[str, int] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on every module, inside."""
        with ExitStack() as stack:
            for name in self._vectors_DP:
                module = self._loaded.module.get_submodule(name)
                stack.callback(module.register_forward_hook(partial(self._look, name), with_kwargs=True).remove)
            yield

    def begin(self, streams: Sequence[Stream]) -> None:
        """Expect a clip."""
        self.reached.clear()
        self._streams = {name: stream_of(self._loaded, name, streams) for name in self._vectors_DP}
        self._rows = {index: Rows.every(streams[index], self._loaded.device) for index in set(self._streams.values())}

    def check(self) -> None:
        """Refuse a forward pass that did not reach every module."""
        check_reached(tuple(self._vectors_DP), self.reached)

    def count(self, labels: float) -> None:
        """Expect the gradient of a clip with so many labels, whole unless it has a weight."""
        self.clips, self._clip_labels, self.labels = self.clips + 1, labels, self.labels + labels

    def _look(self, name: str, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Any:
        self.reached[name] = 1
        rows = self._rows[self._streams[name]]
        given_ND = rows.of(name, channels_last(module, input_of(args, named).detach()))
        if not output.requires_grad:
            output = output + self._spark

        def add(gradient: Tensor) -> None:
            self._add(name, rows.of(name, channels_last(module, gradient)), given_ND)

        output.register_hook(add)  # type: ignore[no-untyped-call]
        return output

    @torch.no_grad()
    def _add(self, name: str, gradient_NE: Tensor, given_ND: Tensor) -> None:
        gradient_NE, given_ND = gradient_NE.float() / _LOSS_SCALE, given_ND.float()
        finite_N = torch.isfinite(gradient_NE).all(dim=1) & torch.isfinite(given_ND).all(dim=1)
        self._dropped += (~finite_N).sum()
        gradient_NE = torch.where(finite_N.unsqueeze(1), gradient_NE, 0.0)
        given_ND = torch.where(finite_N.unsqueeze(1), given_ND, 0.0)
        part_EP = gradient_NE.T @ (given_ND @ self._vectors_DP[name])
        self._sums_EP[name] = self._sums_EP[name] + part_EP if name in self._sums_EP else part_EP
        if self._with_norms:
            norm = _squared_norm(gradient_NE, given_ND) / self._clip_labels**2
            self._norms[name] = self._norms[name] + norm if name in self._norms else norm

    def means(self) -> dict[str, Tensor]:
        """Gradient of the mean over the labels along each direction (E, P); zeros where no loss depends on it."""
        return {
            name: self._sums_EP[name] / self.labels
            if name in self._sums_EP
            else torch.zeros(matrix_shape(self._loaded, name)[0], vectors_DP.shape[1], device=vectors_DP.device)
            for name, vectors_DP in self._vectors_DP.items()
        }

    def evidence(self, directions: Mapping[str, Directions]) -> GradientEvidence:
        """What the gradient of the mean over the labels says of these directions, whose vectors the tap had."""
        gains, norms = {}, {}
        for name, found in directions.items():
            variances_P = found.shares * found.trace + _DAMPING * found.trace / found.vectors.shape[1]
            energies_P = torch.zeros_like(variances_P)
            if name in self._sums_EP:  # a module that no loss depends on has no gradient
                energies_P = (self._sums_EP[name].double() / self.labels).square().sum(dim=0).cpu()
            gains[name] = torch.where(variances_P > 0, energies_P / variances_P, 0.0).numpy()
            norms[name] = float(self._norms.get(name, 0.0)) / self.clips
        return GradientEvidence(
            gains=gains, squared_norms=norms, clips=self.clips, labels=self.labels, dropped=int(self._dropped)
        )


def _squared_norm(gradient_NE: Tensor, given_ND: Tensor) -> Tensor:
    """Squared norm of the gradient of a weight, G = gᵀ x, by whichever of both ways is less work."""
    (rows, outputs), inputs = gradient_NE.shape, given_ND.shape[1]
    if rows * (outputs + inputs) < outputs * inputs:
        return ((gradient_NE @ gradient_NE.T) * (given_ND @ given_ND.T)).sum()
    return (gradient_NE.T @ given_ND).square().sum()
