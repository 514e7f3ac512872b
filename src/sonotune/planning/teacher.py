"""What a teacher takes beside the model that learns from it, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sonotune.adapters.metadata import ADAPTER_WEIGHTS, read_metadata
from sonotune.loading import base_of, choose_family, find_adapter, model_folder, packed_linears, storage
from sonotune.models.precision import DTYPES, Precision

TEACHER = "teacher"
"""Row of a plan's memory that holds the teacher's weights."""
_FP32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherMemory:
    """Sizes of a teacher.

    Attributes:
        checkpoint: What was named.
        parameters: Of its bare model.
        bits: Of its linear weights.
        held_bytes: Its weights while it teaches; it has neither gradients nor moments, and keeps no activations.
        loading_bytes: Its weights as they are opened, in single precision.
    """

    checkpoint: str
    parameters: int
    bits: int
    held_bytes: int
    loading_bytes: int

    def to_json(self) -> dict[str, Any]:
        """As `inspect --json` has it."""
        return {
            "checkpoint": self.checkpoint,
            "parameters": self.parameters,
            "bits": self.bits,
            "bytes": self.held_bytes,
        }


def teacher_memory(
    checkpoint: str, *, bits: Literal["auto"] | int = "auto", precision: Precision = "fp32", device: str = "cpu"
) -> TeacherMemory:
    """Lay a teacher out on the meta device, as `training.teacher.open_teacher` would hold it.

    Args:
        checkpoint: Packaged, hub or local model, adapter folder, or run directory.
        bits: Of its linear weights.
        precision: Of the matrix products; other matrices are kept in it.
        device: Where it would run, which `bits=auto` depends on.

    Raises:
        ModelError: The configuration cannot be read.
    """
    saved = find_adapter(checkpoint)
    metadata = read_metadata(saved) if saved else None
    base = base_of(saved, metadata) if saved and metadata is not None else model_folder(checkpoint)
    loaded = choose_family(checkpoint).outline(base)
    total = sum(parameter.numel() for parameter in loaded.module.parameters())
    stored = storage(metadata, bits=bits, double=True, skip=(), parameters=total, device=device)
    packed = packed_linears(loaded, stored)
    size = DTYPES[precision].itemsize
    held = sum(packed.values())
    for name, value in loaded.module.named_parameters():
        if name.removesuffix(".weight") not in packed:  # the bias of a packed matrix has the type of the products
            cast = value.ndim > 1 or name.removesuffix(".bias") in packed
            held += value.numel() * (size if cast else _FP32_BYTES)
    beside = (saved / ADAPTER_WEIGHTS).stat().st_size if saved else 0
    return TeacherMemory(
        checkpoint=checkpoint,
        parameters=total,
        bits=stored.bits,
        held_bytes=held + beside,
        loading_bytes=_FP32_BYTES * total + beside,
    )
