"""The story of a run, top to bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from sonotune.adapters.allocation import RankPlan
from sonotune.adapters.calibration import collect
from sonotune.adapters.dynamics import Dynamics
from sonotune.adapters.split import Split
from sonotune.config.load import LoadedConfig
from sonotune.config.schema import RunConfig
from sonotune.data.corpus import Corpus
from sonotune.errors import Interrupted, ProcessError, RunDirectoryError, SonotuneError
from sonotune.evaluation.evaluate import EvaluationResult, evaluate, write_predictions
from sonotune.features.workers import Crew
from sonotune.metrics.efficiency import Energy, PeakMemory
from sonotune.models.base import LoadedModel, ModelFamily, count_parameters
from sonotune.models.precision import Precision, bound_kernel_cache, choose_precision
from sonotune.models.thinning import contexts_of_training
from sonotune.processes import Processes
from sonotune.runs import RunDirectory, torch_seed
from sonotune.tasks.base import Prepared, Task
from sonotune.training import checkpoint, checks
from sonotune.training.adapt import ADAPTER_SETTINGS, adapt, new_outputs, untrained_parts
from sonotune.training.book import RunBook
from sonotune.training.dynamics import build_dynamics
from sonotune.training.identity import TRAINING_DATA, identity_of, may_differ
from sonotune.training.keep import keep
from sonotune.training.loop import StageLoop
from sonotune.training.loop_settings import Listener, LoopSettings
from sonotune.training.memory import keep_freed_memory, let_segments_grow
from sonotune.training.optimizer import choose_optimizer
from sonotune.training.preparation import (
    Material,
    accelerator_for,
    choose_ranks,
    gather,
    loop_settings,
    measure_split,
    rank_settings,
    stages_of,
    training_data,
    unquantized,
    with_learning_rate,
    with_split,
    with_stages,
)
from sonotune.training.ranks import calibration_clips, ranks_text, read_split, split_text
from sonotune.training.sharding import assembled, check_shardable, entire, is_sharded, shard_layers
from sonotune.training.signals import StopRequest, stop_on_signals
from sonotune.training.stages import Stage, all_stages, describe
from sonotune.training.trackers import Trackers, check_trackers
from sonotune.types import Clip, RunRecord, Score

RANKS_FILE, SPLIT_FILE = "ranks.json", "split.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Crews:
    """Loader processes: an evaluation may come in the middle of a training epoch."""

    training: Crew
    evaluation: Crew


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    """What a run works with once everything is loaded."""

    config: RunConfig
    book: RunBook
    trackers: Trackers
    crews: _Crews
    accelerator: Accelerator
    processes: Processes
    steps: LoopSettings
    corpus: Corpus
    loaded: LoadedModel
    family: ModelFamily
    task: Task
    prepared: Prepared
    stages: Sequence[Stage]
    dynamics: Sequence[Dynamics]
    adapted: Sequence[str]
    bits: int
    identity: Mapping[str, str]


def run(settings: LoadedConfig, *, listeners: Sequence[Listener] = ()) -> tuple[RunRecord, Path]:
    """Train as configured; goes on by itself where the run directory holds a checkpoint of the same configuration.

    Where `torchrun` has started several processes, all of them call this, and the first one writes.

    Args:
        settings: The configuration and where each value came from.
        listeners: See progress as it happens.

    Returns:
        The finished record, as it stands in `run.json`, and the run's directory.

    Raises:
        SonotuneError: With an exit code that says what went wrong (see `errors`).
    """
    config = settings.config
    check_trackers(config.run.trackers)
    arithmetic = _arithmetic(config)
    with (
        _open_directory(settings, arithmetic.processes) as directory,
        stop_on_signals() as stop,
        stop.waits(False),
        PeakMemory() as memory,
        Energy() as energy,
        Crew(config.data.loader_workers) as for_training,
        Crew(config.data.loader_workers) as for_evaluation,
    ):
        book = RunBook(
            directory, config=settings.plain(), origin=settings.origin, digest=settings.digest, memory=memory,
            energy=energy,
        )  # fmt: skip
        try:
            session = _prepare(config, book, _Crews(training=for_training, evaluation=for_evaluation), arithmetic)
            with session.trackers as trackers:
                if config.evaluation.zero_shot:
                    _score(session, "before", session.corpus.splits.get("eval"), once=True)
                if not _has_checkpoint(book):
                    _listen(session, "before", 0)
                loop = _train(session, stop, (*listeners, trackers))
                session = _trained(session)
                step = loop.load_best() or loop.position.step
                _settle(session)
                _save(session)
                _listen(session, "after", step)
                _score(session, "after", session.corpus.splits.get("eval"))
                _score(session, "test", session.corpus.splits.get("test"))
        except Interrupted:
            book.close("interrupted")
            raise
        except BaseException as error:
            with suppress(SonotuneError):  # on a full disk these fail as well; the first error is the one to see
                book.close("failed")
                directory.event("failed", error=type(error).__name__, message=str(error))
            raise
        directory.event("finished")
        record = book.close("finished")
        session.processes.leave()
        return record, directory.path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arithmetic:
    """Where a run computes, how precisely and with whom."""

    accelerator: Accelerator
    processes: Processes
    precision: Precision
    why: str


def _arithmetic(config: RunConfig) -> _Arithmetic:
    """The processes find each other before anything can be refused, so that all hear of it."""
    precision, why = choose_precision(config.training.precision)
    if config.training.threads != "auto":
        torch.set_num_threads(config.training.threads)
    let_segments_grow()
    bound_kernel_cache()
    accelerator = accelerator_for(precision)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    processes = Processes.joined(accelerator.num_processes)
    return _Arithmetic(accelerator=accelerator, processes=processes, precision=precision, why=why)


def _open_directory(settings: LoadedConfig, processes: Processes) -> RunDirectory:
    """Opened by the first process; the others visit it, or hear why it was refused."""
    if not processes.main:
        if refused := processes.from_main(""):
            raise ProcessError(f"process 0 was refused: {refused}")
        return RunDirectory.visit(settings.run_dir())
    try:
        directory = RunDirectory.create_or_open(
            settings.run_dir(), config_digest=settings.digest, settings=settings.deciding(),
            resume=settings.config.run.resume, allow_change=settings.config.run.allow_change,
        )  # fmt: skip
    except SonotuneError as error:
        processes.from_main(str(error))
        raise
    processes.from_main("")
    return directory


def _prepare(config: RunConfig, book: RunBook, crews: _Crews, arithmetic: _Arithmetic) -> _Session:
    if book.directory.resumed and _has_checkpoint(book):
        book.hold()
    book.write()
    accelerator, processes, precision = arithmetic.accelerator, arithmetic.processes, arithmetic.precision
    torch.manual_seed(torch_seed(config.training.seed, "initialisation"))
    book.share(processes)
    optimizer, reason = choose_optimizer(config.training.optimizer, accelerator.device)
    steps = loop_settings(config, processes, begun=processes.from_main(_begun_with(book)))
    steps = replace(steps, optimizer=optimizer)
    config = with_stages(config)
    material = gather(config, precision=precision, device=accelerator.device, found=book.found)
    corpus, opened = material.corpus, material.opened
    bits = max(opened.loaded.quantized.values(), default=16)
    identity = identity_of(
        corpus, opened.loaded, steps, settings=book.record.config_digest, precision=precision, bits=bits,
    )  # fmt: skip
    processes.agree({**identity, "test data": corpus.digests.get("test", "none")})
    config, why_this_rate = with_learning_rate(config, opened.loaded)
    if config.training.shard_weights:
        check_shardable(
            kind=config.adapter.kind, bits=bits, precision=precision, optimizer=optimizer,
            memory_limit_bytes=steps.memory_limit_bytes,
        )  # fmt: skip
    if config.adapter.kind != "none" and config.adapter.split == "measured":
        config = with_split(config, _split(config, book, material, accelerator))
    plan = None if config.adapter.kind == "none" else _ranks(config, book, material, accelerator, processes)
    loaded = adapt(
        opened.loaded,
        plan,
        **config.adapter.model_dump(include=set(ADAPTER_SETTINGS)),
        precision=precision,
        gradient_checkpointing=config.training.gradient_checkpointing,
    )
    book.found((*new_outputs(loaded), *untrained_parts(loaded)))
    dynamics = build_dynamics(
        loaded, plan, rank_settings(config).bounds_in(loaded), seed=config.training.seed,
        **config.regularization.model_dump(), **config.reallocation.model_dump(),
    )  # fmt: skip
    stages = stages_of(config, loaded)
    choices = {**opened.choices, "training.precision": f"{precision}: {arithmetic.why}"}
    if why_this_rate is not None:
        choices["training.learning_rate"] = why_this_rate
    if optimizer != config.training.optimizer:
        choices["training.optimizer"] = f"{optimizer}: {reason}"
    if config.training.shard_weights and processes.count == 1:
        choices["training.shard_weights"] = "false: there is one process, which holds all weights"
    book.chose(choices)
    book.write(
        data_digest=corpus.digests,
        ranks=dict(plan.ranks) if plan else {},
        stages=tuple(describe(stage, loaded) for stage in stages),
        model={
            "family": loaded.family, "checkpoint": loaded.checkpoint, "revision": loaded.revision,
            "components": count_parameters(loaded), "quantized_linears": len(loaded.quantized),
            "context": loaded.context, "thinning": asdict(loaded.thinning),
        },
    )  # fmt: skip
    if config.training.shard_weights and processes.count > 1:
        shard_layers(loaded, processes, precision=precision)
    trackers = Trackers(
        config.run.trackers if processes.main else (), folder=book.directory.path, config=book.record.config,
        event=book.directory.event,
    )  # fmt: skip
    return _Session(
        config=config, book=book, trackers=trackers, crews=crews, accelerator=accelerator, processes=processes,
        steps=steps, corpus=corpus, loaded=loaded, family=opened.family, task=material.task, prepared=material.prepared,
        stages=stages, dynamics=dynamics,
        adapted=list(plan.ranks) if plan else [],
        bits=bits, identity=identity,
    )  # fmt: skip


def _split(config: RunConfig, book: RunBook, material: Material, accelerator: Accelerator) -> Split:
    """Measured once: a run that goes on from a checkpoint finds it in its directory."""
    kept = book.directory.path / SPLIT_FILE
    if kept.is_file() and _has_checkpoint(book):
        split = read_split(kept)
    else:
        split = measure_split(config, material, autocast=accelerator.autocast)
        book.directory.write_text(SPLIT_FILE, split_text(split))
    book.chose({"adapter.split": split.sentence()})
    return split


def _ranks(
    config: RunConfig, book: RunBook, material: Material, accelerator: Accelerator, processes: Processes
) -> RankPlan:
    """Chosen once: a run that goes on from a checkpoint finds them in its directory.

    Without one they are chosen again, for the file does not hold where the A matrices start.
    """
    kept = book.directory.path / RANKS_FILE
    if kept.is_file() and _has_checkpoint(book):
        return choose_ranks(config, material, file=kept)[0]
    plan, found = choose_ranks(config, material, autocast=accelerator.autocast, processes=processes)
    if found is not None:
        book.directory.event("calibrated", **found.summary())
        book.found(found.findings)
    book.directory.write_text(RANKS_FILE, ranks_text(plan, material.opened.loaded))
    return plan


def _begun_with(book: RunBook) -> int | None:
    """Micro-batches of a step of the run that goes on; None for one that begins."""
    saved = checkpoint.published(book.directory.checkpoints_dir)
    return checkpoint.micro_batches(saved[0]) if saved else None


def _has_checkpoint(book: RunBook) -> bool:
    return bool(checkpoint.published(book.directory.checkpoints_dir))


def _evaluate(session: _Session, clips: Sequence[Clip]) -> EvaluationResult:
    settings = session.config.evaluation
    with assembled(session.loaded.module):
        return evaluate(
            session.task, session.loaded, clips, batch_seconds=settings.batch_seconds,
            max_clips=settings.batch_max_clips, decoding=settings.decoding(),
            bootstrap=settings.bootstrap,
            duration_edges_s=settings.duration_edges_s, crew=session.crews.evaluation,
            autocast=session.accelerator.autocast, processes=session.processes,
        )  # fmt: skip


def _score(session: _Session, moment: str, clips: Sequence[Clip] | None, *, once: bool = False) -> None:
    """Score a split and keep scores and predictions; `once` leaves an earlier session's scores alone."""
    if not clips or (once and moment in session.book.record.scores):
        return
    result = _evaluate(session, clips)
    if session.processes.main:
        write_predictions(
            session.book.directory.predictions_dir / f"{moment}.jsonl", session.task, result.predictions, clips
        )
    session.book.found([replace(found, message=f"{moment}: {found.message}") for found in result.findings])
    session.book.scored(moment, result.scores)
    session.trackers.scored(moment, result.scores)


def _train(session: _Session, stop: StopRequest, listeners: Sequence[Listener]) -> StageLoop:
    config, book, loaded, stages = session.config, session.book, session.loaded, session.stages
    eval_clips, processes, steps = session.corpus.splits.get("eval"), session.processes, session.steps

    def scores() -> Mapping[str, Score]:
        _listen(session, "during", loop.position.step)
        return _evaluate(session, eval_clips or ()).scores

    loop = StageLoop(
        task=session.task,
        loaded=loaded,
        stages=stages,
        settings=steps,
        data=training_data(config, session.prepared),
        crew=session.crews.training,
        dynamics=session.dynamics,
        accelerator=session.accelerator,
        processes=processes,
        checkpoints=book.directory.checkpoints_dir,
        event=book.directory.event,
        evaluate=scores if eval_clips else None,
        listeners=listeners,
        identity=session.identity,
        may_differ=may_differ(config.run.allow_change),
        found=book.found,
        stop=stop,
    )
    frozen = checks.fingerprint(loaded.module, exclude=all_stages(*stages))
    start = checks.fingerprint(loaded.module, exclude=frozenset(frozen))
    saved = _newest_checkpoint(session)
    data: dict[str, tuple[str, str]] = {}
    if saved is not None:
        differing = loop.resume(saved)
        if book.was_finished and not differing:
            raise RunDirectoryError(f"{book.directory.path} holds a finished run of these settings and these clips.")
        if TRAINING_DATA in differing:
            data[TRAINING_DATA] = (saved.state["identity"][TRAINING_DATA], session.identity[TRAINING_DATA])
    elif config.run.resume == "must":
        raise RunDirectoryError(f"{book.directory.path} holds no checkpoint to resume, and run.resume is must.")
    if book.directory.resumed:
        book.goes_on(loop.position.step, data)
    with stop.waits(True):
        loop.run()
    checks.check_frozen(frozen, loaded.module, exclude=all_stages(*stages))
    checks.check_moved(start, loaded.module, stages, loaded)
    with assembled(loaded.module):
        checks.check_applied(session.family, loaded, autocast=session.accelerator.autocast)
    book.directory.event("spent", step=loop.position.step, seconds=loop.position.spent)
    return loop


def _trained(session: _Session) -> _Session:
    """The weights are now those of the contexts they were trained in."""
    loaded, share = session.loaded, session.config.model.full_context_share
    if not loaded.trained_contexts:
        return session
    contexts = contexts_of_training(loaded.context, thinned_is_full=loaded.thinned_is_full, full_context_share=share)
    session.book.write(model={**session.book.record.model, "trained_contexts": list(contexts)})
    return replace(session, loaded=loaded.with_(trained_contexts=contexts))


def _newest_checkpoint(session: _Session) -> checkpoint.Checkpoint | None:
    """Found by the first process, which sets aside what is damaged, and read by the others."""
    directory, processes = session.book.directory, session.processes
    saved = None
    if processes.main:
        saved = checkpoint.newest(
            directory.checkpoints_dir,
            on_damage=lambda path, problem: directory.event("quarantined", path=path.name, problem=problem),
        )
    path = processes.from_main(None if saved is None else saved.path)
    return checkpoint.read(path) if saved is None and path is not None else saved


def _listen(session: _Session, moment: str, step: int) -> None:
    """Log the entropy of activations, where that is asked for."""
    settings = replace(rank_settings(session.config), clips=session.config.evaluation.entropy_clips)
    if not settings.clips or not session.adapted:
        return
    with assembled(session.loaded.module):
        found = collect(
            session.loaded, session.task, calibration_clips(session.prepared.clips, settings), tokens=settings.tokens,
            seed=settings.seed, autocast=session.accelerator.autocast, names=session.adapted,
            processes=session.processes,
        )  # fmt: skip
    session.book.directory.event(
        "activation_entropy", step=step, moment=moment, effective_rank=found.effective_ranks(),
        **{kind: found.effective_ranks(kind) for kind in ("audio", "text")}, seconds=found.seconds,
    )  # fmt: skip


def _settle(session: _Session) -> None:
    """Leave plain adapters behind, and write down the ranks and sizes they have in the end."""
    for dynamics in session.dynamics:
        if ranks := dynamics.finish():
            record = session.book.record
            model = {**record.model, "components": count_parameters(session.loaded)}
            session.book.write(ranks={**record.ranks, **ranks}, model=model)


def _save(session: _Session) -> None:
    config = session.config
    weights = entire(session.loaded.module.state_dict()) if is_sharded(session.loaded.module) else None
    if not session.processes.main:
        return
    keep(
        session.loaded,
        session.book.directory,
        weights=weights,
        extra={
            "bits": session.bits,
            "double": config.quantization.double,
            "quantization_skip": list(unquantized(config)),
            "language": config.model.language,
            "text_scoring": config.data.text_scoring,
            "min_duration_s": config.data.min_duration_s,
            "max_duration_s": config.data.max_duration_s,
            "multi_label": config.data.multi_label,
            "outputs": list(session.loaded.new_outputs),
            "run": session.book.record.run_id,
        },
    )
