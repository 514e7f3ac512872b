"""NeMo's frontend: the same numbers as ParakeetFeatureExtractor, and no clip depends on another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import ParakeetFeatureExtractor

from sonotune.errors import ModelError
from sonotune.features.frontend import from_feature_extractor, from_state
from sonotune.features.parakeet import NormalizedLogMel

RATE_HZ = 16_000
Wave = np.ndarray[Any, np.dtype[np.float32]]


def wave(samples: int, *, seed: int = 0) -> Wave:
    time_S = np.arange(samples) / RATE_HZ
    tone_S = 0.2 * np.sin(2 * np.pi * (200 + 300 * seed) * time_S * (1 + time_S))
    return (tone_S + 0.02 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("samples", [480, 799, 800, 801, 16_000, 23_457])
def test_one_clip_is_as_the_extractor_makes_it(bins: int, samples: int):
    extractor = ParakeetFeatureExtractor(feature_size=bins)
    theirs = extractor(wave(samples), sampling_rate=RATE_HZ, return_tensors="pt")
    ours, lengths = NormalizedLogMel(bins)([wave(samples)])
    assert lengths.tolist() == [int(theirs.attention_mask.sum())] == [samples // 160]
    torch.testing.assert_close(ours, theirs.input_features[:, : samples // 160], rtol=1e-4, atol=1e-4)


def test_a_batch_is_as_the_extractor_makes_it():
    waves = [wave(16_000), wave(9_001, seed=1), wave(23_457, seed=2)]
    theirs = ParakeetFeatureExtractor(feature_size=80)(waves, sampling_rate=RATE_HZ, return_tensors="pt")
    ours, lengths = NormalizedLogMel(80)(waves)
    assert lengths.tolist() == theirs.attention_mask.sum(dim=1).tolist()
    torch.testing.assert_close(ours, theirs.input_features[:, : ours.shape[1]], rtol=1e-4, atol=1e-4)


def test_settings_of_an_extractor_are_taken_over():
    settings = {"feature_size": 40, "hop_length": 200, "win_length": 320, "n_fft": 1024, "preemphasis": 0.9}
    extractor = ParakeetFeatureExtractor(**settings)
    frontend = from_feature_extractor(extractor)
    theirs = extractor(wave(16_000), sampling_rate=RATE_HZ, return_tensors="pt")
    ours, lengths = frontend([wave(16_000)])
    assert lengths.tolist() == [80]
    assert frontend.frames_per_second == 80.0
    torch.testing.assert_close(ours, theirs.input_features[:, :80], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preemphasis", [None, 0.0])
def test_an_extractor_without_preemphasis(preemphasis: float | None):
    extractor = ParakeetFeatureExtractor(feature_size=80, preemphasis=preemphasis)
    frontend = from_feature_extractor(extractor)
    theirs = extractor(wave(8_000), sampling_rate=RATE_HZ, return_tensors="pt").input_features
    torch.testing.assert_close(frontend([wave(8_000)])[0], theirs[:, :50], rtol=1e-4, atol=1e-4)
    assert float((frontend([wave(8_000)])[0] - NormalizedLogMel(80)([wave(8_000)])[0]).abs().max()) > 0.01


def test_a_clip_is_alone_what_it_is_in_a_batch():
    sizes = [23_457, 800, 16_000, 333, 5_119, 5_120, 1]
    waves = [wave(size, seed=row) for row, size in enumerate(sizes)]
    frontend = NormalizedLogMel(80)
    together, lengths = frontend(waves)
    assert together.shape == (len(sizes), max(sizes) // 160, 80)
    for row, one in enumerate(waves):
        alone, length = frontend([one])
        assert int(length[0]) == int(lengths[row])
        torch.testing.assert_close(together[row, : length[0]], alone[0], rtol=1e-5, atol=1e-5)
        assert not bool(together[row, length[0] :].any())


@pytest.mark.parametrize("samples", [1, 2, 159, 160, 161, 319, 320])
def test_the_shortest_clips_have_two_frames_and_finite_numbers(samples: int):
    features, lengths = NormalizedLogMel(80)([wave(samples)])
    assert lengths.tolist() == [2]
    assert features.shape == (1, 2, 80)
    assert bool(torch.isfinite(features).all())


@pytest.mark.parametrize("samples", [1, 320, 16_000])
def test_silence_has_finite_features(samples: int):
    features, _ = NormalizedLogMel(80)([np.zeros(samples, dtype=np.float32)])
    assert bool(torch.isfinite(features).all())


def test_every_band_has_mean_zero_and_deviation_one_over_the_clip():
    features, lengths = NormalizedLogMel(80)([wave(16_000), wave(9_001, seed=1)])
    for row, length in enumerate(lengths.tolist()):
        own = features[row, :length].double()
        torch.testing.assert_close(own.mean(dim=0), torch.zeros(80, dtype=torch.float64), rtol=0, atol=1e-4)
        torch.testing.assert_close(own.std(dim=0), torch.ones(80, dtype=torch.float64), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("gain", [0.3, 3.0])
def test_loudness_does_not_matter(gain: float):
    loud, _ = NormalizedLogMel(80)([np.float32(gain) * wave(16_000)])
    plain, _ = NormalizedLogMel(80)([wave(16_000)])
    assert float((loud - plain).abs().mean()) < 0.02


def test_there_is_no_window_to_fill():
    frontend = NormalizedLogMel(80)
    assert frontend.max_duration_s is None
    plain, full = frontend([wave(8_000)]), frontend([wave(8_000)], full_context=True)
    assert torch.equal(plain[0], full[0])


def test_its_state_gives_the_same_frontend():
    frontend = NormalizedLogMel(
        64, sample_rate_hz=8_000, transform_samples=256, window_samples=200, hop_samples=80, preemphasis=0.5
    )
    again = from_state(frontend.state())
    assert again.state() == frontend.state()
    assert (again.feature_bins, again.sample_rate_hz, again.frames_per_second) == (64, 8_000, 100.0)
    assert torch.equal(again([wave(8_000)])[0], frontend([wave(8_000)])[0])


def test_an_unknown_setting_of_a_state_is_refused():
    with pytest.raises(ModelError, match="normalized_log_mel cannot be built"):
        from_state(NormalizedLogMel(80).state() | {"window_s": 3})
