"""Which trial comes next: centres first, grids that grow at their edge, then the other seeds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonotune.sweeps.schedule import (
    Schedule,
    Trial,
    choose,
    expected_trials,
    finalists,
    next_trial,
    waiting_trials,
)


def schedule(**changes) -> Schedule:
    values = {"arms": ("a", "b"), "centres": {"a": 1e-3, "b": 2e-3}, "seeds": (0, 1, 2)} | changes
    return Schedule(**values)


def run_all(plan: Schedule, score: Callable[[Trial], float | None]) -> tuple[list[Trial], dict[Trial, float | None]]:
    outcomes: dict[Trial, float | None] = {}
    order: list[Trial] = []
    while (trial := next_trial(plan, outcomes)) is not None:
        assert trial not in outcomes
        order.append(trial)
        outcomes[trial] = score(trial)
        assert len(order) < 200
    return order, outcomes


def test_every_arm_shows_itself_first_then_grids_then_seeds():
    order, _ = run_all(schedule(), lambda trial: 0.2 + 0.1 * abs(trial.step))
    assert [(trial.arm, trial.step, trial.seed) for trial in order] == [
        ("a", 0, 0),
        ("b", 0, 0),
        ("a", -1, 0),
        ("a", 1, 0),
        ("b", -1, 0),
        ("b", 1, 0),
        ("a", 0, 1),
        ("b", 0, 1),
        ("a", 0, 2),
        ("b", 0, 2),
    ]


def test_rates_are_half_decades_apart_and_short_to_write():
    plan = schedule()
    assert [plan.trial("a", step, 0).rate for step in (-2, -1, 0, 1, 2)] == [0.0001, 0.000316, 0.001, 0.00316, 0.01]
    assert plan.trial("b", 1, 3).name == "b/lr0.00632-seed3"


@pytest.mark.parametrize(("best", "tried"), [(1, 4), (2, 5), (3, 5), (-1, 4), (-2, 5), (0, 3)])
def test_an_optimum_at_the_edge_adds_a_point_beyond_it(best: int, tried: int):
    plan = schedule(arms=("a",), seeds=(0,))
    order, outcomes = run_all(plan, lambda trial: abs(trial.step - best))
    choice = choose(plan, "a", outcomes)
    assert choice is not None
    assert len(order) == len(choice.tried) == tried
    assert choice.step == best
    assert choice.at_edge == (abs(best) == 3)
    assert list(choice.tried) == sorted(choice.tried)


def test_only_the_chosen_rate_gets_the_other_seeds():
    plan = schedule(arms=("a",))
    order, outcomes = run_all(plan, lambda trial: abs(trial.step - 1))
    assert {trial.step for trial in order if trial.seed != 0} == {1}
    assert choose(plan, "a", outcomes).rate == 0.00316


def test_outcomes_are_turned_so_that_lower_is_better():
    """Where a higher score is better, a trial's outcome is its negative (`TrialResult.outcome`)."""
    plan = schedule(arms=("a",))
    _, outcomes = run_all(plan, lambda trial: -1 / (1 + abs(trial.step)))
    assert choose(plan, "a", outcomes).step == 0


def test_equal_scores_choose_the_middle_and_do_not_grow_the_grid():
    plan = schedule(arms=("a",), seeds=(0,))
    order, outcomes = run_all(plan, lambda trial: 0.5)
    assert len(order) == 3
    assert choose(plan, "a", outcomes).step == 0


def test_a_failed_rate_is_never_chosen_and_an_arm_that_always_fails_has_no_seeds():
    plan = schedule()
    order, outcomes = run_all(
        plan, lambda trial: None if trial.arm == "b" or trial.step > 0 else 0.1 - 0.01 * trial.step
    )
    assert choose(plan, "a", outcomes).step == 0
    assert choose(plan, "b", outcomes) is None
    assert len([trial for trial in order if trial.arm == "b"]) == 3


def test_no_rate_above_one_is_tried():
    plan = schedule(arms=("a",), centres={"a": 0.3}, seeds=(0,))
    order, outcomes = run_all(plan, lambda trial: -trial.rate)
    assert max(trial.rate for trial in order) <= 1
    assert choose(plan, "a", outcomes).at_edge


def test_nothing_is_chosen_from_half_a_grid():
    plan = schedule(arms=("a",))
    assert choose(plan, "a", {plan.trial("a", 0, 0): 0.1, plan.trial("a", 1, 0): 0.2}) is None


def test_one_point_is_no_sweep():
    order, _ = run_all(schedule(points=1, extensions=0), lambda trial: 0.1)
    assert len(order) == 6
    assert {trial.step for trial in order} == {0}


def test_what_is_expected_comes_to_pass_where_no_grid_grows():
    plan = schedule()
    assert expected_trials(plan, {}) == 10
    order, outcomes = run_all(plan, lambda trial: abs(trial.step))
    assert len(order) == 10
    assert expected_trials(plan, outcomes) == 0
    assert waiting_trials(plan, outcomes) == []


def test_finalists_are_the_first_arm_and_the_best_of_the_others():
    plan = schedule(
        arms=("a", "b", "c", "d"),
        centres=dict.fromkeys("abcd", 1e-3),
        final_seeds=(8, 9),
        finalists=1,
        out_of_final=("d",),
    )
    value = {"a": 5.0, "b": 3.0, "c": 2.0, "d": 1.0}
    order, outcomes = run_all(plan, lambda trial: value[trial.arm] + abs(trial.step) + (trial.arm == "c") * trial.seed)
    assert finalists(plan, outcomes) == ("a", "b")  # c has the best first seed, and not the best mean
    assert [(trial.arm, trial.seed) for trial in order[-4:]] == [("a", 8), ("b", 8), ("a", 9), ("b", 9)]
    assert finalists(plan, {trial: outcomes[trial] for trial in order[:-5]}) == ()
    assert expected_trials(plan, {}) == len(order)
    assert expected_trials(plan, {trial: outcomes[trial] for trial in order[:-3]}) == 3


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(0, 2**32))
def test_any_landscape_is_finished_and_any_stop_goes_on_alike(
    points: int, seeds: int, arms: int, final: int, salt: int
):
    names = tuple("abc"[:arms])
    plan = schedule(
        arms=names,
        centres=dict.fromkeys(names, 1e-3),
        points=points,
        seeds=tuple(range(seeds)),
        final_seeds=tuple(range(10, 10 + final)),
        finalists=1,
    )

    def score(trial: Trial) -> float | None:
        value = hash((salt, trial.arm, trial.step)) % 7
        return None if value == 0 else float(value)

    order, outcomes = run_all(plan, score)
    assert len(set(order)) == len(order)
    for cut in range(len(order)):
        known = {trial: outcomes[trial] for trial in order[:cut]}
        assert next_trial(plan, known) == order[cut]
