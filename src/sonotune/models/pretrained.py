"""Weights of a checkpoint in a module of `transformers`, and what must be true of them before they are used.

`transformers` loads what it is given: NaN, integers that stand for quantised values, tensors of another shape. Here
every loaded weight is a finite number that was stored as one. The check reads every weight once: about a tenth of a
second for the hundred million of Whisper-base.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sonotune.errors import ModelError
from sonotune.models.weight_files import named_files, stored_types

_FLOATS: Final = ("F64", "F32", "F16", "BF16")
_OLD_NAMES: Final = frozenset({"weight_g", "weight_v", "gamma", "beta"})  # of parameters that have others now
ADAPTER: Final = "adapter_config.json"
_SMALL: Final = 10**8
"""Weights for which memory may be taken before it is known how many there are."""


def load_weights(class_name: str, source: Path | str, **options: Any) -> tuple[Any, Mapping[str, Any]]:
    """Load one module in fp32 on the CPU; each weight that came from the checkpoint is a finite number.

    Args:
        class_name: Class in `transformers`.
        source: Folder or hub name, whose settings were checked (`foreign_code`).
        **options: Further arguments of its `from_pretrained`, such as `config` and `revision`.

    Returns:
        The module, and what `transformers` tells of the loading: missing and mismatched names.

    Raises:
        ModelError: The folder is an adapter, its settings describe a much larger model than its weights are, or a
            weight is stored as something else than a float, or is NaN or infinite.
        Exception: Whatever `transformers` raises.
    """
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    if isinstance(source, Path) and (source / ADAPTER).exists():  # `transformers` would load the model it names instead
        raise ModelError(
            f"{source} has an {ADAPTER}: it is an adapter and not a whole model. Merge it first: "
            "sonotune export ADAPTER FOLDER."
        )
    if isinstance(source, Path) and (config := options.get("config")) is not None:
        _check_size(getattr(transformers, class_name), config, source)
    module, told = getattr(transformers, class_name).from_pretrained(
        source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
    )
    _check_types(module, source, options.get("revision"))
    _check_finite(module, source, {*told["missing_keys"], *mismatched(told)})
    return module, told


def _check_size(kind: Any, config: Any, folder: Path) -> None:
    """Refuse an architecture of many times the weights before memory is taken for it.

    Raises:
        ModelError: Says how large both are.
    """
    import torch  # noqa: PLC0415

    stored = sum((folder / name).stat().st_size for name in named_files(folder))
    with torch.device("meta"):
        outline = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    described = sum(parameter.numel() for parameter in outline.parameters())
    if stored and described > max(stored, _SMALL):  # a weight has two bytes at least, and new heads are small
        raise ModelError(
            f"the config.json of {folder} describes a model of {described:,} weights, and its files hold "
            f"{stored:,} bytes. Copy the folder again."
        )


def _check_types(module: Any, source: Path | str, revision: str | None) -> None:
    """Refuse integers and 8-bit floats where the architecture has floats: they are codes, and would be cast.

    Raises:
        ModelError: Names the first such tensor.
    """
    folder = source if isinstance(source, Path) else _cached_folder(source, revision)
    if folder is None:
        return
    # By the last part of its name, for checkpoints have other prefixes; counters and positions are integers rightly.
    floats = _OLD_NAMES | {
        name.rpartition(".")[2] for name, value in module.state_dict().items() if value.is_floating_point()
    }
    wrong = {
        (file, name): kind
        for file in named_files(folder)
        for name, kind in stored_types(folder / file).items()
        if kind not in _FLOATS and name.rpartition(".")[2] in floats
    }
    if wrong:
        (file, name), kind = next(iter(wrong.items()))
        raise ModelError(
            f"{folder / file} holds {name} as {kind}, where the architecture has numbers of 16 or 32 bits "
            f"({', '.join(_FLOATS)}); {len(wrong)} tensors are stored so. Take the checkpoint that is not quantised; "
            "quantization.bits=4 quantises it here."
        )


def _cached_folder(name: str, revision: str | None) -> Path | None:
    """Where a hub checkpoint that was just loaded lies on this machine."""
    from transformers.utils import cached_file  # noqa: PLC0415

    found = cached_file(name, "config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found).parent


def _check_finite(module: Any, source: Path | str, made: Collection[str]) -> None:
    """Refuse NaN and infinity; names in `made` did not come from the checkpoint.

    Raises:
        ModelError: Names the first such tensor and its file.
    """
    weights = {name: value for name, value in module.state_dict().items() if name not in made}
    if not (lost := not_finite(weights)):
        return
    name = min(lost)
    place = source / file_of(source, name) if isinstance(source, Path) else f"the weights of {source}"
    raise ModelError(
        f"{place}: {name} holds NaN or infinity in {lost[name]:,} of {weights[name].numel():,} values "
        f"({len(lost)} of {len(weights)} tensors have some). Copy the file again, or take weights from before their "
        "training failed."
    )


def not_finite(tensors: Mapping[str, Any]) -> dict[str, int]:
    """Name -> number of values that are NaN or infinite, for the tensors of floats that have some."""
    import torch  # noqa: PLC0415

    found = {}
    with torch.no_grad():
        for name, value in tensors.items():
            # A sum is finite only where every value is, and needs no memory; few sums of finite values overflow.
            if not value.is_floating_point() or bool(torch.isfinite(value.sum())):
                continue
            if count := int((~torch.isfinite(value)).sum()):
                found[name] = count
    return found


def mismatched(told: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Parameter -> its shape in the weights and in the configuration, where the two differ."""
    return {name: (tuple(saved), tuple(made)) for name, saved, made in told.get("mismatched_keys", ())}


def wrong_shape(
    source: Path | str, wrong: Sequence[str], shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
) -> str:
    """What is said of weights that do not fit their configuration."""
    saved, made = shapes[wrong[0]]
    place = f"{source / file_of(source, wrong[0])}" if isinstance(source, Path) else f"the weights of {source}"
    return (
        f"{place}: {wrong[0]} has the shape {saved}, and config.json asks for {made} ({len(wrong)} weights differ). "
        "Keep the config.json and the weights of one model together."
    )


def file_of(folder: Path, parameter: str) -> str:
    """The file that holds a parameter; its name there may begin otherwise."""
    from safetensors import safe_open  # noqa: PLC0415

    files = sorted(folder.glob("*.safetensors"))
    for file in files[1:]:
        with safe_open(file, "pt") as opened:
            if any(parameter.endswith(key) or key.endswith(parameter) for key in opened.keys()):  # noqa: SIM118
                return file.name
    return files[0].name if files else "*.safetensors"
