"""Sampling what goes into every adaptable linear while the loss of training clips is computed.

Clips are run one by one. Floating-point sums in a matrix product depend on its shape, so this, and a sample drawn by
hashes (`adapters.statistics`), is what makes the result bit-identical for any order of the clips and any sharding.
The model is left as it was, also when something fails: its training flags are put back and its hooks removed.

Shape letters: N rows, D inputs of a linear.
"""

from __future__ import annotations

import copy
import re
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sonotune.adapters.calibration.token_sample import Reservoir, batch_keys
from sonotune.errors import AdapterError, ModelError
from sonotune.features.batching import Batch, ClipBatches, batch_loader
from sonotune.models.base import AUDIO, PADDING, TEXT, LoadedModel, Stream
from sonotune.models.losses import Losses
from sonotune.models.modes import undisturbed
from sonotune.progress import phase
from sonotune.types import Clip, Finding

Autocast = Callable[[], AbstractContextManager[Any]]
KINDS = {AUDIO: "audio", TEXT: "text"}

MAX_FP32_BYTES = 2**30
"""Samples of activations that would be larger in 32 bits are kept in 16."""
_ADVICE = "Leave it out of adapter.targets, or take adapter.allocator=uniform, which needs no calibration."


class _Prepared(Protocol):
    @property
    def clips(self) -> tuple[Clip, ...]: ...
    @property
    def targets(self) -> tuple[NDArray[np.int64], ...]: ...
    @property
    def findings(self) -> tuple[Finding, ...]: ...


class _Task(Protocol):
    def prepare(self, loaded: LoadedModel, clips: Sequence[Clip]) -> _Prepared:
        """Encode targets; what cannot be encoded becomes a finding."""
        ...


class Objective(Protocol):
    """What calibration needs of an objective (`training.objectives`)."""

    @property
    def task(self) -> _Task:
        """What is learned."""
        ...

    def losses(self, loaded: LoadedModel, batch: Batch) -> Losses:
        """Summed loss and number of labels of each clip."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DistinctInput:
    """One tensor that goes into some modules.

    Attributes:
        modules: Full names, in the order in which they are called. Rows are read from the first.
        stream: Index of the stream its rows belong to.
        channels: D.
    """

    modules: tuple[str, ...]
    stream: int
    channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSample:
    """The tokens that were kept.

    Attributes:
        inputs: Every distinct input.
        reservoirs: (stream, kind) -> tokens of that kind, with their rows by the first module of each input.
        clips: Ids of the clips that were read, in alphabetical order.
        findings: Why others were not.
        seconds: Wall time.
    """

    inputs: tuple[DistinctInput, ...]
    reservoirs: Mapping[tuple[int, int], Reservoir]
    clips: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the rows kept."""
        return sum(reservoir.nbytes for reservoir in self.reservoirs.values())

    def parts(self, item: DistinctInput) -> dict[str, Reservoir]:
        """The reservoirs of an input by the name of their kind."""
        return {KINDS[kind]: part for (stream, kind), part in self.reservoirs.items() if stream == item.stream}

    def merge(self, other: TokenSample) -> TokenSample:
        """The sample of both sets of clips, as if they had been read together.

        Raises:
            AdapterError: They are of different models.
            ValueError: They were taken with different settings.
        """
        if self.inputs != other.inputs:
            raise AdapterError(
                f"samples of {len(self.inputs)} and {len(other.inputs)} inputs cannot be merged: only those of the "
                "same modules of one model can. Take both with the same adapter.targets."
            )
        merged = dict(self.reservoirs)
        for key, part in other.reservoirs.items():
            merged[key] = merged[key].merge(part) if key in merged else part
        return TokenSample(
            inputs=self.inputs,
            reservoirs=dict(sorted(merged.items())),
            clips=tuple(sorted(self.clips + other.clips)),
            findings=self.findings + other.findings,
            seconds=self.seconds + other.seconds,
        )


def sample_activations(
    loaded: LoadedModel,
    objective: Objective,
    clips: Sequence[Clip],
    *,
    tokens: int = 1024,
    seed: int = 0,
    autocast: Autocast = nullcontext,
    names: Sequence[str] | None = None,
) -> TokenSample:
    """Run clips through a model and sample what goes into its linears.

    Samples of parts of the clips can be merged. The first clip is run twice: once to find which modules take the same
    tensor. Rows are kept in fp32, or in bf16 where fp32 would take more than 1 GiB.

    Args:
        loaded: The model as adapters will find it, quantised if it is to be.
        objective: Gives targets and the loss.
        clips: What to read.
        tokens: Rows kept of each input, of each kind.
        seed: Of the sample.
        autocast: Makes the precision context of each forward pass.
        names: Modules; None takes every adaptable one.

    Raises:
        AdapterError: No clip can be used, or a module is never reached.
        ModelError: The family does not know the rows of a module.
    """
    findings: list[Finding] = []
    batches = single_clips(loaded, objective, clips, findings)
    sample = collect_activations(loaded, objective, batches, tokens=tokens, seed=seed, autocast=autocast, names=names)
    if sample is None:
        reasons = "; ".join(finding.message for finding in findings[:3]) or "there are none."
        raise AdapterError(f"calibration could use none of {len(clips)} clips: {reasons} Give it clips of data.train.")
    return replace(sample, findings=tuple(findings))


def collect_activations(
    loaded: LoadedModel,
    objective: Objective,
    batches: Iterable[Batch],
    *,
    tokens: int = 1024,
    seed: int = 0,
    autocast: Autocast = nullcontext,
    names: Sequence[str] | None = None,
) -> TokenSample | None:
    """Sample what goes into the linears while batches of one clip each are computed; None without a batch.

    See `gather` for the arguments and errors.
    """
    started_s = time.monotonic()
    wanted = tuple(loaded.linears if names is None else names)
    done: list[str] = []
    collector: _Collector | None = None
    with undisturbed(loaded.module), torch.no_grad(), ExitStack() as hooks:
        for batch in batches:
            streams = streams_of(loaded, batch)
            run = partial(_forward, loaded, objective, batch, autocast)
            if collector is None:
                inputs = _distinct_inputs(loaded, wanted, streams, run)
                collector = _Collector(loaded, inputs, streams, size=tokens, seed=seed)
                hooks.enter_context(_hooked(loaded, collector.names, collector.look))
            collector.read(batch, streams, run)
            done.append(batch.clips[0].id)
    if collector is None:
        return None
    return TokenSample(
        inputs=collector.inputs,
        reservoirs=dict(sorted(collector.reservoirs.items())),
        clips=tuple(sorted(done)),
        seconds=time.monotonic() - started_s,
    )


def _forward(loaded: LoadedModel, objective: Objective, batch: Batch, autocast: Autocast) -> None:
    with autocast():
        objective.losses(loaded, batch)


def single_clips(
    loaded: LoadedModel, objective: Objective, clips: Sequence[Clip], findings: list[Finding]
) -> Iterator[Batch]:
    """Every usable clip as a batch of its own on the model's device; `findings` grows."""
    # Preparing may set weights of classes in the task, and those are to be of the training clips.
    prepared = copy.copy(objective.task).prepare(loaded, clips)
    findings += [finding for finding in prepared.findings if finding.severity == "error"]
    dataset = ClipBatches(
        prepared.clips,
        prepared.targets,
        loaded.frontend,
        batches=[(index,) for index in range(len(prepared.clips))],
        seed=0,
        epoch=0,
        context=loaded.context,
    )
    with phase("calibrating", len(prepared.clips), "clips") as advance:
        for done, batch in enumerate(batch_loader(dataset), 1):
            findings += batch.findings
            if batch.clips:
                yield batch.to(loaded.device)
            advance(done)


def streams_of(loaded: LoadedModel, batch: Batch) -> tuple[Stream, ...]:
    """Rows of a batch of one clip.

    Raises:
        ValueError: It has another number of clips.
    """
    if len(batch.clips) != 1:
        raise ValueError(f"calibration takes batches of one clip, got one of {len(batch.clips)}.")
    return loaded.family.streams(loaded, batch)


def stream_of(loaded: LoadedModel, name: str, streams: Sequence[Stream]) -> int:
    """Index of the stream that a module takes.

    Raises:
        ModelError: There is none.
    """
    for index, stream in enumerate(streams):
        if re.search(stream.modules, name):
            return index
    raise ModelError(f"the family {loaded.family.name} does not say which rows {name} takes. {_ADVICE}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Some rows of a clip, in both layouts that a module may take them in.

    Attributes:
        total: Rows of the clip with padding.
        padded: Indices of the wanted ones among them (N,) int64.
        valid: Rows of the clip without padding.
        packed: Indices of the wanted ones among those (N,) int64.
    """

    total: int
    padded: Tensor
    valid: int
    packed: Tensor

    @classmethod
    def every(cls, stream: Stream, device: torch.device) -> Rows:
        """All valid rows of a stream."""
        places = (stream.kinds.flatten() != PADDING).nonzero()[:, 0].to(device)
        packed = torch.arange(len(places), device=device)
        return cls(total=stream.kinds.numel(), padded=places, valid=len(places), packed=packed)

    def of(self, name: str, values: Tensor) -> Tensor:
        """The wanted rows of (..., D), without copying the others (N, D).

        Raises:
            AdapterError: The tensor has another number of rows.
        """
        count = values.numel() // max(1, values.shape[-1])
        if count not in (self.total, self.valid):
            raise AdapterError(
                f"{name} takes {count} rows; {self.total} with padding or {self.valid} without were expected. {_ADVICE}"
            )
        indices_N = self.padded if count == self.total else self.packed
        if values.is_contiguous():
            return values.view(-1, values.shape[-1]).index_select(0, indices_N)
        chosen: Tensor = values[torch.unravel_index(indices_N, values.shape[:-1])]
        return chosen


def channels_last(module: nn.Module, values: Tensor) -> Tensor:
    """What goes into or out of a linear, or of a pointwise convolution, with the channels last."""
    bare = getattr(module, "base_layer", module)  # what PEFT wraps
    return values.movedim(1, -1) if isinstance(bare, nn.Conv1d | nn.Conv2d) else values


def input_of(args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """The tensor that a linear was called with."""
    given: Tensor = args[0] if args else named["input"]
    return given


def check_reached(names: Sequence[str], reached: Mapping[str, int]) -> None:
    """Raise AdapterError where modules are not among those that were reached."""
    if missing := [name for name in names if name not in reached]:
        raise AdapterError(
            f"{len(missing)} of {len(names)} modules are never reached when the loss is computed: "
            f"{', '.join(missing[:8])}. Leave them out of adapter.targets: an adapter there would learn nothing."
        )


_Look = Callable[[str, nn.Module, Tensor], None]


@contextmanager
def _hooked(loaded: LoadedModel, names: Sequence[str], look: _Look) -> Iterator[None]:
    """Show what goes into some modules, inside."""

    def hook(name: str, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        look(name, module, input_of(args, named))

    with ExitStack() as stack:
        for name in names:
            module = loaded.module.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(partial(hook, name), with_kwargs=True).remove)
        yield


def _distinct_inputs(
    loaded: LoadedModel, names: Sequence[str], streams: Sequence[Stream], run: Callable[[], None]
) -> tuple[DistinctInput, ...]:
    """Find, in one forward pass, which modules take the same tensor.

    The same means the same living object, unchanged since: neither the address of its memory nor its `id` says so,
    because both are used again once it is gone.
    """
    found: list[tuple[list[str], int, int]] = []
    living: dict[tuple[int, int, bool], tuple[weakref.ref[Tensor], int, int]] = {}
    calls: dict[str, int] = {}

    def look(name: str, module: nn.Module, given: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        stream = stream_of(loaded, name, streams)
        key = (id(given), stream, isinstance(module, nn.Linear))
        version = 0 if given.is_inference() else given._version
        if key in living:
            reference, known_version, index = living[key]
            if reference() is given and version == known_version:
                found[index][0].append(name)
                return
        living[key] = (weakref.ref(given), version, len(found))
        found.append(([name], stream, channels_last(module, given).shape[-1]))

    with _hooked(loaded, names, look):
        run()
    check_reached(names, calls)
    if repeated := [name for name, count in calls.items() if count > 1]:
        raise AdapterError(
            f"{repeated[0]} is called {calls[repeated[0]]} times for one clip, and the rows of one call are known. "
            f"{_ADVICE}"
        )
    return tuple(
        DistinctInput(modules=tuple(modules), stream=stream, channels=channels) for modules, stream, channels in found
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """Rows of the current clip that a reservoir takes."""

    reservoir: Reservoir
    rows: Rows
    slots: Tensor


class _Collector:
    """Fills reservoirs, clip by clip.

    Args:
        loaded: The model.
        inputs: Its distinct inputs.
        streams: Of any clip.
        size: Tokens of a reservoir.
        seed: Of the sample.
    """

    def __init__(
        self, loaded: LoadedModel, inputs: tuple[DistinctInput, ...], streams: Sequence[Stream], *, size: int, seed: int
    ) -> None:
        self.inputs = inputs
        self.names = tuple(item.modules[0] for item in inputs)
        self.reservoirs: dict[tuple[int, int], Reservoir] = {}
        self._loaded, self._size, self._seed = loaded, size, seed
        kinds = [len({*stream.kinds.flatten().tolist()} - {PADDING}) for stream in streams]
        fp32_bytes = sum(4 * size * item.channels * kinds[item.stream] for item in inputs)
        # bf16, not fp16: massive channels can be larger than the latter holds.
        self._streams = {item.modules[0]: item.stream for item in inputs}
        self._wanted: dict[int, list[_Wanted]] = {}
        self._reached: dict[str, int] = {}
        self._dtype = torch.float32 if fp32_bytes <= MAX_FP32_BYTES else torch.bfloat16

    def read(self, batch: Batch, streams: Sequence[Stream], run: Callable[[], None]) -> None:
        """Take in what belongs to the sample of one clip's tokens."""
        self._reached.clear()
        self._wanted = {
            index: self._admitted(batch, index, streams[index]) for index in sorted(set(self._streams.values()))
        }
        run()
        check_reached(self.names, self._reached)

    def look(self, name: str, module: nn.Module, given: Tensor) -> None:
        """Keep what is wanted of the input of a module."""
        self._reached[name] = 1
        rows_last = channels_last(module, given)
        for part in self._wanted[self._streams[name]]:
            part.reservoir.put(name, part.rows.of(name, rows_last), part.slots)

    def _admitted(self, batch: Batch, index: int, stream: Stream) -> list[_Wanted]:
        kinds_P = stream.kinds.flatten().cpu().numpy()
        keys_N, places_N = batch_keys(self._seed, [batch.clips[0].id], kinds_P[None])
        kinds_N = kinds_P[places_N]
        found = []
        for kind in np.flatnonzero(np.bincount(kinds_N)).tolist():
            of_kind = np.flatnonzero(kinds_N == kind)
            reservoir = self.reservoirs.setdefault((index, kind), Reservoir(self._size, dtype=self._dtype))
            admitted = reservoir.admit(keys_N[of_kind])
            chosen = of_kind[admitted.tokens]
            rows = Rows(
                total=kinds_P.size,
                padded=self._moved(places_N[chosen]),
                valid=places_N.size,
                packed=self._moved(chosen),
            )
            found.append(_Wanted(reservoir=reservoir, rows=rows, slots=torch.from_numpy(admitted.slots)))
        return found

    def _moved(self, indices: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(indices).to(self._loaded.device)
