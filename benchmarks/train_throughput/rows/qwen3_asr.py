"""A small Qwen3-ASR with the vocabulary of the real one, against the authors' recipe: the processor twice a batch.

The prompt is masked by positions counted within each row. The processor pads on the left, so masking so many columns
from the left, as collators often do, would leave prompts among the labels, and the losses would not be comparable.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.train_throughput.rows.comparison import (
    ROOT,
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
from sonotune.runs import generator
from sonotune.types import Clip

VOCABULARY: Final = 151_936
SECONDS: Final = 10.0
WORDS: Final = 26  # in ten seconds
LINEARS: Final = (
    r".*(audio_tower\.layers\.\d+|multi_modal_projector|language_model\.layers\.\d+)\.(self_attn\.|mlp\.)?"
    r"([qkvo]_proj|out_proj|gate_proj|up_proj|down_proj|fc[12]|linear_[12])"
)
PHRASES: Final = (
    "the meeting was moved to Thursday afternoon",
    "because nobody could find the key to the archive",
    "and she told him twice that the train leaves at nine",
    "we measured the temperature of the water every hour",
    "which, as far as I can remember, had never happened before",
    "a small boat crossed the harbour in the rain",
    "the committee has not yet published its report on energy prices",
    "so please send me the invoice by Monday",
    "there were fourteen chairs, two tables and an old piano",
    "it depends on how much time the students have left",
)


def write_given(work: Path, number: int) -> tuple[str, list[Clip]]:
    said = write_model(work / "model")
    clips = write_sounds(work, number, shortest_s=SECONDS, longest_s=SECONDS)
    return f"synthetic sounds of {SECONDS:g} s, English phrases; {said}", [
        _with_text(clip, index) for index, clip in enumerate(clips)
    ]


def _with_text(clip: Clip, index: int) -> Clip:
    rng = generator(SEED, "train_throughput", "words", index)
    words: list[str] = []
    wanted = WORDS + int(rng.integers(-6, 7))
    while len(words) < wanted:
        words += PHRASES[int(rng.integers(len(PHRASES)))].split()
    text = " ".join(words[:wanted])
    return replace(clip, text=f"{text[0].upper()}{text[1:].rstrip(',')}.", language="en")


def real_tokenizer() -> Path | None:
    """Folder of the published tokenizer, where it is at hand."""
    given = os.environ.get("SONOTUNE_QWEN3_ASR_TOKENIZER")
    for candidate in (given, ROOT.parent / "shared" / "data" / "qwen3_asr_tokenizer"):
        if candidate and (Path(candidate) / "vocab.json").is_file():
            return Path(candidate)
    return None


def write_model(folder: Path) -> str:
    """Write model and processor; returns which tokenizer it has."""
    import torch
    import transformers
    from recipes.nano.qwen3_asr_base import build_config, build_tokenizer, initialise

    from sonotune.models.families.qwen3_asr_text import CHAT_TEMPLATE

    real = real_tokenizer()
    if real is not None:
        tokenizer, said = transformers.AutoTokenizer.from_pretrained(real), "the published tokenizer"
    else:
        tokenizer, said = build_tokenizer(), "letter by letter: the published tokenizer was not found"
        tokenizer.add_tokens([f"<spare{index}>" for index in range(VOCABULARY - len(tokenizer))])
    config = build_config(
        tokenizer,
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
        },
        audio_config={
            "num_mel_bins": 128,
            "d_model": 192,
            "encoder_layers": 3,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 768,
            "downsample_hidden_size": 64,
        },
    )
    torch.manual_seed(SEED)
    model = transformers.Qwen3ASRForConditionalGeneration(config)
    initialise(model)
    extractor = transformers.Qwen3ASRFeatureExtractor(feature_size=128)
    transformers.Qwen3ASRProcessor(extractor, tokenizer, chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    model.save_pretrained(folder)
    return said


def open_usual(work: Path, precision: str) -> Usual:
    """As the recipe: weights in the precision of training, features and tokens in the loader's worker."""
    import torch
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(work / "model")
    model = transformers.Qwen3ASRForConditionalGeneration.from_pretrained(
        work / "model", dtype=torch.bfloat16 if precision == "bf16" else torch.float32
    )
    return Usual(
        model=wrap_usual(model, target_modules=LINEARS),
        rows=functools.partial(with_prompts, processor),
        collate=functools.partial(collate, processor),
        processing_class=processor,
        arguments={"dataloader_num_workers": 1},
    )


def with_prompts(processor: Any, clips: Sequence[Clip]) -> list[dict[str, str]]:
    """Path, prompt and target of each clip, as the recipe's preprocessing makes them."""
    turn = {"role": "user", "content": [{"type": "audio", "audio": "clip.wav"}]}
    prompt = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    return [
        {"path": str(clip.path), "prompt": prompt, "target": f"language English<asr_text>{clip.text}"} for clip in clips
    ]


def collate(processor: Any, rows: list[dict[str, str]]) -> Any:
    """The recipe's collator: once for the whole rows, once for the prompts alone, only to learn how long they are."""
    audio = [read(Path(row["path"]), sample_rate_hz=SAMPLE_RATE_HZ) for row in rows]
    end = processor.tokenizer.eos_token
    given = {"audio": audio, "return_tensors": "pt", "padding": True, "sampling_rate": SAMPLE_RATE_HZ}
    whole = processor(text=[row["prompt"] + row["target"] + end for row in rows], **given)
    prompts = processor(text=[row["prompt"] for row in rows], **given)
    places = whole["attention_mask"].cumsum(dim=1)  # from 1 in each row, whichever side is padded
    prompt_lengths = prompts["attention_mask"].sum(dim=1, keepdim=True)
    answer = (places > prompt_lengths) & whole["attention_mask"].bool()
    whole["labels"] = whole["input_ids"].masked_fill(~answer, -100)
    return whole


ROW: Final = Row(
    usual="Trainer + PEFT, the processor twice a batch",
    write=write_given,
    open_ours=open_ours,
    open_usual=open_usual,
    first_loss=mean_loss,
    rate_targets={"fp32": 1.5, "bf16": 1.5},
    memory_target=0.6,
    steps=4,
    warmup_steps=1,
)
