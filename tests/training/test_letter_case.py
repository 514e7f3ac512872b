"""CTC vocabularies of one case and transcripts of the other, as wav2vec2-base-960h and ordinary text are."""

from __future__ import annotations

import json
import os
import signal
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from sonotune.config.load import LoadedConfig
from sonotune.data.manifest import read_manifest
from sonotune.errors import Interrupted
from sonotune.models.families.ctc import character_tokenizer
from sonotune.runs.predictions import read_predictions
from sonotune.serving.export import export
from sonotune.serving.recognizer import Recognizer
from sonotune.training.run import run
from sonotune.types import Score

Settings = Callable[..., LoadedConfig]
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
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "initializer_range": 0.2,
}


class StopAfter:
    """Sends this process a signal after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def started(self, total_steps: int, step: int) -> None:
        pass

    def stepped(self, values: Mapping[str, Any]) -> None:
        if values["step"] == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def evaluated(self, step: int, scores: Mapping[str, Score]) -> None:
        pass


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`upper` and `lower` differ in the case of their vocabulary alone; `encoder` has none."""
    folder = tmp_path_factory.mktemp("cases")
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    letters = {"upper": string.ascii_uppercase, "lower": string.ascii_lowercase}
    for name, symbols in letters.items():
        tokenizer = character_tokenizer([*symbols, "'"])
        config = transformers.Wav2Vec2Config(**WAVEFORM, vocab_size=len(tokenizer), pad_token_id=0)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            transformers.Wav2Vec2ForCTC(config).save_pretrained(folder / name)
        transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder / name)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**WAVEFORM)).save_pretrained(folder / "encoder")
    extractor.save_pretrained(folder / "encoder")
    return folder


@pytest.fixture
def cased(settings: Settings, models: Path, corpus: Path, tmp_path: Path) -> Callable[..., LoadedConfig]:
    """Settings of a run of a model over the corpus with its transcripts in a case."""

    def build(model: str, case: Callable[[str], str], name: str) -> LoadedConfig:
        words = [f"model={models / model}", "training.learning_rate=1e-2", "data.text_scoring=identity"]
        for split in ("train", "eval"):
            lines = [json.loads(line) for line in (corpus / f"{split}.jsonl").read_text("utf-8").splitlines()]
            changed = [line | {"path": str(corpus / line["path"]), "text": case(line["text"])} for line in lines]
            manifest = tmp_path / f"{name}-{split}.jsonl"
            manifest.write_text("".join(json.dumps(line) + "\n" for line in changed), "utf-8")
            words.append(f"data.{split}={manifest}")
        return settings(*words, "data.allow_outside_root=true", folder=tmp_path / name)

    return build


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("model", ["upper", "lower"])
def test_the_case_of_the_transcripts_changes_no_weight_and_no_score(
    cased: Callable[..., LoadedConfig], models: Path, tmp_path: Path, model: str
):
    same, other = (str.upper, str.lower) if model == "upper" else (str.lower, str.upper)
    plain, straight = run(cased(model, same, "same"))
    assert not [finding for finding in plain.findings if finding.check == "text.case"]
    words = cased(model, other, "other")
    with pytest.raises(Interrupted):
        run(words, listeners=[StopAfter(3)])
    record, folder = run(words)  # resumed
    [finding] = [finding for finding in record.findings if finding.check == "text.case"]
    assert len(finding.clip_ids) == 20
    assert record.scores == plain.scores
    for name, value in weights(straight).items():
        assert torch.equal(weights(folder)[name], value), name

    scored = {row["id"]: row for row in read_predictions(folder / "predictions" / "after.jsonl")}
    opened = Recognizer.open(str(folder), precision="fp32", text_scoring="identity")
    again = Recognizer.open(export_of(folder, tmp_path), precision="fp32", text_scoring="identity")
    clips = read_manifest(tmp_path / "other-eval.jsonl", allow_outside_root=True)
    for recognizer in (opened, again):
        result = recognizer.evaluate(clips, bootstrap=100)
        assert {one.clip_id: one.text for one in result.predictions} == {
            name: row["hypothesis"] for name, row in scored.items()
        }
        assert result.scores["cer"].value == pytest.approx(record.scores["after"]["cer"]["value"])


def export_of(folder: Path, tmp_path: Path) -> str:
    export(str(folder), tmp_path / "export", dtype="fp32")
    return str(tmp_path / "export")


def test_a_vocabulary_of_upper_case_transcripts_is_made_and_trained(cased: Callable[..., LoadedConfig]):
    record, folder = run(cased("encoder", str.upper, "data"))
    kept = json.loads((folder / "adapter" / "sonotune.json").read_text("utf-8"))["outputs"]
    assert kept[3:] == sorted(set("ONETWOTHREESEVENNINESIX"))
    assert record.scores["after"]["cer"]["value"] < 1.5
    assert not [finding for finding in record.findings if finding.check == "text.case"]
