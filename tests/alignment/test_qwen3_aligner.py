"""Qwen3's forced aligner, with random weights: its prompt, its times, and what it refuses."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor, Qwen3ASRForTokenClassification, Qwen3ASRProcessor

from sonotune.alignment.base import AlignerSettings, Alignment
from sonotune.alignment.qwen3 import Qwen3Aligner, Qwen3AlignerFamily, longest_rise
from sonotune.errors import ConfigError, ModelError
from sonotune.loading import open_model
from sonotune.models.base import LoadedModel
from sonotune.types import Clip, Finding

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = AlignerSettings()
CLASSES = 64
TEMPLATE = (
    "{{- '<|audio_start|><|audio_pad|><|audio_end|>' -}}"
    "{%- for turn in messages -%}{%- for part in turn.content if part.type == 'text' -%}"
    "{{- part.text + '<timestamp><timestamp>' -}}{%- endfor -%}{%- endfor -%}"
)


def recipe() -> Any:
    spec = importlib.util.spec_from_file_location("qwen3_asr_base", ROOT / "recipes" / "nano" / "qwen3_asr_base.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("qwen3-aligner-tiny")
    made = recipe()
    tokenizer = made.build_tokenizer()
    tokenizer.add_tokens(["<timestamp>"])
    audio = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = made.build_config(
        tokenizer,
        audio_config={**audio, "downsample_hidden_size": 8},
        text_config={**text, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 512},
    )
    config.architectures = ["Qwen3ASRForTokenClassification"]
    config.timestamp_token_id = tokenizer.convert_tokens_to_ids("<timestamp>")
    config.num_labels = CLASSES
    torch.manual_seed(0)
    module = Qwen3ASRForTokenClassification(config)
    for parameter in module.parameters():  # so that every place names another time
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    module.save_pretrained(place)
    extractor = made.build_processor(tokenizer).feature_extractor
    Qwen3ASRProcessor(extractor, tokenizer, chat_template=TEMPLATE).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return Qwen3AlignerFamily().load(str(folder))


@pytest.fixture(scope="module")
def aligner(loaded: LoadedModel) -> Qwen3Aligner:
    return Qwen3Aligner(loaded, SETTINGS)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    place = tmp_path_factory.mktemp("audio")
    made = []
    texts = ["one, two three!", "seven", "- well-known - it's", "你好 hello", "a b c d e f g h"]
    for index, (text, seconds) in enumerate(zip(texts, [2.0, 0.4, 1.3, 3.1, 2.6], strict=True)):
        noise = 0.1 * np.random.default_rng(index).standard_normal(round(16_000 * seconds))
        soundfile.write(place / f"{index}.wav", noise, 16_000)
        made.append(Clip(id=f"c{index}", path=place / f"{index}.wav", duration_s=seconds, text=text, language="en"))
    return made


def aligned(aligner: Qwen3Aligner, clips: Sequence[Clip]) -> list[Alignment]:
    found = list(aligner.align(clips))
    assert all(isinstance(one, Alignment) for one in found), found
    return [one for one in found if isinstance(one, Alignment)]


def test_every_word_has_times_in_order_and_within_the_clip(aligner: Qwen3Aligner, clips: list[Clip]):
    for one, clip in zip(aligned(aligner, clips), clips, strict=True):
        assert [word.text for word in one.words] == (clip.text or "").split()
        bounds = [bound for word in one.words for bound in (word.start_s, word.end_s)]
        assert bounds == sorted(bounds)
        assert bounds[0] >= 0
        assert bounds[-1] <= clip.duration_s
        assert one.evidence is None
        assert one.transcript is None
        assert one.disordered_share is not None
        assert 0 <= one.disordered_share < 1
        assert ((one.token_posteriors > 0) & (one.token_posteriors <= 1)).all()


def test_punctuation_has_no_times_of_its_own_and_characters_share_a_word(aligner: Qwen3Aligner, clips: list[Clip]):
    marks, mixed = aligned(aligner, [clips[2], clips[3]])
    assert [word.score is None for word in marks.words] == [True, False, True, False]
    assert marks.unknown_share == pytest.approx(3 / 16)  # two dashes, and the one within a word
    assert mixed.token_words.tolist() == [0, 0, 1]


def test_times_are_those_of_the_processor(folder: Path, loaded: LoadedModel, aligner: Qwen3Aligner, clips: list[Clip]):
    processor = AutoProcessor.from_pretrained(folder)
    module = Qwen3ASRForTokenClassification.from_pretrained(folder).eval()
    seen = set()
    for clip in (clips[0], clips[4]):
        (one,) = aligned(aligner, [clip])
        waveform = soundfile.read(clip.path, dtype="float32")[0]
        inputs, words = processor.prepare_forced_aligner_inputs(waveform, clip.text, "English")
        with torch.no_grad():
            logits = module(**{name: value for name, value in inputs.items() if name != "num_audio_tokens"}).logits
        (theirs,) = processor.decode_forced_alignment(
            logits, inputs["input_ids"], words, module.config.timestamp_token_id
        )
        limit = clip.duration_s
        assert one.token_starts_s.tolist() == pytest.approx([min(item["start_time"], limit) for item in theirs])
        assert one.token_ends_s.tolist() == pytest.approx([min(item["end_time"], limit) for item in theirs])
        named = logits[0][inputs["input_ids"][0] == module.config.timestamp_token_id].argmax(dim=-1).tolist()
        assert one.disordered_share == pytest.approx(1 - longest_rise(named) / len(named))
        seen |= set(named)
    assert len(seen) > 3  # random weights name many times


def test_a_clip_does_not_depend_on_its_batch(loaded: LoadedModel, aligner: Qwen3Aligner, clips: list[Clip]):
    alone = aligned(Qwen3Aligner(loaded, replace(SETTINGS, batch_max_clips=1)), clips)
    for one, other in zip(aligned(aligner, clips), alone, strict=True):
        np.testing.assert_allclose(one.token_posteriors, other.token_posteriors, atol=1e-4)
        np.testing.assert_allclose(one.token_starts_s, other.token_starts_s, atol=1e-4)
        np.testing.assert_allclose(one.token_ends_s, other.token_ends_s, atol=1e-4)


def test_a_language_that_it_does_not_know_is_refused_by_name(aligner: Qwen3Aligner, clips: list[Clip]):
    aligner.check_languages(["en", "English", "zh", "yue", "de"])
    with pytest.raises(ConfigError, match=r"'he' \(Hebrew\).*Cantonese, Chinese, English, French.*Spanish"):
        aligner.check_languages(["en", "he"])
    with pytest.raises(ConfigError, match=r"languages 'iw' \(Hebrew\), 'Arabic' \(Arabic\), 'xx'"):
        aligner.check_languages(["iw", "Arabic", "xx"])
    (found,) = aligner.align([replace(clips[0], language="he", text="שלום")])
    assert isinstance(found, Finding)
    assert found.check == "align.unknown_language"
    assert "Portuguese" in found.message


@pytest.mark.parametrize(("language", "package"), [("ja", "nagisa"), ("Korean", "soynlp")])
def test_a_package_that_splits_words_is_asked_for(
    aligner: Qwen3Aligner, clips: list[Clip], language: str, package: str
):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        aligner.check_languages([language])
    (found,) = aligner.align([replace(clips[0], language=language)])
    assert isinstance(found, Finding)
    assert package in found.message


def test_what_cannot_be_aligned_is_a_finding_in_its_place(aligner: Qwen3Aligner, clips: list[Clip], tmp_path: Path):
    given = [
        replace(clips[0], id="empty", text=" , "),
        clips[0],
        replace(clips[0], id="marks", text="♪ ♪"),
        replace(clips[0], id="long text", text="word " * 120),
        replace(clips[0], id="long audio", duration_s=CLASSES * 0.08 + 1),
        replace(clips[0], id="gone", path=tmp_path / "gone.wav"),
        clips[1],
    ]
    found = list(aligner.align(given))
    checks = [one.check if isinstance(one, Finding) else "aligned" for one in found]
    assert checks[:5] == [
        "align.empty_text",
        "aligned",
        "align.unknown_text",
        "align.too_long_text",
        "align.too_long_audio",
    ]
    assert checks[5].startswith("audio.")
    assert checks[6] == "aligned"


def test_another_model_is_refused():
    with pytest.raises(ModelError, match="qwen3"):
        Qwen3Aligner(open_model("assets:qwen3-asr-nano").loaded, SETTINGS)
    with pytest.raises(ModelError):
        Qwen3AlignerFamily().load("assets:qwen3-asr-nano")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (TEMPLATE.replace("<timestamp><timestamp>", "<timestamp>"), "2 time tokens"),
        (TEMPLATE.replace("<|audio_pad|>", ""), "0 times"),
        ("{{ messages.nothing.there }}", "cannot be rendered"),
    ],
)
def test_a_template_that_names_no_times_is_refused(folder: Path, tmp_path: Path, template: str, said: str):
    place = shutil.copytree(folder, tmp_path / "model")
    (place / "chat_template.jinja").write_text(template, "utf-8")
    with pytest.raises(ModelError, match=said):
        Qwen3Aligner(Qwen3AlignerFamily().load(str(place)), SETTINGS)


def test_an_old_checkpoint_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "qwen3_asr", "thinker_config": {"classify_num": 5000}, "architectures": ["Qwen3ASR"]}', "utf-8"
    )
    with pytest.raises(ModelError, match="-hf"):
        Qwen3AlignerFamily().load(str(tmp_path))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8))
def test_the_longest_rise_is_that_of_all_subsequences(values: list[int]):
    rises = [
        size
        for size in range(1, len(values) + 1)
        if any(list(chosen) == sorted(chosen) for chosen in combinations(values, size))
    ]
    assert longest_rise(values) == max(rises)
