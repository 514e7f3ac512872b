"""Importances of axes: the one that matters is found, by either method, and few trials get a warning."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from sonotune.sweeps.axes import Axis, choice_axis, parse_axis
from sonotune.sweeps.importance import FANOVA, RANKS, importance


def axes() -> list[Axis]:
    rate = parse_axis("training.learning_rate", "1e-5:1e-2:log", numbers=True, integer=False)
    rank = parse_axis("adapter.rank", "4,8,16", numbers=True, integer=True)
    assert rate is not None
    assert rank is not None
    return [rate, rank, choice_axis("place", {"a": ["model.dropout=0"], "b": []})]


def sample(count: int) -> tuple[list[dict[str, str]], np.random.Generator]:
    rng = np.random.default_rng(0)
    return [{axis.name: axis.draw(rng) for axis in axes()} for _ in range(count)], rng


@pytest.fixture(params=[FANOVA, RANKS])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == FANOVA:
        pytest.importorskip("optuna")
    else:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "optuna" else find(name))
    return str(request.param)


def test_the_axis_that_decides_comes_first(method: str):
    points, rng = sample(60)
    by_rate = [float(np.log10(float(point["training.learning_rate"]))) + 0.01 * rng.normal() for point in points]
    found = importance(axes(), points, by_rate)
    assert (found["method"], found["warning"], found["configurations"]) == (method, None, 60)
    assert found["values"]["training.learning_rate"] > 0.9
    assert found["values"]["adapter.rank"] < 0.3
    by_place = [float(point["place"] == "a") + 0.01 * rng.normal() for point in points]
    values = importance(axes(), points, by_place)["values"]
    assert max(values, key=values.__getitem__) == "place"
    assert all(0 <= value <= 1.0001 for value in values.values())


def test_few_configurations_get_a_warning(method: str):
    points, rng = sample(8)
    found = importance(axes(), points, rng.normal(size=8).tolist())
    assert found["warning"].startswith("8 configurations for 3 axes: below 10 for each axis")


@pytest.mark.parametrize(("count", "outcomes"), [(0, []), (3, [1.0, 2.0, 3.0]), (6, [1.0] * 6)])
def test_nothing_is_said_where_nothing_can_be(method: str, count: int, outcomes: list[float]):
    found: dict[str, Any] = importance(axes(), sample(count)[0], outcomes)
    assert found["values"] == {}
    assert found["method"] is None
    assert "Importances need 4 scored configurations" in found["warning"]


def test_an_axis_without_effect_in_some_is_a_category(method: str):
    points, rng = sample(40)
    for point in points[::2]:
        del point["adapter.rank"]
    outcomes = [float("adapter.rank" in point) + 0.01 * rng.normal() for point in points]
    values = importance(axes(), points, outcomes)["values"]
    assert max(values, key=values.__getitem__) == "adapter.rank"
