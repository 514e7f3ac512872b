"""Peak memory of a training step from shapes alone.

Between steps there are the weights as they are held and two moments of every trainable parameter: those are exact. A
step adds what the backward pass needs. Of each layer that is, with N rows, c bytes of a matrix product's type and
widths i -> o of a linear:

    norm                                   n N i          its input
    linear with an adapter, or that trains c N (i + r)    its input, and what comes out of the A matrix
    queries, keys, values, what was heard  c N o          each, for the attention
    linear that widens                     b N o          input of the activation; half more for each of a gated pair
    dropout                                m N i          its mask
    convolution within a layer             c N i          its input; c N o more before a gate, or where it is by channel
    attention with dropout, on a CPU       12 H P P       its probabilities, for which there is no fused kernel
    attention by distance                  12 H P P       the same, on a GPU c H P P: its bias has a gradient

On a GPU n is 4, m is 1 and b is 4 where the linear is quantised: autocast computes norms in single precision there, and
bitsandbytes gives back the type it was given. Else all are c. Neighbours share one input, but on a GPU in half
precision. Checkpointing keeps the input of each layer and one layer at a time.

Source: saved tensors as traced by `planning.exact`, to which tests compare it; Dettmers et al. 2023 for NF4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sonotune.adapters.kinds.base import kind_of
from sonotune.features.batching import Batch
from sonotune.models.base import Component
from sonotune.models.losses import label_rows
from sonotune.models.quantize import packed_bytes
from sonotune.optimizers import moment_bytes
from sonotune.planning.layout import BLOCK, SCALES_PER_BLOCK, Layout
from sonotune.planning.teacher import TEACHER

_CODES, _NESTED_CODES = 4 * 16, 4 * 256 + 4  # of each matrix: its code book; that of its scales, and their mean
KINDS = ("weights", "gradients", "optimizer", "activations")
OUTSIDE = "outside"
_ORDER = ("stem", "encoder", "projector", "embeddings", "decoder", "head")
_QUERIES = re.compile(r"(^|[._])(q|query|linear_q)(_proj)?$")
_ATTENTION_INPUTS = re.compile(r"(^|[._])(q|k|v|query|key|value|linear_[qkv])(_proj)?$")
_BY_DISTANCE = re.compile(r"(relative_k_proj|linear_pos)$")
_GATED = re.compile(r"(gate|up)_proj$")
_NORM = re.compile(r"norm", re.IGNORECASE)
# Bytes for each label and output: logits in single precision, their logarithms, and the gradient.
_LOGIT_BYTES = 12
# Bytes for each head, query and key of an attention with dropout, as traced in both precisions.
_PROBABILITY_BYTES = 12
_ATTENTION_DROPOUT = ("attention_dropout", "attention_probs_dropout_prob")
_HEADS = ("encoder_attention_heads", "num_attention_heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of a step at its highest moment.

    Attributes:
        components: component -> kind -> bytes; `outside` holds the batch, the loss and what passes.
    """

    components: Mapping[str, Mapping[str, int]]

    @property
    def peak_bytes(self) -> int:
        """All of it."""
        return sum(self.total(kind) for kind in KINDS)

    def total(self, kind: str) -> int:
        """Bytes of one kind over all components."""
        return sum(row.get(kind, 0) for row in self.components.values())

    @property
    def static_bytes(self) -> int:
        """What is held between steps."""
        return self.total("weights") + self.total("optimizer")


def static_memory(layout: Layout) -> dict[str, dict[str, int]]:
    """Bytes of weights, gradients and optimiser of each component; exact, tied weights once.

    Gradients are those of all trainable parameters at once, as they are after the backward pass.
    """
    loaded, rows = layout.loaded, dict[str, dict[str, int]]()
    parts = {name: layout.settings.shards for names in layout.sharded.values() for name in names}
    for name, parameter in loaded.module.named_parameters():
        owner = loaded.owner(loaded.names.base_name(name)) or OUTSIDE
        row = rows.setdefault(owner, dict.fromkeys(KINDS, 0))
        size = parameter.numel() * parameter.element_size()
        module = loaded.names.unwrapped(name).removesuffix(".weight")
        if module in loaded.quantized and not loaded.names.owns(name) and name.endswith("weight"):
            size = _packed(loaded.module, name.removesuffix(".weight"), layout)
        count = parts.get(name, 1)
        row["weights"] += -(-size // count)
        if parameter.requires_grad:
            row["gradients"] += -(-size // count)
        if name in layout.held:
            row["optimizer"] += -(-moment_bytes(parameter.numel(), layout.settings.optimizer) // count)
    for name, buffer in loaded.module.named_buffers():
        row = rows.setdefault(loaded.owner(loaded.names.unwrapped(name)) or OUTSIDE, dict.fromkeys(KINDS, 0))
        row["weights"] += buffer.numel() * buffer.element_size()
    if layout.teacher_bytes:
        rows[TEACHER] = {**dict.fromkeys(KINDS, 0), "weights": layout.teacher_bytes}
    return rows


def _packed(module: nn.Module, name: str, layout: Layout) -> int:
    """Bytes of a quantised weight with its scales and code books; parts of a block count whole."""
    linear: Any = module.get_submodule(name)
    rows, columns = int(linear.out_features), int(linear.in_features)
    if layout.bits[0] == 8:
        return packed_bytes(rows, columns, bits=8)
    blocks = -(-rows * columns // BLOCK)
    scales = blocks + 4 * -(-blocks // SCALES_PER_BLOCK) + _NESTED_CODES if layout.settings.double else 4 * blocks
    return rows * columns // 2 + scales + _CODES


def predict_step(layout: Layout, batch: Batch) -> Memory:
    """Predict the peak of a step by the formula.

    Args:
        layout: What trains.
        batch: From `Layout.batch`; shapes count alone.
    """
    rows = static_memory(layout)
    saved = _Saved(layout, batch)
    gradients = sum(row["gradients"] for row in rows.values())
    checkpointing = layout.settings.gradient_checkpointing
    largest = 0
    for name, one in saved.components().items():
        row = rows.setdefault(name, dict.fromkeys(KINDS, 0))
        row["activations"] = one.kept if checkpointing else one.kept + sum(one.layers)
        largest = max([largest, *one.layers])
    passing = saved.passing()
    # By the time that the stem has its turn, what the others kept is given back.
    given_back = sum(row["activations"] for name, row in rows.items() if name != "stem")
    moment = max(
        saved.convolving - given_back,
        saved.loss_bytes(),
        passing + (largest if checkpointing else 0),
        saved.head_gradients() + passing,
        gradients,
    )
    for row in rows.values():
        row["gradients"] = 0
    outside = rows.setdefault(OUTSIDE, dict.fromkeys(KINDS, 0))
    outside["activations"] += (
        moment + _put_together(layout) + saved.casts() + batch.inputs.numel() * batch.inputs.element_size()
    )
    return Memory(components=rows)


def _put_together(layout: Layout) -> int:
    """Bytes of the largest layer while it computes: weights in one piece, of the products' type; gradients, in fp32."""
    parameters, each = dict(layout.loaded.module.named_parameters()), layout.compute.itemsize
    return max(
        (
            sum(parameters[name].numel() * (each + (4 if parameters[name].requires_grad else 0)) for name in names)
            for names in layout.sharded.values()
        ),
        default=0,
    )


@dataclass(slots=True)
class _Kept:
    """What a component keeps for the backward pass.

    Attributes:
        kept: Bytes beside its layers; with checkpointing, the inputs of the layers too.
        layers: Bytes of each numbered layer.
    """

    kept: int
    layers: list[int]


class _Saved:
    """Counts what autograd saves in a step."""

    def __init__(self, layout: Layout, batch: Batch) -> None:
        self._layout, self._batch = layout, batch
        self._loaded, self._adapters = layout.loaded, kind_of(layout.loaded)
        self._c = layout.compute.itemsize
        self._gpu = layout.device == "cuda"
        self._n = 4 if self._gpu else self._c
        self.convolving = 0  # what the backward pass of the widest convolution of the stem holds at once
        self._modules: dict[str, Any] = dict(self._loaded.names.modules(self._loaded.module))
        streams = layout.streams(batch)
        self._rows: dict[str, int] = {}
        for name in layout.loaded.linears:
            kinds = next((stream.kinds for stream in streams if re.search(stream.modules, name)), None)
            self._rows[name] = 0 if kinds is None else kinds.numel()

    def components(self) -> dict[str, _Kept]:
        """What each component keeps."""
        found, reached = {}, False
        for name in _ORDER:
            component = next((one for one in self._loaded.components if one.name == name), None)
            if component is None:
                continue
            reached = reached or any(
                value.requires_grad
                for parameter, value in self._loaded.module.named_parameters()
                if component.owns(self._loaded.names.base_name(parameter))
            )
            if not reached:
                continue
            if name == "stem":
                found[name] = self._stem()
                continue
            layers = [self._layer(prefix) for prefix in component.layers]
            stream = sum(self._stream(prefix) for prefix in component.layers)
            checkpointing = self._layout.settings.gradient_checkpointing
            found[name] = _Kept(self._beside_layers(component) + (stream if checkpointing else 0), layers)
        return found

    def _beside_layers(self, component: Component) -> int:
        """Bytes that a component's last norm saves, and linears that belong to none of its layers."""
        rows = next((self._rows[name] for name in self._rows if component.owns(name + ".weight")), 0)
        prefixes = tuple(prefix + "." for prefix in component.layers)
        total, shared = 0, set[tuple[str, int]]()
        for name, module in self._modules.items():
            if not component.owns(name + ".weight") or name.startswith(prefixes):
                continue
            if name in self._rows:
                total += self._linear(name, module, shared, own=True)
            elif _NORM.search(type(module).__name__) and (weight := getattr(module, "weight", None)) is not None:
                total += self._n * rows * weight.numel()
        return total

    def _layer(self, prefix: str) -> int:
        """Bytes that one layer saves."""
        inside = {name: module for name, module in self._modules.items() if name.startswith(prefix + ".")}
        linears = {name: module for name, module in inside.items() if name in self._rows}
        if not linears:
            return 0
        rows = self._rows[first := next(iter(linears))]
        width = matrix_widths(linears[first])[0]
        total, shared = 0, set[tuple[str, int]]()
        for name, module in linears.items():
            total += self._linear(name, module, shared, own=self._rows[name] == rows)
        for name, module in inside.items():
            if _NORM.search(type(module).__name__) and (weight := getattr(module, "weight", None)) is not None:
                total += self._n * self._elements_of_norm(name, weight, linears, rows)
            elif isinstance(module, nn.Conv1d):
                after = module.out_channels > module.in_channels or module.groups > 1
                total += self._c * rows * (module.in_channels + (module.out_channels if after else 0))
            elif isinstance(module, nn.Dropout) and module.p:
                wide = max(matrix_widths(one)[1] for one in linears.values()) if "intermediate" in name else width
                total += (1 if self._gpu else self._c) * rows * wide
        return total + self._probabilities(rows, by_distance=any(_BY_DISTANCE.search(name) for name in linears))

    def _probabilities(self, rows: int, *, by_distance: bool) -> int:
        """Attention that drops out is computed step by step on a CPU, and keeps what it was after each.

        So is attention whose bias depends on the distance through weights; a GPU's kernel keeps that bias.
        """
        config = self._loaded.module.config
        config = getattr(config, "encoder_config", config)
        rate = max(float(getattr(config, name, 0) or 0) for name in _ATTENTION_DROPOUT)
        heads = next((int(getattr(config, name)) for name in _HEADS if getattr(config, name, None)), 0)
        if not by_distance and (self._gpu or not rate):
            return 0
        each = self._c if self._gpu else _PROBABILITY_BYTES
        return each * heads * rows * rows // max(1, len(self._batch.clips))

    def _linear(self, name: str, module: Any, shared: set[tuple[str, int]], *, own: bool) -> int:
        rows, inputs, outputs = self._rows[name], *matrix_widths(module)
        parent, quantized = name.rpartition(".")[0], name in self._loaded.quantized
        c = self._c
        total = 0
        rank, dropout = self._adapters.activations(module)
        attends = bool(_ATTENTION_INPUTS.search(name))
        if rank or any(parameter.requires_grad for parameter in module.parameters()):
            # The input is one tensor for all that take it; the encoder's states are its own. On a GPU norms give single
            # precision, of which autocast makes a copy for each.
            after_attention = not attends and inputs == outputs
            if (self._gpu and c < 4) or (own and not ((parent, inputs) in shared or after_attention)):
                total += c * rows * inputs
            shared.add((parent, inputs))
            total += c * rows * rank
            if dropout:
                total += rows * inputs * (1 if self._gpu else 4)
        if attends:
            total += c * rows * outputs * (2 if _QUERIES.search(name) else 1)
        elif outputs > inputs:
            wide = 4 if quantized and self._gpu else c
            total += int((1.5 if _GATED.search(name) else 1) * wide * rows * outputs)
        return total

    def _elements_of_norm(self, name: str, weight: Tensor, linears: Mapping[str, Any], rows: int) -> int:
        """Elements that a norm takes: one of queries or keys has the width of a head and a row for each."""
        parent, _, own = name.rpartition(".")
        if (kind := own.partition("_")[0]) in ("q", "k") and f"{parent}.{kind}_proj" in linears:
            return rows * matrix_widths(linears[f"{parent}.{kind}_proj"])[1]
        return rows * weight.numel()

    def _stream(self, prefix: str) -> int:
        """Bytes of a layer's input, which is what checkpointing keeps of it."""
        linears = [name for name in self._rows if name.startswith(prefix + ".")]
        if not linears:
            return 0
        wide = 4 if self._gpu and any(name in self._loaded.quantized for name in linears) else self._c
        return wide * self._rows[linears[0]] * matrix_widths(self._modules[linears[0]])[0]

    def _stem(self) -> _Kept:
        """Convolutions one after the other: input of each, of its norm and of its activation."""
        clips, frames, bins = self._batch.inputs.shape
        component, kept = self._loaded.component("stem"), _Kept(0, [])
        length, height, after = float(frames), float(bins), 0.0
        inside = [(name, module) for name, module in self._modules.items() if component.owns(name + ".weight")]
        for index, (name, module) in enumerate(inside):
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                flat = isinstance(module, nn.Conv1d)
                before = clips * length * (1 if flat else height) * module.in_channels
                length, height = length / module.stride[0], height / module.stride[-1]
                after = clips * length * (1 if flat else height) * module.out_channels
                scratch = 0
                if not self._gpu:
                    scratch = convolution_scratch(before, after, groups=module.groups, backward=True)
                self.convolving = max(self.convolving, int(self._c * (before + after + scratch)))
                own = 0.0 if _kept_by_the_next(module, [one for _, one in inside[index + 1 :]]) else after
                if self._checkpointed(name):
                    kept.kept += int(self._c * before)
                    kept.layers.append(int(self._c * own))
                else:
                    kept.kept += int(self._c * (before + own))
            elif isinstance(module, nn.Linear) and module.weight.requires_grad:
                kept.kept += int(self._c * after)
            elif _NORM.search(type(module).__name__) and getattr(module, "weight", None) is not None:
                extra = int(self._n * after)
                if self._checkpointed(name):
                    kept.layers.append(kept.layers.pop() + extra if kept.layers else extra)
                else:
                    kept.kept += extra
        return kept

    def _checkpointed(self, name: str) -> bool:
        """Whether a module lies in one that is computed again in the backward pass."""
        parents = (name[:place] for place, letter in enumerate(name) if letter == ".")
        return self._layout.settings.gradient_checkpointing and any(
            getattr(self._modules.get(parent), "gradient_checkpointing", False)
            for parent in parents
            if parent.rpartition(".")[2].isdigit()
        )

    def loss_bytes(self) -> int:
        """The logits that are held at once, and what the loss makes of them."""
        if self._loaded.family.name == "ctc":
            return _LOGIT_BYTES * max(self._rows.values(), default=0) * int(self._loaded.module.config.vocab_size)
        head = self._output_layer()
        if head is None:
            return 0
        outputs = int(head.weight.shape[0])
        return _LOGIT_BYTES * label_rows(int(self._batch.target_lengths.sum()), outputs) * outputs

    def head_gradients(self) -> int:
        """Gradient of an output layer that trains, the first there is; twice that of one that is the embeddings too."""
        head = self._output_layer()
        if head is None or not head.weight.requires_grad:
            return 0
        return int(4 * head.weight.numel() * (2 if self._loaded.tied else 1))

    def _output_layer(self) -> Any | None:
        """The layer that writes logits of tokens, where the model writes tokens."""
        return next((found for name in ("lm_head", "proj_out") if (found := self._modules.get(name))), None)

    def casts(self) -> int:
        """Trainable matrices in the type of the products, which autocast makes once a step."""
        if self._c == 4:
            return 0
        parts = {name for names in self._layout.sharded.values() for name in names}
        return sum(
            self._c * value.numel()
            for name, value in self._loaded.module.named_parameters()
            if value.requires_grad and value.ndim > 1 and name not in parts
        )

    def passing(self) -> int:
        """What the backward pass of the widest linear holds at once: its gradients in and out, and copies of them."""
        widest, reached = 0, self.components()
        for name, rows in self._rows.items():
            if self._loaded.owner(name) not in reached:
                continue
            inputs, outputs = matrix_widths(self._modules[name])
            widest = max(widest, rows * (inputs + outputs))
        return 8 * widest


def _kept_by_the_next(convolution: nn.Conv1d | nn.Conv2d, later: Sequence[nn.Module]) -> bool:
    """Whether what comes out of a convolution is, rectified or as it is, the input of another that keeps it anyway."""
    kinds = (nn.Conv1d, nn.Conv2d)
    if not any(isinstance(one, kinds) for one in later):
        return False
    return isinstance(later[0], nn.ReLU) or (convolution.groups > 1 and isinstance(later[0], kinds))


def convolution_scratch(inputs: float, outputs: float, *, groups: int, backward: bool = False) -> int:
    """What a processor's convolution takes beside its tensors while it runs, in the unit of its arguments.

    Kernels have a layout of their own, into which inputs, outputs and gradients are copied. Source: measured with
    oneDNN in torch 2.13, fp32 and bf16, one and two dimensions (`benchmarks/planner`).
    """
    copies = 2 if backward and groups == 1 else 1
    return int(max(copies * inputs, outputs))


def matrix_widths(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear, with whatever is wrapped around it."""
    base = getattr(module, "base_layer", module)
    if hasattr(base, "in_features"):
        return int(base.in_features), int(base.out_features)
    return int(base.in_channels), int(base.out_channels)
