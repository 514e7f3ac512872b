"""Words begin and end at edges of sound, in order and within the clip."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sonotune.alignment.borders import HOP_S, TokenTimes, fine_energy_db, place_words

RATE_HZ = 16_000


def times(spans: list[tuple[float, float]], skipped: dict[int, tuple[float, float]] | None = None) -> TokenTimes:
    between = np.full((len(spans) + 1, 2), np.nan)
    for place, span in (skipped or {}).items():
        between[place] = span
    starts, ends = (np.array(edge) for edge in zip(*spans, strict=True))
    return TokenTimes(first_starts=starts, last_ends=ends, skipped=between)


def sound(spans: list[tuple[float, float]], seconds: float, *, floor_db: float = -70.0) -> NDArray[np.float32]:
    """Energies of noise that is loud within spans."""
    energy = np.full(round(seconds / HOP_S), floor_db, dtype=np.float32)
    for start, end in spans:
        energy[round(start / HOP_S) : round(end / HOP_S)] = -20.0
    return energy


def test_energy_begins_where_sound_begins() -> None:
    rng = np.random.default_rng(0)
    waveform = np.zeros(RATE_HZ, dtype=np.float32)
    waveform[8000:12000] = rng.normal(size=4000) * 0.1
    energy = fine_energy_db(waveform, RATE_HZ)
    assert len(energy) == 200
    loud = np.flatnonzero(energy > -40)
    assert loud[0] in (99, 100)
    assert loud[-1] in (149, 150)
    assert energy[:98].max() == -100.0
    assert len(fine_energy_db(waveform[:81], RATE_HZ)) == 2


def test_hum_is_no_sound() -> None:
    time = np.arange(RATE_HZ) / RATE_HZ
    hum = np.sin(2 * np.pi * 50 * time).astype(np.float32)
    hiss = (np.random.default_rng(0).normal(size=RATE_HZ)).astype(np.float32)
    assert fine_energy_db(hum, RATE_HZ).max() < fine_energy_db(hiss, RATE_HZ).min() - 25


def test_letters_written_in_silence_belong_to_the_sound_beside_it() -> None:
    energy = sound([(0.5, 1.0), (1.2, 1.6)], 2.2)
    starts, ends = place_words(times([(0.0, 0.9), (1.28, 2.2)]), energy, 2.2)
    assert starts == pytest.approx([0.5, 1.2], abs=0.011)
    assert ends == pytest.approx([1.0, 1.6], abs=0.011)


def test_words_that_run_together_meet_in_the_dip() -> None:
    energy = sound([(0.2, 1.4)], 1.6)
    energy[round(0.80 / HOP_S)] = -27.0  # far above the threshold
    starts, ends = place_words(times([(0.24, 0.76), (0.96, 1.3)]), energy, 1.6)
    assert ends[0] == starts[1] == pytest.approx(0.80, abs=0.006)


def test_speech_that_nobody_wrote_down_is_of_no_word() -> None:
    energy = sound([(0.2, 0.6), (0.7, 1.6), (1.7, 2.0)], 2.2)
    found = place_words(times([(0.24, 0.56), (1.76, 1.96)], {1: (0.76, 1.56)}), energy, 2.2)
    assert found[0] == pytest.approx([0.2, 1.7], abs=0.011)
    assert found[1] == pytest.approx([0.6, 2.0], abs=0.011)
    # Also where the path took it for silence: the words do not stretch over what lies far from their tokens.
    found = place_words(times([(0.24, 0.56), (1.76, 1.96)]), energy, 2.2)
    assert found[1][0] == pytest.approx(0.6, abs=0.011)


def test_without_contrast_the_tokens_count() -> None:
    energy = np.full(400, -20.0, dtype=np.float32)
    starts, ends = place_words(times([(0.1, 0.3), (0.4, 0.6)]), energy, 2.0)
    assert starts == pytest.approx([0.1, 0.4])
    assert ends == pytest.approx([0.35, 0.7])


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 100_000), words=st.integers(1, 6), flat=st.booleans())
def test_words_are_in_order_and_within_the_clip(seed: int, words: int, flat: bool) -> None:
    rng = np.random.default_rng(seed)
    duration_s = float(rng.uniform(0.1, 4.0))
    edges = np.sort(rng.uniform(0, duration_s, 2 * words))
    spans = [(float(edges[2 * word]), float(edges[2 * word + 1])) for word in range(words)]
    skipped = {}
    if rng.random() < 0.5 and words > 1:
        inner = np.sort(rng.uniform(spans[0][1], spans[1][0], 2))
        skipped = {1: (float(inner[0]), float(inner[1]))}
    blocks = rng.choice([-60.0, -20.0], size=max(1, round(duration_s / 0.08)))
    energy = np.repeat(blocks, 16)[: max(1, round(duration_s / HOP_S))].astype(np.float32)
    energy += rng.normal(size=len(energy)).astype(np.float32)
    starts, ends = place_words(times(spans, skipped), energy * 0 - 20 if flat else energy, duration_s)
    assert np.all(starts >= 0)
    assert np.all(ends <= duration_s)
    assert np.all(starts <= ends)
    assert np.all(ends[:-1] <= starts[1:])
