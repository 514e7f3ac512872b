"""What tuning broke, in the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sonotune.cli import retention as retention_command
from sonotune.reports.record import build_html
from sonotune.reports.retention import retention_verdict
from sonotune.types import RunRecord


def score(value: float, title: str, *, better: str = "lower", unit: str = "fraction") -> dict[str, Any]:
    ends = {"low": value * 0.8, "high": min(1.0, value * 1.2) if unit == "fraction" else value * 1.2}
    return {"value": value, **ends, "count": 40, "better": better, "unit": unit, "title": title}


def row(panel: str, before: float, after: float, outcome: str, **entries: Any) -> dict[str, Any]:
    change = after - before
    difference = {"value": change, "low": change - 0.05, "high": change + 0.05, "better": "lower", "count": 40}
    return {
        "panel": panel,
        "clips": 40,
        "score": "wer",
        "before": {"wer": score(before, "WER")},
        "after": {"wer": score(after, "WER")},
        "difference": {"wer": difference},
        "outcome": outcome,
        **entries,
    }


EXAMPLE = {"id": "c1", "reference": "", "before": "", "after": "<script>alert(1)</script> שלום"}
BROKE = row("english digits", 0.05, 0.6, "broke", examples=[EXAMPLE])
SAME = row(
    "nonspeech",
    0.2,
    0.21,
    "no clear change",
    slices=[{"value": "white_noise", "clips": 6, "before": 0.0, "after": 0.5}],
)
BETTER = row("dialect", 0.5, 0.2, "better")


def scales(*, harm: str = "no clear change") -> dict[str, Any]:
    def point(scale: float, value: float, outcome: str) -> dict[str, Any]:
        found = {"score": "accuracy", "scores": {"accuracy": score(0.9 - scale / 2, "Accuracy", better="higher")}}
        return {
            "scale": scale,
            "scores": {"wer": score(value, "WER")},
            "panels": {"language": {**found, "outcome": outcome}},
        }

    points = [point(0, 0.8, "no clear change"), point(0.5, 0.42, harm), point(1, 0.4, "broke")]
    return {"points": points, "score": "wer", "knee": 0.5, "rule": "the smallest scale that keeps most"}


def test_the_first_screen_names_what_broke_with_its_interval(run_record: RunRecord, read_page: Any):
    found = retention_verdict(replace(run_record, retention=(BROKE, SAME, BETTER), adapter_scales=scales()))
    assert found is not None
    assert (found.outcome, found.badge) == ("worse", "broke 1 of 3 panels")
    assert (
        "Tuning broke english digits: WER 5.0 % → 60.0 % (+55.0 points, 95 % interval +50.0 to +60.0" in found.sentence
    )
    assert "Tuning improved dialect" in found.sentence
    assert "No clear change: nonspeech." in found.sentence
    assert "At 0.5 of its strength" in found.sentence
    assert "breaks none of the panels" in found.sentence
    html = build_html(replace(run_record, retention=(BROKE, SAME)))
    first = html.split('<div class="tiles">')[0]
    assert "Tuning broke english digits" in first


def test_the_proposed_scale_says_what_it_still_breaks(run_record: RunRecord):
    found = retention_verdict(replace(run_record, retention=(BROKE,), adapter_scales=scales(harm="broke")))
    assert found is not None
    assert "still breaks language" in found.sentence


@pytest.mark.parametrize(
    ("rows", "badge", "outcome"),
    [
        ((SAME,), "no panel broke", "none"),
        ((BETTER,), "nothing broke", "better"),
        ((SAME, BETTER), "no panel broke", "none"),
    ],
)
def test_where_nothing_broke_that_is_said(run_record: RunRecord, rows: Any, badge: str, outcome: str):
    found = retention_verdict(replace(run_record, retention=rows))
    assert found is not None
    assert (found.badge, found.outcome) == (badge, outcome)


def test_the_section_has_tables_a_figure_and_texts_as_data(run_record: RunRecord, read_page: Any):
    record = replace(run_record, retention=(BROKE, SAME), adapter_scales=scales())
    html = build_html(record)
    page = read_page(html)
    assert page.open == []
    assert "<script" not in html
    shown = page.flat("retention")
    assert "english digitsWER405.0 %4.0 – 6.060.0 %48.0 – 72.0+55.0+50.0 to +60.0broke" in shown
    assert "white noise60.0 %50.0 %" in shown
    assert "<script>alert(1)</script> שלום" in shown
    assert "Proposed: 0.5" in shown
    assert "language (wrong)" in shown or 'id="scales' in html
    assert build_html(record) == html


def test_a_report_of_a_run_without_panels_has_no_such_section(run_record: RunRecord, read_page: Any):
    html = build_html(run_record)
    assert retention_verdict(run_record) is None
    assert "What tuning broke" not in html


def test_panels_of_one_short_name_are_called_by_their_sources(monkeypatch: pytest.MonkeyPatch, run_record: RunRecord):
    """Evaluations one after the other, each of which found a name that tells its own panels apart."""
    kept = [replace(run_record, retention=(), findings=())]
    monkeypatch.setattr(
        retention_command, "amend_record", lambda checkpoint, change, what: kept.append(change(kept[-1]))
    )
    for source, panel in (("x/a/test.jsonl", "a/test"), ("y/a/test.jsonl", "a/test"), ("nonspeech", "nonspeech")):
        row = {"panel": panel, "source": source, "outcome": "better", "score": "wer"}
        retention_command.record_retention(Path("run"), [row], {})
    assert [row["panel"] for row in kept[-1].retention] == ["x/a/test.jsonl", "y/a/test.jsonl", "nonspeech"]
