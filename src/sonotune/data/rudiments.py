"""The 40 international drum rudiments of the Percussive Arts Society (PAS), played by synthetic drums.

Each rudiment is a line of text in `RUDIMENTS`, read from left to right:

    1/4:   from here on a stroke lasts this share of a beat until the next one
    R  L   a stroke of the right or left hand
    R>     with an accent
    fR     a flam: one soft grace note of the other hand, 20 to 35 ms before
    dR     a drag: two soft grace notes of the other hand, about 40 ms apart
    zR     a buzz: the stick is pressed into the head and bounces until the next stroke
    ~      at the end: every other time the hands are exchanged, as in paradiddles (RLRR LRLL)

So "1/4: R> L R R ~" are four sixteenths, the first with an accent, then the same with the hands exchanged. Where PAS
writes 6/8, a beat is a dotted quarter. Names, order and stickings are those of the PAS sheet; its rolls are written as
tremolos, and here as the thirty-seconds that are played.

A corpus is planned first, clip by clip, and rendered by as many processes as wanted: all that is random in a clip is a
function of the seed and its id. The kits of `eval` and `test` are heard in no other split. Shape letters: S samples.
"""

from __future__ import annotations

import errno
import functools
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from sonotune.audio import io
from sonotune.data.drums import KITS, ROOMS, Hand, Hit, play, record
from sonotune.data.manifest import read_manifest
from sonotune.data.shards import AUDIO_FILES, GRID_SAMPLES, SAMPLE_RATE_HZ, render_shards, write_splits
from sonotune.data.speech_plans import AudioFormat
from sonotune.errors import ConfigError, ManifestError
from sonotune.runs import clear_drafts, generator, write_error
from sonotune.types import Clip

logger = logging.getLogger(__name__)

Ornament = Literal["", "f", "d", "z"]

RUDIMENTS: Final[Mapping[str, str]] = {
    # I. Rolls: single strokes, bounces, doubles
    "single_stroke_roll": "1/8: R L R L R L R L",
    "single_stroke_four": "1/6: R L R 1/2: L",
    "single_stroke_seven": "1/6: R L R L R L 1: R ~",
    "multiple_bounce_roll": "1/4: zR zL zR zL",
    "triple_stroke_roll": "1/6: R R R L L L",
    "double_stroke_open_roll": "1/8: R R L L R R L L",
    "five_stroke_roll": "1/8: R R L L 1/2: R> ~",
    "six_stroke_roll": "1/4: R> 1/8: L L R R 1/4: L>",
    "seven_stroke_roll": "1/8: R R L L R R 1/4: L>",
    "nine_stroke_roll": "1/8: R R L L R R L L 1: R> ~",
    "ten_stroke_roll": "1/8: R R L L R R L L 1/2: R> L>",
    "eleven_stroke_roll": "1/8: R R L L R R L L R R 3/4: L>",
    "thirteen_stroke_roll": "1/8: R R L L R R L L R R L L 1/2: R> ~",
    "fifteen_stroke_roll": "1/8: R R L L R R L L R R L L R R 1/4: L>",
    "seventeen_stroke_roll": "1/8: R R L L R R L L R R L L R R L L 1: R> ~",
    # II. Diddles
    "single_paradiddle": "1/4: R> L R R ~",
    "double_paradiddle": "1/6: R> L R L R R ~",
    "triple_paradiddle": "1/4: R> L R L R L R R ~",
    "single_paradiddle_diddle": "1/6: R> L R R L L",
    # III. Flams
    "flam": "1/2: fR ~",
    "flam_accent": "1/3: fR> L R ~",
    "flam_tap": "1/4: fR> R ~",
    "flamacue": "1/4: fR L> R L 1: fR ~",
    "flam_paradiddle": "1/4: fR> L R R ~",
    "single_flammed_mill": "1/4: fR> R L R ~",
    "flam_paradiddle_diddle": "1/6: fR> L R R L L ~",
    "pataflafla": "1/4: fR> L R fL>",
    "swiss_army_triplet": "1/3: fR> R L",
    "inverted_flam_tap": "1/4: fR> L ~",
    "flam_drag": "1/3: fR> 1/6: L L 1/3: R ~",
    # IV. Drags
    "drag": "1/2: dR ~",
    "single_drag_tap": "1/2: dR L> ~",
    "double_drag_tap": "1/3: dR dR L> ~",
    "lesson_25": "1/4: dR L 1/2: R>",
    "single_dragadiddle": "1/8: R> R 1/4: L R R ~",
    "drag_paradiddle_1": "1/3: R> 1/6: dR L R R ~",
    "drag_paradiddle_2": "1/2: R> dR 1/4: dR L R R ~",
    "single_ratamacue": "1/6: dR L R 1/2: L> ~",
    "double_ratamacue": "1/2: dR 1/6: dR L R 1/2: L> ~",
    "triple_ratamacue": "1/2: dR dR 1/6: dR L R 1/2: L> ~",
}
LABELS: Final = tuple(RUDIMENTS)
# Corpora by name -> their own number of training clips.
RUDIMENT_CORPORA: Final[Mapping[str, int]] = {"rudiments": 4000, "rudiments_tiny": 240}
SPLITS: Final = ("train", "eval", "test")

_ORNAMENTS: Final[Mapping[str, Ornament]] = {"f": "f", "d": "d", "z": "z"}
_GRACES: Final[Mapping[Ornament, int]] = {"": 0, "f": 1, "d": 2, "z": 0}
_OTHER: Final[Mapping[Hand, Hand]] = {"R": "L", "L": "R"}
SHARD_CLIPS: Final = 50
"""Clips a process renders before it asks for more. Changes nothing in the output."""
_SEED: Final = 1  # ast-nano learned from seed 0
_CLIP_BYTES: Final = 130_000  # of a file of three seconds with its two neighbours in eval and test
_TEMPO_BPM: Final = (60.0, 130.0)
# From the first stroke to the last; with silence before and ringing after, clips take 1.5 to 4 s.
_PLAYING_S: Final = (1.2, 3.0)
_SHORTEST_S: Final = 1.5
_LEAD_S: Final = (0.15, 0.5)
_TAIL_S: Final = (0.25, 0.5)
_JITTER_S: Final = (0.001, 0.006)
_LEFT_HANDED: Final = 0.2
_ACCENT: Final = 1.0
_TAP: Final = 0.5
_GRACE: Final = 0.2
# The second stroke of a diddle falls by itself.
_REBOUND: Final = 0.8
_VELOCITY_SPREAD: Final = 0.08
_FLAM_S: Final = (0.020, 0.035)
_DRAG_S: Final = (0.036, 0.046)
_BOUNCE_S: Final = 0.026


@dataclass(frozen=True, slots=True, kw_only=True)
class Stroke:
    """One stroke of a rudiment.

    Attributes:
        at: When, in beats from the start of the rudiment.
        step: Beats until the next stroke.
        hand: Which.
        accent: Whether it is loud.
        ornament: `f` flam, `d` drag, `z` buzz, or none.
        rebound: Strokes of the same hand just before it, at most a third of a beat apart; none under a grace note.
    """

    at: Fraction
    step: Fraction
    hand: Hand
    accent: bool = False
    ornament: Ornament = ""
    rebound: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRudiment:
    """One clip that is to be played.

    Attributes:
        id: Unique in the plan; together with a seed the source of all that is random in the sound.
        label: One of `LABELS`.
        kit: One of `KITS`.
        room: One of `ROOMS`.
        split: Manifest it belongs to.
        tempo_bpm: Beats a minute.
        passes: How often the rudiment is played.
        lead_s: Silence before the first main stroke; a grace note may fall into its end.
        tail_s: Ringing kept after the last stroke.
        jitter_s: Standard deviation of a stroke's time.
        peak_db: Peak of the clip against full scale.
        left_handed: Whether the left hand plays what is written for the right.
        nearer_db: How much nearer than usual the microphone is.
    """

    id: str
    label: str
    kit: str = "maple_snare"
    room: str = "studio"
    split: str = "train"
    tempo_bpm: float = 100.0
    passes: int = 2
    lead_s: float = 0.2
    tail_s: float = 0.3
    jitter_s: float = 0.0
    peak_db: float = -3.0
    left_handed: bool = False
    nearer_db: float = 0.0


# --- what is written -----------------------------------------------------------------------------


@functools.cache
def strokes(label: str, passes: int = 1) -> tuple[tuple[Stroke, ...], Fraction]:
    """Read a rudiment's notation.

    Args:
        label: One of `LABELS`.
        passes: How often it is played.

    Returns:
        The strokes in time, and the length of all passes in beats.

    Raises:
        ConfigError: There is no such rudiment.
    """
    if label not in RUDIMENTS:
        raise ConfigError(f"There is no rudiment {label!r}; known are {', '.join(LABELS)}. Name one of these.")
    words = RUDIMENTS[label].split()
    at, step = Fraction(0), Fraction(1, 4)
    read: list[Stroke] = []
    for index in range(passes):
        exchanged = index % 2 == 1 and words[-1] == "~"
        for word in words:
            if word.endswith(":"):
                step = Fraction(word[:-1])
            elif word != "~":
                read.append(_stroke(word, at, step, exchanged, read[-1] if read else None))
                at += step
    return tuple(read), at


def _stroke(word: str, at: Fraction, step: Fraction, exchanged: bool, before: Stroke | None) -> Stroke:
    hand: Hand = "R" if "R" in word else "L"
    if exchanged:
        hand = _OTHER[hand]
    ornament = _ORNAMENTS.get(word[0], "")
    rebound = 0
    if before is not None and before.hand == hand and before.step <= Fraction(1, 3) and not ornament:
        rebound = before.rebound + 1
    return Stroke(at=at, step=step, hand=hand, accent=word[-1] == ">", ornament=ornament, rebound=rebound)


def sticking(label: str, passes: int = 2) -> str:
    """Write a rudiment as drummers do: `lR` is a flam, `llR` a drag.

    Args:
        label: One of `LABELS`.
        passes: How often it is played.

    Returns:
        The strokes, separated by spaces.

    Raises:
        ConfigError: There is no such rudiment.
    """
    written = strokes(label, passes)[0]
    return " ".join(_OTHER[stroke.hand].lower() * _GRACES[stroke.ornament] + stroke.hand for stroke in written)


# --- what is played ------------------------------------------------------------------------------


def hits(clip: PlannedRudiment, *, seed: int) -> list[Hit]:
    """Play one planned clip: every contact of a stick, with a person's timing and touch.

    Args:
        clip: The plan.
        seed: Of the corpus.

    Returns:
        All contacts, grace notes and bounces too, in time.

    Raises:
        ConfigError: There is no such rudiment.
    """
    written, _ = strokes(clip.label, clip.passes)
    rng = generator(seed, clip.id, "hands")
    beat_s = 60 / clip.tempo_bpm
    offsets_s = clip.jitter_s * rng.standard_normal(len(written)).clip(-2, 2)
    touches = np.exp(_VELOCITY_SPREAD * rng.standard_normal(len(written)).clip(-2, 2))
    played: list[Hit] = []
    for stroke, offset_s, touch in zip(written, offsets_s.tolist(), touches.tolist(), strict=True):
        hand = _OTHER[stroke.hand] if clip.left_handed else stroke.hand
        time_s = clip.lead_s + float(stroke.at) * beat_s + offset_s
        velocity = (_ACCENT if stroke.accent else _TAP) * _REBOUND ** min(stroke.rebound, 2) * touch
        if stroke.ornament == "z":
            played += _bounces(time_s, velocity, hand, until_s=time_s + 0.9 * float(stroke.step) * beat_s)
            continue
        gaps_s = {"f": rng.uniform(*_FLAM_S, 1), "d": rng.uniform(*_DRAG_S, 2)}.get(stroke.ornament, np.zeros(0))
        before_s = np.cumsum(gaps_s)[::-1].tolist()
        played += [Hit(time_s=time_s - gap_s, velocity=_GRACE * touch, hand=_OTHER[hand]) for gap_s in before_s]
        played.append(Hit(time_s=time_s, velocity=velocity, hand=hand))
    return sorted(played, key=lambda hit: hit.time_s)


def _bounces(time_s: float, velocity: float, hand: Hand, *, until_s: float) -> list[Hit]:
    """Contacts of a pressed stick, ever closer and softer."""
    bounces, gap_s = [], _BOUNCE_S
    while time_s < until_s:
        bounces.append(Hit(time_s=time_s, velocity=velocity, hand=hand))
        time_s, gap_s, velocity = time_s + gap_s, max(0.014, gap_s * 0.93), velocity * 0.8
    return bounces


def render(clip: PlannedRudiment, *, seed: int = 0) -> NDArray[np.float32]:
    """Play one planned clip on its kit in its room.

    Args:
        clip: The plan.
        seed: Of the hands and of the noise of wires, sticks and room.

    Returns:
        Waveform (S,) at 16 kHz whose length is a whole number of 10 ms and whose peak is the plan's.

    Raises:
        ConfigError: There is no such rudiment, kit or room.
    """
    if clip.kit not in KITS or clip.room not in ROOMS:
        raise ConfigError(
            f"Clip {clip.id!r} cannot be played: found kit {clip.kit!r} and room {clip.room!r}; allowed are the kits "
            f"{', '.join(KITS)} and the rooms {', '.join(ROOMS)}. Name one of each."
        )
    contacts = hits(clip, seed=seed)
    length_s = max(_SHORTEST_S, contacts[-1].time_s + clip.tail_s)
    length = math.ceil(length_s * SAMPLE_RATE_HZ / GRID_SAMPLES) * GRID_SAMPLES
    dry_S = play(contacts, KITS[clip.kit], length, SAMPLE_RATE_HZ, generator(seed, clip.id, "kit"))
    heard_S = record(dry_S, clip.room, SAMPLE_RATE_HZ, generator(seed, clip.id, "room"), nearer_db=clip.nearer_db)
    return (heard_S * (10 ** (clip.peak_db / 20) / float(np.abs(heard_S).max()))).astype(np.float32)


# --- corpora -------------------------------------------------------------------------------------


def plan_rudiments(clips: int, seed: int) -> list[PlannedRudiment]:
    """Plan a corpus: `clips` for training, and a tenth as many, at least 80, for each of `eval` and `test`.

    Every 40 clips of a split in a row hold every rudiment once, and a rudiment meets the kits of its split in turn.

    Args:
        clips: Number of training clips.
        seed: Of tempi, rooms, levels and silences.

    Returns:
        The plan, split by split. More training clips only add to those of a smaller plan.

    Raises:
        ConfigError: There is no clip to train on.
    """
    if clips < 1:
        raise ConfigError(
            f"A corpus of rudiments cannot be planned: found {clips} clips; allowed are numbers from 1, and 40 hold "
            "every rudiment once. Ask for more."
        )
    held_out = max(2 * len(LABELS), clips // 10)
    sizes = {"train": clips, "eval": held_out, "test": held_out}
    return [_plan_one(split, index, seed) for split in SPLITS for index in range(sizes[split])]


def _plan_one(split: str, index: int, seed: int) -> PlannedRudiment:
    identity = f"{split}-{index:05d}"
    rng = generator(seed, identity, "plan")
    turn, number = divmod(index, len(LABELS))
    label = LABELS[number]
    kits = [name for name, kit in KITS.items() if kit.split == split]
    written, beats = strokes(label)
    last = float(written[-1].at)
    # Slow enough to be counted, and not so slow that the rudiment is not heard twice.
    slowest_bpm = max(_TEMPO_BPM[0], 60 * (float(beats) + last) / _PLAYING_S[1])
    tempo_bpm = round(rng.uniform(slowest_bpm, _TEMPO_BPM[1]), 2)
    wanted, most = (
        (seconds * tempo_bpm / 60 - last) / float(beats) + 1 for seconds in (rng.uniform(*_PLAYING_S), _PLAYING_S[1])
    )
    return PlannedRudiment(
        id=identity,
        label=label,
        # The label's number shifts the turn, so that 40 clips in a row hold several kits.
        kit=kits[(turn + number) % len(kits)],
        room=tuple(ROOMS)[int(rng.integers(len(ROOMS)))],
        split=split,
        tempo_bpm=tempo_bpm,
        passes=max(2, min(math.ceil(wanted), math.floor(most))),
        lead_s=round(rng.uniform(*_LEAD_S), 3),
        tail_s=round(rng.uniform(*_TAIL_S), 3),
        jitter_s=round(rng.uniform(*_JITTER_S), 4),
        peak_db=round(rng.uniform(-20, -1), 2),
        left_handed=bool(rng.random() < _LEFT_HANDED),
        nearer_db=round(rng.uniform(-2, 2), 2),
    )


def synthesize_rudiments(
    folder: Path, *, clips: int, seed: int, workers: int = 2, format: AudioFormat = "wav"
) -> dict[str, list[Clip]]:
    """Play a corpus of rudiments into audio files, one a clip, and write `train`, `eval` and `test` manifests.

    Args:
        folder: Where `<split>.jsonl` and `audio/` go. Made where missing.
        clips: Number of training clips; see `plan_rudiments` for the others.
        seed: Of everything random.
        workers: Processes that play at once. Changes nothing in the output.
        format: `wav` decodes fastest, `opus` (in Ogg) is smallest.

    Returns:
        Split -> its clips: the label is the rudiment, the domain the room, the speaker the kit.

    Raises:
        ConfigError: A number is not positive, or there is no such format.
        ResourceError: A process died or the disk is full.
    """
    if workers < 1 or format not in AUDIO_FILES:
        raise ConfigError(
            f"These rudiments cannot be played: found {workers} workers and format {format!r}; allowed are numbers "
            f"from 1 and the formats {', '.join(AUDIO_FILES)}. Correct the arguments."
        )
    plan = plan_rudiments(clips, seed)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    shards = [plan[start : start + SHARD_CLIPS] for start in range(0, len(plan), SHARD_CLIPS)]
    work = functools.partial(_render_shard, folder=folder, seed=seed, audio_format=format)
    played = render_shards(work, shards, folder, workers=workers, fresh=False)
    return write_splits(folder, [clip.split for clip in plan], played)


def load_rudiments(source: Path) -> list[Clip]:
    """Clips of a corpus of rudiments, which is rendered where it is not there yet.

    Args:
        source: Manifest of a split in a folder that is named like the corpus: `data/rudiments_tiny/train.jsonl`.

    Raises:
        ManifestError: The name is of no split or corpus, or the manifest cannot be read.
        ResourceError: The folder cannot be written.
    """
    if source.stem not in SPLITS or source.parent.name not in RUDIMENT_CORPORA:
        raise ManifestError(
            f"{source} is no manifest of drum rudiments; allowed are {', '.join(SPLITS)} with .jsonl, in a folder "
            f"called {' or '.join(RUDIMENT_CORPORA)}. Write rudiments:data/rudiments_tiny/train.jsonl."
        )
    if not source.is_file():
        folder = source.parent
        logger.warning("rendering %s into %s", folder.name, folder)
        draft = folder.resolve().with_name(f".{folder.name}.{os.getpid()}.tmp")
        clear_drafts(draft.parent, folder.name)
        try:
            synthesize_rudiments(draft, clips=RUDIMENT_CORPORA[folder.name], seed=_SEED)
            draft.rename(folder)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # else another process was quicker, and its manifest is read
                size = RUDIMENT_CORPORA[folder.name] * _CLIP_BYTES
                raise write_error(error, folder, size, choose="the working directory") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return read_manifest(source)


def _render_shard(
    index: int, plan: Sequence[PlannedRudiment], *, folder: Path, seed: int, audio_format: AudioFormat
) -> list[Clip]:
    """Play consecutive clips of the plan and write their files, which are named after the clips and not the shard."""
    suffix, options = AUDIO_FILES[audio_format]
    clips = []
    for planned in plan:
        path = folder / "audio" / f"{planned.id}-{planned.label}.{suffix}"
        waveform_S = render(planned, seed=seed)
        io.write(path, waveform_S, SAMPLE_RATE_HZ, **options)
        clips.append(
            Clip(
                id=planned.id,
                path=path,
                duration_s=round(len(waveform_S) / SAMPLE_RATE_HZ, 2),
                sample_rate_hz=SAMPLE_RATE_HZ,
                label=(planned.label,),
                domain=planned.room,
                speaker=planned.kit,
            )
        )
    return clips
