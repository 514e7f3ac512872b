"""What an import says about the clips it gives: which audio is not there or does not open, and what all clips lack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from sonotune.data.audio_checks import check_audio
from sonotune.data.audio_files import enumerate_names
from sonotune.data.audio_root import root_that_holds
from sonotune.data.text import says_something
from sonotune.errors import ManifestError
from sonotune.types import Clip, Finding
from sonotune.wording import counted

_EXAMPLES: Final = 3
_REASONS: Final = {"missing": "do not exist", "span": "are shorter than the span that their clip names"}


def check_clips(clips: Sequence[Clip], *, source: str, place: Path) -> list[Finding]:
    """Open the header of every clip's audio, and count texts, classes and speakers.

    Args:
        clips: The clips of an import.
        source: What was imported, for messages.
        place: The file or folder of it; where audio is missing, its neighbours are looked at.

    Returns:
        One finding for each reason for which audio cannot be used, and one for each thing that no clip has.

    Raises:
        ManifestError: Not one clip can be used.
    """
    _, found = check_audio(clips, mode="header", workers=8)
    bad = [finding for finding in found if finding.severity == "error"]
    by_reason: dict[str, list[Finding]] = {}
    for finding in bad:
        by_reason.setdefault(finding.check.removeprefix("audio."), []).append(finding)
    findings = [_unusable(reason, found, len(clips), place) for reason, found in by_reason.items()]
    if len(bad) == len(clips):
        raise ManifestError(
            f"no clip of {source} can be used, and nothing is written. " + " ".join(one.message for one in findings)
        )
    stay = "They stay in the manifest, and a run counts them as bad (data.max_bad_fraction)."
    unusable = [replace(one, message=f"{one.message} {stay}") for one in findings]
    return [*unusable, *(_short(one) for one in found if one.check == "audio.shortened"), *_lacking(clips)]


def check_durations(clips: Sequence[Clip]) -> list[Finding]:
    """A finding where clips have no duration: nothing says it, and their audio does not open."""
    unknown = [clip for clip in clips if clip.duration_s == 0]
    if not unknown:
        return []
    paths = list(dict.fromkeys(str(clip.path) for clip in unknown))
    return [
        Finding(
            check="audio.unreadable",
            severity="warning",
            message=f"the audio of {len(unknown)} of {len(clips)} clips does not exist or does not open, and nothing "
            f"says how long they are: {enumerate_names(paths)}",
            clip_ids=tuple(clip.id for clip in unknown),
            measured=float(len(unknown)),
            limit=0.0,
            unit="clips",
        )
    ]


def _short(found: Finding) -> Finding:
    """Of clips whose file ends a little early: what is done about it is for the run to say."""
    names = enumerate_names(found.clip_ids)
    clips = f"{counted(len(found.clip_ids), 'clip')} {'ends' if len(found.clip_ids) == 1 else 'end'}"
    message = f"{clips} up to {found.measured:.3f} s before the header or the table says: {names}"
    return replace(found, message=f"{message}. A run uses them as far as they go (data.truncated).")


def _unusable(reason: str, found: Sequence[Finding], clips: int, place: Path) -> Finding:
    what = _REASONS.get(reason, f"cannot be read ({reason.replace('_', ' ')})")
    paths = list(dict.fromkeys(finding.path or "" for finding in found))
    if reason == "missing":
        more = f" and {len(paths) - _EXAMPLES} more" if len(paths) > _EXAMPLES else ""
        told = f"{', '.join(paths[:_EXAMPLES])}{more}. {_elsewhere(paths, place)}"
    elif reason == "span":
        first = found[0].message.partition(" Correct ")[0]  # the columns of this source may have other names
        told = f"the first is {first} Times are in seconds from the start of a file."
    else:
        told = f"the first is {found[0].message}"
    return Finding(
        check=f"audio.{reason}",
        severity="warning",
        message=f"the audio files of {len(found)} of {clips} clips {what}: {told}",
        clip_ids=tuple(clip_id for finding in found for clip_id in finding.clip_ids),
        measured=float(len(found)),
        limit=0.0,
        unit="clips",
    )


def _elsewhere(paths: Sequence[str], place: Path) -> str:
    """The folder near the source in which missing files lie, as the option that makes them found."""
    folder = place if place.is_dir() else place.parent
    if (other := root_that_holds([Path(path) for path in paths], folder)) is not None:
        return f"Such files are in {other}: --root {other} takes the paths from there."
    return "Check the paths, or name the folder that they are relative to with --root."


def _lacking(clips: Sequence[Clip]) -> list[Finding]:
    texts = sum(says_something(clip.text or "") for clip in clips)
    labels = sum(bool(clip.label) for clip in clips)
    findings = []
    if not texts:
        findings.append(
            Finding(
                check="import.no_texts",
                severity="note" if labels else "warning",
                message="0 texts: no clip has a transcript"
                + (f"; {labels} have a class." if labels else ", and none a class. --text-column names its column."),
            )
        )
    elif texts < len(clips) and not labels:
        findings.append(
            Finding(
                check="import.no_texts",
                severity="note",
                message=f"{len(clips) - texts} of {len(clips)} clips have no text, or one that says nothing.",
            )
        )
    if not any(clip.speaker for clip in clips):
        findings.append(
            Finding(
                check="import.no_speakers",
                severity="note",
                message="0 speakers: no clip names its speaker. Splits then go by file, and intervals by clip.",
            )
        )
    return findings
