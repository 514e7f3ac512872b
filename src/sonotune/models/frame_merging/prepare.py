"""A model that merges: whether it can, and what it must know of its weights before they are quantised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sonotune.errors import ConfigError
from sonotune.models.base import LoadedModel
from sonotune.models.frame_merging.layers import keep_sketch, key_projection
from sonotune.models.frame_merging.settings import NO_MERGING, NOISE_RULES, FrameMerging, MergePart
from sonotune.models.quantize import dequantized_weight

_SETTING: Mapping[MergePart, str] = {"encoder": "ratio", "audio": "audio_ratio"}


def with_merging(loaded: LoadedModel, recorded: Mapping[str, Any], *, asked: FrameMerging | None) -> LoadedModel:
    """The model with the merging that is asked for, or that it was trained with.

    Args:
        loaded: In the context that it is used in.
        recorded: `frame_merging`, where it is known.
        asked: What is to be merged; None goes by the record.

    Raises:
        ConfigError: The model cannot merge so.
    """
    merging = asked or (FrameMerging.read(recorded["frame_merging"]) if "frame_merging" in recorded else NO_MERGING)
    refused = loaded.family.merging_refusals(loaded) if merging.parts else {}
    for part in merging.parts:
        if part in refused:
            raise ConfigError(
                f"frame_merging.{_SETTING[part]}={getattr(merging, _SETTING[part]):g} cannot be done in "
                f"{loaded.checkpoint} ({loaded.family.name}): {refused[part]}. Leave the setting out."
            )
    if "encoder" in merging.parts:
        merging.after(len(loaded.family.merge_layers(loaded)))
    return loaded.with_(merging=merging)


def key_weights(loaded: LoadedModel) -> dict[int, Tensor]:
    """Layer -> weight of its key projection (K, D), of the layers whose rule must know what quantising does to it."""
    merging = loaded.merging
    if merging.rule not in NOISE_RULES or "encoder" not in merging.parts:
        return {}
    layers = loaded.family.merge_layers(loaded)
    found: dict[int, Any] = {number: key_projection(layers[number - 1]) for number in merging.after(len(layers))}
    return {number: projection.weight.detach().clone() for number, projection in found.items()}


def keep_key_noise(loaded: LoadedModel, weights: Mapping[int, Tensor]) -> None:
    """Give each of these layers a sketch of what quantising did to its key projection.

    Args:
        loaded: Quantised, without adapters.
        weights: From `key_weights`, before it was quantised.

    Raises:
        ConfigError: A key projection is not quantised.
    """
    if not weights:
        return
    layers, names = loaded.family.merge_layers(loaded), {module: name for name, module in loaded.module.named_modules()}
    for number, weight in weights.items():
        projection = key_projection(layers[number - 1])
        if names[projection] not in loaded.quantized:
            raise ConfigError(
                f"frame_merging.rule={loaded.merging.rule} goes by the error of quantised weights, and "
                f"{names[projection]} is held in 16 bits. Set quantization.bits=4, or frame_merging.rule=similarity."
            )
        error_KD = weight if weight.is_meta else dequantized_weight(projection) - weight.to(loaded.device).float()
        keep_sketch(layers[number - 1], error_KD, number)
