"""Build the untrained qwen3-asr-nano: audio tower, projector, Qwen3 decoder and processor in one folder.

    python recipes/nano/qwen3_asr_base.py FOLDER

The folder loads in plain `transformers` like any Qwen3-ASR checkpoint. Text is written letter by letter: the tokenizer
is Qwen's byte-level one with no merges but those that make a Hebrew letter, two bytes in UTF-8, one token. It can write
any text; English and Hebrew take one token a character. Of the special tokens it has those of the prompt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import torch
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen3ASRConfig,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRProcessor,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sonotune.models.families.qwen3_asr_text import CHAT_TEMPLATE, TEXT_MARKER
from sonotune.runs import torch_seed

SEED: Final = 0
MEL_BINS: Final = 80

_PAD: Final = "<|endoftext|>"
_END: Final = "<|im_end|>"
_AUDIO: Final = {
    "audio_token": "<|audio_pad|>",
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
}


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte symbols, then Hebrew letters, and the merges that make the letters.

    Returns:
        Token -> id, and pairs of tokens in order of merging.
    """
    symbol_of_byte: dict[int, str] = bytes_to_unicode()
    ids = {symbol_of_byte[byte]: byte for byte in range(256)}
    merges = []
    for code in range(ord("א"), ord("ת") + 1):
        first, second = (symbol_of_byte[byte] for byte in chr(code).encode())
        merges.append((first, second))
        ids[first + second] = len(ids)
    return ids, merges


def build_tokenizer() -> Qwen2Tokenizer:
    """Qwen's tokenizer with the small vocabulary; the tokens of the prompt stand behind it."""
    ids, merges = vocabulary()
    tokenizer = Qwen2Tokenizer(
        vocab=ids,
        merges=merges,
        unk_token=None,
        eos_token=_END,
        pad_token=_PAD,
        extra_special_tokens={**_AUDIO, "turn_token": "<|im_start|>"},
        model_max_length=1024,
    )
    tokenizer.add_tokens([TEXT_MARKER])  # not a special token: decoding keeps it, and the answer is cut there
    return tokenizer


def build_config(tokenizer: Qwen2Tokenizer, **changes: dict[str, Any]) -> Qwen3ASRConfig:
    """2.1 million parameters; one position is 80 ms, as in every Qwen3-ASR.

    Args:
        tokenizer: Gives the ids.
        **changes: Settings of `audio_config` and `text_config` to replace, for still smaller models in tests.
    """
    token_id = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 160,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 40,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "tie_word_embeddings": True,
        **changes.get("text_config", {}),
    }
    audio = {
        "num_mel_bins": MEL_BINS,
        "d_model": 144,
        "encoder_layers": 4,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 576,
        "downsample_hidden_size": 48,
        "output_dim": text["hidden_size"],
        **changes.get("audio_config", {}),
    }
    return Qwen3ASRConfig(
        audio_config=audio,
        text_config=text,
        audio_token_id=token_id(_AUDIO["audio_token"]),
        pad_token_id=token_id(_PAD),
        eos_token_id=[token_id(_PAD), token_id(_END)],
        tie_word_embeddings=True,
        architectures=["Qwen3ASRForConditionalGeneration"],
    )


def initialise(model: Qwen3ASRForConditionalGeneration) -> None:
    """Weights scaled to their fan, in place.

    `transformers` draws everything with a deviation of 0.02, which leaves the sound far weaker than the positions that
    are added to it (see `whisper_base.initialise`).
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 4:
                torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            elif "embed_tokens" in name:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            elif parameter.ndim == 2:
                torch.nn.init.xavier_uniform_(parameter)


def build_processor(tokenizer: Qwen2Tokenizer) -> Qwen3ASRProcessor:
    """What turns audio and text into inputs, with the chat template that makes the prompt."""
    extractor = Qwen3ASRFeatureExtractor(feature_size=MEL_BINS)
    return Qwen3ASRProcessor(extractor, tokenizer, chat_template=CHAT_TEMPLATE)


def build(folder: Path, **changes: dict[str, Any]) -> Qwen3ASRForConditionalGeneration:
    """Write model (fp16 safetensors), processor and decoding settings to the folder and return the fp32 model."""
    tokenizer = build_tokenizer()
    config = build_config(tokenizer, **changes)
    torch.manual_seed(torch_seed(SEED, "qwen3-asr-nano"))
    model = Qwen3ASRForConditionalGeneration(config)
    initialise(model)
    model.generation_config = GenerationConfig(
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id, do_sample=False, max_new_tokens=256
    )
    build_processor(tokenizer).save_pretrained(folder)
    model.half().save_pretrained(folder)
    return model.float()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python recipes/nano/qwen3_asr_base.py FOLDER")
    built = build(Path(sys.argv[1]))
    print(f"{sys.argv[1]}: {sum(weight.numel() for weight in built.parameters()):,} parameters")
