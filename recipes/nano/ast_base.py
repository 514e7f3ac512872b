"""Build the untrained ast-nano: a small audio spectrogram transformer with its frontend, in one folder.

    python recipes/nano/ast_base.py FOLDER

The folder loads in plain `transformers` like any AST checkpoint. Its classes are the 40 standard drum rudiments; its
window is 4.1 s, and patches are 16 bands by 16 frames that overlap by half in time, so that strokes 80 ms apart fall
into different ones.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import torch
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from sonotune.data.rudiments import LABELS
from sonotune.runs import torch_seed

SEED: Final = 0
WINDOW_FRAMES: Final = 408
# Mean and deviation of the log filter banks of the training corpus.
MEAN: Final = -7.5
DEVIATION: Final = 4.8


def build_config() -> ASTConfig:
    """1.6 million parameters."""
    return ASTConfig(
        hidden_size=176,
        num_hidden_layers=5,
        num_attention_heads=4,
        intermediate_size=528,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.0,
        num_mel_bins=64,
        max_length=WINDOW_FRAMES,
        patch_size=16,
        frequency_stride=16,
        time_stride=8,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        architectures=["ASTForAudioClassification"],
    )


def initialise(model: ASTForAudioClassification) -> None:
    """Matrices scaled to their fan and positions drawn, in place; zeros would leave all patches in one place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "token" in name or "position" in name:
                torch.nn.init.normal_(parameter, std=0.05)
            elif parameter.ndim == 4:
                torch.nn.init.kaiming_normal_(parameter, nonlinearity="linear")
            elif parameter.ndim == 2:
                torch.nn.init.xavier_uniform_(parameter)


def build(folder: Path) -> ASTForAudioClassification:
    """Write model (fp16 safetensors) and feature extractor to the folder and return the fp32 model."""
    torch.manual_seed(torch_seed(SEED, "ast-nano"))
    model = ASTForAudioClassification(build_config())
    initialise(model)
    ASTFeatureExtractor(num_mel_bins=64, max_length=WINDOW_FRAMES, mean=MEAN, std=DEVIATION).save_pretrained(folder)
    model.half().save_pretrained(folder)
    return model.float()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python recipes/nano/ast_base.py FOLDER")
    built = build(Path(sys.argv[1]))
    print(f"{sys.argv[1]}: {sum(weight.numel() for weight in built.parameters()):,} parameters")
