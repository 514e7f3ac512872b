"""The clips of each step: planned by seed and epoch, dealt to the processes, and told of to the others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sonotune.features.batching import Batch, ClipBatches, batch_loader, plan_batches
from sonotune.models.base import LoadedModel
from sonotune.processes import Processes
from sonotune.training.logging.run_log import EventLog
from sonotune.training.oom import MemoryGuard
from sonotune.training.sharding import is_sharded
from sonotune.training.state import LoopSettings, TrainingData, TrainingState
from sonotune.types import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchGroup:
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


class StepLoader:
    """Deals the micro-batches of each step to the processes.

    Args:
        loaded: The model, for its frontend and window.
        data: Training clips.
        settings: How large batches and steps are.
        processes: Share them.
        guard: Keeps to what did not fit in another process.
        log: Hears of clips that turn out to be unusable, and of the time that data take.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        data: TrainingData,
        settings: LoopSettings,
        *,
        processes: Processes,
        guard: MemoryGuard,
        log: EventLog,
    ) -> None:
        self._loaded, self.data, self._settings, self._log = loaded, data, settings, log
        self._processes, self._guard, self._sharded = processes, guard, is_sharded(loaded.module)
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

    def loader(self, batches: list[tuple[int, ...]], state: TrainingState) -> Any:
        """This process's micro-batches of an epoch from a training state on; to be closed."""
        dataset = self._dataset(batches, state.epoch, full_context_share=self._settings.full_context_share)
        places, each = range(state.batch, len(batches)), self._settings.accumulation_steps
        steps = range(0, len(places), each)
        ours = [place for start in steps for place in self._processes.shard(places[start : start + each])]
        return batch_loader(dataset, self.data.crew, places=ours)

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
        labels = [float(len(target)) for target in self.data.targets]
        dataset = self._dataset(batches, epoch, full_context_share=1.0 if padded else 0.0)
        found = (dataset[index] for index in sorted({most(seconds), most(seconds, each=False), most(labels)}))
        return [batch for batch in found if batch.clips]

    def _dataset(self, batches: list[tuple[int, ...]], epoch: int, *, full_context_share: float) -> ClipBatches:
        return ClipBatches(
            self.data.clips,
            self.data.targets,
            self._loaded.frontend,
            batches=batches,
            seed=self._settings.seed,
            epoch=epoch,
            waveform_augmenter=self.data.augmenter,
            spec_augment=self.data.spec_augment,
            mixup=self.data.mixup,
            context=self._loaded.context,
            full_context_share=full_context_share,
        )

    def next_group(self, loader: Iterator[Batch], size: int, state: TrainingState) -> MicroBatchGroup:
        """The micro-batches of the next step.

        Args:
            loader: From `loader`.
            size: Micro-batches of the step, of all processes.
            state: Of the run; what did not fit in another process is written into it.
        """
        numbers = self._processes.shard(range(size))
        with self._log.timed("data"):
            read = dict(zip(numbers, itertools.islice(loader, len(numbers)), strict=True))
        shares = self._processes.all_gather(_Share.of(list(read.values()), state))
        self._tell([finding for share in shares for finding in share.findings], state)
        if len(shares) > 1:  # what one process could not fit, the others heed as well
            state.largest_s = min((share.largest_s for share in shares if share.largest_s), default=None)
            state.recompute = any(share.recompute for share in shares)
            self._guard.apply(state)
        ours = {number: batch for number, batch in read.items() if batch.clips}
        return MicroBatchGroup(
            batches=ours,
            idle=self._idle(ours, max(share.batches for share in shares)),
            size=size,
            clip_ids=tuple(clip_id for share in shares for clip_id in share.clip_ids),
            audio_s=sum(share.audio_s for share in shares),
            padded_s=sum(share.padded_s for share in shares),
        )

    def _tell(self, findings: Sequence[Finding], state: TrainingState) -> None:
        """Log clips that cannot be used each time, and record them once."""
        for finding in findings:
            self._log.event("finding", step=state.step + 1, **asdict(finding))
        new = [finding for finding in findings if not self._known_bad.issuperset(finding.clip_ids)]
        if new:
            self._known_bad.update(clip_id for finding in new for clip_id in finding.clip_ids)
            self._log.finding(new)

    def _idle(self, ours: Mapping[int, Batch], most: int) -> list[Batch]:
        """As many batches as this process has too few, where all must go through the layers equally often."""
        if not self._sharded or not most:
            return []
        first = self._processes.all_gather(next(iter(ours.values()), None))
        spare = next(batch for batch in first if batch is not None)
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
    def of(cls, batches: Sequence[Batch], state: TrainingState) -> _Share:
        return cls(
            batches=sum(1 for batch in batches if batch.clips),
            clip_ids=tuple(clip.id for batch in batches for clip in batch.clips),
            audio_s=sum(batch.seconds for batch in batches if batch.clips),
            padded_s=sum(batch.padded_seconds for batch in batches if batch.clips),
            findings=tuple(finding for batch in batches for finding in batch.findings),
            largest_s=state.largest_s,
            recompute=state.recompute,
        )
