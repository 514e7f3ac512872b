"""Which linear modules carry an adapter, by full name.

Suffix matching reaches both towers of an encoder-decoder at once (`layers.0.fc1` is in each), so settings are resolved
to full module names here and nothing downstream matches patterns again.
"""

from __future__ import annotations

from collections.abc import Sequence

from sonotune.errors import AdapterError, suggest
from sonotune.models.base import LoadedModel, names_module, select

_QUERY_VALUE = ("q_proj", "v_proj", "linear_q", "linear_v")
_SHORTHANDS = {
    "q_v": _QUERY_VALUE,
    "attention": (*_QUERY_VALUE, "k_proj", "out_proj", "o_proj", "linear_k", "linear_out", "qkv"),
}


def resolve_targets(loaded: LoadedModel, targets: str | Sequence[str]) -> tuple[str, ...]:
    """Turn the setting into full names of adaptable linears, in model order.

    Args:
        loaded: The model.
        targets: `all_linear`, `attention`, `q_v`, or a list of component selectors (`encoder`,
            `decoder.cross_attention`), module endings (`fc1`) and full module names.

    Raises:
        AdapterError: An entry matches no adaptable linear.
    """
    if targets == "all_linear":
        return loaded.linears
    entries = [targets] if isinstance(targets, str) else list(targets)
    chosen: set[str] = set()
    for entry in entries:
        matches = _matches(loaded, entry)
        if not matches:
            endings = sorted({name.rpartition(".")[2] for name in loaded.linears})
            hint = suggest(entry, [*endings, *_SHORTHANDS, "all_linear"], ".")
            raise AdapterError(
                f"adapter.targets: {entry!r} matches none of the {len(loaded.linears)} adaptable linears{hint} "
                f"Use all_linear, {', '.join(_SHORTHANDS)}, a component selector or an ending: {', '.join(endings)}."
            )
        chosen |= matches
    return tuple(name for name in loaded.linears if name in chosen)


def _matches(loaded: LoadedModel, entry: str) -> set[str]:
    endings = _SHORTHANDS.get(entry, (entry,))
    matches = {name for name in loaded.linears if name.rpartition(".")[2] in endings}
    known = {component.name for component in loaded.components}
    whole = loaded.rename(entry)
    if matches or (entry.partition(".")[0] not in known and not names_module(loaded, whole)):
        return matches
    carriers = {name.removesuffix(".weight") for name in select(loaded, [entry])}
    return {name for name in loaded.linears if name in carriers}


def modules_of(loaded: LoadedModel, selectors: Sequence[str]) -> tuple[str, ...]:
    """Full names of the modules that hold the selected parameters, for training them in full precision.

    A parameter that is no module's `weight` or `bias`, such as a class token, is trained with the module it lies in.

    Raises:
        AdapterError: A selected module is quantised or shares its weights with another, or a parameter lies in a
            module that is not selected as a whole.
        ModelError: A selector matches nothing.
    """
    parameters = [name for name in select(loaded, selectors) if name not in loaded.constant]
    modules = _whole_modules(loaded, parameters)
    if quantized := [name for name in modules if name in loaded.quantized]:
        raise AdapterError(
            f"{quantized[0]} and {len(quantized) - 1} more are quantised to {loaded.quantized[quantized[0]]} bits, "
            "and such weights cannot train. Keep them out with quantization.skip, or train adapters on them."
        )
    shared = {name for group in loaded.tied for name in group}
    if tied := [name for name in parameters if name in shared]:
        raise AdapterError(f"{tied[0]} is tied to the output head; training it beside an adapter would untie it.")
    return modules


def _whole_modules(loaded: LoadedModel, parameters: Sequence[str]) -> tuple[str, ...]:
    """The modules that these parameters make up, none within another."""
    every = [loaded.names.base_name(name) for name, _ in loaded.module.named_parameters()]
    chosen, modules = set(parameters), dict[str, None]()
    for name in parameters:
        # Weight norm keeps its parameters in a module of its own beneath the one that computes with them.
        holder = name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]
        if not holder or any(other.startswith(holder + ".") and other not in chosen for other in every):
            raise AdapterError(
                f"{name} is a parameter of {holder or 'the model itself'}, of which other parts are not selected, so "
                "it cannot be trained by itself. Select the whole of it, or a component without it."
            )
        modules[holder] = None
    return tuple(
        name for name in modules if not any(name != other and name.startswith(other + ".") for other in modules)
    )
