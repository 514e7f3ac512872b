"""A small audio spectrogram transformer against the classification example of Hugging Face: 10.24 s for every clip."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.train_throughput.rows.comparison import (
    SAMPLE_RATE_HZ,
    SEED,
    Row,
    Usual,
    mean_loss,
    open_ours,
    wrap_usual,
    write_sounds,
)

from sonotune.audio.io import read
from sonotune.data.importers import DIGITS
from sonotune.runs import generator
from sonotune.types import Clip

LABELS: Final = tuple(sorted(DIGITS))
AST: Final = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "num_mel_bins": 128,
    "max_length": 1024,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def write_given(work: Path, number: int) -> tuple[str, list[Clip]]:
    write_model(work / "model")
    clips = []
    for index, clip in enumerate(write_sounds(work, number, shortest_s=2.0, longest_s=5.0)):
        rng = generator(SEED, "train_throughput", "class", index)
        clips.append(replace(clip, label=(LABELS[int(rng.integers(len(LABELS)))],)))
    return "synthetic sounds, ten classes", clips


def write_model(folder: Path) -> None:
    import torch
    import transformers
    from recipes.nano.ast_base import initialise

    config = transformers.ASTConfig(
        **AST,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        architectures=["ASTForAudioClassification"],
    )
    torch.manual_seed(SEED)
    model = transformers.ASTForAudioClassification(config)
    initialise(model)
    model.save_pretrained(folder)
    transformers.ASTFeatureExtractor(num_mel_bins=AST["num_mel_bins"], max_length=AST["max_length"]).save_pretrained(
        folder
    )


def open_usual(work: Path, precision: str) -> Usual:
    import transformers

    extractor = transformers.ASTFeatureExtractor.from_pretrained(work / "model")
    model = transformers.ASTForAudioClassification.from_pretrained(work / "model")
    linears = [
        name
        for name, module in model.audio_spectrogram_transformer.named_modules()
        if type(module).__name__ == "Linear" and "layers." in name
    ]
    return Usual(
        model=wrap_usual(model, target_modules=linears, modules_to_save=["classifier"]),
        rows=functools.partial(transformed, extractor),
        collate=None,
        processing_class=extractor,
        arguments={"dataloader_num_workers": 1},
    )


def transformed(extractor: Any, clips: Sequence[Clip]) -> Any:
    """`set_transform` of the example: features of the whole window, anew whenever rows are read."""
    import datasets

    def transform(rows: dict[str, Any]) -> dict[str, Any]:
        waves = [read(Path(path), sample_rate_hz=SAMPLE_RATE_HZ) for path in rows["path"]]
        inputs = extractor(waves, sampling_rate=SAMPLE_RATE_HZ)
        return {"input_values": list(inputs["input_values"]), "labels": list(rows["label"])}

    table = datasets.Dataset.from_list(
        [{"path": str(clip.path), "label": LABELS.index(clip.label[0])} for clip in clips]
    )
    table.set_transform(transform)
    return table


ROW: Final = Row(
    usual="Trainer + PEFT, set_transform",
    write=write_given,
    open_ours=functools.partial(open_ours, unfreeze=("head",)),
    open_usual=open_usual,
    first_loss=mean_loss,
    contexts=("full", "cut"),
)
