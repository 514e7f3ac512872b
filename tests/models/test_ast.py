"""Audio classifiers: the same as `transformers` where it computes the same, and never more than a clip's own length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from sonotune.errors import AudioError, ModelError
from sonotune.features.batching import Batch, pad_targets
from sonotune.models.base import LoadedModel
from sonotune.models.families.ast import AstFamily
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.classify import Classify
from sonotune.types import Clip

FAMILY = AstFamily()
RATE_HZ = 16_000
LABELS = ("flam", "drag", "roll", "tap")
WAVEFORM = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (5, 8, 8),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
WINDOW = 256  # frames
EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")


def numbered(labels: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def save_ast(folder: Path, *, time_stride: int = 10, **settings: Any) -> Path:
    config = transformers.ASTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        num_mel_bins=32,
        max_length=WINDOW,
        frequency_stride=10,
        time_stride=time_stride,
        **settings,
    )
    torch.manual_seed(7)
    module = transformers.ASTForAudioClassification(config)
    with torch.no_grad():  # as after pretraining: tokens, places and biases are zeros in a new model
        for name, parameter in module.named_parameters():
            if name.endswith(("_token", "position_embeddings", "classifier.dense.weight", "projection.weight", "bias")):
                parameter.normal_(std=0.3)
    module.save_pretrained(folder)
    transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=WINDOW).save_pretrained(folder)
    return folder


def save_waveform(folder: Path, *, norm: str = "group", **settings: Any) -> Path:
    extra = {} if norm == "group" else {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    torch.manual_seed(7)
    module = transformers.Wav2Vec2ForSequenceClassification(
        transformers.Wav2Vec2Config(**WAVEFORM, **extra, **settings)
    )
    with torch.no_grad():
        module.classifier.weight.mul_(10)
    module.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ast(tmp_path_factory.mktemp("ast") / "model", **numbered(LABELS))


@pytest.fixture(scope="module")
def loaded(ast: Path) -> LoadedModel:
    return FAMILY.load(str(ast))


def waveform(samples: int, *, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def batch_of(loaded: LoadedModel, sizes: Sequence[int], *, full_context: bool = False, first: int = 0) -> Batch:
    waves = [waveform(size, seed=first + row) for row, size in enumerate(sizes)]
    inputs, lengths = loaded.frontend(waves, full_context=full_context)
    targets, target_lengths = pad_targets([np.zeros(1, dtype=np.int64)] * len(sizes))
    return Batch(
        inputs=inputs,
        input_lengths=lengths,
        targets=targets,
        target_lengths=target_lengths,
        clips=tuple(Clip(id=f"c{row}", path=Path("x.wav"), duration_s=1.0) for row in range(len(sizes))),
        context="full" if full_context else "cut",
    )


@torch.no_grad()
def logits(loaded: LoadedModel, batch: Batch) -> Tensor:
    return FAMILY.logits(loaded, batch)


# --- the same as transformers --------------------------------------------------------------------


def test_at_full_context_it_is_transformers(ast: Path, loaded: LoadedModel):
    plain = transformers.ASTForAudioClassification.from_pretrained(ast).eval()
    batch = batch_of(loaded, [9_000, 30_000, 16_000], full_context=True)
    assert batch.inputs.shape[1] == WINDOW
    with torch.no_grad():
        theirs = plain(input_values=batch.inputs).logits
    torch.testing.assert_close(logits(loaded, batch), theirs, rtol=0, atol=1e-6)
    assert float(theirs.std(dim=0).max()) > 1e-3  # or any output would do


def test_with_its_own_extractor_it_is_transformers(ast: Path, loaded: LoadedModel):
    plain = transformers.ASTForAudioClassification.from_pretrained(ast).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(ast)
    given = extractor([waveform(9_000), waveform(30_000, seed=1)], sampling_rate=RATE_HZ, return_tensors="pt")
    with torch.no_grad():
        theirs = plain(**given).logits
    ours = logits(loaded, batch_of(loaded, [9_000, 30_000], full_context=True))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_clip_that_fills_its_window_is_transformers_at_its_own_length(ast: Path, loaded: LoadedModel):
    plain = transformers.ASTForAudioClassification.from_pretrained(ast).eval()
    batch = batch_of(loaded, [400 + 160 * (WINDOW - 1)])
    assert batch.input_lengths.tolist() == [WINDOW]
    with torch.no_grad():
        theirs = plain(input_values=batch.inputs).logits
    torch.testing.assert_close(logits(loaded, batch), theirs, rtol=0, atol=1e-5)


# --- own length ----------------------------------------------------------------------------------


def by_hand(module: Any, inputs_TF: Tensor, *, patches: int, stride: int) -> Tensor:
    """One clip from its patches alone: cut out one by one, embedded, put in place, attended to without any mask."""
    config, body = module.config, module.audio_spectrogram_transformer
    kernel, bias = body.embeddings.patch_embeddings.projection.weight, body.embeddings.patch_embeddings.projection.bias
    whole = (config.max_length - 16) // stride + 1
    bands = (config.num_mel_bins - 16) // config.frequency_stride + 1
    table_ND = body.embeddings.position_embeddings[0]
    tokens = [body.embeddings.cls_token[0, 0] + table_ND[0], body.embeddings.distillation_token[0, 0] + table_ND[1]]
    for band in range(bands):
        for place in range(patches):
            low = band * config.frequency_stride
            patch_TF = inputs_TF[place * stride : place * stride + 16, low : low + 16]
            embedded_D = torch.einsum("dft,tf->d", kernel[:, 0], patch_TF) + bias
            tokens.append(embedded_D + table_ND[2 + band * whole + place])
    states = torch.stack(tokens).unsqueeze(0)
    for layer in body.layers:
        states = layer(states)
    states = body.layernorm(states)
    return module.classifier((states[:, 0] + states[:, 1]) / 2)[0]


@pytest.mark.parametrize("stride", [10, 16])
@pytest.mark.parametrize("frames", [1, 15, 20, 57, 101, 200])
def test_a_short_clip_attends_to_its_own_patches_alone(
    request: pytest.FixtureRequest, tmp_path: Path, stride: int, frames: int
):
    model: LoadedModel = (
        request.getfixturevalue("loaded")
        if stride == 10
        else FAMILY.load(str(save_ast(tmp_path / "m", time_stride=stride, **numbered(LABELS))))
    )
    batch = batch_of(model, [400 + 160 * (frames - 1), 400 + 160 * 220])
    assert int(batch.input_lengths[0]) == frames
    silence = model.frontend.silence  # type: ignore[attr-defined]
    inputs_TF = F.pad(batch.inputs[0, :frames], (0, 0, 0, WINDOW - frames), value=silence)
    patches = min(-(-frames // stride), (WINDOW - 16) // stride + 1)  # all that begin before its end
    with torch.no_grad():
        expected = by_hand(model.module, inputs_TF, patches=patches, stride=stride)
        less = by_hand(model.module, inputs_TF, patches=max(1, patches - 1), stride=stride)
    torch.testing.assert_close(logits(model, batch)[0], expected, rtol=1e-4, atol=1e-5)
    if patches > 1:
        assert float((less - expected).abs().max()) > 1e-4  # a patch left out would show


def test_what_follows_a_clip_is_never_looked_at(loaded: LoadedModel):
    batch = batch_of(loaded, [9_000, 30_000])
    end = int(batch.input_lengths[0])
    before = logits(loaded, batch)
    last_patch = -(-end // 10) * 10 - 10 + 16  # what the last patch of the clip reaches
    batch.inputs[0, last_patch:] = 1e3
    torch.testing.assert_close(logits(loaded, batch), before, rtol=0, atol=0)


def test_less_is_computed_than_the_window(loaded: LoadedModel):
    seen: list[int] = []
    layer = loaded.module.audio_spectrogram_transformer.layers[0]
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    logits(loaded, batch_of(loaded, [9_000, 16_000]))
    logits(loaded, batch_of(loaded, [9_000], full_context=True))
    hook.remove()
    assert seen == [2 + 2 * 10, 2 + 2 * 25]


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("full_context", [False, True])
def test_rows_of_a_waveform_model_are_as_alone(tmp_path: Path, norm: str, full_context: bool):
    """There is no window that could be filled, so `full_context` has no meaning for it."""
    loaded = FAMILY.load(str(save_waveform(tmp_path / "m", norm=norm, **numbered(LABELS))))
    sizes = [9_000, 16_000, 9_000, 12_345]
    together = logits(loaded, batch_of(loaded, sizes, full_context=full_context))
    for row, size in enumerate(sizes):
        alone = logits(loaded, batch_of(loaded, [size], first=row))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)
    assert float((together[0] - together[2]).abs().max()) > 1e-4  # equal lengths, other sounds


def test_a_waveform_model_is_transformers(tmp_path: Path):
    folder = save_waveform(tmp_path / "m", norm="layer", **numbered(LABELS))
    plain = transformers.Wav2Vec2ForSequenceClassification.from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    given = extractor(waveform(9_000), sampling_rate=RATE_HZ, return_tensors="pt")
    with torch.no_grad():
        theirs = plain(**given).logits
    loaded = FAMILY.load(str(folder))
    torch.testing.assert_close(logits(loaded, batch_of(loaded, [9_000])), theirs, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_row_of_a_waveform_model(tmp_path: Path):
    loaded = FAMILY.load(str(save_waveform(tmp_path / "m", norm="layer", **numbered(LABELS))))
    batch = batch_of(loaded, [9_000, 16_000])
    batch.inputs.requires_grad_(True)
    FAMILY.logits(loaded, batch).square().sum().backward()
    assert batch.inputs.grad is not None
    assert all(bool(row.any()) for row in batch.inputs.grad)
    assert not bool(batch.inputs.grad[0, 9_000:].any())


def test_audio_that_is_longer_than_the_window_is_refused(loaded: LoadedModel):
    with pytest.raises(AudioError) as caught:
        loaded.frontend([waveform(RATE_HZ * 4)])
    assert caught.value.reason == "too_long"
    window_s = loaded.frontend.max_duration_s
    assert window_s == pytest.approx((400 + 160 * (WINDOW - 1)) / RATE_HZ, abs=0.02)
    assert f"{window_s:g}"[:4] in str(caught.value)


# --- classes -------------------------------------------------------------------------------------


def test_the_checkpoints_classes_are_kept_where_they_are_enough(ast: Path, loaded: LoadedModel):
    assert loaded.labels == LABELS
    assert loaded.new_outputs == ()
    for outputs in (("tap",), ("drag", "flam"), tuple(reversed(LABELS))):
        again = FAMILY.load(str(ast), outputs=outputs)
        assert again.labels == LABELS
        assert again.new_outputs == ()
        assert torch.equal(again.module.classifier.dense.weight, loaded.module.classifier.dense.weight)


@pytest.mark.parametrize("outputs", [("tap", "ruff"), ("a", "b", "c", "d"), ("a", "b", "c", "d", "e", "f")])
def test_other_classes_get_a_layer_of_their_own(ast: Path, loaded: LoadedModel, outputs: tuple[str, ...]):
    renewed = FAMILY.load(str(ast), outputs=outputs)
    assert renewed.labels == renewed.new_outputs == outputs
    config = renewed.module.config
    assert config.num_labels == len(outputs)
    assert [config.id2label[index] for index in range(len(outputs))] == list(outputs)
    assert config.label2id == {label: index for index, label in enumerate(outputs)}
    head = renewed.module.classifier.dense
    assert head.weight.shape == (len(outputs), 32)
    assert float(head.weight.detach().std()) == pytest.approx(0.02, rel=0.5)
    assert not bool(head.bias.any())
    if len(outputs) == len(LABELS):  # could have been loaded, and would put old classes under new names
        assert not torch.equal(head.weight, loaded.module.classifier.dense.weight)
    body = "audio_spectrogram_transformer.embeddings.position_embeddings"
    assert torch.equal(renewed.module.get_parameter(body), loaded.module.get_parameter(body))


def test_the_same_classes_are_renewed_when_asked_for(ast: Path, loaded: LoadedModel):
    renewed = FAMILY.load(str(ast), outputs=LABELS, renew_outputs=True)
    assert renewed.new_outputs == LABELS
    assert not torch.equal(renewed.module.classifier.dense.weight, loaded.module.classifier.dense.weight)


def test_a_new_layer_is_the_same_whoever_opens_it(ast: Path):
    """An adapter over it holds what was learned, and not what it was learned over."""
    layers = []
    for seed, outputs in ((1, ("a", "b")), (2, ("a", "b")), (1, ("a", "b", "c"))):
        torch.manual_seed(seed)
        layers.append(FAMILY.load(str(ast), outputs=outputs).module.classifier.dense.weight)
    assert torch.equal(layers[0], layers[1])
    assert len(layers[2].detach().unique(dim=0)) == 3  # classes differ from each other


def test_names_that_stand_for_nothing_are_no_classes(tmp_path: Path):
    folder = save_ast(tmp_path / "m")  # LABEL_0, LABEL_1
    with pytest.raises(ModelError, match=r"no classes of its own.*data\.train"):
        FAMILY.load(str(folder))
    assert FAMILY.load(str(folder), outputs=("x", "y")).new_outputs == ("x", "y")


def test_an_encoder_without_a_classifier_gets_one(tmp_path: Path):
    transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**WAVEFORM)).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no classes of its own"):
        FAMILY.load(str(tmp_path))
    loaded = FAMILY.load(str(tmp_path), outputs=("x", "y", "z"))
    assert loaded.new_outputs == ("x", "y", "z")
    assert logits(loaded, batch_of(loaded, [9_000])).shape == (1, 3)


def test_the_number_of_classes_of_an_outline_is_that_asked_for(ast: Path):
    assert FAMILY.outline(str(ast)).labels == LABELS
    outline = FAMILY.outline(str(ast), outputs=11)
    assert outline.module.classifier.dense.weight.shape == (11, 32)
    assert len(outline.labels) == 11
    published = FAMILY.outline(str(ast), outputs=2)
    assert published.module.config.num_labels == 2


@pytest.mark.parametrize("save", [save_ast, save_waveform])
def test_missing_settings_of_the_extractor_are_named(tmp_path: Path, save: Any):
    folder = save(tmp_path / "m", **numbered(LABELS))
    for name in EXTRACTOR_FILES:
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"preprocessor_config\.json missing\. Save the model with its processor"):
        FAMILY.load(str(folder))


def test_a_lost_weight_of_the_body_is_not_made_anew(ast: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = save_ast(tmp_path / "m", **numbered(LABELS))
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if ".1." in name and name.endswith("weight"))  # of the second layer
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights of its architecture"):
        FAMILY.load(str(folder), outputs=("x", "y"))


@pytest.mark.parametrize("given", [{}, {"outputs": ("a", "b")}])
def test_a_checkpoint_without_a_classifier_in_transformers_is_refused(tmp_path: Path, given: dict[str, Any]):
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=40
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"'bert' checkpoint .*the family 'ast' \(task classify\) cannot use it"):
        FAMILY.load(str(tmp_path), **given)


def test_probabilities_come_under_the_names_of_the_classes(loaded: LoadedModel):
    batch = batch_of(loaded, [9_000, 16_000])
    made = Classify(FAMILY, TaskSettings()).predict(loaded, batch)
    expected = logits(loaded, batch).softmax(dim=-1)
    for row, prediction in enumerate(made):
        assert tuple(prediction.scores) == LABELS
        assert list(prediction.scores.values()) == pytest.approx(expected[row].tolist(), abs=1e-6)
