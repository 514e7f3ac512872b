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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sonotune.arguments import (
    audit_settings,
    corpus_to_score,
    open_recognizer,
    parity_settings,
    planned_lengths_s,
    planned_settings,
    recognition_settings,
    refuse_augmented,
    score_clips,
    settings_of_use,
)
from sonotune.progress import phase

if TYPE_CHECKING:
    from sonotune.audit.record import AuditReport
    from sonotune.evaluation.compare import Comparison
    from sonotune.evaluation.evaluate import EvaluationResult
    from sonotune.planning.inspection import Inspection
    from sonotune.planning.plan import Plan
    from sonotune.serving.recognizer import Recognizer
    from sonotune.training.logging.run_log import Listener
    from sonotune.types import Prediction, RunRecord

Settings = Mapping[str, Any] | Sequence[str]
StrPath = str | Path


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


def load(model: StrPath, settings: Settings = ()) -> Recognizer:
    """Open a model for use: a packaged, hub or local model, an adapter, an export or a run.

    Args:
        model: What `model.checkpoint` may be.
        settings: Further ones; those of its own run hold where nothing is said.

    Returns:
        A recogniser with `recognize(paths)` and `evaluate(clips)`.
    """
    return open_recognizer(settings_of_use([f"model.checkpoint={model}", *words_of(settings)]).config)


def evaluate(model: StrPath, manifest: StrPath, settings: Settings = ()) -> EvaluationResult:
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


def transcribe(model: StrPath, files: Sequence[StrPath], settings: Settings = ()) -> list[Prediction]:
    """Texts of audio files and of every audio file in folders, in order (`sonotune transcribe`)."""
    return _recognize(model, files, settings, task="transcribe")


def classify(model: StrPath, files: Sequence[StrPath], settings: Settings = ()) -> list[Prediction]:
    """Class probabilities of audio files and of every audio file in folders (`sonotune classify`)."""
    return _recognize(model, files, settings, task="classify")


def _recognize(model: StrPath, files: Sequence[StrPath], settings: Settings, *, task: str) -> list[Prediction]:
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
    from sonotune.audit.run import audit as run_audit
    from sonotune.audit.sampling import check_patterns
    from sonotune.audit.sources import read_transcribed
    from sonotune.audit.verdict import audit_folder
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
    corpus = corpus.with_audio(folder, compute.processes)
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


def label(
    source: StrPath,
    out: StrPath,
    *,
    model: StrPath,
    min_logprob: float | None = -1.0,
    max_compression: float | None = 2.4,
    max_characters_per_second: float | None = 25.0,
    beam_size: int = 1,
    bits: Literal["auto", 4, 8, 16] = "auto",
    batch_seconds: float = 240.0,
    **options: Any,
) -> dict[str, Any]:
    """Let a model write the text of every clip (`sonotune data label`).

    Args:
        source: See `realign`, as for `out`.
        out: Manifest to write.
        model: That writes.
        min_logprob: See `serving.pseudo_labels.LabelLimits`.
        max_compression: As above.
        max_characters_per_second: As above.
        beam_size: Beams; 1 is greedy.
        bits: Of the model's linear weights.
        batch_seconds: Padded seconds of one batch.
        **options: See `realign`, without `aligner`.
    """
    from sonotune.audit.repair_manifest import RepairRequest
    from sonotune.serving.pseudo_labels import LabelLimits, label_manifest

    limits = LabelLimits(
        min_logprob=min_logprob,
        max_compression=max_compression,
        max_characters_per_second=max_characters_per_second,
    )
    request = RepairRequest.of(source, out, model=model, **options)
    return label_manifest(request, limits, beam_size=beam_size, bits=bits, batch_seconds=batch_seconds).to_json()


def prune(
    source: StrPath, folder: StrPath, *, encoder_layers: int | None = None, decoder_layers: int | None = None
) -> dict[str, Any]:
    """Write a Whisper with fewer layers, evenly spaced (`sonotune prune`).

    Args:
        source: A Whisper, as `model.checkpoint` may be.
        folder: Where to write; it must not exist.
        encoder_layers: How many stay; None keeps all.
        decoder_layers: How many stay; None keeps all.
    """
    from sonotune.serving.layer_pruning import prune_layers

    made = prune_layers(str(source), Path(folder), encoder_layers=encoder_layers, decoder_layers=decoder_layers)
    return made.to_json()


def realign(source: StrPath, out: StrPath, *, model: StrPath, **options: Any) -> dict[str, Any]:
    """Place the words of every transcript in time (`sonotune data realign`).

    Args:
        source: A manifest, or FORMAT:SOURCE.
        out: Manifest to write; never the one that is read.
        model: That aligns.
        **options: `aligner`, `language`, `root` and `allow_outside_root` of `audit.repair_manifest.RepairRequest.of`.

    Returns:
        What `--json` prints.

    Raises:
        SonotuneError: With an `exit_code` that says what went wrong.
    """
    from sonotune.audit.repair_manifest import RepairRequest, realign_manifest

    return realign_manifest(RepairRequest.of(source, out, model=model, **options)).to_json()


def filter_corpus(
    source: StrPath,
    out: StrPath,
    *,
    mode: Literal["drop", "flag", "weight", "star"],
    audit: StrPath | None = None,
    model: StrPath = "",
    trusted: StrPath | None = None,
    false_positive_rate: float = 0.05,
    trusted_clips: int = 200,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Judge every transcript, and leave out, mark or weigh down the bad ones (`sonotune data filter`).

    Args:
        source: See `realign`, as for `out` and `options`.
        out: Manifest to write.
        mode: What is done with bad clips.
        audit: Folder of the audit whose model and thresholds are taken; None: that of the source.
        model: That aligns, where thresholds are calibrated on `trusted` instead.
        trusted: Clips with right transcripts.
        false_positive_rate: Share of right clips that is flagged, where no audit says.
        trusted_clips: Trusted clips at most, where no audit says.
        seed: Of the corruptions, where no audit says.
        **options: See `realign`.

    Returns:
        What `--json` prints.

    Raises:
        SonotuneError: With an `exit_code` that says what went wrong.
    """
    from sonotune.audit.repair_manifest import FilterSettings, RepairRequest, filter_manifest

    settings = FilterSettings(
        mode=mode,
        audit=None if audit is None else Path(audit),
        trusted=None if trusted is None else str(trusted),
        false_positive_rate=false_positive_rate,
        trusted_clips=trusted_clips,
        seed=seed,
    )
    return filter_manifest(RepairRequest.of(source, out, model=model, **options), settings).to_json()


def resegment(
    source: StrPath,
    out: StrPath,
    *,
    max_duration_s: float = 15.0,
    context_s: float = 1.0,
    untranscribed_s: float = 1.0,
    keep_untranscribed: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Cut long recordings between their words into clips with their own text (`sonotune data resegment`).

    Args:
        source: See `realign`, as for `out`.
        out: Manifest to write.
        max_duration_s: Longest clip, in seconds.
        context_s: Pause around its words that a clip has at most, on either side, in seconds.
        untranscribed_s: Speech without text that is cut out where it is so long, in seconds.
        keep_untranscribed: Keep pieces of speech without text, as clips without text.
        **options: See `realign`; `model` places the words of long recordings that have none.

    Returns:
        What `--json` prints.

    Raises:
        SonotuneError: With an `exit_code` that says what went wrong.
    """
    from sonotune.audit.repair_manifest import RepairRequest, resegment_manifest
    from sonotune.data.resegment import Cutting

    cutting = Cutting(max_duration_s=max_duration_s, context_s=context_s, untranscribed_s=untranscribed_s)
    request = RepairRequest.of(source, out, **options)
    return resegment_manifest(request, cutting, keep_untranscribed=keep_untranscribed).to_json()


def inspect(settings: Settings) -> Inspection:
    """What a model is made of, what would train and what it weighs; no weights are read (`sonotune inspect`)."""
    with phase("starting"):
        from sonotune.planning.inspection import inspect_model
        from sonotune.planning.teacher import teacher_memory
    from sonotune.config.load import load_run_config
    from sonotune.training.adaptation import adapter_settings, asked_merging, rank_settings

    config = load_run_config(words_of(settings)).config
    found = inspect_model(
        config.model.checkpoint,
        family=config.model.family,
        task=config.model.task,
        num_labels=config.model.num_labels,
        context=config.model.asked_context,
        merging=asked_merging(config),
        revision=config.model.revision,
        bits=config.quantization.bits,
        double=config.quantization.double,
        skip=config.quantization.skip,
        kind=config.adapter.kind,
        ranks=rank_settings(config),
        adapter=adapter_settings(config),
    )
    taught = config.distillation
    if config.training.objective != "distill" or taught.teacher is None:
        return found
    return replace(found, teacher=teacher_memory(taught.teacher, bits=taught.teacher_bits, precision="bf16"))


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


def export(
    source: StrPath, folder: StrPath, *, parity_clips: int = 50, bake_tolerance: float | None = None, **options: Any
) -> dict[str, Any]:
    """Merge a trained adapter into plain weights, and compare what they serve with what was scored (`sonotune export`).

    Args:
        source: A run, an adapter or a model folder.
        folder: Where to write.
        parity_clips: Development clips to compare on; 0 compares nothing.
        bake_tolerance: Of adapters with gates, which are put at their means: largest share of what they add that may
            change (`serving.baking.BakeSettings`).
        **options: `target`, `dtype`, `adapter_only`, `plain` and `overwrite` of `serving.export.export`.
    """
    from sonotune.serving.baking import BakeSettings
    from sonotune.serving.export import export as write_export

    on_clips = partial(parity_settings, str(source), clips=parity_clips or 50)
    baking = BakeSettings(clips=on_clips, tolerance=bake_tolerance)
    return write_export(
        str(source), Path(folder), parity=on_clips() if parity_clips else None, baking=baking, **options
    )


def compare(first: StrPath, second: StrPath, **options: Any) -> Comparison:
    """Whether the second of two runs, or files of predictions, differs from the first on the same clips.

    See `evaluation.compare.compare` for the options.
    """
    from sonotune.evaluation.compare import compare as compare_predictions

    return compare_predictions([Path(first)], [Path(second)], **options)


def read_run(folder: StrPath) -> Run:
    """A run that was made earlier, whatever its status."""
    from sonotune.runs import read_record

    return Run(record=read_record(Path(folder)), folder=Path(folder))
