"""A small model of every family, and of every architecture that a family handles by other means."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sonotune.models.composed.build import compose
from sonotune.models.families.ctc import character_tokenizer

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "nano"
LETTERS = [*"abcdefghijklmnopqrstuvwxyz", *map(chr, range(ord("א"), ord("ת") + 1))]
LABELS = dict(enumerate(["flam", "drag", "roll", "tap"]))
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
}
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


def recipe(name: str) -> Any:
    """A module of recipes/nano, which is no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def save_ctc(folder: Path, config: Any, class_name: str) -> None:
    tokenizer = character_tokenizer(LETTERS)
    config.vocab_size, config.pad_token_id = len(tokenizer), 0
    getattr(transformers, class_name)(config).save_pretrained(folder)
    transformers.Wav2Vec2Processor(transformers.Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)


def save_classifier(folder: Path, config: Any, class_name: str, extractor: Any) -> None:
    config.id2label = LABELS
    config.label2id = {label: index for index, label in LABELS.items()}
    getattr(transformers, class_name)(config).save_pretrained(folder)
    extractor.save_pretrained(folder)


def tiny_ast() -> Any:
    return transformers.ASTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        num_mel_bins=32,
        max_length=256,
        frequency_stride=10,
        time_stride=10,
    )


def language_model(folder: Path) -> Path:
    tokenizer = recipe("qwen3_asr_base").build_tokenizer()
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def waveform_encoder(folder: Path) -> Path:
    torch.manual_seed(4)
    transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**WAVEFORM, **LAYER_NORM)).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder


def speech_llm(folder: Path, *, waveform: bool = False, **settings: Any) -> None:
    parts = language_model(folder.with_name(folder.name + "-lm"))
    encoder = str(waveform_encoder(folder.with_name(folder.name + "-audio"))) if waveform else "assets:whisper-nano"
    module = compose(folder, encoder=encoder, language_model=str(parts), projector_hidden_size=32, **settings)
    with torch.no_grad():  # gates begin closed, and pass nothing on
        for name, parameter in module.named_parameters():
            if "_gate." in name:
                parameter.fill_(0.5)
    module.save_pretrained(folder)


BUILDERS: dict[str, tuple[str, Callable[[Path], Any] | str]] = {
    "whisper": ("whisper", "assets:whisper-nano"),
    "wav2vec2": ("ctc", lambda f: save_ctc(f, transformers.Wav2Vec2Config(**WAVEFORM, **LAYER_NORM), "Wav2Vec2ForCTC")),
    "wav2vec2-group": ("ctc", lambda f: save_ctc(f, transformers.Wav2Vec2Config(**WAVEFORM), "Wav2Vec2ForCTC")),
    "hubert": ("ctc", lambda f: save_ctc(f, transformers.HubertConfig(**WAVEFORM), "HubertForCTC")),
    "wavlm": ("ctc", lambda f: save_ctc(f, transformers.WavLMConfig(**WAVEFORM), "WavLMForCTC")),
    "conformer": (
        "ctc",
        lambda f: save_ctc(
            f,
            transformers.Wav2Vec2ConformerConfig(**WAVEFORM, **LAYER_NORM, position_embeddings_type="relative"),
            "Wav2Vec2ConformerForCTC",
        ),
    ),
    "parakeet": ("ctc", lambda f: recipe("ctc_base").build(f)),
    "qwen3_asr": ("qwen3_asr", lambda f: recipe("qwen3_asr_base").build(f)),
    "speech_llm-mlp": ("speech_llm", lambda f: speech_llm(f, projector_kind="mlp")),
    "speech_llm-perceiver": ("speech_llm", lambda f: speech_llm(f, projector_kind="perceiver", perceiver_latents=4)),
    "speech_llm-cross": ("speech_llm", lambda f: speech_llm(f, projector_kind="conv", fusion="cross_attention")),
    "speech_llm-linear": ("speech_llm", lambda f: speech_llm(f, projector_kind="linear")),
    "speech_llm-waveform": ("speech_llm", lambda f: speech_llm(f, projector_kind="mlp", waveform=True)),
    "speech_llm-parts": ("speech_llm", "assets:speech-llm-nano"),
    "ast": (
        "ast",
        lambda f: save_classifier(
            f,
            tiny_ast(),
            "ASTForAudioClassification",
            transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=256),
        ),
    ),
    "wav2vec2-classifier": (
        "ast",
        lambda f: save_classifier(
            f,
            transformers.Wav2Vec2Config(**WAVEFORM, **LAYER_NORM),
            "Wav2Vec2ForSequenceClassification",
            transformers.Wav2Vec2FeatureExtractor(),
        ),
    ),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for a `row` over all of them."""
    if "row" in metafunc.fixturenames:
        metafunc.parametrize("row", sorted(BUILDERS), scope="module")


@pytest.fixture
def families_with_rows() -> set[str]:
    """Registry names of the families that have a row."""
    return {family for family, _ in BUILDERS.values()}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, str]]:
    """Name of a row -> registry name of its family, and the folder of the model, built once."""
    root, built = tmp_path_factory.mktemp("families"), dict[str, str]()

    def get(name: str) -> tuple[str, str]:
        family, how = BUILDERS[name]
        if name not in built:
            if isinstance(how, str):
                built[name] = how
            else:
                torch.manual_seed(3)
                how(root / name)
                built[name] = str(root / name)
        return family, built[name]

    return get
