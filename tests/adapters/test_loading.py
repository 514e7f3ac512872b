"""Whatever is named is opened: a packaged model, a folder, an adapter; and every failure is one sentence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sonotune.adapters.kinds import lora
from sonotune.adapters.kinds.base import AdapterSettings
from sonotune.adapters.kinds.none import NONE
from sonotune.adapters.metadata import read_entries, use_of, write_metadata
from sonotune.adapters.ranks.choose import RankSettings, plan_ranks
from sonotune.adapters.trainable import adapt
from sonotune.arguments import settings_of_use
from sonotune.errors import AdapterError, ConfigError, ModelError
from sonotune.loading import find_adapter, kept_unquantized, model_folder, open_model
from sonotune.models.base import LoadedModel
from sonotune.models.checkpoints import read_config
from sonotune.planning.inspection import inspect_model
from sonotune.registry import resolve_asset

Fresh = Callable[..., LoadedModel]
Logits = Callable[[LoadedModel], Tensor]


def test_a_packaged_model_and_its_folder_are_the_same(logits: Logits):
    packaged = open_model("assets:whisper-nano")
    folder = open_model(str(resolve_asset("assets:whisper-nano")))
    assert packaged.loaded.revision == folder.loaded.revision
    assert torch.equal(logits(packaged.loaded), logits(folder.loaded))
    assert packaged.choices["quantization.bits"].startswith("16: 2.")


@pytest.mark.parametrize("bits", [4, 16])
def test_an_adapter_is_opened_on_its_base_as_it_was_trained(adapted: Fresh, logits: Logits, tmp_path: Path, bits: int):
    trained = adapted(bits=bits)
    lora.save(trained, tmp_path / "adapter", extra={"bits": bits})
    for name in (tmp_path / "adapter", tmp_path):  # the folder, or a run that holds it
        opened = open_model(str(name))
        assert set(opened.loaded.quantized.values()) == ({4} if bits == 4 else set())
        assert torch.equal(logits(opened.loaded), logits(trained))
        assert opened.choices["quantization.bits"] == f"{bits}: as the adapter was trained"


def test_linears_kept_out_of_quantisation_are_kept_out_when_opened_again(
    adapted: Fresh, logits: Logits, tmp_path: Path
):
    first = open_model("assets:whisper-nano", bits=4, skip=["decoder"])
    assert first.loaded.quantized
    assert not [name for name in first.loaded.quantized if ".decoder." in name]
    keep = kept_unquantized(open_model("assets:whisper-nano").loaded, ["decoder"])
    trained = adapted(bits=4, keep=keep, targets=["encoder"], unfreeze=["decoder.layers[-1:]"])
    lora.save(trained, tmp_path, extra={"bits": 4, "quantization_skip": ["decoder"]})
    opened = open_model(str(tmp_path))
    assert opened.loaded.quantized.keys() == trained.quantized.keys()
    assert torch.equal(logits(opened.loaded), logits(trained))


def test_the_context_an_adapter_was_trained_at_is_kept_unless_another_is_asked_for(adapted: Fresh, tmp_path: Path):
    lora.save(adapted(context="full"), tmp_path)
    assert open_model(str(tmp_path)).loaded.context == "full"
    assert open_model(str(tmp_path), context="cut").loaded.context == "cut"


def test_an_adapter_of_another_tool_names_its_base_itself(adapted: Fresh, logits: Logits, tmp_path: Path):
    trained = adapted()
    lora.save(trained, tmp_path)
    (tmp_path / "sonotune.json").unlink()
    opened = open_model(str(tmp_path), context=trained.context)
    assert torch.equal(logits(opened.loaded), logits(trained))


def test_an_adapter_of_another_tool_is_used_over_the_whole_window(adapted: Fresh, tmp_path: Path):
    """Every other tool pads to it, whatever its base was trained in."""
    lora.save(adapted(context="cut"), tmp_path)
    (tmp_path / "sonotune.json").unlink()
    opened = open_model(str(tmp_path)).loaded
    assert (opened.context, opened.trained_contexts) == ("full", ("full",))
    assert inspect_model(str(tmp_path)).context == "full"


def test_an_adapter_from_before_contexts_were_written_down_has_those_of_its_base(adapted: Fresh, tmp_path: Path):
    lora.save(adapted(context="cut"), tmp_path)
    path = tmp_path / "sonotune.json"
    entries = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({key: entries[key] for key in entries if "context" not in key}), "utf-8")
    opened = open_model(str(tmp_path)).loaded
    assert (opened.context, opened.trained_contexts) == ("cut", ("cut", "full", "thinned"))


@pytest.mark.parametrize("left", ["training_args.bin", "trainer_state.json"])
def test_a_model_that_a_trainer_left_is_used_over_the_whole_window(tmp_path: Path, left: str):
    shutil.copytree(resolve_asset("assets:whisper-nano"), tmp_path / "tuned")
    (tmp_path / "tuned" / "sonotune_export.json").unlink()
    published = open_model(str(tmp_path / "tuned")).loaded
    (tmp_path / "tuned" / left).touch()
    opened = open_model(str(tmp_path / "tuned"))
    tuned = opened.loaded
    assert opened.choices["model.context"].startswith(f"full: {left} lies beside the weights")
    assert "model.context" not in open_model(str(tmp_path / "tuned"), context="thinned").choices
    assert (published.context, published.trained_contexts) == ("thinned", ("full", "thinned"))
    assert (tuned.context, tuned.trained_contexts) == ("full", ("full",))


@pytest.mark.parametrize(
    ("name", "found"),
    [("openai/whisper-small", {}), ("somebody/whisper-small-xx", {"context": "full"}), ("./nowhere", {})],
)
def test_of_hub_names_those_of_the_publisher_are_read_as_published(name: str, found: dict[str, str]):
    assert use_of(name) == found


def test_random_weights_are_the_same_for_the_same_seed():
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(open_model("assets:whisper-nano", random_weights=True).loaded)
    weights = [loaded.module.model.encoder.conv1.weight for loaded in made]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert made[0].revision.startswith("random-")


def test_the_drop_out_of_the_checkpoint_can_be_overridden():
    assert open_model("assets:whisper-nano", dropout=0.37).loaded.module.model.encoder.dropout == 0.37


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./nowhere", "neither a folder here nor a hub name"),
        ("nowhere", "neither a folder here nor a hub name"),
        ("a/b/c", "neither a folder here nor a hub name"),
    ],
)
def test_what_is_not_there_is_named_with_what_to_do(name: str, said: str):
    with pytest.raises(ModelError, match=said) as caught:
        open_model(name)
    assert "model=whisper_nano" in str(caught.value)


def test_an_unknown_packaged_model_lists_those_there_are():
    with pytest.raises(ConfigError, match="assets:whisper-nano"):
        open_model("assets:whisper-pico")


def test_a_hub_name_without_network_says_so(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="could not be read") as caught:
        open_model("openai/whisper-nothing-of-the-kind")
    message = str(caught.value)
    assert "Without network" in message
    assert "\n" not in message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the packaged model that a test may break."""
    return shutil.copytree(resolve_asset("assets:whisper-nano"), tmp_path / "model")


def test_an_empty_folder_is_no_model(tmp_path: Path):
    with pytest.raises(ModelError, match=r"config\.json"):
        open_model(str(tmp_path))


def test_pickled_weights_are_refused(folder: Path):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match="pickled weights"):
        open_model(str(folder))


def test_truncated_weights_are_refused(folder: Path):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match="could not be loaded"):
        open_model(str(folder))


def test_another_architecture_is_named(folder: Path):
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match=r"'bert' model\. Supported families: ast, ctc, "):
        open_model(str(folder))


def test_a_run_that_is_not_finished_has_no_model_yet(tmp_path: Path):
    (tmp_path / "run.json").write_text("{}")
    assert find_adapter(str(tmp_path)) is None
    with pytest.raises(ModelError, match="neither an adapter nor a model yet"):
        model_folder(str(tmp_path))


def test_the_way_the_scales_were_quantised_is_kept(adapted: Fresh, logits: Logits, tmp_path: Path):
    trained = adapted(bits=4, double=False)
    lora.save(trained, tmp_path, extra={"bits": 4, "double": False})
    opened = open_model(str(tmp_path))
    assert torch.equal(logits(opened.loaded), logits(trained))
    name = next(iter(opened.loaded.quantized))
    assert opened.loaded.module.get_submodule(name).base_layer.weight.quant_state.nested is False


def test_full_fine_tuning_does_not_start_from_an_adapter(adapted: Fresh):
    with pytest.raises(AdapterError, match="Merge it first"):
        NONE.attach(adapted(), (), AdapterSettings(), None)


def test_pickled_adapters_are_refused(adapted: Fresh, tmp_path: Path):
    lora.save(adapted(), tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickled adapters"):
        open_model(str(tmp_path))


def test_missing_weights_are_not_made_up(tmp_path: Path):
    shutil.copytree(resolve_asset("assets:whisper-nano"), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    del weights["model.encoder.layers.1.fc1.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights.*layers\.1\.fc1\.weight"):
        open_model(str(tmp_path / "model"))


def test_an_adapter_on_a_local_model_opens_from_any_directory(
    fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(resolve_asset("assets:whisper-nano"), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    bare = open_model("model").loaded
    trained = adapt(bare, lora.LORA, plan_ranks(bare, RankSettings(rank=2)), AdapterSettings(rank=2, stem="frozen"))
    lora.save(trained, tmp_path / "adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert open_model(str(tmp_path / "adapter")).loaded.adapter is not None


def copy_of(name: str, tmp_path: Path) -> Path:
    return shutil.copytree(resolve_asset(f"assets:{name}"), tmp_path / name)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


WRITES = ("whisper-nano", "ctc-nano", "qwen3-asr-nano")


@pytest.mark.parametrize("name", WRITES)
def test_a_model_that_writes_needs_its_tokenizer(tmp_path: Path, name: str):
    model = copy_of(name, tmp_path)
    for file in model.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer: neither tokenizer\.json"):
        open_model(str(model))


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("text", ['{"version": "1.0", "model": {"type": "Nope"}}', "{", '{"added_tokens": 3}'])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, name: str, text: str):
    model = copy_of(name, tmp_path)
    (model / "tokenizer.json").write_text(text, "utf-8")
    with pytest.raises(ModelError, match=r"tokenizer\.json is damaged"):
        open_model(str(model))


@pytest.mark.parametrize("name", [*WRITES, "ast-nano"])
def test_an_extractor_of_other_mel_bins_is_refused(tmp_path: Path, name: str):
    model = copy_of(name, tmp_path)
    path = next(model.glob("p*_config.json"))
    text = re.sub(r'"(feature_size|num_mel_bins)": \d+', r'"\1": 40', path.read_text("utf-8"))
    path.write_text(text, "utf-8")
    with pytest.raises(ModelError, match=r"makes 40 mel bins, and its config\.json asks for \d+"):
        open_model(str(model))


@pytest.mark.parametrize(
    ("name", "before", "after", "said"),
    [
        ("whisper-nano", r'"chunk_length": \d+', '"chunk_length": 30', "makes 30 seconds of window"),
        ("ast-nano", r'"max_length": \d+', '"max_length": 500', "makes 500 frames of window"),
        ("qwen3-asr-nano", r'"n_window": \d+', '"n_window": 25', "makes 50 frames of a chunk"),
    ],
)
def test_an_extractor_of_another_window_is_refused(tmp_path: Path, name: str, before: str, after: str, said: str):
    model = copy_of(name, tmp_path)
    path = next(model.glob("p*_config.json"))
    text, count = re.subn(before, after, path.read_text("utf-8"))
    assert count
    path.write_text(re.sub(r'"n_samples": \d+', '"n_samples": 480000', text), "utf-8")
    with pytest.raises(ModelError, match=said):
        open_model(str(model))


@pytest.mark.parametrize("name", ["whisper-nano", "ctc-nano", "ast-nano"])
def test_a_configuration_with_text_for_a_number_is_refused(tmp_path: Path, name: str):
    model = copy_of(name, tmp_path)
    change(model / "config.json", vocab_size="many", hidden_size="x")
    with pytest.raises(ModelError, match=r"config\.json of .* holds a value that it cannot have") as caught:
        open_model(str(model))
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape_are_named(folder: Path):
    change(folder / "config.json", vocab_size=400)
    with pytest.raises(
        ModelError, match=r"model\.safetensors: model\.decoder\.embed_tokens\.weight has the shape \("
    ) as caught:
        open_model(str(folder))
    assert "config.json asks for (400, 160)" in str(caught.value)


@pytest.mark.parametrize(
    ("checkpoint", "named"),
    [
        ("MIT/ast-finetuned-audioset-10-10-0.4593", "model=ast_nano."),
        ("Qwen/Qwen3-ASR-1.7B-hf", "model=qwen3_asr_nano."),
        ("facebook/wav2vec2-base", "model=ctc_nano."),
        ("openai/whisper-tiny", "model=whisper_nano."),
        ("somebody/something", "ast_nano to classify"),
    ],
)
def test_without_network_the_packaged_model_of_the_same_kind_is_named(
    monkeypatch: pytest.MonkeyPatch, checkpoint: str, named: str
):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="Without network") as caught:
        read_config(checkpoint, None, published=False)
    assert named in str(caught.value)


def test_the_tokenizer_asked_for_is_a_folder(tmp_path: Path):
    with pytest.raises(ModelError, match=r"model\.tokenizer=.*nowhere is no folder here"):
        open_model("assets:ctc-nano", tokenizer=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="has no tokenizer") as caught:
        open_model("assets:ctc-nano", tokenizer=str(tmp_path))
    assert "preprocessor_config.json" not in str(caught.value)


USE = {"language": "he", "text_scoring": "identity", "min_duration_s": 0.2, "max_duration_s": 4.0, "multi_label": False}


def test_what_holds_for_the_use_of_a_model_goes_with_it(adapted: Fresh, tmp_path: Path):
    trained = adapted()
    lora.save(trained, tmp_path / "adapter", extra=USE)
    contexts = {
        "context": "cut",
        "trained_contexts": ["full", "thinned"],
        "thinning": {"margin": 50, "spacing": 30},
        "tokens_per_second": 0.0,
    }
    assert use_of(str(tmp_path / "adapter")) == USE | contexts
    (tmp_path / "model").mkdir()
    write_metadata(trained, tmp_path / "model", extra=USE | {"language": None})
    assert use_of(str(tmp_path / "model")) == {name: USE[name] for name in USE if name != "language"} | contexts
    assert use_of("assets:whisper-nano") == {"context": "cut", "trained_contexts": ["cut", "full", "thinned"]}
    assert use_of("assets:ctc-nano") == {}


@pytest.mark.parametrize("word", ["model={}", "model.checkpoint={}", "config={}.yaml"])
def test_a_command_that_uses_a_model_inherits_it_unless_told_otherwise(adapted: Fresh, tmp_path: Path, word: str):
    place = tmp_path / "adapter"
    lora.save(adapted(), place, extra=USE)
    (tmp_path / "adapter.yaml").write_text(f"model:\n  checkpoint: {place}\n", "utf-8")
    config = settings_of_use([word.format(place)]).config
    found = {"language": config.model.language, **config.data.model_dump(include=set(USE))}
    assert found == USE
    told = settings_of_use([word.format(place), "model.language=en", "data.max_duration_s=9"]).config
    assert (told.model.language, told.data.max_duration_s, told.data.min_duration_s) == ("en", 9.0, 0.2)


def test_a_model_in_a_folder_whose_name_is_no_utf8_is_refused_with_what_to_do(tmp_path: Path):
    folder = tmp_path / "base\udcff"
    shutil.copytree(resolve_asset("assets:whisper-nano"), folder)
    with pytest.raises(ModelError, match=r"base\\udcff' is no UTF-8.*Rename it"):
        open_model(str(folder))


@pytest.mark.parametrize("name", ["sonotune.json", "sonotune_export.json"])
def test_a_description_of_a_newer_schema_is_refused_by_name(name: str, tmp_path: Path):
    path = tmp_path / name
    path.write_text(json.dumps({"schema": 2, "context": "full"}), "utf-8")
    with pytest.raises(AdapterError, match=rf"{name} has schema 2, and this version of sonotune reads 1 at most"):
        read_entries(path)
    for entries in ({"schema": 1, "context": "full"}, {"context": "full"}):  # older exports say none
        path.write_text(json.dumps(entries), "utf-8")
        assert read_entries(path)["context"] == "full"
