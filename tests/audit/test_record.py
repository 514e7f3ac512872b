"""The report of an audit is written and read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonotune.audit.calibration import Calibration, Proportion, fixed
from sonotune.audit.gate import GateSettings, StratumCount, judge
from sonotune.audit.record import (
    REPORT_FILE,
    AuditReport,
    ShareOfBad,
    StratumReport,
    percentiles,
    rate_of,
    read_report,
    report_from_json,
    stratum_reports,
    write_report,
)
from sonotune.errors import ManifestError

names = st.text(max_size=12)
units = st.floats(0, 1)
counts = st.integers(0, 10**9)
decisions = st.sampled_from(["PROCEED", "SAMPLE_MORE", "CAUTION", "STOP"])
shares = st.tuples(st.lists(units, min_size=3, max_size=3).map(sorted), counts).map(
    lambda drawn: ShareOfBad(low=drawn[0][0], value=drawn[0][1], high=drawn[0][2], count=drawn[1])
)
strata = st.builds(
    StratumReport,
    name=names,
    population=counts,
    sampled=counts,
    flagged=counts,
    rate=st.none() | shares,
    decision=st.none() | decisions,
    p_value=st.none() | units,
)
proportions = st.builds(Proportion, value=units, low=units, high=units, count=st.integers(1, 10**6))
reports = st.builds(
    AuditReport,
    schema=st.just(1),
    decision=decisions,
    reasons=st.lists(names, max_size=3).map(tuple),
    rate=shares,
    level=units,
    correction=st.sampled_from(["applied", "none", "refused"]),
    flagged_share=units,
    look=st.integers(1, 9),
    strata=st.lists(strata, max_size=3).map(tuple),
    domains=st.lists(strata, max_size=3).map(tuple),
    coverage_percentiles=st.dictionaries(names, units, max_size=3),
    flags=st.dictionaries(names, counts, max_size=3),
    calibration=st.builds(
        Calibration,
        method=st.sampled_from(["trusted", "fixed"]),
        thresholds=st.dictionaries(st.sampled_from(["coverage", "min_window_llr"]), st.floats(-99, 99)),
        false_positive_rate=st.none() | units,
        specificity=st.none() | proportions,
        sensitivity=st.none() | proportions,
        corruptions=st.dictionaries(names, proportions, max_size=2),
    ),
    model=st.dictionaries(names, st.none() | names, max_size=3),
    data_digest=names,
    normalizer=st.dictionaries(names, names, max_size=2),
    versions=st.dictionaries(names, names, max_size=2),
    settings=st.dictionaries(names, st.none() | counts | names | st.lists(counts, max_size=2), max_size=3),
    seconds=st.floats(0, 1e9),
    started=names,
)


def report() -> AuditReport:
    found = [
        StratumCount(name="phone", population=900, sampled=90, flagged=4),
        StratumCount(name="studio", population=100, sampled=100, flagged=1),
    ]
    verdict = judge(found, None, GateSettings())
    return AuditReport(
        decision=verdict.decision,
        reasons=verdict.reasons,
        rate=rate_of(verdict.share),
        level=verdict.share.level,
        correction=verdict.share.correction,
        flagged_share=verdict.share.flagged,
        look=verdict.look,
        strata=stratum_reports(verdict, found),
        calibration=fixed(),
        model={"aligner": "ctc", "digest": "00ff"},
        data_digest="ab12",
    )


@given(reports)
def test_any_report_survives_json(made):
    assert report_from_json(json.loads(json.dumps(made.to_json(), allow_nan=False))) == made


def test_a_report_survives_its_file(tmp_path: Path):
    made = report()
    path = write_report(made, tmp_path)
    assert path.name == REPORT_FILE == "alignment_report.json"
    assert read_report(path) == read_report(tmp_path) == made
    kept = json.loads(path.read_text("utf-8"))
    assert kept["rate"].keys() == {"value", "low", "high", "count"}
    assert kept["rate"]["count"] == 190
    assert [one["name"] for one in kept["strata"]] == ["phone", "studio"]


def test_keys_of_a_newer_version_are_passed_over():
    assert report_from_json({**report().to_json(), "later": [1]}) == report()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"schema": 2}, "schema 2; this version reads 1"),
        ({"schema": True}, "schema True"),
        ({"decision": "GO"}, "decision is 'GO'"),
        ({"rate": None}, "rate is null"),
        ({"rate": {"value": 0.5, "low": 0.6, "high": 0.7, "count": 1}}, "outside of its interval"),
        ({"rate": {"value": 0.5, "low": 0.1, "high": 1.7, "count": 1}}, "rate.high is 1.7"),
        ({"strata": [{"name": "a"}]}, "strata.0.population is missing"),
        ({"calibration": {}}, "calibration.method is missing"),
        ({"look": 0}, "look is 0"),
        ({"seconds": "long"}, "seconds is 'long'"),
    ],
)
def test_damaged_reports_are_refused_by_file_and_fault(tmp_path: Path, wrong, message):
    path = tmp_path / REPORT_FILE
    path.write_text(json.dumps({**report().to_json(), **wrong}), "utf-8")
    with pytest.raises(ManifestError) as caught:
        read_report(tmp_path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"a": ' * 5000])
def test_what_is_no_report_is_refused(tmp_path: Path, content):
    path = tmp_path / REPORT_FILE
    path.write_bytes(content)
    with pytest.raises(ManifestError, match="alignment_report"):
        read_report(path)


def test_a_missing_report_is_named(tmp_path: Path):
    with pytest.raises(ManifestError, match=r"alignment_report\.json cannot be read"):
        read_report(tmp_path)


def test_percentiles():
    assert percentiles([None]) == {}
    found = percentiles([None, *(index / 100 for index in range(101))])
    assert found["50"] == pytest.approx(0.5)
    assert list(found) == ["1", "5", "10", "25", "50", "75", "90", "95", "99"]
