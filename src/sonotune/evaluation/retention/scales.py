"""Scores over the strength of what was learned: how much of the gain remains, and of the damage, between 0 and 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

from sonotune.evaluation.retention.base import Measured
from sonotune.evaluation.retention.measure import Panel, scores_of
from sonotune.metrics.retention import outcome_of, propose_scale


def scale_curve(
    scales: Sequence[float],
    *,
    at: Callable[[float], AbstractContextManager[None]],
    score: Callable[[float], Mapping[str, Any]],
    primary: str,
    panels: Sequence[Panel],
    measure: Callable[[Panel, float], Measured],
    known: Mapping[float, Mapping[str, Measured]],
    scored: Mapping[float, Mapping[str, Any]] = MappingProxyType({}),
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Score the test clips and every panel at each scale, at the cost of an evaluation each.

    Args:
        scales: From 0 (the base model) to 1 (as tuned), rising.
        at: The model computes at a scale, inside.
        score: Scores of the test clips by the model as it is at the time, in JSON form; told the scale for messages.
        primary: Name of the score that decides.
        panels: What is kept.
        measure: Asks the model as it is at the time; told the scale for messages.
        known: Scale -> panel -> what was measured already; of the base model (0) at least.
        scored: Scale -> scores of the test clips that are known already.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        `points`, one a scale: `scale`, `scores` (name -> score) and `panels` (panel -> `score`, `scores` and `outcome`
        against the base); `score`, the name of the one that decides; `knee`, the proposed scale or None; and `rule`.
    """
    draws = {"resamples": resamples, "seed": seed}
    points = []
    for scale in scales:
        with at(scale):
            scores = scored.get(scale) or score(scale)
            measured = known.get(scale) or {panel.name: measure(panel, scale) for panel in panels}
        rows = {}
        for panel in panels:
            now, was = measured[panel.name], known[0.0][panel.name]
            difference = was.scores[0].difference(now.scores[0], panel.clips, **draws)
            rows[panel.name] = {
                "score": now.scores[0].name,
                "scores": scores_of(panel, now, **draws),
                "outcome": outcome_of(None if difference is None else difference.to_json()),
            }
        points.append({"scale": scale, "scores": dict(scores), "panels": rows})
    knee, rule = propose_scale(points, primary)
    return {"points": points, "score": primary, "knee": knee, "rule": rule}
