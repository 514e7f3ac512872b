"""The report of a sweep: everything stands in it, escaped, self-contained, the same bytes every time."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from sonotune.reports.sweep import build_sweep_html, sweep_pictures

SECTIONS = ["best", "configurations", "parallel", "importance", "costs", "trials", "environment"]


class Page(HTMLParser):
    """Text by section, and every element."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.section = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"] or ""

    def handle_data(self, data: str) -> None:
        self.text[self.section] = self.text.get(self.section, "") + data


def configuration(index: int, count: int) -> dict[str, Any]:
    value = 0.1 + 0.01 * index
    return {
        "values": {"adapter.rank": str(2**index), "model": "<b>nano</b>"},
        "trials": [f"t{index}"],
        "seeds": [0],
        "complete": True,
        "value": value,
        "low": value - 0.02,
        "high": value + 0.03,
        "count": 40,
        "sd": None,
        "outcome": value,
        "parameters": 1000.0 * (count - index),
        "peak_bytes": 2**30 + 2**20 * index,
        "seconds": 60.0 + index,
        "order": index + 1,
        "rank": index + 1,
        "pareto": ["peak_bytes", "seconds", "parameters"] if index == 0 else ["parameters"],
        "difference": None if index == 0 else {"value": 0.01 * index, "low": -0.01, "high": 0.03},
    }


@pytest.fixture
def body() -> dict[str, Any]:
    rows = [configuration(index, 5) for index in range(5)]
    trials = [
        {
            "name": row["trials"][0],
            "run": f"trials/{row['trials'][0]}",
            "order": row["order"],
            "values": row["values"],
            "seed": 0,
            "status": "finished",
            "line": f"sonotune train model=whisper_nano adapter.rank={row['values']['adapter.rank']}",
            "score": {key: row[key] for key in ("value", "low", "high", "count")},
            "seconds": row["seconds"],
            "error": "",
            "exit_code": 0,
        }
        for row in rows
    ]
    error = "<script>alert(1)</script> \u05e9\u05dc\u05d5\u05dd"
    failed = {"name": "bad", "status": "failed", "error": error, "score": None, "order": 6}
    score = {"value": 0.12, "low": 0.1, "high": 0.15, "count": 30}
    return {
        "schema": 1,
        "name": "sweep-1",
        "status": "finished",
        "words": ["model=whisper_nano"],
        "axes": [
            {"name": "adapter.rank", "text": "1,2,4,8,16", "numeric": True, "log": False},
            {"name": "model", "text": "a,b", "numeric": False, "log": False},
        ],
        "seeds": [],
        "score": "wer",
        "title": "WER",
        "unit": "fraction",
        "better": "lower",
        "method": "grid",
        "why": "every axis is a list of values",
        "trials_asked": 6,
        "left_out": [],
        "missing": 0,
        "machine": {"processor": "cpu", "cores": 2},
        "code": {"version": "1", "commit": "abc", "tree": "clean"},
        "trials": [*trials, {**trials[0], **failed}],
        "configurations": rows,
        "winner": {
            "values": rows[0]["values"],
            "trials": ["t0"],
            "runs": ["s/trials/t0"],
            "lines": [trials[0]["line"]],
            "score": {key: rows[0][key] for key in ("value", "low", "high", "count")},
            "test": [{"trial": "t0", "line": "sonotune evaluate", "scores": {"wer": score}}],
        },
        "importance": {
            "method": "rank correlation",
            "values": {"adapter.rank": 0.9, "model": None},
            "configurations": 5,
            "warning": "5 configurations for 1 axis: few",
        },
        "notes": ["bad failed: <i>x</i>"],
        "seconds": 320.0,
    }


def test_all_of_a_sweep_stands_in_the_report(body: dict[str, Any]):
    page = Page(build_sweep_html(body))
    assert [name for name in page.text if name] == SECTIONS
    assert "10.00 %" in page.text["best"]
    assert "12.00 %" in page.text["best"]
    assert "better than on others" in page.text["best"]
    for row in body["configurations"]:
        assert row["values"]["adapter.rank"] in page.text["configurations"]
        assert f"{100 * row['value']:.2f}" in page.text["configurations"]
        assert f"{100 * row['low']:.2f} to {100 * row['high']:.2f}" in page.text["configurations"]
    for trial in body["trials"]:
        assert trial["name"] in page.text["trials"]
        assert trial["line"] in page.text["trials"]
    assert "Spearman" in page.text["importance"]
    assert "5 configurations for 1 axis: few" in page.text["importance"]
    assert [picture.name for picture in sweep_pictures(body)] == [
        "parallel",
        "cost_peak_bytes",
        "cost_seconds",
        "cost_parameters",
        "importance",
    ]


def test_what_strangers_wrote_is_text(body: dict[str, Any]):
    page = Page(build_sweep_html(body))
    assert not {tag for tag, _ in page.elements} & {"script", "i", "link", "iframe", "img"}
    assert "<script>alert(1)</script>" in page.text["trials"]
    assert "<b>nano</b>" in page.text["configurations"]


def test_the_page_loads_nothing_and_is_the_same_every_time(body: dict[str, Any]):
    html = build_sweep_html(body)
    assert html == build_sweep_html(copy.deepcopy(body))
    assert not re.search(r'(?:src|href)="(?!#)', html)
    assert "default-src 'none'" in html


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_sweep_that_has_begun_has_a_page(body: dict[str, Any], kept: int):
    body |= {"status": "unfinished", "importance": None, "configurations": body["configurations"][:kept]}
    if kept == 0:
        body |= {"winner": None, "score": None, "title": None, "unit": None, "better": None}
        body["trials"] = [{**body["trials"][0], "status": "waiting", "score": None}]
    page = Page(build_sweep_html(body))
    assert ("No trial has a score yet" in page.text["best"]) == (kept == 0)
    assert ("configurations" in page.text) == (kept > 0)
    assert ("parallel" in page.text) == (kept > 1)


def test_equal_scores_values_without_effect_and_many_rows(body: dict[str, Any]):
    same = {"value": 0.1, "seeds": [0, 1], "sd": 0.01}
    rows = [configuration(index % 5, 5) | same | {"rank": index + 1} for index in range(60)]
    del rows[3]["values"]["model"]
    for index, row in enumerate(rows):
        row["values"] = {**row["values"], "adapter.rank": str(index + 1)}
    body |= {"configurations": rows, "seeds": [0, 1]}
    page = Page(build_sweep_html(body))
    assert "10 more" in page.text["configurations"]
    assert "\u2014" in page.text["configurations"]


def test_a_score_that_is_no_share_has_no_per_cent(body: dict[str, Any]):
    body["unit"] = "points"
    page = Page(build_sweep_html(body))
    assert "%" not in page.text["best"]
    assert "0.10" in page.text["best"]


def test_the_report_needs_no_torch():
    code = "import sonotune.reports.sweep, sys; sys.exit('torch' in sys.modules or 'optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
