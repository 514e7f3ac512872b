"""Stage after stage: batches in, steps out, position always known.

Every draw is a function of (seed, step) or (seed, epoch, clip), so a checkpoint needs no generator state: a run that
was killed and resumed makes the same draws as one that was not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from sonotune.adapters.dynamics import Dynamics
from sonotune.errors import ConfigError, Interrupted, ManifestError, NumericError
from sonotune.features.workers import Crew
from sonotune.models.base import LoadedModel
from sonotune.processes import ALONE, Processes
from sonotune.tasks.base import Task
from sonotune.training import checkpoint
from sonotune.training.checks import check_agreement, check_gradients
from sonotune.training.course import Course
from sonotune.training.feed import Feed, Group
from sonotune.training.gradients import Gradients, MeanLoss
from sonotune.training.identity import DECIDE_BATCHES
from sonotune.training.loop_settings import Listener, LoopSettings, Position, TrainingData
from sonotune.training.memory_guard import MemoryGuard
from sonotune.training.optimizer import (
    build_optimizer,
    enter_stage,
    moments_to_come,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rates,
)
from sonotune.training.selection import Selection
from sonotune.training.sharding import clip_gradients, entire, fill
from sonotune.training.signals import StopRequest
from sonotune.training.spikes import forget, leaps, remember
from sonotune.training.stages import Stage, all_stages, parameters_by_name
from sonotune.types import Finding, Score

logger = logging.getLogger(__name__)

_DYNAMICS = "dynamics"
_FIRST_STEPS = 3  # by then the B matrices have moved, so that gradients reach the A matrices as well


class StageLoop:
    """Runs the stages to their end, to a stop request or to a numeric failure.

    Args:
        task: Gives the loss and names the primary score.
        loaded: The model, with all that any stage trains marked trainable.
        stages: What trains, one after the other.
        settings: How it steps.
        data: Training clips.
        crew: Makes the batches.
        accelerator: Device, precision, gradient scaling.
        checkpoints: Folder of checkpoints.
        event: Writes one line of `events.jsonl`.
        evaluate: Scores the development clips, or None where there are none.
        listeners: See progress.
        identity: Digests that a checkpoint must share with the run that resumes it.
        may_differ: Keys of those that it need not share.
        stop: Set by SIGTERM, SIGUSR1 and SIGINT.
        processes: Share the micro-batches of each step; the first one writes.
        dynamics: What happens to the adapters beside the gradient of the loss.
        found: Keeps clips that turn out to be unusable in the run's record.
    """

    def __init__(
        self,
        *,
        task: Task,
        loaded: LoadedModel,
        stages: Sequence[Stage],
        settings: LoopSettings,
        data: TrainingData,
        crew: Crew | None,
        accelerator: Accelerator,
        checkpoints: Path,
        event: Callable[..., None],
        evaluate: Callable[[], Mapping[str, Score]] | None,
        listeners: Sequence[Listener],
        identity: Mapping[str, str],
        stop: StopRequest,
        may_differ: Collection[str] = (),
        processes: Processes = ALONE,
        dynamics: Sequence[Dynamics] = (),
        found: Callable[[Sequence[Finding]], None] = lambda findings: None,
    ) -> None:
        self.position = Position()
        self._loaded, self._settings = loaded, settings
        self._accelerator, self._checkpoints, self._event, self._processes = accelerator, checkpoints, event, processes
        self._listeners, self._stop, self._found = listeners, stop, found
        self._identity, self._may_differ = dict(identity), may_differ
        self._dynamics = tuple(dynamics)
        self._stages, self._every_stage = tuple(stages), all_stages(*stages)
        self._optimizer = build_optimizer(
            loaded.module, stages, weight_decay=settings.weight_decay, betas=settings.betas, kind=settings.optimizer
        )
        self._guard = MemoryGuard(loaded, self.position, limit_bytes=settings.memory_limit_bytes, event=event)
        self._feed = Feed(
            loaded, data, settings, crew=crew, processes=processes, guard=self._guard, event=event, found=found,
            spend=self._spend,
        )  # fmt: skip
        self._course = Course(
            stages, schedule=settings.schedule, floor=settings.learning_rate_floor, steps_of=self._feed.steps
        )
        self._gradients = Gradients(
            task, loaded, label_smoothing=settings.label_smoothing, seed=settings.seed, accelerator=accelerator,
            guard=self._guard, processes=processes, spend=self._spend,
        )  # fmt: skip
        self._selection = Selection(
            evaluate, primary=task.primary, average=settings.average_checkpoints, settled=self._settled,
            checkpoints=checkpoints, event=event, listeners=listeners, spend=self._spend,
        )  # fmt: skip
        self._process = psutil.Process()
        self._several_domains = len({clip.domain for clip in data.clips}) > 1
        self._saved_step, self._to_rehearse = -1, False
        self._enter_stage(epoch=0)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, if no stage ends early."""
        return self._course.total

    def _enter_stage(self, *, epoch: int) -> None:
        """Mark what trains in the stage of the present position, which began with an epoch."""
        position = self.position
        enter_stage(self._optimizer, position.stage)
        self._course.enter(position.stage, step=position.stage_step, epoch=epoch, counted=position.counted)
        self._steps_here = 0
        self._look_up()

    def _look_up(self) -> None:
        """Find the tensors that train now, and all that any stage trains: adapters may have been given others."""
        self._parameters = parameters_by_name(self._loaded.module, self._course.stage.trainable)
        self._weights = parameters_by_name(self._loaded.module, self._every_stage)
        self._adapting = any(".lora_" in name for name in self._parameters)

    def _next_stage(self) -> None:
        """Go on to the next stage, with a fresh pass over the clips."""
        position, done = self.position, self._course.stage
        before = position.step >= self._course.end
        if position.batch:
            position.epoch, position.batch = position.epoch + 1, 0
        position.stage, position.stage_step = position.stage + 1, position.step
        position.stage_best, position.stale, position.counted = None, 0, None
        position.stage_epoch = position.epoch
        forget(position)
        self._enter_stage(epoch=position.epoch)
        self._event(
            "stage", step=position.step, stage=self._course.stage.name, after=done.name,
            because="its steps are done" if before else "its score has stopped improving",
            parameters=sum(parameter.numel() for parameter in self._parameters.values()),
            learning_rates={group.name: group.learning_rate for group in self._course.stage.groups},
        )  # fmt: skip

    def resume(self, saved: checkpoint.Checkpoint) -> frozenset[str]:
        """Go on from a checkpoint of the same run.

        With other batches than it was made with, the epoch begins anew, and the steps that are left are counted from
        there. What did not fit is found out again.

        Returns:
            Keys of the identity that differ.

        Raises:
            ConfigError: Something differs, and nothing is left to train.
            CheckpointError: It is of another configuration, other data or another base model, or is incomplete.
        """
        for index, dynamics in enumerate(self._dynamics):
            dynamics.restore(_below(saved.optimizer, f"{_DYNAMICS}/{index}/"), self._optimizer)
        self._look_up()
        differing = checkpoint.check_identity(saved, self._identity, self._weights, may_differ=self._may_differ)
        self._put(saved.weights)
        restore_optimizer(self._optimizer, dict(saved.optimizer), required=saved.state.get("optimizer", self._weights))
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(saved.state["scaler"])
        self.position = Position(**saved.state["position"])
        self._saved_step = -1 if differing else saved.step
        if not differing.isdisjoint(DECIDE_BATCHES):
            self.position.batch, self.position.counted = 0, (self.position.step, self.position.epoch)
        if differing:
            self.position.largest_s, self.position.recompute, self._to_rehearse = None, False, True
        self._guard.heed(self.position)
        self._enter_stage(epoch=self.position.stage_epoch)
        if differing and self._course.last and (saved.step >= self.total_steps or self._out_of_patience()):
            raise ConfigError(
                f"nothing is left to train: {saved.step} steps are made, and with these settings the run ends after "
                f"{min(saved.step, self.total_steps)}. Raise training.max_epochs or training.max_steps, or "
                "training.patience where that ran out."
            )
        return differing

    def run(self) -> None:
        """Train until the last stage ends.

        Raises:
            Interrupted: A signal asked to stop; the state is saved.
            NumericError: The loss stayed NaN or infinite.
            ManifestError: No clip of several steps in a row could be read.
        """
        for listener in self._listeners:
            listener.started(self.total_steps, self.position.step)
        check_agreement(self._weights, self._processes, step=self.position.step)
        while True:
            if self._to_rehearse or self.position.step == self._course.begin:
                self._rehearse()
            while self.position.step < self._course.end and not self._out_of_patience():
                self._run_epoch()
            if self._course.last:
                break
            self._next_stage()
        self.save()

    def _rehearse(self) -> None:
        """Where memory can run out, find out how much fits before the first step of a stage, not hours into it."""
        position, device, self._to_rehearse = self.position, self._accelerator.device, False
        if device.type != "cuda" and self._settings.memory_limit_bytes is None:
            return
        moments = moments_to_come(self._optimizer, self._settings.optimizer) if device.type == "cuda" else 0
        held = torch.empty(moments, dtype=torch.uint8, device=device)  # the first step makes them
        for batch in self._feed.largest(position.epoch):
            self._gradients.rehearse(batch, self._parameters, step=position.step)
            self._event(
                "rehearsal", step=position.step + 1, clips=len(batch.clips), padded_seconds=batch.padded_seconds,
                memory_bytes=self._memory(),
            )  # fmt: skip
        del held

    def load_best(self) -> int | None:
        """Put the best weights in place; see `Selection.put_best`."""
        return self._selection.put_best(self.position, self._put)

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self._weights.items():
            fill(parameter, weights[name])

    def save(self) -> None:
        """Write a checkpoint of the present position, once, by the first process."""
        if self._saved_step == self.position.step:
            return
        weights, moments = entire(self._weights), entire(optimizer_tensors(self._optimizer))
        if self._processes.main:
            self._write_checkpoint(weights, moments)
        self._saved_step = self.position.step
        self._processes.wait()

    def _write_checkpoint(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        started = time.perf_counter()
        scaler = self._accelerator.scaler
        state = {
            "position": asdict(self.position),
            "identity": self._identity,
            "stage": self._course.stage.name,
            "optimizer": sorted({name.rpartition("/")[0] for name in moments}),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        path = checkpoint.save(
            self._checkpoints,
            self.position.step,
            weights=weights,
            optimizer={**moments, **self._dynamics_tensors()},
            state=state,
        )
        kept = self.position.best_steps
        checkpoint.prune(self._checkpoints, keep=self._settings.keep_checkpoints, protect=kept)
        self._event("checkpoint", step=self.position.step, path=path.name, seconds=time.perf_counter() - started)

    def _dynamics_tensors(self) -> dict[str, Tensor]:
        return {
            f"{_DYNAMICS}/{index}/{name}": value.contiguous()
            for index, dynamics in enumerate(self._dynamics)
            for name, value in dynamics.tensors().items()
        }

    def _run_epoch(self) -> None:
        batches = self._feed.plan(self.position.epoch)
        loader = self._feed.loader(batches, self.position)
        try:
            while self.position.batch < len(batches) and self.position.step < self._course.end:
                size = min(self._settings.accumulation_steps, len(batches) - self.position.batch)
                group = self._feed.next_group(loader, size, self.position)
                self._step(group)
                self.position.batch += group.size
                last_of_epoch = self.position.batch >= len(batches)
                if last_of_epoch:
                    self.position.epoch, self.position.batch = self.position.epoch + 1, 0
                self._after_step(last_of_epoch=last_of_epoch)
                if last_of_epoch or self._out_of_patience():
                    return
        finally:
            loader.close()

    def _step(self, group: Group) -> None:
        position = self.position
        factor, of_trained = self._course.factors(position.step)
        rates = set_learning_rates(self._optimizer, factor, of_trained=of_trained)
        started = time.perf_counter()
        loss, count, by_domain = self._accumulate(group)
        penalty = self._penalize() if count else 0.0
        norm = self._clip() if count else 0.0
        finite = count > 0 and np.isfinite(loss) and np.isfinite(norm)
        sound = finite and not leaps(loss, position)
        if sound:
            before = time.perf_counter()
            for dynamics in self._acting():
                dynamics.observe(position.step, self.total_steps)
            self._optimizer.step()
            self._spend("optimizer", before)
            position.bad_steps = 0
            remember(loss, position)
            self._steps_here += 1
            if self._steps_here == 1:
                check_agreement(self._weights, self._processes, step=position.step + 1)
            if self._steps_here == _FIRST_STEPS:
                check_gradients(self._optimizer)
        elif not group.clip_ids:
            self._empty_step()
        elif count and (finite or not self._scale_is_too_high(loss)):
            self._bad_step(group, loss, norm)
        if count and self._accelerator.scaler is not None:
            self._accelerator.scaler.update()
        self._change_adapters()
        self._optimizer.zero_grad(set_to_none=True)
        position.step += 1
        position.clips += len(group.clip_ids)
        position.audio_s += group.audio_s
        elapsed = time.perf_counter() - started
        position.seconds += elapsed
        self._report(
            group, loss=loss if sound else None, by_domain=by_domain, norm=norm if sound else None, rates=rates,
            elapsed=elapsed, penalty=penalty,
        )  # fmt: skip

    def _accumulate(self, group: Group) -> MeanLoss:
        return self._gradients.accumulate(
            group.batches, self._parameters, step=self.position.step, clips=len(group.clip_ids),
            domains=self._several_domains, idle=group.idle,
        )  # fmt: skip

    def _penalize(self) -> float:
        """Add the gradients of the penalties on the adapters; returns their sum."""
        total = 0.0
        for dynamics in self._acting():
            penalty = dynamics.penalty(self.position.step, self.total_steps)
            if penalty is not None:
                self._accelerator.backward(penalty)
                total += float(penalty.detach())
        return total

    def _settled(self, step: int) -> bool:
        """Whether the adapters have the ranks that they are kept with."""
        return all(dynamics.settled(step, self.total_steps) for dynamics in self._dynamics)

    def _acting(self) -> tuple[Dynamics, ...]:
        """What happens to the adapters, in a stage that trains any."""
        return self._dynamics if self._adapting else ()

    def _change_adapters(self) -> None:
        for dynamics in self._acting():
            step = self.position.step + 1
            event = dynamics.after_step(step, self.total_steps, self._optimizer)
            if event is None:
                continue
            kind, fields = event
            self._look_up()
            self._event(kind, step=step, **fields)
            if kind == "finding":
                self._found([Finding(**fields)])

    def _clip(self) -> float:
        scaler = self._accelerator.scaler
        if scaler is not None:
            scaler.unscale_(self._optimizer)
        return clip_gradients(list(self._parameters.values()), self._settings.clip_norm)

    def _scale_is_too_high(self, loss: float) -> bool:
        """Whether an infinite gradient is only the fp16 loss scale being too large, which its update lowers."""
        scaler = self._accelerator.scaler
        if scaler is None or not np.isfinite(loss) or scaler.get_scale() <= 1.0:
            return False
        self._event("scale_lowered", step=self.position.step + 1, scale=scaler.get_scale())
        return True

    def _bad_step(self, group: Group, loss: float, norm: float) -> None:
        self.position.bad_steps += 1
        clips = list(group.clip_ids)
        self._event("bad_step", step=self.position.step + 1, loss=str(loss), gradient_norm=str(norm), clips=clips)
        logger.warning("step %d skipped: loss %s, gradient norm %s", self.position.step + 1, loss, norm)
        if self.position.bad_steps >= self._settings.max_bad_steps:
            raise NumericError(
                f"{self.position.bad_steps} steps in a row gave a loss or gradient that is not finite, or a loss far "
                f"beyond those before (the last was {loss:g}); the last clips were {', '.join(clips[:8])}. Lower "
                "training.learning_rate, or use training.precision=fp32."
            )

    def _empty_step(self) -> None:
        self.position.bad_steps += 1
        if self.position.bad_steps >= self._settings.max_bad_steps:
            raise ManifestError(
                f"none of the clips of the last {self.position.bad_steps} steps could be read; events.jsonl names "
                "them, and why. Are the files still where the manifest says?"
            )

    def _after_step(self, *, last_of_epoch: bool) -> None:
        position, settings = self.position, self._settings
        done = position.step >= self._course.end
        due = last_of_epoch if settings.eval_steps == "epoch" else _every(position.step, settings.eval_steps)
        if settings.eval_steps != "never" and (due or done):
            self._selection.score(position)
        save_due = last_of_epoch if settings.save_steps == "epoch" else _every(position.step, settings.save_steps)
        # One process may get the signal a step before the others.
        reason = next((reason for reason in self._processes.gather(self._stop.reason) if reason), None)
        if save_due or position.step in position.best_steps or reason:
            self.save()
        if reason and not (done and self._course.last):
            raise Interrupted(
                f"stopped by {reason} after step {position.step} of {self.total_steps}; "
                "the state is saved. Run the same command again to go on."
            )

    def _report(
        self,
        group: Group,
        *,
        loss: float | None,
        by_domain: Mapping[str, float],
        norm: float | None,
        rates: Mapping[str, float],
        elapsed: float,
        penalty: float,
    ) -> None:
        clips = len(group.clip_ids)
        values = {
            "step": self.position.step,
            "epoch": self.position.epoch,
            "stage": self._course.stage.name,
            "loss": loss,
            **({"loss_by_domain": dict(by_domain)} if by_domain and loss is not None else {}),
            **({"penalty": penalty} if penalty else {}),
            "gradient_norm": norm,
            "learning_rates": dict(rates),
            "clips": clips,
            "audio_s": group.audio_s,
            "samples_per_s": clips / elapsed if elapsed else 0.0,
            "padding_share": 1 - group.audio_s / group.padded_s if group.padded_s else 0.0,
            "memory_bytes": self._memory(),
            "seconds": elapsed,
        }
        self._event("step", **values)
        for listener in self._listeners:
            listener.stepped(values)

    def _memory(self) -> int:
        if self._accelerator.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        return int(self._process.memory_info().rss)

    def _spend(self, what: str, started: float) -> None:
        self.position.spent[what] = self.position.spent.get(what, 0.0) + time.perf_counter() - started

    def _out_of_patience(self) -> bool:
        patience = self._course.stage.patience
        return patience is not None and self.position.stale >= patience


def _every(step: int, interval: int | str) -> bool:
    return isinstance(interval, int) and step % interval == 0


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
