"""Configurations of models that somebody else made, or that a disk has damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sonotune.errors import ModelError
from sonotune.loading import choose_family
from sonotune.models.checkpoints import load_processor, locate, read_config, settings_digest
from sonotune.models.config_files import check_config_files
from sonotune.models.families.ctc import character_tokenizer
from sonotune.models.published import PUBLISHED
from sonotune.planning.inspection import inspect_model
from sonotune.registry import resolve_asset

ASSETS = ("whisper-nano", "ctc-nano", "ast-nano", "qwen3-asr-nano")


def write(folder: Path, asset: str = "ctc-nano", **changes: Any) -> Path:
    config = json.loads((resolve_asset(f"assets:{asset}") / "config.json").read_text("utf-8"))
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        (config[part] if part else config)[key] = value
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest.mark.parametrize("asset", ASSETS)
def test_the_packaged_models_pass(asset: str) -> None:
    check_config_files(resolve_asset(f"assets:{asset}"))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_published_models_pass(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]), "utf-8")
    check_config_files(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder_config__num_hidden_layers": 10**9}, "encoder_config.num_hidden_layers is 1000000000.*256 layers"),
        ({"encoder_config__num_mel_bins": 10**7}, "num_mel_bins is 10000000, and it must be at most 16,384 bins"),
        ({"encoder_config__hidden_size": 2**63}, "hidden_size is 9223372036854775808"),
        ({"encoder_config": "x"}, "encoder_config is 'x', and it must be an object, or null"),
        ({"parts": 0.5}, "parts is 0.5, and it must be an object, or null"),
        ({"architectures": 5}, "architectures is 5, and it must be a list of names of classes"),
        ({"architectures": [["ParakeetForCTC"]]}, "architectures"),
        ({"model_type": ["x"]}, "model_type"),
    ],
)
def test_a_value_that_no_model_has_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    for open_it in (lambda place: read_config(place, None), choose_family, inspect_model):
        with pytest.raises(ModelError, match=said):
            open_it(str(write(tmp_path, **changes)))


@pytest.mark.parametrize(
    ("asset", "changes"),
    [
        ("ctc-nano", {"dtype": "sum"}),
        ("whisper-nano", {"encoder_ffn_dim": "x"}),
        ("whisper-nano", {"d_model": -4}),
        ("whisper-nano", {"decoder_attention_heads": 0}),
        ("ast-nano", {"hidden_size": "wide"}),
        ("speech-llm-nano", {"text_config__hidden_act": "ulis"}),
        ("speech-llm-nano", {"audio_config__encoder_attention_heads": 7}),
    ],
)
def test_a_value_that_an_architecture_cannot_use_is_an_error_of_the_model(
    asset: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"(?s)config\.json.*Copy the file again"):
        inspect_model(str(write(tmp_path, asset, **changes)))


@pytest.mark.parametrize("key", ["architectures", "encoder_config", "parts"])
def test_an_infinite_number_is_no_way_round(key: str, tmp_path: Path) -> None:
    """No JSON, which `json` and `transformers` read all the same."""
    for value in (float("inf"), float("nan")):
        with pytest.raises(ModelError, match=r"config.json"):
            read_config(str(write(tmp_path, **{key: value})), None)


def test_a_processor_of_an_unknown_class_is_no_processor(tmp_path: Path) -> None:
    for file in resolve_asset("assets:whisper-nano").iterdir():
        if file.suffix == ".json" or file.name == "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "processor_config.json").write_text('{"processor_class": "%s"}', "utf-8")
    (tmp_path / "preprocessor_config.json").unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"has no tokenizer and no feature_extractor|could not be loaded"):
        load_processor(str(tmp_path), class_name="AutoProcessor", revision=None)


def test_a_folder_with_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path)
    os.mkfifo(tmp_path / "vocab.json")
    with pytest.raises(ModelError, match=r"vocab.json is neither a file nor a folder"):
        locate(str(tmp_path))


def test_folders_named_as_settings_are_left_out_of_the_digest(tmp_path: Path) -> None:
    before = settings_digest(str(write(tmp_path)))
    (tmp_path / "more.json").mkdir()
    assert settings_digest(str(tmp_path)) == before


@pytest.mark.parametrize("number", ["7", None, -1, 0.5])
def test_a_token_without_a_number_is_named(number: Any, tmp_path: Path) -> None:
    character_tokenizer([*"abc"]).save_pretrained(tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text("utf-8"))
    (tmp_path / "vocab.json").write_text(json.dumps({**vocabulary, "b": number}), "utf-8")
    with pytest.raises(ModelError, match="the token 'b' of its vocabulary has the number"):
        load_processor(str(tmp_path), class_name="Wav2Vec2CTCTokenizer", revision=None)
