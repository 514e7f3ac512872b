"""From settings to what a run is made of: clips, task, model, targets, ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from sonotune.adapters.trainable import check_plain, check_settings_of_task
from sonotune.audio.augment import WaveformAugmenter
from sonotune.audit.sources import audio_digest
from sonotune.audit.verdict import audit_folder, check_verdict
from sonotune.config.schema import RunConfig
from sonotune.data.chunking import cut_at_words
from sonotune.data.corpus import CORPUS_SETTINGS, Corpus, load_corpus, read_source, refuse_too_many
from sonotune.data.manifest import digest
from sonotune.data.text import get as get_normalizer
from sonotune.data.windows import fit_for_training, training_limit_s
from sonotune.errors import ConfigError, ManifestError
from sonotune.features.mixup import MixupSettings
from sonotune.features.specaugment import SpecAugmentSettings
from sonotune.features.workers import Crew
from sonotune.loading import Opened, choose_family, model_digest, open_model
from sonotune.models.base import MULTI_LABEL, LoadedModel, ModelFamily
from sonotune.models.precision import Precision
from sonotune.optimizers import choose_optimizer
from sonotune.registry import resolve
from sonotune.tasks.base import PreparedClips, Task, TaskSettings
from sonotune.training.adaptation import asked_merging, objective_of, unquantized
from sonotune.training.objectives.base import Objective
from sonotune.training.runtime import ComputeSetup
from sonotune.training.state import LoopSettings, TrainingData
from sonotune.training.teacher import Teacher, check_teacher, family_of_teacher, note_on_itself, open_teacher
from sonotune.types import Clip, Context, Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """What a run works on, before anything is adapted.

    Attributes:
        corpus: The clips of every split.
        task: What is learned.
        opened: The model as it was loaded.
        prepared: Training clips that can be used, with their targets.
        calibration_objective: Whose gradients calibration looks at: that of training, without label smoothing.
        primary: Name of the score that decides in the whole run.
        primary_reason: Why that one.
        teacher: The model that is learned from, where one is.
    """

    corpus: Corpus
    task: Task
    opened: Opened
    prepared: PreparedClips
    calibration_objective: Objective
    primary: str
    primary_reason: str
    teacher: Teacher | None = None

    @property
    def language(self) -> str | None:
        """That all training clips name, where they name one and the same."""
        named = {clip.language for clip in self.prepared.clips}
        return next(iter(named)) if len(named) == 1 else None

    @property
    def bits(self) -> int:
        """Of the frozen weights."""
        return max(self.opened.loaded.quantized.values(), default=16)


def load_inputs(
    config: RunConfig,
    compute: ComputeSetup,
    *,
    finding: Callable[[Sequence[Finding]], None] = lambda findings: None,
) -> RunInputs:
    """Load clips and model and encode the targets.

    Args:
        config: The settings.
        compute: Where the model goes, and how precisely it computes.
        finding: Told of findings as they come, for a later step may fail.

    Raises:
        SonotuneError: Of whichever part is wrong.
    """
    _check_objective(config)
    family, task = _task(config)
    corpus = _without_weight(_corpus(config, task, finding), finding)
    opened = _open(config, family, task.outputs(corpus.splits["train"]), compute.precision, compute.accelerator.device)
    prepared = _targets(config, corpus, task, opened.loaded, finding)
    rate = max(prepared.tokens_per_second, opened.loaded.tokens_per_second)
    opened = replace(opened, loaded=opened.loaded.with_(tokens_per_second=rate))
    teacher = _teacher(config, compute, opened, prepared, finding)
    primary, reason = task.primary_of(corpus.splits.get("eval") or corpus.splits["train"])
    return RunInputs(
        corpus=corpus,
        task=task,
        opened=opened,
        prepared=prepared,
        calibration_objective=objective_of(config, task, teacher=teacher, calibrating=True),
        primary=primary,
        primary_reason=reason,
        teacher=teacher,
    )


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
            aligned=config.model.ctc_share > 0 and config.training.objective in ("auto", "ctc_mix"),
            multi_label=config.data.multi_label,
            class_weights=config.training.class_weights,
            verbalize_numbers=config.evaluation.verbalize_numbers,
            primary=config.evaluation.primary,
            scores=config.evaluation.scores,
        ),
    )
    return family, task


def _corpus(config: RunConfig, task: Task, tell: Callable[[Sequence[Finding]], None]) -> Corpus:
    data = config.data
    folder = audit_folder(str(data.train), None if config.audit.dir == "auto" else config.audit.dir)

    @cache  # an audit asks for them more than once, and without one nobody does
    def clips() -> Sequence[Clip]:
        return read_source(str(data.train), root=data.root, allow_outside_root=data.allow_outside_root)

    tell(
        check_verdict(
            folder,
            lambda: digest(clips()),
            lambda found: audio_digest(clips(), found),
            require=config.audit.require,
        )
    )
    named = {"train": data.train, "eval": data.eval, "test": data.test}
    return load_corpus(
        {name: source for name, source in named.items() if source is not None},
        seed=config.training.seed,
        require=task.reference,
        tell=tell,
        **data.model_dump(include=CORPUS_SETTINGS),
    )


def _without_weight(corpus: Corpus, tell: Callable[[Sequence[Finding]], None]) -> Corpus:
    """The corpus without the training clips of weight 0, which would be computed for nothing.

    Raises:
        ManifestError: No training clip has a weight.
    """
    clips = corpus.splits["train"]
    kept = [clip for clip in clips if clip.weight > 0]
    if len(kept) == len(clips):
        return corpus
    if not kept:
        raise ManifestError(
            f"all {len(clips)} clips of data.train have weight 0, which leaves nothing to learn from. "
            "Give some a `weight` above 0."
        )
    left_out = tuple(clip.id for clip in clips if clip.weight == 0)
    finding = Finding(
        check="data.no_weight",
        severity="note",
        message=f"{len(left_out)} of {len(clips)} clips have weight 0 and are left out of training.",
        clip_ids=left_out,
        measured=float(len(left_out)),
        unit="clips",
    )
    tell([finding])
    return replace(corpus, splits={**corpus.splits, "train": kept}, findings=(*corpus.findings, finding))


def _open(
    config: RunConfig, family: ModelFamily, wanted: Sequence[str], precision: Precision, device: torch.device
) -> Opened:
    """The model, with an output layer for what the clips need."""
    model, full = config.model, config.adapter.kind == "none"
    check_settings_of_task(
        family.task, wanted, mixup_probability=config.augmentation.mixup_probability, num_labels=model.num_labels
    )
    opened = open_model(
        model.checkpoint,
        family=family,
        revision=model.revision,
        context=model.asked_context,
        merging=asked_merging(config),
        bits=16 if full else config.quantization.bits,
        double=config.quantization.double,
        skip=unquantized(config),
        precision=precision,
        device=device,
        random_weights=model.random_weights,
        dropout=model.dropout,
        outputs=() if model.outputs == "checkpoint" else tuple(wanted),
        renew_outputs=model.outputs == "data",
        tokenizer=None if model.tokenizer is None else str(model.tokenizer),
    )
    check_plain(opened.loaded)
    if config.data.multi_label:
        opened.loaded.module.config.problem_type = MULTI_LABEL  # saved with the model, and read again there
    return opened


def _targets(
    config: RunConfig,
    corpus: Corpus,
    task: Task,
    loaded: LoadedModel,
    tell: Callable[[Sequence[Finding]], None],
) -> PreparedClips:
    """Targets of the training clips; all splits are looked at before anything trains.

    Raises:
        ManifestError: Clips have classes that cannot be, too many clips cannot be used, or none is left.
    """
    for split in ("eval", "test"):
        task.check_references(loaded, corpus.splits.get(split, ()))
    limit_s = training_limit_s(loaded.frontend.max_duration_s, config.data.max_duration_s)
    fitting, too_long = fit_for_training(
        corpus.splits["train"], limit_s, *([cut_at_words] if task.reference == "text" else [])
    )
    prepared = task.prepare(loaded, fitting)
    findings = (*too_long, *prepared.findings)
    tell(findings)
    if fitting:
        refuse_too_many("train", prepared.dropped, len(fitting), max_bad_fraction=config.data.max_bad_fraction)
    if not prepared.clips:
        reasons = "; ".join(finding.message for finding in findings[:3])
        raise ManifestError(f"no clip of data.train is left to learn from: {reasons}")
    return replace(prepared, findings=findings)


def _check_objective(config: RunConfig) -> None:
    """Refuse, before anything is read, to learn from nobody or from a classifier; raises ConfigError."""
    if config.training.objective != "distill":
        return
    if config.distillation.teacher is None:
        raise ConfigError(
            "training.objective=distill, and distillation.teacher names no model to learn from. Name one, such as "
            "distillation.teacher=openai/whisper-small."
        )
    family_of_teacher(config.distillation.teacher)


def _teacher(
    config: RunConfig,
    compute: ComputeSetup,
    opened: Opened,
    prepared: PreparedClips,
    tell: Callable[[Sequence[Finding]], None],
) -> Teacher | None:
    """The model that is learned from, where the objective learns from one.

    Raises:
        ConfigError: Its logits cannot be compared with the model's.
    """
    section, loaded = config.distillation, opened.loaded
    if config.training.objective != "distill" or section.teacher is None:
        return None
    teacher = open_teacher(
        section.teacher,
        bits=section.teacher_bits,
        precision=compute.precision,
        device=compute.accelerator.device,
    )
    contexts: set[Context] = {loaded.context}
    if config.model.full_context_share:
        contexts.add("full")
    check_teacher(teacher, loaded, prepared.clips, prepared.targets, contexts=contexts)
    itself = note_on_itself(teacher, model_digest(config.model.checkpoint, loaded))
    tell([] if itself is None else [itself])
    return teacher


def training_data(config: RunConfig, prepared: PreparedClips, crew: Crew | None = None) -> TrainingData:
    """Training clips, how their audio is varied, and who makes their batches."""
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
        crew=crew,
    )


_SPEC_AUGMENT = (
    "frequency_masks",
    "frequency_mask_bins",
    "time_masks",
    "time_mask_frames",
    "time_mask_fraction",
    "time_warp_frames",
)


def loop_settings(config: RunConfig, compute: ComputeSetup, *, begun: int | None = None) -> LoopSettings:
    """How the stages step.

    Args:
        config: The settings.
        compute: Device, and the processes that share the micro-batches of a step.
        begun: Micro-batches of a step that the run was begun with, where it goes on.

    Raises:
        ConfigError: A step has fewer micro-batches than there are processes.
    """
    training, world_size = config.training, compute.processes.world_size
    optimizer, optimizer_reason = choose_optimizer(training.optimizer, compute.accelerator.device.type)
    wanted = training.accumulation_steps
    accumulation_steps = (begun or world_size) if wanted == "auto" else wanted
    if accumulation_steps < world_size:
        start = f"the run was begun with {begun}" if wanted == "auto" else f"training.accumulation_steps={wanted}"
        raise ConfigError(
            f"{start}: {accumulation_steps} micro-batches of a step cannot be shared by {world_size} processes. "
            + (
                f"Start {begun} processes at most."
                if wanted == "auto"
                else f"Take auto, or {world_size} with micro-batches of {wanted}/{world_size} of the size."
            )
        )
    return LoopSettings(
        accumulation_steps=accumulation_steps,
        learning_rate_floor=training.min_learning_rate_ratio,
        full_context_share=config.model.full_context_share,
        optimizer=optimizer,
        optimizer_reason=optimizer_reason,
        **training.model_dump(
            include={
                "seed",
                "batch_seconds",
                "batch_max_clips",
                "schedule",
                "weight_decay",
                "betas",
                "clip_norm",
                "eval_steps",
                "save_steps",
                "keep_checkpoints",
                "memory_limit_bytes",
                "average_checkpoints",
            }
        ),
    )
