"""What stands on top of a report: the verdict, the data, the line, and how to use the result."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sonotune.config.load import load_run_config
from sonotune.evaluation.compare import Comparison, compare
from sonotune.metrics.error_rate import wer
from sonotune.metrics.scores import WORSE
from sonotune.reports.record import build_html
from sonotune.reports.verdict import command_line, dates, usage_lines, verdict
from sonotune.types import Finding, RunRecord

Predict = Callable[[Sequence[str], Sequence[str]], tuple[dict[str, Any], Comparison]]
SAID = "one two three four"
WRONG = "one six three ten"


@pytest.fixture
def predict(tmp_path: Path) -> Predict:
    """Scores and the paired comparison of what was recognised before and after, in two domains."""

    def write(name: str, said: Sequence[str]) -> Path:
        rows = [
            {"id": f"c{index}", "reference": SAID, "hypothesis": text, "domain": "phone" if index % 2 else "studio"}
            for index, text in enumerate(said)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return path

    def score(said: Sequence[str]) -> dict[str, Any]:
        return {"wer": replace(wer([SAID] * len(said), list(said), speakers=None), role="primary").to_json()}

    def make(before: Sequence[str], after: Sequence[str]) -> tuple[dict[str, Any], Comparison]:
        change = compare([write("before", before)], [write("after", after)], resamples=500)
        return {"before": score(before), "after": score(after)}, change

    return make


def closed(text: str) -> str:
    """Without spaces, which stand between cells or not."""
    return "".join(text.split())


def finding(scores: Mapping[str, Any]) -> Finding:
    now, was = scores["after"]["wer"]["value"], scores["before"]["wer"]["value"]
    return Finding(check=WORSE, severity="warning", message="training made it worse", measured=now, limit=was)


def test_a_gain_that_chance_cannot_make_is_better(run_record: RunRecord, predict: Predict):
    scores, change = predict([WRONG] * 20, [SAID] * 18 + [WRONG] * 2)
    found = verdict(replace(run_record, scores=scores), change)
    assert found is not None
    assert (found.outcome, found.badge) == ("better", "better")
    assert "20 development clips went from 50.0 % before training to 5.0 % after it (−45.0 points, " in found.sentence


def test_a_gain_in_the_spelling_of_numbers_is_said_to_be_one(run_record: RunRecord, predict: Predict, read_page: Any):
    scores, change = predict([WRONG] * 20, [SAID] * 20)
    assert "spelling of numbers" not in verdict(replace(run_record, scores=scores), change).sentence  # type: ignore[union-attr]
    beside = {**scores["after"]["wer"], "title": "WER with numbers as words", "role": "beside"}
    scores["before"]["wer_numbers_verbalized"] = beside
    record = replace(run_record, scores=scores)
    found = verdict(record, change)
    assert found is not None
    assert "(−50.0 points" in found.sentence
    assert "change of −50.0 points of WER, −50.0 points are the spelling of numbers" in found.sentence
    assert closed("WER was 0.0 % before training and is 0.0 % after it") in closed(
        read_page(build_html(record, change=change)).text[""]
    )


def test_a_gain_that_chance_can_make_is_no_clear_change(run_record: RunRecord, predict: Predict):
    scores, change = predict([WRONG] + [SAID] * 19, [SAID] * 20)
    found = verdict(replace(run_record, scores=scores), change)
    assert found is not None
    assert (found.outcome, found.badge) == ("none", "no clear change")
    assert "chance alone can do that" in found.sentence
    few = verdict(replace(run_record, scores=scores), None)
    assert few is not None
    assert few.outcome == "none"
    assert "too few clips" in few.sentence


@pytest.mark.parametrize("paired", [True, False])
def test_the_verdict_agrees_with_the_finding_that_the_run_made(
    run_record: RunRecord, predict: Predict, read_page: Any, paired: bool
):
    scores, change = predict([SAID] * 19 + [WRONG], [SAID] * 18 + [WRONG] * 2)  # which chance can do as well
    worse = replace(run_record, scores=scores, findings=(finding(scores),))
    found = verdict(worse, change if paired else None)
    assert found is not None
    assert (found.outcome, found.badge) == ("worse", "worse")
    page = read_page(build_html(worse, change=change if paired else None))
    classes = [attributes.get("class") or "" for _, attributes in page.elements]
    assert "card verdict worse" in classes
    assert classes.count("pill worse") == 3  # of the run, of the verdict and of the finding
    assert "finished, worse" in page.flat("")
    assert "card tile wide worse" in classes
    assert not any("better" in each.split() for each in classes)


def test_a_run_that_keeps_the_model_as_it_was_says_so(run_record: RunRecord, predict: Predict):
    scores, change = predict([SAID] * 19 + [WRONG], [SAID] * 19 + [WRONG])
    found = verdict(replace(run_record, scores=scores, findings=(finding(scores),)), change)
    assert found is not None
    assert (found.outcome, found.badge) == ("worse", "worse")
    assert "no better than the 2.5 % of WER" in found.sentence
    assert "the weights from before it are kept" in found.sentence


def test_scores_of_recordings_that_were_trained_on_are_not_believed(run_record: RunRecord, predict: Predict):
    scores, change = predict([WRONG] * 20, [SAID] * 20)
    leak = Finding(check="leak.span", severity="error", message="share seconds of the same file")
    found = verdict(replace(run_record, scores=scores, findings=(leak,)), change)
    assert found is not None
    assert found.sentence.endswith("also trained on, so the scores say little of new ones.")


def test_a_run_that_did_not_end_says_so(run_record: RunRecord, predict: Predict):
    scores, _ = predict([WRONG] * 20, [SAID] * 20)
    found = verdict(replace(run_record, status="interrupted", scores={"before": scores["before"]}), None)
    assert found is not None
    assert found.sentence.startswith("The run is interrupted, and its scores are not final. Before training")
    assert verdict(replace(run_record, scores={}), None) is None


def test_domains_stand_before_and_after(run_record: RunRecord, predict: Predict, read_page: Any):
    before = [WRONG] * 20
    after = [SAID if index % 2 else WRONG for index in range(20)]  # the phone clips alone are better
    scores, change = predict(before, after)
    shown = closed(read_page(build_html(replace(run_record, scores=scores), change=change)).flat("scores"))
    assert closed("phone 10 50.0 % 0.0 % −50.0 −50.0 to −50.0") in shown
    assert closed("studio 10 50.0 % 50.0 % +0.0 +0.0 to +0.0") in shown


def test_the_data_of_each_split_are_there(run_record: RunRecord, read_page: Any):
    shown = closed(read_page(build_html(run_record)).flat("data"))
    assert closed("training 1200 1 h 15 min 0.6 to 14.2 s 31 phone 900, <b>studio</b> 300 en, he") in shown
    assert closed("development 6 36 s not named none named none named") in shown
    assert "data" not in read_page(build_html(replace(run_record, data={}))).text  # an older record


@pytest.mark.parametrize(
    ("split", "told"), [("test", "test clips (data.test)"), ("after", "development clips (data.eval), after training")]
)
def test_slices_say_which_clips_they_are_of(
    run_record: RunRecord, run_predictions: list[dict[str, Any]], read_page: Any, split: str, told: str
):
    page = read_page(build_html(run_record, (), run_predictions, split=split))
    assert page.flat("slices").startswith(f"Slices of the {told}")
    assert page.flat("predictions").startswith(f"Worst predictions of the {told}")


def test_the_line_of_a_run_asks_for_the_same_settings(tmp_path: Path, run_record: RunRecord):
    file = tmp_path / "more settings.yaml"
    file.write_text("training:\n  seed: 3\n", "utf-8")
    words = [
        "model=whisper_nano",
        "data=quickstart",
        f"config={file}",
        "training.learning_rate=1e-3",
        "adapter.targets=q_proj,fc1",
        "adapter.unfreeze=encoder.norms",
        "evaluation.temperatures=[0.0]",
        "model.language=en",
        "run.dir=runs/a b",
    ]
    settings = load_run_config(words)
    made = replace(run_record, config=settings.plain(), config_origin=settings.origin)
    line = shlex.split(command_line(made))
    assert line[:2] == ["sonotune", "train"]
    again = load_run_config(line[2:])
    assert again.plain() == settings.plain()
    assert again.origin == settings.origin


def test_dates_are_those_of_the_events():
    assert dates([{"kind": "a"}]) is None
    assert dates([{"time": 0.0}, {"time": 3700.5}]) == "1970-01-01, 00:00 to 01:01 UTC"
    assert dates([{"time": 0.0}, {"time": 90_000.0}]) == "1970-01-01 00:00 to 1970-01-02 01:00 UTC"


def test_what_a_finished_run_is_good_for_is_told_with_its_place(run_record: RunRecord, read_page: Any):
    lines = usage_lines(run_record, "runs/a b", "transcribe")
    assert lines[0][1] == "sonotune transcribe 'model=runs/a b' FILES"
    assert usage_lines(replace(run_record, status="failed"), "runs/a", "transcribe") == []
    page = read_page(build_html(run_record, place="runs/mine"))
    assert "sonotune evaluate model=runs/mine data.test=MANIFEST" in page.flat("use")
    assert "use" not in read_page(build_html(run_record)).text


def test_many_findings_are_folded_and_notes_always(run_record: RunRecord, read_page: Any):
    many = tuple(Finding(check=f"audio.{index:02}", severity="warning", message=f"w{index}") for index in range(14))
    told = Finding(check="export.parity", severity="warning", message="what is served is not what was scored")
    page = read_page(build_html(replace(run_record, findings=(*many, told, *run_record.findings))))
    assert page.flat("findings").index("export.parity") < page.flat("findings").index("audio.truncated")
    assert "6 more errors and warnings" in page.flat("findings")
    assert "1 note " in page.flat("findings")
