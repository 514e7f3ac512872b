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


PUBLISHED: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "openai/whisper-tiny": _whisper(384, 4, 6),
        "openai/whisper-small": _whisper(768, 12, 12),
        "openai/whisper-large-v3": _whisper(1280, 32, 20, vocabulary=51_866, bins=128),
    }
)
