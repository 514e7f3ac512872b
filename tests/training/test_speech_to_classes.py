"""The encoder of a speech-to-text Whisper under a new classification head: trained, resumed, used and exported."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from safetensors.torch import load_file

from sonotune import cli
from sonotune.config.load import LoadedConfig, load_run_config
from sonotune.errors import AdapterError, Interrupted
from sonotune.loading import choose_family, open_model
from sonotune.models.families.ast import AstFamily
from sonotune.models.probe import probe_batch, probe_logits
from sonotune.serving.export import export
from sonotune.training.run import run

Settings = Callable[..., LoadedConfig]
RATE_HZ = 16_000
WINDOW_S = 2
CLASSES = ("down", "up")
HEAD = ("projector", "classifier")


@pytest.fixture(scope="session")
def speech_to_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Whisper with encoder and decoder, in 16 bits as published ones are, with a window of two seconds."""
    folder = tmp_path_factory.mktemp("speech-to-text") / "model"
    config = transformers.WhisperConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=50 * WINDOW_S,
        num_mel_bins=80,
        classifier_proj_size=16,
        init_std=0.1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = transformers.WhisperForConditionalGeneration(config)
    module.half().save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_S).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def glides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones that rise or fall, of 0.6 to 1 s: `train.jsonl` of 12 and `eval.jsonl` of 6."""
    folder = tmp_path_factory.mktemp("glides")
    lines = []
    for index in range(18):
        time_S = np.arange(round(RATE_HZ * (0.6 + 0.1 * (index % 5)))) / RATE_HZ
        rising = index % 2 == 1
        low_hz, high_hz = (300, 700) if rising else (2_000, 3_000)
        phase_S = 2 * np.pi * (low_hz * time_S + (high_hz - low_hz) / 2 * time_S**2 / time_S[-1])
        noise_S = 0.01 * np.random.default_rng(index).standard_normal(time_S.size)
        soundfile.write(folder / f"{index}.wav", 0.2 * np.sin(phase_S) + noise_S, RATE_HZ)
        lines.append({"id": f"g{index}", "path": f"{index}.wav", "label": CLASSES[rising], "speaker": f"s{index}"})
    for name, own in (("train", lines[:12]), ("eval", lines[12:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own), "utf-8")
    return folder


@pytest.fixture
def classify(settings: Settings, speech_to_text: Path, glides: Path) -> Settings:
    """Settings of a short run on the glides."""

    def build(*words: str, folder: Path | None = None) -> LoadedConfig:
        given = {word.partition("=")[0] for word in words}
        common = (
            f"model={speech_to_text}",
            "model.task=classify",
            f"data.train={glides / 'train.jsonl'}",
            f"data.eval={glides / 'eval.jsonl'}",
            "training.learning_rate=1e-2",
        )
        return settings(*(word for word in common if word.partition("=")[0] not in given), *words, folder=folder)

    return build


class StopAfter:
    def __init__(self, step: int) -> None:
        self.step = step

    def started(self, total_steps: int, step: int) -> None:
        pass

    def stepped(self, values: Mapping[str, Any]) -> None:
        if values["step"] == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def evaluated(self, step: int, scores: Mapping[str, Any]) -> None:
        pass


def call(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        cli.main(list(words))
    assert isinstance(caught.value.code, int)
    return caught.value.code, out.getvalue(), err.getvalue()


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_it_is_the_encoder_of_the_checkpoint_under_a_new_head(speech_to_text: Path):
    saved = load_file(speech_to_text / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float16}
    assert choose_family(str(speech_to_text)).name == "whisper"
    assert choose_family(str(speech_to_text), task="classify").name == "ast"
    loaded = AstFamily().load(str(speech_to_text), outputs=CLASSES)
    again = AstFamily().load(str(speech_to_text), outputs=CLASSES)
    weights = dict(loaded.module.named_parameters())
    assert not [name for name in weights if "decoder" in name]
    assert {value.dtype for value in weights.values()} == {torch.float32}
    new = [name for name in weights if name.startswith(HEAD)]
    for name, value in weights.items():
        if name not in new:
            assert torch.equal(value, saved[f"model.{name}"].float()), name
    assert {name for name in weights if loaded.component("head").owns(name)} == set(new)
    for name in new:  # an adapter lies on them, so whoever opens it must find the same ones
        assert torch.equal(weights[name], again.module.get_parameter(name))
    assert float(loaded.module.projector.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert loaded.new_outputs == loaded.labels == CLASSES
    assert (loaded.context, loaded.trained_contexts) == ("thinned", ("full", "thinned"))


def test_a_run_from_training_to_plain_transformers(classify: Settings, glides: Path, tmp_path: Path):
    record, folder = run(classify("training.max_epochs=6", "model.context=full"))
    assert record.status == "finished"
    assert record.model["family"] == "ast"
    assert not [finding for finding in record.findings if finding.check == "model.new_outputs"]
    assert record.ranks
    assert all(name.startswith("encoder.") for name in record.ranks)
    assert record.scores["after"]["accuracy"]["value"] == 1.0
    kept = adapter(folder)
    for name in HEAD:  # in full, beside the adapters
        assert any(key.endswith(f"{name}.weight") for key in kept)

    code, out, err = call("evaluate", f"model={folder}", f"data.test={glides / 'eval.jsonl'}", "--json")
    assert code == 0, err
    assert json.loads(out)["scores"]["accuracy"] == record.scores["after"]["accuracy"]
    code, out, err = call("classify", f"model={folder}", str(glides / "12.wav"), str(glides / "13.wav"), "--json")
    assert code == 0, err
    assert [found["labels"] for found in json.loads(out)["predictions"]] == [["down"], ["up"]]

    export(str(folder), tmp_path / "export", dtype="fp32")
    plain = transformers.AutoModelForAudioClassification.from_pretrained(tmp_path / "export").eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "export")
    assert type(plain).__name__ == "WhisperForAudioClassification"
    assert [plain.config.id2label[index] for index in range(2)] == list(CLASSES)
    made = [json.loads(line) for line in (folder / "predictions" / "after.jsonl").read_text("utf-8").splitlines()]
    waves = [soundfile.read(glides / f"{index}.wav", dtype="float32")[0] for index in range(12, 18)]
    with torch.no_grad():
        theirs = plain(**extractor(waves, sampling_rate=RATE_HZ, return_tensors="pt")).logits.softmax(dim=-1)
    ours = torch.tensor([[row["scores"][label] for label in CLASSES] for row in made])
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    again = open_model(str(tmp_path / "export"))
    assert again.loaded.family.name == "ast"
    opened = open_model(str(folder))
    torch.testing.assert_close(probe_logits(again.loaded), probe_logits(opened.loaded), rtol=1e-3, atol=1e-3)


def test_a_run_that_was_stopped_ends_with_the_same_weights(classify: Settings, tmp_path: Path):
    _, straight = run(classify(folder=tmp_path / "straight"))
    with pytest.raises(Interrupted):
        run(classify(folder=tmp_path / "stopped"), listeners=[StopAfter(2)])
    _, stopped = run(classify(folder=tmp_path / "stopped"))
    left, right = adapter(straight), adapter(stopped)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_full_fine_tuning_keeps_a_plain_classifier(classify: Settings):
    words = ("adapter.kind=none", "training.learning_rate=1e-3", "training.max_steps=2")
    _, folder = run(classify(*words))
    plain = transformers.AutoModelForAudioClassification.from_pretrained(folder / "model").eval()
    opened = open_model(str(folder), context="full")  # `transformers` computes no other
    assert opened.loaded.family.name == "ast"
    batch = probe_batch(opened.loaded)
    with torch.no_grad():
        theirs = plain(input_features=batch.inputs.transpose(1, 2)).logits
    torch.testing.assert_close(opened.loaded.family.logits(opened.loaded, batch).detach(), theirs, rtol=1e-4, atol=1e-5)


def test_a_head_alone_on_a_frozen_encoder(classify: Settings, speech_to_text: Path):
    stage = "training.stages=[{name: head, weights: [head], adapters: none, max_epochs: 2}]"
    record, folder = run(classify(stage, "adapter.rank=1"))
    [trained] = record.stages
    assert {tensor.partition(".")[0] for group in trained["groups"] for tensor in group["tensors"]} == set(HEAD)
    opened = open_model(str(folder))
    saved = load_file(speech_to_text / "model.safetensors")
    weight = opened.loaded.module.get_submodule("encoder.layers.0.fc1").base_layer.weight
    assert torch.equal(weight, saved["model.encoder.layers.0.fc1.weight"].float())
    assert not any(value.any() for name, value in adapter(folder).items() if "lora_B" in name)


def test_a_head_that_is_not_trained_in_full_is_told_and_one_that_is_frozen_refused(classify: Settings, tmp_path: Path):
    stem = "training.stages=[{name: all, weights: [stem], max_steps: 1}]"
    record, _ = run(classify(stem))
    [finding] = [finding for finding in record.findings if finding.check == "model.new_outputs"]
    assert "weights: [head]" in finding.message
    with pytest.raises(AdapterError, match=r"weights: \[head\]"):
        run(classify("adapter.targets=[encoder]", stem, folder=tmp_path / "frozen"))


def test_the_preset_trains_the_head_in_full():
    config = load_run_config(["model=whisper_base_classifier", "data.train=train.jsonl"]).config
    assert (config.model.task, config.model.family) == ("classify", "ast")
    code, out, err = call("inspect", "model=whisper_base_classifier", "model.num_labels=10", "--json")
    assert code == 0, err
    found = {part["name"]: part for part in json.loads(out)["components"]}
    assert set(found) == {"stem", "encoder", "head"}
    assert found["head"]["trainable"] == found["head"]["parameters"] == 512 * 256 + 256 + 256 * 10 + 10
