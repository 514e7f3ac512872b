"""What tuning broke, for the report of a run: a sentence for its first screen, a table, and the curve over scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sonotune.metrics.retention import outcome_of, retention_sentence
from sonotune.metrics.scores import Change, in_percent, score_title, show_value
from sonotune.reports.figures import Series, curve
from sonotune.reports.verdict import Verdict
from sonotune.types import RunRecord
from sonotune.wording import counted

_COLOURS: Mapping[str, Change] = {"broke": "worse", "better": "better"}


def retention_verdict(record: RunRecord) -> Verdict | None:
    """What the run broke, in a sentence or two; None where no panel was asked for."""
    rows = record.retention
    if not rows:
        return None
    told = {name: [row for row in rows if row["outcome"] == name] for name in ("broke", "better")}
    others = [row["panel"] for row in rows if row["outcome"] not in told]
    sentences = [f"Tuning broke {retention_sentence(row)}." for row in told["broke"]]
    sentences += [f"Tuning improved {retention_sentence(row)}." for row in told["better"]]
    if others:
        sentences.append(f"No clear change: {', '.join(others)}.")
    scales = record.adapter_scales
    if told["broke"] and (knee := scales.get("knee")) is not None and knee < 1:
        still = _broken_at(scales, knee)
        kept = f"still breaks {', '.join(still)}" if still else "breaks none of the panels"
        sentences.append(f"At {knee:g} of its strength the tuned model keeps most of its gain and {kept}.")
    broke = len(told["broke"])
    badge = f"broke {broke} of {counted(len(rows), 'panel')}" if broke else "nothing broke"
    outcome: Change = "worse" if broke else "none" if others else "better"
    return Verdict(outcome, badge if broke or not others else "no panel broke", " ".join(sentences))


def _broken_at(scales: Mapping[str, Any], scale: float) -> list[str]:
    """Panels that are clearly worse than with the base model at a scale."""
    point = next(point for point in scales["points"] if point["scale"] == scale)
    return [name for name, found in point["panels"].items() if found["outcome"] == "broke"]


def retention_rows(record: RunRecord) -> list[dict[str, Any]]:
    """The table: a row for each score of each panel, the ones that decide with their slices and examples."""
    rows = []
    for row in record.retention:
        for name, after in row["after"].items():
            before, difference = row["before"][name], row["difference"].get(name)
            decides = name == row["score"]
            rows.append(
                {
                    "panel": row["panel"],
                    "clips": row["clips"],
                    "title": score_title(name, after),
                    "before": before,
                    "after": after,
                    "interval_before": _ends(before),
                    "interval_after": _ends(after),
                    "change": _signed(after["value"] - before["value"], after),
                    "interval": "too few clips"
                    if difference is None
                    else f"{_signed(difference['low'], after)} to {_signed(difference['high'], after)}",
                    "outcome": outcome_of(difference),
                    "colour": _COLOURS.get(outcome_of(difference), "none"),
                    "slices": row.get("slices", []) if decides else [],
                    "examples": row.get("examples", []) if decides else [],
                }
            )
    return rows


def _ends(score: Mapping[str, Any]) -> str:
    scale = 100 if in_percent(score) else 1
    return f"{scale * score['low']:.1f} – {scale * score['high']:.1f}"


def _signed(value: float, score: Mapping[str, Any]) -> str:
    return f"{(100 if in_percent(score) else 1) * value:+.1f}".replace("-", "\u2212")


def scale_rows(record: RunRecord) -> list[dict[str, Any]]:
    """The table under the curve: a row a scale, with the score that decides and that of each panel."""
    scales = record.adapter_scales
    name = scales.get("score", "")
    return [
        {
            "scale": f"{point['scale']:g}",
            "knee": point["scale"] == scales.get("knee"),
            "cells": [
                show_value(point["scores"][name]) if name in point["scores"] else "",
                *(show_value(found["scores"][found["score"]]) for found in point["panels"].values()),
            ],
        }
        for point in scales.get("points", ())
    ]


def scale_titles(record: RunRecord) -> list[str]:
    """Heads of the columns of `scale_rows`."""
    points = record.adapter_scales.get("points", ())
    if not points:
        return []
    name, first = record.adapter_scales.get("score", ""), points[0]
    titles = [score_title(name, first["scores"].get(name))]
    for panel, found in first["panels"].items():
        titles.append(f"{panel}: {score_title(found['score'], found['scores'][found['score']])}")
    return titles


def scale_figure(record: RunRecord) -> str | None:
    """Scores over the strength of what was learned, in per cent, lower is better; None where that was not asked."""
    points = record.adapter_scales.get("points", ())
    if len(points) < 2:
        return None
    lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    name = record.adapter_scales.get("score", "")
    for point in points:
        if name in point["scores"]:
            title = f"{score_title(name, point['scores'][name])} of what was tuned on"
            lines.setdefault(title, []).append((point["scale"], point["scores"][name]))
        for panel, found in point["panels"].items():
            lines.setdefault(panel, []).append((point["scale"], found["scores"][found["score"]]))
    drawn = [_series(title, line) for title, line in lines.items() if all(in_percent(score) for _, score in line)]
    return curve(
        "scales",
        drawn,
        y_label="errors, % (lower is better)",
        title="Scores over the strength of the adapter",
        zero=True,
        markers=True,
        x_label="strength of what was learned (0: base model, 1: as tuned)",
    )


def _series(title: str, line: list[tuple[float, Mapping[str, Any]]]) -> Series:
    def errors(score: Mapping[str, Any], key: str) -> float:
        share = float(score[key])
        return 100 * (1 - share) if score.get("better") == "higher" else 100 * share

    # Of an accuracy the upper end of its interval is the lower end of that of the errors.
    low, high = ("high", "low") if line[0][1].get("better") == "higher" else ("low", "high")
    wrong = " (wrong)" if line[0][1].get("better") == "higher" else ""
    return Series(
        label=title + wrong,
        x=[scale for scale, _ in line],
        y=[errors(score, "value") for _, score in line],
        low=[errors(score, low) for _, score in line],
        high=[errors(score, high) for _, score in line],
    )
