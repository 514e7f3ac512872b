"""The map found by structure: exact layers and linears of known architectures, and adapters that really act there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonotune.errors import ModelError
from sonotune.models.base import LoadedModel, component_of_parameters
from sonotune.models.structure import find_structure

LABELS = 5


# --- EfficientAT and MobileNetV3: names as in the originals -----------------------------------------------------------


class ConvNormActivation(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> None:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.Hardswish())


class SqueezeExcitation(nn.Module):
    """EfficientAT has linears here, torchvision 1x1 convolutions."""

    def __init__(self, width: int, *, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.fc1: nn.Module = nn.Linear(width, 4) if linear else nn.Conv2d(width, 4, 1)
        self.fc2: nn.Module = nn.Linear(4, width) if linear else nn.Conv2d(4, width, 1)

    def forward(self, inputs_BCFT: Tensor) -> Tensor:
        scale = inputs_BCFT.mean((2, 3)) if self.linear else inputs_BCFT.mean((2, 3), keepdim=True)
        scale = torch.sigmoid(self.fc2(F.gelu(self.fc1(scale))))
        return inputs_BCFT * (scale[:, :, None, None] if self.linear else scale)


class ConcurrentSEBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conc_se_layers = nn.ModuleList([SqueezeExcitation(width, linear=True)])

    def forward(self, inputs_BCFT: Tensor) -> Tensor:
        return self.conc_se_layers[0](inputs_BCFT)


class InvertedResidual(nn.Module):
    def __init__(self, width: int, expanded: int, *, squeeze: nn.Module | None) -> None:
        super().__init__()
        layers: list[nn.Module] = [] if expanded == width else [ConvNormActivation(width, expanded)]
        layers.append(ConvNormActivation(expanded, expanded, 3, groups=expanded))
        layers += [squeeze] if squeeze else []
        self.block = nn.Sequential(*layers, ConvNormActivation(expanded, width))

    def forward(self, inputs_BCFT: Tensor) -> Tensor:
        return inputs_BCFT + self.block(inputs_BCFT)


class MobileNet(nn.Module):
    def __init__(self, squeeze: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvNormActivation(1, 8, 3, stride=2),
            InvertedResidual(8, 8, squeeze=None),  # the first block of MobileNetV3 does not expand
            InvertedResidual(8, 16, squeeze=squeeze(16)),
            InvertedResidual(8, 24, squeeze=squeeze(24)),
            ConvNormActivation(8, 32),
        )
        # Far larger than the blocks, as in the narrow models of EfficientAT.
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 256),
            nn.Hardswish(),
            nn.Dropout(0.2),
            nn.Linear(256, LABELS),
        )

    def forward(self, inputs_B1FT: Tensor) -> Tensor:
        return self.classifier(self.features(inputs_B1FT))


# --- HTS-AT: a Swin transformer ---------------------------------------------------------------------------------------


class PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, 4, 4)
        self.norm = nn.LayerNorm(width)

    def forward(self, inputs_B1FT: Tensor) -> Tensor:
        return self.norm(self.proj(inputs_B1FT).flatten(2).transpose(1, 2))


class WindowAttention(nn.Module):
    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.randn(places, places, 2))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        B, T, D = inputs_BTD.shape
        q, k, v = self.qkv(inputs_BTD).reshape(B, T, 3, 2, D // 2).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table.permute(2, 0, 1)[None]
        states = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(states.transpose(1, 2).reshape(B, T, D))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(inputs_BTD)))


class SwinTransformerBlock(nn.Module):
    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, places)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        states = inputs_BTD + self.attn(self.norm1(inputs_BTD))
        return states + self.mlp(self.norm2(states))


class PatchMerging(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        B, T, D = inputs_BTD.shape
        return self.reduction(self.norm(inputs_BTD.reshape(B, T // 4, 4 * D)))


class BasicLayer(nn.Module):
    def __init__(self, width: int, places: int, depth: int, *, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([SwinTransformerBlock(width, places) for _ in range(depth)])
        self.downsample = None if last else PatchMerging(width)

    def forward(self, states_BTD: Tensor) -> Tensor:
        for block in self.blocks:
            states_BTD = block(states_BTD)
        return states_BTD if self.downsample is None else self.downsample(states_BTD)


class HtsAt(nn.Module):
    """`tscam` is the original's way to classify; without it a Swin's."""

    def __init__(self, depths: tuple[int, ...], *, tscam: bool) -> None:
        super().__init__()
        self.tscam = tscam
        self.bn0 = nn.BatchNorm2d(16)
        self.patch_embed = PatchEmbed(8)
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, 16, 8))
        self.layers = nn.ModuleList(
            [
                BasicLayer(8 * 2**stage, 16 // 4**stage, depth, last=stage == len(depths) - 1)
                for stage, depth in enumerate(depths)
            ]
        )
        width = 8 * 2 ** (len(depths) - 1)
        self.norm = nn.LayerNorm(width)
        if tscam:
            self.tscam_conv = nn.Conv1d(width, LABELS, 3, padding=1)
        else:
            self.head = nn.Linear(width, LABELS)

    def forward(self, inputs_B1FT: Tensor) -> Tensor:
        states = self.bn0(inputs_B1FT.transpose(1, 2)).transpose(1, 2)
        states = self.patch_embed(states) + self.absolute_pos_embed
        for layer in self.layers:
            states = layer(states)
        states = self.norm(states)
        return self.tscam_conv(states.transpose(1, 2)).mean(2) if self.tscam else self.head(states.mean(1))


# --- BEATs ------------------------------------------------------------------------------------------------------------


class BeatsAttention(nn.Module):
    def __init__(self, width: int, relative_attention_bias: nn.Embedding) -> None:
        super().__init__()
        self.relative_attention_bias = relative_attention_bias
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.grep_linear = nn.Linear(width // 2, 8)
        self.grep_a = nn.Parameter(torch.ones(1, 2, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Takes weights as well, but not in the forward pass: these linears do carry adapters.
        nn.init.xavier_uniform_(self.q_proj.weight)
        nn.init.xavier_uniform_(self.out_proj.weight)

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        B, T, D = inputs_BTD.shape
        inputs_BTD = inputs_BTD.to(self.q_proj.weight.dtype)
        q, k, v = (
            linear(inputs_BTD).view(B, T, 2, D // 2).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        places = (torch.arange(T)[None] - torch.arange(T)[:, None]).clamp(-4, 4) + 4
        gate_a, gate_b = torch.sigmoid(self.grep_linear(q).view(B, 2, T, 2, 4).sum(-1)).chunk(2, dim=-1)
        gate = gate_a * (gate_b * self.grep_a - 1.0) + 2.0
        bias = gate * self.relative_attention_bias(places).permute(2, 0, 1)[None]
        states = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out_proj(states.transpose(1, 2).reshape(B, T, D))


class BeatsLayer(nn.Module):
    def __init__(self, width: int, bias: nn.Embedding) -> None:
        super().__init__()
        self.self_attn = BeatsAttention(width, bias)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        states = self.self_attn_layer_norm(inputs_BTD + self.self_attn(inputs_BTD))
        return self.final_layer_norm(states + self.fc2(F.gelu(self.fc1(states))))


class BeatsEncoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        convolution = nn.Conv1d(width, width, 5, padding=2, groups=2)
        self.pos_conv = nn.Sequential(nn.utils.parametrizations.weight_norm(convolution, dim=2), nn.GELU())
        shared = nn.Embedding(9, 2)  # one table, registered in every layer
        self.layers = nn.ModuleList([BeatsLayer(width, shared) for _ in range(3)])
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, states_BTD: Tensor) -> Tensor:
        states_BTD = self.layer_norm(states_BTD + self.pos_conv(states_BTD.transpose(1, 2)).transpose(1, 2))
        for layer in self.layers:
            states_BTD = layer(states_BTD)
        return states_BTD


class Beats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.post_extract_proj = nn.Linear(8, 16)
        self.patch_embedding = nn.Conv2d(1, 8, 4, 4, bias=False)
        self.encoder = BeatsEncoder(16)
        self.layer_norm = nn.LayerNorm(8)
        self.predictor = nn.Linear(16, LABELS)

    def forward(self, inputs_B1FT: Tensor) -> Tensor:
        states = self.layer_norm(self.patch_embedding(inputs_B1FT).flatten(2).transpose(1, 2))
        return self.predictor(self.encoder(self.post_extract_proj(states))).mean(1)


# --- the cases --------------------------------------------------------------------------------------------------------


def _each(prefixes: Iterable[str], *endings: str) -> list[str]:
    return [f"{prefix}.{ending}" for prefix in prefixes for ending in endings]


def _numbered(prefix: str, count: int = 2) -> list[str]:
    return [f"{prefix}.{index}" for index in range(count)]


def _transformers(name: str, config: str, **settings: Any) -> nn.Module:
    import transformers

    module: nn.Module = getattr(transformers, name)(getattr(transformers, config)(num_labels=LABELS, **settings))
    return module


_TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_WAVES = {
    **_TINY,
    "conv_dim": (8, 8),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 12,
}
_IMAGE = (2, 1, 16, 16)
_WAVE_STEM = ("masked_spec_embed", "feature_extractor", "feature_projection", "encoder.pos_conv_embed")
_WAVE_LINEARS = (
    *_each(["attention"], "k_proj", "v_proj", "q_proj", "out_proj"),
    *_each(["feed_forward"], "intermediate_dense", "output_dense"),
)
_FFN1, _FFN2 = (tuple(_each([ffn], "intermediate_dense", "output_dense")) for ffn in ("ffn1", "ffn2"))
_SELF = tuple(_each(["self_attn"], "linear_q", "linear_k", "linear_v", "linear_out"))
_POINTWISE = tuple(_each(["conv_module"], "pointwise_conv1", "pointwise_conv2"))
_HEAD = ("projector", "classifier")
_SWIN = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@dataclass(frozen=True, kw_only=True)
class Case:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    stem: tuple[str, ...]
    layers: list[str]
    linears: list[str]
    head: tuple[str, ...]


def _mobilenet(squeeze: Callable[[int], nn.Module], fc: str) -> Case:
    return Case(
        build=lambda: MobileNet(squeeze),
        shape=_IMAGE,
        stem=("features.0",),
        layers=["features.1", "features.2", "features.3"],
        linears=[
            "features.1.block.1.0",
            *_each(["features.2.block", "features.3.block"], "0.0", f"2.{fc}fc1", f"2.{fc}fc2", "3.0"),
            "features.4.0",
            "classifier.2",
            "classifier.5",
        ],
        head=("classifier",),
    )


def _wave(name: str, prefix: str, linears: Iterable[str], **settings: Any) -> Case:
    layers = _numbered(f"{prefix}.encoder.layers")
    return Case(
        build=lambda: _transformers(f"{name}ForSequenceClassification", f"{name}Config", **_WAVES, **settings),
        shape=(2, 900),
        stem=(*_each([prefix], *_WAVE_STEM), f"{prefix}.encoder.layer_norm"),
        layers=layers,
        linears=[*_each(layers, *linears), *_HEAD],
        head=("layer_weights", *_HEAD) if settings else _HEAD,
    )


_AST = "audio_spectrogram_transformer"
CASES = {
    "efficientat": _mobilenet(ConcurrentSEBlock, "conc_se_layers.0."),
    "mobilenet-v3": _mobilenet(lambda width: SqueezeExcitation(width, linear=False), ""),
    "hts-at": Case(
        build=lambda: HtsAt((2, 3), tscam=True),
        shape=_IMAGE,
        stem=("absolute_pos_embed", "bn0", "patch_embed"),
        layers=[*_numbered("layers.0.blocks"), *_numbered("layers.1.blocks", 3)],
        linears=[
            *_each(_numbered("layers.0.blocks"), *_SWIN),
            "layers.0.downsample.reduction",
            *_each(_numbered("layers.1.blocks", 3), *_SWIN),
        ],  # tscam_conv has a kernel of 3: it is trained or frozen, not adapted
        head=("tscam_conv",),
    ),
    "swin-shallow": Case(
        build=lambda: HtsAt((1, 1), tscam=False),
        shape=_IMAGE,
        stem=("absolute_pos_embed", "bn0", "patch_embed"),
        layers=["layers.0.blocks.0", "layers.1.blocks.0"],
        linears=[
            *_each(["layers.0.blocks.0"], *_SWIN),
            "layers.0.downsample.reduction",
            *_each(["layers.1.blocks.0"], *_SWIN),
            "head",
        ],
        head=("head",),
    ),
    "beats": Case(
        build=Beats,
        shape=_IMAGE,
        stem=("post_extract_proj", "patch_embedding", "encoder.pos_conv"),
        layers=_numbered("encoder.layers", 3),
        linears=[
            *_each(
                _numbered("encoder.layers", 3),
                *_each(["self_attn"], "k_proj", "v_proj", "q_proj", "out_proj", "grep_linear"),
                "fc1",
                "fc2",
            ),
            "predictor",
        ],
        head=("predictor",),
    ),
    "ast": Case(
        build=lambda: _transformers("ASTForAudioClassification", "ASTConfig", max_length=48, num_mel_bins=32, **_TINY),
        shape=(2, 48, 32),
        stem=(f"{_AST}.embeddings",),
        layers=_numbered(f"{_AST}.layers"),
        linears=[
            *_each(
                _numbered(f"{_AST}.layers"),
                *_each(["attention"], "q_proj", "k_proj", "v_proj", "o_proj"),
                "mlp.fc1",
                "mlp.fc2",
            ),
            "classifier.dense",
        ],
        head=("classifier",),
    ),
    "wav2vec2": _wave("Wav2Vec2", "wav2vec2", _WAVE_LINEARS),
    "wav2vec2-layer-sum": _wave("Wav2Vec2", "wav2vec2", _WAVE_LINEARS, use_weighted_layer_sum=True),
    "hubert": _wave("Hubert", "hubert", _WAVE_LINEARS),
    # Its projections' weights go to a function: adapters on them would do nothing, see below.
    "wavlm": _wave("WavLM", "wavlm", ("attention.gru_rel_pos_linear", *_WAVE_LINEARS[4:])),
    "conformer": _wave(
        "Wav2Vec2Conformer", "wav2vec2_conformer", (*_FFN1, *_SELF, "self_attn.linear_pos", *_POINTWISE, *_FFN2)
    ),
    "wav2vec2-bert": Case(
        build=lambda: _transformers(
            "Wav2Vec2BertForSequenceClassification",
            "Wav2Vec2BertConfig",
            feature_projection_input_dim=20,
            classifier_proj_size=12,
            **_TINY,
        ),
        shape=(2, 12, 20),
        stem=("wav2vec2_bert.masked_spec_embed", "wav2vec2_bert.feature_projection"),
        layers=_numbered("wav2vec2_bert.encoder.layers"),
        linears=[
            *_each(_numbered("wav2vec2_bert.encoder.layers"), *_FFN1, *_SELF, *_POINTWISE, *_FFN2),
            *_HEAD,
        ],
        head=_HEAD,
    ),
    "whisper": Case(
        build=lambda: _transformers(
            "WhisperForAudioClassification",
            "WhisperConfig",
            d_model=16,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=32,
            classifier_proj_size=12,
            max_source_positions=8,
            num_mel_bins=20,
        ),
        shape=(2, 20, 16),
        stem=("encoder.conv1", "encoder.conv2", "encoder.embed_positions"),
        layers=_numbered("encoder.layers"),
        linears=[
            *_each(
                _numbered("encoder.layers"),
                *_each(["self_attn"], "k_proj", "v_proj", "q_proj", "out_proj"),
                "fc1",
                "fc2",
            ),
            *_HEAD,
        ],
        head=_HEAD,
    ),
}


def _loaded(module: nn.Module) -> LoadedModel:
    found = find_structure(module, num_labels=LABELS)
    return LoadedModel(
        module=module,
        frontend=None,
        components=found.components,
        linears=found.linears,
        family=SimpleNamespace(name="found"),  # type: ignore[arg-type]
        checkpoint="",
        revision="",
        processor=None,
    )


def _adapt(module: nn.Module, names: Iterable[str], rank: int = 2) -> Any:
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(module, LoraConfig(r=rank, target_modules=list(names)))


def _adapted(module: nn.Module) -> list[str]:
    from peft.tuners.lora import LoraLayer

    return [name for name, child in module.named_modules() if isinstance(child, LoraLayer)]


def _fill(module: nn.Module) -> list[Tensor]:
    """Give every `lora_B` something to add."""
    filled = [parameter for name, parameter in module.named_parameters() if ".lora_B." in name]
    for parameter in filled:
        nn.init.normal_(parameter, std=0.3)
    return filled


def _logits(module: nn.Module, inputs: Tensor) -> Tensor:
    output: Any = module(inputs)
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


@pytest.mark.parametrize("name", CASES)
def test_layers_linears_and_components(name: str) -> None:
    case = CASES[name]
    loaded = _loaded(case.build())
    assert list(loaded.component("encoder").layers) == case.layers
    assert list(loaded.linears) == case.linears
    assert loaded.component("stem").prefixes == case.stem
    assert loaded.component("head").prefixes == case.head
    owners = component_of_parameters(loaded)  # raises unless every parameter has exactly one owner
    assert set(owners) == {parameter for parameter, _ in loaded.module.named_parameters()}
    assert set(owners.values()) == {"stem", "encoder", "head"}


@pytest.mark.parametrize("name", CASES)
def test_adapters_attach_there_only_and_act(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    module = case.build().eval()
    inputs = torch.randn(case.shape)
    with torch.no_grad():
        base = _logits(module, inputs)
    assert base.shape == (2, LABELS)
    wrapper = _adapt(module, case.linears)
    assert _adapted(module) == case.linears
    filled = _fill(module)
    assert len(filled) == len(case.linears)
    adapted = _logits(module, inputs)
    assert (adapted - base).abs().max() > 1e-3
    adapted.square().sum().backward()
    idle = [index for index, parameter in enumerate(filled) if parameter.grad is None or not parameter.grad.any()]
    assert not idle, [case.linears[index] for index in idle]
    merged = wrapper.merge_and_unload()
    assert not _adapted(merged)
    with torch.no_grad():
        torch.testing.assert_close(_logits(merged, inputs), adapted.detach(), rtol=0, atol=1e-4)


def test_ast_base_counts() -> None:
    from transformers import ASTConfig, ASTForAudioClassification

    with torch.device("meta"):
        module = ASTForAudioClassification(ASTConfig(num_labels=40))
    assert sum(parameter.numel() for parameter in module.parameters()) == 86_219_560
    found = find_structure(module, num_labels=40)
    assert len(found.linears) == 12 * 6 + 1
    wrapper = _adapt(module, found.linears, rank=8)
    trained = sum(parameter.numel() for parameter in wrapper.parameters() if parameter.requires_grad)
    assert trained == 1_333_568


# --- weights that are taken instead of called -------------------------------------------------------------------------


class FusedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        states = inputs_BTD + self.attention(inputs_BTD, inputs_BTD, inputs_BTD)[0]
        return states + self.second(F.gelu(self.first(states)))


class Inherited(nn.MultiheadAttention):
    def forward(self, inputs_BTD: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(inputs_BTD, inputs_BTD, inputs_BTD)[0]


class InheritedBlock(FusedBlock):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Inherited(16, 2, batch_first=True)

    def forward(self, inputs_BTD: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(self.attention(inputs_BTD))))


@pytest.mark.parametrize("block", [FusedBlock, InheritedBlock])
def test_output_projection_of_fused_attention_carries_none(
    block: type[nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    module = nn.Sequential(nn.Linear(4, 16), nn.Sequential(block(), block()), nn.Linear(16, LABELS))
    found = find_structure(module, num_labels=LABELS)
    assert found.linears == ("1.0.first", "1.0.second", "1.1.first", "1.1.second", "2")
    assert "2 linears cannot carry an adapter, the first is 1.0.attention.out_proj" in caplog.text


def test_an_adapter_on_a_taken_weight_would_be_idle() -> None:
    """Why WavLM's projections are left out: PEFT attaches to them without a word, and nothing happens."""
    torch.manual_seed(0)
    module, inputs = CASES["wavlm"].build().eval(), torch.randn(2, 900)
    with torch.no_grad():
        base = _logits(module, inputs)
        projections = _each(_numbered("wavlm.encoder.layers"), *_WAVE_LINEARS[:4])
        _adapt(module, projections)
        assert len(_fill(module)) == 8
        torch.testing.assert_close(_logits(module, inputs), base, rtol=0, atol=1e-6)


def test_layers_of_torch_carry_none_because_of_their_fast_path() -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2)])
    module = nn.Sequential(nn.Linear(4, 16), nn.Sequential(*layers), nn.Linear(16, LABELS)).eval()
    assert find_structure(module, num_labels=LABELS).linears == ("2",)
    inputs = torch.randn(2, 6, 4)
    with torch.no_grad():
        base = module(inputs)
        _adapt(module, ["1.0.linear1"])
        _fill(module)
        assert torch.allclose(module(inputs), base, atol=1e-5)


# --- further shapes of encoder ----------------------------------------------------------------------------------------


def test_stages_of_different_classes_are_one_encoder() -> None:
    """EfficientNetV2: fused blocks in the first stages, inverted residuals in the others."""

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(ConvNormActivation(8, 16, 3), ConvNormActivation(16, 8))

    def deep() -> nn.Module:
        return InvertedResidual(8, 32, squeeze=SqueezeExcitation(32, linear=False))

    features = [ConvNormActivation(1, 8, 3), nn.Sequential(Fused(), Fused()), nn.Sequential(deep(), deep(), deep())]
    module = nn.Sequential(nn.Sequential(*features, ConvNormActivation(8, 32)), nn.Linear(32, LABELS))
    found = find_structure(module, num_labels=LABELS)
    assert found.components[1].layers == ("0.1.0", "0.1.1", "0.2.0", "0.2.1", "0.2.2")
    assert found.components[0].prefixes == ("0.0",)
    assert "0.1.0.block.0.0" not in found.linears  # a kernel of 3
    assert "0.1.0.block.1.0" in found.linears


def test_attention_and_feed_forward_in_a_list_are_one_layer() -> None:
    layers = [nn.ModuleList([WindowAttention(8, 4), Mlp(8)]) for _ in range(3)]
    module = nn.ModuleDict({"stem": nn.Linear(4, 8), "layers": nn.ModuleList(layers), "out": nn.Linear(8, LABELS)})
    assert find_structure(module, num_labels=LABELS).components[1].layers == ("layers.0", "layers.1", "layers.2")


def test_stages_registered_by_name() -> None:
    """ResNets keep their stages in `layer1`, `layer2` of the model itself."""
    stage = lambda: nn.Sequential(Mlp(8), Mlp(8))  # noqa: E731
    module = nn.ModuleDict({"conv1": nn.Linear(4, 8), "layer1": stage(), "layer2": stage(), "fc": nn.Linear(8, LABELS)})
    found = find_structure(module, num_labels=LABELS)
    assert found.components[1].layers == ("layer1.0", "layer1.1", "layer2.0", "layer2.1")
    assert found.components[2].prefixes == ("fc",)


def test_lists_within_a_block_are_not_its_layers() -> None:
    """Squeeze-excitation in every block: the block has a depthwise and a pointwise convolution besides."""
    blocks = [InvertedResidual(8, 8, squeeze=ConcurrentSEBlock(8)) for _ in range(2)]
    module = nn.ModuleDict({"features": nn.Sequential(*blocks), "out": nn.Linear(8, LABELS)})
    assert find_structure(module, num_labels=LABELS).components[1].layers == ("features.0", "features.1")


def test_classifier_in_a_container_like_the_encoder() -> None:
    encoder = nn.Sequential(nn.Linear(4, 8), Mlp(8), Mlp(8))
    module = nn.Sequential(encoder, nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, LABELS)))
    found = find_structure(module, num_labels=LABELS)
    assert found.components[1].layers == ("0.1", "0.2")
    assert found.components[2].prefixes == ("1",)


def test_grouped_pointwise_convolution_carries_none() -> None:
    blocks = [nn.Sequential(nn.Conv1d(8, 8, 1, groups=2), nn.Conv1d(8, 8, 1)) for _ in range(2)]
    module = nn.ModuleDict({"layers": nn.ModuleList(blocks), "out": nn.Linear(8, LABELS)})
    assert find_structure(module, num_labels=LABELS).linears == ("layers.0.1", "layers.1.1", "out")


def test_classifier_registered_before_the_encoder() -> None:
    module = nn.ModuleDict({"out": nn.Linear(8, LABELS), "layers": nn.ModuleList([Mlp(8), Mlp(8)])})
    found = find_structure(module, num_labels=LABELS)
    assert [component.prefixes for component in found.components] == [(), ("layers",), ("out",)]
    assert found.linears[0] == "out"


def test_linear_with_a_computed_weight_carries_none() -> None:
    blocks = nn.ModuleList([Mlp(8), Mlp(8)])
    nn.utils.parametrizations.weight_norm(blocks[0].fc1)
    module = nn.ModuleDict({"layers": blocks, "out": nn.Linear(8, LABELS)})
    assert find_structure(module, num_labels=LABELS).linears == ("layers.0.fc2", "layers.1.fc1", "layers.1.fc2", "out")


# --- what cannot be told ----------------------------------------------------------------------------------------------


def test_wrong_number_of_labels_says_what_is_there() -> None:
    with pytest.raises(ModelError, match=r"no output layer for 7 labels.*classifier\.2 \(256\), classifier\.5 \(5\)"):
        find_structure(CASES["efficientat"].build(), num_labels=7)


def test_number_of_labels_that_is_a_width() -> None:
    module = nn.ModuleDict({"layers": nn.ModuleList([Mlp(8), Mlp(8), Mlp(8)]), "out": nn.Linear(8, LABELS)})
    with pytest.raises(ModelError, match=r"with 8 outputs is layers\.2\.fc2, which is within the block layers\.2"):
        find_structure(module, num_labels=8)


def test_no_repeated_blocks() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, LABELS))
    with pytest.raises(
        ModelError, match=r"no repeated blocks.*Its children are 0 \(Linear\), 1 \(ReLU\), 2 \(Linear\)"
    ):
        find_structure(module, num_labels=LABELS)
