"""The untrained whisper-nano is a Whisper checkpoint like any other, and small."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "nano" / "whisper_base.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("whisper_base", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    place = tmp_path_factory.mktemp("whisper-nano")
    recipe.build(place)
    return place


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return WhisperProcessor.from_pretrained(folder)


@pytest.mark.parametrize("text", ["seven", "zero one", "שלום שבע", "ךםןףץ", "😀 naïve — “x”", "don't  stop"])
def test_text_comes_back(processor: Any, text: str) -> None:
    ids = processor.tokenizer(text, add_special_tokens=False).input_ids
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("text", ["seven two", "שבע שתיים", "אבגדהוזחטיכךלמםנןסעפףצץקרשת"])
def test_english_and_hebrew_take_one_token_a_letter(processor: Any, text: str) -> None:
    assert len(processor.tokenizer(text, add_special_tokens=False).input_ids) == len(text)


def test_the_prompt_is_whispers(processor: Any) -> None:
    tokenizer = processor.tokenizer
    tokenizer.set_prefix_tokens(language="hebrew", task="transcribe")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("א").input_ids)
    assert tokens[:4] == ["<|startoftranscript|>", "<|he|>", "<|transcribe|>", "<|notimestamps|>"]
    assert tokens[-1] == "<|endoftext|>"


def test_it_loads_and_generates_in_transformers(folder: Path, processor: Any) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    waveform_S = np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.1
    features = processor(waveform_S, sampling_rate=16000, return_tensors="pt").input_features
    assert features.shape == (1, 80, 1500)
    ids = {
        language: model.generate(features, language=language, task="transcribe", max_new_tokens=4).tolist()
        for language in ("en", "he")
    }
    assert [len(rows[0]) for rows in ids.values()] == [4, 4]
    assert ids["en"] != ids["he"]
    assert isinstance(processor.batch_decode(ids["en"], skip_special_tokens=True)[0], str)
    with pytest.raises(ValueError, match=r"<\|fr\|> is not supported"):
        model.generate(features, language="french")


def test_it_is_small(folder: Path, processor: Any) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    assert 2_500_000 < sum(weight.numel() for weight in model.parameters()) < 2_900_000
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5_900_000
    assert model.config.vocab_size == len(processor.tokenizer)
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
