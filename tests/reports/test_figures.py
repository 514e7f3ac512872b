"""Figures: the same bytes for the same data, fit to stand beside others in one page."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import matplotlib
import pytest

from sonotune.reports.figures import Estimate, Series, bars, curve, estimates

SVG = "{http://www.w3.org/2000/svg}"


def line(name: str = "loss", **changes: object) -> str:
    series = Series(label="adapter", x=[1, 2, 3], y=[3.0, 2.0, 1.0], low=[2.0, 1.0, 0.5], high=[4.0, 3.0, 2.0])
    other = Series(label="stem", x=[1, 2, 3], y=[1.0, math.nan, 1.0])
    return curve(name, [series, other], y_label="loss", title="Loss over steps", **changes)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314  (our own SVG)


@pytest.mark.parametrize(
    "draw",
    [
        line,
        lambda: line(log=True),
        lambda: estimates("wer", [Estimate(label="after", value=10, low=8, high=13)], x_label="%", title="WER"),
        lambda: bars("phases", {"decode": 3.0, "forward": 0.0}, x_label="seconds", title="Time"),
    ],
)
def test_the_same_data_give_the_same_bytes(draw) -> None:
    first = draw()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": "other"}):
        assert draw() == first


def test_text_stays_text_in_the_fonts_and_colours_of_the_page() -> None:
    svg = line()
    assert {"loss", "step", "adapter", "stem"} <= set(texts(svg))
    assert not re.search(r"#[0-9a-f]{6}(?![0-9a-f])", svg), "a fixed colour would not follow the dark page"
    assert set(re.findall(r"var\((--[\w-]+)\)", svg)) >= {"--ink-2", "--line", "--series-2", "--series-3", "--font"}
    assert "DejaVu" not in svg


def test_it_is_one_element_that_scales_and_has_a_name() -> None:
    svg = line()
    root = ET.fromstring(svg)  # noqa: S314  (our own SVG)
    assert root.tag == f"{SVG}svg"
    assert root.get("aria-label") == "Loss over steps"
    assert "viewBox" in root.attrib
    assert not {"width", "height"} & root.attrib.keys()
    assert "<metadata" not in svg
    assert "<style" not in svg


def test_ids_do_not_meet_those_of_another_figure() -> None:
    first, second = line("one"), line("two")
    ids = [re.findall(r'id="([^"]+)"', svg) for svg in (first, second)]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
    assert len(ids[0]) == len(set(ids[0]))
    for svg, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= set(own)


@pytest.mark.parametrize("label", ["$\\frac{$", "<b>&\"'", "שלום", "中文", "a_b^c"])
def test_names_are_shown_as_they_are(label: str) -> None:
    svg = bars("phases", {label: 1.0}, x_label="seconds", title=label)
    assert label in texts(svg)
    assert ET.fromstring(svg).get("aria-label") == label  # noqa: S314  (our own SVG)


def test_long_runs_are_thinned_to_their_means() -> None:
    steps = list(range(20_000))
    values = [1.0 if step % 2 else 3.0 for step in steps]
    values[7] = math.nan
    svg = curve("long", [Series(label="loss", x=steps, y=values)], y_label="loss", title="Loss")
    assert len(svg) < 40_000
    assert "nan" not in svg.lower()


def test_single_points_and_empty_bars_are_drawn() -> None:
    svg = curve("one", [Series(label="loss", x=[5], y=[2.0])], y_label="loss", title="Loss")
    assert "<use" in svg  # a marker: a line through one point is invisible
    assert bars("none", {"decode": 0.0}, x_label="seconds", title="Time")
