"""Build the untrained ctc-nano: a Parakeet (Fast Conformer with CTC) with one symbol a letter, in one folder.

    python recipes/nano/ctc_base.py FOLDER

The folder loads in plain `transformers` like any Parakeet CTC checkpoint. It hears 80 normalised mel bands and writes
one symbol every 40 ms at most, which fast speech just about needs when letters are the symbols.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    ParakeetCTCConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    ParakeetProcessor,
    ParakeetTokenizer,
)

from sonotune.runs import torch_seed

SEED: Final = 0
LETTERS: Final = ("'", *map(chr, range(ord("a"), ord("z") + 1)), *map(chr, range(ord("א"), ord("ת") + 1)))
BLANK: Final = "<pad>"
UNKNOWN: Final = "<unk>"
SPACE: Final = "▁"


def build_tokenizer() -> ParakeetTokenizer:
    """Blank 0, unknown 1, space 2, then the letters of English and Hebrew."""
    ids = {symbol: index for index, symbol in enumerate((BLANK, UNKNOWN, SPACE, *LETTERS))}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="never")
    return ParakeetTokenizer(tokenizer_object=tokenizer, pad_token=BLANK, unk_token=UNKNOWN)


def build_config(tokenizer: ParakeetTokenizer) -> ParakeetCTCConfig:
    """2.7 million parameters; a frame is 40 ms."""
    encoder = {
        "hidden_size": 144,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 576,
        "conv_kernel_size": 15,
        "subsampling_factor": 4,
        "subsampling_conv_channels": 64,
        "num_mel_bins": 80,
        "dropout": 0.05,
        "attention_dropout": 0.05,
        "activation_dropout": 0.0,
        "layerdrop": 0.0,
        "scale_input": False,
    }
    return ParakeetCTCConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, encoder_config=encoder,
        ctc_loss_reduction="sum", ctc_zero_infinity=True, architectures=["ParakeetForCTC"],
    )  # fmt: skip


def initialise(model: ParakeetForCTC) -> None:
    """Matrices and convolutions scaled to their fan, in place; a deviation of 0.02 is far too weak at this width."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 2:
                torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            elif parameter.ndim == 2 and "bias_" not in name:
                torch.nn.init.xavier_uniform_(parameter)


def build(folder: Path) -> ParakeetForCTC:
    """Write model (fp16 safetensors) and processor to the folder and return the fp32 model."""
    tokenizer = build_tokenizer()
    torch.manual_seed(torch_seed(SEED, "ctc-nano"))
    model = ParakeetForCTC(build_config(tokenizer))
    initialise(model)
    ParakeetProcessor(ParakeetFeatureExtractor(feature_size=80), tokenizer, decoder_type="ctc").save_pretrained(folder)
    model.half().save_pretrained(folder)
    return model.float()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python recipes/nano/ctc_base.py FOLDER")
    built = build(Path(sys.argv[1]))
    print(f"{sys.argv[1]}: {sum(weight.numel() for weight in built.parameters()):,} parameters")
