"""The report of an ablation: everything that was measured, escaped, self-contained, the same bytes every time."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sonotune.reports.ablation import ablation_pictures, arm_table, build_ablation_html

VOID = {"meta", "br", "hr", "link", "input", "img"}


class Page(HTMLParser):
    """Text by section, every element, and whether each is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.section = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text[self.section] = self.text.get(self.section, "") + data


@pytest.fixture
def body(plan, sit, fake, tmp_path: Path) -> dict[str, Any]:
    """What a session with fake runs leaves in `ablation.json`, read back."""

    def errors(arm: str, seed: int, clip: int) -> int:
        return 2 - (arm == "entropy_half" and clip % 4 > 0) + (arm == "inverse") + (clip % 11 == seed)

    runs = fake(
        errors_of=errors,
        rate_of=lambda arm, rate, seed: 0.2 + abs(rate - 1e-3),
        parameters={"full": 100_000},
        fail={("inverse", 0.00316): ValueError("<script>alert(1)</script>")},
    )
    sit(plan("uniform,entropy_half,inverse,full", own=["small: adapter.rank=2"]), runs, apart=True)
    read: dict[str, Any] = json.loads((tmp_path / "ablation" / "ablation.json").read_text("utf-8"))
    return read


def test_all_of_an_ablation_stands_in_the_report(body: dict[str, Any]):
    page = Page(build_ablation_html(body))
    assert page.open == []
    assert list(page.text) == ["", "verdict", "arms", "differences", "rates", "costs", "trials", "environment"]
    for sentence in body["verdict"]:
        assert sentence in page.text["verdict"]
    for row in arm_table(body):
        assert row["name"] in page.text["arms"]
        for run in row["runs"]:
            assert f"{100 * run['value']:.2f} %" in page.text["arms"]
    for trial in body["trials"]:
        assert trial["run"] in page.text["trials"]
        assert trial["line"] in page.text["trials"]
    assert "no difference" in page.text["differences"]
    assert "better" in page.text["differences"]
    assert "worse" in page.text["differences"]


def test_means_and_deviations_are_over_the_chosen_rate(body: dict[str, Any]):
    rows = {row["name"]: row for row in arm_table(body)}
    values = [
        trial["scores"]["test"]["wer"]["value"]
        for trial in body["trials"]
        if trial["arm"] == "uniform" and trial["learning_rate"] == 1e-3
    ]
    assert [run["value"] for run in rows["uniform"]["runs"]] == values
    assert len(values) == 2
    assert rows["uniform"]["mean"] == pytest.approx(sum(values) / 2)
    assert rows["uniform"]["sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)


def test_dominated_arms_are_marked(body: dict[str, Any]):
    rows = {row["name"]: row for row in arm_table(body)}
    assert rows["entropy_half"]["dominated_by"] == []
    assert "entropy_half" in rows["uniform"]["dominated_by"]
    assert {"uniform", "entropy_half"} <= set(rows["full"]["dominated_by"])  # ten times the parameters, no better
    assert "Dominated" in Page(build_ablation_html(body)).text["arms"]


def test_the_same_content_gives_the_same_bytes(body: dict[str, Any]):
    assert build_ablation_html(body) == build_ablation_html(copy.deepcopy(body))


def test_nothing_is_loaded_and_errors_are_data(body: dict[str, Any]):
    html = build_ablation_html(body)
    page = Page(html)
    assert "<script" not in html
    assert "<script>alert(1)</script>" in page.text["trials"]
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.elements}
    addresses = set(re.findall(r"https?://[^\s\"')]+", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_peak_memory_is_shown_only_where_each_run_had_its_own_process(body: dict[str, Any]):
    assert "cost_peak_bytes" in {picture.name for picture in ablation_pictures(body)}
    shared = body | {"own_processes": False}
    assert "cost_peak_bytes" not in {picture.name for picture in ablation_pictures(shared)}
    assert "Peak memory is not shown" in Page(build_ablation_html(shared)).text["costs"]


def test_an_ablation_that_has_just_begun_has_a_report(plan, sit, fake):
    body = sit(plan("uniform", seeds=(0,)), fake(fail={"uniform": ValueError("no")}))
    page = Page(build_ablation_html(body))
    assert "Nothing can be compared yet" in page.text["verdict"]
    assert "no finished run" in page.text["arms"]


def test_it_works_without_torch(body: dict[str, Any], tmp_path: Path):
    code = (
        "import json, sys; from sonotune.reports.ablation import build_ablation_html as build;"
        "build(json.load(open(sys.argv[1]))); assert 'torch' not in sys.modules"
    )
    path = tmp_path / "ablation" / "ablation.json"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
