"""LoRA by PEFT, addressed by full module names: attach, save, load.

What trains beside the low-rank matrices (the convolutional stem, chosen norms) goes through PEFT's `modules_to_save`,
so that one `adapter_model.safetensors` holds everything that was learned and any PEFT tool can load it.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sonotune.adapters.allocation import RankPlan, Scaling, alphas
from sonotune.adapters.forward import make_lean
from sonotune.adapters.targets import modules_of
from sonotune.errors import AdapterError, ModelError
from sonotune.models.base import LoadedModel
from sonotune.models.thinning import Thinning
from sonotune.types import CONTEXTS

logger = logging.getLogger(__name__)

SIDE_CAR = "sonotune.json"
_PEFT, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@contextmanager
def _quiet_peft() -> Iterator[None]:
    with warnings.catch_warnings():
        # PEFT announces that it found no task type and, on import, that a kernel hub is absent: neither matters here.
        warnings.simplefilter("ignore", UserWarning)
        # PEFT 0.21 asks transformers 5 by the old name whether it checkpoints activations.
        warnings.simplefilter("ignore", FutureWarning)
        yield


@contextmanager
def _must_fit(loaded: LoadedModel, folder: Path) -> Iterator[None]:
    """Turn what PEFT says of an adapter that does not fit into an AdapterError."""
    try:
        with _quiet_peft():
            yield
    except (ValueError, RuntimeError, OSError, TypeError, KeyError, AttributeError) as error:
        raise AdapterError(f"the adapter in {folder} does not fit {loaded.checkpoint}: {str(error)[:200]}") from error


def attach(
    loaded: LoadedModel,
    plan: RankPlan,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    stem: Literal["train", "lora", "frozen"] = "train",
    unfreeze: Sequence[str] = (),
    scaling: Scaling = "balanced",
) -> LoadedModel:
    """Inject adapters into the module, in place, and freeze everything else.

    Args:
        loaded: A model without adapters.
        plan: Rank of every adapted linear.
        rank: Reference rank, at which the scale is `alpha / rank`.
        alpha: Numerator of the scale at the reference rank.
        dropout: On the inputs of the adapters.
        stem: Train the convolutional stem in full precision, adapt it by LoRA, or leave it frozen.
        unfreeze: Further component selectors trained in full precision, such as `encoder.norms`.
        scaling: See `allocation.alphas`.

    Returns:
        The model with `adapter` set; its trainable parameters are exactly those asked for.

    Raises:
        AdapterError: The model has adapters already, a selected weight cannot train, or a module is both adapted
            and trained in full precision.
    """
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415  (one second; only adapted runs pay)

    if loaded.adapter is not None:
        raise AdapterError(carries_one("an adapter is trained on plain weights"))
    stem_modules = _stem_modules(loaded)
    full = modules_of(loaded, unfreeze) if unfreeze else ()
    if stem == "train":
        full = tuple(dict.fromkeys((*stem_modules, *full)))
    ranks = dict(plan.ranks)
    if stem == "lora" and loaded.stem_modules:
        raise AdapterError(
            f"the stem of {loaded.checkpoint} trains as a whole ({', '.join(loaded.stem_modules)}): it looks at the "
            "class of its convolutions, which an adapter would change. Set adapter.stem to train or frozen."
        )
    if stem == "lora":
        ranks |= dict.fromkeys(stem_modules, rank)
    if both := [name for name in ranks if name in full]:
        raise AdapterError(
            f"{both[0]} and {len(both) - 1} more would carry an adapter and train in full precision as well. "
            "Leave them out of adapter.targets or of adapter.unfreeze."
        )
    for parameter in loaded.module.parameters():
        parameter.requires_grad_(False)
    _check_endings(loaded, full)
    scales = alphas(ranks, rank=rank, alpha=alpha, scaling=scaling)
    usual = alphas({"": rank}, rank=rank, alpha=alpha, scaling=scaling)[""]
    config = LoraConfig(
        r=rank,
        lora_alpha=usual,
        lora_dropout=dropout,
        bias="none",
        target_modules=_only(loaded, ranks),
        rank_pattern={_exactly(name): value for name, value in ranks.items() if value != rank},
        alpha_pattern={_exactly(name): value for name, value in scales.items() if value != usual},
        modules_to_save=list(full) or None,
    )
    with _quiet_peft():
        wrapper = get_peft_model(loaded.module, config)
    for parameter in loaded.module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    adapted = loaded.with_(adapter=wrapper)
    make_lean(lora_layers(adapted).values())
    _begin_at(adapted, plan)
    return adapted


def _begin_at(loaded: LoadedModel, plan: RankPlan) -> None:
    """Put the rows that the allocator chose into the A matrices; it may know fewer than the rank."""
    layers = lora_layers(loaded) if plan.initial else {}
    with torch.no_grad():
        for name, rows in plan.initial.items():
            weight = layers[name].lora_A["default"].weight
            weight[: len(rows)].copy_(torch.from_numpy(rows).view(len(rows), *weight.shape[1:]))


def _exactly(name: str) -> str:
    """A key of PEFT's patterns that no other name ends in."""
    return "^" + re.escape(name)


def _only(loaded: LoadedModel, names: Collection[str]) -> list[str] | str:
    """The targets as PEFT takes them: a list, which it matches by endings too, or a pattern where that hits others."""
    if not _hit_by_ending(loaded, names):
        return list(names)
    return "(" + "|".join(map(re.escape, names)) + ")"


def _hit_by_ending(loaded: LoadedModel, names: Collection[str]) -> list[str]:
    """Modules that are not named, and end in one that is."""
    wanted = set(names)
    shortest = [name for name in wanted if name.count(".") < 2]  # a full name that is longer ends no other
    return [
        module
        for module, _ in loaded.module.named_modules()
        if module not in wanted and any(module.endswith("." + name) for name in shortest)
    ]


def _check_endings(loaded: LoadedModel, full: Collection[str]) -> None:
    """PEFT finds what trains in full by the ending of its name, and has no other way.

    Raises:
        AdapterError: It would train something else as well.
    """
    if hit := _hit_by_ending(loaded, full):
        raise AdapterError(
            f"{hit[0]} ends in the name of a module that trains in full precision, and would train with it. "
            "Train an adapter there instead, or the larger module that holds both."
        )


def carries_one(why: str) -> str:
    """What a user is told who would train over an adapter."""
    return (
        f"{why}, but this model already carries an adapter. "
        "Merge it first: sonotune export RUN FOLDER, then model=FOLDER."
    )


def stem_cost(loaded: LoadedModel) -> int:
    """Parameters that a unit of rank costs in adapters of the stem."""
    weights = [loaded.module.get_submodule(name).weight for name in _stem_modules(loaded)]
    return sum(int(weight[0].numel() + weight.shape[0]) for weight in weights)


def _stem_modules(loaded: LoadedModel) -> tuple[str, ...]:
    """Convolutions of the stem; its linears where it has none; or what the family names."""
    if loaded.stem_modules:
        return loaded.stem_modules
    stem = loaded.component("stem")
    inside = [(name, module) for name, module in loaded.module.named_modules() if stem.owns(name + ".weight")]
    convolutions = [name for name, module in inside if isinstance(module, nn.Conv1d | nn.Conv2d)]
    return tuple(convolutions or [name for name, module in inside if isinstance(module, nn.Linear)])


def full_modules(loaded: LoadedModel, selector: str) -> tuple[str, ...]:
    """Modules that train in full precision where a selector is unfrozen, or `stem` trained; empty where none can."""
    try:
        modules = _stem_modules(loaded) if selector == "stem" else modules_of(loaded, [selector])
        _check_endings(loaded, modules)
    except (AdapterError, ModelError):
        return ()
    return modules


def unfreeze_all(loaded: LoadedModel) -> LoadedModel:
    """Full fine-tuning: every parameter the architecture lets train.

    Raises:
        AdapterError: The weights are quantised, or the model carries an adapter.
    """
    if loaded.adapter is not None:
        raise AdapterError(carries_one("full fine-tuning starts from plain weights"))
    if loaded.quantized:
        raise AdapterError(
            f"adapter.kind=none trains all weights, but {len(loaded.quantized)} are quantised. "
            "Set quantization.bits=16, or use adapter.kind=lora."
        )
    for name, parameter in loaded.module.named_parameters():
        parameter.requires_grad_(name not in loaded.constant)
        parameter.data = parameter.data.float()
    return loaded


def save(loaded: LoadedModel, folder: Path, *, extra: dict[str, Any] | None = None) -> None:
    """Write the adapter in PEFT's format, with `sonotune.json` beside it.

    Args:
        loaded: A model with an adapter.
        folder: Created if absent.
        extra: Further entries of `sonotune.json` (context, language, precision, digests).

    Raises:
        AdapterError: The model has no adapter.
    """
    if loaded.adapter is None:
        raise AdapterError("this model has no adapter to save; full fine-tuning is saved as a model.")
    folder.mkdir(parents=True, exist_ok=True)
    with _quiet_peft():
        loaded.adapter.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    config_path = folder / "adapter_config.json"
    config = json.loads(config_path.read_text("utf-8"))
    config["base_model_name_or_path"] = _anywhere(loaded.checkpoint)
    if not isinstance(config["target_modules"], str):
        config["target_modules"] = sorted(config["target_modules"])  # a set: its order differs from run to run
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    write_side_car(loaded, folder, extra=extra or {})


def write_side_car(loaded: LoadedModel, folder: Path, *, extra: Mapping[str, Any]) -> None:
    """Write `sonotune.json`: what a model was made of, and what else is to be known when it is used."""
    side_car = {"schema": 1, "family": loaded.family, "checkpoint": _anywhere(loaded.checkpoint),
                "revision": loaded.revision, "context": loaded.context,
                "trained_contexts": list(loaded.trained_contexts),
                "thinning": asdict(loaded.thinning), **extra}  # fmt: skip
    (folder / SIDE_CAR).write_text(json.dumps(side_car, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def _anywhere(checkpoint: str) -> str:
    """A folder's name, readable from any working directory; another name as it is."""
    base = Path(checkpoint)
    return str(base.resolve()) if base.is_dir() else checkpoint


def load(loaded: LoadedModel, folder: Path, *, trainable: bool = False) -> LoadedModel:
    """Put a saved adapter on its base model.

    Args:
        loaded: The base model the adapter was trained on.
        folder: PEFT folder.
        trainable: Whether training goes on.

    Raises:
        AdapterError: The folder is no adapter, it was trained on other weights, or its tensors are damaged or not
            those of its settings.
    """
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict  # noqa: PLC0415

    side_car = read_side_car(folder)
    revision = side_car.get("revision")
    if revision not in (None, loaded.revision):
        raise AdapterError(
            f"the adapter in {folder} was trained on {side_car.get('checkpoint')} at {revision}, "
            f"but the base model here is at {loaded.revision}. Give the same base model."
        )
    tensors = read_tensors(folder)
    with _must_fit(loaded, folder):
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = not trainable
        wrapper = PeftModel(loaded.module, config)
        wanted = get_peft_model_state_dict(wrapper, save_embedding_layers=False)
    _check_tensors(tensors, wanted, folder)  # what is absent would silently keep the values of an untrained adapter
    with _must_fit(loaded, folder):
        wrapper.load_adapter(str(folder), "default", is_trainable=trainable)
    wrapper.eval()
    adapted = loaded.with_(adapter=wrapper)
    make_lean(lora_layers(adapted).values())
    return adapted


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """What a saved adapter learned, by PEFT's names.

    Raises:
        AdapterError: The file is missing or damaged, or holds NaN or infinity.
    """
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    path = folder / _WEIGHTS
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise AdapterError(f"{path} is damaged or empty: {error}. Copy the adapter again.") from error
    lost = sorted(name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all()))
    if lost:
        raise AdapterError(
            f"{path} holds NaN or infinity in {len(lost)} of {len(tensors)} tensors, such as {lost[0]}. "
            "Take an adapter from before its training failed."
        )
    return tensors


def _check_tensors(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Raise AdapterError unless a file holds exactly the tensors that its settings ask for."""
    path = folder / _WEIGHTS
    if absent := sorted(wanted.keys() - found.keys()):
        raise AdapterError(
            f"{path} lacks {len(absent)} of the {len(wanted)} tensors that {_PEFT} asks for, such as {absent[0]}; "
            "they would be as before training. Copy the adapter again."
        )
    if unknown := sorted(found.keys() - wanted.keys()):
        raise AdapterError(
            f"{path} holds {len(unknown)} tensors that {_PEFT} does not ask for, such as {unknown[0]}; they would be "
            "left out. Keep both files of one adapter together."
        )
    for name in sorted(wanted):
        if found[name].shape != wanted[name].shape:
            raise AdapterError(
                f"{path} holds {name} as {tuple(found[name].shape)}, and this base model and {_PEFT} ask for "
                f"{tuple(wanted[name].shape)}. Give the base model that the adapter was trained on."
            )


def lay_out(loaded: LoadedModel, folder: Path) -> LoadedModel:
    """Give a module on the meta device the shapes of a saved adapter, without its weights.

    Raises:
        AdapterError: The folder is no adapter, or it does not fit.
    """
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415

    with _must_fit(loaded, folder):
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = False  # saved as frozen; what trained is to be counted
        wrapper = get_peft_model(loaded.module, config)
    return loaded.with_(adapter=wrapper)


def read_side_car(folder: Path) -> dict[str, Any]:
    """The entries of `sonotune.json`; empty for an adapter made by another PEFT tool.

    Raises:
        AdapterError: The folder holds no adapter, or one of its two descriptions is damaged.
    """
    peft_entries(folder)
    path = folder / SIDE_CAR
    return read_entries(path) if path.is_file() else {}


def read_entries(path: Path) -> dict[str, Any]:
    """The entries of a `sonotune.json`, or of another file that has some of them.

    Raises:
        AdapterError: It is no JSON object, or an entry has a value that it cannot have.
    """
    entries = _read_object(path)
    for name, (fits, allowed) in _ENTRIES.items():
        if name in entries and not fits(entries[name]):
            raise AdapterError(
                f"{path}: {name} is {entries[name]!r}, and it must be {allowed}. Copy the folder again, as "
                "sonotune wrote it."
            )
    if entries.get("context") == "dynamic":  # what older versions called it
        entries["context"] = "cut"
    return entries


def peft_entries(folder: Path) -> dict[str, Any]:
    """The entries of `adapter_config.json`.

    Raises:
        AdapterError: It is missing, or no JSON object.
    """
    path = folder / _PEFT
    if not path.is_file():
        raise AdapterError(f"{folder} holds no adapter: {_PEFT} is missing.")
    return _read_object(path)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} is damaged: {error}. Copy the folder again.") from error
    if not isinstance(entries, dict):
        raise AdapterError(f"{path} holds a {type(entries).__name__}, not an object. Copy the folder again.")
    return entries


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_thinning(value: Any) -> bool:
    try:
        Thinning(**value)
    except (TypeError, ValueError):
        return False
    return all(isinstance(number, int) for number in value.values())


_TEXT, _TEXTS, _SECONDS = (_is_text, "text"), (_is_texts, "a list of texts"), (_is_seconds, "a number of seconds")
_SWITCH = (lambda value: isinstance(value, bool), "true or false")
_ENTRIES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "family": _TEXT,
    "checkpoint": _TEXT,
    "revision": _TEXT,
    "context": (lambda value: value in (*CONTEXTS, "dynamic"), " or ".join(CONTEXTS)),
    "thinning": (lambda value: _is_thinning(value), "a margin and a spacing"),
    "trained_contexts": (lambda value: _is_texts(value) and set(value) <= set(CONTEXTS), "a list of contexts"),
    "bits": (lambda value: not isinstance(value, bool) and value in (4, 8, 16), "4, 8 or 16"),
    "double": _SWITCH,
    "quantization_skip": _TEXTS,
    "outputs": _TEXTS,
    "language": _TEXT,
    "text_scoring": _TEXT,
    "min_duration_s": _SECONDS,
    "max_duration_s": (lambda value: value is None or _is_seconds(value), "a number of seconds, or null"),
    "multi_label": _SWITCH,
}
"""What `sonotune.json` may hold: a test of each entry that is read again, and what it must be."""


def lora_layers(loaded: LoadedModel) -> dict[str, Any]:
    """Full name -> PEFT LoRA layer, for every adapted module."""
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415

    return {name: module for name, module in loaded.module.named_modules() if isinstance(module, LoraLayer)}


def update_norms(loaded: LoadedModel) -> dict[str, float]:
    """Frobenius norm of each adapter's B matrix; zero means that it has not trained."""
    with torch.no_grad():
        return {name: float(layer.lora_B["default"].weight.norm()) for name, layer in lora_layers(loaded).items()}
