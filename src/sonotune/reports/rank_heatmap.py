"""Pictures of how an adapter's parameters are spent: a rank in every cell, and the budget by group.

`heat_map` draws any number that modules have: layers from left to right, what a module is from top to bottom, one panel
for each stack of the model. It stays readable with 64 layers of ten modules each.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sonotune.errors import AdapterError
from sonotune.json_files import Count, Number, read_json
from sonotune.reports.canvas import Palette, Picture, canvas, count_letters, elide, points, save, shown
from sonotune.reports.entropies import entropy_distributions, entropy_over_time
from sonotune.reports.module_names import Panel, arrange
from sonotune.wording import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST = 4
"""Fewer ranks than this are said by the table of the report."""

_BY_EFFECTIVE_RANK = ("entropy", "shuffled")
"""Allocators whose evidence is effective ranks; that of others is a score."""

_WIDTH = 1000.0  # of the widest card of the page, in CSS pixels; more layers than fit are scrolled
_CELL_HEIGHT, _WIDEST_CELL, _NARROWEST_CELL = 20.0, 36.0, 9.0
_FONT, _LABEL_FONT, _TITLE_FONT, _SMALLEST_FONT = 10.0, 11.0, 13.0, 7.0
_LETTER = 0.64  # mean width of a letter in font sizes, of the widest fonts that may draw it
_LETTERS_OF_A_LABEL, _LETTERS_OF_A_TITLE = 34, 50
_GAP, _HEADER, _TICKS = 8.0, 26.0, 15.0
_BAR_WIDTH, _BAR_HEIGHT, _BAR_STEPS = 240.0, 12.0, 48
_FAINTEST = 0.16  # the least value must still differ from an absent cell
_DARK = 0.72  # from this opacity on, numbers stand in the colour of the card
_WIDEST_RANGE = 256  # numbers of layers further apart than this are drawn without the absent ones between them
_LOGARITHMIC = 20.0  # ratio of the ends from which a logarithmic scale shows more


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """How a value becomes the opacity of a cell."""

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, values: Iterable[float], *, log: bool | None) -> _Scale:
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(finite), max(finite)
        wanted = high > _LOGARITHMIC * low if log is None else log
        return cls(low=low, high=high, log=wanted and low > 0)

    def opacity(self, value: float) -> float:
        low, high, value = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        share = (value - low) / (high - low) if high > low else 0.5
        return _FAINTEST + (1 - _FAINTEST) * share

    def at(self, share: float) -> float:
        """The value that stands at a share of the colour bar."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + share * (high - low)  # a ratio of the ends could be infinite
        return math.exp(value) if self.log else value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sheet:
    """Everything a heat map is drawn from, lengths in CSS pixels."""

    panels: tuple[Panel, ...]
    values: Mapping[str, float]
    layers: tuple[int, ...]
    unit: str
    scale: _Scale
    decimals: int | None
    margin: float
    cell: float
    font: float

    @property
    def legend(self) -> str:
        """What stands beside the colour bar."""
        return f"{self.unit}, logarithmic colours" if self.scale.log else self.unit

    @property
    def width(self) -> float:
        titles = [
            _after_title(panel, self.margin) + count_letters(_summary(panel, self)) * _LABEL_FONT * _LETTER
            for panel in self.panels
        ]
        grid = self.margin + max(len(self.layers) * self.cell, _WIDEST_CELL)
        bar = self.margin + _BAR_WIDTH + 3 * _GAP + count_letters(self.legend) * _LABEL_FONT * _LETTER
        return max(grid, *titles, bar) + 2 * _GAP

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        return self.width / 100, self.height / 100

    @property
    def height(self) -> float:
        heads = sum(_HEADER + (_TICKS if panel.layers else 0.0) + _GAP for panel in self.panels)
        return heads + sum(len(panel.kinds) for panel in self.panels) * _CELL_HEIGHT + _BAR_HEIGHT + _TICKS + 3 * _GAP


def heat_map(
    values: Mapping[str, float],
    *,
    name: str = "ranks",
    title: str = "Rank of every adapter",
    unit: str = "rank",
    log: bool | None = None,
) -> Picture:
    """Draw a number for every module: layers x kinds, one panel for each stack of layers.

    Args:
        values: Full module name -> rank, effective rank or score. One that is not finite is drawn as a question mark.
        name: Unique in the page, and the name of the files.
        title: What the picture says.
        unit: What the numbers are.
        log: Whether colours follow the logarithm; None decides by the range.

    Raises:
        AdapterError: There is no module to draw, or a value is not a number.
    """
    numbers = {module: _number(module, value) for module, value in values.items()}
    if not numbers:
        raise AdapterError(
            f"a heat map of {unit} needs at least one module, and there is none. Give the ranks of a run that trained "
            "adapters (adapter.kind=lora), or what `sonotune allocate` wrote."
        )
    sheet = _lay_out(numbers, unit, log)
    return Picture(
        name=name,
        title=title,
        size=sheet.size,
        draw=lambda figure, palette: _draw_sheet(figure, palette, sheet),
        exact=True,
    )


def budget_bar(groups: Mapping[str, float], *, budget: int | None = None, name: str = "budget") -> Picture:
    """Draw the adapter parameters of each group as parts of one bar, with a list of them beneath.

    Args:
        groups: Group -> adapter parameters.
        budget: Adapter parameters that could be spent; what is left of them is drawn empty.
        name: Unique in the page, and the name of the files.

    Raises:
        AdapterError: No group has a parameter, or a count is negative or not a number.
    """
    counts = {group: _number(group, count) for group, count in groups.items()}
    for group, count in counts.items():
        if not (math.isfinite(count) and count >= 0):
            raise AdapterError(f"group {group!r} has {count} adapter parameters; a count of 0 or more is needed.")
    used = math.fsum(counts.values())
    if not used:
        raise AdapterError(
            "a bar of the budget needs a group with adapter parameters, and there is none. Give the `groups` of what "
            "`sonotune allocate` wrote."
        )
    left = max(0.0, (budget or 0) - used)
    rows = [(group, count) for group, count in counts.items() if count] + ([("not spent", left)] if left else [])
    size = (5.2, (62 + 22 * len(rows)) / 100)
    return Picture(
        name=name,
        title="Adapter parameters by group",
        size=size,
        draw=lambda figure, palette: _draw_budget(canvas(figure, size), palette, rows, spare=bool(left)),
    )


def plan_pictures(plan: Mapping[str, Any]) -> list[Picture]:
    """What there is to see of a plan: ranks, the evidence they follow, and the budget.

    Args:
        plan: What `ranks.json` holds; parts that are missing or empty are left out.
    """
    ranks, evidence, groups = (_readable(plan.get(key)) for key in ("ranks", "evidence", "groups"))
    pictures = []
    if ranks:
        pictures.append(heat_map(ranks))
    if evidence:
        unit = "effective rank" if plan.get("allocator") in _BY_EFFECTIVE_RANK else "score"
        pictures.append(heat_map(evidence, name="evidence", title=f"What the ranks follow: {unit}", unit=unit))
    if any(groups.values()):
        budget = plan.get("budget")
        pictures.append(budget_bar(groups, budget=budget if isinstance(budget, int) else None))
    return pictures


def run_pictures(
    ranks: Mapping[str, int], events: Sequence[Mapping[str, Any]], plan: Mapping[str, Any] | None = None
) -> list[Picture]:
    """What a report shows of ranks and entropies; nothing where there is nothing.

    Args:
        ranks: Full module name -> rank.
        events: Lines of `events.jsonl`; read are those of kind `adapter_entropy` and `activation_entropy`.
        plan: What `ranks.json` holds.
    """
    pictures = plan_pictures({**(plan or {}), "ranks": ranks if len(ranks) >= FEWEST else {}})
    moments = {"before": dict[str, float](), "after": dict[str, float]()}
    for event in events:
        moment = event.get("moment")
        if event.get("kind") == "activation_entropy" and isinstance(moment, str) and moment in moments:
            moments[moment] = _readable(event.get("effective_rank"))
    if any(moments.values()):
        pictures.append(entropy_distributions(moments["before"], moments["after"]))
    for key in ("entropy", "effective_rank"):
        told = [event for event in events if event.get("kind") == "adapter_entropy" and _readable(event.get(key))]
        if told:
            pictures.append(entropy_over_time(told, key=key))
    heard = [event for event in events if event.get("kind") == "activation_entropy"]
    if any(event.get("moment") == "during" and _readable(event.get("effective_rank")) for event in heard):
        pictures.append(entropy_over_time(heard, key="effective_rank", kind="activation_entropy"))
    return pictures


def save_pictures(plan: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what there is to see of a plan, each picture as PNG and as SVG.

    Args:
        plan: What `ranks.json` holds.
        folder: Where the files go; made where missing.

    Returns:
        The files.

    Raises:
        AdapterError: It has nothing to draw.
        ResourceError: The disk is full.
        RunDirectoryError: The folder cannot be written.
    """
    pictures = plan_pictures(plan)
    if not pictures:
        raise AdapterError(
            "there is nothing to draw: no ranks, no evidence, no groups with parameters. Give what `sonotune allocate` "
            "wrote."
        )
    return save(pictures, folder)


class _Plan(TypedDict, total=False):
    """What is drawn of `ranks.json`."""

    allocator: str
    budget: Count | None
    ranks: dict[str, Number] | None
    evidence: dict[str, Number] | None
    groups: dict[str, Count] | None


_PLAN = TypeAdapter(_Plan)


def read_plan(path: Path) -> Mapping[str, Any]:
    """What a `ranks.json` holds.

    Raises:
        AdapterError: It is damaged.
    """
    return read_json(path, _PLAN, error=AdapterError, do="Run `sonotune allocate` again.")


def _readable(value: Any) -> dict[str, float]:
    """The numbers of a mapping from a file; a record of a newer version may hold other things."""
    if not isinstance(value, Mapping):
        return {}
    return {
        str(name): float(number)
        for name, number in value.items()
        if isinstance(number, int | float) and not isinstance(number, bool)
    }


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise AdapterError(f"{name} has {value!r}; a number is needed to draw it.") from error


# --- the heat map --------------------------------------------------------------------------------------------------


def _lay_out(values: Mapping[str, float], unit: str, log: bool | None) -> _Sheet:
    panels = arrange(values)
    layers = sorted({layer for panel in panels for layer in panel.layers})
    if layers and layers[-1] - layers[0] < _WIDEST_RANGE:
        layers = list(range(layers[0], layers[-1] + 1))
    finite = [value for value in values.values() if math.isfinite(value)]
    decimals = _decimals(finite)
    labels = ["layer", *(_label(kind, panel) for panel in panels for kind in panel.kinds)]
    margin = max(count_letters(label) for label in labels) * _LABEL_FONT * _LETTER + 2 * _GAP
    cell = max(_NARROWEST_CELL, min(_WIDEST_CELL, (_WIDTH - margin - 2 * _GAP) // max(1, len(layers))))
    letters = max((len(_written(value, decimals)) for value in values.values()), default=1)
    font = max(_SMALLEST_FONT, min(_FONT, (cell - 3) / (letters * _LETTER)))
    return _Sheet(
        panels=panels,
        values=values,
        layers=tuple(layers),
        unit=unit,
        scale=_Scale.of(values.values(), log=log),
        decimals=decimals,
        margin=margin,
        cell=cell,
        font=font,
    )


def _draw_sheet(figure: Figure, palette: Palette, sheet: _Sheet) -> dict[str, str]:
    axes, notes, top = canvas(figure, sheet.size), dict[str, str](), 0.0
    columns = {layer: sheet.margin + index * sheet.cell for index, layer in enumerate(sheet.layers)}
    for panel in sheet.panels:
        _write(axes, _GAP, top + _HEADER * 0.6, _title(panel), palette.ink, _TITLE_FONT, weight="bold")
        after = _after_title(panel, sheet.margin)
        _write(axes, after, top + _HEADER * 0.6, _summary(panel, sheet), palette.faint, _LABEL_FONT)
        top += _HEADER
        if panel.layers:
            own = {layer: left for layer, left in columns.items() if panel.layers[0] <= layer <= panel.layers[-1]}
            _draw_layer_numbers(axes, palette, sheet, own, top + _TICKS / 2)
            top += _TICKS
        for kind in panel.kinds:
            middle = top + _CELL_HEIGHT / 2
            _write(axes, sheet.margin - _GAP, middle, _label(kind, panel), palette.faint, _LABEL_FONT, ha="right")
            row = {layer: name for (layer, other), name in panel.cells.items() if other == kind}
            for layer, name in row.items():
                left = sheet.margin if layer is None else columns[layer]
                wide = _WIDEST_CELL if layer is None else sheet.cell
                gid = f"cell-{len(notes)}"
                notes[gid] = f"{shown(name)}: {sheet.unit} {sheet.values[name]:.6g}"
                _draw_cell(axes, palette, sheet, (left, top, wide), sheet.values[name], gid)
            top += _CELL_HEIGHT
        top += _GAP
    _draw_colour_bar(axes, palette, sheet, top + _GAP)
    return notes


def _draw_cell(
    axes: Axes, palette: Palette, sheet: _Sheet, place: tuple[float, float, float], value: float, gid: str
) -> None:
    left, top, wide = place
    opacity = sheet.scale.opacity(value) if math.isfinite(value) else 0.0
    _fill(axes, left + 0.5, top + 0.5, wide - 1, _CELL_HEIGHT - 1, palette.series[1], opacity, gid=gid)
    text = _written(value, sheet.decimals)
    if len(text) * sheet.font * _LETTER <= wide - 1:
        ink = palette.card if opacity >= _DARK else palette.ink
        _write(axes, left + wide / 2, top + _CELL_HEIGHT / 2, text, ink, sheet.font, ha="center")


def _draw_layer_numbers(
    axes: Axes, palette: Palette, sheet: _Sheet, columns: Mapping[int, float], middle: float
) -> None:
    _write(axes, sheet.margin - _GAP, middle, "layer", palette.faint, _FONT, ha="right")
    room = (len(str(sheet.layers[-1])) + 0.7) * _FONT * _LETTER
    step = next((step for step in (1, 2, 4, 5, 10, 20, 50, 100) if step * sheet.cell >= room), 100)
    for layer, left in columns.items():
        if sheet.layers.index(layer) % step == 0:
            _write(axes, left + sheet.cell / 2, middle, str(layer), palette.faint, _FONT, ha="center")


def _draw_colour_bar(axes: Axes, palette: Palette, sheet: _Sheet, top: float) -> None:
    scale, left = sheet.scale, sheet.margin
    flat = scale.high == scale.low
    steps, width = (1, _WIDEST_CELL) if flat else (_BAR_STEPS, _BAR_WIDTH)
    for index in range(steps):
        opacity = scale.opacity(scale.at((index + 0.5) / steps))
        _fill(axes, left + index * width / steps, top, width / steps, _BAR_HEIGHT, palette.series[1], opacity)
    middle = top + _BAR_HEIGHT + _TICKS / 2
    for share in (0.5,) if flat else (0.0, 0.5, 1.0):
        text = _written(scale.at(share), sheet.decimals, between=share == 0.5)
        side = {0.0: "left", 1.0: "right"}.get(share, "center")
        _write(axes, left + share * width, middle, text, palette.faint, _FONT, ha=side)
    _write(axes, left + width + _GAP, top + _BAR_HEIGHT / 2, sheet.legend, palette.faint, _LABEL_FONT)


def _title(panel: Panel) -> str:
    return elide(shown(panel.title), _LETTERS_OF_A_TITLE)


def _after_title(panel: Panel, margin: float) -> float:
    """Where the numbers beside a title begin: in line with the cells, or behind a title that is longer."""
    return max(margin, 3 * _GAP + count_letters(_title(panel)) * _TITLE_FONT * _LETTER)


def _label(kind: str, panel: Panel) -> str:
    return elide(shown(kind), _LETTERS_OF_A_LABEL) if kind else "itself"


def _summary(panel: Panel, sheet: _Sheet) -> str:
    values = [sheet.values[name] for name in panel.cells.values() if math.isfinite(sheet.values[name])]
    many = counted(len(panel.cells), "module")
    if not values:
        return many
    low, high = (_written(value, sheet.decimals) for value in (min(values), max(values)))
    middle = _written(statistics.median(values), sheet.decimals, between=True)
    return f"{many}, {sheet.unit} {low}" if low == high else f"{many}, {sheet.unit} {low} to {high}, median {middle}"


def _decimals(values: Sequence[float]) -> int | None:
    """Decimals that all values of a picture are written with; None where only powers of ten can tell them."""
    if all(value.is_integer() for value in values):
        return 0
    largest = max(map(abs, values))
    if not 1e-3 <= largest < 1e6:
        return None
    return 0 if largest >= 100 else 1 if largest >= 10 else 2 if largest >= 0.5 else 1 - math.floor(math.log10(largest))


def _written(value: float, decimals: int | None, *, between: bool = False) -> str:
    """A value as it stands in a cell; one between two values may need a decimal more."""
    if not math.isfinite(value):
        return "?"
    if decimals is None:
        return f"{value:.1e}"
    if between and decimals == 0 and abs(value) < 100:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.{decimals}f}"


# --- the budget ----------------------------------------------------------------------------------------------------


def _draw_budget(axes: Axes, palette: Palette, rows: Sequence[tuple[str, float]], *, spare: bool) -> dict[str, str]:
    notes: dict[str, str] = {}
    left, right, top, tall = 10.0, 510.0, 10.0, 30.0
    total = math.fsum(count for _, count in rows)
    start = left
    for index, (group, count) in enumerate(rows):
        empty = spare and index == len(rows) - 1
        colour = palette.line if empty else palette.series[1 + index % 5]
        opacity = 1.0 if empty or index < 5 else 0.55
        width, gid = (right - left) * count / total, f"group-{index}"
        notes[gid] = f"{shown(group)}: {count:.0f} parameters"
        _fill(axes, start, top, max(width - 1, 0.5), tall, colour, opacity, gid=gid)
        share = f"{100 * count / total:.0f} %"
        if width > len(share) * _LABEL_FONT * _LETTER + _GAP:
            ink = palette.ink if empty or opacity < _DARK else palette.card
            _write(
                axes,
                start + width / 2,
                top + tall / 2,
                share,
                ink,
                _LABEL_FONT,
                ha="center",
                weight="bold",
            )
        start += width
        middle = top + tall + 22 * (index + 1)
        _fill(axes, left, middle - 5, 10, 10, colour, opacity)
        _write(axes, left + 18, middle, elide(shown(group), _LETTERS_OF_A_LABEL), palette.ink, _LABEL_FONT + 1)
        figures = f"{count:,.0f}".replace(",", "\u202f")
        _write(axes, right - 64, middle, figures, palette.ink, _LABEL_FONT + 1, ha="right")
        _write(axes, right, middle, f"{100 * count / total:.1f} %", palette.faint, _LABEL_FONT + 1, ha="right")
    return notes


def _fill(
    axes: Axes, left: float, top: float, width: float, height: float, colour: str, opacity: float, *, gid: str = ""
) -> None:
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    patch = Rectangle((left, top), width, height, facecolor=colour, edgecolor="none", linewidth=0, alpha=opacity)
    patch.set_clip_on(False)
    patch.set_gid(gid or None)
    axes.add_artist(patch)


def _write(
    axes: Axes, x: float, y: float, text: str, colour: str, pixels: float, *, ha: str = "left", weight: str = "normal"
) -> None:
    axes.text(
        x,
        y,
        text,
        color=colour,
        fontsize=points(pixels),
        ha=ha,
        va="center_baseline",
        weight=weight,
        clip_on=False,
    )
