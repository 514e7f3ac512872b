"""Mark what trains: adapters with chosen weights beside them, or everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sonotune.adapters import lora
from sonotune.adapters.allocation import RankPlan, Scaling
from sonotune.errors import AdapterError, ConfigError
from sonotune.models.base import LoadedModel, carrier, select
from sonotune.models.precision import DTYPES, Precision
from sonotune.models.quantize import cast_frozen
from sonotune.types import Finding

ADAPTER_SETTINGS = frozenset({"rank", "alpha", "scaling", "dropout", "stem", "unfreeze"})
"""Those of the section `adapter` that `adapt` takes."""


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


def new_outputs(loaded: LoadedModel) -> list[Finding]:
    """A warning where an output layer is new and trains as an adapter over random numbers only.

    Raises:
        AdapterError: It is new and does not train at all.
    """
    head = [
        (name, parameter.requires_grad)
        for name, parameter in loaded.module.named_parameters()
        if loaded.component("head").owns(carrier(name))
    ] if loaded.new_outputs else []  # fmt: skip
    if not head or loaded.adapter is None or any(trains for name, trains in head if ".lora_" not in name):
        return []
    if not any(trains for _, trains in head):
        raise AdapterError(
            f"the output layer is new ({len(loaded.new_outputs)} outputs) and would not train. "
            "Train it with adapter.unfreeze=[head]."
        )
    message = (
        f"the output layer is new ({len(loaded.new_outputs)} outputs) and trains as an adapter over random weights; "
        "adapter.unfreeze=[head] trains it in full, which learns faster."
    )
    return [Finding(check="model.new_outputs", severity="warning", message=message)]


def check_plain(loaded: LoadedModel) -> None:
    """Refuse a model that carries an adapter, before anything is planned over it.

    Raises:
        AdapterError: It does.
    """
    if loaded.adapter is not None:
        raise AdapterError(lora.carries_one("training starts from plain weights"))


def untrained_parts(loaded: LoadedModel) -> list[Finding]:
    """A warning for each part of a composed model that is random and trains as an adapter only.

    Raises:
        AdapterError: One does not train at all.
    """
    trains: dict[str, list[str]] = {}  # bare parameter -> what trains of it
    for name, parameter in loaded.module.named_parameters():
        trains.setdefault(carrier(name), []).extend([name] if parameter.requires_grad else [])
    parts = {selector: set(select(loaded, [selector])) for selector in loaded.untrained}
    whole = [one for one in parts if not any(parts[one] < parts[other] for other in parts)]
    advice = f"adapter.unfreeze=[{','.join(whole)}]"
    found = []
    for selector, names in parts.items():
        smaller = {bare for other in parts.values() if other < names for bare in other}  # gates, of cross-attention
        training = [name for bare in names - smaller for name in trains[bare]]
        if any(".lora_" not in name for name in training):
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
    plan: RankPlan | None,
    *,
    rank: int = 8,
    alpha: float | Literal["auto"] = "auto",
    scaling: Scaling = "balanced",
    dropout: float = 0.0,
    stem: Literal["train", "lora", "frozen"] = "train",
    unfreeze: Sequence[str] = (),
    precision: Precision = "fp32",
    gradient_checkpointing: bool = False,
) -> LoadedModel:
    """Attach adapters or unfreeze the model.

    Args:
        loaded: The model as it was opened.
        plan: Ranks of the adapters; None trains the whole model.
        rank: Reference rank, where the plan has none of its own.
        alpha: Numerator of the scale at the reference rank; `auto` takes the rank.
        scaling: Of other ranks.
        dropout: On the inputs of the adapters.
        stem: Train, adapt or freeze the convolutional stem.
        unfreeze: Component selectors trained in full precision.
        precision: Arithmetic of the forward pass; frozen weights are kept in it.
        gradient_checkpointing: Recompute activations in the backward pass.

    Returns:
        The model with its trainable parameters marked (fp32).
    """
    if plan is None:
        loaded = lora.unfreeze_all(loaded)
    else:
        rank = plan.reference or rank
        loaded = lora.attach(
            loaded,
            plan,
            rank=rank,
            alpha=float(rank if alpha == "auto" else alpha),
            scaling=scaling,
            dropout=dropout,
            stem=stem,
            unfreeze=unfreeze,
        )
        if precision != "fp32":
            cast_frozen(loaded, DTYPES[precision])
    if gradient_checkpointing:
        recompute_activations(loaded)
    return loaded


def recompute_activations(loaded: LoadedModel) -> None:
    """Compute activations again in the backward pass instead of keeping them."""
    # Non-reentrant checkpointing needs no input that requires a gradient, so frozen stems stay out of the graph.
    loaded.module.activation_checkpointing_enable({"use_reentrant": False})
