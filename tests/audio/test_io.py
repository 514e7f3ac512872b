"""Decoding, and every way in which a file can be bad."""

from __future__ import annotations

import os
import resource
import signal
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from sonotune.audio import containers, io
from sonotune.errors import AudioError, ResourceError

RATE_HZ = 16_000
COMPRESSED = {
    "x.flac": {},
    "vorbis.ogg": {"format": "OGG", "subtype": "VORBIS"},
    "x.opus": {"format": "OGG", "subtype": "OPUS"},
    "x.mp3": {"format": "MP3"},
    "vbr.mp3": {"format": "MP3", "bitrate_mode": "VARIABLE"},
}


def tone(seconds: float, rate_hz: int, frequency_hz: float = 440.0, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(
        np.float32
    )


def murmur(num_samples: int, seed: int = 0) -> np.ndarray:
    """Noise under 3 kHz: different everywhere, and nothing that a resampler would have to remove."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(num_samples + 64)
    smooth = np.convolve(noise, np.hanning(33), mode="same")[32:-32]
    return (0.2 * smooth / smooth.std()).clip(-1, 1).astype(np.float32)


def level_db(waveform: np.ndarray, frequency_hz: float, rate_hz: int = RATE_HZ) -> float:
    """Amplitude of one tone, away from the ends, in dB of full scale."""
    middle = waveform[len(waveform) // 4 : 3 * len(waveform) // 4].astype(np.float64)
    window = np.hanning(len(middle))
    phase = np.exp(-2j * np.pi * frequency_hz * np.arange(len(middle)) / rate_hz)
    return float(20 * np.log10(2 * abs((middle * window * phase).sum()) / window.sum()))


def refused(path: Path, call=io.read, **options) -> AudioError:
    with pytest.raises(AudioError) as caught:
        call(path, **options)
    assert len(str(caught.value)) > 30
    return caught.value


@pytest.mark.parametrize("rate_hz", [1_000, 7_999, 8_000, 11_025, 16_000, 22_050, 44_100, 96_000, 192_000, 384_000])
def test_a_tone_keeps_its_level_and_pitch_at_any_rate(tmp_path, rate_hz):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(1.5, rate_hz, 330.0), rate_hz, subtype="FLOAT")
    waveform = io.read(path)
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert abs(len(waveform) - 1.5 * RATE_HZ) <= 1
    assert level_db(waveform, 330.0) == pytest.approx(20 * np.log10(0.5), abs=0.1)
    residual = waveform - tone(len(waveform) / RATE_HZ, RATE_HZ, 330.0)[: len(waveform)]
    assert np.abs(residual[4000:-4000]).max() < 0.003  # in place in time, too


@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "MS_ADPCM", "IMA_ADPCM"]
)
def test_a_tone_keeps_its_level_at_any_width(tmp_path, subtype):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(1.0, 16_000), 16_000, subtype=subtype)
    assert io.probe(path).subtype == subtype
    assert level_db(io.read(path), 440.0) == pytest.approx(20 * np.log10(0.5), abs=0.1)


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_tone_keeps_its_level_through_each_container(tmp_path, name):
    path = tmp_path / name
    soundfile.write(path, tone(2.0, 48_000), 48_000, **COMPRESSED[name])
    waveform = io.read(path)
    assert len(waveform) == 2 * RATE_HZ
    assert level_db(waveform, 440.0) == pytest.approx(20 * np.log10(0.5), abs=0.1)


@pytest.mark.parametrize("name", ["vorbis.ogg", "x.opus"])
def test_a_header_page_with_the_position_of_audio_is_refused(tmp_path, name):
    """Without the check libsndfile 1.2.2 seeks to such a page and ends the process."""
    path = tmp_path / name
    soundfile.write(path, tone(1.0, 16_000), 16_000, **COMPRESSED[name])
    content = bytearray(path.read_bytes())
    second = content.index(b"OggS", 4)
    content[second + 6 : second + 14] = (1000).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(AudioError, match=f"is damaged: the page at byte {second} has position 1000"):
        io.read(path)


@pytest.mark.parametrize("name", ["vorbis.ogg", "x.opus"])
def test_a_page_that_stands_twice_is_refused(tmp_path, name):
    path = tmp_path / name
    soundfile.write(path, tone(1.0, 16_000), 16_000, **COMPRESSED[name])
    content = path.read_bytes()
    path.write_bytes(content + content[content.rindex(b"OggS") :])
    with pytest.raises(AudioError, match=f"is damaged: the page at byte {len(content)}, number .* is out of order"):
        io.read(path)


def test_a_long_file_is_looked_through_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    path = tmp_path / "x.opus"
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.uniform(-0.5, 0.5, 400 * 16_000), 16_000, **COMPRESSED["x.opus"])
    looked = []
    look = containers.ogg_damage
    monkeypatch.setattr(containers, "ogg_damage", lambda fd, size: looked.append(size) or look(fd, size))
    for start_s in (0.0, 100.0, 300.0):
        assert len(io.read(path, start_s=start_s, duration_s=1.0)) == RATE_HZ
    assert len(looked) == 1
    content = path.read_bytes()
    path.write_bytes(content + content[content.rindex(b"OggS") :])
    with pytest.raises(AudioError, match="out of order"):
        io.read(path, start_s=0.0, duration_s=1.0)


@pytest.mark.parametrize("name", ["vorbis.ogg", "x.opus"])
def test_a_file_of_many_pages_is_read_to_its_end(tmp_path, name):
    path = tmp_path / name
    soundfile.write(path, tone(30.0, 16_000), 16_000, **COMPRESSED[name])
    assert io.probe(path).duration_s == pytest.approx(30.0, abs=0.05)


@pytest.mark.parametrize("name", ["x.aiff", "x.au", "x.nist", "x.rf64"])
def test_other_containers_of_speech_corpora_are_read(tmp_path, name):
    expected = murmur(8_000)
    soundfile.write(tmp_path / name, expected, 16_000, subtype="PCM_16")
    np.testing.assert_allclose(io.read(tmp_path / name), expected, atol=2 / 32768)


def test_channels_are_averaged_or_chosen(tmp_path):
    path = tmp_path / "eight.wav"
    channels = np.stack([tone(0.5, 16_000, 200.0 * (i + 1), 0.1) for i in range(8)], axis=1)
    soundfile.write(path, channels, 16_000, subtype="FLOAT")
    assert io.probe(path).num_channels == 8
    np.testing.assert_allclose(io.read(path), channels.mean(axis=1), atol=1e-7)
    np.testing.assert_array_equal(io.read(path, channel=5), channels[:, 5])
    assert refused(path, channel=8).reason == "channels"
    assert refused(path, channel=-1).reason == "channels"


def test_above_half_the_rate_nothing_is_folded_back(tmp_path):
    path = tmp_path / "high.wav"
    soundfile.write(path, tone(1.0, 48_000, 9_500.0), 48_000, subtype="FLOAT")
    assert np.abs(io.read(path)[2000:-2000]).max() < 1e-4


@pytest.mark.parametrize("rate_hz", [1_000, 7_999, 8_000, 16_000, 44_100, 48_000])
def test_a_span_is_that_part_of_the_whole_file_resampled(tmp_path, rate_hz):
    path = tmp_path / "noise.wav"
    rng = np.random.default_rng(1)
    soundfile.write(path, rng.uniform(-0.5, 0.5, 4 * rate_hz), rate_hz, subtype="FLOAT")
    whole = io.read(path)
    for start_s, duration_s in [(0.0, 0.7), (0.123, 0.5), (1.2345, 1.0), (2.5, 1.5), (3.9, 0.1)]:
        span = io.read(path, start_s=start_s, duration_s=duration_s)
        first = round(start_s * RATE_HZ)
        last = round((start_s + duration_s) * RATE_HZ)
        assert len(span) == last - first
        np.testing.assert_allclose(span, whole[first:last], atol=1e-5)
    np.testing.assert_allclose(io.read(path, start_s=1.1), whole[round(1.1 * RATE_HZ) :], atol=1e-5)


@pytest.mark.parametrize("content", ["noise", "tone"])
@pytest.mark.parametrize("name", COMPRESSED)
def test_a_span_of_a_compressed_file_is_in_place(tmp_path, name, content):
    path = tmp_path / name
    # The frames of a tone in an MP3 are tiny and made of bits from many frames before.
    samples = murmur(20 * 16_000) if content == "noise" else tone(20.0, 16_000, 255.0)
    soundfile.write(path, samples, 16_000, **COMPRESSED[name])
    whole = io.read(path)
    rng = np.random.default_rng(2)
    for start_s in [0.001, 0.01, 0.03, 0.05, 0.1, *rng.uniform(0.0, 19.0, 20), 19.4]:
        span = io.read(path, start_s=float(start_s), duration_s=0.5)
        first = round(start_s * 16_000)
        atol = 5e-3 if name == "x.opus" else 1e-5
        np.testing.assert_allclose(span, whole[first : first + len(span)], atol=atol, err_msg=f"{start_s}")


@pytest.mark.parametrize("name", ["x.wav", *COMPRESSED])
def test_blocks_join_without_a_seam(tmp_path, name, monkeypatch):
    path = tmp_path / name
    stereo = np.stack([murmur(100_000, 3), murmur(100_000, 4)], axis=1)
    soundfile.write(path, stereo, 48_000, **COMPRESSED.get(name, {}))
    in_one_block = io.read(path)
    monkeypatch.setattr(io, "BLOCK_SAMPLES", 5_000)
    np.testing.assert_array_equal(io.read(path), in_one_block)


def test_a_whole_file_equals_soxr_in_one_piece(tmp_path):
    path = tmp_path / "x.wav"
    expected = murmur(44_100 * 8)
    soundfile.write(path, expected, 44_100, subtype="FLOAT")
    np.testing.assert_allclose(io.read(path), soxr.resample(expected, 44_100, 16_000, "HQ"), atol=1e-7)


def test_probe_reads_the_header(tmp_path):
    path = tmp_path / "x.flac"
    soundfile.write(path, np.zeros((22_050, 2)), 44_100, subtype="PCM_24")
    info = io.probe(path)
    assert info == io.measure(path).info
    assert (info.path, info.sample_rate_hz, info.num_frames, info.num_channels) == (path, 44_100, 22_050, 2)
    assert (info.duration_s, info.format, info.subtype) == (0.5, "FLAC", "PCM_24")


# --- bad input -----------------------------------------------------------------------------------


def test_the_level_of_a_span_is_measured_while_it_is_decoded(tmp_path):
    """Whatever block a loud moment falls into, of the channel that is used or of the mean of all."""
    rate_hz = 8_000
    both = np.zeros((io.BLOCK_SAMPLES * 2, 2), dtype=np.float32)
    both[-1_000:, 0] = 0.5 * np.tile([1.0, -1.0], 500)
    both[:, 1] = -both[:, 0]
    path = tmp_path / "opposed.wav"
    soundfile.write(path, both, rate_hz, subtype="FLOAT")
    assert io.measure(path).level_db == -200.0
    for channel in (0, 1):
        assert io.measure(path, channel=channel).level_db == pytest.approx(20 * np.log10(0.5), abs=0.01)
    assert io.measure(path, channel=0, duration_s=10.0).level_db == -200.0
    assert io.measure(path).info == io.probe(path)


CALLS = [io.probe, io.read, io.measure]


@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_regular_file_is_refused_before_it_blocks(tmp_path, call):
    assert refused(tmp_path / "nothing.wav", call).reason == "missing"
    assert refused(Path("a\0b.wav"), call).reason == "missing"
    assert refused(tmp_path, call).reason == "not_regular"
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    assert refused(tmp_path / "zero.wav", call).reason == "not_regular"
    (tmp_path / "broken.wav").symlink_to(tmp_path / "gone.wav")
    assert refused(tmp_path / "broken.wav", call).reason == "missing"
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    assert refused(tmp_path / "loop.wav", call).reason == "missing"
    os.mkfifo(tmp_path / "fifo.wav")
    begin = time.monotonic()
    assert "FIFO" in str(refused(tmp_path / "fifo.wav", call))
    assert time.monotonic() - begin < 1.0
    (tmp_path / "empty.wav").touch()
    assert refused(tmp_path / "empty.wav", call).reason == "empty"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html><body>404</body></html>" * 50,
        b"\x89PNG\r\n\x1a\n" + bytes(500),
        b"\xff\xfe" + "utf-16 text".encode("utf-16-le") * 40,
        b"RIFF" + struct.pack("<I", 500) + b"AVI " + bytes(500),
        b"\xff",
        bytes(1000),
    ],
    ids=["html", "png", "utf16", "avi", "one byte", "zeros"],
)
def test_what_is_no_audio_is_refused(tmp_path, call, content):
    (tmp_path / "x.mp3").write_bytes(content)
    assert refused(tmp_path / "x.mp3", call).reason == "not_audio"


@pytest.mark.parametrize("call", CALLS)
def test_random_bytes_behind_a_good_magic_number_are_refused(tmp_path, call):
    noise = np.random.default_rng(5).bytes(3_000)
    for magic in (b"RIFF\xf0\x0b\0\0WAVE", b"fLaC", b"OggS", b"FORM\0\0\x0b\xf0AIFF", b".snd", b"NIST_1A\n   1024\n"):
        (tmp_path / "x").write_bytes(magic + noise)
        assert refused(tmp_path / "x", call).reason in {
            "unreadable",
            "truncated",
            "sample_rate",
            "channels",
            "no_samples",
        }


@pytest.mark.parametrize("share", [0.3, 0.5, 0.97])
@pytest.mark.parametrize("name", ["x.wav", "x.rf64", "x.aiff", "x.au", "x.nist", *COMPRESSED])
def test_a_cut_file_is_refused(tmp_path, name, share):
    path = tmp_path / name
    options = COMPRESSED.get(name, {"subtype": "PCM_16"})
    soundfile.write(path, murmur(64_037), 16_000, **options)
    io.measure(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    for call in (io.read, io.measure):
        error = refused(path, call)
        assert error.reason == "truncated"
        assert "cut off" in str(error)
    if name != "x.flac":  # its header counts samples, so the cut shows in decoding only
        assert refused(path, io.probe).reason == "truncated"


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
@pytest.mark.parametrize("name", ["x.wav", "x.rf64", "x.aiff", "x.au", "x.nist"])
def test_a_file_that_lacks_a_few_milliseconds_is_read_as_far_as_it_goes(tmp_path, name, rate_hz):
    path = tmp_path / name
    whole = murmur(4 * rate_hz)
    soundfile.write(path, whole, rate_hz, subtype="PCM_16")
    expected = io.read(path, sample_rate_hz=rate_hz)
    missing = round(0.021 * rate_hz)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 2 * missing])
    for info in (
        io.probe(path),
        *(io.measure(path, **given).info for given in ({}, {"duration_s": 4.0}, {"decode": False})),
    ):
        assert info.num_frames == len(whole) - missing
        assert info.missing_s == pytest.approx(0.021, abs=0.001)
    np.testing.assert_array_equal(io.read(path, sample_rate_hz=rate_hz), expected[:-missing])
    np.testing.assert_array_equal(
        io.read(path, start_s=1.0, duration_s=3.0, sample_rate_hz=rate_hz), expected[rate_hz:-missing]
    )
    assert len(io.read(path)) == pytest.approx(16_000 * (4.0 - 0.021), abs=1)
    path.write_bytes(content[: len(content) - round(0.11 * rate_hz) * 2])
    assert refused(path, io.probe).reason == "truncated"


def test_of_a_short_file_less_may_be_missing(tmp_path):
    path = tmp_path / "x.wav"
    soundfile.write(path, murmur(8_000), 16_000, subtype="PCM_16")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 2 * 320])  # 20 of 500 ms
    assert io.measure(path).info.missing_s == pytest.approx(0.02)
    path.write_bytes(content[: len(content) - 2 * 480])
    assert refused(path, io.measure).reason == "truncated"


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_damaged_file_is_refused_or_decodes_to_its_full_length(tmp_path, name):
    path = tmp_path / name
    soundfile.write(path, murmur(64_037), 16_000, **COMPRESSED[name])
    content = bytearray(path.read_bytes())
    for i in range(len(content) // 2, len(content) // 2 + 40):
        content[i] ^= 0x5A
    path.write_bytes(content)
    if "mp3" in name:  # MP3 frames carry no checksum: at most the damaged frame is lost
        assert len(io.read(path)) >= 64_037 - 1_152
    else:
        assert refused(path).reason == "truncated"


def test_a_header_without_samples_is_refused(tmp_path):
    for name in ("x.wav", "x.aiff", "x.au"):
        soundfile.write(tmp_path / name, np.zeros(0), 16_000)
        assert refused(tmp_path / name).reason == "no_samples"
    (tmp_path / "short.wav").write_bytes(b"RIFF\x24\0\0\0WAVEfmt ")
    assert refused(tmp_path / "short.wav").reason == "truncated"


def test_a_stream_written_to_a_pipe_is_read_although_its_header_has_no_length(tmp_path):
    path = tmp_path / "x.wav"
    expected = murmur(16_000)
    soundfile.write(path, expected, 16_000, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    for size in (0xFFFF_FFFF, 0x7FFF_F000):
        content[4:8] = content[40:44] = struct.pack("<I", size)
        path.write_bytes(content)
        np.testing.assert_allclose(io.read(path), expected, atol=2 / 32768)


def test_a_wav_whose_length_was_never_filled_in_is_read_to_its_end_and_told_from_an_empty_one(tmp_path):
    path = tmp_path / "x.wav"
    expected = murmur(16_000)
    soundfile.write(path, expected, 16_000, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[40:44] = bytes(4)
    for size in (0, 36):
        content[4:8] = struct.pack("<I", size)
        path.write_bytes(content)
        np.testing.assert_allclose(io.read(path), expected, atol=2 / 32768)
        assert io.probe(path).num_frames == io.measure(path).info.num_frames == 16_000
        np.testing.assert_allclose(io.read(path, start_s=0.5, duration_s=0.25), expected[8_000:12_000], atol=2 / 32768)
    path.write_bytes(bytes(content[:44]) + b"LIST\4\0\0\0INFO")
    assert refused(path).reason == "no_samples"


def test_a_span_of_a_file_that_cannot_be_sought_in_is_read_from_the_front(tmp_path):
    path = tmp_path / "x.wav"
    soundfile.write(path, tone(0.5, 8_000), 8_000, subtype="GSM610")
    whole = io.read(path, sample_rate_hz=8_000)
    span = io.read(path, start_s=0.2, duration_s=0.1, sample_rate_hz=8_000)
    np.testing.assert_array_equal(span, whole[1600:2400])
    assert io.measure(path, start_s=0.3, duration_s=0.05).info.subtype == "GSM610"


def test_a_flac_without_a_length_is_refused_with_advice(tmp_path):
    path = tmp_path / "x.flac"
    soundfile.write(path, murmur(16_000), 16_000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    error = refused(path)
    assert error.reason == "unreadable"
    assert "pipe" in str(error)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_samples_that_are_not_finite_are_refused(tmp_path, value, rate_hz):
    path = tmp_path / "x.wav"
    samples = np.stack([murmur(rate_hz), murmur(rate_hz)], axis=1)
    samples[rate_hz // 2, 1] = value
    soundfile.write(path, samples, rate_hz, subtype="FLOAT")
    assert refused(path).reason == "non_finite"
    assert refused(path, io.measure).reason == "non_finite"
    assert np.isfinite(io.read(path, channel=0)).all()
    assert np.isfinite(io.read(path, start_s=0.0, duration_s=0.4)).all()
    assert io.measure(path, start_s=0.6, duration_s=0.3).info.num_frames == rate_hz


@pytest.mark.parametrize("value", [1e30, -1e30, 1001.0])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_samples_far_beyond_full_scale_are_refused(tmp_path, value, rate_hz):
    path = tmp_path / "x.wav"
    samples = murmur(rate_hz)
    samples[rate_hz // 2] = value
    soundfile.write(path, samples, rate_hz, subtype="FLOAT")
    assert refused(path).reason == "amplitude"
    assert f"{abs(value):.3g} times full scale; allowed are 1,000" in str(refused(path, io.measure))
    assert np.isfinite(io.read(path, start_s=0.0, duration_s=0.4)).all()


def test_integers_that_were_written_as_floats_are_refused_with_what_to_do(tmp_path):
    soundfile.write(tmp_path / "x.wav", 32_768 * tone(0.2, RATE_HZ), RATE_HZ, subtype="FLOAT")
    assert "divided by their full scale, 32768" in str(refused(tmp_path / "x.wav"))


def test_loud_samples_within_the_bound_are_read_as_they_are(tmp_path):
    samples = (io.MAX_AMPLITUDE * np.sign(murmur(1000))).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", samples, RATE_HZ, subtype="FLOAT")
    np.testing.assert_array_equal(io.read(tmp_path / "x.wav"), samples)


def test_a_float64_too_large_for_float32_is_refused(tmp_path):
    samples = np.zeros(100)
    samples[50] = 1e300
    soundfile.write(tmp_path / "x.wav", samples, 16_000, subtype="DOUBLE")
    assert refused(tmp_path / "x.wav").reason == "non_finite"


@pytest.mark.parametrize(
    ("rate_hz", "good"),
    [(1, False), (999, False), (1_000, True), (384_000, True), (384_001, False), (2**31 - 1, False)],
)
def test_sample_rates_have_limits(tmp_path, rate_hz, good):
    path = tmp_path / "x.wav"
    soundfile.write(path, np.full(4_000, 0.1), rate_hz)
    if 1_000 <= rate_hz <= 384_000:
        assert io.probe(path).sample_rate_hz == rate_hz
    else:
        assert refused(path).reason == "sample_rate"


def test_a_rate_that_cannot_be_asked_for_is_refused(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(100), 16_000)
    assert refused(tmp_path / "x.wav", sample_rate_hz=0).reason == "sample_rate"


@pytest.mark.parametrize(("channels", "good"), [(64, True), (65, False)])
def test_channels_have_a_limit(tmp_path, channels, good):
    path = tmp_path / "x.wav"
    soundfile.write(path, np.full((500, channels), 0.25), 16_000)
    if good:
        np.testing.assert_allclose(io.read(path), 0.25, atol=1e-4)
    else:
        assert refused(path).reason == "channels"


def test_three_hours_are_refused_unless_a_span_is_asked_for(tmp_path):
    path = tmp_path / "long.wav"
    data_bytes = 3 * 3600 * 8_000  # a hole in the file: no disk is used
    header = (
        b"RIFF" + struct.pack("<I", 36 + data_bytes) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
    )
    path.write_bytes(header + b"data" + struct.pack("<I", data_bytes))
    os.truncate(path, 44 + data_bytes)
    error = refused(path)
    assert error.reason == "too_long"
    assert "7200 s" in str(error)
    assert "span" in str(error)
    assert refused(path, io.measure).reason == "too_long"
    assert io.probe(path).duration_s == 3 * 3600
    assert len(io.read(path, start_s=9_000.0, duration_s=2.0)) == 2 * RATE_HZ
    assert io.measure(path, start_s=9_000.0, duration_s=2.0).info.duration_s == 3 * 3600


def test_a_flac_bomb_is_refused_from_its_header(tmp_path):
    path = tmp_path / "bomb.flac"
    with soundfile.SoundFile(path, "w", 96_000, 8, "PCM_16") as file:
        for _ in range(10):
            file.write(np.zeros((1_000_000, 8), dtype=np.int16))
    assert path.stat().st_size * io.BOMB_RATIO < 10_000_000 * 8 * 2
    for call in (io.read, io.measure):
        begin = time.monotonic()
        assert refused(path, call).reason == "bomb"
        assert refused(path, call, max_duration_s=None).reason == "bomb"
        assert time.monotonic() - begin < 0.1
    assert not io.read(path, start_s=50.0, duration_s=1.0).any()


def test_memory_is_that_of_the_result(tmp_path):
    path = tmp_path / "big.wav"
    frames, channels = 2_000_000, 64
    header = struct.pack("<IHHIIHH", 16, 1, channels, 192_000, 192_000 * channels * 2, channels * 2, 16)
    data_bytes = frames * channels * 2
    path.write_bytes(
        b"RIFF" + struct.pack("<I", 36 + data_bytes) + b"WAVEfmt " + header + b"data" + struct.pack("<I", data_bytes)
    )
    os.truncate(path, 44 + data_bytes)
    tracemalloc.start()
    try:
        assert len(io.read(path)) == round(frames / 192_000 * RATE_HZ)
        io.measure(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16 << 20  # whole it would be 512 MB as float32


@pytest.mark.parametrize("rate_hz", [16_000, 22_050])
def test_blocks_are_the_samples_of_the_whole(tmp_path, rate_hz):
    waveform = np.random.default_rng(2).standard_normal(rate_hz * 40).astype(np.float32) * 0.1
    io.write(tmp_path / "a.flac", waveform, rate_hz)
    for span in ({}, {"start_s": 3.21, "duration_s": 30.0}):
        blocks = list(io.read_blocks(tmp_path / "a.flac", **span))
        assert len(blocks) > 1
        np.testing.assert_array_equal(np.concatenate(blocks), io.read(tmp_path / "a.flac", **span))
    with pytest.raises(AudioError, match="does not exist"):
        next(io.read_blocks(tmp_path / "b.flac"))


def test_a_span_outside_the_file_is_refused(tmp_path):
    path = tmp_path / "x.wav"
    soundfile.write(path, murmur(16_000), 16_000)
    bad = [
        (1.0, None),
        (2.0, 0.5),
        (0.5, 0.6),
        (-0.1, 0.5),
        (float("nan"), 0.5),
        (0.0, 0.0),
        (0.0, -1.0),
        (0.0, float("nan")),
    ]
    for start_s, duration_s in [*bad, (0.0, float("inf")), (0.5, 1e-7)]:
        error = refused(path, start_s=start_s, duration_s=duration_s)
        assert error.reason == "span", (start_s, duration_s)
        assert refused(path, io.measure, start_s=start_s, duration_s=duration_s).reason == "span"
    assert len(io.read(path, start_s=0.5, duration_s=0.515)) == 8_000  # manifests round


def test_no_descriptor_is_left_open(tmp_path):
    good, bad = tmp_path / "x.wav", tmp_path / "y.wav"
    soundfile.write(good, murmur(16_000), 16_000)
    bad.write_bytes(good.read_bytes()[:9_000])
    (tmp_path / "z.wav").write_text("no audio at all")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        io.read(good)
        io.probe(good)
        refused(bad)
        refused(tmp_path / "z.wav")
        refused(good, start_s=5.0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- MP3 -----------------------------------------------------------------------------------------


def mp3_without_count(path: Path, samples: np.ndarray) -> int:
    """Write an MP3 and take its Xing frame away. Returns how many frames are left."""
    soundfile.write(path, samples, 16_000, format="MP3", bitrate_mode="VARIABLE")
    content = path.read_bytes()
    assert b"Xing" in content[:64]
    position = content.index(b"\xff\xf3", 100)
    frames = struct.unpack(">I", content[21:25])[0]
    path.write_bytes(content[position:])
    return frames


def test_an_mp3_without_a_frame_count_is_read_whole(tmp_path):
    path = tmp_path / "x.mp3"
    samples = np.concatenate([np.zeros(16_000, dtype=np.float32), murmur(64_000)])
    frames = mp3_without_count(path, samples)
    assert soundfile.info(path).frames != frames * 576  # the decoder alone guesses from the first frame
    info = io.measure(path).info
    assert abs(info.num_frames - frames * 576) <= 3 * 576
    waveform = io.read(path)
    assert waveform[20_000:-4_000].std() == pytest.approx(0.2, rel=0.1)
    np.testing.assert_allclose(io.read(path, start_s=2.0, duration_s=1.0), waveform[32_000:48_000], atol=1e-4)


def test_an_mp3_without_a_frame_count_that_breaks_off_is_refused(tmp_path):
    path = tmp_path / "x.mp3"
    mp3_without_count(path, murmur(64_000))
    content = bytearray(path.read_bytes())
    middle = content.index(b"\xff\xf3", len(content) // 2)
    content[middle : middle + 2] = b"ab"
    path.write_bytes(content)
    error = refused(path)
    assert error.reason == "unreadable"
    assert "Xing" in str(error)


def test_tags_around_an_mp3_change_nothing(tmp_path):
    path = tmp_path / "x.mp3"
    soundfile.write(path, murmur(32_000), 16_000, format="MP3")
    plain = io.read(path)
    content = path.read_bytes()
    tag = b"ID3\x04\0\0" + bytes([0, 0, 8, 0]) + bytes(1024)
    path.write_bytes(tag + content + b"TAG" + bytes(125))
    np.testing.assert_array_equal(io.read(path), plain)
    path.write_bytes(tag + content[: len(content) // 2])
    assert refused(path).reason == "truncated"


# --- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3"])
def test_what_is_written_is_read_back(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    expected = tone(1.0, 16_000)
    io.write(path, expected, 16_000)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert level_db(io.read(path), 440.0) == pytest.approx(20 * np.log10(0.5), abs=0.1)
    assert len(io.read(path)) == 16_000


def test_float_files_are_exact_and_pcm_clips(tmp_path):
    loud = 3.0 * murmur(1_000)
    io.write(tmp_path / "x.wav", loud, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(io.read(tmp_path / "x.wav"), loud)
    io.write(tmp_path / "y.wav", loud, 16_000)
    np.testing.assert_allclose(io.read(tmp_path / "y.wav"), loud.clip(-1, 1), atol=2 / 32768)


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.wav"
    io.write(path, tone(0.1, 16_000), 16_000)
    before = path.read_bytes()
    for waveform, rate_hz, options, reason in [
        (np.zeros(0, dtype=np.float32), 16_000, {}, "no_samples"),
        (np.full(10, np.nan, dtype=np.float32), 16_000, {}, "non_finite"),
        (np.full(10, 1e30, dtype=np.float32), 16_000, {}, "amplitude"),
        (np.zeros(10, dtype=np.float32), 10, {}, "sample_rate"),
        (np.zeros(10, dtype=np.float32), 16_000, {"subtype": "VORBIS"}, "unwritable"),
    ]:
        with pytest.raises(AudioError) as caught:
            io.write(path, waveform, rate_hz, **options)
        assert caught.value.reason == reason
    with pytest.raises(AudioError, match=r"'\.doc'"):
        io.write(tmp_path / "x.doc", tone(0.1, 16_000), 16_000)
    assert path.read_bytes() == before
    with pytest.raises(ResourceError, match="cannot be written"):
        io.write(tmp_path / "no folder" / "x.wav", tone(0.1, 16_000), 16_000)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.wav"]


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(ResourceError, match=r"full\.wav"):
            io.write(tmp_path / "full.wav", murmur(200_000), 16_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


# --- real recordings -----------------------------------------------------------------------------


@pytest.mark.realdata
def test_every_tenth_real_recording_is_sound_and_twice_as_long_at_16_khz(fsdd):
    paths = sorted(fsdd.rglob("*.wav"))[::10]
    assert len(paths) > 50
    for path in paths:
        info = io.measure(path).info
        assert info.sample_rate_hz == 8_000
        waveform = io.read(path)
        assert len(waveform) == 2 * info.num_frames
        assert 0.001 < np.abs(waveform).max() < 1.5
