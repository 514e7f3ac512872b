"""A spoken corpus from a plan: audio files, a manifest, word times.

A plan is a list of `PlannedClip`: all random choices are already made in it. It is cut into shards of a fixed number
of clips and every shard is spoken by a fresh process, so the samples depend on the plan and never on how many
processes work.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import soxr
from numpy.typing import NDArray

from sonotune.audio import io
from sonotune.data.channels import CHANNELS
from sonotune.data.espeak import Utterance, synthesizer
from sonotune.data.rudiments import RUDIMENT_CORPORA, synthesize_rudiments
from sonotune.data.shards import AUDIO_FILES, GRID_SAMPLES, SAMPLE_RATE_HZ, render_shards, write_splits
from sonotune.data.speech_plans import PLANS, AudioFormat, PlannedClip
from sonotune.errors import ConfigError, ResourceError
from sonotune.runs import generator
from sonotune.types import Clip, Word

logger = logging.getLogger(__name__)

_FRAME_SAMPLES: Final = SAMPLE_RATE_HZ // 200
SHARD_CLIPS: Final = 250
"""Clips a process speaks. Part of what fixes the samples: do not make it a setting."""
# Below the loudest frame by more than this, espeak-ng is silent.
_SILENCE_DB: Final = -50.0
_EDGE_S: Final = 0.015


def speak(clip: PlannedClip, *, seed: int = 0) -> tuple[NDArray[np.float32], tuple[Word, ...]]:
    """Speak one planned clip in this process.

    Args:
        clip: The plan.
        seed: Of the breath of the voice and the noise of the channel.

    Returns:
        Waveform (S,) at 16 kHz whose length is a whole number of 10 ms, and the words in time. There are no words
        where espeak-ng spoke several as one.

    Raises:
        MissingExtraError: The extra `synth` is not installed.
        ResourceError: espeak-ng said nothing.
    """
    rate = round(clip.voice.words_per_minute / clip.tract)
    voice = dataclasses.replace(clip.voice, words_per_minute=rate)
    breath = int(generator(seed, clip.id, "breath").integers(2**31))
    utterance = synthesizer().say(clip.spoken or clip.text, voice, phonemes=clip.phonemes, seed=breath)
    # Played faster by the factor, all resonances move up by it: the vocal tract is that much shorter.
    waveform_S = soxr.resample(utterance.waveform_S, utterance.sample_rate_hz * clip.tract, SAMPLE_RATE_HZ)
    active = _active_frames(waveform_S)
    if not active.any():
        raise ResourceError(
            f"espeak-ng was silent for clip {clip.id!r}: {clip.spoken or clip.text!r} with voice {voice.name}; allowed "
            "is a text that can be heard. Check that the voice knows the script."
        )
    first, last = int(active.argmax()), len(active) - int(active[::-1].argmax())
    edge = round(_EDGE_S * SAMPLE_RATE_HZ)
    begin = max(0, first * _FRAME_SAMPLES - edge)
    end = min(len(waveform_S), last * _FRAME_SAMPLES + edge)
    lead = round(clip.lead_s * SAMPLE_RATE_HZ)
    length = lead + end - begin + round(clip.trail_s * SAMPLE_RATE_HZ)
    out_S = np.zeros(-(-length // GRID_SAMPLES) * GRID_SAMPLES, np.float32)
    out_S[lead : lead + end - begin] = waveform_S[begin:end]
    words = _place_words(
        clip,
        utterance,
        active,
        shift_s=(lead - begin) / SAMPLE_RATE_HZ,
        longest_s=len(out_S) / SAMPLE_RATE_HZ,
    )
    if clip.channel is not None:
        out_S = CHANNELS[clip.channel](out_S, SAMPLE_RATE_HZ, generator(seed, clip.id, "channel"))
    peak = float(np.abs(out_S).max())
    return (out_S * (10 ** (clip.peak_db / 20) / peak)).astype(np.float32), words


def _active_frames(waveform_S: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which frames of 5 ms are speech (T,)."""
    frames = np.pad(waveform_S, (0, -len(waveform_S) % _FRAME_SAMPLES)).reshape(-1, _FRAME_SAMPLES)
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    active: NDArray[np.bool_] = power > power.max() * 10 ** (_SILENCE_DB / 10)
    return active


def _place_words(
    clip: PlannedClip, utterance: Utterance, active: NDArray[np.bool_], *, shift_s: float, longest_s: float
) -> tuple[Word, ...]:
    texts = clip.text.split()
    if len(texts) != len(utterance.word_starts_s):
        return ()
    frame_s = _FRAME_SAMPLES / SAMPLE_RATE_HZ
    starts = [min(round(start_s / clip.tract / frame_s), len(active)) for start_s in utterance.word_starts_s]
    words = []
    for text, start, stop in zip(texts, starts, [*starts[1:], len(active)], strict=True):
        speech = np.flatnonzero(active[start:stop])
        if not speech.size:
            return ()
        words.append(
            Word(
                text=text,
                start_s=round((start + int(speech[0])) * frame_s + shift_s, 3),
                end_s=round(min((start + int(speech[-1]) + 1) * frame_s + shift_s, longest_s), 3),
            )
        )
    return tuple(words)


# --- corpora -------------------------------------------------------------------------------------


def synthesize_corpus(
    plan: Sequence[PlannedClip],
    folder: Path,
    *,
    seed: int,
    format: AudioFormat = "wav",
    clips_per_file: int = 250,
    workers: int = 2,
) -> dict[str, list[Clip]]:
    """Speak a plan into audio files and write one manifest for each of its splits.

    Args:
        plan: The clips, in the order of the manifests.
        folder: Where `<split>.jsonl` and `audio/` go. Made where missing.
        seed: Of the voices' breath and the channels' noise.
        format: `wav` decodes fastest; `opus` (in Ogg) is a tenth of the size and cannot be cut into spans exactly, so
            it takes one clip a file.
        clips_per_file: How many clips share an audio file as spans.
        workers: Processes that speak at once. Changes nothing in the output.

    Returns:
        Split -> its clips.

    Raises:
        ConfigError: The plan is empty, an id repeats, or the numbers are not positive.
        MissingExtraError: The extra `synth` is not installed.
        ResourceError: A process died or espeak-ng said nothing.
    """
    _check_plan(plan, clips_per_file=clips_per_file, workers=workers)
    if format == "opus":
        clips_per_file = 1
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    shards = [plan[start : start + SHARD_CLIPS] for start in range(0, len(plan), SHARD_CLIPS)]
    work = functools.partial(_speak_shard, folder=folder, seed=seed, audio_format=format, clips_per_file=clips_per_file)
    # One shard a process: espeak-ng's state then begins the same for every shard.
    spoken = render_shards(work, shards, folder, workers=workers, fresh=True)
    return write_splits(folder, [clip.split for clip in plan], spoken)


def synthesize_named(
    corpus: str, folder: Path, *, clips: int | None = None, seed: int = 0, workers: int = 2
) -> dict[str, Any]:
    """Render one of the corpora this project names.

    Args:
        corpus: `nano_speech` (what whisper-nano learns from), `quickstart` (what the package carries), or drum
            rudiments for classification: `rudiments`, and `rudiments_tiny` with 6 training clips of each.
        folder: Where the manifests and `audio/` go.
        clips: How many clips to train on; the corpus's own number where None.
        seed: Of voices, texts and channels, or of hands, tempi and rooms.
        workers: Processes that work at once.

    Returns:
        `corpus`, `folder` and `manifests`: split -> path, clips, hours, speakers. JSON-able.

    Raises:
        ConfigError: There is no such corpus, or the number of clips is not positive.
        MissingExtraError: The extra `synth` is not installed; rudiments do not need it.
    """
    if corpus in RUDIMENT_CORPORA:
        number = RUDIMENT_CORPORA[corpus] if clips is None else clips
        splits = synthesize_rudiments(folder, clips=number, seed=seed, workers=workers)
    elif corpus in PLANS:
        named = PLANS[corpus]
        splits = synthesize_corpus(
            named.plan(clips or named.clips, seed), folder, seed=seed, format=named.format, workers=workers
        )
    else:
        known = ", ".join((*PLANS, *RUDIMENT_CORPORA))
        raise ConfigError(f"There is no corpus {corpus!r}; known are {known}. Name one of these.")
    return {
        "corpus": corpus,
        "folder": str(folder),
        "manifests": {
            name: {
                "path": str(folder / f"{name}.jsonl"),
                "clips": len(members),
                "hours": sum(clip.duration_s for clip in members) / 3600,
                "speakers": len({clip.speaker for clip in members}),
            }
            for name, members in splits.items()
        },
    }


def _check_plan(plan: Sequence[PlannedClip], *, clips_per_file: int, workers: int) -> None:
    ids = Counter(clip.id for clip in plan)
    repeated = sorted(name for name, count in ids.items() if count > 1)
    if not plan or repeated or clips_per_file < 1 or workers < 1:
        raise ConfigError(
            f"This plan cannot be spoken: found {len(plan)} clips, repeated ids {repeated[:5]}, clips_per_file "
            f"{clips_per_file}, workers {workers}; allowed are at least one clip, ids that differ, and numbers from 1. "
            "Correct the plan."
        )


def _speak_shard(
    index: int, plan: Sequence[PlannedClip], *, folder: Path, seed: int, audio_format: AudioFormat, clips_per_file: int
) -> list[Clip]:
    """Speak consecutive clips of the plan in order and write their files. Runs in a process of its own."""
    suffix, options = AUDIO_FILES[audio_format]
    clips: list[Clip] = []
    for start in range(0, len(plan), clips_per_file):
        members = plan[start : start + clips_per_file]
        name = members[0].id if clips_per_file == 1 else f"{index:04d}-{start // clips_per_file:03d}"
        path = folder / "audio" / f"{name}.{suffix}"
        waveforms, position = [], 0
        for planned in members:
            waveform_S, words = speak(planned, seed=seed)
            clips.append(_to_clip(planned, path, position, len(waveform_S), words))
            waveforms.append(waveform_S)
            position += len(waveform_S)
        io.write(path, np.concatenate(waveforms), SAMPLE_RATE_HZ, **options)
    return clips


def _to_clip(planned: PlannedClip, path: Path, start: int, length: int, words: tuple[Word, ...]) -> Clip:
    return Clip(
        id=planned.id,
        path=path,
        start_s=round(start / SAMPLE_RATE_HZ, 2),
        duration_s=round(length / SAMPLE_RATE_HZ, 2),
        sample_rate_hz=SAMPLE_RATE_HZ,
        text=planned.text,
        words=words,
        language=planned.language,
        domain=planned.domain,
        speaker=planned.speaker or planned.voice.name,
    )
