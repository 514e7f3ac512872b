"""Energy of frames, and where a clip is loud."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sonotune.audio import activity, io

RATE_HZ = 16_000


def bursts(rate_hz: int = RATE_HZ, noise: float = 0.0, gain: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Three seconds with two bursts, and the mask they should give."""
    mask = np.zeros(300, dtype=bool)
    mask[50:120] = mask[180:260] = True
    on = np.repeat(mask, rate_hz // 100)
    rng = np.random.default_rng(0)
    waveform = on * 0.3 * rng.standard_normal(on.size) + noise * rng.standard_normal(on.size)
    return (gain * waveform).astype(np.float32), mask


@pytest.mark.parametrize("rate_hz", [7_999, 8_000, 16_000, 44_100])
@pytest.mark.parametrize("seconds", [0.001, 0.0101, 1.0, 3.333])
def test_one_frame_every_ten_milliseconds(rate_hz, seconds):
    waveform = np.full(max(1, round(seconds * rate_hz)), 0.1, dtype=np.float32)
    count = int(np.ceil(waveform.size / rate_hz / 0.01 - 1e-9))
    for property_T in (activity.frame_energy_db, activity.zero_crossings_hz, activity.speech_mask):
        assert property_T(waveform, rate_hz).shape == (count,)


def test_energy_is_in_decibels_of_full_scale():
    square = np.ones(RATE_HZ, dtype=np.float32)
    sine = np.sin(2 * np.pi * 400 * np.arange(RATE_HZ) / RATE_HZ).astype(np.float32)
    np.testing.assert_allclose(activity.frame_energy_db(square, RATE_HZ), 0.0, atol=1e-5)
    np.testing.assert_allclose(activity.frame_energy_db(0.1 * sine, RATE_HZ)[:-3], -23.01, atol=0.05)
    assert (activity.frame_energy_db(np.zeros(1_600, np.float32), RATE_HZ) == activity.SILENCE_DB).all()


def test_frames_tell_when():
    waveform = np.zeros(RATE_HZ, dtype=np.float32)
    waveform[8_000:] = 0.5
    energy_db = activity.frame_energy_db(waveform, RATE_HZ)
    assert (energy_db[:48] == activity.SILENCE_DB).all()
    assert energy_db[50:] == pytest.approx(-6.02, abs=0.01)
    after_loud = np.concatenate([np.ones(60 * RATE_HZ, np.float32), np.zeros(RATE_HZ, np.float32)])
    assert (activity.frame_energy_db(after_loud, RATE_HZ)[6_000:] == activity.SILENCE_DB).all()


def test_zero_crossings_are_twice_the_frequency():
    sine = np.sin(2 * np.pi * 1_000 * np.arange(RATE_HZ) / RATE_HZ + 0.1).astype(np.float32)
    np.testing.assert_allclose(activity.zero_crossings_hz(sine, RATE_HZ)[2:-3], 2_000, rtol=0.03)


@pytest.mark.parametrize("gain", [1.0, 0.03])
@pytest.mark.parametrize("noise", [0.0, 0.003, 0.05])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
def test_bursts_are_found_in_noise_and_at_any_level(rate_hz, noise, gain):
    waveform, expected = bursts(rate_hz, noise, gain)
    mask = activity.speech_mask(waveform, rate_hz)
    assert (mask != expected).sum() <= 8  # windows reach 25 ms ahead
    spans = activity.speech_spans(mask)
    np.testing.assert_allclose(np.array(spans), [(0.5, 1.2), (1.8, 2.6)], atol=0.03)


@pytest.mark.parametrize(
    ("waveform", "level_db"),
    [
        (np.zeros(RATE_HZ), -200.0),
        (np.full(RATE_HZ, 0.25), -200.0),
        (np.zeros(0), -200.0),
        (np.zeros(3), -200.0),
        (0.5 + 0.1 * np.sin(2 * np.pi * 400 * np.arange(RATE_HZ) / RATE_HZ), 10 * np.log10(0.1**2 / 2)),
        (np.concatenate([np.zeros(RATE_HZ), 0.2 * np.tile([1.0, -1.0], 200)]), 20 * np.log10(0.2)),  # the last 25 ms
    ],
)
def test_the_level_is_that_of_the_loudest_frame_without_its_offset(waveform, level_db):
    found = activity.signal_level_db(waveform.astype(np.float32), RATE_HZ)
    assert found == pytest.approx(level_db, abs=0.05)


def test_clips_without_contrast_are_all_or_nothing():
    steady = 0.1 * np.random.default_rng(0).standard_normal(RATE_HZ).astype(np.float32)
    assert activity.speech_mask(steady, RATE_HZ).all()
    assert not activity.speech_mask(np.zeros(RATE_HZ, np.float32), RATE_HZ).any()
    assert not activity.speech_mask(1e-5 * steady, RATE_HZ).any()
    assert activity.speech_mask(np.zeros(0, np.float32), RATE_HZ).shape == (0,)
    assert activity.speech_spans(np.zeros(5, dtype=bool)) == []


def test_clicks_are_dropped_and_short_pauses_filled():
    waveform, _ = bursts(noise=0.001)
    waveform[2_000:2_100] = 0.5  # a click of 6 ms
    waveform[12_000:13_600] = 0.0  # a pause of 100 ms in the first burst
    spans = activity.speech_spans(activity.speech_mask(waveform, RATE_HZ))
    np.testing.assert_allclose(np.array(spans), [(0.5, 1.2), (1.8, 2.6)], atol=0.03)


@pytest.mark.parametrize("snr_db", [10.0, 20.0, 30.0])
def test_the_ratio_of_signal_to_noise_is_estimated(snr_db):
    waveform, _ = bursts(noise=0.3 * 10 ** (-snr_db / 20))
    assert activity.signal_to_noise_db(waveform, RATE_HZ) == pytest.approx(snr_db, abs=1.0)


def test_no_ratio_where_there_is_only_one_kind():
    assert activity.signal_to_noise_db(np.zeros(RATE_HZ, np.float32), RATE_HZ) is None
    assert activity.signal_to_noise_db(np.full(RATE_HZ, 0.1, np.float32), RATE_HZ) is None


@pytest.mark.realdata
def test_real_digits_have_speech_in_most_of_their_frames(fsdd):
    shares = []
    for path in sorted(fsdd.rglob("*.wav"))[::50]:
        waveform = io.read(path)
        shares.append(activity.speech_mask(waveform, RATE_HZ).mean())
    assert len(shares) > 10
    assert min(shares) > 0.15
    assert 0.4 < np.median(shares) <= 1.0


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050])
@pytest.mark.parametrize("block", [1, 7, 160, 401, 5000, 10**6])
def test_the_energy_of_blocks_is_that_of_the_whole(rate: int, block: int):
    rng = np.random.default_rng(3)
    count = 3_001 if block == 1 else 30_011
    waveform = (rng.standard_normal(count) * np.linspace(0, 0.5, count) ** 2).astype(np.float32)
    whole = activity.frame_energy_db(waveform, rate)
    found = activity.energy_of_blocks((waveform[first : first + block] for first in range(0, count, block)), rate)
    assert len(found) == len(whole) == math.ceil(count / (0.01 * rate))
    np.testing.assert_allclose(found, whole, atol=1e-4)
    assert activity.energy_of_blocks([], rate).size == 0


def test_frames_are_the_means_of_their_own_samples():
    waveform = np.random.default_rng(5).standard_normal(16_000).astype(np.float32)
    found = activity.energy_of_blocks([waveform[:9_999], waveform[9_999:]], 16_000)
    for frame in (0, 61, 62, 98, 99):
        part = waveform[160 * frame : 160 * frame + 400].astype(np.float64)
        assert found[frame] == pytest.approx(10 * np.log10(np.mean(part**2)), abs=1e-4)
