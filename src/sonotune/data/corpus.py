"""The clips of a run: read, filtered, checked, split; every clip that is left out is a finding."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from sonotune.data import importers, manifest, splits
from sonotune.data.audio_checks import SILENT, check_audio
from sonotune.data.audio_files import enumerate_names
from sonotune.data.audio_root import root_that_holds
from sonotune.data.split_corpus import way_that_works
from sonotune.errors import GateError, ManifestError
from sonotune.registry import is_asset, resolve_asset, split_source
from sonotune.runs import generator
from sonotune.types import SILENCE_DB, Clip, Finding, Severity

logger = logging.getLogger(__name__)

NO_SIGNAL: Final = "data.no_signal"
"""Check of training clips that are left out because their transcript has words and their audio no signal."""
_SHOWN: Final = 5
_SHOWN_REASONS: Final = 3

# Settings of the data section that `load_corpus` takes, by the same names.
CORPUS_SETTINGS: Final = {
    "root",
    "allow_outside_root",
    "min_duration_s",
    "max_duration_s",
    "check",
    "max_bad_fraction",
    "truncated",
    "eval_speakers",
    "eval_fraction",
    "leaks",
    "empty_texts",
    "silence_db",
    "limit",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Clips by split, what was left out, and digests of what was kept."""

    splits: dict[str, list[Clip]]
    findings: tuple[Finding, ...]
    digests: dict[str, str]


def load_corpus(
    sources: dict[str, str],
    *,
    root: Path | None,
    allow_outside_root: bool,
    min_duration_s: float,
    max_duration_s: float | None,
    check: Literal["decode", "header"],
    max_bad_fraction: float,
    truncated: Literal["use", "leave_out", "stop"],
    eval_speakers: Sequence[str],
    eval_fraction: float,
    leaks: Literal["report", "stop"],
    limit: int | None,
    seed: int,
    empty_texts: Literal["leave_out", "learn"] = "leave_out",
    silence_db: float = SILENCE_DB,
    require: Literal["text", "label"] | None = "text",
    tell: Callable[[Sequence[Finding]], None] = lambda findings: None,
) -> Corpus:
    """Load every split that is named; make the evaluation split by speaker where it is not.

    The limits of length are for training: what is scored is every clip that can be read and says what it is, so that a
    score does not depend on them. An empty transcript says that nothing is said: it is scored, and trained on if asked
    for. A clip without signal whose transcript has words is wrong in any case: it is not trained on.

    Args:
        sources: Split name -> manifest or `format:source`.
        root: Folder that audio paths must stay in; None means each manifest's own.
        allow_outside_root: Let paths leave the root.
        min_duration_s: Shorter clips are not trained on.
        max_duration_s: Longer clips are not trained on; None sets no limit here, and the model's window does later.
        check: Decode every clip, or read headers only.
        max_bad_fraction: Share of unusable files above which nothing is trained.
        truncated: What becomes of files that end before their header or manifest says; see `audio_checks.check_audio`.
        eval_speakers: Speakers held out when no evaluation split is named.
        eval_fraction: Share of the speech held out otherwise.
        leaks: Whether recordings that are trained on and scored are findings, or stop the run.
        limit: Keep so many clips of each split, drawn by the seed.
        seed: Of the split.
        empty_texts: Whether clips with an empty transcript are trained on.
        silence_db: Level below which a clip has no signal, in dB of full scale.
        require: What every clip must have: a transcript, a class, or neither.
        tell: Hears of findings as they come, for a later check may refuse the clips.

    Raises:
        ManifestError: A source cannot be read, a split is empty, too many files are bad, or one is truncated and
            `truncated` is `stop`.
        GateError: Recordings are trained on and scored, and `leaks` is `stop`.
    """
    found: dict[str, list[Clip]] = {}
    findings: list[Finding] = []
    silent: dict[str, dict[str, Finding]] = {}

    def found_out(more: Sequence[Finding]) -> None:
        findings.extend(more)
        tell(more)

    for name, source in sources.items():
        noted: list[Finding] = []
        clips = read_source(source, root=root, allow_outside_root=allow_outside_root, findings=noted)
        found_out(noted)
        if not clips:
            raise ManifestError(f"data.{name}={source} has no clips. Check the file, or leave the setting out.")
        clips = _limited(clips, limit, seed, name)
        sound, looked = check_audio(clips, mode=check, truncated=truncated, silence_db=silence_db)
        silent[name] = {one.clip_ids[0]: one for one in looked if one.check == SILENT}
        looked = [one for one in looked if one.check != SILENT]
        found_out(looked)
        _refuse_bad(
            name,
            looked,
            len(clips),
            max_bad_fraction=max_bad_fraction,
            truncated=truncated,
            root=root or _folder_of(source),
        )
        found[name], dropped = _filtered(
            name, sound, min_duration_s=0.0, max_duration_s=None, require=require, empty_texts=True, before=looked
        )
        found_out(dropped)
    if "train" in found and "eval" not in found:
        fractions = None if eval_speakers else {"train": 1 - eval_fraction, "eval": eval_fraction}
        try:
            found |= splits.split_by_speaker(
                found["train"], fractions=fractions, eval_speakers=tuple(eval_speakers), seed=seed
            )
        except ManifestError as error:
            way = None if eval_speakers else way_that_works(found["train"], 2, but="speaker")
            divide = f"Run `sonotune data split {sources['train']} FOLDER --by {way}`, or name" if way else "Name"
            raise ManifestError(
                f"no evaluation clips could be held out. {divide} them with data.eval. What stopped it: {error}"
            ) from error
    for name, clips in found.items():  # after the split: what is held out does not depend on it
        of_source = silent.get(name, silent.get("train", {}))
        found[name], looked = _without_signal(name, clips, of_source, require=require)
        found_out(looked)
    if "train" in found:
        found["train"], dropped = _filtered(
            "train",
            found["train"],
            min_duration_s=min_duration_s,
            max_duration_s=max_duration_s,
            require=require,
            empty_texts=empty_texts == "learn",
            before=findings,
        )
        found_out(dropped)
        scored: dict[str, list[Clip]] = {other: found[other] for other in ("eval", "test") if other in found}
        for shared in splits.check_leaks(found["train"], scored).values():
            found_out(shared)
            if leaks == "stop":
                _refuse_leaks(shared)
    digests = {name: manifest.digest(clips) for name, clips in found.items()}
    return Corpus(splits=found, findings=tuple(findings), digests=digests)


def _refuse_leaks(leaks: Sequence[Finding]) -> None:
    """The same recording on both sides makes a score worthless; the same speaker may be what a user wants."""
    shared = [leak.message for leak in leaks if leak.check in ("leak.span", "leak.audio")]
    if shared:
        raise GateError(f"{' '.join(shared)} Nothing was trained; data.leaks=report would train.")


def _limited(clips: list[Clip], limit: int | None, seed: int, split: str) -> list[Clip]:
    if limit is None or limit >= len(clips):
        return clips
    drawn = generator(seed, "limit", split).choice(len(clips), size=limit, replace=False)
    return [clips[index] for index in sorted(drawn.tolist())]


def read_source(
    source: str,
    *,
    root: Path | None = None,
    allow_outside_root: bool = False,
    options: Mapping[str, Any] | None = None,
    findings: list[Finding] | None = None,
) -> list[Clip]:
    """Clips of a manifest path, `assets:NAME` or `IMPORTER:SOURCE`.

    Args:
        source: What to read.
        root: Folder that audio paths must stay in, for importers that have one.
        allow_outside_root: Let paths leave it.
        options: Further options of the importer, such as `split`.
        findings: Where the importer notes what it assumed and left out; the log where None.

    Raises:
        ManifestError: It cannot be read, or its importer has no such option.
    """
    format_name, place = format_of(source, options or ())
    fence = {"root": root, "allow_outside_root": allow_outside_root}
    known = importers.options_of(format_name)
    given: dict[str, Any] = {name: value for name, value in fence.items() if name in known} | dict(options or {})
    return importers.load(place, format=format_name, findings=findings, **given)


def format_of(source: str, options: Collection[str] = ()) -> tuple[str, str]:
    """The importer that reads a source, named by the user or proven by the files, and the place of the source.

    Args:
        source: As for `read_source`.
        options: Names of the options that the importer is given.

    Raises:
        ManifestError: Nothing is there, or it looks like nothing we know.
    """
    format_name, rest = split_source(source)
    place = str(resolve_asset(rest)) if is_asset(rest) else rest
    if format_name == "auto":
        format_name = importers.sniff(place)
        if format_name == "jsonl" and not set(options) <= set(importers.options_of("jsonl")):
            format_name = "json"  # which reads our own manifests too, with the columns that the user names
    return format_name, place


def _refuse_bad(
    split: str,
    findings: Sequence[Finding],
    clips: int,
    *,
    max_bad_fraction: float,
    truncated: Literal["use", "leave_out", "stop"],
    root: Path,
) -> None:
    """Stop where audio is too bad, or truncated and that is to stop."""
    bad = [finding for finding in findings if finding.severity == "error"]
    cut = [finding for finding in bad if finding.check == "audio.truncated"]
    if cut and truncated == "stop":
        raise _refusal(f"{len(cut)} of {clips} clips of data.{split} are truncated (data.truncated=stop)", cut)
    refuse_too_many(split, bad, clips, max_bad_fraction=max_bad_fraction, root=root)


def _folder_of(source: str) -> Path:
    """What the paths of a source are relative to, where nothing else is said."""
    place = Path(format_of(source)[1])
    return place if place.is_dir() else place.parent


def _without_signal(
    split: str, clips: Sequence[Clip], silent: Mapping[str, Finding], *, require: Literal["text", "label"] | None
) -> tuple[list[Clip], list[Finding]]:
    """Clips that stay, and what is known of those without signal.

    With words in its transcript such a clip is left out of training, and a warning where it is scored; without, it is
    a note.
    """
    without = [clip for clip in clips if clip.id in silent]
    wordy = [clip.id for clip in without if require == "text" and manifest.has_words(clip)]
    others = [clip.id for clip in without if clip.id not in set(wordy)]
    kept = list(clips)
    findings = []
    if split == "train" and wordy:
        kept = [clip for clip in clips if clip.id not in set(wordy)]
        what = "have words in their transcript and no signal in their audio, and are left out (data.silence_db)"
        findings.append(_silent_clips(NO_SIGNAL, "warning", split, wordy, silent, len(clips), what))
    elif wordy:
        what = "have no signal in their audio and words in their transcript, which are scored"
        findings.append(_silent_clips(SILENT, "warning", split, wordy, silent, len(clips), what))
    if others:
        findings.append(_silent_clips(SILENT, "note", split, others, silent, len(clips), "have no signal"))
    return kept, findings


def _silent_clips(
    check: str, severity: Severity, split: str, ids: Sequence[str], silent: Mapping[str, Finding], clips: int, what: str
) -> Finding:
    """Names the clips, and an example of each of the first reasons."""
    examples: dict[str, str] = {}
    for name in ids:
        found = silent[name]
        examples.setdefault(found.message.removeprefix(f"{found.path}: "), name)
    shown = " ".join(f"{name!r}: {reason}" for reason, name in list(examples.items())[:_SHOWN_REASONS])
    return Finding(
        check=check,
        severity=severity,
        message=f"{len(ids)} of {clips} clips of data.{split} {what}, such as {shown}",
        clip_ids=tuple(ids),
        measured=float(len(ids)),
        unit="clips",
    )


def _filtered(
    name: str,
    clips: list[Clip],
    *,
    min_duration_s: float,
    max_duration_s: float | None,
    require: Literal["text", "label"] | None,
    empty_texts: bool,
    before: Sequence[Finding] = (),
) -> tuple[list[Clip], list[Finding]]:
    kept, dropped = manifest.filter_clips(
        clips,
        min_duration_s=min_duration_s,
        max_duration_s=max_duration_s,
        require=require,
        empty_texts=empty_texts,
    )
    for finding in dropped:
        logger.info("%s", finding.message)
    if not kept:
        reasons = "; ".join(finding.message for finding in [*dropped, *reversed(before)][:3])
        raise ManifestError(f"no clip of data.{name} is left: {reasons}")
    return kept, dropped


def refuse_too_many(
    split: str, bad: Sequence[Finding], clips: int, *, max_bad_fraction: float, root: Path | None = None
) -> None:
    """Stop before training when too many clips of a split cannot be used.

    Args:
        split: Its name.
        bad: A finding for each clip that cannot be used.
        clips: How many clips the split has with them.
        max_bad_fraction: Share that may be bad; all of them never.
        root: Folder that missing files were looked for in.

    Raises:
        ManifestError: There are more.
    """
    if len(bad) <= max_bad_fraction * clips and len(bad) < clips:
        return
    allowed = f"at most {max_bad_fraction:.0%} may be bad (data.max_bad_fraction)"
    do = []
    if any(finding.check == "audio.truncated" for finding in bad):
        do.append("data.truncated=leave_out leaves out files that are cut off, and does not count them as bad.")
    raise _refusal(f"{len(bad)} of {clips} clips of data.{split} cannot be used; {allowed}", bad, do=do, root=root)


def _refusal(what: str, bad: Sequence[Finding], *, do: Sequence[str] = (), root: Path | None = None) -> ManifestError:
    """Says the first reasons, each once, and lists all clips; files that are missing are one reason."""
    missing = [finding for finding in bad if finding.check == "audio.missing"]
    shared: dict[str, list[Finding]] = {}  # a reason -> the findings that give it
    for finding in bad:
        if len(missing) > 1 and finding.check == "audio.missing":
            continue
        name = f"clip {finding.clip_ids[0]!r}" if finding.clip_ids else ""
        shared.setdefault(finding.message.removeprefix(name), []).append(finding)
    lines = [
        f"  - {same[0].message}{f' The same holds for {len(same) - 1} more.' if len(same) > 1 else ''}"
        for same in shared.values()
    ]
    if len(missing) > 1:
        names = enumerate_names([str(finding.path) for finding in missing], most=3)
        lines.insert(0, f"  - {len(missing)} files do not exist: {names}.")
    paths = [Path(str(finding.path)) for finding in missing]
    if paths and root is not None and (other := root_that_holds(paths, root)) is not None:
        do = [f"Such files are in {other}: set data.root={other}.", *do]
    heading = f"{what}. {'They are' if len(lines) <= _SHOWN else 'The first'}:"
    listing = [f"{', '.join(map(repr, finding.clip_ids))}\t{finding.message}" for finding in bad]
    return ManifestError("\n".join([heading, *lines[:_SHOWN], *do])).listed(listing)
