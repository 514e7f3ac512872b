"""Runs whose adapters change while they train: what they leave behind, and that they can be stopped anywhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from sonotune.adapters.ranks.components import FirstStep, Split
from sonotune.adapters.ranks.plan import targets_in
from sonotune.config.load import LoadedConfig
from sonotune.errors import AdapterError, Interrupted
from sonotune.loading import open_model
from sonotune.runs import read_events, read_record
from sonotune.training.adaptation import Adaptation
from sonotune.training.run import run

Settings = Callable[..., LoadedConfig]
KINDS = {
    "adalora": ("adapter.allocator=adalora",),
    "moving ranks": (
        "adapter.allocator=entropy",
        "adapter.rank=8",
        "allocation.tokens=64",
        "allocation.clips=6",
        "reallocation.at=[0.2,0.5]",
        "reallocation.share=0.3",
        "regularization.entropy=concentrate",
        "regularization.ramp=[0,0]",
        "evaluation.entropy_clips=4",
    ),
    "measured split": ("adapter.split=measured", "allocation.clips=6"),
    "spread": ("regularization.entropy=spread", "regularization.weight=0.1", "regularization.ramp=[0,0.1]"),
}


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder / "events.jsonl") if event["kind"] == kind]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


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


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_at_any_step_it_ends_with_the_same_adapter(settings: Settings, tmp_path: Path, kind: str):
    words = (*KINDS[kind], "training.learning_rate=0.02")
    _, straight = run(settings(*words, folder=tmp_path / "straight"))
    stopped = tmp_path / "stopped"
    for step in (1, 2, 5, 6, 9):
        with pytest.raises(Interrupted):
            run(settings(*words, folder=stopped), listeners=[Stop(step)])
    run(settings(*words, folder=stopped))
    left, right = adapter(straight), adapter(stopped)
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[name]) for name, value in left.items())
    assert read_record(straight).ranks == read_record(stopped).ranks
    for kind_of_event in ("ranks", "adapter_entropy"):
        one, other = ([event["step"] for event in events(folder, kind_of_event)] for folder in (straight, stopped))
        assert one == other


@pytest.mark.parametrize("allocator", ["eva", "gradient_eva", "adalora"])
def test_killed_before_its_first_checkpoint_it_starts_from_the_same_place(
    settings: Settings, tmp_path: Path, allocator: str
):
    """`ranks.json` is there by then, and does not hold the rows that the A matrices start from."""
    words = (f"adapter.allocator={allocator}", "allocation.tokens=64", "allocation.clips=6")
    _, straight = run(settings(*words, folder=tmp_path / "straight"))
    killed = tmp_path / "killed"
    with pytest.raises(Interrupted):
        run(settings(*words, folder=killed), listeners=[Stop(1)])
    shutil.rmtree(killed / "checkpoints")
    run(settings(*words, folder=killed))
    right = adapter(killed)
    assert all(torch.equal(value, right[name]) for name, value in adapter(straight).items())


@pytest.mark.parametrize("kind", ["adalora", "moving ranks"])
def test_ranks_that_moved_are_within_the_budget_and_load_in_plain_peft(settings: Settings, tiny_model: Path, kind: str):
    record, folder = run(settings(*KINDS[kind], "training.learning_rate=0.02"))
    moves = events(folder, "ranks")
    assert moves
    assert moves[-1]["ranks"] == record.ranks
    loaded = open_model(str(tiny_model)).loaded
    costs = {site.name: site.cost for site in targets_in(loaded, list(record.ranks))}
    budget = record.config["adapter"]["rank"] * sum(costs.values())
    assert sum(rank * costs[name] for name, rank in record.ranks.items()) <= budget
    trains = {name: row["trainable"] for name, row in record.model["components"].items() if name != "stem"}
    assert sum(trains.values()) == sum(rank * costs[name] for name, rank in record.ranks.items())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT 0.21 asks transformers 5 by an old name
        plain = PeftModel.from_pretrained(loaded.module, folder / "adapter")
    shapes = {
        name.split(".lora_A")[0].removeprefix("base_model.model."): len(value)
        for name, value in plain.named_parameters()
        if ".lora_A" in name
    }
    assert shapes == record.ranks
    if kind == "moving ranks":
        heard = {event["moment"]: event["effective_rank"] for event in events(folder, "activation_entropy")}
        assert heard.keys() == {"before", "during", "after"}
        assert heard["before"].keys() == record.ranks.keys()
        assert heard["before"] != heard["after"]


def test_a_measured_split_decides_what_trains_and_is_told(settings: Settings):
    record, folder = run(
        settings("adapter.split=measured", "allocation.clips=6", "training.max_steps=2", "training.learning_rate=1e-3")
    )
    kept = json.loads((folder / "split.json").read_text("utf-8"))
    [stage] = record.stages
    trained = {tensor for group in stage["groups"] for tensor in group["tensors"] if ".lora_" not in tensor}
    assert any("conv" in name for name in trained) is kept["stem"]
    assert any("encoder.layers.0.self_attn_layer_norm" in name for name in trained) is (
        "encoder.norms" in kept["unfreeze"]
    )
    rates = {group["name"].partition(":")[2]: group["learning_rate"] for group in stage["groups"]}
    base = record.config["training"]["learning_rate"]
    assert {name: rate / base for name, rate in rates.items() if name} == pytest.approx(kept["rates"])
    assert record.choices["adapter.split"].startswith("in full precision: ")
    assert kept["weights"].keys() == {"encoder", "decoder", "decoder.cross_attention"}


def test_a_penalty_moves_the_entropy_its_way_and_is_told(settings: Settings, tmp_path: Path):
    last = {}
    for mode in ("concentrate", "off", "spread"):
        words = [f"regularization.entropy={mode}", "training.learning_rate=0.02"]
        if mode != "off":
            words += ["regularization.weight=1.0", "regularization.ramp=[0,0]"]
        _, folder = run(settings(*words, folder=tmp_path / mode))
        final = events(folder, "adapter_entropy")[-1]["entropy"]
        last[mode] = sum(final.values()) / len(final)
        penalties = [event.get("penalty") for event in events(folder, "step")]
        assert all(penalties) if mode != "off" else not any(penalties)
    assert last["concentrate"] < last["off"] - 0.01
    assert last["spread"] > last["off"]


def test_two_things_that_move_ranks_are_refused_before_anything_trains(settings: Settings):
    with pytest.raises(AdapterError, match="Take one of the two"):
        run(settings("adapter.allocator=adalora", "reallocation.at=[0.5]"))


def test_ranks_of_a_file_may_move_within_what_they_cost(settings: Settings, tmp_path: Path):
    """Not within what the reference rank would cost, which may be less."""
    _, first = run(settings("adapter.rank=4", "training.max_epochs=1", folder=tmp_path / "first"))
    words = ["reallocation.at=[0.2,0.5]", "reallocation.share=0.5", "training.learning_rate=0.02"]
    record, folder = run(settings(*words, f"allocation.file={first / 'ranks.json'}", folder=tmp_path / "second"))
    given = read_record(first).ranks
    assert events(folder, "ranks")
    loaded = open_model(read_record(first).model["checkpoint"]).loaded
    costs = {site.name: site.cost for site in targets_in(loaded, list(given))}
    spent = sum(rank * costs[name] for name, rank in record.ranks.items())
    assert spent <= sum(rank * costs[name] for name, rank in given.items())


def test_what_trains_in_full_beside_a_measured_split_learns_no_faster_than_pretrained_weights_bear(settings: Settings):
    loaded = open_model("assets:whisper-nano").loaded
    split = Split(
        stem=True,
        unfreeze=("encoder.norms",),
        rates={"stem": 0.4},
        weights={"encoder": 1.0},
        first_step=FirstStep(gains={}, parameters={}, groups=()),
    )

    def rates(learning_rate: str, *words: str) -> dict[str, float]:
        config = settings("adapter.split=measured", f"training.learning_rate={learning_rate}", *words).config
        return dict(Adaptation.of(config, loaded).measured(split).rates.factors)

    assert rates("1e-3") == {"stem": 0.4}
    assert rates("2e-3") == {"stem": 0.4, "encoder.norms": 0.5}
    assert rates("2e-2") == pytest.approx({"stem": 0.05, "encoder.norms": 0.05})
    assert rates("2e-2", "training.learning_rates={stem: 0.5}") == pytest.approx({"stem": 0.5, "encoder.norms": 0.05})
