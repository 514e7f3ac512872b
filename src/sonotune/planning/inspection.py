"""What a model is made of, what would train and what it would weigh: at real size, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from sonotune.adapters.kinds.base import AdapterSettings, kind_named
from sonotune.adapters.metadata import read_metadata, use_of
from sonotune.adapters.ranks.choose import RankSettings
from sonotune.adapters.ranks.plan import matrix_shape, unit_costs
from sonotune.adapters.trainable import adapt_uncalibrated
from sonotune.loading import (
    base_of,
    choose_family,
    find_adapter,
    model_folder,
    packed_linears,
    recorded_contexts,
    storage,
    with_contexts,
)
from sonotune.models.base import LoadedModel, count_parameters
from sonotune.models.frame_merging.prepare import with_merging
from sonotune.models.frame_merging.settings import NO_MERGING, FrameMerging
from sonotune.planning.layout import outline_processor, silent_batch
from sonotune.planning.teacher import TeacherMemory
from sonotune.planning.work import encoder_work
from sonotune.types import Context

_LENGTHS_S = (3.0, 10.0, 20.0)  # of clips that `Inspection.computed_s` is given for


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedWork:
    """What merging leaves of an encoder's work on one clip.

    Attributes:
        positions: Of the clip itself, going into the first layer and coming out of the last.
        flops_share: Operations of the encoder's layers, of what they would be without merging.
    """

    positions: tuple[int, int]
    flops_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Sizes of a model as a run would hold it. Bytes are of weights alone: no gradients, optimiser or activations.

    Attributes:
        family: Registry name of the architecture.
        checkpoint: What was named.
        bits: Of the frozen linears, and why.
        total: Parameters of the bare model; tied weights count once.
        trainable: Parameters that would train, adapters included.
        adapter: Parameters of the low-rank matrices.
        quantized: Weights held in 4 or 8 bits.
        quantized_bytes: What those take, scales included.
        components: For each component `name`, `parameters`, `trainable`, `bytes`, `linears` (that can carry an adapter)
            and `parameters_per_rank` (what one unit of rank costs over them).
        context: How much of the model's window is computed behind a clip; None where the model has no window.
        trained_contexts: Contexts that the weights were trained for, or compute the same function in.
        window_s: Seconds of the window, or None.
        computed_s: Seconds of a clip -> seconds that are computed for it, for a few lengths; empty without a window.
        merging: Which positions are merged.
        merged: Seconds of a clip -> what merging leaves of its encoder, for a few lengths; empty where nothing is.
        teacher: What the model that is learned from takes beside it; None without one.
    """

    family: str
    checkpoint: str
    bits: tuple[int, str]
    total: int
    trainable: int
    adapter: int
    quantized: int
    quantized_bytes: int
    components: tuple[dict[str, Any], ...]
    context: Context | None = None
    trained_contexts: tuple[Context, ...] = ()
    window_s: float | None = None
    computed_s: Mapping[float, float] = field(default_factory=dict)
    merging: FrameMerging = NO_MERGING
    merged: Mapping[float, MergedWork] = field(default_factory=dict)
    teacher: TeacherMemory | None = None

    @property
    def weight_bytes(self) -> int:
        """All weights: quantised linears packed, other frozen matrices in bf16, all else in fp32."""
        return sum(int(row["bytes"]) for row in self.components)

    def to_json(self) -> dict[str, Any]:
        """The form of `inspect --json`.

        `compression.parameters` is parameters / parameters that train; `compression.size` is the size of the model in
        16 bits / its size as held for training.
        """
        return {
            "family": self.family,
            "checkpoint": self.checkpoint,
            "bits": self.bits[0],
            "parameters": {
                "total": self.total,
                "trainable": self.trainable,
                "adapter": self.adapter,
                "quantized": self.quantized,
            },
            "components": [dict(row) for row in self.components],
            "context": {
                "used": self.context,
                "trained": list(self.trained_contexts),
                "window_s": self.window_s,
                "computed_s": {f"{clip_s:g}": computed for clip_s, computed in self.computed_s.items()},
            },
            **({"frame_merging": self._merging()} if self.merging.parts else {}),
            **({} if self.teacher is None else {"teacher": self.teacher.to_json()}),
            "bytes": {"weights": self.weight_bytes, "quantized": self.quantized_bytes},
            "bits_per_quantized_parameter": 8 * self.quantized_bytes / self.quantized if self.quantized else None,
            "compression": {
                "parameters": self.total / self.trainable if self.trainable else None,
                "size": 2 * self.total / self.weight_bytes,
            },
        }

    def _merging(self) -> dict[str, Any]:
        clips = {f"{clip_s:g}": asdict(one) for clip_s, one in self.merged.items()}
        return {**self.merging.plain(), "clips": clips}


def inspect_model(
    checkpoint: str,
    *,
    family: str = "auto",
    revision: str | None = None,
    bits: Literal["auto"] | int = "auto",
    double: bool = True,
    skip: Sequence[str] = (),
    device: str = "cpu",
    task: str = "auto",
    num_labels: int | None = None,
    context: Context | None = None,
    merging: FrameMerging | None = None,
    kind: str = "lora",
    ranks: RankSettings | None = None,
    adapter: AdapterSettings | None = None,
) -> Inspection:
    """Lay a model out on the meta device, mark what would train, and count.

    Args:
        checkpoint: Packaged, hub or local model, adapter folder or run.
        family: Registry name, or `auto`.
        revision: Hub revision.
        bits: Of the frozen linears.
        double: Double quantisation of the NF4 scales.
        skip: Component selectors whose modules stay unquantised.
        device: Where it would run, which `bits=auto` depends on.
        task: Registry name, or `auto`.
        num_labels: Size of a new output layer; None takes the checkpoint's.
        context: How much of the model's window is computed; None takes what the checkpoint says.
        merging: Which positions are merged; None takes what the checkpoint says.
        kind: Of adapters (`adapter.kind`); a saved adapter brings its own.
        ranks: How ranks are chosen. Those that need calibration are counted as uniform ones; they spend the same.
        adapter: How adapters are attached. A saved adapter brings its own.

    Raises:
        ModelError: The configuration cannot be read, or a selector matches nothing.
        AdapterError: The targets or ranks are wrong.
        ConfigError: The model has no such context, or cannot merge so.
    """
    saved = find_adapter(checkpoint)
    metadata = read_metadata(saved) if saved else None
    base = base_of(saved, metadata) if saved and metadata is not None else model_folder(checkpoint)
    architecture = choose_family(checkpoint, revision=revision, family=family, task=task)
    loaded = architecture.outline(
        base, revision=revision, outputs=len((metadata or {}).get("outputs", ())) or num_labels
    )
    recorded = recorded_contexts(saved, metadata if metadata is not None else use_of(checkpoint), base)
    loaded = with_merging(with_contexts(loaded, recorded, asked=context), recorded, asked=merging)
    total = sum(parameter.numel() for parameter in loaded.module.parameters())
    linears = {name: matrix_shape(loaded, name) for name in loaded.linears}
    costs = unit_costs(loaded, loaded.linears)
    full, ranks = kind == "none" and not saved, ranks or RankSettings()
    stored = storage(
        metadata,
        bits=16 if full else bits,
        double=double,
        skip=[*skip, *([] if full else ranks.unfreeze)],
        parameters=total,
        device=device,
    )
    packed = packed_linears(loaded, stored)
    with torch.device("meta"):
        if saved:
            loaded = kind_named((metadata or {}).get("adapter", "lora")).outline(loaded, saved)
        else:
            loaded = adapt_uncalibrated(loaded, kind_named(kind), ranks, adapter or AdapterSettings())
    windowed = bool(loaded.trained_contexts)
    return Inspection(
        family=loaded.family.name,
        checkpoint=checkpoint,
        bits=(stored.bits, "all weights train" if full else stored.reason),
        total=total,
        trainable=sum(row["trainable"] for row in count_parameters(loaded).values()),
        adapter=sum(value.numel() for name, value in loaded.module.named_parameters() if loaded.names.owns(name)),
        quantized=sum(rows * columns for name, (rows, columns) in linears.items() if name in packed),
        quantized_bytes=sum(packed.values()),
        components=_components(loaded, packed, costs),
        context=loaded.context if windowed else None,
        trained_contexts=loaded.trained_contexts,
        window_s=loaded.frontend.max_duration_s if windowed else None,
        computed_s={clip_s: loaded.computed_s(clip_s) for clip_s in _LENGTHS_S} if windowed else {},
        merging=loaded.merging,
        merged=_merged_work(loaded, base),
    )


def _merged_work(loaded: LoadedModel, base: str) -> dict[float, MergedWork]:
    if "encoder" not in loaded.merging.parts:
        return {}
    loaded, found = loaded.with_(processor=outline_processor(base, loaded.family.name)), {}
    layers = len(loaded.family.merge_layers(loaded))
    for clip_s in (one for one in _LENGTHS_S if one <= (loaded.frontend.max_duration_s or one)):
        batch = silent_batch(loaded, 1, clip_s, 1)
        merged, plain = (encoder_work(one, batch) for one in (loaded, loaded.with_(merging=NO_MERGING)))
        if merged is not None and plain is not None:
            own = plain.positions[0]
            left = loaded.merging.remaining(own, layers)[loaded.merging.after(layers)[-1]]
            found[clip_s] = MergedWork(positions=(own, left), flops_share=merged.flops / plain.flops)
    return found


def _components(loaded: LoadedModel, packed: dict[str, int], costs: dict[str, int]) -> tuple[dict[str, Any], ...]:
    rows = []
    for name, counted in count_parameters(loaded).items():
        component = loaded.component(name)
        linears = [linear for linear in loaded.linears if component.owns(linear + ".weight")]
        held = sum(packed[linear] for linear in linears if linear in packed)
        for parameter, value in loaded.module.named_parameters():
            bare = loaded.names.base_name(parameter)
            base_weight = not loaded.names.owns(parameter) and not loaded.names.is_copy(parameter)
            if component.owns(bare) and not (base_weight and bare.removesuffix(".weight") in packed):
                held += value.numel() * (2 if value.ndim > 1 and not value.requires_grad else 4)
        rows.append(
            {
                "name": name,
                "parameters": counted["parameters"],
                "trainable": counted["trainable"],
                "bytes": held,
                "linears": len(linears),
                "parameters_per_rank": sum(costs[linear] for linear in linears),
            }
        )
    return tuple(rows)
