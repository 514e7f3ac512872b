"""Pictures of entropies: of activations before and after training, and of the adapters while they train."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sonotune.errors import AdapterError
from sonotune.reports.canvas import Palette, Picture, elide, plain_axes, shown
from sonotune.reports.module_names import group_titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_GROUPS = 5  # told apart by colour
_MOST_STEPS = 200
_WORST = 3
_FEW = 3  # modules whose middle half says nothing that their dots do not
_LETTERS_OF_A_GROUP, _LETTERS_OF_A_MODULE = 26, 58
_LOGARITHMIC = 20.0  # ratio of the ends from which a logarithmic axis shows more
_GOLDEN = 0.6180339887498949  # its multiples spread dots evenly, the same every time
_OTHERS = "others"
_UNITS = {
    ("adapter_entropy", "entropy"): "entropy of the adapter, share of its largest",
    ("adapter_entropy", "effective_rank"): "effective rank of the adapter",
    ("activation_entropy", "effective_rank"): "effective rank of the inputs",
}
_TITLES = {
    ("adapter_entropy", "entropy"): "Entropy of the adapters over steps",
    ("adapter_entropy", "effective_rank"): "Effective rank of the adapters over steps",
    ("activation_entropy", "effective_rank"): "Effective rank of the inputs over steps",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _History:
    """Values (S, M) of the modules at the steps; NaN where an event does not tell one."""

    steps: tuple[int, ...]
    names: tuple[str, ...]
    values: NDArray[np.float64]


def entropy_distributions(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    name: str = "activation_entropy",
    unit: str = "effective rank of activations",
) -> Picture:
    """Draw how a number spreads over the modules of each stack: a dot for a module, a line for the middle half.

    Args:
        before: Full module name -> number before training; may be empty.
        after: The same after training; may be empty.
        name: Unique in the page, and the name of the files.
        unit: What the numbers are.

    Raises:
        AdapterError: Neither has a finite number.
    """
    moments = {"before": _finite(before), "after": _finite(after)}
    if not any(moments.values()):
        raise AdapterError(
            f"a picture of the {unit} needs a finite number of at least one module, and there is none. "
            "Calibrate first: `sonotune allocate` with an allocator that looks at activations."
        )
    titles = group_titles([*before, *after])
    groups = [
        group
        for group in dict.fromkeys(titles.values())
        if any(titles[module] == group for numbers in moments.values() for module in numbers)
    ]
    told = [moment for moment, numbers in moments.items() if numbers]
    spreads = {moment: [_of_group(moments[moment], titles, group) for group in groups] for moment in told}
    return Picture(
        name=name,
        title=f"{unit.capitalize()}, {' and '.join(told)} training",
        size=(5.2, 1.0 + (0.28 + 0.24 * len(told)) * len(groups)),
        draw=lambda figure, palette: _draw_spreads(figure, palette, groups, spreads, unit),
    )


def entropy_over_time(
    events: Iterable[Mapping[str, Any]], *, key: str = "entropy", kind: str = "adapter_entropy"
) -> Picture:
    """Draw the median of each stack over steps with its 10 to 90 % band, and the modules that end lowest.

    Args:
        events: In any order; those of another kind are passed over. Of a repeated step the last counts.
        key: `entropy` (0 to 1, of adapters only) or `effective_rank`.
        kind: `adapter_entropy`, or `activation_entropy` for the inputs.

    Raises:
        AdapterError: No event tells a finite number of a module.
    """
    if (kind, key) not in _UNITS:
        allowed = " and ".join(of_kind for named, of_kind in _UNITS if named == kind) or "none"
        raise AdapterError(f"{kind} has no {key!r} to draw over steps; allowed: {allowed}.")
    history = _read(events, kind, key)
    if history is None:
        raise AdapterError(
            f"a picture of the {_UNITS[kind, key]} needs an event of kind {kind} with a finite number, and there is "
            "none. Give the events of a run that trained adapters."
        )
    groups = _groups(history.names)
    worst = _worst(history)
    rows = len(groups) + len(worst)
    return Picture(
        name=f"{kind.removesuffix('_entropy')}_{key}",
        title=_TITLES[kind, key],
        size=(5.2, 2.7 + 0.17 * rows),
        draw=lambda figure, palette: _draw_history(figure, palette, history, groups, worst, key),
    )


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if _is_number(value)}


def _of_group(numbers: Mapping[str, float], titles: Mapping[str, str], group: str) -> list[float]:
    return sorted(value for module, value in numbers.items() if titles[module] == group)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# --- before and after ----------------------------------------------------------------------------------------------


def _draw_spreads(
    figure: Figure,
    palette: Palette,
    groups: Sequence[str],
    spreads: Mapping[str, Sequence[Sequence[float]]],
    unit: str,
) -> dict[str, str]:
    axes = plain_axes(figure)
    colours = {"before": palette.series[0], "after": palette.series[1]}
    for place, (moment, rows) in enumerate(spreads.items()):
        offset = (place - (len(spreads) - 1) / 2) * 0.4
        axes.plot([], [], color=colours[moment], marker="o", linewidth=4, label=moment)
        for index, numbers in enumerate(rows):
            if numbers:
                _draw_spread(axes, palette, numbers, index + offset, colours[moment])
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, fontsize=8, borderaxespad=0.2)
    axes.annotate("median", (1.0, 1.0), xytext=(6, 5), xycoords="axes fraction", textcoords="offset points", fontsize=8)
    axes.set_yticks(range(len(groups)), [elide(shown(group), _LETTERS_OF_A_GROUP) for group in groups])
    axes.set_ylim(len(groups) - 0.45, -0.55)
    _set_scale(axes, [number for rows in spreads.values() for numbers in rows for number in numbers])
    axes.set_xlabel(unit)
    axes.grid(visible=False, axis="y")
    return {}


def _draw_spread(axes: Axes, palette: Palette, numbers: Sequence[float], height: float, colour: str) -> None:
    heights = [height + 0.3 * ((index * _GOLDEN) % 1 - 0.5) for index in range(len(numbers))]
    if len(numbers) > 1:
        axes.plot(
            numbers, heights, linestyle="none", marker="o", markersize=2.6, markeredgewidth=0, color=colour, alpha=0.45
        )
    low, middle, high = np.quantile(numbers, [0.25, 0.5, 0.75]).tolist()
    if len(numbers) > _FEW:
        axes.plot([low, high], [height, height], color=colour, linewidth=4, alpha=0.55, solid_capstyle="round")
    axes.plot([middle], [height], color=colour, marker="o", markersize=7, markeredgecolor=palette.card)
    axes.annotate(
        f"{middle:.3g}" if middle < 1000 else f"{middle:.0f}",
        (1.0, height),
        xytext=(6, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        va="center",
        fontsize=8,
    )


def _set_scale(axes: Axes, numbers: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator  # noqa: PLC0415

    low, high = min(numbers), max(numbers)
    if low > 0 and high > _LOGARITHMIC * low:
        axes.set_xscale("log")
        # matplotlib would write the powers as mathematics, which a page cannot show.
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high > 100 * low else (1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
    elif low >= 0:
        axes.set_xlim(0.0, (high or 1.0) * 1.05)


# --- over steps ----------------------------------------------------------------------------------------------------


def _read(events: Iterable[Mapping[str, Any]], kind: str, key: str) -> _History | None:
    told: dict[int, dict[str, float]] = {}
    for event in events:
        step, values = event.get("step"), event.get(key)
        if event.get("kind") == kind and isinstance(step, int) and isinstance(values, Mapping):
            told[step] = {str(name): float(value) for name, value in values.items() if _is_number(value)}
    steps = sorted(step for step, values in told.items() if values)
    if not steps:
        return None
    if len(steps) > _MOST_STEPS:
        steps = [steps[round(place)] for place in np.linspace(0, len(steps) - 1, _MOST_STEPS)]
    names = tuple(dict.fromkeys(name for step in steps for name in told[step]))
    values_SM = np.array([[told[step].get(name, math.nan) for name in names] for step in steps], dtype=np.float64)
    return _History(steps=tuple(steps), names=names, values=values_SM)


def _groups(names: Sequence[str]) -> dict[str, list[int]]:
    """Title -> places of its modules: the largest stacks by themselves, all others together."""
    groups: dict[str, list[int]] = {}
    titles = group_titles(names)
    for index, name in enumerate(names):
        groups.setdefault(titles[name], []).append(index)
    if len(groups) <= _MOST_GROUPS:
        return groups
    largest = sorted(groups, key=lambda title: -len(groups[title]))[: _MOST_GROUPS - 1]
    kept = {title: places for title, places in groups.items() if title in largest}
    rest = [place for title, places in groups.items() if title not in largest for place in places]
    return kept | {_OTHERS: sorted(rest)}


def _worst(history: _History) -> list[int]:
    """Places of the modules that stand lowest at the last step, the lowest first."""
    last_M = history.values[-1]
    places: list[int] = np.flatnonzero(np.isfinite(last_M)).tolist()
    return sorted(places, key=lambda place: float(last_M[place]))[:_WORST]


def _draw_history(
    figure: Figure,
    palette: Palette,
    history: _History,
    groups: Mapping[str, Sequence[int]],
    worst: Sequence[int],
    key: str,
) -> dict[str, str]:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    axes, steps = plain_axes(figure), list(history.steps)
    single = "o" if len(steps) == 1 else None
    for colour, (title, places) in zip(palette.series[1:], groups.items(), strict=False):
        low_S, middle_S, high_S = _band(history.values[:, places])
        label = f"{elide(shown(title), _LETTERS_OF_A_MODULE)}, median of {len(places)}"
        axes.plot(steps, middle_S, color=colour, label=label, marker=single, markersize=5)
        axes.fill_between(steps, low_S, high_S, color=colour, alpha=0.15, linewidth=0)
    for dashes, place in zip(((1, 1.2), (4, 1.5), (6, 1.5, 1, 1.5)), worst, strict=False):
        values_S = history.values[:, place]
        label = f"{elide(shown(history.names[place]), _LETTERS_OF_A_MODULE)}: {values_S[-1]:.3g}"
        axes.plot(
            steps, values_S, color=palette.faint, linewidth=1.1, dashes=dashes, label=label, marker=single, markersize=3
        )
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10]))
    axes.set_ylim(bottom=0.0, top=1.03 if key == "entropy" else None)
    axes.set_xlabel("step")
    axes.set_ylabel("entropy, share of the largest" if key == "entropy" else "effective rank")
    figure.legend(loc="outside lower left", fontsize=8, labelspacing=0.3, handlelength=2.6)
    return {}


def _band(values_SG: NDArray[np.float64]) -> tuple[list[float], list[float], list[float]]:
    """10, 50 and 90 % quantiles at each step over the modules that are told; NaN where none is."""
    rows = [values_G[np.isfinite(values_G)] for values_G in values_SG]
    nothing = (math.nan, math.nan, math.nan)
    bands = [tuple(np.quantile(row, [0.1, 0.5, 0.9]).tolist()) if row.size else nothing for row in rows]
    low, middle, high = (list(column) for column in zip(*bands, strict=True))
    return low, middle, high
