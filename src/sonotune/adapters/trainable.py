"""Mark what trains: adapters with chosen weights beside them, or everything."""

from __future__ import annotations

from collections.abc import Sequence

from sonotune.adapters.kinds.base import AdapterKind, AdapterSettings, carries_one
from sonotune.adapters.ranks.choose import RankSettings, adapted_modules, plan_uncalibrated
from sonotune.adapters.ranks.plan import RankPlan
from sonotune.errors import AdapterError, ConfigError
from sonotune.models.base import LoadedModel, select
from sonotune.models.precision import DTYPES, Precision
from sonotune.models.quantize import cast_frozen
from sonotune.types import Finding


def check_settings_of_task(
    task: str, outputs: Sequence[str], *, mixup_probability: float, num_labels: int | None
) -> None:
    """Refuse settings that belong to another task, and a number of classes that is not that of the data.

    Args:
        task: Registry name.
        outputs: Symbols or classes of the training clips.
        mixup_probability: `augmentation.mixup_probability`.
        num_labels: `model.num_labels`.

    Raises:
        ConfigError: There are some.
    """
    if task != "classify" and mixup_probability:
        raise ConfigError(
            f"augmentation.mixup_probability is {mixup_probability} and the task is {task}: two "
            "transcripts cannot be mixed. Set it to 0."
        )
    if task == "classify" and num_labels is not None and outputs and num_labels != len(outputs):
        raise ConfigError(
            f"model.num_labels is {num_labels}, and the training clips have {len(outputs)} classes: "
            f"{', '.join(outputs[:8])}{', ...' * (len(outputs) > 8)}. Leave the setting out; a run counts for itself."
        )


def check_shardable(
    *,
    kind: str,
    bits: int,
    precision: Precision,
    optimizer: str,
    memory_limit_bytes: int | None = None,
) -> None:
    """See that weights can be cut with the other settings of a run.

    Args:
        kind: Of adapters; none trains the model itself.
        bits: Of the frozen weights.
        precision: Arithmetic of the forward pass.
        optimizer: As it will be.
        memory_limit_bytes: Of a micro-batch.

    Raises:
        ConfigError: They cannot.
    """
    problem = None
    if kind != "none" and bits != 16:
        problem = f"quantization.bits={bits} packs the weights already. Take 16, or leave them whole"
    elif memory_limit_bytes is not None:
        problem = "training.memory_limit_bytes cuts micro-batches in one process and not in another"
    elif kind == "none" and precision == "fp16":
        problem = "fp16 scales losses by what one process sees. Take training.precision=bf16 or fp32"
    elif kind == "none" and optimizer != "adamw":
        problem = f"training.optimizer={optimizer} knows no parts of tensors. Take adamw"
    if problem is not None:
        raise ConfigError(f"training.shard_weights cuts the weights of the layers, and {problem}.")


def new_outputs(loaded: LoadedModel) -> list[Finding]:
    """A warning where an output layer is new and the stages train it as an adapter over random numbers only.

    Raises:
        AdapterError: It is new and does not train at all.
    """
    head = (
        [
            (name, parameter.requires_grad)
            for name, parameter in loaded.module.named_parameters()
            if loaded.component("head").owns(loaded.names.base_name(name))
        ]
        if loaded.new_outputs
        else []
    )
    if not head or loaded.adapter is None or any(trains for name, trains in head if not loaded.names.owns(name)):
        return []
    if not any(trains for _, trains in head):
        raise AdapterError(
            f"the output layer is new ({len(loaded.new_outputs)} outputs) and would not train. "
            "Name it in the weights of a stage: {name: head, weights: [head], ...}."
        )
    message = (
        f"the output layer is new ({len(loaded.new_outputs)} outputs) and trains as an adapter over random weights; "
        "a stage with weights: [head] trains it in full, which learns faster."
    )
    return [Finding(check="model.new_outputs", severity="warning", message=message)]


def check_plain(loaded: LoadedModel) -> None:
    """Refuse a model that carries an adapter, before anything is planned over it.

    Raises:
        AdapterError: It does.
    """
    if loaded.adapter is not None:
        raise AdapterError(carries_one("training starts from plain weights"))


def untrained_parts(loaded: LoadedModel) -> list[Finding]:
    """A warning for each part of a composed model that is random and that the stages train as an adapter only.

    Raises:
        AdapterError: One does not train at all.
    """
    trains: dict[str, list[str]] = {}  # bare parameter -> what trains of it
    for name, parameter in loaded.module.named_parameters():
        trains.setdefault(loaded.names.base_name(name), []).extend([name] if parameter.requires_grad else [])
    parts = {selector: set(select(loaded, [selector])) for selector in loaded.untrained}
    whole = [one for one in parts if not any(parts[one] < parts[other] for other in parts)]
    advice = f"a stage with weights: [{', '.join(whole)}]"
    found = []
    for selector, names in parts.items():
        smaller = {bare for other in parts.values() if other < names for bare in other}  # gates, of cross-attention
        training = [name for bare in names - smaller for name in trains[bare]]
        if any(not loaded.names.owns(name) for name in training):
            continue
        if not training:
            raise AdapterError(
                f"{selector} of {loaded.checkpoint} is as it was made, never trained, and would not train. "
                f"Train it with {advice}."
            )
        message = (
            f"{selector} is as it was made, never trained, and trains as an adapter over random weights; {advice} "
            "trains it in full, without which the model hardly learns to hear."
        )
        found.append(Finding(check="model.untrained", severity="warning", message=message))
    return found


def adapt(
    loaded: LoadedModel,
    kind: AdapterKind,
    plan: RankPlan | None,
    settings: AdapterSettings,
    *,
    targets: Sequence[str] = (),
    precision: Precision = "fp32",
    gradient_checkpointing: bool = False,
) -> LoadedModel:
    """Attach adapters, or mark the whole model to train.

    Args:
        loaded: The model as it was opened.
        kind: Of adapters.
        plan: Ranks of the adapters; None where the kind has no ranks.
        settings: How adapters are attached, and what trains beside them.
        targets: Full names of the modules that carry an adapter, where no plan says.
        precision: Arithmetic of the forward pass; frozen weights are kept in it.
        gradient_checkpointing: Recompute activations in the backward pass.

    Returns:
        The model with its trainable parameters marked (fp32).
    """
    loaded = kind.attach(loaded, targets if plan is None else tuple(plan.ranks), settings, plan)
    if loaded.adapter is not None and precision != "fp32":
        cast_frozen(loaded, DTYPES[precision])
    if gradient_checkpointing:
        recompute_activations(loaded)
    return loaded


def adapt_uncalibrated(
    loaded: LoadedModel,
    kind: AdapterKind,
    ranks: RankSettings,
    settings: AdapterSettings,
    *,
    precision: Precision = "fp32",
    gradient_checkpointing: bool = False,
) -> LoadedModel:
    """Adapt a model as a run would that has no clips to calibrate ranks by; see `adapt` and `plan_uncalibrated`.

    Raises:
        AdapterError: Targets or ranks are wrong.
    """
    return adapt(
        loaded,
        kind,
        plan_uncalibrated(loaded, ranks) if kind.ranked else None,
        settings,
        targets=targets_of(loaded, kind, ranks),
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
    )


def targets_of(loaded: LoadedModel, kind: AdapterKind, ranks: RankSettings) -> tuple[str, ...]:
    """Full names of the modules that carry an adapter; empty where the model itself trains.

    Raises:
        AdapterError: A target matches nothing.
    """
    return () if kind.name == "none" else tuple(site.name for site in adapted_modules(loaded, ranks))


def recompute_activations(loaded: LoadedModel) -> None:
    """Compute activations again in the backward pass instead of keeping them."""
    # Non-reentrant checkpointing needs no input that requires a gradient, so frozen stems stay out of the graph.
    loaded.module.activation_checkpointing_enable({"use_reentrant": False})
