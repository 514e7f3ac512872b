"""Runs with an output layer of their own: symbols of a CTC model, classes of a classifier; kept, reopened, exported."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from torch import Tensor

from sonotune import cli
from sonotune.config.load import LoadedConfig
from sonotune.data.manifest import read_manifest
from sonotune.data.tokenizer import train_tokenizer
from sonotune.errors import AdapterError, ConfigError, ManifestError
from sonotune.evaluation.evaluate import evaluate
from sonotune.loading import open_model
from sonotune.models.families.ctc import character_tokenizer
from sonotune.models.probe import probe_batch, probe_logits
from sonotune.serving.export import export
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.training.run import run

Settings = Callable[..., LoadedConfig]
RATE_HZ = 16_000
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
CLASSES = ("flam", "drag", "roll")
CHARACTERS = ("<pad>", "<unk>", "|", *sorted(set("onetwothreesevenninesix")))


# --- models and clips ----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def ctc_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`encoder` has no output layer, `other` one for other symbols."""
    folder = tmp_path_factory.mktemp("ctc-models")
    extractor = transformers.Wav2Vec2FeatureExtractor()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**WAVEFORM)).save_pretrained(folder / "encoder")
        extractor.save_pretrained(folder / "encoder")
        tokenizer = character_tokenizer([*"xyz"])
        config = transformers.Wav2Vec2Config(**WAVEFORM, vocab_size=len(tokenizer), pad_token_id=0)
        transformers.Wav2Vec2ForCTC(config).save_pretrained(folder / "other")
        transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder / "other")
    return folder


@pytest.fixture(scope="session")
def ast_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AST for four classes of another corpus."""
    folder = tmp_path_factory.mktemp("ast-model") / "model"
    config = transformers.ASTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        num_mel_bins=32,
        max_length=256,
        initializer_range=0.1,
        id2label=dict(enumerate("abcd")),
        label2id={label: index for index, label in enumerate("abcd")},
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformers.ASTForAudioClassification(config).save_pretrained(folder)
    transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=256).save_pretrained(folder)
    return folder


def write_tones(folder: Path, name: str, count: int, *, first: int = 0, many: bool = False, also: str = "") -> Path:
    """A tone for each class, of 0.5 to 0.8 s; `many` lays one or two of them over each other."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(first, first + count):
        own = sorted({index % 3, (index * 2 + 1) % 3}) if many else [index % 3]
        rng = np.random.default_rng(index)
        time_S = np.arange(round(RATE_HZ * (0.5 + 0.05 * (index % 7)))) / RATE_HZ
        tones_S = sum(np.sin(2 * np.pi * 300 * (1 + 4 * part) * time_S) for part in own)
        soundfile.write(folder / f"{index}.wav", 0.2 * tones_S + 0.01 * rng.standard_normal(time_S.size), RATE_HZ)
        labels = [CLASSES[part] for part in own]
        lines.append(
            {"id": f"t{index}", "path": f"{index}.wav", "speaker": f"s{index}", "label": labels if many else labels[0]}
        )
    if also:
        lines[-1]["label"] = also
    manifest = folder / f"{name}.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return manifest


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tones")
    write_tones(folder, "train", 12)
    write_tones(folder, "eval", 6, first=12)
    write_tones(folder, "unknown", 4, first=18, also="paradiddle")
    write_tones(folder / "many", "train", 12, many=True)
    write_tones(folder / "many", "eval", 6, first=12, many=True)
    return folder


@pytest.fixture
def classify(settings: Settings, ast_model: Path, tones: Path) -> Settings:
    """Settings of a short run of classification."""

    def build(*words: str, place: Path = tones) -> LoadedConfig:
        given = {word.partition("=")[0] for word in words}
        common = (
            f"model={ast_model}",
            f"data.train={place / 'train.jsonl'}",
            f"data.eval={place / 'eval.jsonl'}",
            "training.learning_rate=1e-2",
        )
        return settings(*(word for word in common if word.partition("=")[0] not in given), *words)

    return build


def rows(folder: Path, moment: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions" / f"{moment}.jsonl").read_text("utf-8").splitlines()]


def call(*words: str) -> tuple[int, str, str]:
    """Run a command in this process; exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        cli.main(list(words))
    assert isinstance(caught.value.code, int)
    return caught.value.code, out.getvalue(), err.getvalue()


def reopened(folder: Path) -> tuple[Any, Tensor]:
    """What a folder holds, and its logits, whatever the global generator is at."""
    torch.manual_seed(int.from_bytes(folder.name.encode()[:4], "big"))
    opened = open_model(str(folder))
    return opened.loaded, probe_logits(opened.loaded)


# --- CTC with symbols of the data ----------------------------------------------------------------


STEM_IN_FULL = "training.stages=[{name: all, weights: [stem], max_epochs: 2}]"
"""Stages say what trains, so that no new layer does by itself."""


@pytest.fixture(params=["encoder", "other", "subwords"])
def ctc_words(
    request: pytest.FixtureRequest, ctc_models: Path, tmp_path: Path
) -> tuple[list[str], tuple[str, ...] | None]:
    """Settings of the model, and the symbols that must come of them."""
    if request.param == "encoder":
        return [f"model={ctc_models / 'encoder'}"], CHARACTERS
    if request.param == "other":
        return [f"model={ctc_models / 'other'}", "model.outputs=data"], CHARACTERS
    texts = ["one", "two", "three seven", "nine", "six"]
    train_tokenizer(texts, kind="bpe", vocab_size=24, folder=tmp_path / "words", bos=False, eos=False)
    return [f"model={ctc_models / 'encoder'}", f"model.tokenizer={tmp_path / 'words'}"], None


def test_a_new_vocabulary_is_trained_kept_reopened_and_exported(
    settings: Settings, ctc_words: tuple[list[str], tuple[str, ...] | None], corpus: Path, tmp_path: Path
):
    words, expected = ctc_words
    record, folder = run(settings(*words, "training.learning_rate=1e-2"))
    assert record.model["family"] == "ctc"
    assert record.choices["adapter.unfreeze"] == "head: new, so its random weights train in full"
    assert not [finding for finding in record.findings if finding.check == "model.new_outputs"]
    assert "lm_head" not in record.ranks
    kept = json.loads((folder / "adapter" / "sonotune.json").read_text("utf-8"))
    if expected is not None:
        assert tuple(kept["outputs"]) == expected
    loaded, logits = reopened(folder)
    again, same = reopened(folder / "adapter")
    assert torch.equal(logits, same)
    assert loaded.new_outputs == again.new_outputs == tuple(kept["outputs"])
    assert loaded.module.config.vocab_size == len(kept["outputs"]) == logits.shape[1]
    task = Transcribe(open_model(str(folder)).loaded.family, TaskSettings())
    clips = read_manifest(corpus / "eval.jsonl")
    found = evaluate(task, loaded, clips, batch_seconds=record.config["evaluation"]["batch_seconds"], bootstrap=100)
    assert [one.text for one in found.predictions] == [row["hypothesis"] for row in rows(folder, "after")]
    assert found.scores["cer"].value == pytest.approx(record.scores["after"]["cer"]["value"])

    result = export(str(folder), tmp_path / "export", dtype="fp32")
    assert result["merge"]["largest"] < 1e-3
    plain = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "export").eval()
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "export")
    assert processor.tokenizer.get_vocab() == loaded.processor.tokenizer.get_vocab()
    batch = probe_batch(loaded)
    with torch.no_grad():
        theirs = [
            plain(input_values=wave[None, :length, 0]).logits[0]
            for wave, length in zip(batch.inputs, batch.input_lengths.tolist(), strict=True)
        ]
    torch.testing.assert_close(torch.cat(theirs), logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(reopened(tmp_path / "export")[1], logits, rtol=1e-3, atol=1e-3)


def test_a_new_layer_that_trains_as_an_adapter_is_the_same_when_reopened(
    settings: Settings, ctc_models: Path, corpus: Path
):
    """What the adapter lies on was drawn in the run, and is in no checkpoint."""
    record, folder = run(settings(f"model={ctc_models / 'encoder'}", "training.learning_rate=1e-2", STEM_IN_FULL))
    [finding] = [finding for finding in record.findings if finding.check == "model.new_outputs"]
    assert finding.severity == "warning"
    assert "weights: [head]" in finding.message
    opened = open_model(str(folder))
    assert torch.equal(probe_logits(opened.loaded), reopened(folder)[1])
    found = evaluate(
        Transcribe(opened.loaded.family, TaskSettings()),
        opened.loaded,
        read_manifest(corpus / "eval.jsonl"),
        bootstrap=100,
    )
    assert [one.text for one in found.predictions] == [row["hypothesis"] for row in rows(folder, "after")]


def test_a_new_layer_that_would_not_train_is_refused(settings: Settings, ctc_models: Path):
    with pytest.raises(AdapterError, match=r"the output layer is new \(\d+ outputs\) and would not train"):
        run(settings(f"model={ctc_models / 'encoder'}", "adapter.targets=[encoder]", STEM_IN_FULL))


def test_a_new_vocabulary_of_full_fine_tuning_is_a_plain_model(settings: Settings, ctc_models: Path):
    _, folder = run(settings(f"model={ctc_models / 'encoder'}", "adapter.kind=none", "training.learning_rate=1e-3"))
    loaded, _ = reopened(folder)
    assert tuple(loaded.processor.tokenizer.convert_ids_to_tokens(list(range(len(CHARACTERS))))) == CHARACTERS
    plain = transformers.Wav2Vec2ForCTC.from_pretrained(folder / "model")
    assert torch.equal(plain.lm_head.weight, loaded.module.lm_head.weight)


# --- classification ------------------------------------------------------------------------------


def test_a_run_of_classification(classify: Settings, tones: Path, tmp_path: Path):
    record, folder = run(classify("training.max_epochs=6"))
    assert record.model["family"] == "ast"
    assert set(record.scores) == {"before", "after"}
    for moment in record.scores.values():
        assert set(moment) == {"accuracy", "f1_macro", "map"}
        assert {score["count"] for score in moment.values()} == {6}
    assert record.scores["after"]["accuracy"]["value"] > record.scores["before"]["accuracy"]["value"]
    assert record.scores["after"]["accuracy"]["value"] >= 5 / 6  # three tones are told apart
    labels = tuple(sorted(CLASSES))
    made = rows(folder, "after")
    assert [row["id"] for row in made] == [f"t{index}" for index in range(12, 18)]
    right = 0
    for index, row in enumerate(made):
        assert row["labels"] == [CLASSES[index % 3]]
        assert tuple(row["scores"]) == labels
        assert sum(row["scores"].values()) == pytest.approx(1.0, abs=1e-5)
        assert row["decided"] == [max(row["scores"], key=row["scores"].__getitem__)]
        assert {"duration_s", "speaker", "domain", "language"} <= row.keys()
        right += row["decided"] == row["labels"]
    assert record.scores["after"]["accuracy"]["value"] == pytest.approx(right / 6)

    loaded, logits = reopened(folder)
    assert loaded.labels == loaded.new_outputs == labels
    code, out, err = call("evaluate", f"model={folder}", f"data.test={tones / 'eval.jsonl'}", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["scores"]["accuracy"]["value"] == record.scores["after"]["accuracy"]["value"]
    assert sum(map(sum, found["confusion"]["counts"])) == 6
    code, out, err = call("evaluate", f"model={folder}", f"data.test={tones / 'unknown.jsonl'}")
    assert (code, out) == (2, "")
    assert "sonotune: " in err
    assert "Traceback" not in err
    for said in ("paradiddle", "drag, flam, roll"):
        assert said in err

    export(str(folder), tmp_path / "export", dtype="fp32")
    plain = transformers.ASTForAudioClassification.from_pretrained(tmp_path / "export").eval()
    assert [plain.config.id2label[index] for index in range(3)] == list(labels)
    assert plain.config.problem_type is None
    batch = probe_batch(loaded.with_(context="full"))
    with torch.no_grad():
        theirs = plain(input_values=batch.inputs).logits
        ours = open_model(str(folder)).loaded.family.logits(loaded, batch)
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
    assert logits.shape == (3, 3)


def test_a_run_of_several_classes(classify: Settings, tones: Path, tmp_path: Path):
    record, folder = run(
        classify(
            "data.multi_label=true", "training.class_weights=balanced", "training.max_epochs=6", place=tones / "many"
        )
    )
    assert set(record.scores["after"]) == {"accuracy", "f1_macro", "map"}
    assert record.scores["after"]["map"]["value"] > record.scores["before"]["map"]["value"]
    made = rows(folder, "after")
    assert {len(row["labels"]) for row in made} == {1, 2}
    for row in made:
        assert all(0 < score < 1 for score in row["scores"].values())
        assert row["decided"] == [label for label, score in row["scores"].items() if score >= 0.5]
    assert any(sum(row["scores"].values()) > 1.05 for row in made)  # no softmax
    assert json.loads((folder / "adapter" / "sonotune.json").read_text("utf-8"))["multi_label"] is True
    code, out, err = call("evaluate", f"model={folder}", f"data.test={tones / 'many' / 'eval.jsonl'}", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["scores"]["map"]["value"] == pytest.approx(record.scores["after"]["map"]["value"])
    assert "confusion" not in found
    export(str(folder), tmp_path / "export", dtype="fp32")
    plain = transformers.ASTForAudioClassification.from_pretrained(tmp_path / "export")
    assert plain.config.problem_type == "multi_label_classification"


def test_full_fine_tuning_of_several_classes_says_so(classify: Settings, tones: Path):
    words = ("data.multi_label=true", "adapter.kind=none", "training.max_steps=2", "training.learning_rate=1e-4")
    _, folder = run(classify(*words, place=tones / "many"))
    config = json.loads((folder / "model" / "config.json").read_text("utf-8"))
    assert config["problem_type"] == "multi_label_classification"
    assert reopened(folder)[0].labels == tuple(sorted(CLASSES))


def test_a_new_classifier_that_trains_as_an_adapter_is_the_same_when_reopened(
    classify: Settings, tones: Path, monkeypatch: pytest.MonkeyPatch
):
    record, folder = run(classify(STEM_IN_FULL))
    assert any(finding.check == "model.new_outputs" for finding in record.findings)
    monkeypatch.setattr("sonotune.cli.train.run_and_report", lambda settings, *, quiet: (record, folder))
    code, out, err = call("train", "model=ast_nano", f"data.train={tones / 'train.jsonl'}")
    assert code == 0, err
    assert any(line.startswith("warning  the output layer is new") for line in out.splitlines())
    _, logits = reopened(folder)
    torch.manual_seed(99)
    opened = open_model(str(folder))
    assert torch.equal(probe_logits(opened.loaded), logits)
    code, out, err = call("evaluate", f"model={folder}", f"data.test={tones / 'eval.jsonl'}", "--json")
    assert code == 0, err
    assert json.loads(out)["scores"]["map"]["value"] == pytest.approx(record.scores["after"]["map"]["value"])


def test_mixup_reaches_the_loss(classify: Settings, tmp_path: Path):
    losses = {}
    for name, words in {"plain": [], "mixed": ["augmentation.mixup_probability=1.0"]}.items():
        _, folder = run(classify(*words, "training.max_steps=1", f"run.dir={tmp_path / name}"))
        steps = map(json.loads, (folder / "events.jsonl").read_text("utf-8").splitlines())
        losses[name] = next(event["loss"] for event in steps if event["kind"] == "step")
    assert losses["plain"] != losses["mixed"]
    assert np.isfinite(losses["mixed"])


def test_a_model_with_a_window_of_a_second_trains(classify: Settings, tmp_path: Path):
    """Strokes are short; a run checks at its end what the adapter does, on a clip that must fit as well."""
    config = transformers.ASTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        num_mel_bins=32,
        max_length=100,
    )
    transformers.ASTForAudioClassification(config).save_pretrained(tmp_path / "model")
    transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=100).save_pretrained(tmp_path / "model")
    record, folder = run(classify(f"model={tmp_path / 'model'}", "training.max_steps=1"))
    assert record.status == "finished"
    export(str(folder), tmp_path / "export", dtype="fp32")


# --- settings that do not go together ------------------------------------------------------------


def test_a_number_of_classes_that_the_data_does_not_have_is_refused(classify: Settings):
    with pytest.raises(ConfigError, match=r"model\.num_labels is 5, and the training clips have 3 classes: drag, flam"):
        run(classify("model.num_labels=5"))
    assert run(classify("model.num_labels=3", "training.max_steps=1"))[0].status == "finished"


def test_transcripts_are_never_mixed(settings: Settings):
    with pytest.raises(ConfigError, match=r"augmentation\.mixup_probability is 0\.5 and the task is transcribe"):
        run(settings("augmentation.mixup_probability=0.5"))


@pytest.mark.parametrize("split", ["eval", "test"])
def test_a_class_that_is_only_scored_is_refused_before_training(classify: Settings, tones: Path, split: str):
    with pytest.raises(ManifestError, match="paradiddle"):
        run(classify(f"data.{split}={tones / 'unknown.jsonl'}"))


def relabelled(tones: Path, target: Path, **labels: Any) -> Path:
    """The training clips with other labels: `every` for all of them, or by their number (`t3`)."""
    target.mkdir(exist_ok=True)
    lines = [json.loads(line) for line in (tones / "train.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        line |= {"path": str(tones / line["path"]), "label": labels.get(line["id"], labels.get("every", line["label"]))}
    (target / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return target / "clips.jsonl"


def test_one_class_is_refused_before_training(classify: Settings, tones: Path, tmp_path: Path):
    place = relabelled(tones, tmp_path / "one", every="only")
    with pytest.raises(ManifestError, match="one class, 'only'"):
        run(classify(f"data.train={place}", f"data.eval={place}", "data.allow_outside_root=true"))


def test_many_clips_without_a_single_class_are_refused_before_training(classify: Settings, tones: Path, tmp_path: Path):
    place = relabelled(tones, tmp_path / "none", every=[])
    words = (f"data.train={place}", f"data.eval={place}", "data.multi_label=true", "data.allow_outside_root=true")
    with pytest.raises(ManifestError, match="none of the 12 training clips has a class"):
        run(classify(*words, "adapter.unfreeze=[]"))


@pytest.mark.parametrize("split", ["eval", "test"])
def test_a_clip_with_two_classes_that_is_scored_is_named_before_training(
    classify: Settings, tones: Path, tmp_path: Path, split: str
):
    place = relabelled(tones, tmp_path / "two", t3=["drag", "flam"])
    with pytest.raises(ManifestError, match="clip 't3' has the classes drag, flam"):
        run(classify(f"data.{split}={place}", "data.allow_outside_root=true"))


def test_the_checkpoints_classes_cannot_be_asked_for_where_they_do_not_fit(classify: Settings):
    with pytest.raises(ManifestError, match=r"drag, flam, roll\. It knows a, b, c, d"):
        run(classify("model.outputs=checkpoint"))


def test_a_classifier_is_not_trained_on_clips_without_classes(classify: Settings, corpus: Path):
    with pytest.raises((ManifestError, ConfigError)) as caught:
        run(classify(f"data.train={corpus / 'train.jsonl'}", f"data.eval={corpus / 'eval.jsonl'}"))
    assert "class" in str(caught.value)
