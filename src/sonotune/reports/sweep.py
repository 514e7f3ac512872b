"""The report of a sweep: one HTML file made of `sweep.json` alone, that opens offline and can be mailed.

The same content gives the same bytes. All text is escaped: values of settings and errors are data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from sonotune.metrics.scores import better_sign
from sonotune.reports.canvas import (
    Palette,
    Picture,
    canvas,
    elide,
    log_scale,
    plain_axes,
    points,
    shown,
)
from sonotune.reports.page import render_page
from sonotune.reports.record import show_seconds
from sonotune.wording import memory_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_SET: Final = "\u2014"
"""Shown for an axis that has no effect in a configuration."""
_ROWS = 50  # of the table, before the rest folds away
_LABEL = 16  # letters of a value beside an axis
_COSTS: tuple[tuple[str, str], ...] = (
    ("peak_bytes", "peak memory, MiB"),
    ("seconds", "time of a trial, seconds with scoring"),
    ("parameters", "trainable parameters"),
)
_LISTED = 12  # values of an axis that are all written beside it


def build_sweep_html(body: Mapping[str, Any]) -> str:
    """Make the report.

    Args:
        body: Content of `sweep.json`, finished or not.

    Returns:
        A whole HTML document with inline style and figures; no script, no link to the network.
    """
    from markupsafe import Markup  # noqa: PLC0415

    drawn = {picture.name: picture.page() for picture in sweep_pictures(body)}
    rows = body["configurations"]
    return render_page(
        "sweep.html",
        filters={
            "seconds": show_seconds,
            "bytes": memory_size,
            "count": _count,
            "score": lambda value: show_number(body, value),
            "difference": lambda value: _signed(body, value),
        },
        body=body,
        unit=" %" if _scale(body) == 100 else "",
        heads=_heads([axis["name"] for axis in body["axes"]]),
        rows=rows[:_ROWS],
        folded=rows[_ROWS:],
        not_set=NOT_SET,
        costs=[name for name, _ in _COSTS],
        counts={status: sum(trial["status"] == status for trial in body["trials"]) for status in _STATUSES},
        compared=any(row["difference"] for row in rows),
        repeated=len(body["seeds"]) > 1,
        figures={name: Markup(svg) for name, svg in drawn.items()},  # noqa: S704  (our own SVG, text escaped there)
    )


def _heads(names: Sequence[str]) -> dict[str, str]:
    """Axis -> its name without the section, where that stays unique."""
    short = {name: name.partition(".")[2] or name for name in names}
    return {name: one if list(short.values()).count(one) == 1 else name for name, one in short.items()}


_STATUSES = ("finished", "failed", "pruned", "waiting")


def show_number(body: Mapping[str, Any], value: float) -> str:
    """A score in the unit of the sweep, without it."""
    return f"{_scale(body) * value:.2f}"


def _signed(body: Mapping[str, Any], value: float) -> str:
    return f"{_scale(body) * value:+.2f}".replace("-", "\u2212")


def _scale(body: Mapping[str, Any]) -> float:
    return 100.0 if body["unit"] == "fraction" else 1.0


def _count(number: float) -> str:
    return f"{number:,.0f}".replace(",", "\u202f")


def _label(body: Mapping[str, Any]) -> str:
    return f"{body['title']} on data.eval{', %' if _scale(body) == 100 else ''}"


# --- figures -----------------------------------------------------------------------------------------


def sweep_pictures(body: Mapping[str, Any]) -> list[Picture]:
    """The figures that the content of a `sweep.json` allows: `parallel`, `importance`, and a `cost_...` for each."""
    rows = body["configurations"]
    found = []
    if len(rows) > 1:
        found.append(_parallel(body, rows))
        found += [_cost(body, rows, name, label) for name, label in _COSTS if len({row[name] for row in rows}) > 1]
    if body["importance"] and body["importance"]["values"]:
        found.append(_importance(body["importance"]))
    return found


def _parallel(body: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Picture:
    """A line for each configuration through its values and its score; the best stand out."""
    columns = [_column(axis, rows) for axis in body["axes"]]
    columns.append(_score_column(body, rows))
    gap = 150.0
    left, right, top, bottom = 80.0, 90.0, 36.0, 16.0
    width = max(1000.0, left + right + gap * (len(columns) - 1))
    step = (width - left - right) / max(1, len(columns) - 1)
    height = 300.0
    size = (width / 100, (height + top + bottom) / 100)

    def draw(figure: Figure, palette: Palette) -> Mapping[str, str]:
        axes = canvas(figure, size)
        places = [left + step * index for index in range(len(columns))]
        for place, (name, ticks, _) in zip(places, columns, strict=True):
            axes.plot([place, place], [top, top + height], color=palette.line, linewidth=1.2, zorder=1)
            axes.text(place, top - 14, elide(shown(name), 24), fontsize=points(11), color=palette.ink, ha="center")
            for where, text in ticks:
                axes.plot([place - 3, place + 3], [top + height * (1 - where)] * 2, color=palette.faint, linewidth=1)
                axes.text(
                    place + 6,
                    top + height * (1 - where),
                    elide(shown(text), _LABEL),
                    fontsize=points(10),
                    color=palette.faint,
                    va="center",
                    zorder=4,
                    bbox={"facecolor": palette.card, "edgecolor": "none", "alpha": 0.75, "pad": 1},
                )
        notes = {}
        leading = max(1, len(rows) // 10)
        for index, row in reversed(list(enumerate(rows))):  # the best is drawn last, over the others
            colour = palette.series[1] if index < leading else palette.series[0]
            heights = [top + height * (1 - place_of(row)) for _, _, place_of in columns]
            axes.plot(
                places,
                heights,
                color=colour,
                linewidth=2.4 if index == 0 else 1.2,
                alpha=1.0 if index < leading else 0.45,
                zorder=3 if index < leading else 2,
                gid=f"parallel-{index}",
            )
            notes[f"parallel-{index}"] = _sentence(body, row)
        return notes

    title = f"Values of every configuration and its {body['title']}"
    return Picture(name="parallel", title=title, size=size, draw=draw, exact=True)


Column = tuple[str, list[tuple[float, str]], Callable[[Mapping[str, Any]], float]]
"""Name, ticks (place from 0, below, to 1; text), and the place of a configuration."""


def _column(axis: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Column:
    name = axis["name"]
    found = list(dict.fromkeys(row["values"].get(name, NOT_SET) for row in rows))
    if axis["numeric"] and NOT_SET not in found and len(found) > _LISTED:
        scale: Callable[[float], float] = math.log if axis["log"] else float
        low, high = (scale(pick(float(value) for value in found)) for pick in (min, max))
        middle = math.exp((low + high) / 2) if axis["log"] else (low + high) / 2
        ends = [math.exp(low), math.exp(high)] if axis["log"] else [low, high]
        ticks = [(0.0, f"{ends[0]:.3g}"), (0.5, f"{middle:.3g}"), (1.0, f"{ends[1]:.3g}")]
        return name, ticks, lambda row: (scale(float(row["values"][name])) - low) / ((high - low) or 1.0)
    if axis["numeric"]:
        found.sort(key=lambda value: (value == NOT_SET, float(value) if value != NOT_SET else 0.0))
    places = {value: (index + 0.5) / len(found) for index, value in enumerate(found)}
    return (
        name,
        [(place, value) for value, place in places.items()],
        lambda row: places[row["values"].get(name, NOT_SET)],
    )


def _score_column(body: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Column:
    """Scores, the best on top."""
    sign = better_sign(body["better"])
    worst, best = (sign * pick(sign * row["value"] for row in rows) for pick in (max, min))
    ticks = [(place, show_number(body, worst + place * (best - worst))) for place in (0.0, 0.5, 1.0)]
    name = f"{body['title']}{', %' if _scale(body) == 100 else ''}"
    return name, ticks, lambda row: (row["value"] - worst) / (best - worst) if best != worst else 0.5


def _sentence(body: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    values = ", ".join(f"{name} {value}" for name, value in row["values"].items())
    low, high = (show_number(body, row[end]) for end in ("low", "high"))
    return f"{values}: {body['title']} {show_number(body, row['value'])} [{low}, {high}]"


def _cost(body: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], name: str, label: str) -> Picture:
    """Score over a cost. Filled points are on the Pareto front: no other is as good in both and better in one."""
    scale = 2**-20 if name == "peak_bytes" else 1.0

    def draw(figure: Figure, palette: Palette) -> Mapping[str, str]:
        axes = plain_axes(figure)
        notes = {}
        front = sorted((row for row in rows if name in row["pareto"]), key=lambda row: float(row[name]))
        axes.plot(
            [row[name] * scale for row in front],
            [_scale(body) * row["value"] for row in front],
            color=palette.series[1],
            linewidth=1,
            drawstyle="steps-post",
        )
        for index, row in enumerate(rows):
            colour = palette.series[1] if name in row["pareto"] else palette.series[0]
            cost = row[name] * scale
            ends = [_scale(body) * row[end] for end in ("low", "high")]
            axes.plot([cost, cost], ends, color=colour, linewidth=1, alpha=0.4)
            axes.plot(
                [cost],
                [_scale(body) * row["value"]],
                color=colour,
                marker="o",
                markersize=5.5,
                markerfacecolor=colour if name in row["pareto"] else palette.card,
                linestyle="none",
                gid=f"cost-{name}-{index}",
            )
            notes[f"cost-{name}-{index}"] = _sentence(body, row)
        costs = [row[name] for row in rows]
        if name == "parameters" and max(costs) > 3 * min(costs) > 0:
            log_scale(axes)
        axes.set_xlabel(label)
        axes.set_ylabel(_label(body))
        return notes

    title = f"{body['title']} over {label.partition(',')[0]}"
    return Picture(name=f"cost_{name}", title=title, size=(4.6, 2.9), draw=draw)


def _importance(found: Mapping[str, Any]) -> Picture:
    values = sorted(
        ((name, value) for name, value in found["values"].items() if value is not None),
        key=lambda pair: pair[1],
        reverse=True,
    )

    def draw(figure: Figure, palette: Palette) -> Mapping[str, str]:
        axes = plain_axes(figure)
        axes.barh(range(len(values)), [value for _, value in values], color=palette.series[1], height=0.55)
        for index, (_, value) in enumerate(values):
            axes.annotate(
                f"{value:.2f}", (value, index), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.set_yticks(range(len(values)), [elide(shown(name), 36) for name, _ in values])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_xlim(0, 1.08)
        axes.set_xlabel(found["method"])
        axes.grid(visible=False, axis="y")
        return {}

    return Picture(
        name="importance",
        title=f"Importance of each axis: {found['method']}",
        size=(6.4, 0.8 + 0.32 * len(values)),
        draw=draw,
    )
