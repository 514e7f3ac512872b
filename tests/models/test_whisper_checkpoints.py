"""Whisper checkpoints as they come: in 16 bits, in several files, without some of their files, and damaged."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from sonotune.errors import ConfigError, ModelError, TextError
from sonotune.features.frontend import from_feature_extractor
from sonotune.models.families.whisper import WhisperFamily
from sonotune.models.families.whisper_checkpoint import complete_generation_config
from sonotune.registry import resolve_asset
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.types import Clip

FAMILY = WhisperFamily()
Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Tiny Whisper with random weights and the packaged processor; keywords change its configuration."""

    def make(*, dtype: torch.dtype = torch.float32, shard_size: str = "1GB", **changes: Any) -> Path:
        source = resolve_asset("assets:whisper-nano")
        config = WhisperConfig.from_pretrained(source)
        config.update(
            {
                "d_model": 16,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "encoder_attention_heads": 2,
                "decoder_attention_heads": 2,
                "encoder_ffn_dim": 32,
                "decoder_ffn_dim": 32,
                "init_std": 0.1,
                "max_source_positions": 1500,
                **changes,
            }
        )
        folder = tmp_path / "model"
        with torch.random.fork_rng():
            torch.manual_seed(1)
            WhisperForConditionalGeneration(config).to(dtype).save_pretrained(folder, max_shard_size=shard_size)
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copy(source / name, folder)
        WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)
        return folder

    return make


def load(folder: Path) -> Any:
    return FAMILY.load(str(folder))


def test_weights_in_16_bits_are_loaded_in_32_with_their_values(build: Build):
    folder = build(dtype=torch.float16)
    assert json.loads((folder / "config.json").read_text("utf-8"))["dtype"] == "float16"
    loaded = load(folder)
    plain = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float16).state_dict()
    state = loaded.module.state_dict()
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert all(torch.equal(state[name], plain[name].float()) for name in plain)


def test_weights_in_several_files_are_those_of_one(build: Build, tmp_path: Path):
    folder = build(shard_size="30KB")
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(shards) > 1
    state = load(folder).module.state_dict()
    whole = WhisperForConditionalGeneration.from_pretrained(folder).state_dict()
    assert all(torch.equal(state[name], whole[name]) for name in whole)


def test_missing_files_of_an_index_are_named(build: Build):
    folder = build(shard_size="30KB")
    first, *_, last = sorted(folder.glob("*.safetensors"))
    first.unlink()
    last.unlink()
    with pytest.raises(ModelError, match=r"2 are missing") as caught:
        load(folder)
    assert first.name in str(caught.value)
    assert last.name in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(build: Build, content: str):
    folder = build(shard_size="30KB")
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json(:| is damaged).* Copy the file again"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "entries", "said"),
    [
        ("config.json", {"decoder_start_token_id": 99_999}, "names the token 99999 (decoder_start_token_id)"),
        ("config.json", {"eos_token_id": [1, 2]}, "eos_token_id is a list"),
        ("generation_config.json", {"begin_suppress_tokens": [10**7]}, "names the token 10000000"),
        ("generation_config.json", {"suppress_tokens": "x"}, "suppress_tokens is 'x'"),
        ("generation_config.json", {"suppress_tokens": [-1]}, "suppress_tokens"),
        ("generation_config.json", {"lang_to_id": {"<|en|>": 9_999}}, "names the token 9999 (lang_to_id)"),
    ],
)
def test_tokens_that_the_model_does_not_have_are_refused(build: Build, file: str, entries: dict[str, Any], said: str):
    folder = build()
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | entries), "utf-8")
    with pytest.raises(ModelError, match=re.escape(said)) as caught:
        load(folder)
    assert file in str(caught.value)


def test_a_name_in_the_index_that_no_file_can_have_is_a_missing_file(build: Build):
    folder = build(shard_size="30KB")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part-\\ud800.safetensors"}}')
    with pytest.raises(ModelError, match="1 are missing"):
        load(folder)


@pytest.mark.parametrize("shard_size", ["1GB", "30KB"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.7])
def test_a_file_of_weights_that_is_cut_short_is_named(build: Build, shard_size: str, kept: float):
    folder = build(shard_size=shard_size)
    path = sorted(folder.glob("*.safetensors"))[-1]
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ModelError, match=r"is damaged or cut short\. Copy") as caught:
        load(folder)
    assert path.name in str(caught.value)


def test_a_folder_without_weights_says_so(build: Build):
    folder = build()
    (folder / "model.safetensors").unlink()
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="no safetensors weights"):
        load(folder)


@pytest.mark.parametrize("bins", [80, 128])
def test_a_missing_feature_extractor_is_made_from_the_configuration(
    build: Build, bins: int, caplog: pytest.LogCaptureFixture
):
    folder = build(num_mel_bins=bins)
    expected = from_feature_extractor(WhisperFeatureExtractor.from_pretrained(folder)).state()
    (folder / "preprocessor_config.json").unlink()
    loaded = load(folder)
    assert loaded.frontend.state() == expected
    assert expected["feature_bins"] == bins
    assert f"chose Whisper's own features with {bins} mel bins and a window of 30 s" in caplog.text
    loaded.processor.save_pretrained(folder / "kept")  # as an export does
    assert from_feature_extractor(WhisperFeatureExtractor.from_pretrained(folder / "kept")).state() == expected


@pytest.mark.parametrize("also", [(), ("preprocessor_config.json",)])
def test_a_missing_tokenizer_is_refused(build: Build, also: tuple[str, ...]):
    folder = build()
    for name in ("tokenizer.json", "tokenizer_config.json", *also):
        (folder / name).unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer: neither tokenizer\.json nor vocab\.json"):
        load(folder)


def test_what_a_generation_config_says_stays(build: Build):
    folder = build()
    before = json.loads((folder / "generation_config.json").read_text("utf-8"))
    settings = load(folder).module.generation_config
    assert {name: getattr(settings, name) for name in before if name != "transformers_version"} == {
        name: value for name, value in before.items() if name != "transformers_version"
    }


def test_a_missing_generation_config_serves_what_is_scored(build: Build, tmp_path: Path):
    """Plain `transformers` reads it from an export: no timestamps, the whole text, no token of another vocabulary."""
    folder = build(max_target_positions=112)
    whole = json.loads((folder / "generation_config.json").read_text("utf-8"))
    (folder / "generation_config.json").unlink()
    load(folder).module.save_pretrained(tmp_path / "kept")
    kept = json.loads((tmp_path / "kept" / "generation_config.json").read_text("utf-8"))
    same = (
        "no_timestamps_token_id",
        "prev_sot_token_id",
        "max_length",
        "task_to_id",
        "is_multilingual",
        "decoder_start_token_id",
        "eos_token_id",
        "suppress_tokens",
        "begin_suppress_tokens",
    )
    assert {name: kept[name] for name in same} == {name: whole[name] for name in same}
    assert kept["lang_to_id"].items() >= whole["lang_to_id"].items()
    assert not kept.get("_from_model_config")


def published_tokenizer(*, english: bool) -> Any:
    """As much of the published vocabularies as is asked for."""
    eos = 50_256 if english else 50_257
    specials = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|sw|>"]
    vocabulary = {"Ġ": 220, **{token: eos + number for number, token in enumerate(specials)}}
    first = eos + 101  # after 99 languages
    tail = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
    vocabulary |= {token: first + number for number, token in enumerate(tail)}
    return SimpleNamespace(get_vocab=lambda: vocabulary)


@pytest.mark.parametrize(("size", "english"), [(51_864, True), (51_865, False)])
def test_published_vocabularies_suppress_what_the_published_checkpoints_do(size: int, english: bool):
    eos = 50_256 if english else 50_257
    config = WhisperConfig(vocab_size=size, eos_token_id=eos, decoder_start_token_id=eos + 1)
    settings = GenerationConfig.from_model_config(config)
    complete_generation_config(
        SimpleNamespace(generation_config=settings, config=config), published_tokenizer(english=english), "x"
    )
    assert settings.begin_suppress_tokens == [220, eos]
    assert len(settings.suppress_tokens) == (90 if english else 88)
    assert settings.suppress_tokens[0] == 1
    assert eos not in settings.suppress_tokens
    assert settings.no_timestamps_token_id == eos + 106
    assert settings.max_length == 448
    assert settings.is_multilingual is not english
    assert bool(getattr(settings, "lang_to_id", None)) is not english


def test_a_generation_config_without_languages_gets_them():
    """So older fine-tuned checkpoints were saved; the ids that they force would name another language."""
    config = WhisperConfig(vocab_size=51_865, eos_token_id=50_257)
    settings = GenerationConfig(suppress_tokens=[7], max_length=225)
    settings.forced_decoder_ids = [[1, 50_259], [2, 50_359]]
    module = SimpleNamespace(generation_config=settings, config=config)
    complete_generation_config(module, published_tokenizer(english=False), "x")
    assert settings.lang_to_id == {"<|en|>": 50_259, "<|sw|>": 50_260}
    assert settings.forced_decoder_ids is None
    assert (settings.suppress_tokens, settings.max_length) == ([7], 225)


def test_an_english_only_checkpoint_takes_english_and_refuses_others(build: Build):
    folder = build(vocab_size=51_864)
    (folder / "generation_config.json").unlink()
    loaded = load(folder)
    assert all(FAMILY.knows_language(loaded, language) for language in ("en", "English", "en-US"))
    assert not FAMILY.knows_language(loaded, "sw")
    plain = FAMILY.encode_text(loaded, "seven", None).tolist()
    assert FAMILY.encode_text(loaded, "seven", "en").tolist() == plain
    with pytest.raises(TextError, match=r"English-only checkpoint and the language is 'sw'; it knows en"):
        FAMILY.encode_text(loaded, "seven", "sw")


def test_a_language_of_the_settings_that_the_model_lacks_is_refused_once(build: Build):
    loaded = load(build())
    task = Transcribe(FAMILY, TaskSettings(language="xx"))
    with pytest.raises(
        ConfigError, match=r"model\.language=xx: .*does not know the language 'xx'; it knows en, he"
    ) as caught:
        task.prepare(
            loaded, [Clip(id=f"{number}", path=Path("x.wav"), duration_s=1.0, text="one") for number in range(3)]
        )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("language", "word"), [("he", "שלום"), ("am", "ሰላም")])
def test_a_transcript_beyond_the_decoder_is_a_finding_that_names_the_clip(build: Build, language: str, word: str):
    folder = build(max_target_positions=448)
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text("utf-8"))
    settings["lang_to_id"]["<|am|>"] = settings["lang_to_id"]["<|he|>"] + 1
    path.write_text(json.dumps(settings), "utf-8")
    loaded = load(folder)
    task = Transcribe(FAMILY, TaskSettings(language=language))

    def clip(name: str, words: int) -> Clip:
        return Clip(id=name, path=Path("x.wav"), duration_s=28.0, text=" ".join([word] * words))

    one, two = (len(FAMILY.encode_text(loaded, " ".join([word] * count), language)) for count in (1, 2))
    most = 1 + (448 - one) // (two - one)
    prepared = task.prepare(loaded, [clip("fits", most), clip("longer", most + 1)])
    assert [kept.id for kept in prepared.clips] == ["fits"]
    assert len(prepared.targets[0]) <= 448
    [finding] = prepared.findings
    assert (finding.check, finding.severity, finding.clip_ids) == ("data.text_too_long", "warning", ("longer",))
    assert prepared.dropped == ()  # it is not bad: data.max_bad_fraction does not count it
    assert "'longer'" in finding.message
    assert "can write 448" in finding.message


@pytest.mark.realdata
def test_the_published_decoding_settings_are_found_again(tmp_path: Path):
    """Whisper base without its `generation_config.json`, from its tokenizer alone."""
    source = Path(__file__).resolve().parents[3] / "shared" / "data" / "whisper_base"
    if not source.is_dir():
        pytest.skip("no ../shared/data/whisper_base")
    published = GenerationConfig.from_pretrained(source)
    config = WhisperConfig.from_pretrained(source)
    settings = GenerationConfig.from_model_config(config)
    tokenizer = AutoTokenizer.from_pretrained(source)
    complete_generation_config(SimpleNamespace(generation_config=settings, config=config), tokenizer, "x")
    for name in (
        "lang_to_id",
        "task_to_id",
        "suppress_tokens",
        "begin_suppress_tokens",
        "no_timestamps_token_id",
        "prev_sot_token_id",
        "max_length",
        "is_multilingual",
        "eos_token_id",
        "pad_token_id",
    ):
        assert getattr(settings, name) == getattr(published, name), name


def test_an_index_beside_a_single_file_counts_for_nothing(build: Build):
    folder = build()
    before = load(folder).revision
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    assert load(folder).revision == before
