"""Runs of kinds that stand between A and B: stopped anywhere, in several processes, exported, and read again."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sonotune.adapters.kinds.base import kind_of
from sonotune.adapters.kinds.gate_baking import needs_baking
from sonotune.arguments import parity_settings
from sonotune.config.load import LoadedConfig, load_run_config
from sonotune.errors import AdapterError, ConfigError, Interrupted
from sonotune.loading import open_model
from sonotune.models.probe import probe_logits
from sonotune.planning.inspection import inspect_model
from sonotune.runs import read_record
from sonotune.serving.baking import BakeSettings
from sonotune.serving.export import export
from sonotune.training.run import run

Settings = Callable[..., LoadedConfig]
GATED, CONV = "adapter.kind=gated_lora", "adapter.kind=conv_lora"
RATE = "training.learning_rate=0.02"


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    """All that the adapter of a run holds."""
    files = (
        folder / "adapter" / "adapter_model.safetensors",
        folder / "adapter" / "lora" / "adapter_model.safetensors",
    )
    return {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}


class Stop:
    """Asks for a stop after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def started(self, total_steps: int, step: int) -> None:
        pass

    def stepped(self, values: Any) -> None:
        if values["step"] == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def evaluated(self, step: int, scores: Any) -> None:
        pass


@pytest.mark.parametrize("words", [(GATED, "quantization.bits=4"), (CONV,)], ids=["gated, 4 bits", "conv"])
def test_stopped_at_any_step_it_ends_with_the_same_adapter(settings: Settings, tmp_path: Path, words: tuple[str, ...]):
    _, straight = run(settings(*words, RATE, folder=tmp_path / "straight"))
    stopped = tmp_path / "stopped"
    for step in (1, 4):
        with pytest.raises(Interrupted):
            run(settings(*words, RATE, folder=stopped), listeners=[Stop(step)])
    run(settings(*words, RATE, folder=stopped))
    left, right = adapter(straight), adapter(stopped)
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[name]) for name, value in left.items())
    own = [value for name, value in left.items() if ".lora_gate_head" in name or ".lora_conv_" in name]
    assert own
    assert any(bool(value.any()) for value in own)


def test_a_run_with_gates_is_inspected_and_exported_baked_or_as_it_is(settings: Settings, tmp_path: Path):
    record, folder = run(settings(GATED, RATE, "training.max_epochs=1", folder=tmp_path / "run"))
    opened = open_model(str(folder))
    assert needs_baking(opened.loaded)
    outlined = inspect_model(str(folder))
    plain = inspect_model(record.model["checkpoint"], kind="lora")
    gates = sum(value.numel() for name, value in adapter(folder).items() if ".lora_gate" in name)
    assert outlined.adapter - gates == sum(
        value.numel() for name, value in adapter(folder).items() if ".lora_A" in name or ".lora_B" in name
    )
    assert plain.adapter < outlined.adapter
    clips = BakeSettings(clips=lambda: parity_settings(str(folder), clips=4), tolerance=1.0)
    with pytest.raises(AdapterError, match="no clips are given"):
        export(str(folder), tmp_path / "refused")
    with pytest.raises(AdapterError, match="--bake-tolerance"):
        export(str(folder), tmp_path / "refused", baking=BakeSettings(clips=clips.clips, tolerance=0.0))
    assert not (tmp_path / "refused").exists()
    made = export(str(folder), tmp_path / "merged", baking=clips)
    assert 0 < made["baked"]["error"] < 1
    assert made["baked"]["clips"] == 4
    assert json.loads((tmp_path / "merged" / "sonotune_export.json").read_text("utf-8"))["baked"] == made["baked"]
    assert open_model(str(tmp_path / "merged")).loaded.adapter is None
    flat = export(str(folder), tmp_path / "plain", adapter_only=True, plain=True, baking=clips)
    assert flat["baked"] == made["baked"]
    read = open_model(str(tmp_path / "plain")).loaded
    assert kind_of(read).name == "lora"
    kept = export(str(folder), tmp_path / "kept", adapter_only=True, parity=parity_settings(str(folder), clips=4))
    assert "gated_lora" in kept["parity"]["reason"]
    again = open_model(str(tmp_path / "kept")).loaded
    assert torch.equal(probe_logits(again), probe_logits(opened.loaded))


def test_what_gates_do_not_bear_is_refused(settings: Settings, tmp_path: Path):
    for words in (("reallocation.at=[0.5]",), ("adapter.allocator=adalora",)):
        with pytest.raises(ConfigError, match="belongs to single ranks"):
            run(settings(GATED, *words, folder=tmp_path / words[0]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("adapter.gate_groups=2",), "no gates"),
        ((GATED, "adapter.conv_kernel=5"), "no filters over time"),
        ((CONV, "adapter.conv_kernel=4"), "must be odd"),
    ],
)
def test_settings_of_another_kind_are_refused(words: tuple[str, ...], message: str):
    with pytest.raises(ConfigError, match=message):
        load_run_config(["model=whisper_nano", *words])


def test_settings_that_came_later_belong_to_a_digest_only_where_they_are_set():
    def digest(*words: str) -> str:
        return load_run_config(["model=whisper_nano", GATED, *words]).digest

    assert digest() == digest("adapter.gate_groups=4")
    assert digest() != digest("adapter.gate_groups=2")


def test_the_record_says_what_trained(settings: Settings, tmp_path: Path):
    record, _ = run(settings(GATED, "training.max_steps=1", folder=tmp_path / "run"))
    assert read_record(tmp_path / "run").config["adapter"]["kind"] == "gated_lora"
    trains = {name for stage in record.stages for group in stage["groups"] for name in group["tensors"]}
    assert any(".lora_gate_trunk" in name for name in trains)
