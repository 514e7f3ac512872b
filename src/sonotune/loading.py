"""Open whatever was named: a packaged or hub checkpoint, a model folder, an adapter folder or a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sonotune.adapters.kinds.base import kind_named
from sonotune.adapters.metadata import (
    ADAPTER_WEIGHTS,
    BESIDE,
    METADATA,
    PEFT_CONFIG,
    peft_entries,
    read_entries,
    read_metadata,
    tuned_elsewhere,
    use_of,
)
from sonotune.adapters.ranks.plan import matrix_shape
from sonotune.errors import ConfigError, ModelError
from sonotune.models.base import LoadedModel, ModelFamily, select
from sonotune.models.checkpoints import check_frontend, read_config, settings_digest
from sonotune.models.frame_merging.prepare import keep_key_noise, key_weights, with_merging
from sonotune.models.frame_merging.settings import FrameMerging
from sonotune.models.precision import DTYPES
from sonotune.models.quantize import cast_frozen, choose_bits, packed_bytes, quantize
from sonotune.models.thinning import Thinning, contexts_of_training
from sonotune.models.weight_files import weights_digest
from sonotune.paths import is_file, is_folder
from sonotune.progress import phase
from sonotune.registry import in_order, names, resolve
from sonotune.runs import digest_json
from sonotune.types import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model ready for use.

    Attributes:
        loaded: The model, on its device, adapter attached if one was named.
        choices: Decisions taken: setting -> what it became and why.
        settings: What an adapter's `sonotune.json` says of how it was trained; for another model, what `use_of` finds.
    """

    loaded: LoadedModel
    choices: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def open_model(
    checkpoint: str,
    *,
    family: ModelFamily | None = None,
    revision: str | None = None,
    context: Context | None = None,
    merging: FrameMerging | None = None,
    bits: Literal["auto"] | int = "auto",
    double: bool = True,
    skip: Sequence[str] = (),
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    device: torch.device | str = "cpu",
    random_weights: bool = False,
    dropout: float | None = None,
    outputs: Sequence[str] = (),
    renew_outputs: bool = False,
    tokenizer: str | None = None,
) -> Opened:
    """Open a checkpoint, adapter or run for use or further training.

    Args:
        checkpoint: Packaged, hub or local model, adapter folder, or run directory.
        family: Its architecture; None asks `choose_family`.
        revision: Hub revision of a model.
        context: How much of the model's window is computed; None takes what its weights were trained in, as an
            adapter, a run, an export or a packaged model says, else what is usual for the architecture.
        merging: Which positions are merged; None takes what its weights were trained with.
        bits: Of the frozen weights; for an adapter, `auto` means as it was trained.
        double: Double quantisation.
        skip: Component selectors whose modules stay unquantised.
        precision: Of the matrix products.
        device: Where to put it.
        random_weights: Build from the configuration alone.
        dropout: Overrides the checkpoint's.
        outputs: Symbols or classes of the data, for a model that has no output layer of its own.
        renew_outputs: Make a new output layer in any case; an adapter keeps its own.
        tokenizer: Folder of the tokenizer that a new output layer is to have.

    Raises:
        ModelError: Nothing usable is there.
        AdapterError: The adapter does not fit.
        ConfigError: The model has no such context, or cannot merge so.
    """
    if tokenizer is not None:
        _check_tokenizer_folder(tokenizer)
    adapter = find_adapter(checkpoint)
    settings = read_metadata(adapter) if adapter else {}
    base = base_of(adapter, settings) if adapter else model_folder(checkpoint)
    settings = settings if adapter else use_of(checkpoint)
    recorded = recorded_contexts(adapter, settings, base)
    family = family or choose_family(checkpoint, revision=revision)
    layer: dict[str, Any] = {"outputs": outputs, "renew_outputs": renew_outputs, "tokenizer": tokenizer}
    if adapter:
        layer |= own_output_layer(adapter, settings)
    with phase(f"loading {checkpoint}"):
        loaded = family.load(
            base,
            revision=revision,
            context=context or recorded.get("context"),
            random_weights=random_weights,
            dropout=dropout,
            **layer,
        )
    loaded = with_contexts(loaded, recorded, asked=context)
    loaded = with_merging(loaded, recorded, asked=merging)
    check_frontend(loaded)
    parameters = sum(parameter.numel() for parameter in loaded.module.parameters())
    stored = storage(
        settings if adapter else None,
        bits=bits,
        double=double,
        skip=skip,
        parameters=parameters,
        device=torch.device(device).type,
    )
    dtype, keys = DTYPES[precision], key_weights(loaded)
    if stored.bits in (4, 8):
        keep = kept_unquantized(loaded, stored.skip)
        loaded = quantize(
            loaded,
            bits=stored.bits,  # type: ignore[arg-type]
            keep=keep,
            double=stored.double,
            compute_dtype=dtype,
            device=device,
        )
    loaded.module.to(device)
    keep_key_noise(loaded, keys)
    if adapter:
        loaded = kind_named(settings.get("adapter", "lora")).load(loaded, adapter)
        if dtype != torch.float32:
            cast_frozen(loaded, dtype)
    choices = {"quantization.bits": f"{stored.bits}: {stored.reason}"}
    if context is None and loaded.full_after_thinned and (reason := tuned_elsewhere(checkpoint)):
        choices["model.context"] = f"{loaded.context}: {reason}"
    if loaded.merging.parts:
        why = "as the weights were trained" if merging is None else "asked for"
        choices["frame_merging"] = f"{loaded.merging.described()}: {why}"
    return Opened(loaded=loaded, choices=choices, settings=settings)


def recorded_contexts(adapter: Path | None, settings: Mapping[str, Any], base: str) -> Mapping[str, Any]:
    """What is known of contexts: an adapter of ours from before they were written down has those of its base.

    Args:
        adapter: Its folder, or None for a whole model.
        settings: What the metadata says, or `use_of` a whole model.
        base: What the adapter belongs to.
    """
    if adapter is None or "context" in settings:
        return settings
    return use_of(base if settings else str(adapter))


def with_contexts(loaded: LoadedModel, recorded: Mapping[str, Any], *, asked: Context | None) -> LoadedModel:
    """The model in the context that is asked for or recorded, with the contexts that it was trained for.

    Args:
        loaded: As its architecture usually is.
        recorded: `context`, `trained_contexts`, `thinning` and `tokens_per_second`, each where it is known (`use_of`).
        asked: How much of the model's window is to be computed; None goes by the record.

    Raises:
        ConfigError: The thinned window is asked for, and the model has no window.
    """
    if asked == "thinned" and not loaded.trained_contexts:
        raise ConfigError(
            f"model.context=thinned thins the window behind a clip, and {loaded.checkpoint} ({loaded.family.name}) has "
            "none: it computes every clip at its own length. Leave the setting out."
        )
    if context := asked or recorded.get("context"):
        loaded = loaded.with_(context=context)
    if loaded.trained_contexts and "context" in recorded:
        trained = contexts_of_training(recorded["context"], full_after_thinned=loaded.full_after_thinned)
        loaded = loaded.with_(trained_contexts=tuple(recorded.get("trained_contexts") or trained))
    if "thinning" in recorded:
        loaded = loaded.with_(thinning=Thinning(**recorded["thinning"]))
    return loaded.with_(tokens_per_second=recorded.get("tokens_per_second", 0.0))


def _check_tokenizer_folder(tokenizer: str) -> None:
    if not is_folder(tokenizer):
        raise ModelError(
            f"model.tokenizer={tokenizer} is no folder here. Check the path, or make a tokenizer with "
            f"`sonotune data tokenizer MANIFEST {tokenizer}`."
        )


def own_output_layer(adapter: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `ModelFamily.load` is to be told so that a base gets the output layer an adapter was trained with.

    Args:
        adapter: Its folder.
        settings: Its metadata.
    """
    kept = tuple(settings.get("outputs", ()))
    if not kept:
        return {}
    words = str(adapter) if (adapter / "tokenizer_config.json").is_file() else None
    return {"outputs": kept, "renew_outputs": True, "tokenizer": words}


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How the frozen weights are held: bits and why, double quantisation, and selectors that stay unquantised."""

    bits: int
    reason: str
    double: bool
    skip: tuple[str, ...]


def storage(
    metadata: Mapping[str, Any] | None,
    *,
    bits: Literal["auto"] | int,
    double: bool,
    skip: Sequence[str],
    parameters: int,
    device: str,
) -> Storage:
    """Decide how the frozen weights are held: under an adapter as it was trained, unless other bits are asked for.

    Args:
        metadata: Of the adapter; None where there is none.
        bits: Asked for.
        double: Asked for.
        skip: Asked for.
        parameters: Size of the model.
        device: `cpu` or `cuda`.
    """
    if metadata is None:
        chosen, reason = choose_bits(bits, parameters=parameters, device=device)
        return Storage(bits=chosen, reason=reason, double=double, skip=tuple(skip))
    chosen, reason = (
        (int(metadata.get("bits", 16)), "as the adapter was trained") if bits == "auto" else (int(bits), "asked for")
    )
    return Storage(
        bits=chosen,
        reason=reason,
        double=metadata.get("double", double),
        skip=tuple(metadata.get("quantization_skip", skip)),
    )


def kept_unquantized(loaded: LoadedModel, skip: Sequence[str]) -> set[str]:
    """Full names of the linears that are kept out of quantisation: by selector, and the output layer always."""
    chosen = set(select(loaded, skip))
    return {name for name in loaded.linears if name + ".weight" in chosen or loaded.owner(name) == "head"}


def packed_linears(loaded: LoadedModel, stored: Storage) -> dict[str, int]:
    """Bytes of every linear that is quantised, codes and scales, by its full name; none at 16 bits.

    Args:
        loaded: The bare model, which may be an outline without weights.
        stored: How its weights are held.
    """
    if stored.bits == 16:
        return {}
    kept = kept_unquantized(loaded, stored.skip)
    return {
        name: packed_bytes(*matrix_shape(loaded, name), bits=stored.bits, double=stored.double)
        for name in loaded.linears
        if name not in kept and isinstance(loaded.module.get_submodule(name), nn.Linear)
    }


def find_adapter(checkpoint: str) -> Path | None:
    """The adapter folder that a name stands for: the folder itself, or the one in a run directory.

    Raises:
        ModelError: Its weights are missing, or not in safetensors.
    """
    for folder in (Path(checkpoint), Path(checkpoint) / "adapter"):
        if is_file(folder / PEFT_CONFIG) or _names_a_kind(folder / METADATA):
            if not (folder / ADAPTER_WEIGHTS).is_file():
                raise ModelError(f"{folder} has no {ADAPTER_WEIGHTS}; pickled adapters (.bin) are refused.")
            return folder
    return None


def content_digests(checkpoint: str, loaded: LoadedModel) -> list[str]:
    """Digests of what an opened model computes with: weights, the files beside them, an adapter, merging of frames.

    Args:
        checkpoint: What was opened.
        loaded: The model.

    Raises:
        ModelError: The weights of the adapter are missing.
    """
    adapter = find_adapter(checkpoint)
    return [
        loaded.revision,
        settings_digest(loaded.checkpoint),
        *([] if adapter is None else [weights_digest(adapter)]),
        *([digest_json(loaded.merging.plain())] if loaded.merging.parts else []),
    ]


def model_digest(checkpoint: str, loaded: LoadedModel) -> str:
    """Which model was opened, whatever bits and precision it computes in (`content_digests`)."""
    return digest_json(content_digests(checkpoint, loaded))


def _names_a_kind(metadata: Path) -> bool:
    """Whether a `sonotune.json` is that of an adapter: a whole model has one as well."""
    return is_file(metadata) and "adapter" in read_entries(metadata)


def model_folder(checkpoint: str) -> str:
    """The model a name stands for: a run of full fine-tuning keeps its model in `model/`.

    Raises:
        ModelError: A run directory without a finished model.
    """
    folder = Path(checkpoint)
    if is_file(folder / "run.json"):
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
        settings: Its metadata (`read_metadata`).

    Raises:
        ModelError: It does not say.
    """
    named = settings.get("checkpoint") or peft_entries(adapter).get("base_model_name_or_path")
    if not named:
        raise ModelError(f"the adapter in {adapter} does not say which base model it belongs to.")
    return str(adapter / str(named)) if str(named).startswith(BESIDE) else model_folder(str(named))


def choose_family(
    checkpoint: str, *, revision: str | None = None, family: str = "auto", task: str = "auto"
) -> ModelFamily:
    """The family that a model, adapter or run belongs to.

    Args:
        checkpoint: What was named.
        revision: Hub revision.
        family: Registry name, or `auto` to read it from the adapter or the configuration.
        task: Registry name of the task; decides for an encoder that was saved without an output layer. `auto` takes
            the first family that knows the architecture.

    Raises:
        ModelError: There is no configuration, no family for it, or the family does another task.
    """
    adapter = find_adapter(checkpoint)
    settings = read_metadata(adapter) if adapter else {}
    if family == "auto" and settings.get("family"):
        family = str(settings["family"])
    base = base_of(adapter, settings) if adapter else model_folder(checkpoint)
    if family != "auto":
        chosen: ModelFamily = resolve("families", family)()
        if task not in ("auto", chosen.task):
            raise ModelError(f"{checkpoint} is a model of the family {family}, which can {chosen.task}, not {task}.")
        return chosen
    config = read_config(base, revision)
    known: list[ModelFamily] = [resolve("families", name)() for name in in_order("families")]
    able = [candidate for candidate in known if candidate.handles(config)]
    fitting = [candidate for candidate in able if task in ("auto", candidate.task)]
    if not fitting:
        can = f"; its family can {able[0].task}, and the task asked for is {task}" if able else ""
        raise ModelError(
            f"{base} is a {config.model_type!r} model{can}. Supported families: {', '.join(names('families'))}."
        )
    return fitting[0]
