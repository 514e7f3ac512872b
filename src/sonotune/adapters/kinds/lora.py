"""LoRA by PEFT, addressed by full module names: attach, save, load.

What trains beside the low-rank matrices (the convolutional stem, chosen norms) goes through PEFT's `modules_to_save`,
so that one `adapter_model.safetensors` holds everything that was learned and any PEFT tool can load it.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from sonotune.adapters.kinds.base import (
    AdapterSettings,
    carries_one,
    read_tensors,
    stem_modules,
    trained_in_full,
)
from sonotune.adapters.kinds.lora_forward import make_lean
from sonotune.adapters.kinds.lora_scale import scaled
from sonotune.adapters.kinds.patterns import check_patterns
from sonotune.adapters.metadata import (
    ADAPTER_WEIGHTS,
    PEFT_CONFIG,
    name_for_peft,
    peft_entries,
    read_metadata,
    write_metadata,
)
from sonotune.adapters.ranks.plan import RankPlan, Scaling, alphas
from sonotune.adapters.targets import modules_of
from sonotune.errors import AdapterError, ModelError, SonotuneError
from sonotune.models.base import LoadedModel

logger = logging.getLogger(__name__)

_USUAL_RANK: Final = 1024
"""Settings may ask for ranks up to here for modules that the adapter does not have."""


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
    except SonotuneError:
        raise
    except Exception as error:  # which one depends on the entry of its configuration that PEFT cannot use
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
    full = trained_in_full(loaded, AdapterSettings(stem=stem, unfreeze=unfreeze))
    ranks = dict(plan.ranks)
    if stem == "lora" and loaded.stem_modules:
        raise AdapterError(
            f"the stem of {loaded.checkpoint} trains as a whole ({', '.join(loaded.stem_modules)}): it looks at the "
            "class of its convolutions, which an adapter would change. Set adapter.stem to train or frozen."
        )
    if stem == "lora":
        ranks |= dict.fromkeys(stem_modules(loaded), rank)
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
        target_modules=peft_targets(loaded, ranks),
        rank_pattern={exactly(name): value for name, value in ranks.items() if value != rank},
        alpha_pattern={exactly(name): value for name, value in scales.items() if value != usual},
        modules_to_save=list(full) or None,
    )
    with _quiet_peft():
        wrapper = get_peft_model(loaded.module, config)
    for parameter in loaded.module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    adapted = loaded.with_(adapter=wrapper, names=LORA)
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


def exactly(name: str) -> str:
    """A key of PEFT's patterns that no other name ends in."""
    return "^" + re.escape(name)


def peft_targets(loaded: LoadedModel, names: Collection[str]) -> list[str] | str:
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


def stem_cost(loaded: LoadedModel) -> int:
    """Parameters that a unit of rank costs in adapters of the stem."""
    weights = [loaded.module.get_submodule(name).weight for name in stem_modules(loaded)]
    return sum(int(weight[0].numel() + weight.shape[0]) for weight in weights)


def full_modules(loaded: LoadedModel, selector: str) -> tuple[str, ...]:
    """Modules that train in full precision where a selector is unfrozen, or `stem` trained; empty where none can."""
    try:
        modules = stem_modules(loaded) if selector == "stem" else modules_of(loaded, [selector])
        _check_endings(loaded, modules)
    except (AdapterError, ModelError):
        return ()
    return modules


def save(loaded: LoadedModel, folder: Path, *, extra: dict[str, Any] | None = None, without: str | None = None) -> None:
    """Write the adapter in PEFT's format, with `sonotune.json` beside it.

    Args:
        loaded: A model with an adapter.
        folder: Created if absent.
        extra: Further entries of `sonotune.json` (context, language, precision, digests).
        without: Parameters with this in their names are left out: those that another kind adds to LoRA's.

    Raises:
        AdapterError: The model has no adapter.
    """
    if loaded.adapter is None:
        raise AdapterError("this model has no adapter to save; full fine-tuning is saved as a model.")
    folder.mkdir(parents=True, exist_ok=True)
    state = None
    if without is not None:
        state = {name: value for name, value in loaded.adapter.state_dict().items() if without not in name}
    with _quiet_peft():
        loaded.adapter.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False, state_dict=state)
    config_path = folder / PEFT_CONFIG
    config = peft_entries(folder)
    config["base_model_name_or_path"] = name_for_peft(loaded.checkpoint)
    if not isinstance(config["target_modules"], str):
        config["target_modules"] = sorted(config["target_modules"])  # a set: its order differs from run to run
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    write_metadata(loaded, folder, extra=extra or {})


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

    metadata = read_metadata(folder)
    revision = metadata.get("revision")
    if revision not in (None, loaded.revision):
        raise AdapterError(
            f"the adapter in {folder} was trained on {metadata.get('checkpoint')} at {revision}, "
            f"but the base model here is at {loaded.revision}. Give the same base model."
        )
    tensors = read_tensors(folder)
    entries = peft_entries(folder)
    _check_patterns(entries, loaded, folder)
    _check_ranks(entries, tensors, folder)
    with _must_fit(loaded, folder):
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = not trainable
        wrapper = PeftModel(loaded.module, config)
        wanted = get_peft_model_state_dict(wrapper, save_embedding_layers=False)
    _check_tensors(tensors, wanted, folder)  # what is absent would silently keep the values of an untrained adapter
    with _must_fit(loaded, folder):
        wrapper.load_adapter(str(folder), "default", is_trainable=trainable)
    wrapper.eval()
    adapted = loaded.with_(adapter=wrapper, names=LORA)
    make_lean(lora_layers(adapted).values())
    return adapted


def _check_ranks(entries: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Raise AdapterError where the settings ask for ranks that no tensor has, before memory is taken for them."""
    asked = [entries.get("r", 0), *(entries.get("rank_pattern") or {}).values()]
    held = max((min(tensor.shape) for tensor in tensors.values() if tensor.ndim > 1), default=0)
    largest = max(rank for rank in asked if isinstance(rank, int))
    if largest > max(held, _USUAL_RANK):
        raise AdapterError(
            f"{folder / PEFT_CONFIG} asks for rank {largest}, and no tensor of {ADAPTER_WEIGHTS} has a rank above "
            f"{held}. Keep both files of one adapter together."
        )


def _check_tensors(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Raise AdapterError unless a file holds exactly the tensors that its settings ask for."""
    path = folder / ADAPTER_WEIGHTS
    if absent := sorted(wanted.keys() - found.keys()):
        raise AdapterError(
            f"{path} lacks {len(absent)} of the {len(wanted)} tensors that {PEFT_CONFIG} asks for, such as "
            f"{absent[0]}; they would be as before training. Copy the adapter again."
        )
    if unknown := sorted(found.keys() - wanted.keys()):
        raise AdapterError(
            f"{path} holds {len(unknown)} tensors that {PEFT_CONFIG} does not ask for, such as "
            f"{unknown[0]}; they would be left out. Keep both files of one adapter together."
        )
    for name in sorted(wanted):
        if found[name].shape != wanted[name].shape:
            raise AdapterError(
                f"{path} holds {name} as {tuple(found[name].shape)}, and this base model and {PEFT_CONFIG} ask for "
                f"{tuple(wanted[name].shape)}. Give the base model that the adapter was trained on."
            )


def outline(loaded: LoadedModel, folder: Path) -> LoadedModel:
    """Give a module on the meta device the shapes of a saved adapter, without its weights.

    Raises:
        AdapterError: The folder is no adapter, or it does not fit.
    """
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415

    _check_patterns(peft_entries(folder), loaded, folder)
    with _must_fit(loaded, folder):
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = False  # saved as frozen; what trained is to be counted
        wrapper = get_peft_model(loaded.module, config)
    return loaded.with_(adapter=wrapper, names=LORA)


def _check_patterns(entries: Mapping[str, Any], loaded: LoadedModel, folder: Path) -> None:
    modules = [name for name, _ in loaded.module.named_modules()]
    check_patterns(entries, modules, file=str(folder / PEFT_CONFIG))


def lora_layers(loaded: LoadedModel) -> dict[str, Any]:
    """Full name -> PEFT LoRA layer, for every adapted module."""
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415

    return {name: module for name, module in loaded.module.named_modules() if isinstance(module, LoraLayer)}


def update_norms(loaded: LoadedModel) -> dict[str, float]:
    """Frobenius norm of each adapter's B matrix; zero means that it has not trained."""
    with torch.no_grad():
        return {name: float(layer.lora_B["default"].weight.norm()) for name, layer in lora_layers(loaded).items()}


def _factors(name: str, layer: Any) -> tuple[Tensor, Tensor]:
    """A (R, I, ...) and s B (O, R) in fp32: what is added to the weight (O, I, ...) is their product."""
    if "default" not in layer.lora_A:
        raise AdapterError(f"{name} carries an adapter of an embedding, which cannot be merged.")
    down, up = layer.lora_A["default"], layer.lora_B["default"]
    if isinstance(down, Tensor):  # PEFT's own AdaLoRA: s / (number of ranks) B diag(e) A
        scale = layer.scaling["default"] / (float(layer.ranknum["default"]) + 1e-5)
        return down.detach().float() * layer.lora_E["default"].detach().float(), scale * up.detach().float()
    a, b = down.weight.detach().float(), up.weight.detach().float()
    if a.ndim not in (2, 3, 4):
        raise AdapterError(f"{name} carries an adapter of {a.ndim} dimensions, which cannot be merged.")
    return a, layer.scaling["default"] * b.reshape(b.shape[0], b.shape[1])  # of a convolution, B mixes the channels


def _product(a: Tensor, b_OR: Tensor) -> Tensor:
    return torch.einsum("or,r...->o...", b_OR, a)


# Settings of PEFT with which an adapter is more than A and B over unchanged weights, and what each is where it is not.
_LOW_RANK_ONLY = {
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "use_qalora": False,
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
}
_LEAVES_WEIGHTS = (True, False, None, "gaussian", "eva", "orthogonal")  # values of `init_lora_weights`


def _check_low_rank(loaded: LoadedModel) -> None:
    """Raise AdapterError where an adapter of another tool is not the product of two matrices; the message names why."""
    config: Any = loaded.adapter.peft_config["default"]  # type: ignore[union-attr]
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    found = [] if kind in ("LORA", "ADALORA") else [f"peft_type={kind}"]
    found += [
        f"{name}={value}"
        for name, usual in _LOW_RANK_ONLY.items()
        if (value := getattr(config, name, usual)) not in (usual, None, [], {})
    ]
    if (start := getattr(config, "init_lora_weights", True)) not in _LEAVES_WEIGHTS:
        found.append(f"init_lora_weights={start}")  # such as PiSSA, which takes what it starts from out of the weights
    if found:
        raise AdapterError(
            f"this adapter has {', '.join(found)}, so that what it adds is not one product of two matrices a module. "
            "Hand it on as it is (--adapter alone), or merged, which is refused too where the merge is not the same."
        )


class Lora:
    """See `adapters.kinds.base.AdapterKind`."""

    name, folder, ranked = "lora", "adapter", True

    def owns(self, name: str) -> bool:
        """See `ParameterNames`."""
        return ".lora_" in name

    def is_copy(self, parameter: str) -> bool:
        """See `ParameterNames`."""
        return ".modules_to_save." in parameter

    def unwrapped(self, name: str) -> str:
        """See `ParameterNames`."""
        whole = f"{name}."  # a wrapped module ends in what a parameter's name has in the middle
        for piece in ("base_layer.", "original_module.", "modules_to_save.default."):
            whole = whole.replace(f".{piece}", ".")
        return whole.removesuffix(".").removeprefix("base_model.model.")

    def base_name(self, parameter: str) -> str:
        """See `ParameterNames`."""
        bare = self.unwrapped(parameter)
        return bare.split(".lora_")[0] + ".weight" if ".lora_" in bare else bare

    def modules(self, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """See `ParameterNames`."""
        for name, child in module.named_modules():
            if not self.owns(name) and not name.endswith(("base_layer", "original_module", "modules_to_save")):
                yield self.unwrapped(name), child

    def attach(
        self, loaded: LoadedModel, targets: Sequence[str], settings: AdapterSettings, plan: RankPlan | None
    ) -> LoadedModel:
        """See `attach`; a plan says which modules carry an adapter."""
        if plan is None:
            raise AdapterError("LoRA needs a rank for every module that carries an adapter, and there is no plan.")
        rank = plan.reference or settings.rank
        return attach(
            loaded,
            plan,
            rank=rank,
            alpha=float(rank if settings.alpha == "auto" else settings.alpha),
            dropout=settings.dropout,
            stem=settings.stem,
            unfreeze=settings.unfreeze,
            scaling=settings.scaling,
        )

    def save(
        self, loaded: LoadedModel, folder: Path, *, extra: dict[str, Any], weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """See `save`; adapters are never sharded."""
        save(loaded, folder, extra=extra)

    def load(self, loaded: LoadedModel, folder: Path, *, trainable: bool = False) -> LoadedModel:
        """See `load`."""
        return load(loaded, folder, trainable=trainable)

    def outline(self, loaded: LoadedModel, folder: Path) -> LoadedModel:
        """See `outline`."""
        return outline(loaded, folder)

    def disabled(self, loaded: LoadedModel) -> AbstractContextManager[Any]:
        """The model computes as if it had no adapters, inside."""
        context: AbstractContextManager[Any] = loaded.adapter.disable_adapter()  # type: ignore[union-attr]
        return context

    def scaled(self, loaded: LoadedModel, scale: float) -> AbstractContextManager[None]:
        """See `Scalable`."""
        return scaled(loaded.module, lora_layers(loaded), scale)

    def update_norms(self, loaded: LoadedModel) -> dict[str, float]:
        """Norms of the B matrices."""
        return update_norms(loaded)

    def merge(self, loaded: LoadedModel) -> dict[str, Tensor] | None:
        """The update s B A of every adapted weight.

        Raises:
            AdapterError: An adapter sits on something that is neither a linear nor a convolution.
        """
        layers = lora_layers(loaded)
        return {f"{name}.weight": _product(*_factors(name, layer)) for name, layer in layers.items()}

    def low_rank(self, loaded: LoadedModel) -> dict[str, tuple[Tensor, Tensor]] | None:
        """A and s B of every adapted module.

        Raises:
            AdapterError: The adapter does something else beside (DoRA, biases, ...); the message names it.
        """
        _check_low_rank(loaded)
        return {name: _factors(name, layer) for name, layer in lora_layers(loaded).items()}

    def activations(self, module: nn.Module) -> tuple[int, float]:
        """The rank, and the dropout on the input."""
        ranks = getattr(module, "r", None)
        if not isinstance(ranks, dict):
            return 0, 0.0
        layer: Any = getattr(module, "lora_dropout", {})
        dropout = float(getattr(layer["default"], "p", 0.0)) if layer and "default" in layer else 0.0
        return int(ranks.get("default", 0)), dropout


LORA = Lora()
