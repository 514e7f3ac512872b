"""The commands that repair a corpus: data realign, data filter, data resegment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sonotune.cli.data import Outside, Root, data_app, print_finding
from sonotune.cli.shared import Json, print_result, tell

if TYPE_CHECKING:
    from sonotune.audit.calibration import Calibration
    from sonotune.audit.measure import Measurer
    from sonotune.audit.record import AuditReport
    from sonotune.audit.reference import Reference
    from sonotune.data.resegment import Resegmented
    from sonotune.models.precision import Precision
    from sonotune.types import Clip, Context, Finding

Source = Annotated[str, typer.Argument(metavar="MANIFEST", help="A manifest or FORMAT:SOURCE.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Manifest to write (JSONL); never the one that is read.")]
Language = Annotated[str | None, typer.Option(help="Language of clips that name none, such as he.")]
AlignerName = Annotated[str, typer.Option("--aligner", help="ctc, whisper or qwen3; found by the model.")]
_MODEL = "Model that aligns: a CTC model, a Whisper, or Qwen3's forced aligner, such as assets:ctc-nano."
_SHOWN = 10


@data_app.command("realign")
def data_realign(
    source: Source,
    out: Out,
    model: Annotated[str, typer.Option(help=_MODEL)],
    language: Language = None,
    aligner: AlignerName = "auto",
    root: Root = None,
    allow_outside_root: Outside = False,
    as_json: Json = False,
) -> None:
    """Place the words of every transcript in time, and write them to the manifest as `words`.

    A clip that cannot be aligned keeps what it has, and is named with the reason. What was aligned is kept beside OUT
    (`OUT.scores.jsonl`): a run that was stopped goes on there.
    """
    from sonotune.alignment.base import AlignerSettings
    from sonotune.audit.opening import open_measurer
    from sonotune.audit.repair import realign
    from sonotune.data.manifest import has_words, manifest_text
    from sonotune.runs import atomic_write_text
    from sonotune.wording import counted

    check_output(source, out, scores := beside(out, "scores"))
    clips, findings = read_clips(source, root, outside=allow_outside_root)
    worded = [clip for clip in clips if has_words(clip)]
    _refuse_without_text(source, clips, worded)
    settings = AlignerSettings(language=language, transcribe=False)
    opened = open_measurer(model, worded, aligner=aligner, settings=settings, file=scores)
    made = realign(clips, opened.measurer)
    atomic_write_text(out, manifest_text(out, made.clips))
    findings += made.findings
    tell_findings(findings)
    body: dict[str, Any] = {
        "manifest": str(out),
        "clips": len(made.clips),
        "aligned": made.aligned,
        "words": sum(len(clip.words) for clip in made.clips),
        "model": opened.model,
        "findings": plain(findings),
    }
    line = f"{out}: {made.aligned} of {counted(len(made.clips), 'clip')} aligned, {counted(body['words'], 'word')}"
    print_result(body, as_json=as_json, lines=[line])


@data_app.command("filter")
def data_filter(
    source: Source,
    out: Out,
    mode: Annotated[str, typer.Option(help="drop, flag, weight or star.")],
    audit: Annotated[
        Path | None, typer.Option(help="Folder of an audit, whose model and thresholds are taken; that of MANIFEST.")
    ] = None,
    model: Annotated[str | None, typer.Option(help=_MODEL)] = None,
    trusted: Annotated[
        str | None, typer.Option(help="Clips with right transcripts, of the same kind; those of the audit.")
    ] = None,
    false_positive_rate: Annotated[
        float, typer.Option(help="Share of right clips that is flagged, where no audit says.")
    ] = 0.05,
    trusted_clips: Annotated[int, typer.Option(min=20, help="Trusted clips at most, where no audit says.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the corruptions, where no audit says.")] = 0,
    language: Language = None,
    aligner: AlignerName = "auto",
    root: Root = None,
    allow_outside_root: Outside = False,
    as_json: Json = False,
) -> None:
    """Judge every transcript by an aligner, and leave out, mark or weigh down the bad ones.

    An audit looks at a sample; a filter measures every clip that the audit did not look at. Thresholds are those of the
    audit, or calibrated on --trusted clips with --model.

    --mode drop leaves bad clips out, and writes them to OUT's name with .dropped.jsonl, with the reasons.

    --mode flag keeps all, with `audit` (good, bad) and `audit_reasons`.

    --mode weight keeps all, and gives each the probability that it is good as its `weight`, which training reads. It is
    learned from trusted clips, right and corrupted, at the share of bad clips of this manifest, and rises with the
    score.

    --mode star keeps all, flagged as with `flag`, to be trained on with training.objective=star, which lets a wrong or
    missing word of any clip pass: CTC models only, and ones that know most words already.
    """
    from sonotune.alignment.base import AlignerSettings
    from sonotune.audit.opening import open_measurer
    from sonotune.audit.repair import MODES, filter_clips
    from sonotune.data.manifest import has_words, manifest_text
    from sonotune.errors import ConfigError, suggest
    from sonotune.runs import atomic_write_text

    if mode not in MODES:
        raise ConfigError(f"--mode {mode} is not known{suggest(mode, MODES)}; allowed are {', '.join(MODES)}.")
    folder, report = _audit_of(source, audit, asked=model is not None)
    if report is None and trusted is None:
        raise ConfigError(
            "--model needs --trusted: thresholds are calibrated on clips with right transcripts, of the same kind. "
            "Name such clips, or the folder of an audit with --audit."
        )
    scores = beside(out, "scores") if folder is None else folder / _scores_file()
    check_output(source, out, beside(out, "scores"), left := beside(out, "dropped"), trusted)
    clips, findings = read_clips(source, root, outside=allow_outside_root)
    worded = [clip for clip in clips if has_words(clip)]
    _refuse_without_text(source, clips, worded)
    recorded = _Recorded(report)
    trusted = trusted or recorded.text("trusted")
    right = _trusted(trusted, root, outside=allow_outside_root)
    checkpoint = model or recorded.checkpoint
    opened = open_measurer(
        checkpoint,
        worded,
        aligner=aligner if aligner != "auto" else recorded.aligner,
        settings=AlignerSettings(
            language=language or recorded.text("language"), text=recorded.text("text") or recorded.normalizer
        ),
        normalizer=recorded.normalizer,
        precision=recorded.precision,
        context=recorded.context,
        file=scores,
    )
    measurer = opened.measurer
    if report is not None:
        _refuse_other_model(report, opened.model, folder)
    given = {"false_positive_rate": false_positive_rate, "trusted_clips": trusted_clips, "seed": seed}
    calibration, reference = _judges(
        report, right, measurer, {name: recorded.value(name, one) for name, one in given.items()}
    )
    made = filter_clips(clips, mode=mode, measurer=measurer, calibration=calibration, reference=reference)
    texts = {out: manifest_text(out, made.clips)}
    if mode == "drop":
        texts = {left: manifest_text(left, made.dropped), **texts}
    for place, text in texts.items():
        atomic_write_text(place, text)
    findings += made.findings
    tell_findings(findings)
    if mode == "star":
        tell("sonotune: train with training.objective=star and a CTC model.")
    body = {
        "manifest": str(out),
        "mode": mode,
        "clips": len(made.clips),
        "dropped": len(made.dropped),
        **({"dropped_manifest": str(left)} if mode == "drop" else {}),
        "judged": made.judged,
        "flagged": made.flagged,
        "bad_share": made.bad_share,
        "reasons": dict(made.reasons),
        "weight": sum(clip.weight for clip in made.clips),
        "audit": None if folder is None else str(folder),
        "model": opened.model,
        "thresholds": dict(calibration.thresholds),
        "findings": plain(findings),
    }
    print_result(body, as_json=as_json, lines=_filter_lines(body))


def _filter_lines(body: Mapping[str, Any]) -> list[str]:
    from sonotune.wording import counted

    judged, flagged = body["judged"], body["flagged"]
    lines = [f"{body['manifest']}: {counted(body['clips'], 'clip')}; {flagged} of {judged} that were judged are bad"]
    if body["bad_share"] is not None:
        lines.append(f"estimated share of bad clips, the errors of the thresholds taken out: {body['bad_share']:.1%}")
    if body["reasons"]:
        lines.append("reasons  " + ", ".join(f"{code} {count}" for code, count in body["reasons"].items()))
    if body["mode"] == "drop":
        lines.append(f"{body['dropped_manifest']}: {counted(body['dropped'], 'clip')} left out")
    if body["mode"] == "weight":
        lines.append(f"weights add up to {body['weight']:.1f} of {counted(body['clips'], 'clip')}")
    return lines


@data_app.command("resegment")
def data_resegment(
    source: Source,
    out: Out,
    max_duration: Annotated[float, typer.Option(help="Longest clip, in seconds.")] = 15.0,
    overlap: Annotated[
        float, typer.Option(help="Pause around its words that a clip has at most, on either side, in seconds.")
    ] = 1.0,
    untranscribed: Annotated[
        float, typer.Option(help="Speech without text that is cut out where it is so long, in seconds.")
    ] = 1.0,
    keep_untranscribed: Annotated[
        bool, typer.Option("--keep-untranscribed", help="Keep pieces of speech without text, as clips without text.")
    ] = False,
    model: Annotated[str | None, typer.Option(help=f"Aligns long recordings without `words` first. {_MODEL}")] = None,
    language: Language = None,
    aligner: AlignerName = "auto",
    root: Root = None,
    allow_outside_root: Outside = False,
    as_json: Json = False,
) -> None:
    """Cut long recordings between their words into clips, each with the text of exactly what is said in it.

    Words must be placed in time (`words`), or --model places them. Each second of a recording belongs to one clip
    (`source_start_s`, `source_end_s` of `source_id`), and so does each word. The audio of a clip holds its words and up
    to --overlap of the pauses around them; it may overlap that of its neighbour, but only in silence, so no text is
    said twice. Speech that the transcript passes over is left out. No audio is written.
    """
    from sonotune.data.manifest import has_words, manifest_text
    from sonotune.data.resegment import Cutting, resegment, unplaced
    from sonotune.data.windows import WINDOW_SLACK_S
    from sonotune.errors import ManifestError
    from sonotune.runs import atomic_write_text

    cutting = Cutting(max_duration_s=max_duration, context_s=overlap, untranscribed_s=untranscribed)
    check_output(source, out, scores := beside(out, "scores"))
    clips, findings = read_clips(source, root, outside=allow_outside_root)
    worded = [clip for clip in clips if clip.words or has_words(clip)]
    _refuse_without_text(source, clips, worded)
    long = [clip for clip in worded if clip.duration_s > max_duration + WINDOW_SLACK_S]
    if model is not None:
        wanted = [clip for clip in long if unplaced(clip) and has_words(clip)]
        clips, told = _place(clips, wanted, model, aligner, language, scores)
        findings += told
    elif long and all(unplaced(clip) for clip in long):
        raise ManifestError(
            f"{source} has {len(long)} of {len(clips)} clips longer than {max_duration:g} s, which "
            f"{unplaced(long[0])}. Name a model that places them with --model, such as assets:ctc-nano, or "
            "run `sonotune data realign`."
        )
    made = resegment(clips, cutting, keep_untranscribed=keep_untranscribed)
    if not made.clips:
        raise ManifestError(f"no clip of {source} has text, and nothing would be left; --keep-untranscribed keeps it.")
    atomic_write_text(out, manifest_text(out, made.clips))
    findings += made.findings
    tell_findings(findings)
    body = {
        "manifest": str(out),
        "recordings": len(clips),
        "cut": made.cut,
        "clips": len(made.clips),
        "words": sum(len((clip.text or "").split()) for clip in made.clips),
        "hours": sum(clip.duration_s for clip in made.clips) / 3600,
        "longest_s": max(clip.duration_s for clip in made.clips),
        "untranscribed": {"pieces": made.untranscribed, "seconds": made.untranscribed_s, "kept": keep_untranscribed},
        "findings": plain(findings),
    }
    print_result(body, as_json=as_json, lines=_resegment_lines(out, len(clips), made))


def _resegment_lines(out: Path, recordings: int, made: Resegmented) -> list[str]:
    from sonotune.wording import counted, long_time

    length = long_time(sum(clip.duration_s for clip in made.clips))
    return [
        f"{out}: {counted(len(made.clips), 'clip')}, {length}; {made.cut} of {counted(recordings, 'recording')} cut"
    ]


def _place(
    clips: Sequence[Clip], wanted: Sequence[Clip], model: str, aligner: str, language: str | None, scores: Path
) -> tuple[list[Clip], list[Finding]]:
    """All clips, with the words of those that are wanted placed in time, and which could not be."""
    from sonotune.alignment.base import AlignerSettings
    from sonotune.audit.opening import open_measurer
    from sonotune.audit.repair import realign

    if not wanted:
        return list(clips), []
    settings = AlignerSettings(language=language, transcribe=False)
    opened = open_measurer(model, wanted, aligner=aligner, settings=settings, file=scores)
    made = realign(wanted, opened.measurer)
    placed = {clip.id: clip for clip in made.clips}
    return [placed.get(clip.id, clip) for clip in clips], list(made.findings)


# --- shared --------------------------------------------------------------------------------------


def read_clips(source: str, root: Path | None, *, outside: bool) -> tuple[list[Clip], list[Finding]]:
    """The clips of a source with their lengths, and what its reader noted."""
    from sonotune.data.corpus import read_source
    from sonotune.data.import_checks import check_durations
    from sonotune.data.manifest import fill_durations

    findings: list[Finding] = []
    clips = fill_durations(read_source(source, root=root, allow_outside_root=outside, findings=findings))
    return clips, [*findings, *check_durations(clips)]


def beside(out: Path, what: str) -> Path:
    """A file that goes with a manifest: `train.jsonl` has `train.scores.jsonl`."""
    return out.with_name(f"{out.stem}.{what}.jsonl")


def check_output(source: str, out: Path, *others: str | Path | None) -> None:
    """Refuse a manifest that would be written where it cannot be, or over what is read.

    Args:
        source: What is read.
        out: What is written.
        others: Files that are written beside it, or sources that are read as well (text).

    Raises:
        ManifestError: Says which.
    """
    from sonotune.data.corpus import format_of
    from sonotune.errors import ManifestError

    read = [Path(format_of(one)[1]) for one in (source, *(one for one in others if isinstance(one, str)))]
    for place in (out, *(one for one in others if isinstance(one, Path))):
        if any(place.exists() and one.exists() and place.samefile(one) for one in read):
            raise ManifestError(f"{place} is what is read, and would be lost. Give OUT another name.")
    if not out.absolute().parent.is_dir():
        raise ManifestError(f"{out} cannot be written: there is no folder {out.parent}. Make it, or name another.")
    if out.is_dir():
        raise ManifestError(f"{out} is a folder. Name the manifest to write, such as {out / 'train.jsonl'}.")


def _refuse_without_text(source: str, clips: Sequence[Clip], worded: Sequence[Clip]) -> None:
    from sonotune.errors import ManifestError
    from sonotune.wording import counted

    if not worded:
        raise ManifestError(
            f"{source} has {counted(len(clips), 'clip')} and no transcript with words, and an aligner places a "
            "transcript in its audio. Give clips a `text`."
        )


def tell_findings(findings: Sequence[Finding]) -> None:
    """The first findings of each check on stderr, and how many more there are."""
    told: dict[str, int] = {}
    for finding in findings:
        told[finding.check] = told.get(finding.check, 0) + 1
        if told[finding.check] <= _SHOWN:
            print_finding(finding)
    for check, count in told.items():
        if count > _SHOWN:
            tell(f"sonotune: WARNING: {count - _SHOWN} more findings of {check}; --json has all of them.")


def plain(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Findings as `--json` has them."""
    return [
        {"check": one.check, "severity": one.severity, "message": one.message, "clip_ids": list(one.clip_ids)}
        for one in findings
    ]


# --- filter --------------------------------------------------------------------------------------


def _scores_file() -> str:
    from sonotune.audit.measure import SCORES_FILE

    return SCORES_FILE


def _audit_of(source: str, folder: Path | None, *, asked: bool) -> tuple[Path | None, AuditReport | None]:
    """The folder of the audit that thresholds come from, and its report; None where they are calibrated here."""
    from sonotune.audit.record import REPORT_FILE, read_report
    from sonotune.audit.verdict import audit_folder
    from sonotune.errors import ConfigError

    place = audit_folder(source, folder)
    if (place / REPORT_FILE).is_file() and (folder is not None or not asked):
        return place, read_report(place)
    if folder is not None or not asked:
        raise ConfigError(
            f"there is no audit in {place}. Run `sonotune audit data.train={source}` first, name its folder with "
            "--audit, or name --model and --trusted to calibrate thresholds here."
        )
    return None, None


def _judges(
    report: AuditReport | None, trusted: Sequence[Clip], measurer: Measurer, settings: Mapping[str, Any]
) -> tuple[Calibration, Reference | None]:
    """Thresholds, those of the audit where there is one, and the trusted clips by which others are judged."""
    from sonotune.audit.reference import refer

    if report is not None and not trusted:
        return report.calibration, None
    reference = refer(
        trusted,
        measurer,
        thresholds="seed" if report is not None and report.calibration.method == "fixed" else "calibrated",
        false_positive_rate=float(settings["false_positive_rate"]),
        most=int(settings["trusted_clips"]),
        seed=int(settings["seed"]),
    )
    return reference.calibration if report is None else report.calibration, reference


class _Recorded:
    """What a report says of how its audit was made (`api.audit`)."""

    def __init__(self, report: AuditReport | None) -> None:
        self._report = report
        self._settings: Mapping[str, Any] = {} if report is None else report.settings

    def value(self, name: str, default: Any = None) -> Any:
        """A setting, or the default where the report does not have it."""
        found = self._settings.get(name)
        return default if found is None else found

    def text(self, name: str) -> str | None:
        """A setting that is text."""
        found = self.value(name)
        return found if isinstance(found, str) else None

    @property
    def checkpoint(self) -> str:
        return "" if self._report is None else self._report.model.get("checkpoint") or ""

    @property
    def aligner(self) -> str:
        return "auto" if self._report is None else self._report.model.get("aligner") or "auto"

    @property
    def precision(self) -> Precision:
        """Of the audit; 32 bits where there was none."""
        known: dict[str | None, Precision] = {"bf16": "bf16", "fp16": "fp16"}
        return known.get(self.text("precision"), "fp32")

    @property
    def context(self) -> Context | None:
        """Of the audit's model."""
        known: dict[str | None, Context] = {"thinned": "thinned", "full": "full", "cut": "cut"}
        return known.get(self.text("context"))

    @property
    def normalizer(self) -> str:
        return "basic" if self._report is None else self._report.normalizer.get("name", "basic")


def _trusted(source: str | None, root: Path | None, *, outside: bool) -> list[Clip]:
    """Trusted clips with transcripts; none where none are named."""
    from sonotune.data.corpus import read_source
    from sonotune.data.manifest import fill_durations, has_words

    if source is None:
        return []
    clips = read_source(source, root=root, allow_outside_root=outside)
    return fill_durations([clip for clip in clips if has_words(clip)])


def _refuse_other_model(report: AuditReport, model: Mapping[str, str | None], folder: Path | None) -> None:
    from sonotune.errors import ManifestError

    known = report.model.get("digest")
    if known and known != model["digest"]:
        raise ManifestError(
            f"the audit in {folder} was made with another aligner than {model['checkpoint']} is now: its weights or "
            "settings have changed, and thresholds of one do not hold for the other. Audit again with `sonotune audit`."
        )
