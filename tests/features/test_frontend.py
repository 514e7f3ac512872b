"""Frontends against the `transformers` extractors they stand for."""

from __future__ import annotations

import copy
import json
import math
import pickle
import time
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from scipy.fft import dct
from transformers import (
    ASTFeatureExtractor,
    Qwen3ASRFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from sonotune.errors import AudioError, ConfigError, ModelError
from sonotune.features.chunked_mel import ChunkedLogMel
from sonotune.features.frontend import (
    FilterBank,
    LogMel,
    Mfcc,
    Normalized,
    RawWaveform,
    from_feature_extractor,
    from_state,
)
from sonotune.features.normalization import Normalizer

RATE = 16_000


def noise(samples: int, *, seed: int = 0, level: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng([seed, samples])
    envelope = 0.05 + np.abs(np.sin(np.arange(samples) / 4000.0))
    return (level * envelope * rng.standard_normal(samples)).astype(np.float32)


@pytest.fixture(scope="module")
def ast() -> ASTFeatureExtractor:
    with warnings.catch_warnings():  # 128 bands leave the narrowest empty, and it says so
        warnings.simplefilter("ignore", UserWarning)
        return ASTFeatureExtractor()


def whisper(bins: int, chunk_s: int) -> tuple[WhisperFeatureExtractor, LogMel]:
    extractor = WhisperFeatureExtractor(feature_size=bins, chunk_length=chunk_s)
    frontend = from_feature_extractor(extractor)
    assert isinstance(frontend, LogMel)
    return extractor, frontend


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("chunk_s", [15, 30])
def test_log_mel_equals_whisper_at_full_context_and_is_its_prefix_at_own_length(bins, chunk_s):
    extractor, frontend = whisper(bins, chunk_s)
    sizes = [1, 159, 160, 161, 399, 400, 16_001, 47_999, chunk_s * RATE - 300, chunk_s * RATE - 1, chunk_s * RATE]
    clips = [noise(size, seed=index, level=10.0 ** -(index % 4)) for index, size in enumerate(sizes)]
    wanted = extractor(clips, sampling_rate=RATE, return_tensors="np").input_features.transpose(0, 2, 1)

    full, lengths = frontend(clips, full_context=True)
    assert full.shape == wanted.shape
    assert full.dtype == torch.float32
    assert lengths.tolist() == [math.ceil(size / 160) for size in sizes]
    np.testing.assert_allclose(full.numpy(), wanted, atol=1e-4, rtol=0)

    together, _ = frontend(clips[:8])
    np.testing.assert_allclose(together.numpy(), wanted[:8, : together.shape[1]], atol=1e-4, rtol=0)
    for clip, reference in zip(clips, wanted, strict=True):
        own, length = frontend([clip])
        assert own.shape[1] == min(2 * math.ceil(int(length) / 2) + 4, chunk_s * 100)
        np.testing.assert_allclose(own[0].numpy(), reference[: own.shape[1]], atol=1e-4, rtol=0)


def test_log_mel_hears_the_whole_tail_at_other_hops():
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=2, hop_length=40)
    clip = np.zeros(8_000, dtype=np.float32)
    clip[-40:] = noise(40, level=20.0)  # all the sound is where frames after the clip still hear it
    wanted = extractor(clip, sampling_rate=RATE, return_tensors="np").input_features[0].T
    found, lengths = from_feature_extractor(extractor)([clip], full_context=True)
    assert lengths.tolist() == [200]
    np.testing.assert_allclose(found[0].numpy(), wanted, atol=1e-4, rtol=0)


def test_log_mel_of_one_clip_is_the_same_in_any_batch():
    frontend = LogMel(80)
    short, long = noise(9_001, seed=1), noise(70_000, seed=2, level=1.0)
    alone, length = frontend([short])
    beside, _ = frontend([long, short])
    frames = int(length)
    torch.testing.assert_close(beside[1, : alone.shape[1]], alone[0], atol=1e-6, rtol=0)
    floor = alone[0].amax() - 2.0  # eight decades of power are two after scaling
    assert bool((beside[1, frames + 3 :] == beside[1, -1, 0]).all())
    assert beside[1, -1, 0] == pytest.approx(max(float(floor), -1.5), abs=1e-6)


def test_log_mel_of_silence_is_whispers():
    extractor, frontend = whisper(80, 30)
    silence = np.zeros(5_000, dtype=np.float32)
    wanted = extractor(silence, sampling_rate=RATE, return_tensors="np").input_features
    assert np.all(wanted == -1.5)
    assert bool((frontend([silence])[0] == -1.5).all())


def test_clip_longer_than_the_window_is_refused_by_name():
    _, frontend = whisper(80, 15)
    with pytest.raises(AudioError, match=r"waveform 1 lasts 15\.00 s; the model's window is 15 s") as caught:
        frontend([noise(100), noise(15 * RATE + 1)])
    assert caught.value.reason == "too_long"


@pytest.mark.parametrize("samples", [1, 7_999, 8_000, 16_000, 16_001, 31_999, 40_123])
@pytest.mark.parametrize("bins", [80, 128])
def test_chunked_log_mel_equals_qwen3_asr_on_a_clip_alone(bins, samples):
    extractor = Qwen3ASRFeatureExtractor(feature_size=bins)
    clip = noise(samples, seed=samples)
    wanted = extractor([clip], sampling_rate=RATE, padding=True, return_attention_mask=True)  # as the processor does
    found, lengths = from_feature_extractor(extractor)([clip])
    assert found.shape == (1, wanted["input_features"].shape[2], bins)
    assert lengths.tolist() == wanted["attention_mask"].sum(-1).tolist()
    np.testing.assert_allclose(found[0].T.numpy(), wanted["input_features"][0], atol=1e-5, rtol=0)


def test_chunked_log_mel_of_one_clip_is_the_same_in_any_batch():
    frontend = ChunkedLogMel(80)
    clips = [noise(70_000, seed=2, level=1.0), noise(9_001, seed=1), noise(300), noise(16_000, seed=3)]
    together, lengths = frontend(clips)
    assert together.shape == (4, 500, 80)
    assert lengths.tolist() == [437, 56, 50, 100]
    for row, clip in enumerate(clips):
        alone, length = frontend([clip])
        assert length.item() == lengths[row]
        torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], atol=1e-6, rtol=0)
        assert bool((together[row, int(length) :] == 0).all())


def test_chunked_log_mel_refuses_a_clip_that_is_too_long():
    with pytest.raises(AudioError, match=r"lasts 2\.00 s; the model's window is 1 s"):
        ChunkedLogMel(80, max_s=1.0)([noise(2 * RATE)])
    assert ChunkedLogMel().max_duration_s == 1200.0


@pytest.mark.parametrize("frontend", [LogMel(80), ChunkedLogMel(80), FilterBank(), Mfcc(), RawWaveform()])
def test_unusable_waveforms_are_refused(frontend):
    with pytest.raises(AudioError, match="no samples") as caught:
        frontend([noise(800), np.zeros(0, dtype=np.float32)])
    assert caught.value.reason == "no_samples"
    with pytest.raises(ValueError, match="at least one waveform"):
        frontend([])
    with pytest.raises(ValueError, match="float32"):
        frontend([np.zeros(800)])
    with pytest.raises(ValueError, match="float32"):
        frontend([np.zeros((2, 800), dtype=np.float32)])


def test_log_mel_does_not_compute_the_window_for_a_short_clip():
    frontend, clip = LogMel(80), noise(3 * RATE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:

        def best_ms(samples: np.ndarray) -> float:
            spent = []
            for _ in range(12):
                started = time.perf_counter()
                frontend([samples])
                spent.append(time.perf_counter() - started)
            return 1e3 * min(spent)

        assert best_ms(clip) < best_ms(noise(30 * RATE)) / 4
    finally:
        torch.set_num_threads(threads)


def test_filter_bank_equals_ast(ast):
    frontend = from_feature_extractor(ast)
    assert isinstance(frontend, FilterBank)
    sizes = [400, 559, 560, 16_001, 160_000, 1023 * 160 + 400]
    clips = [noise(size, seed=index) for index, size in enumerate(sizes)]
    wanted = np.stack(ast(clips, sampling_rate=RATE)["input_values"])
    full, lengths = frontend(clips, full_context=True)
    assert full.shape == wanted.shape == (6, 1024, 128)
    assert lengths.tolist() == [1 + (size - 400) // 160 for size in sizes]
    np.testing.assert_allclose(full.numpy(), wanted, atol=1e-4, rtol=0)
    own, _ = frontend(clips[:4])
    np.testing.assert_allclose(own.numpy(), wanted[:4, : own.shape[1]], atol=1e-4, rtol=0)


def test_filter_bank_limits(ast):
    frontend = from_feature_extractor(ast)
    assert frontend.max_duration_s == pytest.approx(10.255)
    with pytest.raises(AudioError, match=r"window is 10\.255 s"):
        frontend([noise(1023 * 160 + 401)])
    features, lengths = frontend([noise(10)])  # shorter than a frame: silence is added up to one
    assert lengths.tolist() == [1]
    assert features.shape == (1, 1, 128)
    with pytest.raises(ValueError, match="belong together"):
        FilterBank(mean=0.0, std=None)


def test_mfcc_is_the_cosine_transform_of_the_filter_bank():
    clips = [noise(16_000), noise(5_000, seed=3)]
    bank, lengths = FilterBank(40, max_frames=None, mean=None, std=None)(clips)
    wanted = dct(bank.numpy(), type=2, norm="ortho", axis=2)[..., :13]
    found, found_lengths = Mfcc(13, bands=40)(clips)
    assert found.dtype == torch.float32
    assert found_lengths.tolist() == lengths.tolist()
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="coefficients"):
        Mfcc(41, bands=40)


@pytest.mark.parametrize("normalize", [True, False])
def test_raw_waveform_equals_wav2vec2(normalize):
    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=True)
    frontend = from_feature_extractor(extractor)
    clips = [noise(16_000) + 0.3, noise(5_001, seed=3), noise(1)]
    wanted = extractor(clips, sampling_rate=RATE, padding=True, return_tensors="np")
    found, lengths = frontend(clips)
    assert found.shape == (3, 16_000, 1)
    np.testing.assert_allclose(found[..., 0].numpy(), wanted["input_values"], atol=1e-4, rtol=0)
    # The model itself refuses the clip of one sample; it is padded to 25 ms here.
    assert lengths.tolist() == [max(size, 400) for size in wanted["attention_mask"].sum(axis=1).tolist()]


@pytest.mark.parametrize(
    "frontend",
    [
        LogMel(128, window_s=15.0),
        ChunkedLogMel(80, min_samples=4000, max_s=60.0),
        FilterBank(64, max_frames=300, mean=None, std=None),
        Mfcc(20, bands=30),
        RawWaveform(normalize=False),
        Normalized(Mfcc(), Normalizer(per="utterance")),
        Normalized(Mfcc(2), Normalizer(per="dataset", mean=(1.0, 2.0), std=(3.0, 4.0))),
    ],
    ids=lambda frontend: type(frontend).__name__,
)
def test_state_pickle_and_copy_give_an_equal_frontend(frontend):
    clips = [noise(8_000), noise(3_001)]
    wanted, lengths = frontend(clips)
    state = json.loads(json.dumps(frontend.state()))
    for again in (from_state(state), pickle.loads(pickle.dumps(frontend)), copy.deepcopy(frontend)):  # noqa: S301
        found, found_lengths = again(clips)
        assert torch.equal(found, wanted)
        assert torch.equal(found_lengths, lengths)
        for name in ("sample_rate_hz", "feature_bins", "frames_per_second", "max_duration_s"):
            assert getattr(again, name) == getattr(frontend, name)
    assert wanted.shape[2] == frontend.feature_bins


def test_unknown_extractors_and_states_are_refused():
    class SeamlessFeatureExtractor:
        pass

    with pytest.raises(ModelError, match="SeamlessFeatureExtractor; known: WhisperFeatureExtractor"):
        from_feature_extractor(SeamlessFeatureExtractor())
    with pytest.raises(ModelError, match="dither"):
        from_feature_extractor(WhisperFeatureExtractor(dither=0.1))
    with pytest.raises(ModelError, match="dither"):
        from_feature_extractor(Qwen3ASRFeatureExtractor(dither=0.1))
    with pytest.raises(ConfigError, match="frontends: there is no 'fft'"):
        from_state({"kind": "fft"})
    with pytest.raises(ModelError, match="mfcc cannot be built"):
        from_state({"kind": "mfcc", "bins": 3})


def test_a_waveform_too_short_for_one_position_is_padded_to_it():
    """Convolutions as wide as those of wav2vec2 refuse less than 25 ms, and scores leave out no length."""
    rng = np.random.default_rng(0)
    waveforms = [rng.standard_normal(size).astype(np.float32) for size in (16, 600)]
    features, lengths = RawWaveform()(waveforms)
    assert lengths.tolist() == [400, 600]
    assert features[0, :16].abs().sum() > 0
    assert features[0, 16:].abs().sum() == 0
    assert RawWaveform()(waveforms[:1])[0].shape == (1, 400, 1)


@pytest.mark.parametrize(
    ("extractor", "setting", "value"),
    [
        (Wav2Vec2FeatureExtractor, "sampling_rate", "fast"),
        (Wav2Vec2FeatureExtractor, "sampling_rate", {}),
        (partial(ASTFeatureExtractor, num_mel_bins=40), "max_length", "long"),
        (WhisperFeatureExtractor, "hop_length", None),
        (WhisperFeatureExtractor, "hop_length", 0),
    ],
)
def test_a_setting_that_an_extractor_cannot_have_is_an_error_of_the_model(extractor, setting, value):
    made = extractor()
    setattr(made, setting, value)
    with pytest.raises(ModelError, match=f"the feature extractor {type(made).__name__} has a setting"):
        from_feature_extractor(made)
