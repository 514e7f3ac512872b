"""Whatever is named is opened: a packaged model, a folder, an adapter; and every failure is one sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sonotune.adapters import lora
from sonotune.adapters.saved import find_adapter, kept_unquantized, model_folder, open_model
from sonotune.errors import AdapterError, ConfigError, ModelError
from sonotune.models.base import LoadedModel
from sonotune.registry import resolve_asset
from sonotune.training.adapt import adapt
from sonotune.training.ranks import RankSettings, plan_ranks

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
    assert open_model(str(tmp_path), context="dynamic").loaded.context == "dynamic"


def test_an_adapter_of_another_tool_names_its_base_itself(adapted: Fresh, logits: Logits, tmp_path: Path):
    trained = adapted()
    lora.save(trained, tmp_path)
    (tmp_path / "sonotune.json").unlink()
    assert torch.equal(logits(open_model(str(tmp_path)).loaded), logits(trained))


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
        lora.unfreeze_all(adapted())


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
    trained = adapt(bare, plan_ranks(bare, RankSettings(rank=2)), rank=2, stem="frozen")
    lora.save(trained, tmp_path / "adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert open_model(str(tmp_path / "adapter")).loaded.adapter is not None
