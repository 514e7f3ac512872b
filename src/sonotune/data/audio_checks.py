"""What the audio of clips is like: whether it can be read, is as long as its clip says, and holds a signal."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal

from sonotune.audio.activity import NO_SIGNAL_DB
from sonotune.audio.io import SPAN_TOLERANCE_S, measure, probe
from sonotune.audio.opening import MAX_MISSING_S
from sonotune.data.audio_files import enumerate_names
from sonotune.errors import AudioError, ManifestError
from sonotune.progress import phase
from sonotune.types import Clip, Finding

SILENT: Final = "audio.silent"
"""Check of clips without signal."""
_MOST_CHANNELS: Final = 8  # of a file that is silent, which are looked at one by one


def check_audio(
    clips: Sequence[Clip],
    mode: Literal["decode", "header"] = "decode",
    *,
    truncated: Literal["use", "leave_out", "stop"] = "use",
    silence_db: float | None = None,
    workers: int = 4,
) -> tuple[list[Clip], list[Finding]]:
    """Open every clip's audio and leave out what cannot be used.

    A file may end a little before its header or its clip says: up to 0.1 s and 5 % (`audio.opening`), as recorders and
    other tools leave it.

    Args:
        clips: The clips.
        mode: `decode` reads every sample, and so finds truncated files and NaN; `header` only opens the file.
        truncated: Clips that lack a little at their end are used as far as their file goes (`use`), left out together
            with those that lack more (`leave_out`), or bad as those are (`stop`).
        silence_db: Level below which a clip has no signal (`audio.activity.signal_level_db`), looked at where samples
            are; None looks at none.
        workers: Threads; decoding lets go of the interpreter lock.

    Returns:
        The clips kept, in order, none longer than its file, and one finding of severity error for each bad clip. Its
        check is `audio.` and the reason of `AudioError`, such as `audio.truncated`. One warning names all clips that
        were cut short or, as asked, left out for it: `audio.shortened`, `data.truncated`. A clip without signal is
        kept, with a warning `audio.silent`.
    """
    if mode not in ("decode", "header"):
        raise ManifestError(f"data.check: found {mode!r}; allowed are 'decode' and 'header'. Choose one of them.")
    look_at = partial(_look, decode=mode == "decode", silence_db=silence_db)
    results: list[_Look] = []
    with (
        phase("checking audio", len(clips), "clips") as advance,
        ThreadPoolExecutor(max_workers=max(1, workers)) as pool,
    ):
        for look in pool.map(look_at, clips):
            results.append(look)
            advance(len(results))
    if truncated == "stop":
        results = [look.refused() if look.missing_s else look for look in results]
    used = truncated == "use"
    short = [look for look in results if look.missing_s or (look.cut_off and not used)]
    if truncated == "leave_out":
        results = [look for look in results if not (look.missing_s or look.cut_off)]
    kept = [look.clip for look in results if look.usable]
    found = [look.finding for look in results if look.finding is not None]
    return kept, [*found, *([_shortened(short, len(clips), used=used)] if short and truncated != "stop" else [])]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What the audio of a clip is like.

    Attributes:
        clip: The clip, no longer than its file.
        missing_s: What its file lacks at the end, in seconds, where that is little.
        finding: Why it cannot be used (an error), or that it has no signal (a warning).
    """

    clip: Clip
    missing_s: float = 0.0
    finding: Finding | None = None

    @property
    def usable(self) -> bool:
        return self.finding is None or self.finding.severity != "error"

    @property
    def cut_off(self) -> bool:
        return self.finding is not None and self.finding.check == "audio.truncated"

    def refused(self) -> _Look:
        """The same where nothing may be missing."""
        message = (
            f"{self.clip.path} ends {self.missing_s:.3f} s before its header or its clip says. Fetch the file again, "
            "mend duration_s, or leave it out."
        )
        return _Look(clip=self.clip, finding=_bad(self.clip, "truncated", message))


def _look(clip: Clip, *, decode: bool, silence_db: float | None) -> _Look:
    duration_s = clip.duration_s or None
    try:
        measured = measure(clip.path, start_s=clip.start_s, duration_s=duration_s, channel=clip.channel, decode=decode)
        info, level_db = measured.info, measured.level_db
        found = None if level_db is None or silence_db is None else silent(clip, level_db, silence_db=silence_db)
    except AudioError as error:
        return _Look(clip=clip, finding=_bad(clip, error.reason, str(error)))
    except OSError as error:
        message = f"{clip.path} cannot be read: {error.strerror or error}."
        return _Look(clip=clip, finding=_bad(clip, "unreadable", message))
    beyond_s = 0.0 if duration_s is None else clip.start_s + duration_s - info.duration_s
    if beyond_s > SPAN_TOLERANCE_S:
        clip = replace(clip, duration_s=info.duration_s - clip.start_s)
        return _Look(clip=clip, missing_s=beyond_s, finding=found)
    to_the_end = duration_s is None or beyond_s > -SPAN_TOLERANCE_S
    return _Look(clip=clip, missing_s=info.missing_s if to_the_end else 0.0, finding=found)


def silent(clip: Clip, level_db: float, *, silence_db: float) -> Finding | None:
    """A warning where a clip has no signal; it names the channels of its file that have one.

    Args:
        clip: The clip.
        level_db: What `audio.io.measure` found.
        silence_db: Level below which there is no signal.
    """
    if level_db >= silence_db:
        return None
    channels = range(min(probe(clip.path).num_channels, _MOST_CHANNELS))
    heard = [place for place in channels if len(channels) > 1 and _level_db(clip, place) >= silence_db]
    constant = level_db <= NO_SIGNAL_DB
    loudest = "its samples are all alike" if constant else f"its loudest 25 ms are at {level_db:.0f} dB of full scale"
    named = " and ".join(map(str, heard))
    others = f"Channels {named} of the file have a signal" if len(heard) > 1 else f"Channel {named} of the file has one"
    others = others if heard else ""
    if others and clip.channel is None:
        others += ", and the channels cancel each other in their mean: name one in the column `channel`"
    return Finding(
        check=SILENT,
        severity="warning",
        message=f"{clip.path}: no signal, for {loudest} (data.silence_db={silence_db:g})."
        + (f" {others}." if others else ""),
        clip_ids=(clip.id,),
        path=str(clip.path),
        measured=level_db,
        limit=silence_db,
        unit="dB",
    )


def _level_db(clip: Clip, channel: int) -> float:
    """Of a channel that nobody asked for: one that cannot be read has nothing to offer."""
    try:
        found = measure(clip.path, start_s=clip.start_s, duration_s=clip.duration_s or None, channel=channel)
    except (AudioError, OSError):
        return NO_SIGNAL_DB
    return NO_SIGNAL_DB if found.level_db is None else found.level_db


def _bad(clip: Clip, reason: str, message: str) -> Finding:
    return Finding(check=f"audio.{reason}", severity="error", message=message, clip_ids=(clip.id,), path=str(clip.path))


def _shortened(short: Sequence[_Look], clips: int, *, used: bool) -> Finding:
    """Names the clips that end early."""
    most_s = max(look.missing_s for look in short)
    names = enumerate_names([look.clip.id for look in short])
    if used:
        what = f"end up to {most_s:.3f} s before their header or manifest says, and are used as far as their file goes"
    else:
        what = "end before their header or manifest says, and are left out"
    return Finding(
        check="audio.shortened" if used else "data.truncated",
        severity="warning",
        message=f"{len(short)} of {clips} clips {what} (data.truncated={'use' if used else 'leave_out'}): {names}.",
        clip_ids=tuple(look.clip.id for look in short),
        measured=most_s if used else float(len(short)),
        limit=MAX_MISSING_S if used else 0.0,
        unit="s" if used else "clips",
    )
