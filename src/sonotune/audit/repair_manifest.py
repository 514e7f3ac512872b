"""Corpora repaired from manifest to manifest: what `sonotune data realign`, `filter` and `resegment` do.

No audio is written and no source is changed. What was aligned is kept beside the new manifest (`OUT.scores.jsonl`), so
that a run which was stopped goes on there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from sonotune.alignment.base import AlignerSettings
from sonotune.audit.calibration import Calibration
from sonotune.audit.measure import SCORES_FILE, Measurer
from sonotune.audit.opening import OpenedMeasurer, open_measurer
from sonotune.audit.record import REPORT_FILE, AuditReport, read_report
from sonotune.audit.reference import Reference, refer
from sonotune.audit.repair import MODES, Filtered, Mode, filter_clips, realign
from sonotune.audit.verdict import audit_folder
from sonotune.data.corpus import format_of, read_source
from sonotune.data.import_checks import check_durations
from sonotune.data.manifest import fill_durations, has_words, manifest_text
from sonotune.data.resegment import Cutting, resegment, unplaced
from sonotune.data.windows import WINDOW_SLACK_S
from sonotune.errors import ConfigError, ManifestError, suggest
from sonotune.models.precision import Precision
from sonotune.runs import atomic_write_text
from sonotune.types import Clip, Context, Finding
from sonotune.wording import counted

MIN_TRUSTED: Final = 20
"""Trusted clips that thresholds can be calibrated on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairRequest:
    """Which corpus is repaired, and where to.

    Attributes:
        source: A manifest or FORMAT:SOURCE.
        out: Manifest to write; never the one that is read.
        root: Where relative paths of audio begin; None: beside the manifest.
        allow_outside_root: Whether audio may lie elsewhere.
        model: Model that aligns; empty where none is named.
        aligner: Registry name; `auto` takes that of the model's family.
        language: Of clips that name none.
    """

    source: str
    out: Path
    root: Path | None = None
    allow_outside_root: bool = False
    model: str = ""
    aligner: str = "auto"
    language: str | None = None

    @classmethod
    def of(
        cls,
        source: str | Path,
        out: str | Path,
        *,
        model: str | Path | None = None,
        aligner: str = "auto",
        language: str | None = None,
        root: str | Path | None = None,
        allow_outside_root: bool = False,
    ) -> RepairRequest:
        """A request by places as a caller has them; see the attributes."""
        return cls(
            source=str(source),
            out=Path(out),
            root=None if root is None else Path(root),
            allow_outside_root=allow_outside_root,
            model=str(model or ""),
            aligner=aligner,
            language=language,
        )

    def read(self) -> tuple[list[Clip], list[Finding]]:
        """The clips with their lengths, and what their reader noted."""
        return read_clips(self.source, self.root, outside=self.allow_outside_root)

    @property
    def scores(self) -> Path:
        """Where what was aligned is kept."""
        return beside(self.out, "scores")

    def realigner(self, clips: Sequence[Clip]) -> OpenedMeasurer:
        """The model, to place words in time."""
        settings = AlignerSettings(language=self.language, transcribe=False)
        return open_measurer(self.model, clips, aligner=self.aligner, settings=settings, file=self.scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What was done.

    Attributes:
        body: As `--json` has it, but for the findings.
        findings: What was found in the clips.
    """

    body: Mapping[str, Any]
    findings: Sequence[Finding]

    def to_json(self) -> dict[str, Any]:
        """As `--json` has it."""
        return {**self.body, "findings": plain(self.findings)}


def realign_manifest(request: RepairRequest) -> Repaired:
    """Place the words of every transcript in time, and write them to the manifest as `words`.

    Raises:
        ManifestError: The source cannot be read, has no transcripts, or would be overwritten; nothing could be aligned.
        ModelError: The model cannot be used.
        ResourceError: The disk is full.
    """
    check_output(request.source, request.out, request.scores)
    clips, findings = request.read()
    worded = _with_text(request.source, clips)
    opened = request.realigner(worded)
    made = realign(clips, opened.measurer)
    atomic_write_text(request.out, manifest_text(request.out, made.clips))
    body = {
        "manifest": str(request.out),
        "clips": len(made.clips),
        "aligned": made.aligned,
        "words": sum(len(clip.words) for clip in made.clips),
        "model": opened.model,
    }
    return Repaired(body=body, findings=[*findings, *made.findings])


def resegment_manifest(request: RepairRequest, cutting: Cutting, *, keep_untranscribed: bool = False) -> Repaired:
    """Cut long recordings between their words into clips, each with the text of exactly what is said in it.

    Args:
        request: Its model places the words of long recordings that have none.
        cutting: How long a clip is, and what is left around its words.
        keep_untranscribed: Keep pieces of speech without text, as clips without text.

    Raises:
        ManifestError: See `realign_manifest`; or long recordings have no words, and no model places them.
        ModelError: The model cannot be used.
        ResourceError: The disk is full.
    """
    source, out = request.source, request.out
    check_output(source, out, request.scores)
    clips, findings = request.read()
    worded = _with_text(source, clips, or_words=True)
    long = [clip for clip in worded if clip.duration_s > cutting.max_duration_s + WINDOW_SLACK_S]
    if request.model:
        if wanted := [clip for clip in long if unplaced(clip) and has_words(clip)]:
            placed = realign(wanted, request.realigner(wanted).measurer)
            named = {clip.id: clip for clip in placed.clips}
            clips = [named.get(clip.id, clip) for clip in clips]
            findings += placed.findings
    elif long and all(unplaced(clip) for clip in long):
        raise ManifestError(
            f"{source} has {len(long)} of {len(clips)} clips longer than {cutting.max_duration_s:g} s, which "
            f"{unplaced(long[0])}. Name a model that places them with --model, such as assets:ctc-nano, or "
            "run `sonotune data realign`."
        )
    made = resegment(clips, cutting, keep_untranscribed=keep_untranscribed)
    if not made.clips:
        raise ManifestError(f"no clip of {source} has text, and nothing would be left; --keep-untranscribed keeps it.")
    atomic_write_text(out, manifest_text(out, made.clips))
    body = {
        "manifest": str(out),
        "recordings": len(clips),
        "cut": made.cut,
        "clips": len(made.clips),
        "words": sum(len((clip.text or "").split()) for clip in made.clips),
        "hours": sum(clip.duration_s for clip in made.clips) / 3600,
        "longest_s": max(clip.duration_s for clip in made.clips),
        "untranscribed": {"pieces": made.untranscribed, "seconds": made.untranscribed_s, "kept": keep_untranscribed},
    }
    return Repaired(body=body, findings=[*findings, *made.findings])


# --- filter --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterSettings:
    """What is done with bad clips, and by which thresholds they are.

    Attributes:
        mode: One of `repair.MODES`.
        audit: Folder of an audit, whose model and thresholds are taken; None: that of the source, where no model is
            named.
        trusted: Clips with right transcripts, of the same kind; None: those of the audit.
        false_positive_rate: Share of right clips that is flagged, where no audit says.
        trusted_clips: Trusted clips at most, where no audit says.
        seed: Of the corruptions, where no audit says.
    """

    mode: str
    audit: Path | None = None
    trusted: str | None = None
    false_positive_rate: float = 0.05
    trusted_clips: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError where a number makes no sense."""
        if self.trusted_clips < MIN_TRUSTED or not 0 < self.false_positive_rate < 1:
            raise ConfigError(
                f"trusted_clips is {self.trusted_clips} and false_positive_rate {self.false_positive_rate:g}; allowed "
                f"are {MIN_TRUSTED} clips or more, and a share between 0 and 1."
            )


def filter_manifest(request: RepairRequest, settings: FilterSettings) -> Repaired:
    """Judge every transcript by an aligner, and leave out, mark or weigh down the bad ones.

    An audit looks at a sample; a filter measures every clip that the audit did not look at.

    Raises:
        ConfigError: There is no such mode, or nothing says by which thresholds clips are judged.
        ManifestError: See `realign_manifest`; or the audit was made with another model.
        ModelError: The model cannot be used.
        ResourceError: The disk is full.
    """
    mode, out = _mode(settings.mode), request.out
    recorded = _audit_of(request, settings)
    scores = request.scores if recorded.folder is None else recorded.folder / SCORES_FILE
    check_output(request.source, out, request.scores, left := beside(out, "dropped"), settings.trusted)
    clips, findings = request.read()
    opened = recorded.open(request, _with_text(request.source, clips), scores)
    calibration, reference = recorded.judges(_trusted(request, settings, recorded), opened.measurer, settings)
    made = filter_clips(clips, mode=mode, measurer=opened.measurer, calibration=calibration, reference=reference)
    if mode == "drop":
        atomic_write_text(left, manifest_text(left, made.dropped))
    atomic_write_text(out, manifest_text(out, made.clips))
    body = {
        "manifest": str(out),
        "mode": mode,
        **_counts(made),
        **({"dropped_manifest": str(left)} if mode == "drop" else {}),
        "audit": None if recorded.folder is None else str(recorded.folder),
        "model": opened.model,
        "thresholds": dict(calibration.thresholds),
    }
    return Repaired(body=body, findings=[*findings, *made.findings])


def _mode(named: str) -> Mode:
    found: Mode | None = next((mode for mode in get_args(Mode) if mode == named), None)
    if found is None:
        raise ConfigError(f"--mode {named} is not known{suggest(named, MODES)}; allowed are {', '.join(MODES)}.")
    return found


def _counts(made: Filtered) -> dict[str, Any]:
    return {
        "clips": len(made.clips),
        "dropped": len(made.dropped),
        "judged": made.judged,
        "flagged": made.flagged,
        "bad_share": made.bad_share,
        "reasons": dict(made.reasons),
        "weight": sum(clip.weight for clip in made.clips),
    }


class _Recorded:
    """What the report of an audit says of how it was made (`api.audit`), or the defaults where there was none."""

    def __init__(self, folder: Path | None, report: AuditReport | None) -> None:
        self.folder = folder
        self._report = report
        self._settings: Mapping[str, Any] = {} if report is None else report.settings

    def text(self, name: str) -> str | None:
        """A setting that is text."""
        found = self._settings.get(name)
        return found if isinstance(found, str) else None

    def _number(self, name: str, default: float) -> float:
        found = self._settings.get(name)
        return default if found is None else float(found)

    def open(self, request: RepairRequest, clips: Sequence[Clip], scores: Path) -> OpenedMeasurer:
        """The aligner as the audit had it, unless the request names another.

        Raises:
            ManifestError: The audit's own has changed.
        """
        model = {} if self._report is None else self._report.model
        normalizer = "basic" if self._report is None else self._report.normalizer.get("name", "basic")
        precisions: dict[str | None, Precision] = {"bf16": "bf16", "fp16": "fp16"}
        contexts: dict[str | None, Context] = {"thinned": "thinned", "full": "full", "cut": "cut"}
        opened = open_measurer(
            request.model or model.get("checkpoint") or "",
            clips,
            aligner=request.aligner if request.aligner != "auto" else model.get("aligner") or "auto",
            settings=AlignerSettings(
                language=request.language or self.text("language"), text=self.text("text") or normalizer
            ),
            normalizer=normalizer,
            precision=precisions.get(self.text("precision"), "fp32"),
            context=contexts.get(self.text("context")),
            file=scores,
        )
        if (known := model.get("digest")) and known != opened.model["digest"]:
            raise ManifestError(
                f"the audit in {self.folder} was made with another aligner than {opened.model['checkpoint']} is now: "
                "its weights or settings have changed, and thresholds of one do not hold for the other. Audit again "
                "with `sonotune audit`."
            )
        return opened

    def judges(
        self, trusted: Sequence[Clip], measurer: Measurer, settings: FilterSettings
    ) -> tuple[Calibration, Reference | None]:
        """Thresholds, those of the audit where there is one, and the trusted clips by which others are judged."""
        report = self._report
        if report is not None and not trusted:
            return report.calibration, None
        reference = refer(
            trusted,
            measurer,
            thresholds="seed" if report is not None and report.calibration.method == "fixed" else "calibrated",
            false_positive_rate=self._number("false_positive_rate", settings.false_positive_rate),
            most=int(self._number("trusted_clips", settings.trusted_clips)),
            seed=int(self._number("seed", settings.seed)),
        )
        return reference.calibration if report is None else report.calibration, reference


def _audit_of(request: RepairRequest, settings: FilterSettings) -> _Recorded:
    """The audit that thresholds come from, or none where they are calibrated here."""
    place = audit_folder(request.source, settings.audit)
    if (place / REPORT_FILE).is_file() and (settings.audit is not None or not request.model):
        return _Recorded(place, read_report(place))
    if settings.audit is not None or not request.model:
        raise ConfigError(
            f"there is no audit in {place}. Run `sonotune audit data.train={request.source}` first, name its folder "
            "with --audit, or name --model and --trusted to calibrate thresholds here."
        )
    if settings.trusted is None:
        raise ConfigError(
            "--model needs --trusted: thresholds are calibrated on clips with right transcripts, of the same kind. "
            "Name such clips, or the folder of an audit with --audit."
        )
    return _Recorded(None, None)


def _trusted(request: RepairRequest, settings: FilterSettings, recorded: _Recorded) -> list[Clip]:
    """Trusted clips with transcripts; none where none are named."""
    source = settings.trusted or recorded.text("trusted")
    if source is None:
        return []
    clips = read_source(source, root=request.root, allow_outside_root=request.allow_outside_root)
    return fill_durations([clip for clip in clips if has_words(clip)])


# --- shared --------------------------------------------------------------------------------------


def read_clips(source: str, root: Path | None, *, outside: bool) -> tuple[list[Clip], list[Finding]]:
    """The clips of a source with their lengths, and what its reader noted."""
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
    read = [Path(format_of(one)[1]) for one in (source, *(one for one in others if isinstance(one, str)))]
    for place in (out, *(one for one in others if isinstance(one, Path))):
        if any(place.exists() and one.exists() and place.samefile(one) for one in read):
            raise ManifestError(f"{place} is what is read, and would be lost. Give OUT another name.")
    if not out.absolute().parent.is_dir():
        raise ManifestError(f"{out} cannot be written: there is no folder {out.parent}. Make it, or name another.")
    if out.is_dir():
        raise ManifestError(f"{out} is a folder. Name the manifest to write, such as {out / 'train.jsonl'}.")


def plain(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Findings as `--json` has them."""
    return [
        {"check": one.check, "severity": one.severity, "message": one.message, "clip_ids": list(one.clip_ids)}
        for one in findings
    ]


def _with_text(source: str, clips: Sequence[Clip], *, or_words: bool = False) -> list[Clip]:
    """The clips that an aligner can place, or that have placed words already.

    Raises:
        ManifestError: There are none.
    """
    worded = [clip for clip in clips if has_words(clip) or (or_words and clip.words)]
    if not worded:
        raise ManifestError(
            f"{source} has {counted(len(clips), 'clip')} and no transcript with words, and an aligner places a "
            "transcript in its audio. Give clips a `text`."
        )
    return worded
