"""What `sonotune compose` is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from sonotune.config.composition import load_composition
from sonotune.errors import ConfigError
from sonotune.models.composed.model import BOUNDS, SpeechLlmConfig

PARTS = ["encoder=e", "language_model=l"]
ALL = [
    *PARTS,
    "projector.kind=perceiver",
    "projector.downsample=2",
    "projector.hidden_size=32",
    "projector.latents=16",
    "projector.depth=1",
    "projector.heads=4",
    "fusion=cross_attention",
    "cross_attention.layers=1,3",
    "cross_attention.heads=2",
    "prompt=say: it",
    "chat=true",
]


def test_every_setting_of_a_composed_model_can_be_said():
    told = load_composition(ALL).arguments()
    made = {"audio_config", "text_config", "tie_word_embeddings", "untrained", "parts"}
    assert set(SpeechLlmConfig.__annotations__) - made - set(told) == {"model_type", "sub_configs_defaults"} & set(
        SpeechLlmConfig.__annotations__
    )
    assert told["perceiver_latents"] == 16
    assert told["cross_attention_layers"] == [1, 3]
    assert told["prompt"] == "say: it"
    assert told["chat"] is True


def test_words_go_before_the_file_and_nothing_is_made_up(tmp_path: Path):
    file = tmp_path / "llm.yaml"
    file.write_text("encoder: e\nlanguage_model: l\nprojector:\n  kind: conv\n  downsample: 8\nseed: 3\n", "utf-8")
    told = load_composition([f"config={file}", "projector.downsample=2"]).arguments()
    assert (told["projector_kind"], told["downsample"], told["seed"]) == ("conv", 2, 3)
    assert "projector_hidden_size" not in told  # follows from the parts
    assert load_composition(["encoder=010", "language_model=1e3"]).encoder == "010"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["projector.knid=mlp"], "did you mean 'projector.kind'"),
        (["projector.kind=magic"], "allowed: linear, mlp, perceiver, conv"),
        (["projector.downsample=0"], "from 1 to 64"),
        (["projector.downsample=true"], "True is not allowed"),
        (["projector.kind=perceiver", "projector.latents=1025"], "from 1 to 1024"),
        (["projector.latents=4"], "cannot take effect, because projector.kind is mlp"),
        (["cross_attention.heads=4"], "cannot take effect, because fusion is prompt"),
        (["fusion=cross_attention", "cross_attention.layers=[]"], "cross_attention.layers: [] is not allowed"),
        (["chat"], "not of the form"),
        (["chat=true", "chat=false"], "given twice"),
        (["config=none.yaml"], "not there"),
        (["projector=mlp"], "projector: no such setting"),
        (["encoder="], "encoder: '' is not allowed"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    kept = [part for part in PARTS if part.partition("=")[0] not in {word.partition("=")[0] for word in words}]
    with pytest.raises(ConfigError) as caught:
        load_composition([*kept, *words])
    assert said in str(caught.value)


def test_all_problems_are_said_at_once_and_a_file_must_be_a_mapping(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"(?s)^4 problem.*projector\.knid.*encoder: required.*fusion"):
        load_composition(["projector.knid=x", "fusion=cros"])
    (tmp_path / "list.yaml").write_text("- a\n", "utf-8")
    with pytest.raises(ConfigError, match="settings are a mapping"):
        load_composition([f"config={tmp_path / 'list.yaml'}", *PARTS])


def test_words_and_folders_have_the_same_bounds():
    words = {
        "downsample": "projector.downsample",
        "projector_hidden_size": "projector.hidden_size",
        "perceiver_latents": "projector.latents",
        "perceiver_depth": "projector.depth",
        "projector_heads": "projector.heads",
        "cross_attention_heads": "cross_attention.heads",
    }
    assert words.keys() == BOUNDS.keys()
    for argument, (least, most) in BOUNDS.items():
        word = words[argument]
        kind = ["projector.kind=perceiver"] if word.startswith("projector.") else ["fusion=cross_attention"]
        for value in (least, most):
            assert load_composition([*PARTS, *kind, f"{word}={value}"]).arguments()[argument] == value
        for value in (least - 1, most + 1):
            with pytest.raises(ConfigError, match=f"{word}: {value} is not allowed"):
                load_composition([*PARTS, *kind, f"{word}={value}"])
