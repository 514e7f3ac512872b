"""Sounds without words."""

from __future__ import annotations

import numpy as np
import pytest

from sonotune.audio.nonspeech import KINDS, RATE_HZ, render
from sonotune.runs import generator


def speech() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(RATE_HZ)).astype(np.float32) for _ in range(4)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_samples_within_full_scale(kind: str):
    one, two, other = (render(kind, 1.5, generator(seed, "nonspeech", kind), speech()) for seed in (0, 0, 1))
    assert one.dtype == np.float32
    assert one.shape == (24_000,)
    assert np.array_equal(one, two)
    assert np.isfinite(one).all()
    assert np.abs(one).max() <= 1
    if kind == "silence":
        assert not one.any()
    else:
        assert not np.array_equal(one, other)
        assert -50 < 10 * np.log10(np.mean(np.square(one, dtype=np.float64))) < -10


@pytest.mark.parametrize(("kind", "slope"), [("white_noise", 0.0), ("pink_noise", -3.0), ("brown_noise", -6.0)])
def test_noises_have_the_slope_of_their_colour(kind: str, slope: float):
    """In dB an octave, from the power between 250 and 500 Hz to that between 2 and 4 kHz, three octaves up."""
    power = np.abs(np.fft.rfft(render(kind, 20.0, generator(3, kind)).astype(np.float64))) ** 2
    frequency = np.fft.rfftfreq(20 * RATE_HZ, 1 / RATE_HZ)
    low, high = (power[(frequency >= edge) & (frequency < 2 * edge)].mean() for edge in (250, 2000))
    assert 10 * np.log10(high / low) / 3 == pytest.approx(slope, abs=0.4)


def test_babble_is_made_of_speech():
    with pytest.raises(ValueError, match="recordings of speech"):
        render("reversed_babble", 1.0, generator(0))
