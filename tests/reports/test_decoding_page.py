"""The report of a sweep of decoding: verdict, scores and insertions stand in it, escaped, at every width."""

from __future__ import annotations

import copy
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from sonotune.reports.decoding import build_decoding_html

HOSTILE = "<script>alert(1)</script>"


def score(value: float, title: str, role: str = "plain") -> dict[str, Any]:
    ends = {"low": value - 0.01, "high": value + 0.02}
    return {"value": value, **ends, "count": 40, "unit": "fraction", "better": "lower", "title": title, "role": role}


def way(wer: float, inserted: float, **values: str) -> dict[str, Any]:
    named = {f"evaluation.{name}": value for name, value in values.items()}
    found = {"value": wer - 0.3, "low": wer - 0.35, "high": wer - 0.25, "p": 0.001, "p_holm": 0.002, "better": "lower"}
    return {
        "values": named,
        "name": " ".join(f"{name}={value}" for name, value in named.items()) or "the current decoding",
        "scores": {"wer": score(wer, "WER", "primary")},
        "insertion_rate": score(inserted, "Inserted words"),
        "insertions": 7,
        "loops": 3,
        "cut": 2,
        "real_time_factor": 0.25,
        "difference": found | {"unit": "fraction"} if named else None,
        **({"outcome": "better" if wer < 0.3 else "worse"} if named else {}),
    }


@pytest.fixture
def body() -> dict[str, Any]:
    return {
        "model": "runs/x",
        "axes": {"evaluation.beam_size": ["4", "8"]},
        "words": ["model=runs/x", "evaluation.beam_size=4,8", f"data.eval={HOSTILE}"],
        "identity": {"model": "ab" * 32},
        "asked": 3,
        "clips": 40,
        "score": "wer",
        "trials": [way(0.3, 0.04), way(0.2, 0.05, beam_size="4"), way(0.4, 0.15, beam_size="8")],
        "notes": [],
        "code": {"commit": "abc", "tree": "clean"},
        "proposed": 1,
        "shown": True,
        "sentence": "evaluation.beam_size=4 is better than the current decoding",
    }


def test_what_was_found_stands_in_the_page_the_best_first(body: dict[str, Any]):
    html = build_decoding_html(body, name="d")
    text = unescape(re.sub(r"<[^>]+>", " ", html))
    for told in (
        "20.0 % [19.0, 22.0]",
        "5.0 % [4.0, 7.0]",
        "\u221210.0 points [\u221215.0, \u22125.0]",
        "3 of 3 scored",
    ):
        assert told in text
    order = [text.index(one) for one in ("20.0 % [", "30.0 % [", "40.0 % [")]
    assert order == sorted(order)
    assert "better decoding" in text
    assert "model=runs/x evaluation.beam_size=4" in text
    assert html == build_decoding_html(copy.deepcopy(body), name="d")
    assert HOSTILE not in html
    assert HOSTILE in unescape(html)


def test_where_nothing_is_shown_to_be_better_nothing_is_to_be_used(body: dict[str, Any]):
    html = build_decoding_html(body | {"shown": False, "sentence": "keep that"}, name="d")
    assert "keep the current decoding" in html
    assert "To decode so" not in html


def test_a_sweep_that_has_begun_and_one_of_an_older_version_have_a_page(body: dict[str, Any]):
    first = {name: value for name, value in body["trials"][0].items() if name != "insertion_rate"}
    older = {name: value for name, value in body.items() if name not in ("identity", "notes", "code")}
    html = build_decoding_html(older | {"trials": [first], "proposed": 0, "shown": False}, name="d")
    assert "unfinished" in html
    assert "1 of 3 scored" in html


def test_the_page_is_whole_in_a_browser(tab: Any, tmp_path: Path, body: dict[str, Any]):
    (tmp_path / "page.html").write_text(build_decoding_html(body, name="d"), "utf-8")
    tab.open((tmp_path / "page.html").as_uri(), until="main section")
    for width, dark in ((380, False), (380, True), (1200, False)):
        tab.look(tmp_path / "page.png", width=width, dark=dark)
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    assert tab.problems == []
