"""Figures of a run as inline SVG: curves, estimates and bars. See `picture` for what all of them share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sonotune.reports.canvas import PAGE, Palette, Picture, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SERIES = PAGE.series
_LINES = _SERIES[1:]  # the first is grey, for what stands before; lines begin with the accent
_MAX_POINTS = 400
"""More points than a figure has pixels only make the file large; above this, neighbours are averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a curve.

    Attributes:
        label: Its name in the legend.
        x: Steps.
        y: Values; NaN leaves a gap.
        low: Lower ends of the intervals, or nothing.
        high: Upper ends of the intervals, or nothing.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One score with its interval, in the unit it is shown in."""

    label: str
    value: float
    low: float
    high: float


def curve(
    name: str,
    series: Sequence[Series],
    *,
    y_label: str,
    title: str,
    log: bool = False,
    zero: bool = False,
    markers: bool = False,
    x_label: str = "step",
) -> str:
    """Lines over steps, or over another quantity that rises.

    Args:
        name: Unique in the page: element ids begin with it.
        series: Five lines are told apart by colour; more use the colours again.
        y_label: Label of the value axis, with the unit.
        title: What the figure says, for people who cannot see it.
        log: Logarithmic values.
        zero: Begin the value axis at zero.
        markers: Mark the points, for few of them.
        x_label: What the lines run over; steps are whole numbers.

    Returns:
        An `<svg>` element.
    """
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    def draw(axes: Axes) -> None:
        for index, line in enumerate(series):
            colour = _LINES[index % len(_LINES)]
            x, y = _thin(line.x, line.y)
            marker = "o" if markers or len(x) == 1 else None
            axes.plot(x, y, color=colour, label=line.label, marker=marker, markersize=4)
            if len(line.low) == len(line.x) == len(line.high):
                axes.fill_between(list(line.x), list(line.low), list(line.high), color=colour, alpha=0.15, linewidth=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=x_label == "step", steps=[1, 2, 5, 10]))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if log and any(value > 0 for line in series for value in line.y):
            axes.set_yscale("log")
        elif zero:
            axes.set_ylim(bottom=0)
        if len(series) > 1:
            axes.legend(loc="best", fontsize=8)

    return _render(name, draw, title=title, size=(5.2, 2.7))


def estimates(name: str, rows: Sequence[Estimate], *, x_label: str, title: str) -> str:
    """Scores as points with intervals, one row each, the first on top.

    Args:
        name: Unique in the page.
        rows: Scores that share an axis.
        x_label: Label of the axis, with the unit.
        title: What the figure says, for people who cannot see it.

    Returns:
        An `<svg>` element.
    """

    def draw(axes: Axes) -> None:
        for index, row in enumerate(rows):
            colour = _SERIES[index % len(_SERIES)]
            axes.plot(
                [row.low, row.high], [index, index], color=colour, linewidth=3, alpha=0.45, solid_capstyle="round"
            )
            axes.plot([row.value], [index], color=colour, marker="o", markersize=7)
            axes.annotate(
                f"{row.value:.1f}",
                (row.value, index),
                xytext=(0, 8),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.7)
        axes.set_xlim(left=0, right=max(1.0, max(row.high for row in rows) * 1.06))
        axes.set_xlabel(x_label)
        axes.grid(visible=False, axis="y")

    return _render(name, draw, title=title, size=(5.2, 0.95 + 0.45 * len(rows)))


def bars(name: str, values: Mapping[str, float], *, x_label: str, title: str) -> str:
    """Horizontal bars, the first on top, such as seconds by phase."""

    def draw(axes: Axes) -> None:
        labels, widths = list(values), list(values.values())
        axes.barh(range(len(labels)), widths, color=_SERIES[1], height=0.6)
        for index, width in enumerate(widths):
            axes.annotate(
                f"{width:,.3g}", (width, index), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlim(0, (max(widths) or 1.0) * 1.14)
        axes.set_xlabel(x_label)
        axes.grid(visible=False, axis="y")

    return _render(name, draw, title=title, size=(5.2, 0.8 + 0.3 * len(values)))


def _thin(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Average neighbours until at most `_MAX_POINTS` are left; a group holding a NaN keeps its numbers."""
    if len(x) <= _MAX_POINTS:
        return list(x), list(y)
    groups = np.array_split(np.arange(len(x)), _MAX_POINTS)
    x_N, y_N = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    thin_y = []
    for group in groups:
        finite = y_N[group][np.isfinite(y_N[group])]
        thin_y.append(float(finite.mean()) if finite.size else math.nan)
    return [float(x_N[group].mean()) for group in groups], thin_y


def _render(name: str, draw: Callable[[Axes], None], *, title: str, size: tuple[float, float]) -> str:
    def on(figure: Figure, palette: Palette) -> Mapping[str, str]:
        draw(plain_axes(figure))
        return {}

    return Picture(name=name, title=title, size=size, draw=on).page()
