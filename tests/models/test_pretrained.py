"""Weights that are no finite numbers are refused where a model is opened, whatever opens it."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sonotune.errors import ModelError
from sonotune.loading import open_model
from sonotune.models.composed.build import compose
from sonotune.registry import resolve_asset

NAME = "model.encoder.layers.1.fc1.weight"
Change = Callable[[Tensor], Tensor]


def copied(folder: Path, asset: str = "whisper-nano") -> Path:
    shutil.copytree(resolve_asset(f"assets:{asset}"), folder)
    return folder


def peak_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def change(folder: Path, name: str, how: Change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = how(tensors[name]).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


def with_one(value: float) -> Change:
    def how(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed.view(-1)[7] = value
        return changed

    return how


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_no_number_is_named(tmp_path: Path, value: float):
    folder = copied(tmp_path / "m")
    change(folder, NAME, with_one(value))
    with pytest.raises(ModelError) as caught:
        open_model(str(folder))
    said = str(caught.value)
    assert f"model.safetensors: {NAME} holds NaN or infinity in 1 of " in said
    assert "(1 of " in said
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("bits", [4, 8])
def test_it_is_found_before_the_weights_are_quantised(tmp_path: Path, bits: int):
    folder = copied(tmp_path / "m")
    change(folder, NAME, with_one(float("nan")))
    with pytest.raises(ModelError, match=NAME):
        open_model(str(folder), bits=bits)


def test_it_is_found_in_any_of_several_files(tmp_path: Path):
    folder = copied(tmp_path / "m")
    change(folder, NAME, with_one(float("nan")))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file, metadata={"format": "pt"})
    places = {name: file for file, held in parts.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    with pytest.raises(ModelError, match=f"{places[NAME]}: {NAME} holds NaN"):
        open_model(str(folder))


def test_large_finite_weights_are_numbers(tmp_path: Path):
    folder = copied(tmp_path / "m")
    change(folder, NAME, lambda tensor: torch.full_like(tensor.float(), 3e38))  # their sum is no number in 32 bits
    opened = open_model(str(folder))
    assert float(opened.loaded.module.get_parameter(NAME).detach().min()) == pytest.approx(3e38)


@pytest.mark.parametrize("entry", ["max_source_positions", "vocab_size", "decoder_ffn_dim"])
def test_settings_of_a_giant_are_refused_before_memory_is_taken(tmp_path: Path, entry: str):
    folder = copied(tmp_path / "m")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {entry: 10**7}), "utf-8")
    tracked = peak_rss_bytes()
    with pytest.raises(ModelError, match=r"describes a model of [\d,]{11,} weights, and its files hold [\d,]+ bytes"):
        open_model(str(folder))
    assert peak_rss_bytes() - tracked < 200 * 2**20


@pytest.mark.parametrize(
    ("kind", "said"),
    [(torch.int8, "I8"), (torch.uint8, "U8"), (torch.int64, "I64"), (torch.float8_e4m3fn, "F8_E4M3")],
)
def test_codes_of_quantised_weights_are_not_taken_for_numbers(tmp_path: Path, kind: torch.dtype, said: str):
    folder = copied(tmp_path / "m")
    change(folder, NAME, lambda tensor: (10 * tensor.float()).to(kind))
    with pytest.raises(ModelError, match=rf"holds {NAME} as {said}, .* 1 tensors"):
        open_model(str(folder))


def test_counters_are_integers_and_tensors_that_nobody_asks_for_are_left_alone(tmp_path: Path):
    folder = copied(tmp_path / "m", "ctc-nano")  # its norms count their batches
    path = folder / "model.safetensors"
    tensors = load_file(path)
    assert any(
        name.endswith("num_batches_tracked") and not value.is_floating_point() for name, value in tensors.items()
    )
    save_file(tensors | {"encoder.position_ids": torch.arange(4)}, path, metadata={"format": "pt"})
    assert open_model(str(folder)).loaded.labels == ()


@pytest.mark.parametrize("asset", ["ctc-nano", "qwen3-asr-nano", "ast-nano"])
def test_every_family_refuses_it(tmp_path: Path, asset: str):
    folder = copied(tmp_path / "m", asset)
    name = next(name for name, value in load_file(folder / "model.safetensors").items() if value.ndim > 1)
    change(folder, name, with_one(float("nan")))
    with pytest.raises(ModelError, match="holds NaN or infinity in 1 of"):
        open_model(str(folder))


def test_a_part_of_a_composed_model_is_looked_at(tmp_path: Path):
    folder = copied(tmp_path / "m")
    change(folder, NAME, with_one(float("nan")))
    settings: dict[str, Any] = {"language_model": str(resolve_asset("assets:qwen3-asr-nano"))}
    with pytest.raises(ModelError, match="holds NaN or infinity in 1 of"):
        compose(tmp_path / "made", encoder=str(folder), **settings)
    assert not (tmp_path / "made").exists()


def test_an_adapter_in_the_place_of_a_model_is_not_followed_elsewhere(tmp_path: Path):
    folder = copied(tmp_path / "m")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/elsewhere"}))
    with pytest.raises(ModelError, match="is an adapter and not a whole model"):
        compose(tmp_path / "made", encoder=str(folder), language_model=str(resolve_asset("assets:qwen3-asr-nano")))
