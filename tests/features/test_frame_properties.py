"""Properties of frames: what each of them says, and that gain, padding and neighbours say nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sonotune.features.frame_properties import (
    CHANNELS,
    HOP_SAMPLES,
    WHOLE_CLIP,
    FrameProperties,
    frame_properties,
    log_mel_of_samples,
)
from sonotune.features.frontend import LogMel


def clip() -> torch.Tensor:
    """A second of quiet, one of a rising noise with a low tilt, one of quiet: log-mel (1, 300, 80)."""
    noise = np.random.default_rng(0).standard_normal(48_000).astype(np.float32)
    low = np.convolve(noise, np.ones(24, dtype=np.float32) / 24, mode="same")
    loud = np.zeros(48_000, dtype=np.float32)
    loud[16_000:32_000] = 1.0
    features, lengths = LogMel()([0.001 * noise + 0.3 * loud * low])
    assert int(lengths[0]) == 300
    return features[:, :300]


@pytest.fixture
def found() -> FrameProperties:
    return frame_properties(clip(), torch.tensor([300]))


def channel(found: FrameProperties, name: str) -> torch.Tensor:
    return found.frames[0, :, CHANNELS.index(name)]


def test_each_property_says_what_it_is_called(found: FrameProperties):
    quiet, loud, onset = slice(10, 90), slice(110, 190), slice(97, 103)
    for name in ("energy", "tilt", "speech_activity"):
        assert float(channel(found, name)[loud].mean()) > float(channel(found, name)[quiet].mean()) + 0.5, name
    assert float(channel(found, "spectral_entropy")[loud].mean()) < float(
        channel(found, "spectral_entropy")[quiet].mean()
    )
    for name in ("energy_change", "flux"):
        assert int(channel(found, name).argmax()) in range(onset.start, onset.stop), name
    assert float(channel(found, "speech_activity").min()) > 0
    assert float(channel(found, "speech_activity").max()) < 1
    others = found.frames[0, :, :5]
    torch.testing.assert_close(others.mean(dim=0), torch.zeros(5), atol=0.1, rtol=0)  # an onset is beyond the bound
    assert float(others.std(dim=0, correction=0).min()) > 0.4
    assert float(others.std(dim=0, correction=0).max()) < 1.1
    assert float(others.abs().max()) <= 5


def test_a_gain_changes_no_property_of_a_frame(found: FrameProperties):
    louder = frame_properties(clip() + 0.5, torch.tensor([300]))  # a factor of 100 in power
    torch.testing.assert_close(louder.frames, found.frames, atol=1e-3, rtol=1e-3)
    assert float((louder.clip - found.clip).abs().max()) > 1  # which a clip as a whole has


def test_what_lies_behind_a_clip_is_not_looked_at(found: FrameProperties):
    padded = torch.cat([clip().expand(2, -1, -1), torch.full((2, 50, 80), torch.nan)], dim=1)
    padded[1, 200:] = torch.inf
    both = frame_properties(padded, torch.tensor([300, 200]))
    torch.testing.assert_close(both.frames[0], found.frames[0])
    torch.testing.assert_close(both.clip[0], found.clip[0])
    shorter = frame_properties(clip()[:, :200], torch.tensor([200]))
    torch.testing.assert_close(both.frames[1, :200], shorter.frames[0])
    assert torch.equal(both.frames[1, 200:], both.silence[1].expand(100, -1))


def test_a_constant_clip_has_no_numbers_that_are_none():
    for features in (torch.zeros(1, 40, 80), torch.full((1, 1, 80), -1.5)):
        found = frame_properties(features, torch.tensor([features.shape[1]]))
        assert all(bool(torch.isfinite(value).all()) for value in (found.frames, found.silence, found.clip))


def test_positions_read_the_mean_of_their_frames_and_silence_behind_the_clip(found: FrameProperties):
    starts = torch.tensor([-1, 3, 298, 500, WHOLE_CLIP])
    read = found.at(starts, 3)[0]
    frames = found.frames[0]
    torch.testing.assert_close(read[0], frames[:2].mean(dim=0))
    torch.testing.assert_close(read[1], frames[3:6].mean(dim=0))
    torch.testing.assert_close(read[2], torch.stack([frames[298], frames[299], found.silence[0]]).mean(dim=0))
    torch.testing.assert_close(read[3], found.silence[0])
    torch.testing.assert_close(read[4], frames.mean(dim=0))


def test_shuffled_frames_are_the_same_frames_in_an_order_of_the_seed_and_the_length(found: FrameProperties):
    shuffled = found.shuffled(3)
    assert not torch.equal(shuffled.frames, found.frames)
    assert torch.equal(shuffled.frames, found.shuffled(3).frames)
    assert not torch.equal(shuffled.frames, found.shuffled(4).frames)
    assert torch.equal(shuffled.frames.sort(dim=1).values, found.frames.sort(dim=1).values)
    padded = torch.cat([clip(), torch.zeros(1, 80, 80)], dim=1)
    torch.testing.assert_close(frame_properties(padded, torch.tensor([300])).shuffled(3).frames, shuffled.frames)


def test_the_log_mel_of_samples_has_one_frame_a_hop_and_reads_nothing_behind_a_clip():
    samples = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 16_000)).astype(np.float32))
    features, frames = log_mel_of_samples(samples, torch.tensor([16_000, 100]))
    assert frames.tolist() == [1 + (16_000 - 400) // HOP_SAMPLES, 1]
    samples[1, 100:] = 7.0
    again, _ = log_mel_of_samples(samples, torch.tensor([16_000, 100]))
    assert torch.equal(features[1, 0], again[1, 0])
    peaks = []
    for frequency_hz in (500, 3000):
        tone = torch.sin(2 * torch.pi * frequency_hz * torch.arange(16_000) / 16_000).unsqueeze(0)
        peaks.append(int(log_mel_of_samples(tone, torch.tensor([16_000]))[0][0].mean(dim=0).argmax()))
    assert peaks[0] < peaks[1]
