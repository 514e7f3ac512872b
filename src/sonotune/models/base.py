"""What every model is to the rest of the package: a module, a frontend and a map of its components.

A component is `stem` (convolutions or patch embedding, and positions), `encoder`, `projector`, `decoder`,
`embeddings` or `head`. Every parameter belongs to exactly one. Selectors name components or parts of them:
`stem`, `encoder`, `encoder.norms`, `encoder.layers[-8:]`, `decoder.cross_attention`. A selector that matches nothing is
an error, because a frozen model that was meant to train is the most expensive silence there is.

Shape letters: B clips, T frames, F feature bins, U target tokens, D model width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sonotune.errors import ModelError
from sonotune.features.batching import Batch
from sonotune.features.frontend import Frontend
from sonotune.models.frame_merging.settings import NO_MERGING, FrameMerging, MergePart
from sonotune.models.losses import Outputs
from sonotune.models.thinning import DEFAULT_THINNING, Thinning
from sonotune.types import DEFAULT_DECODING, Context, DecodingSettings, Hypothesis

MULTI_LABEL = "multi_label_classification"
"""What `problem_type` in the configuration of a classifier says of clips with several classes."""

ComponentName = Literal["stem", "encoder", "projector", "decoder", "embeddings", "head"]

_LAYERS = re.compile(r"^layers\[(?P<index>-?\d+)?(?P<slice>:)?(?P<stop>-?\d+)?\]$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A part of a model that is frozen, trained and given a budget together.

    Attributes:
        name: What it is.
        prefixes: Module or parameter name prefixes that make it up, full names in the bare model.
        layers: Prefixes of its numbered layers, first to last; empty where it has none.
        parts: Named parts a selector may ask for: part -> regular expression over full parameter names.
    """

    name: ComponentName
    prefixes: tuple[str, ...]
    layers: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)

    def owns(self, parameter: str) -> bool:
        """Whether a full parameter name lies in this component."""
        return any(parameter == prefix or parameter.startswith(prefix + ".") for prefix in self.prefixes)


class ParameterNames(Protocol):
    """Which parameters of a module belong to its adapters, and what each is called in the plain model."""

    name: str
    """Of the kind of adapter; `none` without."""

    def owns(self, name: str) -> bool:
        """Whether a parameter or module was added by adapters."""
        ...

    def is_copy(self, parameter: str) -> bool:
        """Whether a parameter is a copy of a base parameter that trains in its place."""
        ...

    def unwrapped(self, name: str) -> str:
        """Full name in the plain model of a parameter or module, whatever was wrapped around it."""
        ...

    def base_name(self, parameter: str) -> str:
        """The base parameter that a parameter belongs to: one of an adapter belongs to the weight it adapts."""
        ...

    def modules(self, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Modules by their full names in the plain model: a wrapper by the name of what it wraps, no adapters."""
        ...


class PlainNames:
    """Names in a model without adapters."""

    name = "none"

    def owns(self, name: str) -> bool:
        """See `ParameterNames`."""
        return False

    def is_copy(self, parameter: str) -> bool:
        """See `ParameterNames`."""
        return False

    def unwrapped(self, name: str) -> str:
        """See `ParameterNames`."""
        return name

    def base_name(self, parameter: str) -> str:
        """See `ParameterNames`."""
        return parameter

    def modules(self, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """See `ParameterNames`."""
        yield from module.named_modules()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A pretrained module and the map a trainer needs to adapt it.

    Attributes:
        module: The bare `transformers` module; adapters are injected into it in place.
        frontend: Waveforms -> features.
        components: Every parameter belongs to exactly one.
        linears: Full names of the linear modules that can carry an adapter, in model order.
        family: Its architecture, which encodes text and computes logits and losses.
        checkpoint: What the user named.
        revision: Commit of a hub checkpoint, or a digest of the local files.
        processor: The `transformers` processor, saved beside every export.
        tied: Groups of parameter names that share storage, such as embeddings and head.
        constant: Full names of parameters that the architecture never trains, such as sinusoidal position tables.
        context: How much of the model's window is computed, where it has one (`types.Context`).
        trained_contexts: Contexts that the weights were trained for, or compute the same function in; empty where the
            model has no window.
        thinning: How the thinned context leaves positions out.
        merging: Which neighbouring positions are merged into one (`models.frame_merging`).
        full_after_thinned: Whether weights that were trained over the thinned window may be used over the whole one.
        quantized: Full module name -> bits, for modules whose weights were quantised.
        adapter: What the kind of adapter holds on to once adapters are attached (LoRA: PEFT's wrapper), else None.
        names: Tells parameters of adapters from those of the base; the adapter kind, where there are adapters.
        stem_modules: Modules of the stem that train as a whole; empty takes its convolutions one by one.
        rename: What a module's name in an older release of the model is now, for selectors; others are unchanged.
        labels: Classes in the order of the outputs; empty for a speech model.
        new_outputs: Symbols or classes of an output layer made for the training data, in order; empty where the
            checkpoint's own is used. They are kept with an adapter, whose base has no such layer.
        untrained: Selectors of parts that are as random as they were made, such as the projector of a composed model;
            each must train in full, or the model never hears.
        tokens_per_second: Rate of the transcripts that it was trained on (`PreparedClips.tokens_per_second`), below
            which no text that it writes is limited; 0 where that is not known.
    """

    module: Any
    frontend: Frontend
    components: tuple[Component, ...]
    linears: tuple[str, ...]
    family: ModelFamily
    checkpoint: str
    revision: str
    processor: Any
    tied: tuple[tuple[str, ...], ...] = ()
    constant: frozenset[str] = frozenset()
    context: Context = "full"
    trained_contexts: tuple[Context, ...] = ()
    thinning: Thinning = DEFAULT_THINNING
    merging: FrameMerging = NO_MERGING
    full_after_thinned: bool = False
    quantized: Mapping[str, int] = field(default_factory=dict)
    adapter: Any | None = None
    names: ParameterNames = field(default_factory=PlainNames)
    stem_modules: tuple[str, ...] = ()
    rename: Callable[[str], str] = str
    labels: tuple[str, ...] = ()
    new_outputs: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()
    tokens_per_second: float = 0.0

    def component(self, name: str) -> Component:
        """The component of that name.

        Raises:
            ModelError: This model has no such component.
        """
        for component in self.components:
            if component.name == name:
                return component
        known = ", ".join(component.name for component in self.components)
        raise ModelError(f"{self.family.name} has no component {name!r}; it has {known}.")

    @property
    def new_parts(self) -> tuple[str, ...]:
        """Selectors of what has random weights: an output layer made for the data, and `untrained`."""
        return (*(("head",) if self.new_outputs else ()), *self.untrained)

    def owner(self, module: str) -> str | None:
        """Name of the component that a module lies in; None for one that spans several."""
        return next((component.name for component in self.components if component.owns(module)), None)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        device: torch.device = next(iter(self.module.parameters())).device
        return device

    def computed_s(self, duration_s: float, context: Context | None = None) -> float:
        """Seconds that are computed for a clip of so many: with what its context keeps of the window behind it.

        Args:
            duration_s: Of the clip.
            context: How much of the window is computed; None takes the model's.
        """
        context, window_s = context or self.context, self.frontend.max_duration_s
        if not self.trained_contexts or window_s is None or context == "cut":
            return duration_s
        return window_s if context == "full" else self.thinning.computed_s(duration_s, window_s)

    def with_(self, **changes: Any) -> LoadedModel:
        """A copy with some fields replaced; the module itself is shared."""
        return replace(self, **changes)


NEW: Final = "new"
"""Selector of the parts of a model whose weights are random."""

PADDING, AUDIO, TEXT = 0, 1, 2
"""What a row of a module's input is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Rows that some modules compute on in the forward pass of a batch, and what each of them is.

    Attributes:
        modules: Regular expression; a module whose full name it matches takes these rows. Of several streams, the
            first that matches counts.
        kinds: `PADDING`, `AUDIO` or `TEXT` for every row (B, P) int8. A module may take them packed: the rows that
            are not padding, clip by clip (N, D) instead of (B, P, D). Rows need not be laid out (B, P) where a module
            computes windows or tables of its own; they are then those of the clips one after the other, or ones that
            all clips take.
    """

    modules: str
    kinds: Tensor


class ModelFamily(Protocol):
    """One kind of architecture: how it is recognised, loaded and mapped to components."""

    name: str
    task: str
    """Registry name of the task it does."""
    packaged: str
    """Preset of the packaged model of its kind."""
    published_names: str
    """Regular expression over lower-case names of published models of its kind; empty where they have none."""
    label_overhead: int
    """Tokens that the architecture puts around a transcript, of which there is one label each."""

    def handles(self, config: Any) -> bool:
        """Whether a `transformers` configuration is of this family."""
        ...

    def load(
        self,
        checkpoint: str,
        *,
        revision: str | None = None,
        context: Context | None = None,
        random_weights: bool = False,
        dropout: float | None = None,
        outputs: Sequence[str] = (),
        renew_outputs: bool = False,
        tokenizer: str | None = None,
    ) -> LoadedModel:
        """Load a folder or hub checkpoint in fp32 on the CPU.

        Args:
            checkpoint: Packaged, local or hub name.
            revision: Hub commit, tag or branch.
            context: How much of the model's window is computed; None takes what pretrained weights of this kind are
                at home in.
            random_weights: Build from the configuration alone.
            dropout: Overrides the checkpoint's dropout on hidden states.
            outputs: Symbols (CTC) or classes that the data needs. A new output layer is made for exactly these where
                the checkpoint has none; families that write with the checkpoint's own tokens take no notice.
            renew_outputs: Make it in any case; families without such a layer refuse (`models.outputs`).
            tokenizer: Folder of a tokenizer whose tokens are to be the symbols; all families but CTC refuse one.

        Raises:
            ConfigError: A new output layer or a tokenizer is asked of a family that takes none, or a context that the
                architecture has not.
            ModelError: Missing, unreachable, unsafe, damaged or of another family; the message says what to do.
        """
        ...

    def outline(self, checkpoint: str, *, revision: str | None = None, outputs: int | None = None) -> LoadedModel:
        """The architecture on the meta device, without weights and without processor; raises ModelError.

        `outputs` is the size of a new output layer, for families that have one.
        """
        ...

    def streams(self, loaded: LoadedModel, batch: Batch) -> tuple[Stream, ...]:
        """What the rows are that each adaptable linear sees while the loss of this batch is computed.

        Together the streams match every name in `loaded.linears`. A position that holds nothing of the clip (padding
        of the batch, of a window, of a chunk) is `PADDING`; the prompt and the transcript are `TEXT`.
        """
        ...

    def merging_refusals(self, loaded: LoadedModel) -> Mapping[MergePart, str]:
        """Why positions cannot be merged: part of the model -> the reason, where they cannot."""
        ...

    def merge_layers(self, loaded: LoadedModel) -> Sequence[nn.Module]:
        """The layers of the encoder that positions are merged in; empty where they cannot."""
        ...

    def logits(self, loaded: LoadedModel, batch: Batch) -> Tensor:
        """All logits that the loss of a batch is made of, padding left out (N, outputs), to compare two models."""
        ...


class SpeechFamily(ModelFamily, Protocol):
    """A family that writes what is said: text into targets, batches into losses and texts."""

    def knows_language(self, loaded: LoadedModel, language: str) -> bool:
        """Whether the model can be told that a clip is in this language."""
        ...

    def note_on_language(self, loaded: LoadedModel, language: str) -> str | None:
        """What a user should know before adapting the model to a language; None where there is nothing to say."""
        ...

    def encode_text(
        self, loaded: LoadedModel, text: str, language: str | None, *, duration_s: float | None = None
    ) -> NDArray[np.int64]:
        """Text -> (U,) target ids with every special token the architecture trains on.

        Args:
            loaded: The model.
            text: The transcript in training form.
            language: Of the clip.
            duration_s: Seconds of the clip, for families whose outputs are limited by it; None sets no limit.

        Raises:
            TextError: The text cannot be written, or not in a clip of this length.
        """
        ...

    def decode_text(self, loaded: LoadedModel, ids: Sequence[int]) -> str:
        """Target ids -> text without special tokens."""
        ...

    def written_form(self, loaded: LoadedModel) -> Callable[[str], str]:
        """What brings a text into the letters that the model has, as `encode_text` does; `str` where it has all.

        References and hypotheses are scored in this form. The function must not hold on to the module.
        """
        ...

    def forward(self, loaded: LoadedModel, batch: Batch) -> Outputs:
        """What the losses of a batch are made of (`models.losses`), in one pass that gradients can go back through."""
        ...

    def transcribe(
        self, loaded: LoadedModel, batch: Batch, settings: DecodingSettings = DEFAULT_DECODING
    ) -> list[Hypothesis]:
        """One text per clip, in the order of the batch; no clip's text depends on the others."""
        ...


def component_of_parameters(loaded: LoadedModel) -> dict[str, ComponentName]:
    """Component of every parameter of the bare model.

    Raises:
        ModelError: A parameter belongs to no component or to several: the family's map is wrong.
    """
    owners: dict[str, ComponentName] = {}
    for name, _ in loaded.module.named_parameters():
        bare = loaded.names.base_name(name)
        matches = [component.name for component in loaded.components if component.owns(bare)]
        if len(matches) != 1:
            found = " and ".join(matches) or "none"
            raise ModelError(
                f"parameter {bare} of {loaded.family.name} belongs to {found}; exactly one component is needed."
            )
        owners[bare] = matches[0]
    return owners


def select(loaded: LoadedModel, selectors: Iterable[str]) -> tuple[str, ...]:
    """Resolve selectors to full parameter names of the bare model, in model order.

    Args:
        loaded: The model.
        selectors: Such as `stem`, `encoder.norms`, `encoder.layers[-8:]`, `decoder.cross_attention`, the full name of
            a module, or `new`: `LoadedModel.new_parts`, of which there may be none.

    Raises:
        ModelError: A selector names an unknown component or part, or matches no parameter.
    """
    names = list(dict.fromkeys(loaded.names.base_name(name) for name, _ in loaded.module.named_parameters()))
    chosen: set[str] = set()
    for selector in (one for given in selectors for one in (loaded.new_parts if given == NEW else (given,))):
        matches = _match(loaded, selector, names)
        if not matches:
            raise ModelError(
                f"selector {selector!r} matches no parameter of {loaded.family.name} ({loaded.checkpoint})."
            )
        chosen |= matches
    return tuple(name for name in names if name in chosen)


def _match(loaded: LoadedModel, selector: str, names: Sequence[str]) -> set[str]:
    if names_module(loaded, whole := loaded.rename(selector)):
        return {name for name in names if name == whole or name.startswith(whole + ".")}
    head, _, part = selector.partition(".")
    component = loaded.component(head)
    owned = [name for name in names if component.owns(name)]
    if not part:
        return set(owned)
    if part == "norms":
        norms = {loaded.names.unwrapped(name) for name, module in loaded.module.named_modules() if _is_norm(module)}
        return {name for name in owned if name.rpartition(".")[0] in norms}
    if layers := _LAYERS.match(part):
        prefixes = _slice_layers(component.layers, layers, selector)
        return {name for name in owned if any(name.startswith(prefix + ".") for prefix in prefixes)}
    if part in component.parts:
        pattern = re.compile(component.parts[part])
        return {name for name in owned if pattern.search(name)}
    known = ["norms", "layers[a:b]", *component.parts]
    raise ModelError(f"selector {selector!r}: {head} has no part {part!r}; known parts: {', '.join(known)}.")


def names_module(loaded: LoadedModel, name: str) -> bool:
    """Whether a selector is the full name of a module, and of no component."""
    return "." in name and any(loaded.names.unwrapped(module) == name for module, _ in loaded.module.named_modules())


def _is_norm(module: nn.Module) -> bool:
    # `transformers` gives every architecture an RMSNorm class of its own.
    return isinstance(module, _NORMS) or type(module).__name__.endswith("RMSNorm")


_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.RMSNorm)


def _slice_layers(layers: tuple[str, ...], match: re.Match[str], selector: str) -> tuple[str, ...]:
    if not layers:
        raise ModelError(f"selector {selector!r}: this component has no numbered layers.")
    start, colon, stop = match["index"], match["slice"], match["stop"]
    first = int(start) if start else None
    if colon:
        return layers[first : int(stop) if stop else None]
    if first is None or not -len(layers) <= first < len(layers):
        raise ModelError(f"selector {selector!r}: layers run from 0 to {len(layers) - 1}.")
    return (layers[first],)


def count_parameters(loaded: LoadedModel) -> dict[str, dict[str, int]]:
    """Parameters, trainable parameters and bytes of each component; tied weights are counted once.

    Adapter weights are counted in the component of the module that carries them.

    Raises:
        ModelError: A parameter lies in no component.
    """
    table = {component.name: {"parameters": 0, "trainable": 0, "bytes": 0} for component in loaded.components}
    for name, parameter in loaded.module.named_parameters():
        base = loaded.names.base_name(name)
        owner = next((component.name for component in loaded.components if component.owns(base)), None)
        if owner is None:
            raise ModelError(f"{loaded.checkpoint} has {name}, which no part of a {loaded.family.name} model holds.")
        logical = _logical_size(parameter)
        row = table[owner]
        if not loaded.names.owns(name) and not loaded.names.is_copy(name):
            row["parameters"] += logical
        row["trainable"] += logical if parameter.requires_grad else 0
        row["bytes"] += parameter.numel() * parameter.element_size()
    return {name: row for name, row in table.items() if row["parameters"]}


def _logical_size(parameter: Tensor) -> int:
    """Number of weights a parameter stands for: a packed 4-bit byte holds two."""
    state = getattr(parameter, "quant_state", None)
    return int(np.prod(state.shape)) if state is not None else parameter.numel()
