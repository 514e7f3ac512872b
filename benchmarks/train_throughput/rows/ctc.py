"""A small wav2vec 2.0 (layer norm, characters) against the CTC example of Hugging Face: Trainer and its collator."""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.train_throughput.rows.comparison import (
    SAMPLE_RATE_HZ,
    SEED,
    Ours,
    Row,
    Usual,
    open_ours,
    wrap_usual,
    write_sounds,
)

from sonotune.audio.io import read
from sonotune.data.importers import DIGITS
from sonotune.runs import generator
from sonotune.types import Clip

LINEARS: Final = r".*encoder\.layers\.\d+\.(attention|feed_forward)\..*(_proj|_dense)"
WAV2VEC2: Final = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "conv_dim": (128,) * 7,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "num_conv_pos_embeddings": 64,
    "num_conv_pos_embedding_groups": 16,
    "apply_spec_augment": False,
    "ctc_loss_reduction": "mean",
    "ctc_zero_infinity": True,
    "layerdrop": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
}


def write_given(work: Path, number: int) -> tuple[str, list[Clip]]:
    write_model(work / "model")
    clips = []
    for index, clip in enumerate(write_sounds(work, number, shortest_s=2.0, longest_s=10.0)):
        rng = generator(SEED, "train_throughput", "digits", index)
        words = [DIGITS[digit] for digit in rng.integers(0, 10, max(1, round(clip.duration_s / 0.6)))]
        clips.append(replace(clip, text=" ".join(words)))
    return "synthetic sounds, digit words", clips


def write_model(folder: Path) -> None:
    import torch
    import transformers

    from sonotune.models.families.ctc import character_tokenizer

    tokenizer = character_tokenizer(string.ascii_lowercase)
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    config = transformers.Wav2Vec2Config(
        **WAV2VEC2, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, architectures=["Wav2Vec2ForCTC"]
    )
    torch.manual_seed(SEED)
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)


def first_loss(ours: Ours, batch: Any) -> float:
    """The example's reduction: each clip by its own symbols, and the mean of that over clips."""
    losses = ours.task.loss(ours.loaded, batch, label_smoothing=0.0)
    return float((losses.sums / losses.counts).mean())


def open_usual(work: Path, precision: str) -> Usual:
    import transformers

    processor = transformers.Wav2Vec2Processor.from_pretrained(work / "model")
    model = transformers.Wav2Vec2ForCTC.from_pretrained(work / "model")
    model.freeze_feature_encoder()
    return Usual(
        model=wrap_usual(model, target_modules=LINEARS, modules_to_save=["lm_head"]),
        rows=functools.partial(featurised, processor),
        collate=functools.partial(collate, processor),
        processing_class=processor,
    )


def featurised(processor: Any, clips: Sequence[Clip]) -> Any:
    """`prepare_dataset` of the example, once, by `datasets.map`; stored as numpy arrays (see `whisper.featurised`)."""
    import datasets

    def featurise(row: dict[str, Any]) -> dict[str, Any]:
        wave_S = read(Path(row["path"]), sample_rate_hz=SAMPLE_RATE_HZ)
        values = processor(wave_S, sampling_rate=SAMPLE_RATE_HZ).input_values[0]
        return {"input_values": values, "labels": processor.tokenizer(row["text"]).input_ids}

    table = datasets.Dataset.from_list([{"path": str(clip.path), "text": clip.text} for clip in clips])
    return table.map(featurise, remove_columns=table.column_names).with_format("numpy")


def collate(processor: Any, rows: list[dict[str, Any]]) -> Any:
    """DataCollatorCTCWithPadding of the example."""
    batch = processor.feature_extractor.pad(
        [{"input_values": row["input_values"]} for row in rows],
        padding=True,
        return_tensors="pt",
        return_attention_mask=True,
    )
    labels = processor.tokenizer.pad([{"input_ids": row["labels"]} for row in rows], padding=True, return_tensors="pt")
    batch["labels"] = labels["input_ids"].masked_fill(labels.attention_mask.ne(1), -100)
    return batch


ROW: Final = Row(
    usual="Trainer + PEFT, DataCollatorCTCWithPadding",
    write=write_given,
    open_ours=functools.partial(open_ours, unfreeze=("head",)),
    open_usual=open_usual,
    first_loss=first_loss,
    rate_targets={"fp32": 1.0, "bf16": 1.0},
)
