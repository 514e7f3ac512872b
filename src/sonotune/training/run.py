"""The story of a run, top to bottom."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from sonotune.adapters.saved import Opened, choose_family, open_model
from sonotune.audio.augment import WaveformAugmenter
from sonotune.config.load import LoadedConfig
from sonotune.config.schema import RunConfig
from sonotune.data.text import get as get_normalizer
from sonotune.errors import Interrupted, RunDirectoryError, SonotuneError
from sonotune.evaluation.evaluate import EvaluationResult, evaluate, write_predictions
from sonotune.features.mixup import MixupSettings
from sonotune.features.specaugment import SpecAugmentSettings
from sonotune.features.workers import Crew
from sonotune.metrics.efficiency import Energy, PeakMemory
from sonotune.models.base import MULTI_LABEL, LoadedModel, ModelFamily, count_parameters
from sonotune.models.precision import Precision, choose_precision
from sonotune.registry import resolve
from sonotune.runs import RunDirectory, torch_seed
from sonotune.tasks.base import Prepared, Task, TaskSettings
from sonotune.training import checkpoint, checks
from sonotune.training.adapt import adapt, check_settings_of_task, new_outputs
from sonotune.training.book import RunBook
from sonotune.training.corpus import CORPUS_SETTINGS, Corpus, load_corpus, refuse_too_many, within_window
from sonotune.training.keep import keep
from sonotune.training.loop import StageLoop
from sonotune.training.loop_settings import Listener, LoopSettings, TrainingData
from sonotune.training.memory import keep_freed_memory
from sonotune.training.signals import StopRequest, stop_on_signals
from sonotune.training.stages import Stage, describe, whole_run
from sonotune.types import Clip, RunRecord, Score

logger = logging.getLogger(__name__)


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
    crews: _Crews
    accelerator: Accelerator
    corpus: Corpus
    loaded: LoadedModel
    family: ModelFamily
    task: Task
    prepared: Prepared
    stage: Stage
    bits: int
    precision: str


def run(settings: LoadedConfig, *, listeners: Sequence[Listener] = ()) -> tuple[RunRecord, Path]:
    """Train as configured; goes on by itself where the run directory holds a checkpoint of the same configuration.

    Args:
        settings: The configuration and where each value came from.
        listeners: See progress as it happens.

    Returns:
        The finished record, as it stands in `run.json`, and the run's directory.

    Raises:
        SonotuneError: With an exit code that says what went wrong (see `errors`).
    """
    config = settings.config
    with (
        RunDirectory.create_or_open(
            settings.run_dir(), config_digest=settings.digest, config=settings.plain(), resume=config.run.resume
        ) as directory,
        stop_on_signals() as stop,
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
            session = _prepare(config, book, _Crews(training=for_training, evaluation=for_evaluation))
            _score(session, "before", session.corpus.splits.get("eval"), once=True)
            loop = _train(session, stop, listeners)
            loop.load_best()
            _save(session)
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
        return book.close("finished"), directory.path


def _prepare(config: RunConfig, book: RunBook, crews: _Crews) -> _Session:
    book.write()
    precision, why = choose_precision(config.training.precision)
    torch.manual_seed(torch_seed(config.training.seed, "initialisation"))
    if config.training.threads != "auto":
        torch.set_num_threads(config.training.threads)
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision, cpu=not torch.cuda.is_available()
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    family, task = _task(config)
    corpus = _corpus(config, task)
    book.found(corpus.findings)
    opened = _open(config, family, task.outputs(corpus.splits["train"]), precision, accelerator.device)
    loaded, plan = adapt(
        opened.loaded.with_(ctc_share=config.model.ctc_share),
        **config.adapter.model_dump(),
        precision=precision,
        gradient_checkpointing=config.training.gradient_checkpointing,
    )
    prepared = _targets(config, corpus, task, loaded)
    book.found((*prepared.findings, *new_outputs(loaded)))
    training = config.training
    stage = whole_run(
        loaded, learning_rate=training.learning_rate, learning_rates=training.learning_rates,
        max_epochs=training.max_epochs, max_steps=training.max_steps, patience=training.patience,
    )  # fmt: skip
    book.chose({**opened.choices, "training.precision": f"{precision}: {why}"})
    book.write(
        data_digest=corpus.digests,
        ranks=dict(plan.ranks) if plan else {},
        stages=(describe(stage, loaded),),
        model={
            "family": loaded.family, "checkpoint": loaded.checkpoint, "revision": loaded.revision,
            "components": count_parameters(loaded), "quantized_linears": len(loaded.quantized),
        },
    )  # fmt: skip
    return _Session(
        config=config, book=book, crews=crews, accelerator=accelerator, corpus=corpus, loaded=loaded,
        family=opened.family, task=task, prepared=prepared, stage=stage,
        bits=max(loaded.quantized.values(), default=16), precision=precision,
    )  # fmt: skip


def _task(config: RunConfig) -> tuple[ModelFamily, Task]:
    """The architecture, and what it learns."""
    model = config.model
    family = choose_family(model.checkpoint, revision=model.revision, family=model.family, task=model.task)
    task: Task = resolve("tasks", family.task)(
        family,
        TaskSettings(
            training_text=get_normalizer(config.data.text_training),
            scoring_text=get_normalizer(config.data.text_scoring),
            language=model.language,
            max_label_tokens=config.data.max_label_tokens,
            multi_label=config.data.multi_label,
            class_weights=config.training.class_weights,
        ),
    )
    return family, task


def _open(
    config: RunConfig, family: ModelFamily, wanted: Sequence[str], precision: Precision, device: torch.device
) -> Opened:
    """The model, with an output layer for what the clips need."""
    model, full = config.model, config.adapter.kind == "none"
    check_settings_of_task(
        family.task, wanted, mixup_probability=config.augmentation.mixup_probability, num_labels=model.num_labels
    )
    opened = open_model(
        model.checkpoint, family=family, revision=model.revision, context=model.context,
        bits=16 if full else config.quantization.bits, double=config.quantization.double, skip=_unquantized(config),
        precision=precision, device=device, random_weights=model.random_weights, dropout=model.dropout,
        outputs=() if model.outputs == "checkpoint" else tuple(wanted), renew_outputs=model.outputs == "data",
        tokenizer=None if model.tokenizer is None else str(model.tokenizer),
    )  # fmt: skip
    if config.data.multi_label:
        opened.loaded.module.config.problem_type = MULTI_LABEL  # saved with the model, and read again there
    return opened


def _unquantized(config: RunConfig) -> tuple[str, ...]:
    """Selectors that stay in full precision: what trains must be there from the start."""
    return (*config.quantization.skip, *(() if config.adapter.kind == "none" else config.adapter.unfreeze))


def _targets(config: RunConfig, corpus: Corpus, task: Task, loaded: LoadedModel) -> Prepared:
    """Targets of the training clips; all splits are looked at before anything trains."""
    for split in ("eval", "test"):
        task.check_truth(loaded, corpus.splits.get(split, ()))
    clips = corpus.splits["train"]
    fitting, too_long = within_window(clips, loaded.frontend.max_duration_s)
    prepared = task.prepare(loaded, fitting)
    dropped = (*too_long, *prepared.dropped)
    refuse_too_many("train", dropped, len(clips), max_bad_fraction=config.data.max_bad_fraction)
    return replace(prepared, findings=(*too_long, *prepared.findings))


def _corpus(config: RunConfig, task: Task) -> Corpus:
    data = config.data
    named = {"train": data.train, "eval": data.eval, "test": data.test}
    return load_corpus(
        {name: source for name, source in named.items() if source is not None},
        seed=config.training.seed,
        require=task.truth,
        **data.model_dump(include=CORPUS_SETTINGS),
    )


def _evaluate(session: _Session, clips: Sequence[Clip]) -> EvaluationResult:
    config, settings = session.config, session.config.evaluation
    return evaluate(
        session.task, session.loaded, clips, batch_seconds=settings.batch_seconds,
        max_clips=settings.batch_max_clips, beam_size=settings.beam_size, max_new_tokens=settings.max_new_tokens,
        bootstrap=settings.bootstrap,
        duration_edges_s=settings.duration_edges_s, full_context=config.model.context == "full",
        crew=session.crews.evaluation, autocast=session.accelerator.autocast,
    )  # fmt: skip


def _score(session: _Session, moment: str, clips: Sequence[Clip] | None, *, once: bool = False) -> None:
    """Score a split and keep scores and predictions; `once` leaves an earlier session's scores alone."""
    if not clips or (once and moment in session.book.record.scores):
        return
    result = _evaluate(session, clips)
    write_predictions(
        session.book.directory.predictions_dir / f"{moment}.jsonl", session.task, result.predictions, clips
    )
    session.book.found(result.findings)
    session.book.scored(moment, result.scores)


def _train(session: _Session, stop: StopRequest, listeners: Sequence[Listener]) -> StageLoop:
    config, book, loaded, stage = session.config, session.book, session.loaded, session.stage
    eval_clips = session.corpus.splits.get("eval")
    loop = StageLoop(
        task=session.task,
        loaded=loaded,
        stage=stage,
        settings=_loop_settings(config),
        data=_training_data(config, session.prepared),
        crew=session.crews.training,
        accelerator=session.accelerator,
        checkpoints=book.directory.checkpoints_dir,
        event=book.directory.event,
        evaluate=functools.partial(_eval_scores, session, eval_clips) if eval_clips else None,
        listeners=listeners,
        identity={
            "settings": book.record.config_digest,
            "training data": session.corpus.digests["train"],
            "evaluation data": session.corpus.digests.get("eval", "none"),
            "base model": loaded.revision,
            "precision": session.precision,
            "bits of the frozen weights": str(session.bits),
        },
        found=book.found,
        stop=stop,
    )
    frozen = checks.fingerprint(loaded.module, exclude=stage.trainable)
    start = checks.fingerprint(loaded.module, exclude=frozenset(frozen))
    saved = checkpoint.newest(
        book.directory.checkpoints_dir,
        on_damage=lambda path, problem: book.directory.event("quarantined", path=path.name, problem=problem),
    )
    if saved is not None:
        loop.resume(saved)
    elif config.run.resume == "must":
        raise RunDirectoryError(f"{book.directory.path} holds no checkpoint to resume, and run.resume is must.")
    if book.directory.resumed:
        book.directory.truncate_events_after(loop.position.step)
        book.directory.event("resumed", step=loop.position.step)
    loop.run()
    checks.check_frozen(frozen, loaded.module, exclude=stage.trainable)
    checks.check_moved(start, loaded.module, stage, loaded)
    checks.check_applied(session.family, loaded, autocast=session.accelerator.autocast)
    book.directory.event("spent", step=loop.position.step, seconds=loop.position.spent)
    return loop


def _eval_scores(session: _Session, clips: Sequence[Clip]) -> Mapping[str, Score]:
    return _evaluate(session, clips).scores


def _loop_settings(config: RunConfig) -> LoopSettings:
    training = config.training
    return LoopSettings(
        learning_rate_floor=training.min_learning_rate_ratio,
        full_context_share=config.model.full_context_share,
        **training.model_dump(
            include={
                "seed", "batch_seconds", "batch_max_clips", "accumulation_steps", "schedule", "warmup_steps",
                "weight_decay", "betas", "clip_norm", "label_smoothing", "eval_steps", "save_steps",
                "keep_checkpoints",
            }
        ),
    )  # fmt: skip


def _training_data(config: RunConfig, prepared: Prepared) -> TrainingData:
    values = config.augmentation.model_dump()
    mixup = MixupSettings(**{name: values.pop(f"mixup_{name}") for name in ("probability", "alpha", "domain")})
    spec = SpecAugmentSettings(**{name: values.pop(name) for name in _SPEC_AUGMENT})
    waveform = WaveformAugmenter(**values)
    return TrainingData(
        clips=prepared.clips,
        targets=prepared.targets,
        augmenter=waveform if waveform.active else None,
        spec_augment=spec if spec.frequency_masks or spec.time_masks or spec.time_warp_frames else None,
        mixup=mixup if mixup.probability else None,
    )


_SPEC_AUGMENT = (
    "frequency_masks", "frequency_mask_bins", "time_masks", "time_mask_frames", "time_mask_fraction",
    "time_warp_frames",
)  # fmt: skip


def _save(session: _Session) -> None:
    config = session.config
    keep(
        session.loaded,
        session.book.directory,
        extra={
            "bits": session.bits,
            "double": config.quantization.double,
            "quantization_skip": list(_unquantized(config)),
            "language": config.model.language,
            "outputs": list(session.loaded.new_outputs),
            "multi_label": config.data.multi_label,
            "run": session.book.record.run_id,
        },
    )
