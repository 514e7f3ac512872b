"""Arms as settings: every one of them is a line that `sonotune train` understands."""

from __future__ import annotations

from pathlib import Path

import pytest

from sonotune import registry
from sonotune.config.load import load_run_config
from sonotune.errors import ConfigError
from sonotune.sweeps.arms import ARMS, GROUPS, choose_arms, trial_words
from sonotune.sweeps.schedule import STEP


@pytest.mark.parametrize("name", list(ARMS))
def test_every_arm_is_a_line_that_can_be_run(name: str, base: list[str]):
    base = [*base, "quantization.bits=4", "allocation.gamma=2", "adapter.allocator=entropy", "adapter.budget=90000"]
    words = trial_words(base, ARMS[name], rate=0.00316, seed=7, folder=Path("runs/a b/x"), budget=12345)
    config = load_run_config(words).config
    assert (config.training.learning_rate, config.training.seed, config.run.dir) == (0.00316, 7, Path("runs/a b/x"))
    assert config.adapter.allocator in registry.names("allocators")
    assert config.adapter.kind == ("none" if name == "full" else "lora")
    assert config.quantization.bits == (16 if name == "full" else 4)
    if ARMS[name].equal:
        assert (config.adapter.rank, config.adapter.budget) == (4, 90000)  # the base's budget, spent otherwise
        assert (config.adapter.targets, config.adapter.stem) == ("all_linear", "train")
    if ARMS[name].spends != "own":
        assert config.adapter.budget == 12345


def test_arms_differ_from_each_other(base: list[str]):
    digests = {
        load_run_config(trial_words(base, arm, rate=1e-3, seed=0, folder=Path("x"), budget=5000)).digest
        for arm in ARMS.values()
    }
    assert len(digests) == len(ARMS)


def test_the_three_random_arms_draw_differently(base: list[str]):
    """And calibrate on what `entropy_half` hears, or they would deal out other ranks than its."""
    heard, *drawn = (
        load_run_config(trial_words(base, ARMS[name], rate=1e-3, seed=5, folder=Path("x"))).config.allocation
        for name in ("entropy_half", "random_1", "random_2", "random_3")
    )
    assert len({one.draw for one in drawn}) == 3
    assert {(one.seed, one.clips, one.tokens, one.gamma) for one in drawn} == {
        (heard.seed, heard.clips, heard.tokens, heard.gamma)
    }


def test_groups_name_arms_and_give_each_once():
    assert choose_arms("inverse,ranks")[0].name == "inverse"
    assert len(choose_arms("ranks,standard")) == len(set(GROUPS["ranks"]) | set(GROUPS["standard"]))
    assert all(name in ARMS for names in GROUPS.values() for name in names)
    assert all(ARMS[name].equal for name in GROUPS["ranks"])
    assert not any(ARMS[name].equal for name in GROUPS["split"])


def test_arms_of_ones_own(base: list[str]):
    [_, own] = choose_arms("uniform", ['small: adapter.rank=2 run.progress=false "data.eval_speakers=a b"'])
    words = trial_words(base, own, rate=1e-3, seed=0, folder=Path("x"))
    assert own.words[2] == "data.eval_speakers=a b"
    assert "adapter.rank=2" in words
    assert "adapter.rank=4" not in words


def test_a_rate_of_ones_own_is_the_middle_of_its_grid(base: list[str], plan):
    made = plan("uniform", own=["fast: training.learning_rate=0.02"])
    assert made.schedule.centres == {"uniform": 0.001, "fast": 0.02}
    assert (
        sum(word.startswith("training.learning_rate=") for word in made.words(made.schedule.trial("fast", 0, 0))) == 1
    )


def test_full_training_begins_at_a_lower_rate(plan):
    assert plan("uniform,full").schedule.centres["full"] == pytest.approx(1e-3 / STEP)


@pytest.mark.parametrize(
    ("names", "own", "said"),
    [
        ("uniform,entropi_half", [], "did you mean 'entropy_half'"),
        ("", [], "needs an arm"),
        ("uniform", ["small adapter.rank=2"], "NAME: SETTING=VALUE"),
        ("uniform", ["Small: adapter.rank=2"], "NAME: SETTING=VALUE"),
        ("uniform", ["../x: adapter.rank=2"], "NAME: SETTING=VALUE"),
        ("uniform", ["small:"], "NAME: SETTING=VALUE"),
        ("uniform", ["small: 'adapter.rank=2"], "No closing quotation"),
        ("uniform", ["eva: adapter.rank=2"], "name of an arm already"),
    ],
)
def test_wrong_arms_are_refused(names: str, own: list[str], said: str):
    with pytest.raises(ConfigError, match=said):
        choose_arms(names, own)
