"""Joins short clips of one speaker into longer recordings, and cuts long recordings at their pauses."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sonotune.audio.activity import energy_of_blocks, loud_frames, speech_spans
from sonotune.audio.io import read, read_blocks, write
from sonotune.data.manifest import write_manifest
from sonotune.data.windows import WINDOW_SLACK_S
from sonotune.errors import ManifestError
from sonotune.runs import generator
from sonotune.types import Clip, Word
from sonotune.wording import counted

logger = logging.getLogger(__name__)

SAMPLE_RATE_HZ: Final = 16_000


def concatenate_plan(
    clips: Sequence[Clip],
    *,
    min_duration_s: float = 1.0,
    max_duration_s: float = 15.0,
    gap_s: float = 0.15,
    seed: int = 0,
) -> list[tuple[Clip, ...]]:
    """Decide which clips are joined. Opens no file.

    Lengths are spread evenly between the limits: each recording draws its own target and takes clips of its speaker,
    in shuffled order, until the next would pass it. A clip without a speaker stands alone.

    Args:
        clips: The clips; `duration_s` must be known.
        min_duration_s: Shortest recording, in seconds with gaps.
        max_duration_s: Longest recording, in seconds with gaps.
        gap_s: Silence between two clips, in seconds.
        seed: Order and targets are a function of it.

    Returns:
        The clips of each recording; every clip at most once. What is left of a speaker and shorter than
        `min_duration_s`, and clips longer than `max_duration_s`, are left out and counted in the log.

    Raises:
        ManifestError: The limits contradict each other, or no recording can be made.
    """
    if not 0 < min_duration_s <= max_duration_s or gap_s < 0:
        raise ManifestError(
            f"recordings cannot be joined: found min_duration_s={min_duration_s:g}, max_duration_s={max_duration_s:g}, "
            f"gap_s={gap_s:g}; allowed are 0 < min <= max and no negative gap. Mend the limits."
        )
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in sorted(clips, key=lambda clip: clip.id):
        groups[f"clip {clip.id}" if clip.speaker is None else f"speaker {clip.speaker}"].append(clip)
    plan: list[tuple[Clip, ...]] = []
    for name, group in sorted(groups.items()):
        rng = generator(seed, "join", name)
        shuffled = [group[index] for index in rng.permutation(len(group))]
        plan += _cut(shuffled, min_duration_s, max_duration_s, gap_s, rng)
    left_out = len(clips) - sum(map(len, plan))
    if left_out:
        logger.info("%d of %d clips are in no recording: too long, or left over", left_out, len(clips))
    if not plan:
        raise ManifestError(
            f"no recording of {min_duration_s:g} to {max_duration_s:g} s can be joined: found "
            f"{counted(len(clips), 'clip')} of {counted(len(groups), 'speaker')}; allowed are "
            "clips of one speaker that fit. Widen the limits or add clips."
        )
    return plan


def _cut(
    clips: Sequence[Clip], min_duration_s: float, max_duration_s: float, gap_s: float, rng: np.random.Generator
) -> list[tuple[Clip, ...]]:
    recordings: list[tuple[Clip, ...]] = []
    current: list[Clip] = []
    seconds, target_s = 0.0, float(rng.uniform(min_duration_s, max_duration_s))
    for clip in clips:
        if clip.duration_s > max_duration_s:
            continue
        longer_s = seconds + (gap_s if current else 0.0) + clip.duration_s
        # Below the minimum a recording may pass its own target, never the maximum.
        if current and longer_s > (target_s if seconds >= min_duration_s else max_duration_s):
            if seconds >= min_duration_s:
                recordings.append(tuple(current))
            current, longer_s = [], clip.duration_s
            target_s = float(rng.uniform(min_duration_s, max_duration_s))
        current.append(clip)
        seconds = longer_s
    if current and seconds >= min_duration_s:
        recordings.append(tuple(current))
    return recordings


def join(
    clips: Sequence[Clip],
    folder: Path,
    *,
    min_duration_s: float = 1.0,
    max_duration_s: float = 15.0,
    gap_s: float = 0.15,
    limit: int | None = None,
    seed: int = 0,
) -> list[Clip]:
    """Join clips of the same speaker and write the recordings as 16 kHz WAV files with a manifest.

    Args:
        clips: The clips; see `concatenate_plan`.
        folder: Where `joined-NNNNNN.wav` and `manifest.jsonl` are written.
        min_duration_s: Shortest recording, in seconds.
        max_duration_s: Longest recording, in seconds.
        gap_s: Silence between two clips, in seconds.
        limit: At most this many recordings, drawn evenly from all speakers.
        seed: The same seed and clips give the same bytes.

    Returns:
        One clip a recording. Its text is the texts joined by spaces; language, domain and speaker stay where all parts
        agree; `extra["sources"]` has the ids of the parts.

    Raises:
        AudioError: A clip cannot be read.
        ManifestError: See `concatenate_plan`.
        ResourceError: The disk is full.
    """
    plan = concatenate_plan(clips, min_duration_s=min_duration_s, max_duration_s=max_duration_s, gap_s=gap_s, seed=seed)
    if limit is not None and limit < len(plan):
        chosen = generator(seed, "join", "limit").permutation(len(plan))[:limit]
        plan = [plan[index] for index in sorted(chosen)]
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    joined = [_join_one(parts, folder / f"joined-{number:06d}.wav", gap_s) for number, parts in enumerate(plan)]
    write_manifest(folder / "manifest.jsonl", joined)
    return joined


def _join_one(parts: Sequence[Clip], path: Path, gap_s: float) -> Clip:
    gap_S = np.zeros(round(gap_s * SAMPLE_RATE_HZ), dtype=np.float32)
    pieces: list[NDArray[np.float32]] = []
    words: list[Word] = []
    num_samples = 0
    for part in parts:
        if pieces:
            pieces.append(gap_S)
            num_samples += len(gap_S)
        shift_s = num_samples / SAMPLE_RATE_HZ
        words += [
            Word(text=word.text, start_s=word.start_s + shift_s, end_s=word.end_s + shift_s, score=word.score)
            for word in part.words
        ]
        waveform_S = read(
            part.path,
            start_s=part.start_s,
            duration_s=part.duration_s,
            channel=part.channel,
            sample_rate_hz=SAMPLE_RATE_HZ,
        )
        pieces.append(waveform_S)
        num_samples += len(waveform_S)
    write(path, np.concatenate(pieces), SAMPLE_RATE_HZ)
    texts = [part.text for part in parts if part.text]
    return Clip(
        id=path.stem,
        path=path,
        duration_s=num_samples / SAMPLE_RATE_HZ,
        sample_rate_hz=SAMPLE_RATE_HZ,
        text=" ".join(texts) if texts else None,
        label=tuple(dict.fromkeys(label for part in parts for label in part.label)),
        # Times of some words but not of others would look like silence where there is speech.
        words=tuple(words) if all(part.words for part in parts) else (),
        language=_agreed([part.language for part in parts]),
        domain=_agreed([part.domain for part in parts]),
        speaker=parts[0].speaker,
        weight=min(part.weight for part in parts),  # a transcript is as good as its worst part
        extra={"sources": " ".join(part.id for part in parts)},
    )


def _agreed(values: Sequence[str | None]) -> str | None:
    return values[0] if len(set(values)) == 1 else None


def cut_at_pauses(clip: Clip, max_duration_s: float, *, overlap_s: float = 0.0) -> list[Clip]:
    """Cut a clip that is too long for a model into pieces that are not, each cut in the middle of a pause.

    Args:
        clip: Its text is left behind: nothing says which words are in which piece.
        max_duration_s: Longest piece, in seconds. What is longer by `WINDOW_SLACK_S` at most is not cut.
        overlap_s: Where nobody pauses, the next piece begins so much before the end of the last; at most half of
            `max_duration_s`.

    Returns:
        The clip itself if it is short enough; otherwise pieces that cover it in order, with `#0`, `#1`, ... after its
        id. A cut is in the middle of the longest pause of the second half of the longest possible piece, or at that
        piece's end where nobody pauses.

    Raises:
        AudioError: The audio cannot be read.
    """
    longest_s = max_duration_s + WINDOW_SLACK_S  # differences of times are rounded; a rest of 1e-15 s is no piece
    if clip.duration_s <= longest_s:
        return [clip]
    blocks = read_blocks(
        clip.path, sample_rate_hz=SAMPLE_RATE_HZ, start_s=clip.start_s, duration_s=clip.duration_s, channel=clip.channel
    )
    spans = speech_spans(loud_frames(energy_of_blocks(blocks, SAMPLE_RATE_HZ)))
    pauses = [(before[1], after[0]) for before, after in itertools.pairwise(spans)]
    cuts_s: list[tuple[float, float]] = []  # where a piece ends, and where the next begins
    begin_s = 0.0
    while clip.duration_s - begin_s > longest_s:
        earliest_s, latest_s = begin_s + max_duration_s / 2, begin_s + max_duration_s
        inside = [(begin, end) for begin, end in pauses if earliest_s <= (begin + end) / 2 <= latest_s]
        if inside:
            begin, end = max(inside, key=lambda pause: pause[1] - pause[0])
            begin_s = (begin + end) / 2
            cuts_s.append((begin_s, begin_s))
        else:
            begin_s = latest_s - min(overlap_s, max_duration_s / 2)
            cuts_s.append((latest_s, begin_s))
    begins_s, ends_s = [0.0, *(begin for _, begin in cuts_s)], [*(end for end, _ in cuts_s), clip.duration_s]
    return [
        replace(_piece(clip, number, begin_s, end_s, max_duration_s), text=None, words=())
        for number, (begin_s, end_s) in enumerate(zip(begins_s, ends_s, strict=True))
    ]


def _piece(clip: Clip, number: int, begin_s: float, end_s: float, max_duration_s: float) -> Clip:
    """A span of a clip, no longer than allowed, under a number of its own; text and words are still the clip's."""
    return replace(
        clip,
        id=f"{clip.id}#{number}",
        start_s=clip.start_s + begin_s,
        duration_s=min(end_s - begin_s, max_duration_s),
    )


def cut_at_words(clip: Clip, max_duration_s: float) -> list[Clip]:
    """Cut a clip that is too long to train on between its words, each piece with the text that belongs to it.

    Args:
        clip: A clip whose `words` are placed in time.
        max_duration_s: Longest piece, in seconds. What is longer by `WINDOW_SLACK_S` at most is not cut.

    Returns:
        The clip itself if it is short enough; otherwise pieces with `#0`, `#1`, ... after its id, each cut in the
        middle of the longest pause between two words of the second half of the longest possible piece, and the last
        one at least a quarter as long as that. Empty where words and transcript cannot be told to be the same, times
        are out of order, or no two words are apart there.
    """
    longest_s = max_duration_s + WINDOW_SLACK_S
    if clip.duration_s <= longest_s:
        return [clip]
    texts, words = (clip.text or "").split(), clip.words
    times_s = [time_s for word in words for time_s in (word.start_s, word.end_s)]
    if not words or len(texts) != len(words) or times_s != sorted(times_s) or times_s[-1] > clip.duration_s + 0.1:
        return []
    cuts = [(0.0, 0)]  # where a piece begins, and its first word
    while clip.duration_s - cuts[-1][0] > longest_s:
        begin_s = cuts[-1][0]
        earliest_s = begin_s + max_duration_s / 2
        latest_s = min(begin_s + max_duration_s, clip.duration_s - max_duration_s / 4)
        gaps = [
            (after.start_s - before.end_s, (before.end_s + after.start_s) / 2, place)
            for place, (before, after) in enumerate(itertools.pairwise(words), 1)
        ]
        inside = [gap for gap in gaps if gap[0] > 0 and earliest_s <= gap[1] <= latest_s]
        if not inside:
            return []
        cuts.append(max(inside)[1:])
    ends = [*cuts[1:], (clip.duration_s, len(words))]
    return [
        replace(
            _piece(clip, number, begin_s, end_s, max_duration_s),
            text=" ".join(texts[first:stop]),
            words=tuple(
                replace(word, start_s=word.start_s - begin_s, end_s=word.end_s - begin_s) for word in words[first:stop]
            ),
        )
        for number, ((begin_s, first), (end_s, stop)) in enumerate(zip(cuts, ends, strict=True))
        if stop > first
    ]
