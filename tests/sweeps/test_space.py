"""The space of a sweep: what its words mean, which trials it has, and what is refused before any of them."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import pytest

from sonotune.config.load import load_run_config, presets
from sonotune.errors import ConfigError
from sonotune.sweeps.space import Space, distinct, read_space
from sonotune.sweeps.sweep_plan import plan_sweep
from sonotune.sweeps.trials import train_line


def space_of(line: list[str], *words: str) -> Space:
    return read_space([*line, *words])[1]


def settings_of(line: list[str], *words: str) -> list[str]:
    """The settings of each trial behind those of the line."""
    plan = plan_sweep([*line, *words])
    mine = {word for word in line if not word.startswith("sweep.")} | {"evaluation.zero_shot=false"}
    return [" ".join(word for word in trials[0].words if word not in mine) for trials in plan.listed]


def test_a_grid_has_every_combination(line: list[str]):
    assert settings_of(line, "adapter.rank=4,8", "training.learning_rate=1e-4,1e-3") == [
        "adapter.rank=4 training.learning_rate=1e-4",
        "adapter.rank=4 training.learning_rate=1e-3",
        "adapter.rank=8 training.learning_rate=1e-4",
        "adapter.rank=8 training.learning_rate=1e-3",
    ]


def test_a_list_in_brackets_is_one_value(line: list[str]):
    plan = plan_sweep([*line, "adapter.targets=[encoder,fc1],[decoder]", "training.betas=[0.9,0.99]"])
    assert [trials[0].values for trials in plan.listed] == [
        {"adapter.targets": "[encoder,fc1]"},
        {"adapter.targets": "[decoder]"},
    ]
    assert plan.space.load(plan.listed[0][0]).config.adapter.targets == ("encoder", "fc1")


def test_the_line_of_a_trial_is_a_line_of_train(line: list[str]):
    [(first,), _] = plan_sweep([*line, "adapter.rank=4,8"]).listed
    words = shlex.split(train_line(first.words))
    assert words[:2] == ["sonotune", "train"]
    loaded = load_run_config(words[2:], require=("data.train",))
    assert loaded.digest.startswith(first.name)
    assert loaded.config.adapter.rank == 4


def test_presets_and_models_vary_as_settings_do(line: list[str]):
    words = [word for word in line if not word.startswith("model=")]
    assert settings_of(words, "model=whisper_nano,whisper_tiny", "training=quick,default") == [
        "model=whisper_nano training=quick",
        "model=whisper_nano training=default",
        "model=whisper_tiny training=quick",
        "model=whisper_tiny training=default",
    ]


def test_settings_without_effect_are_left_out_and_make_no_second_trial(line: list[str]):
    assert settings_of(line, "adapter.kind=lora,none", "adapter.rank=4,8") == [
        "adapter.kind=lora adapter.rank=4",
        "adapter.kind=lora adapter.rank=8",
        "adapter.kind=none",
    ]


def test_a_setting_without_effect_in_any_trial_is_refused(line: list[str]):
    with pytest.raises(ConfigError, match=r"evaluation\.augment_seed: no effect in any trial"):
        space_of(line, "adapter.rank=4,8", "evaluation.augment_seed=3")
    with pytest.raises(ConfigError, match=r"adapter\.rank: no effect in any trial"):
        space_of(line, "adapter.kind=none", "adapter.rank=4,8")


def test_a_value_of_which_no_trial_can_be_made_is_refused(line: list[str]):
    with pytest.raises(ConfigError, match=r"adapter\.rank=0: adapter\.rank: 0 is not allowed") as caught:
        space_of(line, "adapter.rank=0,8", "quantization.bits=4,5", "adapter.stem=train,lora")
    assert "quantization.bits=5" in str(caught.value)
    assert "quantization.bits=4:" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"training\.learning_rate=2"):
        space_of(line, "training.learning_rate=0.1:2")
    with pytest.raises(ConfigError, match=r"a list is one value in brackets"):
        space_of(line, "training.betas=0.9,0.99")


def test_combinations_that_do_not_go_together_are_left_out_and_told(line: list[str]):
    plan = plan_sweep([*line, "adapter.kind=lora,none", "quantization.bits=4,16"])
    assert len(plan.listed) == 3
    [told] = plan.left_out
    assert told.startswith("adapter.kind=none quantization.bits=4: ")
    assert "quantised weights cannot train" in told


def test_unknown_names_and_twice_given_ones_are_refused(line: list[str]):
    with pytest.raises(ConfigError, match=r"adapter\.rnak: no such setting; did you mean 'adapter\.rank'"):
        space_of(line, "adapter.rnak=4,8")
    with pytest.raises(ConfigError, match="given twice"):
        space_of(line, "adapter.rank=4,8", "adapter.rank=4")
    with pytest.raises(ConfigError, match=r"run\.dir: a sweep sets this itself"):
        space_of(line, "adapter.rank=4,8", "run.dir=x")
    with pytest.raises(ConfigError, match="nothing varies"):
        space_of(line, "adapter.rank=4")


def test_draws_follow_from_the_seed_and_more_of_them_begin_alike(line: list[str]):
    words = [*line, "training.learning_rate=1e-5:1e-2:log", "adapter.rank=4:64"]
    few, more, other = (
        [trials[0].name for trials in plan_sweep([*words, "sweep.method=random", *extra]).listed]
        for extra in (["sweep.trials=5"], ["sweep.trials=9"], ["sweep.trials=5", "sweep.seed=1"])
    )
    assert len(set(more)) == 9
    assert more[:5] == few
    assert not set(few) & set(other)


def test_draws_from_a_small_space_end_when_it_is_used_up(line: list[str]):
    plan = plan_sweep([*line, "adapter.rank=4,8,16", "sweep.method=random", "sweep.trials=10"])
    assert {trials[0].values["adapter.rank"] for trials in plan.listed} == {"4", "8", "16"}
    assert plan.limit == 3


def test_draws_from_settings_that_never_go_together_end(line: list[str]):
    space = space_of(line, "adapter.kind=lora,none", "quantization.bits=4,16")
    wrong = itertools.repeat({"adapter.kind": "none", "quantization.bits": "4"})
    found, left_out = distinct(space, wrong, 5)
    assert found == []
    assert len(left_out) == 1


def test_the_method_is_chosen_by_the_axes(line: list[str]):
    listed, drawn = [*line, "adapter.rank=4,8"], [*line, "training.learning_rate=1e-4:1e-2:log"]
    assert plan_sweep(listed).method == "grid"
    assert plan_sweep([*listed, "sweep.trials=1"]).method == "random"
    assert plan_sweep(drawn).method == "random"
    assert len(plan_sweep(drawn).listed) == 20
    with pytest.raises(ConfigError, match=r"a grid needs a list of values.*LOW:HIGH:log:POINTS"):
        plan_sweep([*drawn, "sweep.method=grid"])
    with pytest.raises(ConfigError, match=r"the grid has 2 combinations, and sweep\.trials is 1"):
        plan_sweep([*listed, "sweep.method=grid", "sweep.trials=1"])


def test_a_huge_grid_is_refused_at_once(line: list[str]):
    words = [f"training.{name}=1:64" for name in ("batch_max_clips", "max_epochs", "max_steps")]
    with pytest.raises(ConfigError, match="262,144 combinations"):
        plan_sweep([*line, *words])


def test_parts_of_a_mapping_vary_beside_the_others(line: list[str]):
    [first, *_] = settings_of(line, "training.learning_rates={encoder: 0.5}", "training.learning_rates.stem=0.1,1")
    assert first == 'training.learning_rates={"encoder": 0.5, "stem": 0.1}'


def test_parts_of_a_stage_vary_beside_the_others(line: list[str]):
    words = [word for word in line if not word.startswith("model=")]
    key = "decoder.layers[-1:]"
    plan = plan_sweep(
        [
            *words,
            "model=qwen3_asr_nano",
            "recipe=nano_round2",
            f"training.stages.B.learning_rates.{key}=0.1:1:log",
            "training.stages.A.max_epochs=1:4",
            "sweep.trials=3",
        ]
    )
    for (trial,) in plan.listed:
        b, a = plan.space.load(trial).config.training.stages
        assert b.learning_rates["projector"] == 2.0
        assert b.learning_rates[key] == float(trial.values[f"training.stages.B.learning_rates.{key}"])
        assert a.max_epochs == int(trial.values["training.stages.A.max_epochs"])
    with pytest.raises(ConfigError, match=r"the stages of this line: B, A"):
        plan_sweep([*words, "model=qwen3_asr_nano", "recipe=nano_round2", "training.stages.C.dip=0.1,0.5"])


def test_the_test_clips_are_kept_from_the_trials(line: list[str], tmp_path: Path):
    space = space_of(line, "adapter.rank=4,8", f"data.test={tmp_path}/test.jsonl")
    assert space.test == f"{tmp_path}/test.jsonl"
    assert space.load(space.trial({"adapter.rank": "4"})).config.data.test is None
    words = [word for word in line if not word.startswith(("data.", "model="))]
    space = space_of([*words, "model=ast_nano", "data=rudiments_tiny"], "adapter.rank=4,8")
    assert space.test == "rudiments:data/rudiments_tiny/test.jsonl"
    assert "data.test=null" in space.trial({"adapter.rank": "4"}).words


def test_seeds_are_given_to_every_configuration(line: list[str]):
    plan = plan_sweep([*line, "adapter.rank=4,8", "training.seed=0,1,2"])
    assert [[trial.seed for trial in trials] for trials in plan.listed] == [[0, 1, 2]] * 2
    assert all("training.seed" not in trial.values for trials in plan.listed for trial in trials)
    without = [word for word in line if not word.startswith("data.eval")]
    with pytest.raises(ConfigError, match="each seed would hold out other clips"):
        space_of(without, "adapter.rank=4,8", "training.seed=0,1")


@pytest.mark.parametrize("name", presets()["sweep"])
def test_every_preset_makes_trials(line: list[str], name: str):
    plan = plan_sweep([*line, f"sweep={name}"])
    assert len(plan.listed) >= 5
    assert plan.left_out == ()


def test_the_presets_of_the_ablations_have_full_fine_tuning_beside_them(line: list[str]):
    for name in ("rank", "bits", "placement"):
        plan = plan_sweep([*line, f"sweep={name}"])
        configs = {trials[0].values[name]: plan.space.load(trials[0]).config for trials in plan.listed}
        assert configs["full"].adapter.kind == "none"
        assert all(config.adapter.kind == "lora" for label, config in configs.items() if label != "full")
    bits = {
        trials[0].values["bits"]: plan.space.load(trials[0]).config.quantization
        for plan in [plan_sweep([*line, "sweep=bits"])]
        for trials in plan.listed
    }
    assert [(bits[label].bits, bits[label].double) for label in ("16", "8", "4", "4_single")] == [
        (16, True),
        (8, True),
        (4, True),
        (4, False),
    ]


def test_a_word_replaces_the_axis_of_a_preset(line: list[str]):
    plan = plan_sweep([*line, "sweep=group_rates", "training.learning_rates.stem=1", "sweep.trials=4"])
    assert {trials[0].values["training.learning_rates.stem"] for trials in plan.listed} == {"1"}
    plan = plan_sweep([*line, "sweep=group_rates", "training.learning_rate=1e-3", "sweep.trials=4"])
    assert "training.learning_rate" not in {axis.name for axis in plan.space.axes}


def test_a_part_of_a_mapping_may_have_one_value(line: list[str]):
    plan = plan_sweep([*line, "training.learning_rates.stem=1", "adapter.rank=4,8"])
    assert all(plan.space.load(trials[0]).config.training.learning_rates["stem"] == 1 for trials in plan.listed)


def test_an_axis_beside_choices_that_set_the_same_is_refused(line: list[str]):
    with pytest.raises(ConfigError, match=r"adapter\.rank varies already: the choices of 'rank' set it"):
        space_of(line, "sweep=rank", "adapter.rank=4,8")


def test_a_file_may_hold_the_sweep(line: list[str], tmp_path: Path):
    file = tmp_path / "sweep.yaml"
    file.write_text('sweep:\n  trials: 4\n  axes: {adapter.rank: "4:64:log", training.schedule: "cosine,linear"}\n')
    plan = plan_sweep([*line, f"config={file}"])
    assert (plan.method, plan.limit) == ("random", 4)
    assert {axis.name for axis in plan.space.axes} == {"adapter.rank", "training.schedule"}


def test_a_word_of_one_value_within_quotes_keeps_its_comma(line: list[str], tmp_path: Path):
    (tmp_path / "a,b.jsonl").write_text("x")
    words = [word for word in line if not word.startswith("data.train=")]
    space = space_of(words, f"data.train='{tmp_path}/a,b.jsonl'", "adapter.rank=4,8")
    assert space.load(space.trial({"adapter.rank": "4"})).config.data.train == f"{tmp_path}/a,b.jsonl"
