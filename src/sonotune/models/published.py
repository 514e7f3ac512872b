"""Architectures of published checkpoints, so that their sizes can be told without network and without weights.

Each entry is what `transformers.AutoConfig.for_model` takes; the numbers are those of the checkpoint's `config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final


def _whisper(width: int, layers: int, heads: int, *, vocabulary: int = 51_865, bins: int = 80) -> Mapping[str, Any]:
    return {
        "model_type": "whisper",
        "vocab_size": vocabulary,
        "num_mel_bins": bins,
        "d_model": width,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
        "max_source_positions": 1500,
        "max_target_positions": 448,
    }


def _qwen3_asr(audio_width: int, audio_layers: int, text_width: int) -> Mapping[str, Any]:
    return {
        "model_type": "qwen3_asr",
        "audio_config": {
            "num_mel_bins": 128,
            "d_model": audio_width,
            "encoder_layers": audio_layers,
            "encoder_attention_heads": audio_width // 64,
            "encoder_ffn_dim": 4 * audio_width,
            "output_dim": text_width,
            "downsample_hidden_size": 480,
        },
        "text_config": {
            "vocab_size": 151_936,
            "hidden_size": text_width,
            "intermediate_size": 3 * text_width,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 65_536,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "tie_word_embeddings": True,
        },
        "tie_word_embeddings": True,
        "architectures": ["Qwen3ASRForConditionalGeneration"],
    }


def _wav2vec2(width: int, layers: int, heads: int, **further: Any) -> Mapping[str, Any]:
    return {
        "model_type": "wav2vec2",
        "vocab_size": 32,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "architectures": ["Wav2Vec2ForPreTraining"],
        **further,
    }


_LARGE: Final = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}

PUBLISHED: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "openai/whisper-tiny": _whisper(384, 4, 6),
        "openai/whisper-base": _whisper(512, 6, 8),
        "openai/whisper-small": _whisper(768, 12, 12),
        "openai/whisper-large-v3": _whisper(1280, 32, 20, vocabulary=51_866, bins=128),
        "facebook/wav2vec2-base": _wav2vec2(768, 12, 12),
        "facebook/wav2vec2-large-xlsr-53": _wav2vec2(1024, 24, 16, **_LARGE),
        "facebook/wav2vec2-conformer-rel-pos-large": _wav2vec2(
            1024,
            24,
            16,
            **_LARGE,
            model_type="wav2vec2-conformer",
            hidden_act="swish",
            position_embeddings_type="relative",
            architectures=["Wav2Vec2ConformerForPreTraining"],
        ),
        "MIT/ast-finetuned-audioset-10-10-0.4593": {
            "model_type": "audio-spectrogram-transformer",
            "num_labels": 527,
            "architectures": ["ASTForAudioClassification"],
        },
        "Qwen/Qwen3-ASR-0.6B-hf": _qwen3_asr(896, 18, 1024),
        "Qwen/Qwen3-ASR-1.7B-hf": _qwen3_asr(1024, 24, 2048),
    }
)
