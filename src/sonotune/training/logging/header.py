"""What a run is about to do, in a few lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sonotune.types import Clip, RunRecord


def header(
    record: RunRecord, splits: Mapping[str, Sequence[Clip]], *, device: str, bits: int, decides: str, folder: Path
) -> str:
    """Model, data, what trains, which score decides, and where it goes.

    Args:
        record: With the model as it is trained.
        splits: Clips by split.
        device: That computes.
        bits: Of the frozen weights.
        decides: The score that chooses the weights, and why that one.
        folder: Of the run.
    """
    model, precision = record.model, str(record.choices.get("training.precision", "")).partition(":")[0]
    rows = model["components"].values()
    total, trains = sum(row["parameters"] for row in rows), sum(row["trainable"] for row in rows)
    data = ", ".join(f"{name} {len(clips):,} clips, {_hours(clips)}" for name, clips in splits.items())
    ranks = sorted(set(record.ranks.values()))
    spread = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}" if ranks else ""
    how = f"; adapters of rank {spread} on {len(record.ranks)} modules" if ranks else ""
    parts = ", ".join(f"{name} {row['trainable']:,}" for name, row in model["components"].items() if row["trainable"])
    taught = []
    if teacher := model.get("teacher"):
        size = f"{teacher['parameters'] / 1e6:,.1f} M parameters, {teacher['bits']} bits"
        taught = [f"teacher  {teacher['checkpoint']}, {size}, digest {teacher['digest'][:12]}"]
    return "\n".join(
        [
            f"model    {model['checkpoint']} ({model['family']}), {total / 1e6:,.1f} M parameters, {bits} bits, "
            f"{precision} on {device}",
            *taught,
            *([f"context  {record.choices['model.context']}"] if "model.context" in record.choices else []),
            f"data     {data}",
            f"trains   {trains:,} parameters ({parts}){how}",
            f"decides  {decides}",
            f"run      {folder}",
        ]
    )


def _hours(clips: Sequence[Clip]) -> str:
    seconds = sum(clip.duration_s for clip in clips)
    return f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds / 60:.1f} min"
