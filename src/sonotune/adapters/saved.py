"""Open whatever was named: a packaged or hub checkpoint, a model folder, an adapter folder or a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from sonotune.adapters import lora
from sonotune.adapters.targets import modules_of, resolve_targets
from sonotune.errors import ModelError
from sonotune.models.base import LoadedModel, ModelFamily
from sonotune.models.checkpoints import read_config
from sonotune.models.precision import DTYPES
from sonotune.models.quantize import cast_frozen, choose_bits, quantize
from sonotune.registry import names, resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model ready for use.

    Attributes:
        loaded: The model, on its device, adapter attached if one was named.
        family: Its architecture.
        choices: Decisions taken: setting -> what it became and why.
        settings: What an adapter's `sonotune.json` says of how it was trained.
    """

    loaded: LoadedModel
    family: ModelFamily
    choices: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def open_model(
    checkpoint: str,
    *,
    family: str = "auto",
    revision: str | None = None,
    context: Literal["dynamic", "full"] | None = None,
    bits: Literal["auto"] | int = "auto",
    double: bool = True,
    skip: Sequence[str] = (),
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    device: torch.device | str = "cpu",
    random_weights: bool = False,
    dropout: float | None = None,
) -> Opened:
    """Open a checkpoint, adapter or run for use or further training.

    Args:
        checkpoint: Packaged, hub or local model, adapter folder, or run directory.
        family: Registry name, or `auto` to read it from the configuration.
        revision: Hub revision of a model.
        context: Overrides how an adapter was trained; None takes that, or `dynamic`.
        bits: Of the frozen weights; for an adapter, `auto` means as it was trained.
        double: Double quantisation.
        skip: Component selectors whose modules stay unquantised.
        precision: Of the matrix products.
        device: Where to put it.
        random_weights: Build from the configuration alone.
        dropout: Overrides the checkpoint's.

    Raises:
        ModelError: Nothing usable is there.
        AdapterError: The adapter does not fit.
    """
    adapter = find_adapter(checkpoint)
    settings = lora.read_side_car(adapter) if adapter else {}
    base = base_of(adapter, settings) if adapter else model_folder(checkpoint)
    name = family_name(base, revision) if family == "auto" else family
    architecture: ModelFamily = resolve("families", name)()
    loaded = architecture.load(
        base, revision=revision, context=context or settings.get("context", "dynamic"),
        random_weights=random_weights, dropout=dropout,
    )  # fmt: skip
    loaded.module.to(device)
    parameters = sum(parameter.numel() for parameter in loaded.module.parameters())
    if adapter and bits == "auto":
        chosen, reason = int(settings.get("bits", 16)), "as the adapter was trained"
    else:
        chosen, reason = choose_bits(bits, parameters=parameters, device=torch.device(device).type)
    dtype = DTYPES[precision]
    if chosen in (4, 8):
        kept = kept_unquantized(loaded, settings.get("quantization_skip", skip))
        loaded = quantize(loaded, bits=chosen, keep=kept, double=settings.get("double", double), compute_dtype=dtype)  # type: ignore[arg-type]
    if adapter:
        loaded = lora.load(loaded, adapter)
        if dtype != torch.float32:
            cast_frozen(loaded, dtype)
    choices = {"quantization.bits": f"{chosen}: {reason}"}
    return Opened(loaded=loaded, family=architecture, choices=choices, settings=settings)


def kept_unquantized(loaded: LoadedModel, skip: Sequence[str]) -> set[str]:
    """Full module names that the selectors keep out of quantisation."""
    return set(modules_of(loaded, skip)) | set(resolve_targets(loaded, skip)) if skip else set()


def find_adapter(checkpoint: str) -> Path | None:
    """The adapter folder that a name stands for: the folder itself, or the one in a run directory.

    Raises:
        ModelError: Its weights are missing, or not in safetensors.
    """
    for folder in (Path(checkpoint), Path(checkpoint) / "adapter"):
        if (folder / "adapter_config.json").is_file():
            if not (folder / "adapter_model.safetensors").is_file():
                raise ModelError(f"{folder} has no adapter_model.safetensors; pickled adapters (.bin) are refused.")
            return folder
    return None


def model_folder(checkpoint: str) -> str:
    """The model a name stands for: a run of full fine-tuning keeps its model in `model/`.

    Raises:
        ModelError: A run directory without a finished model.
    """
    folder = Path(checkpoint)
    if (folder / "run.json").is_file():
        if (folder / "model" / "config.json").is_file():
            return str(folder / "model")
        raise ModelError(
            f"the run {checkpoint} holds neither an adapter nor a model yet. "
            "Finish it by running its `sonotune train` line again."
        )
    return checkpoint


def base_of(adapter: Path, settings: Mapping[str, Any]) -> str:
    """The checkpoint that a saved adapter was trained on.

    Args:
        adapter: Its folder.
        settings: Its side car (`lora.read_side_car`).

    Raises:
        ModelError: It does not say.
    """
    named = settings.get("checkpoint") or json.loads((adapter / "adapter_config.json").read_text("utf-8")).get(
        "base_model_name_or_path"
    )
    if not named:
        raise ModelError(f"the adapter in {adapter} does not say which base model it belongs to.")
    return model_folder(str(named))


def family_name(checkpoint: str, revision: str | None) -> str:
    """Registry name of a checkpoint's architecture.

    Raises:
        ModelError: There is no configuration, or no family for it.
    """
    config = read_config(checkpoint, revision)
    if config.model_type not in names("families"):
        raise ModelError(
            f"{checkpoint} is a {config.model_type!r} model; supported families: {', '.join(names('families'))}."
        )
    return str(config.model_type)
