"""From settings to what a run is made of: clips, task, model, targets, ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from sonotune.adapters.allocation import RankPlan
from sonotune.adapters.apportion import total_of
from sonotune.adapters.calibration import Calibration
from sonotune.adapters.saved import Opened, choose_family, open_model
from sonotune.adapters.split import Split, decide, measure
from sonotune.audio.augment import WaveformAugmenter
from sonotune.config.schema import RunConfig
from sonotune.data.chunking import cut_at_words
from sonotune.data.corpus import CORPUS_SETTINGS, Corpus, load_corpus, refuse_too_many
from sonotune.data.text import get as get_normalizer
from sonotune.data.windows import fit_for_training, training_limit_s
from sonotune.errors import ConfigError, ManifestError
from sonotune.features.mixup import MixupSettings
from sonotune.features.specaugment import SpecAugmentSettings
from sonotune.models.base import MULTI_LABEL, LoadedModel, ModelFamily, count_parameters
from sonotune.models.precision import Precision
from sonotune.processes import ALONE, Processes
from sonotune.registry import resolve
from sonotune.tasks.base import Prepared, Task, TaskSettings
from sonotune.training.adapt import check_plain, check_settings_of_task
from sonotune.training.learning_rates import usual_rates
from sonotune.training.loop_settings import LoopSettings, TrainingData
from sonotune.training.ranks import RankSettings, adapted_sites, calibrate, calibration_clips, plan_ranks
from sonotune.training.stages import Stage, StageSettings, build_stages, whole_run
from sonotune.types import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What a run works on, before anything is adapted.

    Attributes:
        corpus: The clips of every split.
        task: What is learned.
        opened: The model as it was loaded.
        prepared: Training clips that can be used, with their targets.
    """

    corpus: Corpus
    task: Task
    opened: Opened
    prepared: Prepared


def accelerator_for(precision: Precision) -> Accelerator:
    """The accelerator that computes in this precision: a card where there is one."""
    return Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=not torch.cuda.is_available())


def gather(
    config: RunConfig,
    *,
    precision: Precision,
    device: torch.device,
    found: Callable[[Sequence[Finding]], None] = lambda findings: None,
) -> Material:
    """Load clips and model and encode the targets.

    Args:
        config: The settings.
        precision: Arithmetic of the forward pass.
        device: Where the model goes.
        found: Told of findings as they come, for a later step may fail.

    Raises:
        SonotuneError: Of whichever part is wrong.
    """
    family, task = _task(config)
    corpus = _corpus(config, task)
    found(corpus.findings)
    opened = _open(config, family, task.outputs(corpus.splits["train"]), precision, device)
    opened = replace(opened, loaded=opened.loaded.with_(ctc_share=config.model.ctc_share))
    prepared = _targets(config, corpus, task, opened.loaded)
    found(prepared.findings)
    return Material(corpus=corpus, task=task, opened=opened, prepared=prepared)


def choose_ranks(
    config: RunConfig,
    material: Material,
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    file: Path | None = None,
    processes: Processes = ALONE,
) -> tuple[RankPlan, Calibration | None]:
    """Ranks of the adapters, and what calibration found where it was needed.

    Args:
        config: The settings.
        material: What the run works on.
        autocast: Precision of calibration's forward passes.
        file: Take the ranks from here, whatever the settings say.
        processes: Share the clips that calibration hears.

    Raises:
        AdapterError: The budget is too small, or a file of ranks is for another model.
    """
    settings = rank_settings(config)
    if file is not None:
        settings = replace(settings, file=file)
    loaded = material.opened.loaded
    found = calibrate(loaded, material.task, material.prepared.clips, settings, autocast=autocast, processes=processes)
    plan = plan_ranks(loaded, settings, None if found is None else found.evidence)
    if found is not None:
        found.check_rows(plan.ranks)
    return plan, found


def measure_split(
    config: RunConfig, material: Material, *, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Split:
    """What should train beside the adapters, how fast, and how the components should share the budget.

    Raises:
        AdapterError: There are too few clips, or their gradients agree in nothing.
    """
    settings, loaded = rank_settings(config), material.opened.loaded
    sites = adapted_sites(loaded, settings)
    rank = max(1, round(total_of(sites, settings.bounds_in(loaded)) / sum(site.cost for site in sites)))
    alpha = config.adapter.alpha
    found = measure(
        loaded, material.task, calibration_clips(material.prepared.clips, settings), sites, rank=rank,
        scale=1.0 if alpha == "auto" else alpha / settings.rank, seed=settings.seed, autocast=autocast,
    )  # fmt: skip
    return decide(found, gamma=settings.gamma)


def with_stages(config: RunConfig) -> RunConfig:
    """The settings with what any stage trains in full precision as what is unfrozen, and nothing else.

    Raises:
        ConfigError: Two stages have one name, or the split is to be measured as well.
    """
    stages = config.training.stages
    if not stages:
        return config
    names = [stage.name for stage in stages]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(
            f"training.stages: two stages are called {twice!r}; events and the record need different names."
        )
    if config.adapter.split == "measured":
        raise ConfigError(
            "training.stages says what trains, and adapter.split=measured finds it out. Take one of the two."
        )
    weights = tuple(dict.fromkeys(selector for stage in stages for selector in stage.weights))
    stem = "lora" if config.adapter.stem == "lora" else "frozen"
    return config.model_copy(update={"adapter": config.adapter.model_copy(update={"stem": stem, "unfreeze": weights})})


def stages_of(config: RunConfig, loaded: LoadedModel) -> tuple[Stage, ...]:
    """The stages of a run, on a model whose trainable parameters are marked.

    Raises:
        AdapterError: A stage trains nothing, or what cannot train.
    """
    training = config.training
    rate, rates, decay = float(training.learning_rate), training.learning_rates, training.layer_decay
    if not training.stages:
        return (
            whole_run(
                loaded, learning_rate=rate, learning_rates=rates, layer_decay=decay,
                max_epochs=training.max_epochs, max_steps=training.max_steps, patience=training.patience,
                warmup_steps=training.warmup_steps,
            ),
        )  # fmt: skip
    return build_stages(loaded, wanted_stages(config), learning_rate=rate, learning_rates=rates, layer_decay=decay)


def wanted_stages(config: RunConfig) -> list[StageSettings]:
    """The stages as they were written; none where the run has one."""
    return [
        StageSettings(**{**stage.model_dump(), "max_epochs": stage.max_epochs or _ANY_EPOCHS})
        for stage in config.training.stages
    ]


_ANY_EPOCHS = 1_000_000  # of a stage that its steps end


MOST_RATE = 1e-3
"""Of a part that `adapter.split=measured` trains in full precision."""


def with_split(config: RunConfig, split: Split) -> RunConfig:
    """The settings with what was measured in the place of what was given; rates that were given stay.

    Pretrained weights bear lower rates than adapters do: none learns faster than `MOST_RATE`, however fast they learn.
    """
    given = config.adapter.unfreeze
    most = MOST_RATE / float(config.training.learning_rate)
    full = (*(["stem"] if split.stem else []), *split.unfreeze)
    rates = {part: min(split.rates.get(part, 1.0), most) for part in full}
    beside = (*given, *(selector for selector in split.unfreeze if selector not in given))
    changes = {
        "adapter": {"stem": "train" if split.stem else "frozen", "unfreeze": beside},
        "allocation": {"group_weights": dict(split.weights)},
        "training": {
            "learning_rates": {
                **{part: rate for part, rate in rates.items() if rate < 1},
                **config.training.learning_rates,
            }
        },
    }
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in changes.items()}
    return config.model_copy(update=sections)


def with_learning_rate(config: RunConfig, loaded: LoadedModel) -> tuple[RunConfig, str | None]:
    """The settings with rates in numbers, and why they were chosen; None where one was given.

    Args:
        config: Of the run, as `with_stages` leaves it.
        loaded: The model, not adapted yet.
    """
    if config.training.learning_rate != "auto":
        return config, None
    parameters = sum(row["parameters"] for row in count_parameters(loaded).values())
    rates = usual_rates(parameters)
    size = f"{parameters / 1e6:.0f} million parameters"
    if config.adapter.kind == "none":
        changes: dict[str, Any] = {"learning_rate": rates.weights}
        reason = f"{rates.weights:g}: all of {size} train"
    else:
        stem = ("stem",) if config.adapter.stem == "train" and not config.training.stages else ()
        in_full = () if config.adapter.split == "measured" else (*stem, *config.adapter.unfreeze)
        new = {*loaded.untrained, *(("head",) if loaded.new_outputs else ())}
        pretrained = [part for part in in_full if not new.intersection((part, part.partition(".")[0]))]
        factors = dict.fromkeys(pretrained, rates.weights / rates.adapters)
        changes = {"learning_rate": rates.adapters, "learning_rates": {**factors, **config.training.learning_rates}}
        reason = f"{rates.adapters:g}: adapters on {size}"
        reason += f"; {rates.weights:g} for {', '.join(pretrained)}" if pretrained else ""
    return config.model_copy(update={"training": config.training.model_copy(update=changes)}), reason


def rank_settings(config: RunConfig) -> RankSettings:
    """How ranks are chosen."""
    return RankSettings.of(config.adapter.model_dump(), config.allocation.model_dump())


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
            verbalize_numbers=config.evaluation.verbalize_numbers,
        ),
    )
    return family, task


def _corpus(config: RunConfig, task: Task) -> Corpus:
    data = config.data
    named = {"train": data.train, "eval": data.eval, "test": data.test}
    return load_corpus(
        {name: source for name, source in named.items() if source is not None},
        seed=config.training.seed,
        require=task.truth,
        **data.model_dump(include=CORPUS_SETTINGS),
    )


def _open(
    config: RunConfig, family: ModelFamily, wanted: Sequence[str], precision: Precision, device: torch.device
) -> Opened:
    """The model, with an output layer for what the clips need."""
    model, full = config.model, config.adapter.kind == "none"
    check_settings_of_task(
        family.task, wanted, mixup_probability=config.augmentation.mixup_probability, num_labels=model.num_labels
    )
    opened = open_model(
        model.checkpoint, family=family, revision=model.revision, context=model.asked_context,
        bits=16 if full else config.quantization.bits, double=config.quantization.double, skip=unquantized(config),
        precision=precision, device=device, random_weights=model.random_weights, dropout=model.dropout,
        outputs=() if model.outputs == "checkpoint" else tuple(wanted), renew_outputs=model.outputs == "data",
        tokenizer=None if model.tokenizer is None else str(model.tokenizer),
    )  # fmt: skip
    check_plain(opened.loaded)
    if config.data.multi_label:
        opened.loaded.module.config.problem_type = MULTI_LABEL  # saved with the model, and read again there
    return opened


def unquantized(config: RunConfig) -> tuple[str, ...]:
    """Selectors that stay in full precision: what trains must be there from the start."""
    return (*config.quantization.skip, *(() if config.adapter.kind == "none" else config.adapter.unfreeze))


def _targets(config: RunConfig, corpus: Corpus, task: Task, loaded: LoadedModel) -> Prepared:
    """Targets of the training clips; all splits are looked at before anything trains.

    Raises:
        ManifestError: Clips have classes that cannot be, too many clips cannot be used, or none is left.
    """
    for split in ("eval", "test"):
        task.check_truth(loaded, corpus.splits.get(split, ()))
    limit_s = training_limit_s(loaded.frontend.max_duration_s, config.data.max_duration_s)
    fitting, too_long = fit_for_training(
        corpus.splits["train"], limit_s, *([cut_at_words] if task.truth == "text" else [])
    )
    prepared = task.prepare(loaded, fitting)
    findings = (*too_long, *prepared.findings)
    if fitting:
        refuse_too_many("train", prepared.dropped, len(fitting), max_bad_fraction=config.data.max_bad_fraction)
    if not prepared.clips:
        reasons = "; ".join(finding.message for finding in findings[:3])
        raise ManifestError(f"no clip of data.train is left to learn from: {reasons}")
    return replace(prepared, findings=findings)


def training_data(config: RunConfig, prepared: Prepared) -> TrainingData:
    """Training clips, and how their audio is varied."""
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


def loop_settings(config: RunConfig, processes: Processes = ALONE, *, begun: int | None = None) -> LoopSettings:
    """How the stage steps.

    Args:
        config: The settings.
        processes: Share the micro-batches of a step.
        begun: Micro-batches of a step that the run was begun with, where it goes on.

    Raises:
        ConfigError: A step has fewer micro-batches than there are processes.
    """
    training = config.training
    wanted = training.accumulation_steps
    accumulation_steps = (begun or processes.count) if wanted == "auto" else wanted
    if accumulation_steps < processes.count:
        start = f"the run was begun with {begun}" if wanted == "auto" else f"training.accumulation_steps={wanted}"
        raise ConfigError(
            f"{start}: {accumulation_steps} micro-batches of a step cannot be shared by {processes.count} processes. "
            + (f"Start {begun} processes at most." if wanted == "auto" else
               f"Take auto, or {processes.count} with micro-batches of {wanted}/{processes.count} of the size.")
        )  # fmt: skip
    return LoopSettings(
        accumulation_steps=accumulation_steps,
        learning_rate_floor=training.min_learning_rate_ratio,
        full_context_share=config.model.full_context_share,
        **training.model_dump(
            include={
                "seed", "batch_seconds", "batch_max_clips", "schedule",
                "weight_decay", "betas", "clip_norm", "label_smoothing", "eval_steps", "save_steps",
                "keep_checkpoints", "memory_limit_bytes", "average_checkpoints",
            }
        ),
    )  # fmt: skip
