"""Log-probabilities of clips: those of the model, whatever the batch and whatever the length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from sonotune.alignment.emissions import Emissions, clip_emissions, frame_times
from sonotune.audio import io
from sonotune.errors import ModelError
from sonotune.loading import open_model
from sonotune.models.base import LoadedModel
from sonotune.models.families.ctc import CtcFamily, character_tokenizer
from sonotune.types import Clip, Finding

RATE_HZ = 16_000


def computed(model: LoadedModel, clips: list[Clip], **settings: float) -> dict[str, Emissions]:
    found = [one for batch in clip_emissions(model, clips, **settings) for one in batch]  # type: ignore[arg-type]
    assert not [one for one in found if isinstance(one, Finding)]
    return {one.clip.id: one for one in found if isinstance(one, Emissions)}


def test_a_clip_is_the_same_in_every_batch(ctc_nano: LoadedModel, quickstart: list[Clip]) -> None:
    together = computed(ctc_nano, quickstart[:6])
    assert set(together) == {clip.id for clip in quickstart[:6]}
    for clip in quickstart[:6]:
        [alone] = computed(ctc_nano, [clip]).values()
        np.testing.assert_allclose(together[clip.id].log_probs, alone.log_probs, atol=2e-4)
        np.testing.assert_array_equal(together[clip.id].energy_db, alone.energy_db)
        assert np.exp(alone.log_probs.astype(np.float64)).sum(axis=1) == pytest.approx(1.0, abs=1e-4)
        assert len(alone.log_probs) == pytest.approx(clip.duration_s / alone.frame_s, abs=1.5)
        assert len(alone.energy_db) == pytest.approx(clip.duration_s / 0.005, abs=2)


def joined(clips: list[Clip], folder: Path, seconds: float) -> Clip:
    """One recording of many clips."""
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < seconds * RATE_HZ:
        clip = clips[len(parts) % len(clips)]
        parts.append(io.read(clip.path, start_s=0.0, duration_s=clip.duration_s, channel=None, sample_rate_hz=RATE_HZ))
    waveform = np.concatenate(parts)[: round(seconds * RATE_HZ)]
    io.write(folder / "long.wav", waveform, RATE_HZ)
    return Clip(id="long", path=folder / "long.wav", duration_s=len(waveform) / RATE_HZ, text="one", language="en")


def test_windows_join_to_what_the_whole_gives(
    ctc_nano: LoadedModel, quickstart: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sonotune.alignment.emissions.WINDOW_S", 12.0)
    clip = joined(quickstart, tmp_path, 20.3)
    by_windows = computed(ctc_nano, [clip])["long"]
    monkeypatch.setattr("sonotune.alignment.emissions.WINDOW_S", 100.0)
    whole = computed(ctc_nano, [clip])["long"]
    assert by_windows.log_probs.shape == whole.log_probs.shape
    np.testing.assert_allclose(by_windows.energy_db, whole.energy_db, atol=1.0)
    # Each window is normalised by its own loudness and attends to itself alone, so they are near and not equal.
    agreeing = (by_windows.log_probs.argmax(axis=1) == whole.log_probs.argmax(axis=1)).mean()
    assert agreeing > 0.75
    shifted = (by_windows.log_probs[1:].argmax(axis=1) == whole.log_probs[:-1].argmax(axis=1)).mean()
    assert agreeing > shifted + 0.1  # no frame was lost or doubled at a seam


def test_frames_of_waveform_models_lie_in_the_middle_of_their_samples(tmp_path: Path) -> None:
    tokenizer = character_tokenizer(["a", "b"])
    config = transformers.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        vocab_size=len(tokenizer),
        pad_token_id=0,
    )
    torch.manual_seed(0)
    module = transformers.Wav2Vec2ForCTC(config)
    module.save_pretrained(tmp_path)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(tmp_path)
    loaded = CtcFamily().load(str(tmp_path))
    frame_s, offset_s = frame_times(loaded)
    assert frame_s == pytest.approx(0.020)
    assert offset_s == pytest.approx(0.0025)
    # By experiment: the samples that change frame 5 of the convolutions lie around its middle.
    waveform = torch.zeros(1, 4000, requires_grad=True)
    loaded.module.wav2vec2.feature_extractor.eval()
    features = loaded.module.wav2vec2.feature_extractor.conv_layers[0].conv(waveform[:, None])
    for layer in loaded.module.wav2vec2.feature_extractor.conv_layers[1:]:
        features = layer.conv(features)
    features[0, :, 5].sum().backward()
    assert waveform.grad is not None
    reached = np.flatnonzero(waveform.grad[0].abs().numpy())
    middle_s = (reached[0] + reached[-1] + 1) / 2 / RATE_HZ
    assert offset_s + 5.5 * frame_s == pytest.approx(middle_s, abs=1e-6)


def test_frames_of_parakeet_lie_around_their_stride(ctc_nano: LoadedModel) -> None:
    frame_s, offset_s = frame_times(ctc_nano)
    rate = ctc_nano.frontend.frames_per_second
    stem = ctc_nano.module.encoder.subsampling
    features = torch.randn(1, 200, ctc_nano.frontend.feature_bins, requires_grad=True)
    out = stem(features, torch.ones(1, 200, dtype=torch.long))
    out = out[0] if isinstance(out, tuple) else out
    out[0, 10].sum().backward()
    assert features.grad is not None
    reached = np.flatnonzero(features.grad[0].abs().sum(dim=1).numpy())
    middle_s = (reached[0] + reached[-1]) / 2 / rate  # frames of a spectrogram are centred on their own time
    assert offset_s + 10.5 * frame_s == pytest.approx(middle_s, abs=0.011)


def test_what_cannot_be_read_is_a_finding(ctc_nano: LoadedModel, quickstart: list[Clip], tmp_path: Path) -> None:
    good = quickstart[0]
    missing = replace(good, id="missing", path=tmp_path / "none.wav")
    long = replace(missing, id="long", duration_s=100.0)
    found = [one for batch in clip_emissions(ctc_nano, [missing, good, long]) for one in batch]
    findings = {one.clip_ids: one.check for one in found if isinstance(one, Finding)}
    assert set(findings) == {("missing",), ("long",)}
    assert all(check.startswith("audio.") for check in findings.values())
    assert [one.clip.id for one in found if isinstance(one, Emissions)] == [good.id]


def test_numbers_that_are_none_are_a_finding(ctc_nano: LoadedModel, quickstart: list[Clip]) -> None:
    head = ctc_nano.module.ctc_head
    bias = head.bias.detach().clone()
    try:
        head.bias.data[3] = float("nan")
        [[found]] = list(clip_emissions(ctc_nano, quickstart[:1]))
    finally:
        head.bias.data.copy_(bias)
    assert isinstance(found, Finding)
    assert found.check == "align.not_finite"


def test_training_mode_is_restored(ctc_nano: LoadedModel, quickstart: list[Clip]) -> None:
    ctc_nano.module.train()
    try:
        list(clip_emissions(ctc_nano, quickstart[:1]))
        assert ctc_nano.module.training
    finally:
        ctc_nano.module.eval()


def test_other_families_are_refused() -> None:
    with pytest.raises(ModelError, match="its family is whisper; allowed is ctc"):
        frame_times(open_model("assets:whisper-nano").loaded)
