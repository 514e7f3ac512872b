"""The command that predicts memory, time and money: plan."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sonotune.cli.shared import Json, Words, app, print_result
from sonotune.progress import phase

if TYPE_CHECKING:
    from sonotune.config.schema import RunConfig
    from sonotune.planning.cards import Card
    from sonotune.planning.plan import Plan

_TIGHT = 0.1
_UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

Clips = Annotated[list[float] | None, typer.Option(help="Seconds of the clips of a bucket; repeat it for several.")]
Labels = Annotated[int | None, typer.Option(help="Tokens of each transcript; else 5 for each second are assumed.")]
Memory = Annotated[
    str | None, typer.Option(help="What there is, such as 8GB or 24GiB (a number alone: GiB): says what fits.")
]
Gpu = Annotated[
    str | None,
    typer.Option(help="A card to fit, by name ('RTX 4090', 'A100 80GB') or size as sold (8GB); it need not be here."),
]
Throughput = Annotated[
    str | None, typer.Option(help="Seconds of audio that one device trains on in a second, or a run to measure it by.")
]
Price = Annotated[float | None, typer.Option(help="Price of one device for an hour.")]
Devices = Annotated[int, typer.Option(min=1, help="Devices that share the work.")]
Hours = Annotated[float | None, typer.Option(help="Hours of training audio, one pass over it.")]
Exact = Annotated[bool, typer.Option("--exact", help="Run the worst bucket's step on tensors without numbers.")]
On = Annotated[str, typer.Option(help="cpu, cuda, or auto: what is here. Kernels and types differ.")]


@app.command()
def plan(
    words: Words = None,
    clip_seconds: Clips = None,
    label_tokens: Labels = None,
    memory: Memory = None,
    gpu: Gpu = None,
    throughput: Throughput = None,
    price: Price = None,
    devices: Devices = 1,
    audio_hours: Hours = None,
    exact: Exact = False,
    device: On = "auto",
    as_json: Json = False,
) -> None:
    """Predict peak memory by component, stage and bucket, what fits, time and cost; no weights are read.

    sonotune plan model=whisper_large_v3 quantization.bits=4 --gpu 8GB
    """
    from sonotune.arguments import planned_lengths_s, planned_settings
    from sonotune.config.load import load_run_config
    from sonotune.planning.cost import estimate

    with phase("starting"):
        from sonotune.planning.plan import make_plan

    config = load_run_config(words or []).config
    card = None if gpu is None else _card(gpu, memory=memory, device=device)
    place = "cuda" if card else _device(device)
    memory_bytes = card.memory_bytes if card else None if memory is None else parse_bytes(memory)
    _check_together(throughput=throughput, audio_hours=audio_hours, price=price)
    training = config.training
    cost = None
    if throughput is not None and audio_hours is not None:
        micro_batches = devices if training.accumulation_steps == "auto" else training.accumulation_steps
        cost = estimate(
            audio_hours=audio_hours,
            stages=_lengths(config),
            step_seconds=training.batch_seconds * micro_batches,
            throughput=throughput,
            devices=devices,
            price_per_hour=price,
            checkpoint=config.model.checkpoint,
        )
    with phase("planning"):
        found = make_plan(
            planned_settings(config, place, devices),
            clip_seconds=clip_seconds or planned_lengths_s(config),
            within_window=not clip_seconds,
            batch_seconds=training.batch_seconds,
            batch_max_clips=training.batch_max_clips,
            label_tokens=config.data.max_label_tokens if label_tokens is None else label_tokens,
            memory_bytes=memory_bytes,
            exact=exact,
            device=place,
            cost=cost,
            card=card,
        )
    print_result(found.to_json(), as_json=as_json, lines=_lines(found, memory))


def _lengths(config: RunConfig) -> list[tuple[int, int | None]]:
    """Passes over the clips and steps at most of each stage."""
    from sonotune.training.adaptation import wanted_stages

    whole = [(config.training.max_epochs, config.training.max_steps)]
    return [(stage.max_epochs, stage.max_steps) for stage in wanted_stages(config)] or whole


def _device(asked: str) -> Literal["cpu", "cuda"]:
    from sonotune.errors import ConfigError

    if asked == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cpu":
        return "cpu"
    if asked == "cuda":
        return "cuda"
    raise ConfigError(f"--device {asked!r} is not known; take one of auto, cpu, cuda.")


def _card(text: str, *, memory: str | None, device: str) -> Card:
    from sonotune.errors import ConfigError
    from sonotune.planning.cards import find_card

    if memory is not None or device == "cpu":
        other = "--memory" if memory is not None else "--device cpu"
        raise ConfigError(f"--gpu names a card and its memory; leave out {other}, or --gpu.")
    return find_card(text)


def _check_together(*, throughput: str | None, audio_hours: float | None, price: float | None) -> None:
    from sonotune.errors import ConfigError

    if (throughput is None) != (audio_hours is None) or (price is not None and throughput is None):
        given = [
            name
            for name, value in (("--throughput", throughput), ("--audio-hours", audio_hours), ("--price", price))
            if value is not None
        ]
        raise ConfigError(
            f"time and cost need --throughput and --audio-hours together, found {' and '.join(given)} alone. "
            "--price may come with them. Give all of these, or none."
        )


def parse_bytes(text: str) -> int:
    """Bytes of a size such as `8GB` (powers of ten) or `24GiB` (powers of two); a number alone counts GiB.

    Raises:
        ConfigError: It is none, or not above 0.
    """
    from sonotune.errors import ConfigError

    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(found[2].upper() or "GIB") if found else None
    size = int(float(found[1]) * unit) if found and unit else 0
    if size <= 0:
        raise ConfigError(f"--memory {text!r} is no size. Write a number above 0 and a unit, such as 8GB or 24GiB.")
    return size


def _lines(plan: Plan, memory: str | None) -> list[str]:
    from sonotune.planning.plan import advice
    from sonotune.wording import counted, memory_size

    stage = plan.worst
    worst = stage.worst
    how = "step run on fake tensors" if worst.exact else "formula"
    settings = plan.settings
    lines = [
        f"{settings.checkpoint} on {plan.device}: {plan.bits[0]} bits, {settings.precision}, "
        f"{stage.trainable:,} parameters train"
        + (", checkpointing" if settings.gradient_checkpointing else "")
        + (f", layers in {settings.shards} parts" if settings.shards > 1 else ""),
        f"peak     {memory_size(plan.peak_bytes)}: training {memory_size(worst.memory.peak_bytes)} ({how}), "
        f"loading {memory_size(plan.loading_bytes)}",
        f"  {'MiB at the peak':<16}{'weights':>10}{'gradients':>11}{'optimizer':>11}{'activations':>13}{'all':>10}",
    ]
    for name, row in worst.memory.components.items():
        kinds = [row[kind] for kind in ("weights", "gradients", "optimizer", "activations")]
        widths = zip(kinds, (10, 11, 11, 13), strict=True)
        cells = "".join(f"{_mib(size):>{width}}" for size, width in widths)
        lines.append(f"  {name:<16}{cells}{_mib(sum(kinds)):>10}")
    for one in plan.stages:
        lines.append(f"stage {one.name}, by length of clips:")
        for bucket in one.buckets:
            fits = "fits" if bucket.largest == 1 else "fit"
            largest = "" if bucket.largest is None else f"; at most {counted(bucket.largest, 'clip')} {fits}"
            merged = ""
            if bucket.merged_share is not None:
                merged = f"; merging leaves {100 * bucket.merged_share:.0f} % of the encoder's operations"
            lines.append(
                f"  {counted(bucket.clips, 'clip')} of {bucket.clip_s:g} s, {counted(bucket.label_tokens, 'token')}: "
                f"{memory_size(bucket.memory.peak_bytes)}{largest}{merged}"
            )
    if plan.card is not None:
        lines.append(f"card     {plan.card.told()}")
    elif plan.memory_bytes is not None:
        lines.append(f"memory   {_told_memory(plan.memory_bytes, memory or '')}")
    if plan.memory_bytes is not None:
        lines.append(f"counted  {_counted(plan)}")
    if plan.cost is not None:
        lines.append(_cost_line(plan.cost))
    if plan.memory_bytes is not None:
        lines += [f"  try {line}" for line in advice(plan)]
        lines.append(f"verdict  {_verdict(plan, plan.memory_bytes)}")
    return lines


def _told_memory(size: int, text: str) -> str:
    """A memory in both kinds of unit; a bare number says how it was read."""
    from sonotune.wording import memory_size

    decimal = f"{size / 1e9:.2f} decimal GB" if size >= 1e9 else f"{size / 1e6:.1f} decimal MB"
    bare = text.strip()
    read = f"{bare} is read as GiB: " if re.fullmatch(r"[\d.]+", bare) else ""
    return f"{read}{memory_size(size)}, which are {decimal}"


def _counted(plan: Plan) -> str:
    from sonotune.planning.cards import CONTEXT_BYTES, FRAGMENTATION
    from sonotune.wording import memory_size

    if plan.device != "cuda":
        return "tensors alone; a process on a CPU has taken 1.8 to 4.1 times as much"
    return (
        f"{memory_size(plan.peak_bytes)} of tensors, {100 * FRAGMENTATION:.0f} % of that for what the allocator loses, "
        f"{memory_size(CONTEXT_BYTES)} for the CUDA context; the last two are assumed"
    )


def _verdict(plan: Plan, have_bytes: int) -> str:
    """Whether it fits and by how much."""
    from sonotune.wording import memory_size

    left = plan.left or 0.0
    needs = f"needs {memory_size(plan.needed_bytes)} of {memory_size(have_bytes)}"
    if left < -1:
        return f"does not fit: {needs}, {plan.needed_bytes / have_bytes:.1f} times what there is"
    if left < 0:
        return f"does not fit: {needs}, {-100 * left:.0f} % too much"
    tight = ", which is tight where a screen or another program uses the card" if left < _TIGHT else ""
    return f"fits with {100 * left:.0f} % left: {needs}{tight}"


def _cost_line(cost: Any) -> str:
    from sonotune.wording import counted, long_time

    money = "" if cost.cost is None else f", {cost.cost:.2f} at {cost.price_per_hour:g} an hour and device"
    return (
        f"time     {long_time(cost.seconds)} on {counted(cost.devices, 'device')}{money} "
        f"({cost.throughput:g} s of audio a second and device, {cost.throughput_source})"
    )


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f}"
