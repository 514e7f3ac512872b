"""Whisper-tiny's geometry against the guides' `Seq2SeqTrainer` with PEFT, every clip padded to 30 s."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from benchmarks.train_throughput.rows.comparison import (
    LANGUAGE,
    ROOT,
    SAMPLE_RATE_HZ,
    SEED,
    Ours,
    Row,
    Usual,
    open_ours,
    wrap_usual,
)

from sonotune.audio.io import read, write
from sonotune.data.chunking import join
from sonotune.data.importers import DIGITS, load
from sonotune.registry import resolve_asset
from sonotune.runs import generator
from sonotune.types import Clip

WHISPER_TINY: Final = {
    "vocab_size": 51_865,
    "num_mel_bins": 80,
    "d_model": 384,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_ffn_dim": 1536,
    "max_source_positions": 1500,
    "max_target_positions": 448,
}


def write_given(work: Path, number: int) -> tuple[str, list[Clip]]:
    write_model(work / "model")
    return write_clips(work, number)


def write_model(folder: Path) -> None:
    """Whisper-tiny with random weights, and the packaged processor with a 30 s window.

    The packaged tokenizer writes letter by letter, four times the tokens that Whisper's own needs for English. The
    digit words become one token each, as they are there, so that the decoder has neither more nor less to do.
    """
    import torch
    import transformers

    asset = resolve_asset("whisper-nano")
    tokenizer = transformers.WhisperTokenizer.from_pretrained(asset)
    tokenizer.add_tokens([spelled for word in DIGITS for spelled in (word, f" {word}")])
    extractor = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=30)
    transformers.WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    generation = transformers.GenerationConfig.from_pretrained(asset)
    generation.max_length = WHISPER_TINY["max_target_positions"]
    config = transformers.WhisperConfig(
        **WHISPER_TINY,
        apply_spec_augment=False,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        pad_token_id=generation.pad_token_id,
        bos_token_id=generation.bos_token_id,
        eos_token_id=generation.eos_token_id,
        decoder_start_token_id=generation.decoder_start_token_id,
    )
    torch.manual_seed(SEED)
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config = generation
    model.save_pretrained(folder)


def write_clips(work: Path, number: int) -> tuple[str, list[Clip]]:
    """So many recordings of 1 to 10 s: spoken digits joined, or noise where the digits are not at hand."""
    for candidate in (os.environ.get("SONOTUNE_FSDD"), ROOT.parent / "shared" / "data" / "fsdd"):
        if candidate and Path(candidate).is_dir():
            clips = join(load(candidate, format="fsdd"), work / "clips", max_duration_s=10.0, limit=number, seed=SEED)
            if len(clips) < number:
                sys.exit(f"the spoken digits make {len(clips)} recordings; {number} are needed. Lower --steps.")
            return "fsdd", clips
    clips = []
    for index in range(number):
        rng = generator(SEED, "train_throughput", "noise", index)
        path, seconds = work / "clips" / f"noise-{index:04d}.wav", float(rng.uniform(1.0, 10.0))
        path.parent.mkdir(exist_ok=True)
        wave_S = (0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE_HZ))).astype(np.float32)
        write(path, wave_S, SAMPLE_RATE_HZ)
        words = [DIGITS[digit] for digit in rng.integers(0, 10, max(1, round(seconds / 0.6)))]
        clips.append(
            Clip(
                id=path.stem,
                path=path,
                duration_s=wave_S.size / SAMPLE_RATE_HZ,
                sample_rate_hz=SAMPLE_RATE_HZ,
                text=" ".join(words),
            )
        )
    return "noise", clips


def first_loss(ours: Ours, batch: Any) -> float:
    """The Trainer's loss counts the prompt's tokens; sonotune's own does not, so every position is asked for."""
    import torch.nn.functional as F

    labels = batch.targets[:, 1:]
    return float(F.cross_entropy(ours.task.family.logits(ours.loaded, batch).float(), labels[labels >= 0]))


def open_usual(work: Path, precision: str) -> Usual:
    import transformers

    processor = transformers.WhisperProcessor.from_pretrained(work / "model")
    model = transformers.WhisperForConditionalGeneration.from_pretrained(work / "model")
    start = model.config.decoder_start_token_id
    return Usual(
        model=wrap_usual(model, target_modules=["q_proj", "v_proj"]),
        rows=functools.partial(featurised, processor),
        collate=functools.partial(collate, processor, start),
        processing_class=processor.feature_extractor,
        sequence=True,
    )


def featurised(processor: Any, clips: Sequence[Clip]) -> Any:
    """Every clip padded to 30 s and turned into features, once, by `datasets.map`; stored as numpy arrays.

    The guides leave the stored rows in their default form, nested Python lists; arrays are what is faster to read.
    """
    import datasets

    tokenizer = processor.tokenizer
    prompt = ["<|startoftranscript|>", f"<|{LANGUAGE}|>", "<|transcribe|>", "<|notimestamps|>"]
    prompt_ids = tokenizer.convert_tokens_to_ids(prompt)

    def featurise(row: dict[str, Any]) -> dict[str, Any]:
        wave_S = read(Path(row["path"]), sample_rate_hz=SAMPLE_RATE_HZ)
        features = processor.feature_extractor(wave_S, sampling_rate=SAMPLE_RATE_HZ).input_features[0]
        ids = tokenizer(row["text"], add_special_tokens=False).input_ids
        return {"input_features": features, "labels": [*prompt_ids, *ids, tokenizer.eos_token_id]}

    table = datasets.Dataset.from_list([{"path": str(clip.path), "text": clip.text} for clip in clips])
    return table.map(featurise, remove_columns=table.column_names).with_format("numpy")


def collate(processor: Any, start_token: int, rows: list[dict[str, Any]]) -> Any:
    """DataCollatorSpeechSeq2SeqWithPadding of the guides."""
    batch = processor.feature_extractor.pad(
        [{"input_features": row["input_features"]} for row in rows], return_tensors="pt"
    )
    padded = processor.tokenizer.pad([{"input_ids": row["labels"]} for row in rows], return_tensors="pt")
    labels = padded["input_ids"].masked_fill(padded.attention_mask.ne(1), -100)
    if (labels[:, 0] == start_token).all():
        labels = labels[:, 1:]
    batch["labels"] = labels
    return batch


ROW: Final = Row(
    usual="Seq2SeqTrainer + PEFT",
    write=write_given,
    open_ours=functools.partial(open_ours, targets="q_v"),
    open_usual=open_usual,
    first_loss=first_loss,
    contexts=("full", "thinned", "cut"),
    rate_targets={"fp32": 5.0, "bf16": 8.0},
    memory_target=0.5,
    precisions=("fp32", "bf16"),
)
