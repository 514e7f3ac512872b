"""Clipping, silence, noise and band limits, on made signals and on real speech."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from sonotune.audio.quality import (
    band_limit_hz,
    clipped_share,
    measure_quality,
    recorded_rate_hz,
    samples_digest,
)

RATE_HZ = 16_000


def tone(gain: float, seconds: float = 2.0, hz: float = 200.0) -> np.ndarray:
    return (gain * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def pink(seconds: float = 4.0, rate_hz: int = RATE_HZ, seed: int = 0) -> np.ndarray:
    """Noise that falls by 6 dB an octave, in bursts: the long-term shape of speech."""
    generator = np.random.default_rng(seed)
    spectrum = np.fft.rfft(generator.standard_normal(int(seconds * rate_hz)))
    frequencies = np.fft.rfftfreq(int(seconds * rate_hz), 1 / rate_hz)
    shaped = np.fft.irfft(spectrum / np.maximum(frequencies, 100.0), int(seconds * rate_hz))
    bursts = 0.02 + (np.sin(2 * np.pi * 1.5 * np.arange(shaped.size) / rate_hz) > 0)
    return (0.3 * shaped * bursts / np.abs(shaped).max()).astype(np.float32)


# --- clipping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [1.2, 2.0, 5.0])
def test_clipping_is_the_part_that_was_cut_off(gain):
    cut = np.clip(tone(gain), -1.0, 1.0)
    wanted = 1 - 2 / math.pi * math.asin(1 / gain)
    assert clipped_share(cut) == pytest.approx(wanted, abs=0.01)
    assert clipped_share(0.6 * cut) == pytest.approx(wanted, abs=0.01)  # and the gain was changed afterwards


def test_clipping_of_one_side():
    cut = np.clip(tone(1.0), -1.0, 0.7)
    assert clipped_share(cut) == pytest.approx(0.5 - math.asin(0.7) / math.pi, abs=0.01)


@pytest.mark.parametrize("hz", [50.0, 200.0, 3000.0])
def test_a_loud_tone_is_not_clipped(hz):
    assert clipped_share(tone(0.99, hz=hz)) < 0.01
    assert clipped_share(pink()) < 0.001


def test_silence_and_constants_are_not_clipped():
    for waveform in (np.zeros(1000), np.full(1000, 0.5), np.full(1000, 1.0), np.zeros(0)):
        assert clipped_share(waveform.astype(np.float32)) == 0.0


def test_real_speech_is_clipped_where_it_was_amplified(fsdd):
    clean, loud = [], []
    for path in sorted(fsdd.glob("*_jackson_*.wav"))[::25]:
        waveform, _ = soundfile.read(path, dtype="float32")
        waveform = 0.9 * waveform / np.abs(waveform).max()
        clean.append(clipped_share(waveform))
        loud.append(clipped_share(np.clip(8 * waveform, -1, 1)))
    assert max(clean) < 0.002
    assert min(loud) > 0.01


# --- level, silence, noise -----------------------------------------------------------------------


def test_silence_and_noise():
    speech = np.concatenate([pink(1.0), np.zeros(RATE_HZ * 3, np.float32)])
    noisy = speech + 0.001 * np.random.default_rng(0).standard_normal(speech.size).astype(np.float32)
    found = measure_quality(noisy, RATE_HZ)
    assert 0.7 < found.silent_share < 0.95
    assert 10 < found.signal_to_noise_db < 45
    louder = measure_quality(speech + 10 * (noisy - speech), RATE_HZ)
    assert louder.signal_to_noise_db == pytest.approx(found.signal_to_noise_db - 20, abs=4)
    assert measure_quality(0.1 * noisy, RATE_HZ).level_db == pytest.approx(found.level_db - 20, abs=0.01)


def test_digital_silence_is_measured():
    found = measure_quality(np.zeros(RATE_HZ, np.float32), RATE_HZ)
    assert found.silent_share == 1.0
    assert found.level_db == -200.0
    assert found.signal_to_noise_db is None
    assert (found.bandwidth_hz, found.recorded_rate_hz) == (RATE_HZ / 2, None)


@given(
    nps.arrays(np.float32, st.integers(1, 4000), elements=st.floats(-1, 1, width=32)),
    st.sampled_from([8_000, 16_000, 44_100]),
)
def test_any_waveform_can_be_measured(waveform, rate_hz):
    found = measure_quality(waveform, rate_hz)
    assert 0 <= found.clipped_share <= 1
    assert 0 <= found.silent_share <= 1
    assert 0 < found.bandwidth_hz <= rate_hz / 2
    assert math.isfinite(found.level_db)


# --- band ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("true_hz", "file_hz"), [(8_000, 16_000), (8_000, 48_000), (16_000, 44_100), (22_050, 48_000)])
def test_a_resampled_recording_is_found_with_its_rate(true_hz, file_hz):
    waveform = soxr.resample(pink(rate_hz=true_hz), true_hz, file_hz)
    found = measure_quality(waveform, file_hz)
    assert found.recorded_rate_hz == true_hz
    assert found.bandwidth_hz == pytest.approx(true_hz / 2, rel=0.06)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
def test_a_recording_of_the_whole_band_is_not(rate_hz):
    assert band_limit_hz(pink(rate_hz=rate_hz), rate_hz) is None
    white = np.random.default_rng(0).standard_normal(4 * rate_hz).astype(np.float32)
    assert band_limit_hz(0.1 * white, rate_hz) is None


def test_real_speech_of_8_khz(fsdd):
    """As it is, it fills its band; in a file of 16 kHz it is found, also with the noise of 16 bit."""
    paths = sorted(fsdd.glob("*.wav"))[::100]
    assert len(paths) >= 15
    found = 0
    for path in paths:
        waveform, rate_hz = soundfile.read(path, dtype="float32")
        assert measure_quality(waveform, rate_hz).recorded_rate_hz is None
        lie = np.round(soxr.resample(waveform, 8_000, RATE_HZ) * 32768) / 32768
        found += measure_quality(lie.astype(np.float32), RATE_HZ).recorded_rate_hz == 8_000
    assert found >= 0.9 * len(paths)


def test_noise_at_16_khz_hides_nothing_that_is_not_there():
    lie = soxr.resample(pink(rate_hz=8_000), 8_000, RATE_HZ)
    noisy = lie + 0.1 * np.random.default_rng(0).standard_normal(lie.size).astype(np.float32)
    assert band_limit_hz(lie, RATE_HZ) is not None
    assert band_limit_hz(noisy.astype(np.float32), RATE_HZ) is None  # the band is full of real noise


def test_too_short_to_tell():
    assert band_limit_hz(pink(0.09), RATE_HZ) is None


def test_rates_that_have_a_band():
    assert recorded_rate_hz(3_900, 16_000) == 8_000
    assert recorded_rate_hz(3_400, 16_000) == 8_000  # a telephone
    assert recorded_rate_hz(4_100, 16_000) == 8_000
    assert recorded_rate_hz(5_850, 22_050) == 12_000  # 11,025 Hz cannot hold it
    assert recorded_rate_hz(7_800, 16_000) is None


# --- copies --------------------------------------------------------------------------------------


def test_digests_are_of_what_is_heard(tmp_path):
    waveform = pink(1.0)
    for name, subtype in (("a.wav", "PCM_16"), ("b.flac", "PCM_16")):
        soundfile.write(tmp_path / name, (waveform * 32767).astype(np.int16), RATE_HZ, subtype=subtype)
    one, other = (soundfile.read(tmp_path / name, dtype="float32")[0] for name in ("a.wav", "b.flac"))
    assert samples_digest(one) == samples_digest(other)
    changed = one.copy()
    changed[100] += 2 / 32768
    assert samples_digest(changed) != samples_digest(one)
    assert samples_digest(one[:-1]) != samples_digest(one)
