"""Build the untrained whisper-nano: architecture, tokenizer, log-mel front end and decoding settings in one folder.

    python recipes/nano/whisper_base.py FOLDER

The folder loads in plain `transformers` like any Whisper checkpoint. Text is written letter by letter: the tokenizer
is Whisper's byte-level one with no merges but those that make a Hebrew letter, two bytes in UTF-8, one token. It can
write any text; English and Hebrew take one token a character. All language tokens of Whisper are there, because the
tokenizer of `transformers` computes their ids by their place in its own list; only English and Hebrew are declared.
Timestamp tokens are left out: 1501 of them would be a tenth of the model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from sonotune.runs import torch_seed

WINDOW_S: Final = 15
SEED: Final = 0

_END: Final = "<|endoftext|>"
_START: Final = "<|startoftranscript|>"
_TASKS: Final = ("<|translate|>", "<|transcribe|>")
_CONTROLS: Final = ("<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
_DECLARED_LANGUAGES: Final = ("en", "he")


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte symbols, then Hebrew letters, and the merges that make the letters.

    Returns:
        Token -> id, and pairs of tokens in order of merging.
    """
    symbol_of_byte: dict[int, str] = bytes_to_unicode()
    ids = {symbol: index for index, symbol in enumerate(symbol_of_byte[byte] for byte in range(256))}
    merges = []
    for code in range(ord("א"), ord("ת") + 1):
        first, second = (symbol_of_byte[byte] for byte in chr(code).encode())
        merges.append((first, second))
        ids[first + second] = len(ids)
    return ids, merges


def build_tokenizer() -> WhisperTokenizer:
    """Whisper's tokenizer with the small vocabulary; special tokens stand in Whisper's own order behind it."""
    ids, merges = vocabulary()
    specials = (_END, _START, *(f"<|{code}|>" for code in LANGUAGES), *_TASKS, *_CONTROLS)
    tokenizer = WhisperTokenizer(
        vocab={**ids, _END: len(ids)},
        merges=merges,
        pad_token=_END,
        additional_special_tokens=list(specials[1:]),
        model_max_length=112,
    )
    for index, special in enumerate(specials):
        found = tokenizer.convert_tokens_to_ids(special)
        if found != len(ids) + index:
            raise ValueError(
                f"{special} has id {found}, wanted {len(ids) + index}: transformers changed its tokenizer."
            )
    return tokenizer


def build_config(tokenizer: WhisperTokenizer) -> WhisperConfig:
    """2.7 million parameters; one position is 20 ms, as in every Whisper."""
    end = tokenizer.convert_tokens_to_ids(_END)
    return WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=80,
        d_model=160,
        encoder_layers=5,
        encoder_attention_heads=4,
        encoder_ffn_dim=640,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=640,
        max_source_positions=WINDOW_S * 50,
        max_target_positions=112,
        dropout=0.1,
        attention_dropout=0.0,
        activation_dropout=0.0,
        activation_function="gelu",
        scale_embedding=False,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids(_START),
        begin_suppress_tokens=None,
        suppress_tokens=None,
        apply_spec_augment=False,
    )


def initialise(model: WhisperForConditionalGeneration) -> None:
    """Weights scaled to their fan, in place.

    `transformers` draws everything with a deviation of 0.02, which at a width of 160 leaves the sound in the first
    layers 20 times weaker than the positions: after 1 500 steps such a model had not begun to listen.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "model.encoder.embed_positions.weight":  # sinusoids
                continue
            if parameter.ndim == 3:
                torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            elif "embed" in name:
                torch.nn.init.normal_(parameter, std=0.05)
            elif parameter.ndim == 2:
                torch.nn.init.xavier_uniform_(parameter)


def build_generation_config(tokenizer: WhisperTokenizer, config: WhisperConfig) -> GenerationConfig:
    """What `generate(language=..., task=...)` needs to know about the tokens."""
    token_id = tokenizer.convert_tokens_to_ids
    return GenerationConfig(
        max_length=config.max_target_positions,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": token_id(f"<|{code}|>") for code in _DECLARED_LANGUAGES},
        task_to_id={token.strip("<|>"): token_id(token) for token in _TASKS},
        no_timestamps_token_id=token_id("<|notimestamps|>"),
        prev_sot_token_id=token_id("<|startofprev|>"),
        return_timestamps=False,
        suppress_tokens=[],
        begin_suppress_tokens=[],
        forced_decoder_ids=None,
    )


def build(folder: Path) -> WhisperForConditionalGeneration:
    """Write model (fp16 safetensors), processor and decoding settings to the folder and return the fp32 model."""
    tokenizer = build_tokenizer()
    config = build_config(tokenizer)
    torch.manual_seed(torch_seed(SEED, "whisper-nano"))
    model = WhisperForConditionalGeneration(config)
    initialise(model)
    model.generation_config = build_generation_config(tokenizer, config)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_S)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    model.half().save_pretrained(folder)
    return model.float()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python recipes/nano/whisper_base.py FOLDER")
    built = build(Path(sys.argv[1]))
    print(f"{sys.argv[1]}: {sum(weight.numel() for weight in built.parameters()):,} parameters")
