"""Clips by the noise of their recording."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from sonotune.evaluation.noise import with_noise
from sonotune.metrics.slices import NOISE, noise_bucket, slice_clips
from sonotune.types import Clip

RATE_HZ = 16_000


def recording(folder: Path, noise_db: float) -> Clip:
    """Bursts of a tone, with noise so many dB below them."""
    rng = np.random.default_rng(0)
    time_S = np.arange(3 * RATE_HZ) / RATE_HZ
    speech_S = 0.3 * np.sin(2 * np.pi * 300 * time_S) * (np.sin(2 * np.pi * time_S) > 0)
    noise_S = rng.normal(0, 0.3 / 2**0.5 * 10 ** (noise_db / 20), time_S.size)
    path = folder / f"{noise_db:g}.wav"
    soundfile.write(path, (speech_S + noise_S).astype(np.float32), RATE_HZ, subtype="FLOAT")
    return Clip(id=path.stem, path=path, duration_s=3.0)


def test_clips_fall_into_the_bucket_of_their_noise(tmp_path: Path):
    clips = [recording(tmp_path, noise_db) for noise_db in (-8.0, -15.0, -40.0)]
    missing = Clip(id="gone", path=tmp_path / "gone.wav", duration_s=1.0)
    found = with_noise([*clips, missing], (10.0, 20.0))
    assert [clip.extra.get(NOISE) for clip in found] == ["< 10 dB", "10 to 20 dB", ">= 20 dB", None]
    parts = [(part.value, part.members) for part in slice_clips(found[::-1]) if part.by == NOISE]
    assert parts == [("< 10 dB", (3,)), ("10 to 20 dB", (2,)), (">= 20 dB", (1,)), ("unknown", (0,))]


def test_without_edges_nothing_is_read(tmp_path: Path):
    clips = [Clip(id="gone", path=tmp_path / "gone.wav", duration_s=1.0)]
    assert with_noise(clips, ()) == clips


@pytest.mark.parametrize(
    ("ratio_db", "bucket"), [(-30.0, "< -5 dB"), (-5.0, "-5 to 10 dB"), (9.99, "-5 to 10 dB"), (10.0, ">= 10 dB")]
)
def test_buckets_hold_their_lower_edge(ratio_db: float, bucket: str):
    assert noise_bucket(ratio_db, (-5.0, 10.0)) == bucket
