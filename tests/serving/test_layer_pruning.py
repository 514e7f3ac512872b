"""A Whisper with fewer layers: which stay, that plain `transformers` loads and uses the folder, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sonotune.adapters.metadata import use_of
from sonotune.errors import ConfigError, ModelError, RunDirectoryError
from sonotune.loading import open_model
from sonotune.registry import resolve_asset
from sonotune.serving.layer_pruning import kept_layers, prune_layers

NANO = "assets:whisper-nano"


@pytest.mark.parametrize(
    ("layers", "keep", "kept"),
    [
        (32, 2, [0, 31]),
        (6, 3, [0, 2, 5]),
        (5, 5, [0, 1, 2, 3, 4]),
        (4, 1, [3]),
        (24, 4, [0, 8, 15, 23]),
    ],
)
def test_layers_that_stay_are_evenly_spaced(layers: int, keep: int, kept: list[int]):
    assert kept_layers(layers, keep) == kept


@pytest.mark.parametrize("layers", range(2, 33))
def test_the_first_and_the_last_stay_and_none_stands_twice(layers: int):
    for keep in range(2, layers + 1):
        kept = kept_layers(layers, keep)
        assert (kept[0], kept[-1], len(set(kept))) == (0, layers - 1, keep)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "model"
    made = prune_layers(NANO, folder, encoder_layers=3, decoder_layers=1)
    assert made.layers == {"encoder": [0, 2, 4], "decoder": [1]}
    assert made.parameters[1] < made.parameters[0]
    return folder


def test_what_stays_is_the_source_s(student: Path):
    ours, theirs = (open_model(str(place)).loaded for place in (student, NANO))
    weights, source = ours.module.state_dict(), theirs.module.state_dict()
    moved = {"encoder.layers.1": "encoder.layers.2", "encoder.layers.2": "encoder.layers.4"}
    moved |= {"decoder.layers.0": "decoder.layers.1"}
    for name, value in weights.items():
        place = next((name.replace(new, old) for new, old in moved.items() if f".{new}." in name), name)
        assert torch.equal(value, source[place]), name
    assert (ours.context, ours.trained_contexts) == (theirs.context, theirs.trained_contexts)
    assert use_of(str(student))["trained_contexts"] == ["cut", "full", "thinned"]


def test_plain_transformers_loads_it_and_writes(student: Path):
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    module = WhisperForConditionalGeneration.from_pretrained(student)
    processor = WhisperProcessor.from_pretrained(student)
    assert (module.config.encoder_layers, module.config.decoder_layers) == (3, 1)
    sound_S = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    features = processor(sound_S, sampling_rate=16_000, return_tensors="pt").input_features
    written = module.generate(features, language="en", task="transcribe", max_new_tokens=6)
    assert written.shape[0] == 1
    assert (student / "preprocessor_config.json").is_file()


def test_heads_that_give_times_are_cleared(tmp_path: Path):
    from transformers import GenerationConfig, WhisperForConditionalGeneration

    source = resolve_asset(NANO)
    timed = tmp_path / "timed"
    module = WhisperForConditionalGeneration.from_pretrained(source)
    module.generation_config.alignment_heads = [[1, 0], [1, 2]]
    module.save_pretrained(timed)
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (timed / name).write_bytes((source / name).read_bytes())
    made = prune_layers(str(timed), tmp_path / "student", decoder_layers=1)
    assert made.to_json()["alignment_heads_cleared"] is True
    assert not getattr(GenerationConfig.from_pretrained(tmp_path / "student"), "alignment_heads", None)


def test_what_cannot_be_is_refused(tmp_path: Path, student: Path):
    new = tmp_path / "new"
    for source, keep, error, told in (
        (NANO, {"decoder_layers": 3}, ConfigError, "--decoder-layers is 3.*has 2 layers in its decoder"),
        (NANO, {"encoder_layers": 0}, ConfigError, "--encoder-layers is 0"),
        (NANO, {}, ConfigError, "nothing is to go"),
        (NANO, {"decoder_layers": 2, "encoder_layers": 5}, ConfigError, "nothing is to go"),
        ("assets:ctc-nano", {"decoder_layers": 1}, ModelError, "of the family ctc"),
    ):
        with pytest.raises(error, match=told):
            prune_layers(source, new, **keep)  # type: ignore[arg-type]
    with pytest.raises(RunDirectoryError, match="exists already"):
        prune_layers(NANO, student, decoder_layers=1)
    assert not list(tmp_path.iterdir())
