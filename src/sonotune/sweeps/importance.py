"""How much of the scores of a sweep each axis accounts for."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from scipy.stats import rankdata, spearmanr

from sonotune.sweeps.axes import Axis
from sonotune.sweeps.optuna_study import load_optuna
from sonotune.sweeps.space import NOT_SET, Point
from sonotune.wording import counted

LEAST: Final = 4
"""Configurations below which nothing is said."""
PER_AXIS: Final = 10
"""Configurations for each axis below which the numbers are called unsure."""
FANOVA: Final = "fANOVA (optuna)"
RANKS: Final = "rank correlation"


def importance(axes: Sequence[Axis], points: Sequence[Point], outcomes: Sequence[float]) -> dict[str, Any]:
    """The importance of each axis, by Optuna's fANOVA where it is installed, else by rank correlation.

    fANOVA (Hutter et al., 2014) gives the share of the variance of the scores that an axis explains by itself, over
    its whole range, as a random forest has it; the shares add up to 1. The rank correlation is Spearman's between 0
    and 1 without its sign, and for an axis of categories the correlation ratio of the ranks; these do not add up.

    Args:
        axes: What varies.
        points: Values of every configuration that was scored; one lacks the axes that had no effect.
        outcomes: Their scores.

    Returns:
        `method`, `values` (axis -> number from 0 to 1, or None where it cannot be told), `configurations` and
        `warning` (None where there are enough of them).
    """
    varying = [axis for axis in axes if len({point.get(axis.name, NOT_SET) for point in points}) > 1]
    found: dict[str, Any] = {"method": None, "values": {}, "configurations": len(points), "warning": None}
    if len(points) < LEAST or not varying or len(set(outcomes)) < 2:
        found["warning"] = (
            f"Importances need {LEAST} scored configurations or more, of which an axis and the scores differ; there "
            f"are {len(points)}."
        )
        return found
    if importlib.util.find_spec("optuna") is not None:
        values, found["method"] = _fanova(varying, points, outcomes), FANOVA
    else:
        values, found["method"] = _rank_correlations(varying, points, outcomes), RANKS
    found["values"] = {axis.name: values.get(axis.name) for axis in axes}
    if len(points) < PER_AXIS * len(varying):
        found["warning"] = (
            f"{counted(len(points), 'configuration')} for {counted(len(varying), 'axis', 'axes')}: below {PER_AXIS} "
            "for each axis these numbers change a lot from sweep to sweep."
        )
    return found


def is_numeric(axis: Axis) -> bool:
    """Whether the values of an axis are numbers in an order."""
    return not axis.choice and (axis.span is not None or all(_number(value) is not None for value in axis.values))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _numbers(axis: Axis, points: Sequence[Point]) -> list[float] | None:
    """The values of an axis as numbers; None where one is none, or has no effect."""
    values = [_number(point.get(axis.name, NOT_SET)) for point in points]
    return [value for value in values if value is not None] if is_numeric(axis) and None not in values else None


def _fanova(axes: Sequence[Axis], points: Sequence[Point], outcomes: Sequence[float]) -> dict[str, float]:
    optuna = load_optuna()
    distributions: dict[str, Any] = {}
    columns: dict[str, Sequence[Any]] = {}
    for axis in axes:
        numbers = _numbers(axis, points)
        if numbers is None:
            columns[axis.name] = [point.get(axis.name, NOT_SET) for point in points]
            kinds = tuple(dict.fromkeys(columns[axis.name]))
            distributions[axis.name] = optuna.distributions.CategoricalDistribution(kinds)
        else:
            log = min(numbers) > 0 and (axis.span.log if axis.span is not None else max(numbers) >= 8 * min(numbers))
            columns[axis.name] = numbers
            distributions[axis.name] = optuna.distributions.FloatDistribution(min(numbers), max(numbers), log=log)
    study = optuna.create_study()
    for index, outcome in enumerate(outcomes):
        params = {name: column[index] for name, column in columns.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=outcome))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    values: Mapping[str, float] = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(value) for name, value in values.items()}


def _rank_correlations(axes: Sequence[Axis], points: Sequence[Point], outcomes: Sequence[float]) -> dict[str, float]:
    ranks_N = np.asarray(rankdata(outcomes), dtype=np.float64)
    found = {}
    for axis in axes:
        numbers = _numbers(axis, points)
        if numbers is not None:
            found[axis.name] = abs(float(spearmanr(numbers, outcomes).statistic))
            continue
        kinds = np.array([point.get(axis.name, NOT_SET) for point in points])
        means = {kind: ranks_N[kinds == kind].mean() for kind in set(kinds.tolist())}
        between = np.array([means[kind] for kind in kinds.tolist()])
        found[axis.name] = float(np.sqrt(between.var() / ranks_N.var()))
    return found
