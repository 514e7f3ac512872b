"""The component map of an audio classifier, found by structure, so that an architecture nobody listed can be adapted.

Five rules, each about registration order and shapes, never about names:

1. The *output layer* is the last linear or convolution with as many outputs as there are labels.
2. A *block* is a child of a `ModuleList` or `Sequential` with two matrices or more, of a class that repeats there (or
   is the only one). Containers whose names differ only in their numbers (`layers.0.blocks`, `layers.1.blocks`) hold the
   stages of one encoder. The stack with most parameters gives the layers; where its blocks are themselves stages, that
   is at most one matrix each (the reduction) outside an inner stack, the inner blocks are the layers.
3. The *head* is found among the children of the smallest module that holds both the layers and the output layer: the
   child with the output layer, and whatever comes behind the layers from the first matrix on. A final norm before that
   is the encoder's. So is every other parameter behind the first layer, reductions between stages among them.
4. What is registered before the first layer is the *stem*.
5. A linear, or a convolution that is one (kernel 1, one group), of encoder and head carries an adapter, unless the
   forward pass of its parent takes its weight instead of calling it: an adapter there would never be applied.
"""

from __future__ import annotations

import dis
import inspect
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

from torch import nn

from sonotune.errors import ModelError
from sonotune.models.base import Component, ComponentName

logger = logging.getLogger(__name__)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_MATRICES = (nn.Linear, *_CONVOLUTIONS)
_CONTAINERS = (nn.ModuleList, nn.Sequential)
_ORDER: tuple[ComponentName, ...] = ("stem", "encoder", "head")
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
# Asking a weight for one of these is a look at it, not a use of it.
_LOOKS = frozenset({"dtype", "device", "shape", "size", "ndim"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """What was found in a module.

    Attributes:
        components: Stem, encoder and head; every parameter is in exactly one.
        linears: Full names of the modules that carry an adapter, in model order: linears and pointwise convolutions.
    """

    components: tuple[Component, ...]
    linears: tuple[str, ...]


def find_structure(module: nn.Module, *, num_labels: int) -> Structure:
    """Map an audio classifier nobody listed.

    Args:
        module: A bare classifier on any device, meta included; it is not run.
        num_labels: Outputs of its classifier.

    Raises:
        ModelError: It has no output layer of that size, or no repeated blocks.
    """
    output = _output_layer(module, num_labels)
    layers = _layers(module, output, num_labels)
    owners = _owners(module, layers, _head(module, layers, output))
    components = tuple(
        Component(
            name=name, prefixes=tuple(_prefixes(module, owners, name)), layers=layers if name == "encoder" else ()
        )
        for name in _ORDER
    )
    return Structure(components=components, linears=_adaptable(module, owners))


def _inside(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(prefix + ".")


def _matrices(module: nn.Module, prefix: str = "") -> list[str]:
    return [name for name, child in module.named_modules(prefix=prefix) if isinstance(child, _MATRICES)]


def _outputs(module: nn.Module) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)  # type: ignore[arg-type]


def _output_layer(module: nn.Module, num_labels: int) -> str:
    sizes = {name: _outputs(module.get_submodule(name)) for name in _matrices(module)}
    names = [name for name, size in sizes.items() if size == num_labels]
    if names:
        return names[-1]
    last = ", ".join(f"{name} ({size})" for name, size in list(sizes.items())[-3:]) or "none at all"
    raise ModelError(
        f"{type(module).__name__} has no output layer for {num_labels} labels. Its last linears and convolutions have "
        f"these outputs: {last}. One of them must have an output for each label: "
        "load the model with as many labels as the data has, or replace its last layer."
    )


def _stacks(module: nn.Module, output: str) -> dict[str, list[str]]:
    """Blocks by the name of their container with the numbers left out: the stages of one encoder fall together."""
    stacks: dict[str, list[str]] = {}
    for name, container in module.named_modules():
        if not isinstance(container, _CONTAINERS):
            continue
        children = {f"{name}.{key}".lstrip("."): child for key, child in container.named_children()}
        blocks = {
            child_name: type(child)
            for child_name, child in children.items()
            if len(_matrices(child)) > 1 and not _inside(output, child_name)
        }
        # Attention and feed-forward side by side in a list are the parts of one block, not two blocks.
        classes = len(set(blocks.values()))
        if blocks and (classes == 1 or classes < len(blocks)):
            stacks.setdefault(re.sub(r"\d+", "#", name), []).extend(blocks)
    return {pattern: blocks for pattern, blocks in stacks.items() if len(blocks) > 1}


def _layers(module: nn.Module, output: str, num_labels: int) -> tuple[str, ...]:
    stacks = list(_stacks(module, output).values())
    if not stacks:
        found = ", ".join(f"{name} ({type(child).__name__})" for name, child in module.named_children()) or "nothing"
        raise ModelError(
            f"{type(module).__name__} has no repeated blocks that could be its layers. Its children are {found}. "
            "Layers are two or more children of a ModuleList or Sequential, of one class, each with two linears "
            "or convolutions at least. Put the blocks into a ModuleList, or write a model family for this architecture."
        )
    layers = max(stacks, key=lambda blocks: sum(_size(module.get_submodule(name)) for name in blocks))
    while inner := next((blocks for blocks in stacks if _are_stages(module, layers, blocks)), None):
        layers = inner
    kinds = {type(module.get_submodule(name)) for name in layers}
    holders = [name for name, child in module.named_modules() if type(child) in kinds and _inside(output, name)]
    if holders:
        raise ModelError(
            f"the last linear or convolution of {type(module).__name__} with {num_labels} outputs is {output}, "
            f"which is within the block {holders[0]}. The output layer must be outside the layers: "
            "check the number of labels against the model's."
        )
    return tuple(layers)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _are_stages(module: nn.Module, outer: list[str], inner: list[str]) -> bool:
    """Whether the outer blocks are stages: nothing but inner blocks and at most one matrix, the reduction."""
    for stage in outer:
        blocks = [name for name in inner if name != stage and _inside(name, stage)]
        matrices = _matrices(module.get_submodule(stage), stage)
        if sum(not any(_inside(name, block) for block in blocks) for name in matrices) > 1:
            return False
    return True


def _head(module: nn.Module, layers: tuple[str, ...], output: str) -> tuple[str, ...]:
    common = output.rpartition(".")[0]
    while not all(_inside(name, common) for name in layers):
        common = common.rpartition(".")[0]
    parent = module.get_submodule(common)
    names = {f"{common}.{key}".lstrip("."): child for key, child in parent.named_children()}
    last = max(place for place, name in enumerate(names) if any(_inside(layer, name) for layer in layers))
    behind = list(names)[last + 1 :]
    while behind and not _matrices(names[behind[0]]):
        behind = behind[1:]
    # A learned weighted sum over the layers' states has a weight for each, and one for what enters the first layer.
    mixes = [
        f"{common}.{key}".lstrip(".")
        for key, parameter in parent.named_parameters(recurse=False)
        if parameter.ndim == 1 and len(parameter) in (len(layers), len(layers) + 1)
    ]
    # Some classifiers register their output layer before the encoder.
    return (*mixes, *(name for name in names if name in behind or _inside(output, name)))


def _owners(module: nn.Module, layers: tuple[str, ...], head: tuple[str, ...]) -> dict[str, ComponentName]:
    owners: dict[str, ComponentName] = {}
    current: ComponentName = "stem"
    for name, _ in module.named_parameters():
        if _inside(name, layers[0]):
            current = "encoder"
        owners[name] = "head" if any(_inside(name, prefix) for prefix in head) else current
    return owners


def _prefixes(
    module: nn.Module, owners: dict[str, ComponentName], component: ComponentName, name: str = ""
) -> Iterator[str]:
    """The largest modules, and the loose parameters, that lie wholly in a component."""
    found = {owner for parameter, owner in owners.items() if _inside(parameter, name)}
    if found == {component} and name:
        yield name
    elif component in found:
        dot = name + "." if name else ""
        for key, _ in module.named_parameters(recurse=False):
            if owners.get(dot + key) == component:
                yield dot + key
        for key, child in module.named_children():
            yield from _prefixes(child, owners, component, dot + key)


def _adaptable(module: nn.Module, owners: dict[str, ComponentName]) -> tuple[str, ...]:
    names: list[str] = []
    passed_over: list[str] = []
    for parent_name, parent in module.named_modules():
        taken = _taken_weights(type(parent))
        for key, child in parent.named_children():
            name = f"{parent_name}.{key}".lstrip(".")
            # A weight that is computed (weight norm) is no parameter: nothing could be merged into it.
            if _is_linear(child) and owners.get(name + ".weight") in ("encoder", "head"):
                (passed_over if key in taken else names).append(name)
    if passed_over:
        logger.warning(
            "%d linears cannot carry an adapter, the first is %s: the forward pass of their parent takes their weight "
            "without calling them, so an adapter there would never be applied",
            len(passed_over),
            passed_over[0],
        )
    adaptable = set(names)
    return tuple(name for name, _ in module.named_modules() if name in adaptable)


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, _CONVOLUTIONS):
        return set(module.kernel_size) == {1} and module.groups == 1
    return isinstance(module, nn.Linear)


def _taken_weights(kind: type[nn.Module]) -> frozenset[str]:
    """Children whose weight the forward pass of a class hands to a function, as in `f(self.out_proj.weight)`.

    `nn.MultiheadAttention` and WavLM give their projections' weights to `F.multi_head_attention_forward`, torchvision's
    Swin does so with its own function, and `nn.TransformerEncoderLayer` in its fast path. It is read from the bytecode
    of `forward` and the methods it calls, so that it is known without running the model. One such use is enough, even
    where another branch calls the child.
    """
    taken: set[str] = set()
    seen = {"forward"}
    waiting = _codes(kind, "forward")
    while waiting:
        code = waiting.pop()
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        chain = [step.argval if step.opname in _ATTRIBUTES else None for step in dis.get_instructions(code)]
        for first, second, third in zip(chain, chain[1:], [*chain[2:], None], strict=False):
            if first and second == "weight" and third not in _LOOKS:
                taken.add(first)
        for name in {name for name in chain if name} - seen:
            seen.add(name)
            waiting += _codes(kind, name)
    return frozenset(taken)


def _codes(kind: type[nn.Module], name: str) -> list[CodeType]:
    """The bytecode of a method, and of those it overrides as long as `super` is asked for."""
    codes: list[CodeType] = []
    for base in kind.__mro__:
        function: Any = base.__dict__.get(name)
        if base is nn.Module or not callable(function):
            continue
        code = getattr(inspect.unwrap(function), "__code__", None)
        if isinstance(code, CodeType):
            codes.append(code)
            if "super" not in code.co_names:
                break
    return codes
