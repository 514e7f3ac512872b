"""What is handed on says the same in plain `transformers` and plain PEFT, on real speech."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import BitsAndBytesConfig, WhisperForConditionalGeneration, WhisperProcessor

from sonotune.audio.io import read
from sonotune.config.load import load_run_config
from sonotune.data.importers import load
from sonotune.data.manifest import write_manifest
from sonotune.registry import resolve_asset
from sonotune.serving.export import export
from sonotune.serving.recognizer import Recognizer
from sonotune.training.run import run
from sonotune.types import Clip, DecodingSettings

pytestmark = [pytest.mark.realdata, pytest.mark.slow]


@pytest.fixture(scope="module")
def tuned(fsdd: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Clip]]:
    """A run of QLoRA over real speech, and clips of a speaker it never heard."""
    folder = tmp_path_factory.mktemp("plain")
    clips = load(fsdd, format="fsdd")
    heard = [clip for clip in clips if clip.speaker != "theo"][::25]
    write_manifest(folder / "train.jsonl", heard)
    words = [
        "model=whisper_nano",
        "model.context=thinned",
        "quantization.bits=4",
        f"data.train={folder / 'train.jsonl'}",
        f"data.root={fsdd}",
        "data.eval_speakers=jackson",
        "training.max_steps=12",
        "training.eval_steps=never",
        "run.progress=false",
        "training.precision=fp32",
        "data.loader_workers=0",
        f"run.dir={folder / 'run'}",
        "evaluation.bootstrap=100",
    ]
    _, place = run(load_run_config(words))
    return place, [clip for clip in clips if clip.speaker == "theo"][::20]


def plain_texts(module: Any, clips: list[Clip]) -> list[str]:
    """Transcripts by the processor and `generate` of `transformers`, padded to the whole window."""
    processor = WhisperProcessor.from_pretrained(resolve_asset("assets:whisper-nano"))
    waveforms = [read(clip.path, sample_rate_hz=16_000) for clip in clips]
    features = processor(waveforms, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        ids = module.generate(features, language="en", task="transcribe", max_new_tokens=20)
    return [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]


def our_texts(checkpoint: Path, clips: list[Clip], **settings: Any) -> list[str]:
    opened = Recognizer.open(str(checkpoint), precision="fp32", language="en", **settings)
    return [
        str(item.text)
        for item in opened.evaluate(clips, decoding=DecodingSettings(max_new_tokens=20), bootstrap=100).predictions
    ]


def test_the_merged_export_says_the_same_in_plain_transformers(tuned: tuple[Path, list[Clip]], tmp_path: Path):
    place, clips = tuned
    export(str(place), tmp_path / "export", dtype="fp32")
    module = WhisperForConditionalGeneration.from_pretrained(tmp_path / "export", dtype=torch.float32).eval()
    theirs = plain_texts(module, clips)
    assert theirs == our_texts(place, clips, context="full")
    assert len(set(theirs)) > 3  # it is no model that always says the same


def test_the_adapter_says_the_same_in_plain_peft(tuned: tuple[Path, list[Clip]]):
    place, clips = tuned
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = WhisperForConditionalGeneration.from_pretrained(
        resolve_asset("assets:whisper-nano"), quantization_config=four_bits, dtype=torch.float32
    )
    for part in base.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False  # bitsandbytes 0.50.2 repacks weights and then loses their shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT 0.21 asks transformers 5 by an old name
        module = PeftModel.from_pretrained(base, place / "adapter").eval()
    assert plain_texts(module, clips) == our_texts(place, clips, context="full")


def test_the_thinned_window_says_what_the_whole_one_says(tuned: tuple[Path, list[Clip]]):
    place, clips = tuned
    pairs = zip(our_texts(place, clips), our_texts(place, clips, context="full"), strict=True)
    assert np.mean([one == other for one, other in pairs]) > 0.9
