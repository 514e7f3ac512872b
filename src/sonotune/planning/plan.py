"""A plan of a run: memory by bucket of clip lengths, by stage and component; what fits; time and money."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sonotune.adapters.trainable import check_shardable
from sonotune.errors import ConfigError
from sonotune.models.frame_merging.settings import NO_MERGING
from sonotune.planning.cards import Card, left_for_tensors, needed_bytes
from sonotune.planning.cost import Cost
from sonotune.planning.exact import measure_step
from sonotune.planning.layout import Layout, TrainingSettings, lay_out
from sonotune.planning.memory import KINDS, Memory, predict_step
from sonotune.planning.teacher import TEACHER
from sonotune.planning.work import encoder_work

LABELS_PER_SECOND = 5.0
"""Tokens of transcript assumed for each second of audio, where nothing is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A micro-batch of the longest clips of a range of lengths.

    Attributes:
        clip_s: Seconds of each clip.
        computed_s: Seconds that are computed for each, which `training.batch_seconds` counts.
        clips: How many the settings put together.
        label_tokens: Of each transcript.
        memory: Of a training step on it.
        exact: Whether the step was run on fake tensors; else the formula says it.
        largest: Most clips that fit the memory that was named; 0 where not even one does, None where none was named.
        encoder_flops: Operations of the encoder's layers in a forward pass (`planning.work`); None where not known.
        merged_share: Those with frame merging, of those without; None where nothing is merged within the encoder.
    """

    clip_s: float
    computed_s: float
    clips: int
    label_tokens: int
    memory: Memory
    exact: bool
    largest: int | None
    encoder_flops: float | None = None
    merged_share: float | None = None

    def to_json(self) -> dict[str, Any]:
        """One row of `stages[].buckets`."""
        return {
            "clip_seconds": self.clip_s,
            "clips": self.clips,
            "label_tokens": self.label_tokens,
            "peak_bytes": self.memory.peak_bytes,
            "exact": self.exact,
            "largest_clips": self.largest,
            "encoder_flops": self.encoder_flops,
            **({} if self.merged_share is None else {"merged_share": self.merged_share}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """Memory of one stage of training.

    Attributes:
        name: As in the run's record.
        trainable: Parameters that train.
        buckets: Shortest clips first.
    """

    name: str
    trainable: int
    buckets: tuple[Bucket, ...]

    @property
    def worst(self) -> Bucket:
        """The bucket that takes most."""
        return max(self.buckets, key=lambda bucket: bucket.memory.peak_bytes)

    def to_json(self) -> dict[str, Any]:
        """One row of `stages`."""
        memory = self.worst.memory
        return {
            "name": self.name,
            "trainable": self.trainable,
            "peak_bytes": memory.peak_bytes,
            "static_bytes": memory.static_bytes,
            "bytes": {kind: memory.total(kind) for kind in KINDS},
            "components": component_rows(memory),
            "buckets": [bucket.to_json() for bucket in self.buckets],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run would take. Bytes are of tensors, but for what is needed of a card (`needed_bytes`).

    Attributes:
        settings: What was planned for.
        bits: Of the frozen linears, and why.
        device: Whose kernels were assumed.
        loading_bytes: The model as it is opened: in single precision, but for what is quantised.
        stages: In the order of training.
        memory_bytes: What must hold it, where that was named.
        card: The card that has this memory, where one was named.
        cost: Time and money, where a throughput was named.
    """

    settings: TrainingSettings
    bits: tuple[int, str]
    device: str
    loading_bytes: int
    stages: tuple[StagePlan, ...]
    memory_bytes: int | None
    cost: Cost | None
    card: Card | None = None

    @property
    def needed_bytes(self) -> int:
        """The peak, and on a card the CUDA context and what the allocator loses (`planning.cards`)."""
        return needed_bytes(self.peak_bytes, self.device)

    @property
    def left(self) -> float | None:
        """Share of the memory that is left; below 0 where the run does not fit, None where no memory was named."""
        return None if self.memory_bytes is None else 1 - self.needed_bytes / self.memory_bytes

    @property
    def peak_bytes(self) -> int:
        """The highest moment from loading to the last stage."""
        return max(self.loading_bytes, *(stage.worst.memory.peak_bytes for stage in self.stages))

    @property
    def worst(self) -> StagePlan:
        """The stage that takes most."""
        return max(self.stages, key=lambda stage: stage.worst.memory.peak_bytes)

    def to_json(self) -> dict[str, Any]:
        """The form of `plan --json`; `components` are those of the worst bucket of the worst stage."""
        cost = self.cost
        return {
            "checkpoint": self.settings.checkpoint,
            "device": self.device,
            "bits": self.bits[0],
            "precision": self.settings.precision,
            "gradient_checkpointing": self.settings.gradient_checkpointing,
            "peak_bytes": self.peak_bytes,
            "loading_bytes": self.loading_bytes,
            "components": component_rows(self.worst.worst.memory),
            "stages": [stage.to_json() for stage in self.stages],
            "memory_bytes": self.memory_bytes,
            "needed_bytes": self.needed_bytes,
            "fits": None if self.left is None else self.left >= 0,
            "left": self.left,
            "card": None if self.card is None else {"name": self.card.name, "sold_gb": self.card.sold_gb},
            "advice": advice(self),
            "seconds": None if cost is None else cost.seconds,
            "cost": None if cost is None else cost.cost,
            **({} if cost is None else {"throughput": cost.throughput, "throughput_source": cost.throughput_source}),
        }


def component_rows(memory: Memory) -> list[dict[str, Any]]:
    """Components with their kinds of memory and the sum."""
    return [
        {"name": name, **{kind: row.get(kind, 0) for kind in KINDS}, "bytes": sum(row.values())}
        for name, row in memory.components.items()
    ]


def make_plan(
    settings: TrainingSettings,
    *,
    clip_seconds: Sequence[float],
    within_window: bool = False,
    batch_seconds: float,
    batch_max_clips: int,
    label_tokens: int | None = None,
    memory_bytes: int | None = None,
    exact: bool = False,
    device: str = "cpu",
    cost: Cost | None = None,
    card: Card | None = None,
) -> Plan:
    """Plan a run.

    Args:
        settings: What decides memory.
        clip_seconds: Length of the clips of each bucket.
        within_window: Take lengths above the model's window as that window, instead of refusing them.
        batch_seconds: Most seconds of a micro-batch.
        batch_max_clips: Most clips of a micro-batch.
        label_tokens: Of each transcript; None assumes `LABELS_PER_SECOND`.
        memory_bytes: What must hold the run.
        exact: Run the worst bucket's step on fake tensors.
        device: `cpu` or `cuda`.
        cost: Of the run.
        card: Whose memory that is, for the answer.

    Raises:
        ConfigError: A number is out of range.
        ModelError: The model cannot be laid out, or a clip is longer than its window.
        AdapterError: Targets or ranks are wrong.
    """
    lengths = sorted(set(clip_seconds))
    if not lengths or lengths[0] <= 0:
        raise ConfigError(f"--clip-seconds must be above 0; found {', '.join(map(str, lengths)) or 'none'}.")
    if exact and settings.shards > 1:
        raise ConfigError(
            "--exact runs the step of one process, and training.shard_weights cuts its weights among several. Leave it "
            "out: the formula counts the parts."
        )
    if label_tokens is not None and label_tokens < 1:
        raise ConfigError(f"--label-tokens is {label_tokens}; a transcript has 1 token or more.")
    layout = lay_out(settings, device=device)
    if settings.shards > 1:
        check_shardable(
            kind=settings.kind,
            bits=layout.bits[0],
            precision=settings.precision,
            optimizer=settings.optimizer,
        )
    window_s = layout.loaded.frontend.max_duration_s
    if within_window and window_s is not None:
        lengths = sorted({min(length, window_s) for length in lengths})
    tensor_bytes = None if memory_bytes is None else left_for_tensors(memory_bytes, device)
    planned = []
    for index, stage in enumerate(layout.stages):
        layout = layout.enter(index)
        buckets = []
        for clip_s in lengths:
            tokens = label_tokens or max(1, round(LABELS_PER_SECOND * clip_s))
            clips = max(1, min(batch_max_clips, int(batch_seconds / layout.loaded.computed_s(clip_s) + 1e-9)))
            buckets.append(_bucket(layout, clip_s, clips, tokens, tensor_bytes))
        if exact:
            place = max(range(len(buckets)), key=lambda index: buckets[index].memory.peak_bytes)
            buckets[place] = _measured(layout, index, buckets[place], tensor_bytes)
        trainable = sum(value.numel() for value in layout.loaded.module.parameters() if value.requires_grad)
        planned.append(StagePlan(name=stage.name, trainable=trainable, buckets=tuple(buckets)))
    return Plan(
        settings=settings,
        bits=layout.bits,
        device=device,
        loading_bytes=layout.loading_bytes,
        stages=tuple(planned),
        memory_bytes=memory_bytes,
        cost=cost,
        card=card,
    )


def _bucket(layout: Layout, clip_s: float, clips: int, tokens: int, memory_bytes: int | None) -> Bucket:
    def peak(count: int) -> int:
        return predict_step(layout, layout.batch(count, clip_s, tokens)).peak_bytes

    batch = layout.batch(clips, clip_s, tokens)
    memory = predict_step(layout, batch)
    work, share = encoder_work(layout.loaded, batch), None
    if work is not None and "encoder" in layout.loaded.merging.parts:
        plain = encoder_work(layout.loaded.with_(merging=NO_MERGING), batch)
        share = None if plain is None else work.flops / plain.flops
    return Bucket(
        clip_s=clip_s,
        computed_s=layout.loaded.computed_s(clip_s),
        clips=clips,
        label_tokens=tokens,
        memory=memory,
        exact=False,
        largest=None if memory_bytes is None else largest_that_fits(peak, memory_bytes),
        encoder_flops=None if work is None else work.flops,
        merged_share=share,
    )


def _measured(flat: Layout, index: int, bucket: Bucket, memory_bytes: int | None) -> Bucket:
    """The bucket with its step run; what fits is the formula's, scaled by how far it was off."""
    layout = lay_out(flat.settings, device=flat.device).enter(index)  # measuring uses it up
    found = measure_step(layout, layout.batch(bucket.clips, bucket.clip_s, bucket.label_tokens))
    components: dict[str, dict[str, int]] = {}
    for (owner, kind), size in found.parts.items():
        components.setdefault(owner, dict.fromkeys(KINDS, 0))[kind] += size
    if flat.teacher_bytes:  # the step is run without it
        components[TEACHER] = {**dict.fromkeys(KINDS, 0), "weights": flat.teacher_bytes}
    memory = Memory(components=components)
    held = bucket.memory.static_bytes
    scale = (memory.peak_bytes - held) / max(1, bucket.memory.peak_bytes - held)

    def peak(count: int) -> float:
        batch = flat.batch(count, bucket.clip_s, bucket.label_tokens)
        return held + scale * (predict_step(flat, batch).peak_bytes - held)

    return replace(
        bucket,
        memory=memory,
        exact=True,
        largest=None if memory_bytes is None else largest_that_fits(peak, memory_bytes),
    )


def largest_that_fits(peak: Callable[[int], float], memory_bytes: int, *, most: int = 4096) -> int:
    """The largest number of clips whose peak is within the memory; 0 where one clip is too much.

    Args:
        peak: Bytes of so many clips, never falling.
        memory_bytes: What there is.
        most: Where the search ends.
    """
    if peak(1) > memory_bytes:
        return 0
    fits, fails = 1, 2
    while fails <= most and peak(fails) <= memory_bytes:
        fits, fails = fails, 2 * fails
    if fails > most:
        return fits
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if peak(middle) <= memory_bytes else (fits, middle)
    return fits


def advice(plan: Plan) -> list[str]:
    """What to change, mildest first, where the run does not fit."""
    if plan.memory_bytes is None or plan.needed_bytes <= plan.memory_bytes:
        return []
    lines = []
    for_tensors = left_for_tensors(plan.memory_bytes, plan.device)
    if plan.loading_bytes > for_tensors:
        lines.append(
            "the model does not fit as it is opened, in single precision; take a smaller one"
            + ("" if plan.bits[0] != 16 else ", or quantization.bits=4")
        )
    worst = plan.worst.worst
    if worst.memory.peak_bytes > for_tensors:
        if worst.largest:
            seconds = worst.largest * worst.computed_s
            lines.append(
                f"training.batch_seconds={seconds:g}, and training.accumulation_steps to keep the effective batch"
            )
        if not plan.settings.gradient_checkpointing:
            lines.append("training.gradient_checkpointing=true")
        if plan.settings.full and plan.settings.shards == 1:
            lines.append("training.shard_weights=true with --devices 2 or more, of which each holds its part")
        if plan.bits[0] == 16 and not plan.settings.full:
            lines.append("quantization.bits=4" + (" without training.shard_weights" * (plan.settings.shards > 1)))
        if plan.settings.full:
            lines.append("adapter.kind=lora")
        lines.append("data.max_duration_s: shorter clips")
    return lines
