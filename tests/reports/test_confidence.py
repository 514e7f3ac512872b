"""Word confidences in the record of a run and in its report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sonotune.errors import RunDirectoryError
from sonotune.evaluation.augmented import EvaluationChain
from sonotune.evaluation.confidence import calibration_in, curves_of_clips, with_curves
from sonotune.metrics.confidence import Calibration, RatedWords, confidence_curves, confidence_scores
from sonotune.reports.confidence import view_confidence
from sonotune.reports.record import build_html
from sonotune.runs.record import record_from_json, record_to_json
from sonotune.types import RunRecord

MADE = Calibration(slope=0.5, intercept=-1.0, words=1234, clips=9, settings={"evaluation.beam_size": 1})


def words(count: int = 300) -> RatedWords:
    rng = np.random.default_rng(0)
    odds = rng.normal(1, 1, count)
    return RatedWords(odds, rng.random(count) < 1 / (1 + np.exp(-odds)), np.arange(count) % 10, 10)


def confident(record: RunRecord) -> RunRecord:
    scores = {name: one.to_json() for name, one in confidence_scores(words(), MADE, resamples=20).items()}
    kept = with_curves({"calibration": MADE.to_json()}, "after", confidence_curves(words(), None))
    sliced = [
        {"by": "domain", "value": "<b>phone", "clips": 7, "scores": {"ece": scores["ece"], "aurc": scores["aurc"]}},
        {"by": "domain", "value": "studio", "clips": 3, "scores": {}},
    ]
    later = {**confidence_curves(words(), MADE), "scores": scores, "slices": sliced}
    return replace(record, confidence=with_curves(kept, "evaluate <b>x.jsonl", later))


def test_a_record_keeps_the_calibration_and_the_curves(run_record: RunRecord):
    read = record_from_json(record_to_json(replace(confident(run_record), model={})))
    assert calibration_in(read.confidence) == MADE
    assert calibration_in(run_record.confidence) is None
    assert sorted(read.confidence["curves"]) == ["after", "evaluate <b>x.jsonl"]


@pytest.mark.parametrize("changed", [{"slope": -1.0}, {"slope": "x"}, {"method": "isotonic"}])
def test_a_calibration_that_is_damaged_is_refused(run_record: RunRecord, changed: dict[str, Any]):
    broken = replace(run_record, model={}, confidence={"calibration": MADE.to_json() | changed})
    with pytest.raises(RunDirectoryError, match="calibration"):
        record_from_json(record_to_json(broken))


def test_the_report_draws_the_clips_that_it_was_not_fitted_on(run_record: RunRecord, read_page: Any):
    shown = confident(run_record)
    view = view_confidence(shown)
    assert view["told"][0].startswith("The figures are of 300 words of the clips of <b>x.jsonl")
    assert "Calibrated on 1,234 words of 9 development clips" in view["told"][1]
    titles = [title for _, title, _ in view["rows"]]
    assert titles[0] == "Calibration error of words (ECE)"
    assert "Calibration error of words (ECE) before calibration" in titles
    [(by, value, clips, texts)] = view["slices"]
    assert (by, value, clips) == ("domain", "<b>phone", 7)
    assert texts[1] == "not defined"
    html = build_html(shown)
    assert "&lt;b&gt;phone" in html
    assert 'id="confidence"' in html
    assert "<b>x.jsonl" not in html
    assert html.count('href="#confidence"') == 1
    assert html == build_html(shown)


def test_test_sets_with_one_file_name_are_two(run_record: RunRecord):
    kept: dict[str, Any] = {}
    given = [("a/test.jsonl", "1" * 64, None), ("b/test.jsonl", "2" * 64, None), ("b/test.jsonl", "3" * 64, None)]
    given += [("b/test.jsonl", "3" * 64, EvaluationChain(name="voip"))]
    for turn, (source, digest, chain) in enumerate([*given, given[0]]):
        name, told = curves_of_clips(source, digest, chain)
        score = {"ece": confidence_scores(words(), None, resamples=20)["ece"].to_json() | {"value": turn / 100}}
        kept = with_curves(kept, name, {**confidence_curves(words(200 + turn), None), **told, "scores": score})
    assert len(kept["curves"]) == 4
    record = record_from_json(record_to_json(replace(run_record, confidence=kept, model={})))
    view = view_confidence(record)
    assert [clips for clips, *_ in view["rows"]] == [
        "b/test.jsonl (22222222)",
        "b/test.jsonl (33333333)",
        "b/test.jsonl through voip",
        "a/test.jsonl",
    ]
    assert view["told"][0].startswith("The figures are of 204 words of the clips of a/test.jsonl")  # the newest


def test_a_run_without_confidences_has_no_section(run_record: RunRecord):
    assert view_confidence(run_record) == {}
    assert 'id="confidence"' not in build_html(run_record)
