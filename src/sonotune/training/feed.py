"""The clips of each step: planned by seed and epoch, dealt to the processes, and told of to the others."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sonotune.features.batching import Batch, ClipBatches, batch_loader, plan_batches
from sonotune.features.workers import Crew
from sonotune.models.base import LoadedModel
from sonotune.processes import Processes
from sonotune.training.loop_settings import LoopSettings, Position, TrainingData
from sonotune.training.memory_guard import MemoryGuard
from sonotune.training.sharding import is_sharded
from sonotune.types import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The micro-batches of one optimiser step.

    Attributes:
        batches: Those of this process that have clips, by their number in the step.
        idle: Those that it goes through without counting them.
        size: How many all processes have, empty ones too, so that positions stay exact.
        clip_ids: Clips of all processes.
        audio_s: Their seconds.
        padded_s: Their seconds with padding.
    """

    batches: Mapping[int, Batch]
    idle: Sequence[Batch] = ()
    size: int
    clip_ids: tuple[str, ...]
    audio_s: float
    padded_s: float


class Feed:
    """Deals the micro-batches of each step to the processes.

    Args:
        loaded: The model, for its frontend and window.
        data: Training clips.
        settings: How large batches and steps are.
        crew: Makes the batches.
        processes: Share them.
        guard: Heeds what did not fit in another process.
        event: Writes one line of `events.jsonl`.
        found: Keeps clips that turn out to be unusable in the run's record.
        spend: Adds the seconds since a moment to a phase of the run.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        data: TrainingData,
        settings: LoopSettings,
        *,
        crew: Crew | None,
        processes: Processes,
        guard: MemoryGuard,
        event: Callable[..., None],
        found: Callable[[Sequence[Finding]], None],
        spend: Callable[[str, float], None],
    ) -> None:
        self._loaded, self._data, self._settings, self._crew = loaded, data, settings, crew
        self._processes, self._guard, self._sharded = processes, guard, is_sharded(loaded.module)
        self._event, self._found, self._spend = event, found, spend
        self._known_bad = set[str]()
        self._durations = [loaded.computed_s(clip.duration_s) for clip in data.clips]

    def plan(self, epoch: int) -> list[tuple[int, ...]]:
        """Places of the clips of each micro-batch of an epoch."""
        return plan_batches(
            self._durations,
            max_seconds=self._settings.batch_seconds,
            max_clips=self._settings.batch_max_clips,
            seed=self._settings.seed,
            epoch=epoch,
        )

    def steps(self, epoch: int) -> int:
        """Optimiser steps of an epoch."""
        return -(-len(self.plan(epoch)) // self._settings.accumulation_steps)

    def loader(self, batches: list[tuple[int, ...]], position: Position) -> Any:
        """This process's micro-batches of an epoch from a position on; to be closed."""
        dataset = self._dataset(batches, position.epoch, full_context_share=self._settings.full_context_share)
        places, each = range(position.batch, len(batches)), self._settings.accumulation_steps
        steps = range(0, len(places), each)
        ours = [place for start in steps for place in self._processes.share(places[start : start + each])]
        return batch_loader(dataset, self._crew, places=ours)

    def largest(self, epoch: int) -> list[Batch]:
        """The micro-batches of an epoch with the longest clip, the most padded seconds and the most padded labels.

        Some may be one. Where a share of the batches is padded to the whole window, they are.
        """
        batches = self.plan(epoch)
        padded = self._loaded.context == "full" or self._settings.full_context_share > 0

        def most(lengths: Sequence[float], *, each: bool = True) -> int:
            longest = [max(lengths[place] for place in batch) for batch in batches]
            return max(range(len(batches)), key=lambda index: longest[index] * (len(batches[index]) if each else 1))

        seconds = [1.0] * len(self._durations) if padded else self._durations
        labels = [float(len(target)) for target in self._data.targets]
        dataset = self._dataset(batches, epoch, full_context_share=1.0 if padded else 0.0)
        found = (dataset[index] for index in sorted({most(seconds), most(seconds, each=False), most(labels)}))
        return [batch for batch in found if batch.clips]

    def _dataset(self, batches: list[tuple[int, ...]], epoch: int, *, full_context_share: float) -> ClipBatches:
        return ClipBatches(
            self._data.clips,
            self._data.targets,
            self._loaded.frontend,
            batches=batches,
            seed=self._settings.seed,
            epoch=epoch,
            waveform_augmenter=self._data.augmenter,
            spec_augment=self._data.spec_augment,
            mixup=self._data.mixup,
            context=self._loaded.context,
            full_context_share=full_context_share,
        )

    def next_group(self, loader: Iterator[Batch], size: int, position: Position) -> Group:
        """The micro-batches of the next step.

        Args:
            loader: From `loader`.
            size: Micro-batches of the step, of all processes.
            position: Of the run; what did not fit in another process is written into it.
        """
        started = time.perf_counter()
        numbers = self._processes.share(range(size))
        read = dict(zip(numbers, itertools.islice(loader, len(numbers)), strict=True))
        self._spend("data", started)
        shares = self._processes.gather(_Share.of(list(read.values()), position))
        self._tell([finding for share in shares for finding in share.findings], position)
        if len(shares) > 1:  # what one process could not fit, the others heed as well
            position.largest_s = min((share.largest_s for share in shares if share.largest_s), default=None)
            position.recompute = any(share.recompute for share in shares)
            self._guard.heed(position)
        ours = {number: batch for number, batch in read.items() if batch.clips}
        return Group(
            batches=ours,
            idle=self._idle(ours, max(share.batches for share in shares)),
            size=size,
            clip_ids=tuple(clip_id for share in shares for clip_id in share.clip_ids),
            audio_s=sum(share.audio_s for share in shares),
            padded_s=sum(share.padded_s for share in shares),
        )

    def _tell(self, findings: Sequence[Finding], position: Position) -> None:
        """Log clips that cannot be used each time, and record them once."""
        for finding in findings:
            self._event("finding", step=position.step + 1, **asdict(finding))
        new = [finding for finding in findings if not self._known_bad.issuperset(finding.clip_ids)]
        if new:
            self._known_bad.update(clip_id for finding in new for clip_id in finding.clip_ids)
            self._found(new)

    def _idle(self, ours: Mapping[int, Batch], most: int) -> list[Batch]:
        """As many batches as this process has too few, where all must go through the layers equally often."""
        if not self._sharded or not most:
            return []
        spare = next(batch for batch in self._processes.gather(next(iter(ours.values()), None)) if batch is not None)
        return [spare] * (most - len(ours))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Share:
    """What a process tells the others of its micro-batches, and of what did not fit in its memory."""

    batches: int
    clip_ids: tuple[str, ...]
    audio_s: float
    padded_s: float
    findings: tuple[Finding, ...]
    largest_s: float | None
    recompute: bool

    @classmethod
    def of(cls, batches: Sequence[Batch], position: Position) -> _Share:
        return cls(
            batches=sum(1 for batch in batches if batch.clips),
            clip_ids=tuple(clip.id for batch in batches for clip in batch.clips),
            audio_s=sum(batch.seconds for batch in batches if batch.clips),
            padded_s=sum(batch.padded_seconds for batch in batches if batch.clips),
            findings=tuple(finding for batch in batches for finding in batch.findings),
            largest_s=position.largest_s,
            recompute=position.recompute,
        )
