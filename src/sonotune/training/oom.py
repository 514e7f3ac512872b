"""When a micro-batch does not fit: it is cut, then recomputed instead of kept, and the rest of the run keeps to it.

Each rung keeps the batch that a step averages over, and so its gradient. What would change the result (shorter clips,
fewer parameters) is advice in the error that ends the run when nothing else is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sonotune.adapters.trainable import recompute_activations
from sonotune.errors import ResourceError
from sonotune.features.batching import Batch
from sonotune.models.base import LoadedModel
from sonotune.training.logging.run_log import EventLog
from sonotune.training.sharding import is_sharded
from sonotune.training.state import TrainingState


class MemoryLimitError(MemoryError):
    """What a step would keep for its backward pass is above `training.memory_limit_bytes`."""


class MemoryGuard:
    """Knows what has fitted, and what to do when something does not.

    Args:
        loaded: The model, for recomputing activations.
        state: Keeps what has been learned, so that a run that resumes need not learn it again.
        limit_bytes: Activations that a micro-batch may keep for its backward pass; None leaves it to the machine.
        log: Hears of every rung that is taken.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        state: TrainingState,
        *,
        limit_bytes: int | None,
        log: EventLog,
    ) -> None:
        self._loaded, self._limit_bytes, self._log = loaded, limit_bytes, log
        self._sharded = is_sharded(loaded.module)
        self.apply(state)

    def apply(self, state: TrainingState) -> None:
        """Take over the limits of a training state."""
        self._state = state
        if state.recompute:
            self._recompute()

    def parts(self, batch: Batch) -> list[Batch]:
        """A micro-batch in as many parts as it takes for each to be no larger than what fits."""
        most = self._state.largest_s
        if most is None or self._sharded or batch.padded_seconds <= most or not batch.clips:
            return [batch]
        rows = max(1, math.floor(most * len(batch.clips) / batch.padded_seconds + 1e-6))
        return batch.split(math.ceil(len(batch.clips) / rows))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Refuse to keep more for the backward pass than the limit allows, inside."""
        limit = self._limit_bytes
        if limit is None:
            yield
            return
        kept = 0
        seen = {value.untyped_storage().data_ptr() for value in self._loaded.module.parameters()}  # there anyway

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                kept += storage.nbytes()
            if kept > limit:
                raise MemoryLimitError(f"{kept:,} bytes kept, training.memory_limit_bytes={limit}")
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            yield

    def lower(self, failed: Batch, *, step: int, reason: str) -> None:
        """Take the next rung.

        Args:
            failed: The part that did not fit.
            step: Optimiser step, from 1.
            reason: What the allocator said.

        Raises:
            ResourceError: None is left.
        """
        state = self._state
        if self._sharded:
            why = "no process can go through the layers more often than the others that hold parts of their weights"
            raise ResourceError(self._advice(failed, reason, why))
        if len(failed.clips) > 1:
            rows = -(-len(failed.clips) // 2)
            state.largest_s = rows * failed.padded_seconds / len(failed.clips)
            rung = f"micro-batches of at most {state.largest_s:.1f} padded seconds"
        elif not state.recompute and self._recompute():
            state.recompute = True
            rung = "activations are recomputed in the backward pass"
        else:
            raise ResourceError(self._advice(failed, reason, "a single clip does not fit"))
        self._log.event(
            "memory",
            step=step,
            rung=rung,
            reason=reason[:300],
            clips=len(failed.clips),
            padded_seconds=failed.padded_seconds,
        )

    def _recompute(self) -> bool:
        module = self._loaded.module
        if not getattr(module, "supports_gradient_checkpointing", False) or module.is_activation_checkpointing:
            return False
        recompute_activations(self._loaded)
        return True

    def _advice(self, failed: Batch, reason: str, why: str) -> str:
        longest = max((clip.duration_s for clip in failed.clips), default=0.0)
        return (
            f"out of memory in a micro-batch of {len(failed.clips)} clips and {failed.padded_seconds:.1f} padded "
            f"seconds, and {why}: {reason[:300]}. Lower training.batch_seconds; leave out clips longer than "
            f"{longest:.0f} s with data.max_duration_s; train less (adapter.targets, adapter.stem=frozen); or take "
            "quantization.bits=4. The last checkpoint is intact, and the same line goes on from it."
        )
