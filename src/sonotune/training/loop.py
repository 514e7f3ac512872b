"""Stage after stage: batches in, steps out, the state always known.

Every draw is a function of (seed, step) or (seed, epoch, clip), so a checkpoint needs no generator state: a run that
was killed and resumed makes the same draws as one that was not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from sonotune.adapters.schedule.callback import AdapterCallback
from sonotune.errors import ConfigError, Interrupted, ManifestError, NumericError, first_line
from sonotune.models.base import LoadedModel
from sonotune.stages import Stage, all_stages, parameters_by_name
from sonotune.training import checkpoint
from sonotune.training.batches import MicroBatchGroup, StepLoader
from sonotune.training.best_checkpoint import BestCheckpoint
from sonotune.training.checks import check_agreement, check_gradients
from sonotune.training.compatibility import DECIDE_BATCHES, CheckpointPlace
from sonotune.training.logging.run_log import EventLog
from sonotune.training.lr_schedule import StageSchedule
from sonotune.training.objectives.base import Objective
from sonotune.training.oom import MemoryGuard
from sonotune.training.optimizer import (
    build_optimizer,
    enter_stage,
    moments_to_come,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rates,
)
from sonotune.training.runtime import ComputeSetup, StopRequest
from sonotune.training.sharding import clip_gradients, fill, full_tensors
from sonotune.training.state import LoopSettings, TrainingData, TrainingState
from sonotune.training.step import Gradients, MeanLoss, is_spike, record_loss, reset_losses
from sonotune.types import Finding, Score

logger = logging.getLogger(__name__)

_CALLBACKS = "dynamics"  # in checkpoints
_FIRST_STEPS = 3  # by then the B matrices have moved, so that gradients reach the A matrices as well


class StageLoop:
    """Runs the stages to their end, to a stop request or to a numeric failure.

    Args:
        objective: Gives the loss.
        loaded: The model, with all that any stage trains marked trainable.
        stages: What trains, one after the other.
        settings: How it steps.
        data: Training clips, and who makes their batches.
        compute: Device, precision, gradient scaling, and the processes that share the micro-batches of each step.
        checkpoints: Where they go, and what a checkpoint must share with the run that resumes from it.
        log: Events, findings, timings and listeners.
        callbacks: What happens to the adapters beside the gradient of the loss.
        evaluate: Scores the development clips, or None where there are none; the primary score decides.
        stop: Set by SIGTERM, SIGUSR1 and SIGINT.

    Attributes:
        state: Where the run stands; all of it is in every checkpoint.
        loader: Gives the micro-batches of each step.
        schedule: Where stages begin and end, in steps.
    """

    def __init__(
        self,
        objective: Objective,
        loaded: LoadedModel,
        stages: Sequence[Stage],
        *,
        settings: LoopSettings,
        data: TrainingData,
        compute: ComputeSetup,
        checkpoints: CheckpointPlace,
        log: EventLog,
        callbacks: Sequence[AdapterCallback] = (),
        evaluate: Callable[[], Mapping[str, Score]] | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self.state = TrainingState(spent=log.spent)
        self._loaded, self._settings, self._checkpoints, self._log = loaded, settings, checkpoints, log
        self._accelerator, self._processes = compute.accelerator, compute.processes
        self._callbacks, self._stop = tuple(callbacks), stop or StopRequest()
        self._stages, self._every_stage = tuple(stages), all_stages(*stages)
        self._optimizer = build_optimizer(
            loaded.module, stages, weight_decay=settings.weight_decay, betas=settings.betas, kind=settings.optimizer
        )
        self._guard = MemoryGuard(loaded, self.state, limit_bytes=settings.memory_limit_bytes, log=log)
        self.loader = StepLoader(loaded, data, settings, processes=self._processes, guard=self._guard, log=log)
        self.schedule = StageSchedule(
            stages, schedule=settings.schedule, floor=settings.learning_rate_floor, steps_of=self.loader.steps
        )
        self._gradients = Gradients(objective, loaded, seed=settings.seed, compute=compute, guard=self._guard, log=log)
        self._best = BestCheckpoint(
            evaluate,
            average=settings.average_checkpoints,
            final=self._final,
            folder=checkpoints.folder,
            log=log,
        )
        self._process = psutil.Process()
        self._several_domains = len({clip.domain for clip in data.clips}) > 1
        self._saved_step, self._needs_dry_run = -1, False
        self._enter_stage(epoch=0)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, if no stage ends early."""
        return self.schedule.total

    def _enter_stage(self, *, epoch: int) -> None:
        """Mark what trains in the present stage, which began with an epoch."""
        state = self.state
        enter_stage(self._optimizer, state.stage)
        self.schedule.enter(state.stage, step=state.stage_step, epoch=epoch, counted=state.counted)
        self._steps_here = 0
        self._refresh_parameters()

    def _refresh_parameters(self) -> None:
        """Find the tensors that train now, and all that any stage trains: adapters may have been given others."""
        self._parameters = parameters_by_name(self._loaded.module, self.schedule.stage.trainable)
        self._weights = parameters_by_name(self._loaded.module, self._every_stage)
        self._adapting = any(self._loaded.names.owns(name) for name in self._parameters)

    def _next_stage(self) -> None:
        """Go on to the next stage, with a fresh pass over the clips."""
        state, done = self.state, self.schedule.stage
        before = state.step >= self.schedule.end
        if state.batch:
            state.epoch, state.batch = state.epoch + 1, 0
        state.stage, state.stage_step = state.stage + 1, state.step
        state.stage_best, state.stage_ties, state.stale, state.counted = None, [], 0, None
        state.stage_epoch = state.epoch
        reset_losses(state)
        self._enter_stage(epoch=state.epoch)
        self._log.event(
            "stage",
            step=state.step,
            stage=self.schedule.stage.name,
            after=done.name,
            because="its steps are done" if before else "its score has stopped improving",
            parameters=sum(parameter.numel() for parameter in self._parameters.values()),
            learning_rates={group.name: group.learning_rate for group in self.schedule.stage.groups},
        )

    def resume(self, saved: checkpoint.Checkpoint) -> frozenset[str]:
        """Go on from a checkpoint of the same run.

        With other batches than it was made with, the epoch begins anew, and the steps that are left are counted from
        there. What did not fit is found out again.

        Returns:
            Keys of the resume fingerprint that differ.

        Raises:
            ConfigError: Something differs, and nothing is left to train.
            CheckpointError: It is of another configuration, other data or another base model, or is incomplete.
        """
        for index, callback in enumerate(self._callbacks):
            callback.restore(_below(saved.optimizer, f"{_CALLBACKS}/{index}/"), self._optimizer)
        self._refresh_parameters()
        differing = checkpoint.check_fingerprint(saved, self._checkpoints.fingerprint, self._weights)
        self._put(saved.weights)
        restore_optimizer(self._optimizer, dict(saved.optimizer), required=saved.state.get("optimizer", self._weights))
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(saved.state["scaler"])
        self.state = TrainingState(**saved.state["position"])
        self._log.spent = self.state.spent
        self._saved_step = -1 if differing else saved.step
        if not differing.isdisjoint(DECIDE_BATCHES):
            self.state.batch, self.state.counted = 0, (self.state.step, self.state.epoch)
        if differing:
            self.state.largest_s, self.state.recompute, self._needs_dry_run = None, False, True
        self._guard.apply(self.state)
        self._enter_stage(epoch=self.state.stage_epoch)
        if differing and self.schedule.last and (saved.step >= self.total_steps or self._out_of_patience()):
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
        self._log.started(self.total_steps, self.state.step)
        check_agreement(self._weights, self._processes, step=self.state.step)
        while True:
            if self._needs_dry_run or self.state.step == self.schedule.begin:
                self._dry_run()
            while self.state.step < self.schedule.end and not self._out_of_patience():
                self._run_epoch()
            if self.schedule.last:
                break
            self._next_stage()
        self._log.ended()
        self.save()

    def _dry_run(self) -> None:
        """Where memory can run out, find out how much fits before the first step of a stage, not hours into it."""
        state, device, self._needs_dry_run = self.state, self._accelerator.device, False
        if device.type != "cuda" and self._settings.memory_limit_bytes is None:
            return
        moments = moments_to_come(self._optimizer, self._settings.optimizer) if device.type == "cuda" else 0
        held = torch.empty(moments, dtype=torch.uint8, device=device)  # the first step makes them
        for batch in self.loader.largest(state.epoch):
            self._gradients.dry_run(batch, self._parameters, step=state.step)
            self._log.event(
                "rehearsal",
                step=state.step + 1,
                clips=len(batch.clips),
                padded_seconds=batch.padded_seconds,
                memory_bytes=self._memory(),
            )
        del held

    def keep_start(self) -> None:
        """Keep the weights as they are before the first step: no later ones may be better."""
        weights = full_tensors(self._weights)
        if self._processes.main:
            checkpoint.save_start(self._checkpoints.folder, weights)
        self._processes.barrier()

    def load_best(self, start: Mapping[str, Mapping[str, Any]] | None = None) -> int | None:
        """Put the best weights in place; see `BestCheckpoint.put_best`."""
        return self._best.put_best(self.state, self._put, now=self._weights, start=start or {})

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self._weights.items():
            fill(parameter, weights[name])

    def save(self) -> None:
        """Write a checkpoint of the present state, once, by the first process."""
        if self._saved_step == self.state.step:
            return
        weights, moments = full_tensors(self._weights), full_tensors(optimizer_tensors(self._optimizer))
        if self._processes.main:
            self._write_checkpoint(weights, moments)
        self._saved_step = self.state.step
        self._processes.barrier()

    def _write_checkpoint(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        started = time.perf_counter()
        scaler = self._accelerator.scaler
        state = {
            "position": asdict(self.state),
            "identity": self._checkpoints.fingerprint.values,
            "stage": self.schedule.stage.name,
            "optimizer": sorted({name.rpartition("/")[0] for name in moments}),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        path = checkpoint.save(
            self._checkpoints.folder,
            self.state.step,
            weights=weights,
            optimizer={**moments, **self._callback_tensors()},
            state=state,
        )
        kept = self.state.best_steps
        checkpoint.prune(self._checkpoints.folder, keep=self._settings.keep_checkpoints, protect=kept)
        self._log.event("checkpoint", step=self.state.step, path=path.name, seconds=time.perf_counter() - started)

    def _callback_tensors(self) -> dict[str, Tensor]:
        return {
            f"{_CALLBACKS}/{index}/{name}": value.contiguous()
            for index, callback in enumerate(self._callbacks)
            for name, value in callback.tensors().items()
        }

    def _run_epoch(self) -> None:
        batches = self.loader.plan(self.state.epoch)
        loader = self.loader.loader(batches, self.state)
        try:
            while self.state.batch < len(batches) and self.state.step < self.schedule.end:
                size = min(self._settings.accumulation_steps, len(batches) - self.state.batch)
                group = self.loader.next_group(loader, size, self.state)
                self._step(group)
                self.state.batch += group.size
                last_of_epoch = self.state.batch >= len(batches)
                if last_of_epoch:
                    self.state.epoch, self.state.batch = self.state.epoch + 1, 0
                self._after_step(last_of_epoch=last_of_epoch)
                if last_of_epoch or self._out_of_patience():
                    return
        finally:
            loader.close()

    def _step(self, group: MicroBatchGroup) -> None:
        state = self.state
        factor, of_trained = self.schedule.factors(state.step)
        rates = set_learning_rates(self._optimizer, factor, of_trained=of_trained)
        started = time.perf_counter()
        loss, count, by_domain = self._accumulate(group)
        penalty = self._penalize() if count else 0.0
        norm = self._clip() if count else 0.0
        finite = count > 0 and np.isfinite(loss) and np.isfinite(norm)
        sound = finite and not is_spike(loss, state)
        if sound:
            with self._log.timed("optimizer"):
                for callback in self._acting():
                    callback.on_gradients(state.step, self.total_steps)
                self._optimizer.step()
            state.bad_steps = 0
            record_loss(loss, state)
            self._steps_here += 1
            if self._steps_here == 1:
                check_agreement(self._weights, self._processes, step=state.step + 1)
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
        state.step += 1
        state.clips += len(group.clip_ids)
        state.audio_s += group.audio_s
        elapsed = time.perf_counter() - started
        state.seconds += elapsed
        self._report(
            group,
            loss=loss if sound else None,
            by_domain=by_domain,
            norm=norm if sound else None,
            rates=rates,
            elapsed=elapsed,
            penalty=penalty,
        )

    def _accumulate(self, group: MicroBatchGroup) -> MeanLoss:
        return self._gradients.accumulate(
            group.batches,
            self._parameters,
            step=self.state.step,
            clips=len(group.clip_ids),
            domains=self._several_domains,
            idle=group.idle,
        )

    def _penalize(self) -> float:
        """Add the gradients of the penalties on the adapters; returns their sum."""
        total = 0.0
        for callback in self._acting():
            penalty = callback.penalty(self.state.step, self.total_steps)
            if penalty is not None:
                self._accelerator.backward(penalty)
                total += float(penalty.detach())
        return total

    def _final(self, step: int) -> bool:
        """Whether the adapters have the ranks that they are kept with."""
        return all(callback.final(step, self.total_steps) for callback in self._callbacks)

    def _acting(self) -> tuple[AdapterCallback, ...]:
        """What happens to the adapters, in a stage that trains any."""
        return self._callbacks if self._adapting else ()

    def _change_adapters(self) -> None:
        for callback in self._acting():
            step = self.state.step + 1
            try:
                event = callback.after_step(step, self.total_steps, self._optimizer)
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                raise NumericError(
                    f"the matrices of the adapters cannot be decomposed after step {step} ({first_line(error)}): they "
                    "have grown beyond all numbers. Lower training.learning_rate; the last checkpoint is from before."
                ) from error
            if event is None:
                continue
            kind, fields = event
            self._refresh_parameters()
            self._log.event(kind, step=step, **fields)
            if kind == "finding":
                self._log.finding([Finding(**fields)])

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
        self._log.event("scale_lowered", step=self.state.step + 1, scale=scaler.get_scale())
        return True

    def _bad_step(self, group: MicroBatchGroup, loss: float, norm: float) -> None:
        self.state.bad_steps += 1
        clips = list(group.clip_ids)
        self._log.event("bad_step", step=self.state.step + 1, loss=str(loss), gradient_norm=str(norm), clips=clips)
        logger.warning("step %d skipped: loss %s, gradient norm %s", self.state.step + 1, loss, norm)
        if self.state.bad_steps >= self._settings.max_bad_steps:
            raise NumericError(
                f"{self.state.bad_steps} steps in a row gave a loss or gradient that is not finite, or a loss far "
                f"beyond those before (the last was {loss:g}); the last clips were {', '.join(clips[:8])}. Lower "
                "training.learning_rate, or use training.precision=fp32."
            )

    def _empty_step(self) -> None:
        self.state.bad_steps += 1
        if self.state.bad_steps >= self._settings.max_bad_steps:
            raise ManifestError(
                f"none of the clips of the last {self.state.bad_steps} steps could be read; events.jsonl names "
                "them, and why. Are the files still where the manifest says?"
            )

    def _after_step(self, *, last_of_epoch: bool) -> None:
        state, settings = self.state, self._settings
        done = state.step >= self.schedule.end
        due = last_of_epoch if settings.eval_steps == "epoch" else _every(state.step, settings.eval_steps)
        if settings.eval_steps != "never" and (due or done):
            self._best.score(state)
        save_due = last_of_epoch if settings.save_steps == "epoch" else _every(state.step, settings.save_steps)
        # One process may get the signal a step before the others.
        reason = next((reason for reason in self._processes.all_gather(self._stop.reason) if reason), None)
        if save_due or state.step in state.best_steps or reason:
            self.save()
        if reason and not (done and self.schedule.last):
            raise Interrupted(
                f"stopped by {reason} after step {state.step} of {self.total_steps}; "
                "the state is saved. Run the same command again to go on."
            )

    def _report(
        self,
        group: MicroBatchGroup,
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
            "step": self.state.step,
            "epoch": self.state.epoch,
            "stage": self.schedule.stage.name,
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
        self._log.stepped(values)

    def _memory(self) -> int:
        if self._accelerator.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        return int(self._process.memory_info().rss)

    def _out_of_patience(self) -> bool:
        patience = self.schedule.stage.patience
        return patience is not None and self.state.stale >= patience


def _every(step: int, interval: int | str) -> bool:
    return isinstance(interval, int) and step % interval == 0


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
