"""The report of an ablation: one HTML file made of `ablation.json` alone, that opens offline and can be mailed.

The same content gives the same bytes. All text is escaped: names of arms and errors are data.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sonotune.metrics.scores import better_sign, in_percent, score_title, show_value, shown_number, shown_unit
from sonotune.reports.canvas import Palette, Picture, log_scale, plain_axes
from sonotune.reports.page import render_page
from sonotune.reports.record import show_seconds
from sonotune.wording import memory_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OUTCOMES = {"no difference": 0, "worse": 2, "better": 3}  # places in the palette: grey, warm, green
_MARKERS = "osD^vPX*"
_SAME_TIME = 0.05  # of two runs on a shared machine
_COSTS: tuple[tuple[str, str], ...] = (
    ("parameters", "trainable parameters"),
    ("peak_bytes", "peak memory, MiB"),
    ("seconds", "time of a run, seconds with calibration and scoring"),
)


def build_ablation_html(body: Mapping[str, Any]) -> str:
    """Make the report.

    Args:
        body: Content of `ablation.json`.

    Returns:
        A whole HTML document with inline style and figures; no script, no link to the network.
    """
    from markupsafe import Markup  # noqa: PLC0415

    arms = arm_table(body)
    drawn = {picture.name: picture.page() for picture in ablation_pictures(body)}
    return render_page(
        "ablation.html",
        filters={
            "seconds": show_seconds,
            "bytes": memory_size,
            "value": partial(_value, body=body),
            "count": _count,
            "end": _end,
        },
        body=body,
        score=_called(body),
        unit=", pp" if in_percent(_score(body)) else f", {shown}" if (shown := shown_unit(_score(body))) else "",
        arms=arms,
        comparisons=[row for row in body["comparisons"] if "error" not in row],
        figures={name: Markup(svg) for name, svg in drawn.items()},  # noqa: S704  (our own SVG, text escaped there)
        warnings=_warnings(body),
        dominated=[row["name"] for row in arms if row["dominated_by"]],
    )


def arm_table(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row an arm, in the order of the ablation.

    Returns:
        `name`, `about`, `words`, `learning_rate`, `runs` (seed and score on the test clips of every run at the chosen
        rate), their `mean` and `sd` (None for a single run), the `parameters` and `peak_bytes` of a run (means) and its
        `seconds` (median), and `dominated_by`: names of arms that score at least as well with no more parameters and no
        more time, and are better in one of the three; times within 5 % are the same.
    """
    rows = []
    for arm in body["arms"]:
        trials = [
            trial
            for trial in body["trials"]
            if trial["arm"] == arm["name"]
            and trial["status"] == "finished"
            and trial["learning_rate"] == arm["learning_rate"]
            and trial["seed"] in arm["seeds"]
        ]
        runs = [{"seed": trial["seed"], "value": trial["scores"]["test"][body["score"]]["value"]} for trial in trials]
        values = [run["value"] for run in runs]
        means = {
            name: math.fsum(trial[name] for trial in trials) / len(trials) if trials else None
            for name in ("parameters", "peak_bytes")
        }
        # The first run of a process pays for its imports, and others for what else the machine did.
        means["seconds"] = statistics.median(trial["seconds"] for trial in trials) if trials else None
        rows.append(
            {
                **{name: arm[name] for name in ("name", "about", "words", "learning_rate", "at_edge")},
                "runs": runs,
                "mean": math.fsum(values) / len(values) if values else None,
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                **means,
                "dominated_by": [],
            }
        )
    for row in rows:
        row["dominated_by"] = [other["name"] for other in rows if _dominates(other, row, _sign(body))]
    return rows


def _score(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The score that is compared, of any finished trial, which says what it is called and which direction is better."""
    found = (trial["scores"]["test"].get(body["score"]) for trial in body["trials"] if trial["status"] == "finished")
    return next((score for score in found if score), {})


def _called(body: Mapping[str, Any]) -> str:
    return score_title(body["score"], _score(body))


def _sign(body: Mapping[str, Any]) -> int:
    return better_sign(_score(body).get("better", "lower"))


def _dominates(one: Mapping[str, Any], other: Mapping[str, Any], sign: int) -> bool:
    if one["mean"] is None or other["mean"] is None:
        return False
    left, right = ([sign * row["mean"], row["parameters"], row["seconds"]] for row in (one, other))
    if abs(left[2] - right[2]) <= _SAME_TIME * right[2]:
        left[2] = right[2]
    return all(a <= b for a, b in zip(left, right, strict=True)) and left != right


def _warnings(body: Mapping[str, Any]) -> list[str]:
    found = [warning for row in body["comparisons"] for warning in row.get("warnings", ())]
    return [*dict.fromkeys(found), *body["notes"]]


# --- figures -----------------------------------------------------------------------------------------


def ablation_pictures(body: Mapping[str, Any]) -> list[Picture]:
    """The figures that the content of an `ablation.json` allows: `rates`, `differences`, and a `cost_...` for each."""
    found = []
    if curves := _rate_curves(body):
        found.append(_rates(curves, body))
    if compared := [row for row in body["comparisons"] if "error" not in row]:
        found.append(_differences(compared, body))
    scored = [row for row in arm_table(body) if row["mean"] is not None]
    # In one process the peak of a run is at least that of those before it: nothing to compare.
    costs = [cost for cost in _COSTS if cost[0] != "peak_bytes" or body["own_processes"]]
    return found + [_costs(scored, name, label, body) for name, label in costs if scored]


def _rate_curves(body: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Arm -> points (learning rate, score on the development clips as it is shown), rising."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for trial in body["trials"]:
        if trial["seed"] == body["seeds"][0] and trial["score"] is not None:
            shown = shown_number(_score(body), trial["score"])
            curves.setdefault(trial["arm"], []).append((trial["learning_rate"], shown))
    return {arm: sorted(points) for arm, points in curves.items()}


def _rates(curves: Mapping[str, Sequence[tuple[float, float]]], body: Mapping[str, Any]) -> Picture:
    def draw(figure: Figure, palette: Palette) -> Mapping[str, str]:
        axes = plain_axes(figure)
        places = {arm["name"]: index for index, arm in enumerate(body["arms"])}
        for arm, points in curves.items():
            index = places[arm]
            axes.plot(
                [rate for rate, _ in points],
                [score for _, score in points],
                label=arm,
                markersize=4,
                linestyle=("-", "--", ":")[index // len(palette.series) % 3],
                **_look(index, palette),
            )
        log_scale(axes)
        axes.set_xlabel("learning rate")
        axes.set_ylabel(_axis(f"{_called(body)} on data.eval", body))
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
        return {}

    title = f"{_called(body)} on data.eval over the learning rate"
    return Picture(name="rates", title=title, size=(6.4, max(2.9, 0.6 + 0.19 * len(curves))), draw=draw)


def _differences(rows: Sequence[Mapping[str, Any]], body: Mapping[str, Any]) -> Picture:
    """Differences from the baseline with intervals, the first on top."""

    def draw(figure: Figure, palette: Palette) -> Mapping[str, str]:
        axes = plain_axes(figure)
        axes.axvline(0, color=palette.faint, linewidth=0.8)
        for index, row in enumerate(rows):
            colour = palette.series[_OUTCOMES[row["outcome"]]]
            low, value, high = (shown_number(row, row[key]) for key in ("low", "value", "high"))
            axes.plot([low, high], [index, index], color=colour, linewidth=3, alpha=0.45, solid_capstyle="round")
            axes.plot([value], [index], color=colour, marker="o", markersize=6)
        axes.set_yticks(range(len(rows)), [row["arm"] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        unit = "percentage points" if in_percent(rows[0]) else shown_unit(rows[0])
        axes.set_xlabel(f"{_called(body)} minus that of {body['baseline']}{', ' * bool(unit)}{unit}")
        axes.grid(visible=False, axis="y")
        return {}

    title = f"Differences from {body['baseline']} with 95 % intervals"
    return Picture(name="differences", title=title, size=(6.4, 0.9 + 0.3 * len(rows)), draw=draw)


def _costs(rows: Sequence[Mapping[str, Any]], name: str, label: str, body: Mapping[str, Any]) -> Picture:
    """Score over a cost; arms that another beats in both are hollow."""
    scale = 2**-20 if name == "peak_bytes" else 1.0
    sign = _sign(body)
    points = [(sign * row["mean"], row[name]) for row in rows]
    beaten = [any(a <= mine[0] and b <= mine[1] and (a, b) != mine for a, b in points) for mine in points]

    def draw(figure: Figure, palette: Palette) -> Mapping[str, str]:
        axes = plain_axes(figure)
        places = {arm["name"]: index for index, arm in enumerate(body["arms"])}
        for index, row in enumerate(rows):
            look, cost = _look(places[row["name"]], palette), row[name] * scale
            values = [shown_number(_score(body), run["value"]) for run in row["runs"]]
            axes.plot([cost, cost], [min(values), max(values)], color=look["color"], linewidth=1.2, alpha=0.6)
            face = "none" if beaten[index] else look["color"]
            axes.plot(
                [cost],
                [shown_number(_score(body), row["mean"])],
                markersize=6,
                markerfacecolor=face,
                linestyle="none",
                label=row["name"],
                **look,
            )
        if name == "parameters" and max(row[name] for row in rows) > 3 * min(row[name] for row in rows) > 0:
            log_scale(axes)
        axes.set_xlabel(label)
        axes.set_ylabel(_axis(f"{_called(body)} on data.test", body))
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
        return {}

    title = f"{_called(body)} on data.test over {label.partition(',')[0]}"
    return Picture(name=f"cost_{name}", title=title, size=(6.4, max(2.9, 0.6 + 0.19 * len(rows))), draw=draw)


def _look(index: int, palette: Palette) -> dict[str, Any]:
    """Colour and marker of an arm, the same in every figure that shows all arms."""
    series = (*palette.series[1:], palette.series[0])
    return {"color": series[index % len(series)], "marker": _MARKERS[index % len(_MARKERS)]}


def _axis(label: str, body: Mapping[str, Any]) -> str:
    unit = shown_unit(_score(body))
    return f"{label}, {unit}" if unit else label


def _value(value: float, body: Mapping[str, Any]) -> str:
    return show_value({**_score(body), "value": value}, digits=2)


def _end(row: Mapping[str, Any], key: str) -> str:
    """A difference or an end of its interval, with its sign and without its unit."""
    return f"{shown_number(row, row[key]):+.2f}".replace("-", "\u2212")


def _count(number: float) -> str:
    return f"{number:,.0f}".replace(",", "\u202f")
