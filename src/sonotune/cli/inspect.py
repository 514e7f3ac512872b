"""The command that looks into a model: inspect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sonotune.cli.shared import Json, Words, app, print_result

if TYPE_CHECKING:
    from sonotune.planning.inspection import Inspection


@app.command()
def inspect(words: Words = None, as_json: Json = False) -> None:
    """Say what a model is made of, what would train and what it weighs; no weights are read.

    sonotune inspect model=whisper_large_v3 quantization.bits=4 adapter.rank=16
    """
    from sonotune.adapters.metadata import tuned_elsewhere
    from sonotune.api import inspect as inspect_settings
    from sonotune.models.thinning import made_for
    from sonotune.wording import memory_size

    found = inspect_settings(words or [])
    body = found.to_json()
    lines = [f"{found.checkpoint}: {found.family}, {found.total:,} parameters, {found.trainable:,} would train"]
    lines += [f"  {'':<11}{'parameters':>15}{'trainable':>13}{'MiB':>10}{'linears':>9}{'adapters, rank 1':>18}"]
    lines += [
        f"  {row['name']:<11}{row['parameters']:>15,}{row['trainable']:>13,}{row['bytes'] / 2**20:>10.1f}"
        f"{row['linears']:>9}{row['parameters_per_rank']:>18,}"
        for row in body["components"]
    ]
    if found.context:
        computed = ", ".join(
            f"{computed:.1f} s of a clip of {clip_s:g} s" for clip_s, computed in found.computed_s.items()
        )
        lines += [
            f"context  {found.context}, {made_for(found.trained_contexts)}; of a window of "
            f"{found.window_s:g} s it computes {computed}"
        ]
        if found.context == "full" and (reason := tuned_elsewhere(found.checkpoint)):
            lines.append(f"         {reason}")
    if found.merging.parts:
        lines += [f"merging  {merging_line(found)}"]
    bits = body["bits_per_quantized_parameter"]
    held = f" at {bits:.6f} bits each" if bits else f" ({found.bits[1]})"
    compression = body["compression"]
    lines += [
        f"weights  {memory_size(found.weight_bytes)}; {found.quantized:,} quantised{held}",
        _size_beside_16_bits(compression["size"])
        + (f"; {_share(compression['parameters'])} % of the parameters train" if compression["parameters"] else ""),
    ]
    if (teacher := found.teacher) is not None:
        held = f"{memory_size(teacher.held_bytes)} beside it, {teacher.bits} bits"
        lines.append(f"teacher  {teacher.checkpoint}, {teacher.parameters:,} parameters: {held}")
    print_result(body, as_json=as_json, lines=lines)


def merging_line(found: Inspection) -> str:
    """What is merged, in words."""
    merging, parts = found.merging, []
    if "encoder" in merging.parts:
        sizes = ", ".join(
            f"{one.positions[0]} positions of a clip of {clip_s:g} s become {one.positions[1]} "
            f"({100 * one.flops_share:.0f} % of the encoder's operations)"
            for clip_s, one in found.merged.items()
        )
        parts.append(f"{merging.ratio:g} of a clip's positions by the rule {merging.rule}: {sizes}")
    if "audio" in merging.parts:
        parts.append(f"{merging.audio_ratio:g} of the audio tokens ({merging.audio_method})")
    return "; ".join(parts)


def _share(times: float) -> str:
    """One of so many, in per cent: `100`, `2.7`, `0.35`."""
    return f"{100 / times:.3g}" if times < 10 else f"{100 / times:.2g}"


def _size_beside_16_bits(size: float) -> str:
    """What share of the bytes it takes that 16 bits for every parameter would take."""
    return f"size     {100 / size:.0f} % of what it is with 16 bits a parameter"
