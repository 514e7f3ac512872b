"""Cuts recordings at the pauses between their words into clips, each with exactly what is said in it.

A piece has a core and a decode window. Cores are a partition: each second of a recording lies in exactly one of them,
and so does each word. The window is the audio of the clip: its words, and up to `context_s` of the pauses around them.
It may reach into the core of a neighbour, but only over silence, and it leaves out what is longer silent.

Chunks of a fixed length that overlap by a second, as they are usual in decoding, are not made: the words under the
overlap would stand in two texts, and words cut by an edge in none, so that a model learns to write what it does not
hear. Overlapping text where the audio overlaps would count these words twice.

Speech that the transcript passes over is a piece of its own, without text.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from sonotune.audio.activity import energy_of_blocks, loud_frames, speech_spans
from sonotune.audio.io import read_blocks
from sonotune.data.windows import WINDOW_SLACK_S
from sonotune.errors import AudioError, ConfigError
from sonotune.progress import phase
from sonotune.types import Clip, Finding, Word
from sonotune.wording import counted, long_time

Span = tuple[float, float]

PROVENANCE: Final = ("source_id", "source_start_s", "source_end_s")
"""Columns of the new manifest: the recording of a piece, and the core in seconds from the start of that recording."""
WORD_MARGIN_S: Final = 0.3
"""Speech so near to a word belongs to it: word times lie a little inside the sound."""
_SAMPLE_RATE_HZ: Final = 16_000
_BEYOND_S: Final = 0.1  # word times of other tools may pass the end by so much


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutting:
    """How recordings are cut.

    Attributes:
        max_duration_s: Longest clip, in seconds; a single word may be longer.
        context_s: Pause that a clip has on either side of its words at most, in seconds.
        untranscribed_s: Speech between two words, or before the first or after the last, that makes a piece without
            text where there is so much of it, in seconds.
    """

    max_duration_s: float = 15.0
    context_s: float = 1.0
    untranscribed_s: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.max_duration_s < math.inf:
            raise ConfigError(
                f"the longest clip is {self.max_duration_s:g} s; allowed is a number above 0, such as 15."
            )
        if not 0 <= self.context_s < self.max_duration_s / 2:
            raise ConfigError(
                f"the context is {self.context_s:g} s on either side of a clip of at most {self.max_duration_s:g} s; "
                "allowed is 0 to less than half of it, such as 1."
            )
        if not self.untranscribed_s > 0:
            raise ConfigError(
                f"untranscribed speech of {self.untranscribed_s:g} s; allowed is a number above 0, such as 1."
            )


class Piece(NamedTuple):
    """A piece of a recording, in seconds from its start.

    Attributes:
        core: What the piece stands for (begin, end); the cores of a recording follow each other without gap.
        window: Its audio (begin, end).
        first: Its first word.
        stop: The word after its last; `first` for speech without text.
    """

    core: Span
    window: Span
    first: int
    stop: int


class _Unit(NamedTuple):
    """Words that nothing parts: they overlap, or take no time."""

    start_s: float
    end_s: float
    first: int
    stop: int


def plan(
    words: Sequence[Word], duration_s: float, cutting: Cutting, speech: Sequence[Span] | None = None
) -> list[Piece]:
    """Decide where a recording is cut. Opens no file.

    A cut is in the middle of the longest pause of those that make a clip between half of the limit and the limit less
    its context; where there is none, the clip is as long as it can be. Words that overlap are not parted.

    Args:
        words: Of the recording, rising, at least one.
        duration_s: Length of the recording.
        cutting: The limits.
        speech: Where somebody speaks (begin, end), rising and apart; None where that is not known, which isolates
            nothing and keeps windows inside their cores.

    Returns:
        The pieces in order.
    """
    units = _units(words, duration_s)
    gaps = [
        (before.end_s if before else 0.0, after.start_s if after else duration_s)
        for before, after in itertools.pairwise([None, *units, None])
    ]
    bare = [_bare(gap, speech or (), first=not at, last=at == len(units)) for at, gap in enumerate(gaps)]
    passed_over = [sum(end - begin for begin, end in spans) >= cutting.untranscribed_s for spans in bare]
    pieces: list[Piece] = []
    begin_s, start = 0.0, 0
    if passed_over[0]:
        begin_s = _middle(bare[0][-1][1], units[0].start_s)
        pieces += _without_text(bare[0], (0.0, begin_s), 0, cutting)
    for at in range(1, len(gaps)):
        last = at == len(units)
        if not last and not passed_over[at]:
            continue
        end_s = _middle(units[at - 1].end_s, bare[at][0][0]) if passed_over[at] else duration_s
        runs = _runs(units[start:at], cutting)
        cuts = [_middle(before[-1].end_s, after[0].start_s) for before, after in itertools.pairwise(runs)]
        number = start
        for run, core in zip(runs, itertools.pairwise([begin_s, *cuts, end_s]), strict=True):
            before, after = gaps[number], gaps[number + len(run)]
            free = (
                _free_before(before, core[0], bare[number], speech),
                _free_after(after, core[1], bare[number + len(run)], speech),
            )
            pieces.append(Piece(core, _window(run, free, cutting), run[0].first, run[-1].stop))
            number += len(run)
        begin_s = end_s
        if passed_over[at]:
            until_s = duration_s if last else _middle(bare[at][-1][1], units[at].start_s)
            pieces += _without_text(bare[at], (begin_s, until_s), units[at - 1].stop, cutting)
            begin_s = until_s
        start = at
    return pieces


def _units(words: Sequence[Word], duration_s: float) -> list[_Unit]:
    units: list[_Unit] = []
    for index, word in enumerate(words):
        start_s, end_s = min(word.start_s, duration_s), min(word.end_s, duration_s)
        last = units[-1] if units else None
        if last and (start_s < last.end_s or start_s == end_s or last.start_s == last.end_s):
            units[-1] = _Unit(last.start_s, max(last.end_s, end_s), last.first, index + 1)
        else:
            units.append(_Unit(start_s, end_s, index, index + 1))
    return units


def _bare(gap: Span, speech: Sequence[Span], *, first: bool, last: bool) -> list[Span]:
    """Speech of a gap that belongs to no word beside it."""
    low, high = gap[0] + (0.0 if first else WORD_MARGIN_S), gap[1] - (0.0 if last else WORD_MARGIN_S)
    inside = [(max(begin, low), min(end, high)) for begin, end in speech if begin < high and end > low]
    return [(begin, end) for begin, end in inside if end > begin]


def _runs(units: Sequence[_Unit], cutting: Cutting) -> list[Sequence[_Unit]]:
    """Units that go into one clip each."""
    limit_s = cutting.max_duration_s
    runs: list[Sequence[_Unit]] = []
    start, end_s = 0, units[-1].end_s
    while end_s - units[start].start_s > limit_s and start < len(units) - 1:
        begin_s = units[start].start_s
        fitting = [at for at in range(start, len(units) - 1) if units[at].end_s - begin_s <= limit_s] or [start]
        long = [at for at in fitting if units[at].end_s - begin_s >= limit_s / 2]
        roomy = [at for at in long if units[at].end_s - begin_s <= limit_s - 2 * cutting.context_s]
        balanced = [at for at in roomy if end_s - units[at].end_s >= limit_s / 4]
        chosen = max(balanced or roomy or long or fitting[-1:], key=lambda at: (_pause_s(units, at), at))
        runs.append(units[start : chosen + 1])
        start = chosen + 1
    return [*runs, units[start:]]


def _pause_s(units: Sequence[_Unit], at: int) -> float:
    return units[at + 1].start_s - units[at].end_s


def _middle(begin_s: float, end_s: float) -> float:
    return (begin_s + end_s) / 2


def _free_after(gap: Span, border_s: float, bare: Sequence[Span], speech: Sequence[Span] | None) -> float:
    """How far audio may reach behind the last word before a gap."""
    reach_s = min([gap[1], *(begin for begin, _ in bare)])
    if speech is None or any(begin < border_s < end for begin, end in speech):
        return min(reach_s, border_s)
    return min([reach_s, *(begin for begin, _ in speech if begin >= border_s)])


def _free_before(gap: Span, border_s: float, bare: Sequence[Span], speech: Sequence[Span] | None) -> float:
    """How far audio may reach before the first word behind a gap."""
    reach_s = max([gap[0], *(end for _, end in bare)])
    if speech is None or any(begin < border_s < end for begin, end in speech):
        return max(reach_s, border_s)
    return max([reach_s, *(end for _, end in speech if end <= border_s)])


def _window(run: Sequence[_Unit], free: Span, cutting: Cutting) -> Span:
    """The audio of a run: its words, and of the pauses around them as much as may be and fits."""
    begin_s, end_s = run[0].start_s, run[-1].end_s
    room_s = max(0.0, cutting.max_duration_s - (end_s - begin_s))
    before_s = max(0.0, min(cutting.context_s, begin_s - free[0]))
    after_s = max(0.0, min(cutting.context_s, free[1] - end_s))
    before_s = min(before_s, max(room_s / 2, room_s - after_s))
    after_s = min(after_s, room_s - before_s)
    return (  # sums are rounded, and must not pass what is free
        max(begin_s - before_s, min(free[0], begin_s)),
        min(end_s + after_s, max(free[1], end_s)),
    )


def _without_text(bare: Sequence[Span], core: Span, word: int, cutting: Cutting) -> list[Piece]:
    """Speech that nobody transcribed, in parts of equal length where it is too long for one clip."""
    begin_s, end_s = bare[0][0], bare[-1][1]
    count = max(1, math.ceil((end_s - begin_s) / cutting.max_duration_s))
    edges = [begin_s + (end_s - begin_s) * part / count for part in range(count)] + [end_s]
    cores = [core[0], *edges[1:-1], core[1]]
    return [
        Piece(inside, window, word, word)
        for inside, window in zip(itertools.pairwise(cores), itertools.pairwise(edges), strict=True)
    ]


# --- clips ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Resegmented:
    """A corpus that was cut.

    Attributes:
        clips: In the order of the recordings.
        cut: Recordings that were cut.
        untranscribed: Pieces of speech without text.
        untranscribed_s: How long these are.
        findings: What was left out or kept whole, and why.
    """

    clips: tuple[Clip, ...]
    cut: int
    untranscribed: int
    untranscribed_s: float
    findings: tuple[Finding, ...]


def speech_in(clip: Clip) -> list[Span]:
    """Where somebody speaks in a clip (begin, end), in seconds from its start, by the energy of the audio.

    Raises:
        AudioError: The audio cannot be read.
    """
    blocks = read_blocks(
        clip.path,
        sample_rate_hz=_SAMPLE_RATE_HZ,
        start_s=clip.start_s,
        duration_s=clip.duration_s,
        channel=clip.channel,
        max_duration_s=None,
    )
    return speech_spans(loud_frames(energy_of_blocks(blocks, _SAMPLE_RATE_HZ)))


def resegment(
    clips: Sequence[Clip],
    cutting: Cutting,
    *,
    keep_untranscribed: bool = False,
    speech_of: Callable[[Clip], Sequence[Span]] = speech_in,
) -> Resegmented:
    """Cut recordings into clips no longer than a limit, each with its own text.

    A recording that fits and has no speech without text stays as it is. One whose words are not placed in time, or
    cannot be told to be those of its transcript, stays whole; its length is a finding.

    Args:
        clips: The recordings.
        cutting: The limits.
        keep_untranscribed: Whether pieces of speech without text are among the clips.
        speech_of: Tells where somebody speaks in a clip.
    """
    made: list[Clip] = []
    unknown: dict[str, list[Clip]] = {}
    unread: list[tuple[Clip, str]] = []
    silent: list[tuple[Clip, float]] = []
    beyond: list[Clip] = []
    cut = 0
    for clip in _shown(clips):
        if why := unplaced(clip):
            unknown.setdefault(why, []).append(clip)
            made.append(_named(clip, clip, (0.0, clip.duration_s)))
            continue
        try:
            speech: Sequence[Span] | None = speech_of(clip)
        except AudioError as error:
            speech = None
            unread.append((clip, str(error)))
        pieces = plan(clip.words, clip.duration_s, cutting, speech)
        if len(pieces) == 1 and clip.duration_s <= cutting.max_duration_s + WINDOW_SLACK_S:
            made.append(_named(clip, clip, pieces[0].core))
            continue
        cut += 1
        for piece, part in zip(pieces, clips_of(clip, pieces), strict=True):
            worded = piece.stop > piece.first
            if not worded:
                silent.append((part, part.duration_s))
            if worded or keep_untranscribed:
                made.append(part)
            if part.duration_s > cutting.max_duration_s + WINDOW_SLACK_S:
                beyond.append(part)
    findings = [
        *_kept_whole(unknown, cutting),
        *(_unread(clip, why) for clip, why in unread),
        *_untranscribed(silent, kept=keep_untranscribed),
        *_beyond(beyond, cutting),
    ]
    return Resegmented(
        clips=tuple(made),
        cut=cut,
        untranscribed=len(silent),
        untranscribed_s=sum(seconds for _, seconds in silent),
        findings=tuple(findings),
    )


def _shown(clips: Sequence[Clip]) -> Iterator[Clip]:
    """The clips, while it is shown how many are done."""
    with phase("cutting recordings", len(clips), "clips") as advance:
        for done, clip in enumerate(clips):
            yield clip
            advance(done + 1)


def unplaced(clip: Clip) -> str:
    """Why a clip cannot be cut at its words; empty where it can."""
    if not clip.words:
        return "have no words with times"
    if clip.text is not None and len(clip.text.split()) != len(clip.words):
        return "have other words in `words` than in `text`"
    starts_s = [word.start_s for word in clip.words]
    ends_s = [word.end_s for word in clip.words]
    if starts_s != sorted(starts_s) or max(ends_s) > clip.duration_s + _BEYOND_S:
        return "have words out of order, or beyond their end"
    return ""


def clips_of(clip: Clip, pieces: Sequence[Piece]) -> list[Clip]:
    """The pieces as clips, `#0`, `#1`, ... after the id, with the columns of `PROVENANCE`."""
    texts = [word.text for word in clip.words] if clip.text is None else clip.text.split()
    made = []
    for number, piece in enumerate(pieces):
        begin_s, end_s = piece.window
        worded = piece.stop > piece.first
        part = replace(
            clip,
            id=f"{clip.id}#{number}",
            start_s=clip.start_s + begin_s,
            duration_s=end_s - begin_s,
            text=" ".join(texts[piece.first : piece.stop]) if worded else None,
            words=tuple(
                replace(
                    word,
                    start_s=min(word.start_s, clip.duration_s) - begin_s,
                    end_s=min(word.end_s, clip.duration_s) - begin_s,
                )
                for word in clip.words[piece.first : piece.stop]
            ),
        )
        made.append(_named(part, clip, piece.core))
    return made


def _named(part: Clip, source: Clip, core: Span) -> Clip:
    """A piece that says where it comes from."""
    values = (source.id, repr(float(core[0])), repr(float(core[1])))
    return replace(part, extra={**part.extra, **dict(zip(PROVENANCE, values, strict=True))})


def _kept_whole(unknown: dict[str, list[Clip]], cutting: Cutting) -> list[Finding]:
    findings = []
    for why, clips in unknown.items():
        long = [clip for clip in clips if clip.duration_s > cutting.max_duration_s + WINDOW_SLACK_S]
        told = long or clips
        findings.append(
            Finding(
                check="resegment.kept_whole",
                severity="warning" if long else "note",
                message=f"{counted(len(told), 'recording')} {_form(why, len(told))} and "
                + (
                    f"{_form('stay', len(told))} longer than {cutting.max_duration_s:g} s "
                    f"({long_time(sum(clip.duration_s for clip in told))}): {_some(told)}. "
                    "Place their words with --model, or `sonotune data realign`."
                    if long
                    else f"{_form('stay', len(told))} as {'they are' if len(told) > 1 else 'it is'}."
                ),
                clip_ids=tuple(clip.id for clip in told),
                measured=max(clip.duration_s for clip in told),
                limit=cutting.max_duration_s,
                unit="s",
            )
        )
    return findings


def _form(words: str, count: int) -> str:
    """A verb in the number of its subject."""
    verb, _, rest = words.partition(" ")
    single = {"have": "has", "stay": "stays"}
    return " ".join(part for part in (verb if count > 1 else single[verb], rest) if part)


def _unread(clip: Clip, why: str) -> Finding:
    return Finding(
        check="resegment.unread",
        severity="warning",
        message=f"speech without text could not be looked for in {clip.id!r}: {why}",
        clip_ids=(clip.id,),
        path=str(clip.path),
    )


def _untranscribed(silent: Sequence[tuple[Clip, float]], *, kept: bool) -> list[Finding]:
    if not silent:
        return []
    seconds = sum(length_s for _, length_s in silent)
    outcome = "kept without text" if kept else "left out (--keep-untranscribed keeps such speech without text)"
    return [
        Finding(
            check="resegment.untranscribed",
            severity="warning",
            message=f"{counted(len(silent), 'piece')} of speech that the transcripts pass over, "
            f"{long_time(seconds)} in all, {'is' if len(silent) == 1 else 'are'} {outcome}: "
            f"{_some([clip for clip, _ in silent])}.",
            clip_ids=tuple(clip.id for clip, _ in silent),
            measured=seconds,
            unit="s",
        )
    ]


def _beyond(clips: Sequence[Clip], cutting: Cutting) -> list[Finding]:
    if not clips:
        return []
    return [
        Finding(
            check="resegment.too_long",
            severity="warning",
            message=f"{counted(len(clips), 'clip')} longer than {cutting.max_duration_s:g} s could not be cut, for no "
            f"pause parts their words: {_some(clips)}.",
            clip_ids=tuple(clip.id for clip in clips),
            measured=max(clip.duration_s for clip in clips),
            limit=cutting.max_duration_s,
            unit="s",
        )
    ]


def _some(clips: Sequence[Clip]) -> str:
    shown = ", ".join(repr(clip.id) for clip in clips[:3])
    return f"{shown} and {len(clips) - 3} more" if len(clips) > 3 else shown
