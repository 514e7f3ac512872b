"""Selections in models whose parameters do not all lie in linears: tokens, weight norm, loose weights, old names."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from sonotune.adapters.kinds import lora
from sonotune.adapters.kinds.base import AdapterSettings
from sonotune.adapters.kinds.none import NONE
from sonotune.adapters.merge import merge_into
from sonotune.adapters.ranks.plan import RankPlan, matrix_shape, unit_costs
from sonotune.adapters.targets import modules_of, resolve_targets
from sonotune.errors import AdapterError
from sonotune.loading import open_model
from sonotune.models.base import Component, LoadedModel, select
from sonotune.models.families.ast import AstFamily
from sonotune.models.families.ctc import CtcFamily, character_tokenizer
from sonotune.models.families.qwen3_asr import Qwen3AsrFamily
from sonotune.models.probe import probe_logits
from sonotune.models.quantize import quantize

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "nano"
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
    "conv_depthwise_kernel_size": 7,
    "id2label": {0: "flam", 1: "drag", 2: "roll"},
    "label2id": {"flam": 0, "drag": 1, "roll": 2},
}
AST_BODY = "audio_spectrogram_transformer"
Build = Callable[[str], LoadedModel]


def save(name: str, place: Path) -> Any:
    """Write a tiny model of a kind; returns its family."""
    torch.manual_seed(3)
    if name == "ast":
        config = transformers.ASTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            num_mel_bins=32,
            max_length=256,
            id2label=WAVEFORM["id2label"],
            label2id=WAVEFORM["label2id"],
        )
        transformers.ASTForAudioClassification(config).save_pretrained(place)
        transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=256).save_pretrained(place)
        return AstFamily()
    extractor = transformers.Wav2Vec2FeatureExtractor()
    if name == "ctc":
        tokenizer = character_tokenizer([*"abc"])
        settings = {**WAVEFORM, "vocab_size": len(tokenizer), "pad_token_id": 0}
        transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**settings)).save_pretrained(place)
        transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(place)
        return CtcFamily()
    if name == "weighted":
        config = transformers.Wav2Vec2Config(**WAVEFORM, use_weighted_layer_sum=True)
        transformers.Wav2Vec2ForSequenceClassification(config).save_pretrained(place)
    else:
        config = transformers.Wav2Vec2ConformerConfig(**WAVEFORM, position_embeddings_type="relative")
        transformers.Wav2Vec2ConformerForSequenceClassification(config).save_pretrained(place)
    extractor.save_pretrained(place)
    return AstFamily()


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A kind of model, loaded afresh."""
    root, families = tmp_path_factory.mktemp("loose"), dict[str, Any]()

    def load(name: str) -> LoadedModel:
        if name not in families:
            families[name] = save(name, root / name)
        loaded: LoadedModel = families[name].load(str(root / name))
        return loaded

    return load


def logits(loaded: LoadedModel) -> Tensor:
    return probe_logits(loaded)


def plan(loaded: LoadedModel, names: Sequence[str], *, rank: int = 2) -> RankPlan:
    costs = unit_costs(loaded, names)
    return RankPlan(ranks=dict.fromkeys(names, rank), allocator="test", parameters=rank * sum(costs.values()))


def move(loaded: LoadedModel) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in loaded.module.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    loaded.module.eval()


def trained(loaded: LoadedModel) -> set[str]:
    """Bare names of all that trains, without adapters."""
    return {
        lora.LORA.unwrapped(name)
        for name, parameter in loaded.module.named_parameters()
        if parameter.requires_grad and ".lora_" not in name
    }


# --- parameters that are no module's weight ------------------------------------------------------


def test_class_tokens_train_with_the_module_they_lie_in(build: Build):
    loaded = build("ast")
    assert modules_of(loaded, ["stem"]) == (f"{AST_BODY}.embeddings",)
    assert modules_of(loaded, [f"{AST_BODY}.embeddings.patch_embeddings"]) == (
        f"{AST_BODY}.embeddings.patch_embeddings.projection",
    )


@pytest.mark.parametrize("stem", ["frozen", "train"])
def test_an_unfrozen_stem_of_ast_trains_whole_is_kept_and_merges(build: Build, tmp_path: Path, stem: Any):
    loaded = build("ast")
    before = logits(loaded)
    wanted = set(select(loaded, ["stem"]))
    attached = lora.attach(loaded, plan(loaded, loaded.linears), rank=2, alpha=2.0, stem=stem, unfreeze=["stem"])
    assert trained(attached) == wanted
    assert f"{AST_BODY}.embeddings.cls_token" in wanted
    names = [name for name, parameter in attached.module.named_parameters() if parameter.requires_grad]
    assert len({name for name in names if ".lora_" not in name}) == len(wanted)  # each of them once
    move(attached)
    after = logits(attached)
    assert float((after - before).abs().max()) > 1e-3
    lora.save(attached, tmp_path)
    assert torch.equal(logits(open_model(str(tmp_path)).loaded), after)
    merged = merge_into(attached, build("ast"))
    torch.testing.assert_close(logits(merged), after, rtol=1e-4, atol=1e-4)


def test_gradients_reach_unfrozen_class_tokens(build: Build):
    from sonotune.models.probe import probe_batch

    loaded = build("ast")
    attached = lora.attach(loaded, plan(loaded, loaded.linears), rank=2, alpha=2.0, stem="frozen", unfreeze=["stem"])
    AstFamily().logits(attached, probe_batch(attached)).square().sum().backward()
    without = [
        name
        for name, parameter in attached.module.named_parameters()
        if parameter.requires_grad and ".lora_" not in name and (parameter.grad is None or not parameter.grad.any())
    ]
    assert without == []


def test_weight_norm_resolves_to_the_convolution_that_computes_with_it(build: Build):
    loaded = build("ctc")
    conv = "wav2vec2.encoder.pos_conv_embed.conv"
    assert any(f"{conv}.parametrizations." in name for name in select(loaded, ["stem"]))
    modules = modules_of(loaded, ["stem"])
    assert conv in modules
    assert not any("parametrizations" in name for name in modules)
    assert all(not isinstance(loaded.module.get_submodule(name), nn.ParameterList) for name in modules)
    assert len(set(modules)) == len(modules)


def test_a_convolution_under_weight_norm_trains_is_kept_and_merges(build: Build, tmp_path: Path):
    loaded = build("ctc")
    before = logits(loaded)
    attached = lora.attach(loaded, plan(loaded, loaded.linears), rank=2, alpha=2.0, stem="frozen", unfreeze=["stem"])
    wanted = set(select(attached, ["stem"])) - loaded.constant
    assert trained(attached) == wanted
    assert any("parametrizations.weight.original1" in name for name in wanted)
    move(attached)
    after = logits(attached)
    assert float((after - before).abs().max()) > 1e-3
    lora.save(attached, tmp_path)
    assert torch.equal(logits(open_model(str(tmp_path)).loaded), after)
    merged = merge_into(attached, build("ctc"))
    torch.testing.assert_close(logits(merged), after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ctc", "weighted", "conformer"])
def test_the_mask_of_pretraining_never_trains(build: Build, name: str):
    loaded = build(name)
    masks = {key for key, _ in loaded.module.named_parameters() if key.endswith("masked_spec_embed")}
    assert masks
    assert masks <= loaded.constant
    assert not any(key.removesuffix(".masked_spec_embed") in modules_of(loaded, ["stem"]) for key in masks)
    full = NONE.attach(loaded, (), AdapterSettings(), None)
    assert {key for key, value in full.module.named_parameters() if not value.requires_grad} == loaded.constant


def test_a_loose_parameter_of_the_model_itself_cannot_be_unfrozen_alone(build: Build):
    loaded = build("weighted")
    assert "layer_weights" in select(loaded, ["head"])
    with pytest.raises(AdapterError, match=r"layer_weights is a parameter of the model itself") as caught:
        modules_of(loaded, ["head"])
    assert "Select the whole" in str(caught.value)
    assert modules_of(loaded, ["encoder.norms"])  # what does not hold it is not concerned


class Toy(nn.Module):
    """A token and a bias beside linears, some of which end in the name of another."""

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"model_type": "toy"}
        self.out = nn.Linear(4, 3)
        self.body = nn.ModuleDict({"out": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
        self.body.register_parameter("token", nn.Parameter(torch.ones(4)))
        self.deep = nn.ModuleDict({"body": nn.ModuleDict({"out": nn.Linear(4, 4)})})

    def forward(self, x: Tensor) -> Tensor:
        inner = self.body["norm"](self.body["out"](x) + self.body.token)
        hidden: Tensor = self.out(self.deep["body"]["out"](inner))  # type: ignore[index]
        return hidden


def toy() -> LoadedModel:
    torch.manual_seed(0)
    return LoadedModel(
        module=Toy(),
        frontend=None,  # type: ignore[arg-type]
        components=(
            Component(name="stem", prefixes=("body.token", "body.norm")),
            Component(name="encoder", prefixes=("body.out", "deep"), layers=("deep.body",)),
            Component(name="head", prefixes=("out",)),
        ),
        linears=("out", "body.out", "deep.body.out"),
        family=SimpleNamespace(name="toy"),  # type: ignore[arg-type]
        checkpoint="toy",
        revision="0",
        processor=None,
    )


def test_a_loose_parameter_is_refused_where_its_module_is_not_selected_whole():
    with pytest.raises(AdapterError, match=r"body\.token is a parameter of body, of which other parts are not"):
        modules_of(toy(), ["stem"])
    assert modules_of(toy(), ["stem", "body.out"]) == ("body",)


def test_what_lies_in_a_selected_module_is_not_named_again():
    assert modules_of(toy(), ["stem", "encoder"]) == ("body", "deep.body.out")


# --- names that end other names ------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [["out"], ["body.out"], ["deep.body.out"], ["out", "deep.body.out"], ["body.out", "deep.body.out"]]
)
def test_exactly_the_named_linears_are_adapted(tmp_path: Path, names: list[str]):
    attached = lora.attach(toy(), plan(toy(), names), rank=2, alpha=2.0, stem="frozen")
    assert set(lora.lora_layers(attached)) == set(names)
    assert {lora.LORA.base_name(name) for name, value in attached.module.named_parameters() if value.requires_grad} == {
        f"{name}.weight" for name in names
    }
    move(attached)
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    lora.save(attached, tmp_path)
    again = lora.load(toy(), tmp_path)
    assert set(lora.lora_layers(again)) == set(names)
    assert torch.equal(again.module(inputs), attached.module(inputs))


def test_ranks_of_names_that_end_others_are_their_own():
    ranks = {"out": 1, "body.out": 2, "deep.body.out": 3}
    made = RankPlan(ranks=ranks, allocator="test", parameters=0)
    attached = lora.attach(toy(), made, rank=2, alpha=4.0, stem="frozen")
    layers = lora.lora_layers(attached)
    assert {name: layer.r["default"] for name, layer in layers.items()} == ranks
    for name, layer in layers.items():
        assert layer.scaling["default"] == pytest.approx(2.0 * (2 / ranks[name]) ** 0.5)


def test_what_would_train_another_module_in_full_as_well_is_refused():
    with pytest.raises(AdapterError, match=r"(body|deep\.body)\.out ends in the name of a module that trains in full"):
        lora.attach(toy(), plan(toy(), ["body.out"]), rank=2, alpha=2.0, stem="frozen", unfreeze=["head"])


# --- pointwise convolutions ----------------------------------------------------------------------


def test_a_pointwise_convolution_costs_what_a_linear_does(build: Build):
    loaded = build("conformer")
    costs = unit_costs(loaded, loaded.linears)
    convolutions = [name for name in loaded.linears if isinstance(loaded.module.get_submodule(name), nn.Conv1d)]
    assert len(convolutions) == 4  # two a layer
    for name in convolutions:
        out_channels, in_channels, kernel = loaded.module.get_submodule(name).weight.shape
        assert kernel == 1
        assert matrix_shape(loaded, name) == (out_channels, in_channels)
        assert costs[name] == out_channels + in_channels
    attached = lora.attach(loaded, plan(loaded, loaded.linears, rank=3), rank=3, alpha=3.0, stem="frozen")
    count = sum(value.numel() for value in attached.module.parameters() if value.requires_grad)
    assert count == 3 * sum(costs.values())
    move(attached)
    merged = merge_into(attached, build("conformer"))
    torch.testing.assert_close(logits(merged), logits(attached), rtol=1e-4, atol=1e-4)


def test_pointwise_in_two_dimensions_and_what_is_not_pointwise():
    module: Any = nn.ModuleDict(
        {
            "flat": nn.Conv2d(3, 5, 1),
            "wide": nn.Conv1d(3, 5, 3),
            "apart": nn.Conv1d(6, 6, 1, groups=6),
            "norm": nn.LayerNorm(3),
        }
    )
    loaded = toy().with_(module=module)
    assert unit_costs(loaded, ["flat"]) == {"flat": 8}
    for name in ("wide", "apart", "norm"):
        with pytest.raises(AdapterError, match=rf"^{name} is a .*; linears and pointwise convolutions carry"):
            unit_costs(loaded, [name])


@pytest.mark.parametrize("bits", [4, 8])
def test_quantising_passes_convolutions_over(build: Build, bits: Any):
    plain, loaded = build("conformer"), build("conformer")
    quantized = quantize(loaded, bits=bits)
    convolutions = {name for name in plain.linears if isinstance(plain.module.get_submodule(name), nn.Conv1d)}
    assert set(quantized.quantized) == set(plain.linears) - convolutions
    for name in convolutions:
        kept = quantized.module.get_submodule(name)
        assert type(kept) is nn.Conv1d
        assert torch.equal(kept.weight, plain.module.get_submodule(name).weight)
    difference = float((logits(quantized) - logits(plain)).abs().max())
    assert 0 < difference < 0.5
    assert math.isfinite(difference)


def test_a_quantised_module_is_not_unfrozen(build: Build):
    quantized = quantize(build("conformer"), bits=8)
    with pytest.raises(AdapterError, match="quantised to 8 bits"):
        modules_of(quantized, ["encoder.layers[0]"])


# --- names of older releases ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    spec = importlib.util.spec_from_file_location("qwen3_asr_base_of_targets", RECIPES / "qwen3_asr_base.py")
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    place = tmp_path_factory.mktemp("qwen") / "model"
    recipe.build(
        place,
        audio_config={
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "downsample_hidden_size": 8,
        },
        text_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 512,
        },
    )
    return Qwen3AsrFamily().load(str(place))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("thinker.audio_tower", "model.audio_tower"),
        ("thinker.audio_tower.layers.1", "model.audio_tower.layers.1"),
        ("thinker.audio_tower.layers.0.fc1", "model.audio_tower.layers.0.fc1"),
        ("thinker.model.layers.0.self_attn", "model.language_model.layers.0.self_attn"),
        ("proj1", "model.multi_modal_projector.linear_1"),
        ("thinker.audio_tower.proj2", "model.multi_modal_projector.linear_2"),
        ("ln_post", "model.audio_tower.ln_post"),
    ],
)
def test_names_of_the_authors_package_select_what_they_named(qwen: LoadedModel, old: str, new: str):
    found = select(qwen, [old])
    assert found == select(qwen, [new])
    assert all(name.startswith(new + ".") for name in found)
    assert modules_of(qwen, [old]) == modules_of(qwen, [new])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("thinker.audio_tower", "model.audio_tower"),
        ("proj1", "model.multi_modal_projector.linear_1"),
        ("thinker.model.layers.1", "model.language_model.layers.1"),
    ],
)
def test_names_of_the_authors_package_are_targets(qwen: LoadedModel, old: str, new: str):
    found = resolve_targets(qwen, [old])
    assert found == resolve_targets(qwen, [new])
    assert found
    assert all(name == new or name.startswith(new + ".") for name in found)
    assert set(found) < set(qwen.linears)


@pytest.mark.parametrize("name", ["thinker.audio_towers", "proj3", "thinker.visual"])
def test_a_name_of_neither_release_is_refused(qwen: LoadedModel, name: str):
    with pytest.raises(AdapterError, match=rf"'{name}' matches none"):
        resolve_targets(qwen, [name])
