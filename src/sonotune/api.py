"""sonotune from Python: what the commands do, as functions.

Settings are those of the commands, by their dotted names: a mapping (`{"model": "whisper_nano"}`), or words as on the
command line (`["model=whisper_nano"]`). Every name stands in docs/reference/config.md. Nothing is printed, and errors
are `SonotuneError`.

    import sonotune

    run = sonotune.train({"model": "whisper_nano", "data": "quickstart", "training.max_steps": 20})
    print(run.scores["after"]["wer"]["value"])
    print(sonotune.transcribe(run.folder, ["clip.wav"])[0].text)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sonotune.progress import phase

if TYPE_CHECKING:
    from sonotune.audit.record import AuditReport
    from sonotune.audit.run import AuditSettings
    from sonotune.config.load import LoadedConfig
    from sonotune.config.schema import RunConfig
    from sonotune.data.corpus import Corpus
    from sonotune.evaluation.compare import Comparison
    from sonotune.evaluation.evaluate import EvaluationResult
    from sonotune.features.workers import Crew
    from sonotune.planning.inspection import Inspection
    from sonotune.planning.layout import TrainingSettings
    from sonotune.planning.plan import Plan
    from sonotune.serving.parity import ParitySettings
    from sonotune.serving.recognizer import Recognizer
    from sonotune.training.logging.run_log import Listener
    from sonotune.types import Clip, Prediction, RunRecord

Settings = Mapping[str, Any] | Sequence[str]
Place = str | Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run.

    Attributes:
        record: All that is kept of it, as in `run.json`.
        folder: Its directory.
    """

    record: RunRecord
    folder: Path

    @property
    def scores(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        """`before`, `after` and `test` -> score name -> score in JSON form."""
        return self.record.scores


def words_of(settings: Settings) -> list[str]:
    """Settings as words of the command line."""
    if isinstance(settings, str):
        return [settings]
    if not isinstance(settings, Mapping):
        return list(settings)
    return [f"{name}={_word(value)}" for name, value in settings.items()]


def _word(value: Any) -> str:
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(
        value, ensure_ascii=False, default=lambda part: str(part) if isinstance(part, Path) else list(part)
    )


def train(settings: Settings, *, listeners: Sequence[Listener] = ()) -> Run:
    """Train, or resume where the run directory holds a checkpoint of the same settings (`sonotune train`).

    Args:
        settings: At least `model` and `data.train`.
        listeners: See progress as it happens.

    Raises:
        SonotuneError: With an `exit_code` that says what went wrong.
    """
    from sonotune.config.load import load_run_config
    from sonotune.training.run import run

    record, folder = run(load_run_config(words_of(settings), require=("data.train",)), listeners=listeners)
    return Run(record=record, folder=folder)


def load(model: Place, settings: Settings = ()) -> Recognizer:
    """Open a model for use: a packaged, hub or local model, an adapter, an export or a run.

    Args:
        model: What `model.checkpoint` may be.
        settings: Further ones; those of its own run hold where nothing is said.

    Returns:
        A recogniser with `recognize(paths)` and `evaluate(clips)`.
    """
    return open_recognizer(settings_of_use([f"model.checkpoint={model}", *words_of(settings)]).config)


def evaluate(model: Place, manifest: Place, settings: Settings = ()) -> EvaluationResult:
    """Score a model on a manifest, whole and in slices (`sonotune evaluate`).

    Args:
        model: As for `load`.
        manifest: Clips with transcripts or labels; what `data.test` may be.
        settings: Further ones.
    """
    words = [f"model.checkpoint={model}", f"data.test={manifest}", *words_of(settings)]
    config = settings_of_use(words, require=("data.test",)).config
    recognizer = open_recognizer(config)
    corpus = corpus_to_score(config, recognizer)
    result = score_clips(config, recognizer, corpus.splits["test"])
    return replace(result, findings=[*corpus.findings, *result.findings])


def transcribe(model: Place, files: Sequence[Place], settings: Settings = ()) -> list[Prediction]:
    """Texts of audio files and of every audio file in folders, in order (`sonotune transcribe`)."""
    return _recognize(model, files, settings, task="transcribe")


def classify(model: Place, files: Sequence[Place], settings: Settings = ()) -> list[Prediction]:
    """Class probabilities of audio files and of every audio file in folders (`sonotune classify`)."""
    return _recognize(model, files, settings, task="classify")


def _recognize(model: Place, files: Sequence[Place], settings: Settings, *, task: str) -> list[Prediction]:
    config = settings_of_use([f"model.checkpoint={model}", *words_of(settings), f"model.task={task}"]).config
    refuse_augmented(config)
    paths = [Path(file) for file in files]
    recognizer = open_recognizer(config)
    return recognizer.recognize(paths, **recognition_settings(config)).predictions


def audit(settings: Settings) -> tuple[AuditReport, Path]:
    """Judge whether the transcripts of `data.train` belong to their audio (`sonotune audit`).

    Args:
        settings: At least `data.train`, and a model that can align (`audit.model`, or `model`).

    Returns:
        The report, as it stands in `alignment_report.json`, and the folder of the audit.

    Raises:
        SonotuneError: With an `exit_code` that says what went wrong. A corpus that fails raises nothing.
    """
    from sonotune.config.load import load_run_config

    loaded = load_run_config(words_of(settings), require=("data.train",))
    config = loaded.config
    with phase("starting the model's libraries"):
        from sonotune.alignment.base import AlignerSettings
        from sonotune.training.runtime import set_up_compute
    from sonotune.audit.measure import SCORES_FILE
    from sonotune.audit.opening import open_measurer
    from sonotune.audit.place import audit_folder
    from sonotune.audit.run import audit as run_audit
    from sonotune.audit.sampling import check_patterns
    from sonotune.audit.sources import read_transcribed
    from sonotune.reports.audit import write_audit_page
    from sonotune.runs import make_folder

    asked, data = config.audit, config.data
    settings_of_audit = audit_settings(config)
    compute = set_up_compute(config.training.precision, threads=config.training.threads)
    read = partial(read_transcribed, root=data.root, allow_outside_root=data.allow_outside_root)
    corpus = read(str(data.train))
    check_patterns(corpus.clips, settings_of_audit.sampling.strata)
    known = asked.trusted or data.eval
    trusted = None if known is None else read(known)
    # What `sonotune data filter` needs to measure other clips alike.
    measured_by = {
        "trusted": str(known or data.train),
        "language": config.model.language,
        "text": data.text_training,
        "precision": compute.precision,
        "context": config.model.asked_context,
    }
    folder = audit_folder(str(data.train), None if asked.dir == "auto" else asked.dir)
    if compute.processes.main:
        make_folder(folder, choose="audit.dir=PATH")
    opened = open_measurer(
        config.model.checkpoint if asked.model == "auto" else asked.model,
        (*corpus.clips, *(() if trusted is None else trusted.clips)),
        aligner=asked.aligner,
        settings=AlignerSettings(
            batch_seconds=config.evaluation.batch_seconds,
            batch_max_clips=config.evaluation.batch_max_clips,
            language=config.model.language,
            text=data.text_training,
        ),
        normalizer=data.text_scoring,
        precision=compute.precision,
        context=config.model.asked_context,
        file=folder / SCORES_FILE,
        processes=compute.processes,
    )
    report = run_audit(
        corpus,
        trusted=trusted,
        measurer=opened.measurer,
        model=opened.model,
        settings=settings_of_audit,
        folder=folder,
        recorded={**loaded.plain()["audit"], **measured_by},
    ).report
    if compute.processes.main:
        write_audit_page(folder)
    return report, folder


def inspect(settings: Settings) -> Inspection:
    """What a model is made of, what would train and what it weighs; no weights are read (`sonotune inspect`)."""
    with phase("starting"):
        from sonotune.planning.inspection import inspect_model
    from sonotune.config.load import load_run_config
    from sonotune.training.adaptation import adapter_settings, rank_settings

    config = load_run_config(words_of(settings)).config
    return inspect_model(
        config.model.checkpoint,
        family=config.model.family,
        task=config.model.task,
        num_labels=config.model.num_labels,
        context=config.model.asked_context,
        revision=config.model.revision,
        bits=config.quantization.bits,
        double=config.quantization.double,
        skip=config.quantization.skip,
        kind=config.adapter.kind,
        ranks=rank_settings(config),
        adapter=adapter_settings(config),
    )


def plan(
    settings: Settings,
    *,
    clip_seconds: Sequence[float] = (),
    memory_bytes: int | None = None,
    gpu: str | None = None,
    exact: bool = False,
    device: Literal["cpu", "cuda"] = "cpu",
    devices: int = 1,
) -> Plan:
    """Predicted peak memory of a run by component, stage and clip length; no weights are read (`sonotune plan`).

    Args:
        settings: Of the run; no data are needed.
        clip_seconds: Lengths of clips to plan for; empty takes the usual buckets.
        memory_bytes: What it should fit into, to say how many clips do.
        gpu: A card to fit, by name or size as sold, instead of `memory_bytes` and `device`; it need not be here.
        exact: Run the largest step on fake tensors instead of the formula.
        device: Whose kernels are assumed.
        devices: Processes that train together.

    Raises:
        ConfigError: The card is not known, or `memory_bytes` is given beside it.
    """
    from sonotune.config.load import load_run_config
    from sonotune.errors import ConfigError
    from sonotune.planning.cards import find_card
    from sonotune.planning.plan import make_plan

    if gpu is not None and memory_bytes is not None:
        raise ConfigError("gpu and memory_bytes both say what the run should fit into. Give one of them.")
    card = find_card(gpu) if gpu is not None else None
    if card is not None:
        memory_bytes, device = card.memory_bytes, "cuda"
    config = load_run_config(words_of(settings)).config
    return make_plan(
        planned_settings(config, device, devices),
        clip_seconds=clip_seconds or planned_lengths_s(config),
        within_window=not clip_seconds,
        batch_seconds=config.training.batch_seconds,
        batch_max_clips=config.training.batch_max_clips,
        label_tokens=config.data.max_label_tokens,
        memory_bytes=memory_bytes,
        exact=exact,
        device=device,
        card=card,
    )


def export(source: Place, folder: Place, *, parity_clips: int = 50, **options: Any) -> dict[str, Any]:
    """Merge a trained adapter into plain weights, and compare what they serve with what was scored (`sonotune export`).

    Args:
        source: A run, an adapter or a model folder.
        folder: Where to write.
        parity_clips: Development clips to compare on; 0 compares nothing.
        **options: `target`, `dtype`, `adapter_only`, `plain` and `overwrite` of `serving.export.export`.
    """
    from sonotune.serving.export import export as write_export

    parity = parity_settings(str(source), clips=parity_clips) if parity_clips else None
    return write_export(str(source), Path(folder), parity=parity, **options)


def compare(first: Place, second: Place, **options: Any) -> Comparison:
    """Whether the second of two runs, or files of predictions, differs from the first on the same clips.

    See `evaluation.compare.compare` for the options.
    """
    from sonotune.evaluation.compare import compare as compare_predictions

    return compare_predictions([Path(first)], [Path(second)], **options)


def read_run(folder: Place) -> Run:
    """A run that was made earlier, whatever its status."""
    from sonotune.runs import read_record

    return Run(record=read_record(Path(folder)), folder=Path(folder))


# --- what commands share with these functions --------------------------------------------------------


def settings_of_use(words: Sequence[str], *, require: Sequence[str] = ()) -> LoadedConfig:
    """Settings for using a model: the language, normaliser and limits it was made with, where nothing says otherwise.

    They come from the run, adapter or export that is named.
    """
    with phase("starting"):
        from sonotune.adapters.metadata import USED, use_of
    from sonotune.config.load import load_run_config
    from sonotune.errors import ConfigError

    naming = [word for word in words if word.startswith(("model=", "model.checkpoint=", "config="))]
    try:
        found = use_of(load_run_config(naming).config.model.checkpoint) if naming else {}
    except ConfigError:
        found = {}  # told below, together with what is wrong in the other words
    inherited = {f"{section}.{name}": found[name] for section, name in USED if name in found}
    return load_run_config(words, require=require, inherited=inherited)


def open_recognizer(config: RunConfig) -> Recognizer:
    """The model that settings name, ready to recognise."""
    with phase("starting the model's libraries"):
        from sonotune.serving.recognizer import Recognizer
    return Recognizer.open(
        config.model.checkpoint,
        task=config.model.task,
        language=config.model.language,
        multi_label=config.data.multi_label,
        text_scoring=config.data.text_scoring,
        verbalize_numbers=config.evaluation.verbalize_numbers,
        primary=config.evaluation.primary,
        scores=config.evaluation.scores,
        precision=config.training.precision,
        family=config.model.family,
        revision=config.model.revision,
        context=config.model.asked_context,
        bits=config.quantization.bits,
        double=config.quantization.double,
        skip=config.quantization.skip,
        random_weights=config.model.random_weights,
    )


def corpus_to_score(config: RunConfig, recognizer: Recognizer) -> Corpus:
    """The clips of `data.test`, as the split `test`, with what was found in them.

    That some of them were trained on is a finding where the model is a run, or in the folder of one.
    """
    from sonotune.data.corpus import CORPUS_SETTINGS, load_corpus
    from sonotune.data.trained_on import check_trained_on
    from sonotune.evaluation.noise import with_noise

    corpus = load_corpus(
        {"test": str(config.data.test)},
        seed=config.training.seed,
        require=recognizer.task.reference,
        **config.data.model_dump(include=CORPUS_SETTINGS),
    )
    corpus = replace(corpus, splits={"test": with_noise(corpus.splits["test"], config.evaluation.snr_edges_db)})
    run = run_of(Path(config.model.checkpoint))
    leaks = check_trained_on(run, corpus.splits["test"]) if run is not None else []
    return replace(corpus, findings=(*corpus.findings, *leaks))


def evaluation_settings(config: RunConfig) -> dict[str, Any]:
    """How clips are decoded and scored, as `evaluation.evaluate.evaluate` takes it."""
    decoding = config.evaluation
    return {
        "batch_seconds": decoding.batch_seconds,
        "max_clips": decoding.batch_max_clips,
        "decoding": decoding.decoding(),
        "bootstrap": decoding.bootstrap,
        "duration_edges_s": decoding.duration_edges_s,
    }


def recognition_settings(config: RunConfig) -> dict[str, Any]:
    """`evaluation_settings`, and which recordings the model is not asked about, as `Recognizer.recognize` takes it."""
    of_silence = {"silence_db": config.data.silence_db, "speech_check": config.evaluation.speech_check}
    return {**evaluation_settings(config), **of_silence}


def audit_settings(config: RunConfig) -> AuditSettings:
    """How a corpus is sampled and judged, as `audit.run.audit` takes it."""
    from sonotune.audit.gate import GateSettings
    from sonotune.audit.run import AuditSettings
    from sonotune.audit.sampling import SamplingSettings, StratumRule

    asked = config.audit
    strata = asked.strata
    return AuditSettings(
        sampling=SamplingSettings(
            strata=strata
            if isinstance(strata, str)
            else tuple(
                StratumRule(
                    name=one.name,
                    match=one.where,
                    min_duration_s=one.min_duration_s,
                    max_duration_s=math.inf if one.max_duration_s is None else one.max_duration_s,
                    share=one.share,
                )
                for one in strata
            ),
            fraction=asked.fraction or 1.0,
            n_per_stratum=asked.n_per_stratum,
            min_clips=asked.min_clips,
            max_clips=asked.max_clips,
            seed=asked.seed,
        ),
        gate=GateSettings(
            **asked.model_dump(include={"proceed_below", "stop_above", "looks", "cluster_correlation", "rule"})
        ),
        **asked.model_dump(include={"thresholds", "false_positive_rate", "trusted_clips", "seed"}),
    )


def scoring_settings(config: RunConfig) -> dict[str, Any]:
    """`evaluation_settings`, and what the clips are put through before they are scored."""
    from sonotune.evaluation.augmented import EvaluationChain

    chain = EvaluationChain.of(config.evaluation.augment, config.evaluation.augment_seed)
    return {**evaluation_settings(config), "augmentation": chain}


def score_clips(
    config: RunConfig, recognizer: Recognizer, clips: Sequence[Clip], *, crew: Crew | None = None
) -> EvaluationResult:
    """Score clips, with what tuning broke where `evaluation.keep` or `evaluation.adapter_scales` ask for it."""
    from sonotune.data.corpus import CORPUS_SETTINGS
    from sonotune.data.text import get
    from sonotune.evaluation.retention.run import RetentionSettings
    from sonotune.runs import read_record
    from sonotune.serving.retention import evaluate_and_retain

    asked = config.evaluation
    run = run_of(Path(config.model.checkpoint))
    settings = RetentionSettings(
        keep=asked.keep,
        clips=asked.keep_clips,
        corpus=config.data.model_dump(include=CORPUS_SETTINGS),
        seed=config.training.seed,
        resamples=asked.bootstrap,
        decoding=asked.decoding(),
        precision=recognizer.precision,
        language=config.model.language,
        normalizer=get(config.data.text_scoring).digest,
        scales=asked.adapter_scales,
        folder=run,
    )

    def open_base() -> Recognizer:
        base = read_record(run or Path()).model["checkpoint"]
        changed = {"checkpoint": str(base), "context": recognizer.opened.loaded.context}
        return open_recognizer(config.model_copy(update={"model": config.model.model_copy(update=changed)}))

    return evaluate_and_retain(
        recognizer,
        clips,
        settings,
        scoring=scoring_settings(config),
        open_base=open_base if run is not None else None,
        crew=crew,
    )


def refuse_augmented(config: RunConfig) -> None:
    """Refuse `evaluation.augment` where clips are recognised and not scored; raises ConfigError."""
    from sonotune.errors import ConfigError

    if config.evaluation.augment != "none":
        raise ConfigError(
            f"evaluation.augment={config.evaluation.augment} cannot take effect: clips that are recognised and not "
            "scored are read as they are. Leave it out, or take `sonotune evaluate` on clips with references."
        )


def planned_settings(config: RunConfig, device: Literal["cpu", "cuda"], devices: int = 1) -> TrainingSettings:
    """What of the settings decides memory."""
    from sonotune.models.precision import choose_precision
    from sonotune.optimizers import choose_optimizer
    from sonotune.planning.layout import TrainingSettings
    from sonotune.training.adaptation import adapter_settings, rank_settings, wanted_stages

    asked = config.training.precision
    on_a_card = "bf16" if asked == "auto" else asked
    precision = on_a_card if device == "cuda" else choose_precision(asked)[0]
    return TrainingSettings(
        checkpoint=config.model.checkpoint,
        family=config.model.family,
        revision=config.model.revision,
        task=config.model.task,
        num_labels=config.model.num_labels,
        multi_label=config.data.multi_label,
        context=config.model.asked_context,
        bits=config.quantization.bits,
        double=config.quantization.double,
        skip=config.quantization.skip,
        kind=config.adapter.kind,
        ranks=rank_settings(config),
        adapter=adapter_settings(config),
        precision=precision,
        gradient_checkpointing=config.training.gradient_checkpointing,
        label_smoothing=config.training.label_smoothing,
        stages=wanted_stages(config),
        optimizer=choose_optimizer(config.training.optimizer, device)[0],
        shards=devices if config.training.shard_weights else 1,
    )


def planned_lengths_s(config: RunConfig) -> list[float]:
    """Buckets: the edges that scores are told by, up to the longest clip that is trained on."""
    from sonotune.data.windows import training_limit_s

    longest = training_limit_s(None, config.data.max_duration_s)
    return [*(edge for edge in config.evaluation.duration_edges_s if edge < longest), longest]


def parity_settings(checkpoint: str, *, manifest: str | None = None, clips: int = 50) -> ParitySettings:
    """How an export of this is compared: with the settings that the run was scored with.

    Args:
        checkpoint: A run, an adapter, or a model folder.
        manifest: Clips to take instead of the run's development clips.
        clips: How many.
    """
    from sonotune.data.corpus import CORPUS_SETTINGS
    from sonotune.serving.parity import ParitySettings

    config = _config_of(checkpoint)
    data = config.data
    named = {"train": data.train, "eval": data.eval}
    sources = {"eval": str(data.eval)} if data.eval is not None else named
    # The run has checked its clips; reading all of them again to recognise fifty would take as long as the check did.
    corpus = data.model_dump(include=CORPUS_SETTINGS) | {"check": "header", "max_bad_fraction": 1.0}
    if manifest is not None:
        sources = {"eval": manifest}
        corpus |= {"root": None, "limit": None}

    def open_scored() -> Recognizer:
        return open_recognizer(
            config.model_copy(update={"model": config.model.model_copy(update={"checkpoint": checkpoint})})
        )

    return ParitySettings(
        sources={name: str(source) for name, source in sources.items() if source is not None},
        corpus=corpus,
        open_scored=open_scored,
        decoding=evaluation_settings(config),
        language=config.model.language,
        clips=clips,
        seed=config.training.seed,
    )


def _config_of(checkpoint: str) -> Any:
    """The settings a run was made with; those of its use, for anything else."""
    from pydantic import ValidationError

    from sonotune.config.schema import RunConfig
    from sonotune.runs import read_record

    if (run := run_of(Path(checkpoint))) is not None:
        try:
            return RunConfig.model_validate(read_record(run).config)
        except ValidationError:
            pass  # an older version's; the settings it is used with are there in any case
    return settings_of_use([f"model.checkpoint={checkpoint}"]).config


def run_of(place: Path) -> Path | None:
    """The run directory that this is, or is the adapter or model of."""
    if not place.is_dir():
        return None
    return next((folder for folder in (place, place.absolute().parent) if (folder / "run.json").is_file()), None)
