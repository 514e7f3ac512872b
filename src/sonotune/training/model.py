"""The model of a run, ready to train: ranks chosen, adapters attached, stages laid out, all of it in the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from sonotune.adapters.calibration.calibrate import Calibration
from sonotune.adapters.metadata import merging_entry
from sonotune.adapters.ranks.budget import total_of
from sonotune.adapters.ranks.choose import (
    adapted_modules,
    calibrate,
    calibration_clips,
    components_text,
    plan_ranks,
    ranks_text,
    read_components,
)
from sonotune.adapters.ranks.components import Split, decide, measure
from sonotune.adapters.ranks.plan import RankPlan
from sonotune.adapters.schedule.build import build_callbacks
from sonotune.adapters.schedule.callback import AdapterCallback
from sonotune.adapters.trainable import adapt, check_shardable, new_outputs, targets_of, untrained_parts
from sonotune.data.manifest import summary
from sonotune.metrics.scores import score_title
from sonotune.models.base import NEW, LoadedModel, count_parameters
from sonotune.models.thinning import contexts_of_training, made_for
from sonotune.processes import SINGLE_PROCESS, Processes
from sonotune.progress import note
from sonotune.stages import Stage, describe
from sonotune.training.adaptation import Adaptation
from sonotune.training.inputs import RunInputs
from sonotune.training.logging.header import header
from sonotune.training.objectives.base import Objective
from sonotune.training.session import Session
from sonotune.training.sharding import shard_layers
from sonotune.training.state import LoopSettings
from sonotune.types import Context, Finding

RANKS_FILE: Final = "ranks.json"
SPLIT_FILE: Final = "split.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedModel:
    """A model that is ready to train.

    Attributes:
        loaded: With adapters, or whole; its trainable parameters are marked.
        stages: What trains, one after the other.
        callbacks: What happens to the adapters beside the gradient of the loss.
        targets: Full names of the modules that carry an adapter.
        bits: Of the frozen weights.
    """

    loaded: LoadedModel
    stages: Sequence[Stage]
    callbacks: Sequence[AdapterCallback]
    targets: Sequence[str]
    bits: int


def prepare_model(session: Session, inputs: RunInputs, steps: LoopSettings) -> PreparedModel:
    """Adapt the model as the settings say, and write down what was decided.

    Args:
        session: The run.
        inputs: Its clips and its model.
        steps: How it steps.

    Raises:
        AdapterError: Targets, ranks or stages do not fit the model.
        ConfigError: Settings do not fit each other.
    """
    config, log, compute = session.config, session.log, session.compute
    bits = inputs.bits
    adaptation = Adaptation.of(config, inputs.opened.loaded)
    if config.training.shard_weights:
        check_shardable(
            kind=config.adapter.kind,
            bits=bits,
            precision=compute.precision,
            optimizer=steps.optimizer,
            memory_limit_bytes=steps.memory_limit_bytes,
        )
    adaptation.check_kind(config)
    if adaptation.kind.ranked and config.adapter.split == "measured":
        adaptation = adaptation.measured(_split(session, inputs, adaptation))
    plan = _ranks(session, inputs, adaptation) if adaptation.kind.ranked else None
    targets = tuple(plan.ranks) if plan else targets_of(inputs.opened.loaded, adaptation.kind, adaptation.ranks)
    loaded = adapt(
        inputs.opened.loaded,
        adaptation.kind,
        plan,
        adaptation.adapters,
        targets=targets,
        precision=compute.precision,
        gradient_checkpointing=config.training.gradient_checkpointing,
    )
    log.finding(
        (*new_outputs(loaded), *untrained_parts(loaded), *findings_on_window(loaded, asked=config.model.asked_context))
    )
    callbacks = build_callbacks(
        loaded,
        plan,
        adaptation.ranks.bounds_in(loaded),
        seed=config.training.seed,
        **config.regularization.model_dump(),
        **config.reallocation.model_dump(),
    )
    stages = adaptation.stages(config, loaded)
    log.chose(_choices(session, inputs, steps, adaptation))
    log.write(
        data_digest=inputs.corpus.digests,
        data={name: summary(clips) for name, clips in {**inputs.corpus.splits, "train": inputs.prepared.clips}.items()},
        ranks=dict(plan.ranks) if plan else {},
        stages=tuple(describe(stage, loaded) for stage in stages),
        model={
            "task": inputs.task.name,
            "language": inputs.language or config.model.language,
            "family": loaded.family.name,
            "checkpoint": loaded.checkpoint,
            "revision": loaded.revision,
            "components": count_parameters(loaded),
            "quantized_linears": len(loaded.quantized),
            "context": loaded.context,
            "thinning": asdict(loaded.thinning),
            **merging_entry(loaded),
            "tokens_per_second": loaded.tokens_per_second,
            **({} if inputs.teacher is None else {"teacher": inputs.teacher.to_json()}),
        },
    )
    device = compute.accelerator.device.type
    decides = f"{score_title(inputs.primary)}: {inputs.primary_reason}"
    place = log.directory.path
    note(header(log.record, inputs.corpus.splits, device=device, bits=bits, decides=decides, folder=place))
    if config.training.shard_weights and compute.processes.world_size > 1:
        shard_layers(loaded, compute.processes, precision=compute.precision)
    return PreparedModel(loaded=loaded, stages=stages, callbacks=callbacks, targets=targets, bits=bits)


def findings_on_window(loaded: LoadedModel, *, asked: Context | None) -> tuple[Finding, ...]:
    """A warning where weights that know the whole window are to learn without its end; a note where all of it is kept.

    Args:
        loaded: The model that is to be trained.
        asked: The context that the settings ask for; None leaves it to the checkpoint.
    """
    trained = loaded.trained_contexts
    if loaded.context == "cut" and trained and "cut" not in trained:
        return (
            Finding(
                check="model.context",
                severity="warning",
                message=f"model.context=cut, and the weights were {made_for(trained)}: untuned they loop when it is "
                "cut, and every other tool serves them over the whole window. model.context=thinned computes about as "
                "little, and is served as it is scored.",
            ),
        )
    if loaded.context == "full" and asked is None and loaded.full_after_thinned:
        return (
            Finding(
                check="model.context",
                severity="note",
                message="model.context=auto is full here, since the weights were tuned over the whole window. "
                "model.context=thinned computes less of it, several times less where clips are short, and weights "
                "trained so serve for both.",
            ),
        )
    return ()


def trained_model(session: Session, model: PreparedModel) -> PreparedModel:
    """The model after training: its adapters are final, and its weights are those of the contexts it trained in.

    The record has the ranks and sizes of the end.
    """
    log, loaded = session.log, model.loaded
    if loaded.trained_contexts:
        contexts = contexts_of_training(
            loaded.context,
            full_after_thinned=loaded.full_after_thinned,
            full_context_share=session.config.model.full_context_share,
        )
        log.write(model={**log.record.model, "trained_contexts": list(contexts)})
        loaded = loaded.with_(trained_contexts=contexts)
    for callback in model.callbacks:
        if ranks := callback.finalise():
            sizes = {**log.record.model, "components": count_parameters(loaded)}
            log.write(ranks={**log.record.ranks, **ranks}, model=sizes)
    return replace(model, loaded=loaded)


def choose_ranks(
    inputs: RunInputs,
    adaptation: Adaptation,
    objective: Objective,
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    file: Path | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> tuple[RankPlan, Calibration | None]:
    """Ranks of the adapters, and what calibration found where it was needed.

    Args:
        inputs: What the run works on.
        adaptation: How ranks are chosen.
        objective: Whose gradients count.
        autocast: Precision of calibration's forward passes.
        file: Take the ranks from here, whatever the settings say.
        processes: Share the calibration clips.

    Raises:
        AdapterError: The budget is too small, or a file of ranks is for another model.
    """
    settings = adaptation.ranks if file is None else replace(adaptation.ranks, file=file)
    loaded = inputs.opened.loaded
    found = calibrate(loaded, objective, inputs.prepared.clips, settings, autocast=autocast, processes=processes)
    plan = plan_ranks(loaded, settings, None if found is None else found.evidence)
    if found is not None:
        found.check_rows(plan.ranks)
    return plan, found


def measure_components(
    inputs: RunInputs,
    adaptation: Adaptation,
    objective: Objective,
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Split:
    """What should train beside the adapters, how fast, and how the components should share the budget.

    Raises:
        AdapterError: There are too few clips, or their gradients agree in nothing.
    """
    settings, loaded = adaptation.ranks, inputs.opened.loaded
    sites = adapted_modules(loaded, settings)
    rank = max(1, round(total_of(sites, settings.bounds_in(loaded)) / sum(site.cost for site in sites)))
    alpha = adaptation.adapters.alpha
    found = measure(
        loaded,
        objective,
        calibration_clips(inputs.prepared.clips, settings),
        sites,
        rank=rank,
        scale=1.0 if alpha == "auto" else alpha / settings.rank,
        seed=settings.seed,
        autocast=autocast,
    )
    return decide(found, gamma=settings.gamma)


def _split(session: Session, inputs: RunInputs, adaptation: Adaptation) -> Split:
    """Measured once: a run that resumes from a checkpoint finds it in its directory."""
    kept = session.log.directory.path / SPLIT_FILE
    if kept.is_file() and session.has_checkpoint:
        split = read_components(kept)
    else:
        split = measure_components(
            inputs, adaptation, inputs.calibration_objective, autocast=session.compute.accelerator.autocast
        )
        session.log.directory.write_text(SPLIT_FILE, components_text(split))
    session.log.chose({"adapter.split": split.sentence()})
    return split


def _ranks(session: Session, inputs: RunInputs, adaptation: Adaptation) -> RankPlan:
    """Chosen once: a run that resumes from a checkpoint finds them in its directory.

    Without one they are chosen again, for the file does not hold where the A matrices start.
    """
    kept = session.log.directory.path / RANKS_FILE
    if kept.is_file() and session.has_checkpoint:
        return choose_ranks(inputs, adaptation, inputs.calibration_objective, file=kept)[0]
    plan, found = choose_ranks(
        inputs,
        adaptation,
        inputs.calibration_objective,
        autocast=session.compute.accelerator.autocast,
        processes=session.compute.processes,
    )
    if found is not None:
        session.log.event("calibrated", **found.summary())
        session.log.finding(found.findings)
    session.log.directory.write_text(RANKS_FILE, ranks_text(plan, inputs.opened.loaded))
    return plan


def _choices(session: Session, inputs: RunInputs, steps: LoopSettings, adaptation: Adaptation) -> Mapping[str, str]:
    """What was decided without being asked for, and why."""
    config, compute = session.config, session.compute
    choices = {**inputs.opened.choices, "training.precision": f"{compute.precision}: {compute.why}"}
    if adaptation.rates.reason is not None:
        choices["training.learning_rate"] = adaptation.rates.reason
    new = inputs.opened.loaded.new_parts if NEW in adaptation.adapters.unfreeze else ()
    if new and adaptation.kind.name != "none":
        choices["adapter.unfreeze"] = f"{', '.join(new)}: new, so its random weights train in full"
    if config.evaluation.primary == "auto":
        choices["evaluation.primary"] = f"{score_title(inputs.primary)}: {inputs.primary_reason}"
    if steps.optimizer != config.training.optimizer:
        choices["training.optimizer"] = f"{steps.optimizer}: {steps.optimizer_reason}"
    if (teacher := inputs.teacher) is not None:
        choices["distillation.teacher_bits"] = teacher.bits
    if config.model.language is None and inputs.language is not None:
        choices["model.language"] = f"{inputs.language}: every training clip names it, and tools are told it"
    if config.training.shard_weights and compute.processes.world_size == 1:
        choices["training.shard_weights"] = "false: there is one process, which holds all weights"
    return choices
