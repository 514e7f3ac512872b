"""Transforms: what each one does to level, spectrum, length and time; and that the draws depend on nothing else."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
import time
import typing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.audio import augment, packets
from sonotune.audio.augment import CODECS, WaveformAugmenter
from sonotune.audio.chains import CHAINS, ORDER
from sonotune.config.data import AugmentationConfig
from sonotune.errors import ConfigError
from sonotune.runs import generator
from sonotune.types import ChainName

RATE_HZ = 16_000
TRANSFORMS = {
    "speed": augment.speed,
    "gain": augment.gain,
    "noise": augment.noise,
    "band_limit": augment.band_limit,
    "codec": augment.codec,
    "reverberation": augment.reverberation,
    "tilt": augment.tilt,
    "pad": augment.pad,
    "clipping": augment.clipping,
    "band_pass": augment.band_pass,
    "packet_loss": augment.packet_loss,
}
CHANGES_LENGTH = {"speed", "pad"}
ALL_ON = {field.name: 1.0 for field in dataclasses.fields(WaveformAugmenter) if field.name.endswith("_probability")}


def speech_like(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    """Noise between 150 and 3000 Hz in syllables of 50 ms."""
    rng = np.random.default_rng(seed)
    num_samples = round(seconds * RATE_HZ)
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    frequency = np.fft.rfftfreq(num_samples, 1 / RATE_HZ)
    spectrum[(frequency < 150) | (frequency > 3_000)] = 0
    waveform = np.fft.irfft(spectrum, num_samples)
    envelope = np.repeat(rng.uniform(0.1, 1.0, num_samples // 800 + 1), 800)[:num_samples]
    return (0.1 * waveform / waveform.std() * envelope).astype(np.float32)


def rms_db(waveform: np.ndarray) -> float:
    return float(10 * np.log10(np.square(waveform, dtype=np.float64).mean()))


def band_db(waveform: np.ndarray, low_hz: float, high_hz: float) -> float:
    power = np.abs(np.fft.rfft(waveform.astype(np.float64) * np.hanning(len(waveform)))) ** 2
    frequency = np.fft.rfftfreq(len(waveform), 1 / RATE_HZ)
    return float(10 * np.log10(power[(frequency >= low_hz) & (frequency < high_hz)].mean() + 1e-20))


def lag_samples(reference: np.ndarray, moved: np.ndarray) -> int:
    length = 2 * max(len(reference), len(moved))
    both = np.conj(np.fft.rfft(reference, length)) * np.fft.rfft(moved, length)
    peak = int(np.argmax(np.fft.irfft(both, length)))
    return peak - length if peak > length // 2 else peak


def rng(seed: int = 0) -> np.random.Generator:
    return generator(seed, "test")


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_is_a_function_of_its_generator(name):
    waveform = speech_like()
    before = waveform.copy()
    first = TRANSFORMS[name](waveform, RATE_HZ, rng(1))
    again = TRANSFORMS[name](waveform, RATE_HZ, rng(1))
    other = TRANSFORMS[name](waveform, RATE_HZ, rng(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(waveform, before)
    assert first.dtype == np.float32
    assert first.ndim == 1
    assert first.flags.c_contiguous
    if name != "band_pass":  # the band is that of the line
        assert first.shape != other.shape or not np.array_equal(first, other)
    if name not in CHANGES_LENGTH:
        assert first.shape == waveform.shape


@pytest.mark.parametrize("num_samples", [0, 1, 2, 17, 399, 1_600])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_short_silent_and_loud_clips_stay_finite(name, num_samples):
    for seed in range(6):
        for waveform in (
            np.zeros(num_samples, dtype=np.float32),
            np.full(num_samples, 4.0, dtype=np.float32),
            1e-6 * speech_like()[:num_samples],
        ):
            changed = TRANSFORMS[name](waveform, RATE_HZ, rng(seed))
            assert np.isfinite(changed).all()
            assert changed.dtype == np.float32
            assert len(changed) > 0 or num_samples == 0 or name == "pad"
            if not waveform.any():
                assert not changed.any()


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_works_at_any_rate(name, rate_hz):
    for seed in range(8):
        changed = TRANSFORMS[name](speech_like(), rate_hz, rng(seed))
        assert np.isfinite(changed).all()
        assert name in CHANGES_LENGTH or len(changed) == 2 * RATE_HZ


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.25])
def test_speed_changes_length_and_pitch(factor):
    tone = np.sin(2 * np.pi * 500.0 * np.arange(2 * RATE_HZ) / RATE_HZ).astype(np.float32)
    faster = augment.speed(tone, RATE_HZ, rng(), low=factor, high=factor)
    assert abs(len(faster) - 2 * RATE_HZ / factor) <= 1
    peak_hz = np.argmax(np.abs(np.fft.rfft(faster))) * RATE_HZ / len(faster)
    assert peak_hz == pytest.approx(500.0 * factor, abs=1.0)


def test_gain_is_in_decibels():
    waveform = speech_like()
    louder = augment.gain(waveform, RATE_HZ, rng(), low_db=6.0, high_db=6.0)
    assert rms_db(louder) - rms_db(waveform) == pytest.approx(6.0, abs=0.01)


@pytest.mark.parametrize("colour", ["white", "pink", "brown", None])
@pytest.mark.parametrize("snr_db", [-5.0, 10.0, 30.0])
def test_noise_has_the_ratio_asked_for(colour, snr_db):
    waveform = speech_like()
    added = augment.noise(waveform, RATE_HZ, rng(), snr_low_db=snr_db, snr_high_db=snr_db, colour=colour) - waveform
    assert rms_db(waveform) - rms_db(added) == pytest.approx(snr_db, abs=0.02)


@pytest.mark.parametrize(("colour", "slope_db"), [("white", 0.0), ("pink", -3.01), ("brown", -6.02)])
def test_noise_has_its_slope(colour, slope_db):
    waveform = speech_like(20.0)
    noisy = augment.noise(waveform, RATE_HZ, rng(), snr_low_db=0.0, snr_high_db=0.0, colour=colour)
    added = noisy - waveform
    octaves = [band_db(added, low, 1.1 * low) for low in (250, 500, 1_000, 2_000, 4_000)]
    np.testing.assert_allclose(np.diff(octaves), slope_db, atol=0.8)


@pytest.mark.parametrize("source_hz", [4_000, 6_000, 8_000])
def test_band_limit_leaves_nothing_above_half_the_source_rate(source_hz):
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE_HZ).astype(np.float32)
    dull = augment.band_limit(waveform, RATE_HZ, rng(), source_low_hz=source_hz, source_high_hz=source_hz)
    assert band_db(dull, source_hz * 0.55, 8_000) < band_db(waveform, source_hz * 0.55, 8_000) - 60
    assert band_db(dull, 50, source_hz * 0.4) == pytest.approx(band_db(waveform, 50, source_hz * 0.4), abs=0.2)
    assert lag_samples(waveform, dull) == 0


@pytest.mark.parametrize("name", CODECS)
def test_codecs_change_the_sound_and_keep_its_time(name):
    waveform = speech_like(3.0)
    for seed in range(4):
        coded = augment.codec(waveform, RATE_HZ, rng(seed), names=(name,))
        assert len(coded) == len(waveform)
        assert abs(lag_samples(waveform, coded)) <= 2
        likeness = np.corrcoef(waveform, coded)[0, 1]
        assert 0.3 < likeness < 0.99999
        assert rms_db(coded) == pytest.approx(rms_db(waveform), abs=4.0)


def test_codecs_of_the_telephone_cut_at_four_kilohertz():
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE_HZ).astype(np.float32)
    for name in ("gsm", "ulaw", "alaw"):
        coded = augment.codec(waveform, RATE_HZ, rng(), names=(name,))
        assert band_db(coded, 4_400, 8_000) < band_db(coded, 300, 3_000) - 50


def test_codecs_do_not_clip_clips_above_full_scale():
    waveform = 8.0 * speech_like()
    coded = augment.codec(waveform, RATE_HZ, rng(), names=("ulaw",))
    assert np.abs(waveform).max() > 2.0
    assert rms_db(coded - waveform) < rms_db(waveform) - 15


def test_reverberation_decays_at_the_rate_asked_for():
    impulse = np.zeros(RATE_HZ, dtype=np.float32)
    impulse[100] = 1.0
    wet = augment.reverberation(
        impulse, RATE_HZ, rng(), rt60_low_s=0.4, rt60_high_s=0.4, direct_low_db=0.0, direct_high_db=0.0
    )
    assert np.argmax(np.abs(wet)) == 100  # the direct sound stays in place
    assert not np.abs(wet[:99]).max() > 1e-6
    early = rms_db(wet[700:1_500])
    late = rms_db(wet[700 + 3_200 : 1_500 + 3_200])
    assert early - late == pytest.approx(60.0 * 0.2 / 0.4, abs=3.0)
    assert np.square(wet[101:]).sum() == pytest.approx(np.square(wet[100]), rel=0.01)


def test_reverberation_keeps_the_level_and_smears_time():
    waveform = speech_like()
    waveform[RATE_HZ // 2 : RATE_HZ] = 0.0
    wet = augment.reverberation(waveform, RATE_HZ, rng(), rt60_low_s=0.5, rt60_high_s=0.5)
    assert rms_db(wet) == pytest.approx(rms_db(waveform), abs=0.01)
    assert rms_db(wet[RATE_HZ // 2 + 400 : RATE_HZ // 2 + 2_000]) > rms_db(wet) - 40


def test_tilt_is_straight_over_log_frequency_and_at_most_what_was_asked():
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * RATE_HZ).astype(np.float32)
    tilts = []
    for seed in range(40):
        tilted = augment.tilt(waveform, RATE_HZ, rng(seed), max_db=12.0)
        change = [
            band_db(tilted, low, 1.2 * low) - band_db(waveform, low, 1.2 * low) for low in (400, 800, 1_600, 3_200)
        ]
        np.testing.assert_allclose(np.diff(change), np.diff(change).mean(), atol=0.1)
        tilts.append(np.diff(change).mean() * np.log2(80))
        assert rms_db(tilted) == pytest.approx(rms_db(waveform), abs=0.01)
        assert lag_samples(waveform, tilted) == 0
    assert max(np.abs(tilts)) <= 12.1
    assert min(tilts) < -6
    assert max(tilts) > 6


def test_pad_adds_silence_and_keeps_the_clip():
    waveform = speech_like()
    lengths = set()
    for seed in range(20):
        padded = augment.pad(waveform, RATE_HZ, rng(seed), max_s=0.3)
        before = lag_samples(waveform, padded)
        assert 0 <= before <= 0.3 * RATE_HZ
        np.testing.assert_array_equal(padded[before : before + len(waveform)], waveform)
        assert not padded[:before].any()
        assert len(padded) <= len(waveform) + 0.6 * RATE_HZ
        lengths.add(len(padded))
    assert len(lengths) > 15


def test_clipping_cuts_the_share_asked_for_and_nothing_else():
    waveform = speech_like()
    clipped = augment.clipping(waveform, RATE_HZ, rng(), low_share=0.02, high_share=0.02)
    ceiling = np.abs(clipped).max()
    assert (np.abs(clipped) == ceiling).mean() == pytest.approx(0.02, abs=0.001)
    below = np.abs(waveform) < ceiling
    np.testing.assert_array_equal(clipped[below], waveform[below])


# --- packets -------------------------------------------------------------------------------------


@given(
    loss=st.floats(0.01, 0.5),
    burst=st.floats(1.0, 8.0),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=25, deadline=None)
def test_losses_have_the_share_and_the_bursts_asked_for(loss, burst, seed):
    count = 60_000
    lost = packets.lost_packets(count, rng(seed), loss=loss, burst=burst)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], lost.astype(np.int8), [0]])))
    runs = edges[1::2] - edges[::2]
    # Six standard errors: a burst counts once, however long it is, and both states last geometrically long.
    each = np.sqrt(2 * burst / (count * loss)) * loss
    assert lost.mean() == pytest.approx(loss, abs=6 * each + 1e-3)
    assert runs.mean() == pytest.approx(burst, abs=6 * burst / np.sqrt(len(runs)) + 1e-9)


def test_short_clips_lose_as_much_as_long_ones():
    lost = [packets.lost_packets(5, rng(seed), loss=0.2, burst=4.0).mean() for seed in range(4_000)]
    assert np.mean(lost) == pytest.approx(0.2, abs=0.02)


def test_nothing_is_lost_at_a_loss_of_zero():
    waveform = speech_like()
    kept = augment.packet_loss(waveform, RATE_HZ, rng(), loss_low=0.0, loss_high=0.0)
    assert kept is waveform


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050])
def test_packets_that_arrive_are_unchanged_and_lost_ones_are_silent(rate_hz):
    waveform = 0.1 + np.abs(speech_like())
    gone = augment.packet_loss(waveform, rate_hz, rng(3), loss_low=0.3, loss_high=0.3, concealment="zero")
    size = round(0.02 * rate_hz)
    silent = 0
    for begin in range(0, len(waveform), size):
        packet = gone[begin : begin + size]
        if packet.any():
            np.testing.assert_array_equal(packet, waveform[begin : begin + size])
        else:
            silent += 1
    assert silent > 5


def test_the_last_packet_is_repeated_and_fades_within_sixty_milliseconds():
    size, waveform = 320, np.ones(320 * 400, dtype=np.float32)
    heard = augment.packet_loss(
        waveform, RATE_HZ, rng(5), loss_low=0.3, loss_high=0.3, burst_low=6.0, burst_high=6.0
    ).reshape(-1, size)
    lost = np.flatnonzero(heard[:, -1] < 1.0)
    first = [place for place in lost if place > 0 and place - 1 not in lost]
    assert len(first) > 5
    for place in first:
        np.testing.assert_allclose(heard[place], 1.0 - np.arange(size) / 960, atol=1e-6)
        run = next(length for length in range(1, 400) if place + length not in lost)
        if run > 3:
            assert not heard[place + 3 : place + run].any()


def test_nothing_is_repeated_before_the_first_packet():
    for seed in range(200):
        waveform = np.ones(320 * 3, dtype=np.float32)
        heard = augment.packet_loss(waveform, RATE_HZ, rng(seed), loss_low=0.5, loss_high=0.5)
        if heard[0] == 0.0:
            assert not heard[:320].any()
            return
    raise AssertionError("no clip began with a loss")


def test_a_telephone_has_its_band():
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * RATE_HZ).astype(np.float32)
    heard = augment.band_pass(waveform, RATE_HZ, rng())
    assert band_db(heard, 500, 3_000) == pytest.approx(band_db(waveform, 500, 3_000), abs=0.1)
    assert band_db(heard, 20, 200) < band_db(waveform, 20, 200) - 60
    assert band_db(heard, 4_400, 8_000) < band_db(waveform, 4_400, 8_000) - 60
    assert lag_samples(waveform, heard) == 0


# --- chains --------------------------------------------------------------------------------------


def test_chains_are_those_of_the_settings_and_in_the_order_of_the_physics():
    assert tuple(CHAINS) == typing.get_args(ChainName)
    for name, steps in CHAINS.items():
        places = [ORDER.index(step.name) for step in steps]
        assert places == sorted(set(places)), name
        assert len(augment.chain_steps(name)) == len(steps)
    assert {step.name for steps in CHAINS.values() for step in steps} < set(ORDER)


def test_steps_are_applied_in_the_order_given(monkeypatch):
    told = []

    def spy(name):
        def transform(waveform, rate_hz, source, **limits):
            told.append((name, limits))
            return waveform

        return transform

    names = {"reverberation": "reverb", "packet_loss": "packet_loss"}
    names |= {name: name for name in ("noise", "tilt", "clipping", "band_pass", "codec", "gain", "speed", "pad")}
    for name, step in names.items():
        monkeypatch.setattr(augment, name, spy(step))
    augmenter = WaveformAugmenter(
        chains=("phone_call",),
        chain_probability=1.0,
        speed_probability=1.0,
        pad_probability=1.0,
        reverb_probability=1.0,
    )
    for clip in range(200):
        augmenter(np.zeros(8, np.float32), RATE_HZ, seed=0, epoch=0, clip_id=str(clip))
        called = [name for name, _ in told]
        if len(told) == len(CHAINS["phone_call"]) + 2:
            break
        told.clear()
    assert called == [
        "speed",
        "reverb",
        "noise",
        "tilt",
        "clipping",
        "band_pass",
        "codec",
        "packet_loss",
        "gain",
        "pad",
    ]
    assert dict(told)["codec"] == {"names": ("gsm", "ulaw", "alaw")}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_keeps_length_and_type_and_is_a_function_of_seed_epoch_and_clip(name):
    waveform = speech_like()
    before = waveform.copy()
    augmenter = WaveformAugmenter(chains=(name,), chain_probability=1.0)
    assert augmenter.active

    def run(seed=0, epoch=0, clip_id="a"):
        return augmenter(waveform, RATE_HZ, seed=seed, epoch=epoch, clip_id=clip_id)

    first = run()
    np.testing.assert_array_equal(first, run())
    np.testing.assert_array_equal(waveform, before)
    assert first.shape == waveform.shape
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    assert not np.array_equal(first, waveform)
    for other in (run(seed=1), run(epoch=1), run(clip_id="b")):
        assert not np.array_equal(other, first)


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_of_a_short_a_silent_or_a_loud_clip_stays_finite(name):
    augmenter = WaveformAugmenter(chains=(name,), chain_probability=1.0)
    for size in (1, 17, 399, 1_600):
        for waveform in (np.zeros(size, np.float32), np.full(size, 4.0, np.float32), 1e-6 * speech_like()[:size]):
            changed = augmenter(waveform, RATE_HZ, seed=0, epoch=0, clip_id=str(size))
            assert changed.shape == waveform.shape
            assert np.isfinite(changed).all()


def test_a_chain_that_is_not_drawn_changes_nothing():
    waveform = speech_like()
    augmenter = WaveformAugmenter(chains=("voip", "hall"), chain_probability=0.0)
    assert not augmenter.active
    assert augmenter(waveform, RATE_HZ, seed=0, epoch=0, clip_id="a") is waveform


def test_the_probability_of_chains_is_the_share_of_clips_and_each_is_drawn_alike():
    augmenter = WaveformAugmenter(chains=("phone_call", "hall"), chain_probability=0.4)
    drawn = [augmenter._chain(0, 0, str(clip)) for clip in range(2_000)]
    assert 720 <= sum(name is not None for name in drawn) <= 880
    assert 310 <= drawn.count("hall") <= 490


def test_clips_that_draw_no_chain_are_as_without_chains():
    waveform = speech_like(0.5)
    alone = WaveformAugmenter(noise_probability=0.5, gain_probability=0.5)
    both = dataclasses.replace(alone, chains=("hall",), chain_probability=0.5)
    same = 0
    for clip in range(40):
        one, other = (aug(waveform, RATE_HZ, seed=0, epoch=0, clip_id=str(clip)) for aug in (alone, both))
        if both._chain(0, 0, str(clip)) is None:
            np.testing.assert_array_equal(one, other)
            same += 1
    assert 10 < same < 30


# --- the augmenter -------------------------------------------------------------------------------


def test_nothing_is_done_by_default():
    waveform = speech_like()
    augmenter = WaveformAugmenter()
    assert not augmenter.active
    assert augmenter(waveform, RATE_HZ, seed=0, epoch=0, clip_id="a") is waveform
    assert WaveformAugmenter(codec_probability=0.1).active


def test_settings_are_those_of_the_configuration():
    defaults = {name: field.default for name, field in AugmentationConfig.model_fields.items()}
    for field in dataclasses.fields(WaveformAugmenter):
        assert defaults[field.name] == field.default, field.name


def test_the_chain_is_a_function_of_seed_epoch_and_clip():
    waveform = speech_like()
    augmenter = WaveformAugmenter(**ALL_ON)

    def run(seed=0, epoch=0, clip_id="a"):
        return augmenter(waveform, RATE_HZ, seed=seed, epoch=epoch, clip_id=clip_id)

    np.testing.assert_array_equal(run(), run())
    for other in (run(seed=1), run(epoch=1), run(clip_id="b")):
        assert other.shape != run().shape or not np.array_equal(other, run())


def test_switching_one_transform_off_leaves_the_draws_of_the_others():
    waveform = speech_like()
    both = WaveformAugmenter(gain_probability=1.0, pad_probability=1.0)
    only = WaveformAugmenter(pad_probability=1.0)
    for epoch in range(5):
        padded = only(waveform, RATE_HZ, seed=3, epoch=epoch, clip_id="a")
        changed = both(waveform, RATE_HZ, seed=3, epoch=epoch, clip_id="a")
        assert len(padded) == len(changed)
        np.testing.assert_array_equal(padded == 0.0, changed == 0.0)


def test_the_probability_is_the_share_of_clips():
    waveform = speech_like(0.1)
    augmenter = WaveformAugmenter(gain_probability=0.3)
    changed = sum(augmenter(waveform, RATE_HZ, seed=0, epoch=0, clip_id=str(i)) is not waveform for i in range(1_000))
    assert 255 <= changed <= 345


def test_everything_at_once_stays_finite_over_many_clips():
    augmenter = WaveformAugmenter(**ALL_ON)
    for i in range(30):
        changed = augmenter(speech_like(0.5, i), RATE_HZ, seed=0, epoch=0, clip_id=str(i))
        assert np.isfinite(changed).all()
        assert changed.any()
        assert not augmenter(np.zeros(8_000, np.float32), RATE_HZ, seed=0, epoch=0, clip_id=str(i)).any()


def test_another_process_with_other_threads_gets_the_same_bits():
    script = (
        "import hashlib, numpy as np\n"
        "from sonotune.audio.augment import WaveformAugmenter\n"
        "from sonotune.runs import generator\n"
        f"augmenter = WaveformAugmenter(**{ALL_ON!r})\n"
        "x = (0.1 * generator(0, 'x').standard_normal(200_000)).astype(np.float32)\n"
        "y = augmenter(x, 16_000, seed=5, epoch=2, clip_id='clip')\n"
        "print(hashlib.sha256(y.tobytes()).hexdigest())\n"
    )
    augmenter = pickle.loads(pickle.dumps(WaveformAugmenter(**ALL_ON)))  # noqa: S301
    waveform = (0.1 * generator(0, "x").standard_normal(200_000)).astype(np.float32)
    import hashlib
    import os

    expected = hashlib.sha256(augmenter(waveform, RATE_HZ, seed=5, epoch=2, clip_id="clip").tobytes()).hexdigest()
    for threads in ("1", "2"):
        variables = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


@pytest.mark.parametrize(
    "values",
    [
        {"gain_probability": 1.5},
        {"codec_probability": -0.1},
        {"noise_probability": float("nan")},
        {"speed_low": 1.2, "speed_high": 1.1},
        {"speed_low": 0.0},
        {"snr_low_db": 40.0},
        {"pad_max_s": -1.0},
        {"packet_loss_low": 0.2},
        {"packet_loss_high": 0.6},
        {"packet_burst_low": 0.5},
        {"packet_concealment": "noise"},
        {"chains": ("telephone",)},
        {"chain_probability": 1.5},
    ],
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        WaveformAugmenter(**values)


@pytest.mark.parametrize("name", sorted(set(TRANSFORMS) - {"codec"}))
def test_transforms_are_quick(name):
    waveform = speech_like(10.0)
    best_s = min(_seconds(TRANSFORMS[name], waveform, seed) for seed in range(8))
    assert best_s < 0.010  # 1 ms of processor time for each second of audio; measured 0.01 to 0.7


def _seconds(transform, waveform, seed):
    source = rng(seed)
    begin = time.process_time()
    transform(waveform, RATE_HZ, source)
    return time.process_time() - begin
