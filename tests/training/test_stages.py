"""Several stages: what trains when and how fast, what carries over, where they end, and stopping anywhere."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sonotune.adapters.kinds.lora import LORA
from sonotune.config.load import LoadedConfig
from sonotune.errors import AdapterError, ConfigError, Interrupted, ModelError
from sonotune.models.base import LoadedModel, select
from sonotune.runs import read_events, read_record
from sonotune.stages import ParameterGroup, Stage, StageSettings, all_stages, build_stages, whole_run
from sonotune.training import checkpoint
from sonotune.training.lr_schedule import MAX_WARMUP, StageSchedule
from sonotune.training.optimizer import build_optimizer
from sonotune.training.run import run

Build = Callable[..., Any]
Settings = Callable[..., LoadedConfig]
NORMS = "encoder.norms"


def plan(*wanted: dict[str, Any]) -> Callable[[LoadedModel], Sequence[Stage]]:
    """Stages of two steps unless they say otherwise, without warm-up."""

    def build(loaded: LoadedModel) -> Sequence[Stage]:
        settings = [
            StageSettings(
                **{
                    "name": f"stage {index}",
                    "max_epochs": 9,
                    "max_steps": 2,
                    "learning_rates": {},
                    "warmup_steps": 0,
                    **one,
                }
            )
            for index, one in enumerate(wanted)
        ]
        return build_stages(loaded, settings, learning_rate=1e-2, learning_rates={})

    return build


# --- what trains -------------------------------------------------------------------------------------


def test_each_stage_moves_what_it_names_and_nothing_else(bench: Build):
    stages = plan(
        {"weights": ["stem"], "adapters": "none"}, {"weights": [NORMS], "adapters": ["decoder"]}, {"adapters": "all"}
    )
    made = bench(stages=stages, stem="train", unfreeze=[NORMS], max_bad_steps=3)
    weights = {0: made.weights()}
    made.after_steps.calls.append(lambda step: weights.update({step: made.weights()}))
    made.loop.run()
    moved = [
        {name for name, value in weights[end].items() if not torch.equal(weights[end - 2][name], value)}
        for end in (2, 4, 6)
    ]
    for names, stage in zip(moved, made.stages, strict=True):
        assert names <= stage.trainable
    stem, norms = set(select(made.loaded, ["stem"])), set(select(made.loaded, [NORMS]))
    assert {LORA.base_name(name) for name in moved[0]} <= stem
    assert moved[0]
    assert any(LORA.base_name(name) in norms for name in moved[1])
    assert all(".lora_" in name and "decoder" in name for name in moved[1] if LORA.base_name(name) not in norms)
    assert all(".lora_" in name for name in moved[2])
    assert any(".encoder." in name for name in moved[2])


def test_going_on_changes_no_output_and_carries_the_moments_over(bench: Build):
    made = bench(
        stages=plan({"weights": ["stem"], "adapters": "none"}, {"weights": ["stem"], "adapters": "all"}),
        save_steps=1,
        keep_checkpoints=9,
    )
    batch = made.batch(0, 1)

    def loss() -> float:
        made.loaded.module.eval()
        with torch.no_grad():
            return float(made.task.loss(made.loaded, batch, label_smoothing=0.0).total)

    ended, begun, gradients = {}, {}, {}
    made.after_steps.calls.append(lambda step: ended.update({step: loss()}))
    made.on_gradients.calls.append(lambda step: begun.update({step: loss()}))
    made.on_gradients.calls.append(lambda step: gradients.update({step: made.gradients()}))
    made.loop.run()
    assert begun[2] == ended[2]  # nothing has moved since the first stage ended
    assert begun[3] == ended[3] != ended[2]
    first, second, last = (checkpoint.read(checkpoint.step_path(made.folder, step)).optimizer for step in (2, 3, 4))
    assert {name.rpartition("/")[0] for name in first} == made.stages[0].trainable
    for name, gradient in gradients[2].items():
        earlier = first.get(f"{name}/exp_avg", torch.zeros_like(gradient))
        torch.testing.assert_close(second[f"{name}/exp_avg"], 0.9 * earlier + 0.1 * gradient, msg=name)
    steps = {name: float(value) for name, value in last.items() if name.endswith("/step")}
    new = made.stages[1].trainable - made.stages[0].trainable
    assert {steps[f"{name}/step"] for name in made.stages[0].trainable} == {4.0}
    assert {steps[f"{name}/step"] for name in new} == {2.0}  # those that are new count from their own first step


def test_the_optimizer_holds_what_any_stage_trains_once(bench: Build):
    made = bench(stages=plan({"weights": ["stem"], "adapters": "none"}, {"weights": ["stem"], "adapters": "all"}))
    optimizer = build_optimizer(made.loaded.module, made.stages, weight_decay=0.0, betas=(0.9, 0.999))
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len({id(parameter) for parameter in held}) == len(all_stages(*made.stages))


def test_a_stage_without_adapters_leaves_what_acts_on_them_alone(settings: Settings):
    record, folder = run(
        settings(
            "training.stages=[{name: head, weights: [stem], adapters: none, max_steps: 2}, {name: all, max_steps: 3}]",
            "regularization.entropy=spread",
            "regularization.weight=1.0",
            "regularization.ramp=[0,0]",
            "adapter.allocator=adalora",
        )
    )
    steps = [event for event in read_events(folder / "events.jsonl") if event["kind"] == "step"]
    assert [event["stage"] for event in steps] == ["head"] * 2 + ["all"] * 3
    assert [bool(event.get("penalty")) for event in steps[:2]] == [False, False]
    assert [stage["name"] for stage in record.stages] == ["head", "all"]
    [switch] = [event for event in read_events(folder / "events.jsonl") if event["kind"] == "stage"]
    assert (switch["stage"], switch["after"], switch["because"]) == ("all", "head", "its steps are done")


def test_full_fine_tuning_has_stages_too(settings: Settings):
    words = ("adapter.kind=none", "quantization.bits=16", "training.learning_rate=1e-3")
    stages = (
        "[{name: decoder, weights: [decoder], max_steps: 2}, {name: rest, weights: [encoder, decoder], max_epochs: 1}]"
    )
    record, folder = run(settings(*words, f"training.stages={stages}"))
    trained = [
        {tensor.split(".")[1] for group in stage["groups"] for tensor in group["tensors"]} for stage in record.stages
    ]
    assert trained == [{"decoder"}, {"encoder", "decoder"}]
    steps = [event["step"] for event in read_events(folder / "events.jsonl") if event["kind"] == "step"]
    assert steps == list(range(1, 2 + 5 + 1))


# --- how fast ----------------------------------------------------------------------------------------


def test_rates_are_the_closed_form_of_the_stage(bench: Build):
    wanted = plan(
        {"weights": ["stem"], "adapters": "none", "max_steps": 4, "warmup_steps": 2},
        {
            "weights": ["stem"],
            "max_steps": 5,
            "learning_rate": 4e-3,
            "learning_rates": {"stem": 0.5},
            "warmup_steps": 4,
            "dip": 0.5,
        },
    )
    made = bench(stages=wanted, schedule="linear", learning_rate_floor=0.1)
    made.loop.run()
    rates = [event["learning_rates"] for event in made.of("step")]
    falling = [1 - 0.9 * (step - 2) / 2 for step in (2, 3)]
    assert [rate["weights"] for rate in rates[:4]] == pytest.approx([5e-3, 1e-2, *(1e-2 * share for share in falling)])
    new = [(step + 1) / 4 for step in range(4)] + [1.0]
    assert [rate["adapters"] for rate in rates[4:]] == pytest.approx([4e-3 * share for share in new])
    old = [(1 - 0.9 * step / 5) * (0.5 + 0.5 * min(1.0, step / 4)) for step in range(5)]
    assert [rate["weights:stem"] for rate in rates[4:]] == pytest.approx([2e-3 * share for share in old])


@given(
    lengths=st.lists(st.tuples(st.integers(1, 5), st.none() | st.integers(1, 40)), min_size=1, max_size=4),
    steps=st.integers(1, 9),
    warmup=st.integers(0, 50) | st.just("auto"),
    dip=st.floats(0.01, 1),
)
def test_a_course_covers_every_step_once_and_its_shares_are_shares(lengths, steps: int, warmup, dip: float):
    group = ParameterGroup(name="g", parameters=("p",), learning_rate=1.0, decay=True)
    stages = [
        Stage(
            name=str(index),
            groups=(group,),
            max_epochs=epochs,
            max_steps=most,
            patience=None,
            warmup_steps=warmup,
            dip=dip,
        )
        for index, (epochs, most) in enumerate(lengths)
    ]
    course = StageSchedule(stages, schedule="cosine", floor=0.1, steps_of=lambda epoch: steps)
    course.enter(0, step=0, epoch=0)
    total, step = course.total, 0
    for index, (epochs, most) in enumerate(lengths):
        course.enter(index, step=step, epoch=3 * index)
        assert course.end - course.begin == min(epochs * steps, most or epochs * steps)
        for at in range(course.begin, course.end):
            new, trained = course.factors(at)
            assert 0 < new <= 1
            assert 0 < trained <= 1 + 1e-12
        step = course.end
        assert course.last is (index == len(lengths) - 1)
    assert step == total
    assert MAX_WARMUP == 500


def test_layers_further_down_learn_more_slowly(bench: Build):
    made = bench(
        unfreeze=["encoder.layers[0:1]"],
        stem="train",
        stages=lambda loaded: [
            whole_run(
                loaded,
                learning_rate=1.0,
                learning_rates={"stem": 0.5},
                max_epochs=1,
                max_steps=1,
                patience=None,
                layer_decay=0.5,
            )
        ],
    )
    rate = {name: group.learning_rate for group in made.stages[0].groups for name in group.parameters}
    depth = {component.name: len(component.layers) for component in made.loaded.components}
    assert depth["encoder"] >= 2
    for name, found in rate.items():
        layer = int(name.split("layers.")[1].split(".")[0]) if "layers." in name else None
        if layer is None:
            assert "conv" in name
            assert found == 0.5 * 0.5 ** depth["encoder"]
        else:
            assert found == 0.5 ** (depth["encoder" if ".encoder." in name else "decoder"] - 1 - layer), name


# --- where they end ----------------------------------------------------------------------------------


def test_a_stage_whose_score_stalls_gives_way(bench: Build):
    stages = plan({"max_epochs": 5, "max_steps": None, "patience": 1}, {"max_epochs": 1, "max_steps": None})
    made = bench(stages=stages, scores=[0.5, 0.6, 0.4], eval_steps="epoch")
    made.loop.run()
    assert [event["stage"] for event in made.of("step")] == ["stage 0"] * 10 + ["stage 1"] * 5
    assert made.of("stage")[0]["because"] == "its score has stopped improving"
    assert made.loop.state.best_step == 15


def test_a_stage_begins_with_a_fresh_pass(bench: Build):
    made = bench(stages=plan({"max_steps": 3}, {"max_epochs": 1, "max_steps": None}))
    made.loop.run()
    epochs = [event["epoch"] for event in made.of("step")]
    assert len(epochs) == 3 + 5
    assert epochs[3:-1] == [1] * 4


# --- stopping anywhere -------------------------------------------------------------------------------

STAGES = (
    "[{name: stem, weights: [stem], adapters: none, max_steps: 3, warmup_steps: 1}, "
    "{name: both, weights: [stem, decoder.norms], learning_rates: {stem: 0.5}, max_epochs: 1, dip: 0.5}, "
    "{name: last, adapters: [encoder], max_steps: 2}]"
)


class Stop:
    """Asks for a stop after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def started(self, total_steps: int, step: int) -> None:
        assert total_steps == 3 + 5 + 2

    def stepped(self, values: Any) -> None:
        if values["step"] == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def evaluated(self, step: int, scores: Any) -> None:
        pass


def test_stopped_at_every_boundary_it_ends_the_same(settings: Settings, tmp_path: Path):
    from safetensors.torch import load_file

    words = (f"training.stages={STAGES}", "training.learning_rate=0.01", "regularization.entropy=spread")
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    run(settings(*words, folder=straight))
    for step in (2, 3, 4, 7, 8, 9):
        with pytest.raises(Interrupted):
            run(settings(*words, folder=stopped), listeners=[Stop(step)])
    run(settings(*words, folder=stopped))
    left, right = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (straight, stopped))
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[name]) for name, value in left.items())
    told = [
        [(event["step"], event["stage"]) for event in read_events(folder / "events.jsonl") if event["kind"] == "stage"]
        for folder in (straight, stopped)
    ]
    assert told[0] == [(3, "both"), (8, "last")]
    assert sorted(set(told[1])) == told[0]
    assert read_record(straight).stages == read_record(stopped).stages


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "kind", "said"),
    [
        ("[{name: a, max_steps: 1, adapters: none}]", AdapterError, "trains nothing"),
        ("[{name: a, max_steps: 1, weights: [nothing]}]", ModelError, "nothing"),
        ("[{name: a, max_steps: 1}, {name: a, max_steps: 1}]", ConfigError, "two stages are called 'a'"),
        ("[{name: a}]", ConfigError, "max_epochs or max_steps"),
        ("[{name: a, max_steps: 1, wieghts: [stem]}]", ConfigError, "wieghts"),
        ("[{name: a, max_steps: 1, adapters: [projector]}]", ModelError, "projector"),
    ],
)
def test_wrong_stages_are_refused(settings: Settings, stages: str, kind: type[Exception], said: str):
    with pytest.raises(kind, match=said):
        run(settings(f"training.stages={stages}"))


def test_a_measured_split_and_stages_exclude_each_other(settings: Settings):
    with pytest.raises(ConfigError, match=r"adapter\.split"):
        run(settings("training.stages=[{name: a, max_steps: 1}]", "adapter.split=measured"))


def test_weights_in_four_bits_cannot_train(settings: Settings):
    record, _ = run(
        settings("training.stages=[{name: a, weights: ['decoder.layers[0:1]'], max_steps: 1}]", "quantization.bits=4")
    )
    [stage] = record.stages
    tensors = {tensor for group in stage["groups"] for tensor in group["tensors"]}
    assert any(name.startswith("model.decoder.layers.0.fc1") and ".lora_" not in name for name in tensors)
    assert not any("decoder.layers.0." in name and ".lora_" in name for name in tensors)  # trained in full, not adapted
    assert json.dumps(dict(record.model))


def test_stages_without_adapters_train_to_their_end(settings: Settings):
    record, folder = run(
        settings("training.stages=[{name: a, adapters: none, weights: ['decoder.layers[0:1]'], max_steps: 2}]")
    )
    assert record.status == "finished"
    assert (folder / "adapter").is_dir()


def test_patience_counts_from_the_best_of_its_own_stage(bench: Build):
    """The second stage begins worse than the first ended, and gets better each time."""
    stages = plan({"max_epochs": 1, "max_steps": None}, {"max_epochs": 4, "max_steps": None, "patience": 1})
    made = bench(stages=stages, scores=[0.2, 0.9, 0.8, 0.7, 0.6], eval_steps="epoch")
    made.loop.run()
    assert len(made.of("evaluation")) == 5
    assert made.loop.state.best == 0.2


@pytest.mark.parametrize(
    ("stages", "word", "said"),
    [
        ("[{name: a, max_steps: 1, patience: 1}]", "training.eval_steps=never", "nothing could run it out"),
        ("[{name: a, max_steps: 1, dip: 0.5}]", "training.seed=1", "nothing trained before it"),
    ],
)
def test_settings_of_a_stage_that_cannot_take_effect_are_refused(settings: Settings, stages: str, word: str, said: str):
    with pytest.raises(ConfigError, match=said):
        settings(f"training.stages={stages}", word)
