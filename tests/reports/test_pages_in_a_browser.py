"""Pages without a script in a browser: nothing is refused, nothing is wider than a phone, Hebrew is in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sonotune.evaluation.compare import compare
from sonotune.reports.comparison import MAX_CHANGED, System, build_comparison_html

EXAMPLES = sorted((Path(__file__).parents[2] / "docs" / "examples").glob("*.html"))
HEBREW = "\u05e9\u05dc\u05d5\u05e9 \u05d0\u05e8\u05d1\u05e2 \u05d7\u05de\u05e9"


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.stem)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_pages_of_the_docs_are_whole(tab: Any, tmp_path: Path, page: Path, dark: bool) -> None:
    tab.open(page.as_uri(), until="main section")
    for width in (390, 1200):
        tab.look(tmp_path / "page.png", width=width, dark=dark)
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    assert tab.problems == []


def test_hebrew_texts_of_a_comparison_are_read_from_the_right(tab: Any, tmp_path: Path) -> None:
    systems, files = [], []
    for name, text in (("a", HEBREW.rsplit(" ", 1)[0]), ("b", HEBREW)):
        rows = [{"id": f"c{index}", "reference": HEBREW, "hypothesis": text, "duration_s": 1.0} for index in range(6)]
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        systems.append(System(name=name, places=[name], rows=rows))
    html = build_comparison_html(compare(files[:1], files[1:], resamples=100), *systems)
    (tmp_path / "page.html").write_text(html, "utf-8")
    tab.open((tmp_path / "page.html").as_uri(), until="#texts .say")
    words = "[...document.querySelectorAll('#texts .say .words:last-child bdi')].slice(0, 3)"
    places = tab.run(f"{words}.map((word) => word.getBoundingClientRect().left)")
    assert places == sorted(places, reverse=True)
    assert len(places) == 3
    assert tab.problems == []


def test_a_comparison_of_two_thousand_utterances_is_small_and_there_in_three_seconds(tab: Any, tmp_path: Path) -> None:
    systems, files = [], []
    for name, every in (("a", 3), ("b", 5)):
        rows = [
            {
                "id": f"c{index}",
                "reference": (said := " ".join(f"word{index + place}" for place in range(12))),
                "hypothesis": said if index % every else said.replace("word", "world"),
                "duration_s": 0.1 * (index % 300),
                "speaker": f"s{index % 50}",
                "domain": f"d{index % 7}",
            }
            for index in range(2000)
        ]
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        systems.append(System(name=name, places=[name], rows=rows))
    html = build_comparison_html(compare(files[:1], files[1:], resamples=100), *systems)
    assert len(html.encode()) < 5_000_000
    (tmp_path / "page.html").write_text(html, "utf-8")
    tab.open((tmp_path / "page.html").as_uri(), until="#texts .say")
    assert tab.run("performance.getEntriesByType('navigation')[0].domComplete") < 3000
    assert tab.run("document.querySelectorAll('#texts .say').length") == 2 * MAX_CHANGED
    assert tab.problems == []
