"""The commands `compare` and `report`: what they say first, and what they refuse."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

from sonotune import cli


def call(*words: object) -> tuple[int, str, str]:
    """Run a command: exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        cli.main([*map(str, words)])
    assert isinstance(caught.value.code, int)
    return caught.value.code, out.getvalue(), err.getvalue()


def predictions(path: Path, hypothesis: str) -> Path:
    rows = [
        {"id": f"c{index}", "duration_s": 1.0, "scored_reference": "one two", "scored_hypothesis": hypothesis}
        for index in range(8)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize(("moment", "told"), [("test", "test clips (data.test)"), ("after", "development clips")])
def test_a_comparison_says_first_which_is_which_and_of_what_clips(tmp_path: Path, moment: str, told: str):
    first, second = tmp_path / "short", tmp_path / "long"
    for run, hypothesis in ((first, "one"), (second, "one two")):
        predictions(run / "predictions" / f"{moment}.jsonl", hypothesis)
    code, out, err = call("compare", first, second, "--resamples", "200")
    assert code == 0, err
    heading = out.splitlines()[:3]
    assert heading[:2] == [f"A is {first}", f"B is {second}"]
    assert heading[2].startswith(f"B minus A on 8 clips: {told}")


def test_a_comparison_is_written_as_a_page_where_it_is_asked_for(tmp_path: Path):
    files = [predictions(tmp_path / side / f"{name}.jsonl", text) for side, name, text in SIDES]
    page = tmp_path / "page.html"
    code, out, err = call("compare", *files, "--resamples", "200", "--out", page)
    assert code == 0, err
    assert out.splitlines()[-1] == f"page      {page}"
    html = page.read_text("utf-8")
    assert '<bdi>b/same.jsonl</bdi> <span class="muted">against</span> <bdi>a/same.jsonl</bdi>' in html
    before = page.read_bytes()
    assert call("compare", *files, "--resamples", "200", "--out", page)[0] == 0
    assert page.read_bytes() == before
    refused = (
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "page.html", "there is no folder"),
        (files[0], "is no page by its name"),
        (tmp_path / "notes.html", "is another kind of file"),
        (tmp_path / "run" / "report.html", "is a file of a run"),
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    for name in ("notes.html", "run/report.html"):
        (tmp_path / name).write_text("<p>mine</p>")
    for out_path, told in refused:
        code, _, err = call("compare", *files, "--out", out_path)
        assert code == 2
        assert told in err
    assert (tmp_path / "notes.html").read_text() == (tmp_path / "run" / "report.html").read_text() == "<p>mine</p>"


SIDES = (("a", "same", "one"), ("b", "same", "one two"))


def test_files_of_predictions_are_of_clips_that_nobody_names(tmp_path: Path):
    files = [predictions(tmp_path / f"{name}.jsonl", "one") for name in ("a", "b")]
    _, out, _ = call("compare", *files, "--resamples", "200")
    assert out.splitlines()[2] == "B minus A on 8 clips, in percentage points"


def test_the_report_of_an_ablation_is_named_where_one_is_asked_for(tmp_path: Path):
    (tmp_path / "ablation.json").write_text("{}", "utf-8")
    code, _, err = call("report", tmp_path)
    assert code == 2
    assert f"`sonotune ablate` writes its report, {tmp_path / 'report.html'}" in err
