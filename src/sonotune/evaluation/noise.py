"""The noise of clips that are scored, as a bucket of their signal-to-noise ratio, for scores by it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from sonotune.audio.activity import signal_to_noise_db
from sonotune.audio.io import read
from sonotune.errors import AudioError
from sonotune.metrics.slices import NOISE, noise_bucket
from sonotune.progress import phase
from sonotune.types import Clip

_RATE_HZ = 16_000  # at which audio is read
_THREADS = 4  # decoding lets go of the interpreter lock


def with_noise(clips: Sequence[Clip], edges_db: Sequence[float]) -> list[Clip]:
    """The clips with the bucket of their signal-to-noise ratio in `extra`.

    The ratio is that of the frames with speech over the others in the recording itself (`audio.activity`). A clip that
    has only one of the two kinds, or cannot be read, has none.

    Args:
        clips: To be scored.
        edges_db: Edges between the buckets, in dB, rising; none leaves the clips as they are.
    """
    if not edges_db:
        return list(clips)
    made: list[Clip] = []
    with phase("measuring noise", len(clips), "clips") as advance, ThreadPoolExecutor(max_workers=_THREADS) as pool:
        for clip in pool.map(partial(_measured, edges_db=edges_db), clips):
            made.append(clip)
            advance(len(made))
    return made


def _measured(clip: Clip, edges_db: Sequence[float]) -> Clip:
    try:
        waveform_S = read(clip.path, start_s=clip.start_s, duration_s=clip.duration_s, channel=clip.channel)
    except AudioError:  # named by the evaluation, which reads it again
        return clip
    ratio_db = signal_to_noise_db(waveform_S, _RATE_HZ)
    return clip if ratio_db is None else replace(clip, extra={**clip.extra, NOISE: noise_bucket(ratio_db, edges_db)})
