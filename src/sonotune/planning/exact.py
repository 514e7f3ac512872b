"""Peak memory of a real training step, found by running it on tensors that have shapes and no numbers.

The step is the run's own: the task's loss, mixed precision, PEFT's adapters, activation checkpointing, clipping, fused
AdamW. Large tensors are fake; small tensors of lengths, labels and masks are real, because code looks into them. Every
storage is counted from the operation that makes it until nothing holds it any more.

What a kernel takes for itself while it runs is not seen, save for bitsandbytes' de-quantised weights, which are added
here. Nor are the process, the CUDA context and what an allocator loses between blocks.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sonotune.errors import ConfigError
from sonotune.features.batching import Batch
from sonotune.models.base import LoadedModel
from sonotune.models.precision import autocast
from sonotune.planning.layout import Layout
from sonotune.planning.memory import convolution_scratch

OUTSIDE = "outside"
"""What lies in no component: the batch, the loss, what the backward pass holds for a moment."""
_REAL_ELEMENTS = 4096  # a factory's floats up to here are real, so that code may look at them
_REAL_INTEGERS = 2**24  # and its labels and masks, which code does look at
_GRANULE = {"cuda": 512, "cpu": 64}  # bytes that the allocator rounds up to
_aten = torch.ops.aten


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The moment of a step when most bytes were live.

    Attributes:
        bytes: All of them.
        phase: `forward`, `backward` or `optimizer`.
        parts: (component, kind) -> bytes; kinds are `weights`, `gradients`, `optimizer` and `activations`.
        static_bytes: Weights, gradients left out, optimiser state: what is live between steps.
        saved: The parts at the end of the forward pass, when everything the backward pass needs is there.
    """

    bytes: int
    phase: str
    parts: Mapping[tuple[str, str], int]
    static_bytes: int
    saved: Mapping[tuple[str, str], int]


def measure_step(layout: Layout, batch: Batch) -> Peak:
    """Run a step on fake tensors and return its peak; the optimiser has its state already.

    The model of the layout is changed in place (its parameters become fake), so a layout can be measured once.

    Args:
        layout: What trains.
        batch: From `Layout.batch`.

    Raises:
        ConfigError: The layout is for a card, and this torch has no kernels for one.
    """
    if layout.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--exact runs a step with the kernels of the device it is for; --device is cuda, and torch finds only cpu "
            "here. Leave --exact out, take --device cpu, or run this where the card is."
        )
    if layout.settings.optimizer != "adamw":
        raise ConfigError(
            f"--exact knows the moments of plain AdamW, and training.optimizer is {layout.settings.optimizer}. Leave "
            "one of the two out."
        )
    loaded, device = layout.loaded, layout.device
    ledger = _Ledger(device)
    with FakeTensorMode(allow_non_fake_inputs=True), ledger, contextlib.ExitStack() as undo:
        _materialise(loaded, ledger, device)
        undo.callback(_watch_components(loaded, ledger))
        undo.callback(_watch_gradients(loaded, ledger))
        trainable = [parameter for parameter in loaded.module.parameters() if parameter.requires_grad]
        held = [parameter for name, parameter in loaded.module.named_parameters() if name in layout.held]
        optimizer = torch.optim.AdamW(held, fused=True)
        loaded.module.train()
        with ledger.labelled(OUTSIDE, "optimizer"):
            _first_step(optimizer, held)
        _relabel_moments(loaded, optimizer, ledger)
        ledger.settle()
        ledger.enter(OUTSIDE, "activations")
        batch = _fake_inputs(batch, device)
        ledger.begin()
        _step(layout, batch, optimizer, trainable, ledger)
        return ledger.result()


def _first_step(optimizer: torch.optim.Optimizer, trainable: Sequence[Tensor]) -> None:
    """Let the optimiser make its state, as it does at the end of a run's first step."""
    for parameter in trainable:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _relabel_moments(loaded: LoadedModel, optimizer: torch.optim.Optimizer, ledger: _Ledger) -> None:
    for name, parameter in loaded.module.named_parameters():
        for moment in optimizer.state.get(parameter, {}).values():
            ledger.relabel(moment, loaded.owner(loaded.names.base_name(name)) or OUTSIDE, "optimizer")


def _step(
    layout: Layout, batch: Batch, optimizer: torch.optim.Optimizer, trainable: Sequence[Tensor], ledger: _Ledger
) -> None:
    """What `training.loop` does in one step of one micro-batch."""
    settings = layout.settings
    ledger.phase = "forward"
    with autocast(settings.precision, torch.device(batch.inputs.device)):
        losses = layout.task.loss(layout.loaded, batch, label_smoothing=settings.label_smoothing)
        loss = losses.total / losses.count
    del losses
    ledger.turn("backward")
    loss.backward()  # type: ignore[no-untyped-call]
    ledger.phase = "optimizer"
    nn.utils.clip_grad_norm_(trainable, 1.0)
    with ledger.labelled(OUTSIDE, "optimizer"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _fake_inputs(batch: Batch, device: str) -> Batch:
    return replace(batch, inputs=torch.empty(batch.inputs.shape, device=device, dtype=batch.inputs.dtype))


def _materialise(loaded: LoadedModel, ledger: _Ledger, device: str) -> None:
    """Give every parameter, buffer and quantisation state of the meta device a fake tensor on a device."""
    made: dict[int, Any] = {}

    def fake(value: Tensor) -> Tensor:
        return torch.empty(value.shape, dtype=value.dtype, device=device)

    for path, module in loaded.module.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            owner = loaded.owner(loaded.names.base_name(f"{path}.{name}" if path else name)) or OUTSIDE
            with ledger.labelled(owner, "weights"):
                if id(parameter) not in made:
                    new = nn.Parameter(fake(parameter.data), requires_grad=parameter.requires_grad)
                    for key, value in parameter.__dict__.items():
                        setattr(new, key, value)
                    made[id(parameter)] = new
                    if name == "weight":
                        _materialise_state(module, new, fake)
                module._parameters[name] = made[id(parameter)]
        with ledger.labelled(loaded.owner(loaded.names.unwrapped(path) + ".x") or OUTSIDE, "weights"):
            for name, buffer in list(module._buffers.items()):
                if buffer is not None and buffer.device.type == "meta":
                    module._buffers[name] = fake(buffer)


def _materialise_state(module: Any, weight: Any, fake: Callable[[Tensor], Tensor]) -> None:
    if (state := getattr(weight, "quant_state", None)) is not None:
        state.absmax, state.code = fake(state.absmax), fake(state.code)
        if state.nested:
            state.offset = fake(state.offset)
            state.state2.absmax, state.state2.code = fake(state.state2.absmax), fake(state.state2.code)
    elif getattr(weight, "SCB", None) is not None:
        weight.SCB = fake(weight.SCB)
        module.state.CB, module.state.SCB = weight.data, weight.SCB


def _watch_components(loaded: LoadedModel, ledger: _Ledger) -> Callable[[], None]:
    """Name what is allocated inside a component's modules after it; hooks run in re-computation as well."""
    handles, owners = [], dict[str, str | None]()
    for path, module in loaded.module.named_modules():
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            owners[path] = owners.get(path.rpartition(".")[0])  # a list is never called
            continue
        own = loaded.owner(loaded.names.unwrapped(path) + ".x") if path else None
        owners[path] = own
        if own is not None and own != owners.get(path.rpartition(".")[0]):
            handles.append(module.register_forward_pre_hook(lambda *_, name=own: ledger.enter(name, "activations")))
            handles.append(module.register_forward_hook(lambda *_: ledger.leave(), always_call=True))
    return lambda: _remove(handles)


def _watch_gradients(loaded: LoadedModel, ledger: _Ledger) -> Callable[[], None]:
    """What a parameter's gradient takes becomes a gradient once it is complete."""
    owners: dict[Tensor, str] = {
        parameter: loaded.owner(loaded.names.base_name(name)) or OUTSIDE
        for name, parameter in loaded.module.named_parameters()
    }

    def complete(parameter: Tensor) -> None:
        ledger.relabel(parameter.grad, owners[parameter], "gradients")

    trainable = [parameter for parameter in owners if parameter.requires_grad]
    handles: list[Any] = []
    for parameter in trainable:
        watched: Any = parameter
        handles.append(watched.register_post_accumulate_grad_hook(complete))
    return lambda: _remove(handles)


def _remove(handles: Sequence[Any]) -> None:
    for handle in handles:
        handle.remove()


@dataclass(slots=True)
class _Entry:
    bytes: int
    label: tuple[str, str]


@dataclass(slots=True)
class _Highest:
    bytes: int = 0
    phase: str = ""
    parts: dict[tuple[str, str], int] = field(default_factory=dict)


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts live storages by label, and keeps small tensors real.

    Args:
        device: `cpu` or `cuda`, whose kernels are chosen.
    """

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self.phase = "layout"
        self._granule = _GRANULE[device]
        self._live: dict[int, _Entry] = {}
        self._sums: Counter[tuple[str, str]] = Counter()
        self._total = 0
        self._static = 0
        self._saved: dict[tuple[str, str], int] = {}
        self._labels: list[tuple[str, str]] = [(OUTSIDE, "weights")]
        self._highest = _Highest()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fake = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if not fake and self._may_be_real(func, tensors, args, kwargs):
            with unset_fake_temporarily():
                out = func(*args, **kwargs)
        elif (substitute := _SUBSTITUTES.get(func)) is not None:
            out = substitute(*args, **kwargs)
        else:
            if func in _INDEXED:
                args = (args[0], _as_places(args[1]), *args[2:])
            if self._device != "cpu":
                args, kwargs = tree_map_only(Tensor, self._moved, (args, kwargs))
            out = func(*args, **kwargs)
        tree_map_only(Tensor, self._add, out)
        if func is _gemm_4bit():
            self._pass_through(_scratch_of_4_bits(*args))
        elif func in _CONVOLUTIONS and self._device == "cpu":
            self._pass_through(_scratch_of_convolution(func, args, out))
        return out

    def _may_be_real(self, func: Any, tensors: Sequence[Tensor], args: Any, kwargs: Any) -> bool:
        """Whether an operation on real tensors only, or on none, should give real values."""
        if torch.device(kwargs.get("device") or "cpu").type != "cpu":
            return False
        if tensors:
            return all(tensor.device.type != "meta" for tensor in tensors)
        if func.overloadpacket in _RANGES:
            return True
        if self.phase == "layout":
            return False
        sizes = args[0] if args and isinstance(args[0], list | tuple | torch.Size) else ()
        dtype = kwargs.get("dtype")
        counts = dtype is not None and not dtype.is_floating_point and not dtype.is_complex  # labels and masks
        return math.prod(sizes) <= (_REAL_INTEGERS if counts else _REAL_ELEMENTS)

    def _moved(self, tensor: Tensor) -> Tensor:
        """A real tensor as a fake one on the device, where in a run it would have been from the beginning."""
        if isinstance(tensor, FakeTensor) or tensor.ndim == 0:
            return tensor
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        size = -(-storage.nbytes() // self._granule) * self._granule
        label = self._labels[-1]
        self._live[key] = _Entry(size, label)
        self._sums[label] += size
        self._total += size
        weakref.finalize(storage, self._free, key)
        self._note(self._total)

    def _free(self, key: int) -> None:
        entry = self._live.pop(key, None)
        if entry is not None:
            self._total -= entry.bytes
            self._sums[entry.label] -= entry.bytes

    def _pass_through(self, scratch: int) -> None:
        """Bytes that were live inside one operation only."""
        label = self._labels[-1]
        self._sums[label] += scratch
        self._note(self._total + scratch)
        self._sums[label] -= scratch

    def _note(self, total: int) -> None:
        if total > self._highest.bytes:
            self._highest = _Highest(total, self.phase, dict(self._sums))

    def relabel(self, tensor: Tensor | None, owner: str, kind: str) -> None:
        """Move what a tensor takes to another label."""
        entry = None if tensor is None else self._live.get(tensor.untyped_storage()._cdata)
        if entry is not None:
            self._sums[entry.label] -= entry.bytes
            entry.label = (owner, kind)
            self._sums[entry.label] += entry.bytes

    def enter(self, owner: str, kind: str) -> None:
        """Label what comes from here on."""
        self._labels.append((owner, kind))

    def leave(self) -> None:
        """Go back to the label before."""
        self._labels.pop()

    @contextlib.contextmanager
    def labelled(self, owner: str, kind: str) -> Iterator[None]:
        """Label what comes inside the block."""
        self.enter(owner, kind)
        try:
            yield
        finally:
            self.leave()

    def settle(self) -> None:
        """Take what is live now for what is held between steps."""
        self._static = self._total

    def begin(self) -> None:
        """Start looking for a peak from what is live now."""
        del self._labels[2:]
        self._highest = _Highest()
        self._note(self._total)

    def turn(self, phase: str) -> None:
        """Note what the forward pass has left, and go on."""
        self.phase, self._saved = phase, {label: size for label, size in self._sums.items() if size}

    def result(self) -> Peak:
        """The highest moment since `begin`."""
        found = self._highest
        parts = {label: size for label, size in found.parts.items() if size}
        return Peak(bytes=found.bytes, phase=found.phase, parts=parts, static_bytes=self._static, saved=self._saved)


_INDEXED = frozenset({_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default})
_RANGES = frozenset({_aten.arange, _aten.linspace, _aten.scalar_tensor, _aten.randperm})


def _as_places(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Real masks as the places they mark: how many there are decides the shape of the result."""
    places: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            with unset_fake_temporarily():
                places += index.nonzero().unbind(1)
        else:
            places.append(index)
    return places


def _ctc(scores_TBV: Tensor, targets: Tensor, input_lengths: Any, target_lengths: Any, *_: Any) -> Any:
    """CTC has no fake kernel; it keeps the logarithms of its alignments (B, T, 2 U + 1)."""
    frames, clips, _outputs = scores_TBV.shape
    states = 2 * (targets.shape[1] if targets.ndim == 2 else int(max(target_lengths))) + 1
    return scores_TBV.new_empty(clips), scores_TBV.new_empty(clips, frames, states)


def _ctc_gradient(gradient: Tensor, scores_TBV: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(scores_TBV)


_SUBSTITUTES: dict[Any, Callable[..., Any]] = {
    _aten._ctc_loss.default: _ctc,
    _aten._ctc_loss.Tensor: _ctc,
    _aten._ctc_loss_backward.default: _ctc_gradient,
    _aten._ctc_loss_backward.Tensor: _ctc_gradient,
}


def _gemm_4bit() -> Any:
    """The product with a 4-bit weight, where bitsandbytes has been imported."""
    return getattr(getattr(torch.ops.bitsandbytes, "gemm_4bit", None), "default", None)


_CONVOLUTIONS = (_aten.convolution.default, _aten.convolution_backward.default)


def _scratch_of_convolution(func: Any, args: Any, out: Any) -> int:
    """Inputs and outputs in the layout of a processor's kernels, beside those that the tensors are in."""
    if func is _aten.convolution.default:
        return convolution_scratch(args[0].nbytes, out.nbytes, groups=args[8])
    return convolution_scratch(args[1].nbytes, args[0].nbytes, groups=args[9], backward=True)


def _scratch_of_4_bits(inputs: Tensor, codes: Tensor, shape: Sequence[int], *_: Any) -> int:
    """The weight de-quantised for one product, and its scales twice.

    Source: bitsandbytes 0.50.2, backends/default/ops.py; the fused kernels of a GPU take less.
    """
    weights = math.prod(shape)
    return weights * inputs.element_size() + 2 * 4 * weights // 64
