"""What packages take as plain arguments, made of the settings: shared by the commands and the Python functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sonotune.progress import phase

if TYPE_CHECKING:
    from sonotune.audit.run import AuditSettings
    from sonotune.config.load import LoadedConfig
    from sonotune.config.schema import RunConfig
    from sonotune.data.corpus import Corpus
    from sonotune.evaluation.evaluate import EvaluationResult
    from sonotune.features.workers import Crew
    from sonotune.metrics.confidence import Calibration
    from sonotune.planning.layout import TrainingSettings
    from sonotune.serving.parity import ParitySettings
    from sonotune.serving.recognizer import Recognizer
    from sonotune.types import Clip, Finding


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
    from sonotune.training.adaptation import asked_merging

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
        merging=asked_merging(config),
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
    from sonotune.evaluation.noise import with_noise

    corpus = load_corpus(
        {"test": str(config.data.test)},
        seed=config.training.seed,
        require=recognizer.task.reference,
        **config.data.model_dump(include=CORPUS_SETTINGS),
    )
    corpus = replace(corpus, splits={"test": with_noise(corpus.splits["test"], config.evaluation.snr_edges_db)})
    return replace(corpus, findings=(*corpus.findings, *leaks_into(config, corpus.splits["test"])))


def leaks_into(config: RunConfig, clips: Sequence[Clip]) -> list[Finding]:
    """Findings that name clips which the model was trained on, where it is a run, or in the folder of one."""
    from sonotune.data.trained_on import check_trained_on

    run = run_of(Path(config.model.checkpoint))
    return check_trained_on(run, clips) if run is not None else []


def evaluation_settings(config: RunConfig) -> dict[str, Any]:
    """How clips are decoded and scored, as `evaluation.evaluate.evaluate` takes it."""
    decoding = config.evaluation
    return {
        "batch_seconds": decoding.batch_seconds,
        "max_clips": decoding.batch_max_clips,
        "decoding": decoding.decoding(),
        "bootstrap": decoding.bootstrap,
        "duration_edges_s": decoding.duration_edges_s,
        "calibration": calibration_of(config),
    }


def calibration_of(config: RunConfig) -> Calibration | None:
    """How the run or export that is used makes confidences of words; None where none is asked for, or it has none."""
    from sonotune.adapters.metadata import EXPORT_MARK, read_entries
    from sonotune.evaluation.confidence import calibration_in
    from sonotune.runs import read_record

    if not config.evaluation.confidence:
        return None
    folder = Path(config.model.checkpoint)
    if (run := run_of(folder)) is not None:
        return calibration_in(read_record(run).confidence)
    mark = folder / EXPORT_MARK
    return calibration_in(read_entries(mark)) if mark.is_file() else None


def recognition_settings(config: RunConfig) -> dict[str, Any]:
    """`evaluation_settings`, and which recordings the model is not asked about, as `Recognizer.recognize` takes it."""
    of_silence = {"silence_db": config.data.silence_db, "speech_check": config.evaluation.speech_check}
    return {**evaluation_settings(config), **of_silence}


def development_clips(config: RunConfig, recognizer: Recognizer) -> list[Clip]:
    """Clips to choose by: those of `data.eval`, else the development clips of the run that is used.

    Raises:
        ConfigError: They are clips of a test, or of recordings that the run was trained on; or there are none.
        ManifestError: They cannot be read.
    """
    from sonotune.data.corpus import CORPUS_SETTINGS, load_corpus
    from sonotune.data.trained_on import check_trained_on
    from sonotune.errors import ConfigError
    from sonotune.runs import read_record

    checkpoint, run = config.model.checkpoint, run_of(Path(config.model.checkpoint))
    own = parity_settings(checkpoint, manifest=config.data.eval)
    if not own.sources:
        raise ConfigError(f"{checkpoint} names no development clips. Give data.eval=MANIFEST.")
    record = None if run is None else read_record(run)
    tests = {str(test) for test in (config.data.test, record and record.config.get("data", {}).get("test")) if test}
    asked = CORPUS_SETTINGS if config.data.eval is not None else CORPUS_SETTINGS & config.data.model_fields_set
    corpus_settings = {**own.corpus, **config.data.model_dump(include=asked)}
    corpus = load_corpus(dict(own.sources), seed=own.seed, require=recognizer.task.reference, **corpus_settings)
    clips = corpus.splits["eval"]
    same = record is not None and corpus.digests["eval"] == record.data_digest.get("test", "")
    if same or own.sources.get("eval") in tests or any(_share_audio(clips, test, corpus_settings) for test in tests):
        raise ConfigError(
            f"data.eval={own.sources.get('eval')} has clips of a test (data.test): what is chosen or fitted on them "
            "could not be tested any more. Give development clips."
        )
    trained = [] if run is None else check_trained_on(run, clips)
    if heard := next((finding for finding in trained if finding.check == "leak.audio"), None):
        raise ConfigError(
            f"{len(heard.clip_ids)} of {len(clips)} clips of data.eval={own.sources.get('eval')} are of recordings "
            f"that {run} was trained on: what is chosen or fitted on them holds for no others. Give development clips."
        )
    return clips


def _share_audio(clips: Sequence[Clip], manifest: str, corpus_settings: Mapping[str, Any]) -> bool:
    """Whether some clips are of audio that a manifest has too; one that cannot be read any more has none."""
    from sonotune.data.corpus import load_corpus
    from sonotune.data.splits import check_leaks
    from sonotune.errors import ManifestError

    try:
        whole = {**corpus_settings, "limit": None, "check": "header"}
        others = load_corpus({"test": manifest}, seed=0, require=None, **whole).splits["test"]
    except ManifestError:
        return False
    found = check_leaks(clips, {"test": others})["test"]
    return any(leak.check in ("leak.span", "leak.audio") for leak in found)


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
    from sonotune.training.adaptation import adapter_settings, asked_merging, rank_settings, wanted_stages

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
        merging=asked_merging(config),
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
        teacher=config.distillation.teacher if config.training.objective == "distill" else None,
        teacher_bits=config.distillation.teacher_bits,
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
