"""Sweeps of decoding, without a model: what is tried, how it is judged, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sonotune.data.text import get
from sonotune.errors import ConfigError
from sonotune.evaluation.evaluate import EvaluationResult
from sonotune.sweeps.axes import Axis
from sonotune.sweeps.decoding import CURRENT, SWEPT, Trial, decoding_axes, decoding_trials, sweep_decoding
from sonotune.sweeps.decoding_record import RECORD
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.types import DEFAULT_DECODING, Clip, DecodingSettings, Prediction

CLIPS = [
    Clip(id=f"c{n}", path=Path("x.wav"), duration_s=1.0, text="one two three four", speaker=f"s{n % 10}")
    for n in range(60)
]


class NoFamily:
    """Scoring asks nothing of a family."""


TASK = Transcribe(NoFamily(), TaskSettings(scoring_text=get("basic")))  # type: ignore[arg-type]


def result(wrong: Sequence[int]) -> EvaluationResult:
    """Clips with so many wrong words each."""
    words = ["one", "two", "three", "four"]
    predictions = [
        Prediction(clip_id=clip.id, text=" ".join(["x"] * count + words[count:]))
        for clip, count in zip(CLIPS, wrong, strict=True)
    ]
    scores = TASK.score(predictions, CLIPS, resamples=100)
    details, _ = TASK.details(predictions, CLIPS)
    return EvaluationResult(
        scores=scores,
        slices=[],
        predictions=predictions,
        findings=[],
        details=details,
        clips=len(CLIPS),
        seconds=6.0,
        audio_seconds=60.0,
        real_time_factor=0.1,
    )


def sweep(
    folder: Path, *, identity: str = "a", decoded: list[DecodingSettings] | None = None, **errors: Sequence[int]
) -> dict[str, Any]:
    """Of the current decoding and others, by the wrong words of each clip; a trial without any is killed."""
    made = {
        DEFAULT_DECODING if name == "current" else replace(DEFAULT_DECODING, beam_size=2 + number): (name, wrong)
        for number, (name, wrong) in enumerate(errors.items())
    }
    trials = [
        Trial(values={} if name == "current" else {"evaluation.beam_size": name}, decoding=decoding)
        for decoding, (name, _) in made.items()
    ]

    def recognize(decoding: DecodingSettings) -> EvaluationResult:
        if not made[decoding][1]:
            raise KeyboardInterrupt
        if decoded is not None:
            decoded.append(decoding)
        return result(made[decoding][1])

    return sweep_decoding(
        trials,
        CLIPS,
        TASK,
        recognize,
        folder=folder,
        about={"model": "m", "identity": {"model": identity, "clips": "c"}},
        told=lambda line: None,
        resamples=500,
    )


BAD, SAME = [2] * 60, [n % 3 for n in range(60)]


def test_a_decoding_that_is_better_on_every_clip_is_proposed(tmp_path: Path):
    body = sweep(tmp_path, current=BAD, good=[1] * 60, worse=[3] * 60)
    assert (body["proposed"], body["shown"]) == (1, True)
    assert [row.get("outcome") for row in body["trials"]] == [None, "better", "worse"]
    assert body["trials"][1]["difference"]["value"] == pytest.approx(-0.25)
    assert "is better than the current decoding" in body["sentence"]
    assert json.loads((tmp_path / RECORD).read_text("utf-8"))["trials"][1]["real_time_factor"] == 0.1


def test_where_the_interval_holds_0_no_difference_is_shown_and_the_current_one_stays(tmp_path: Path):
    other = [*SAME[1:], SAME[0]]
    other[0] = 0  # a little better, by chance
    body = sweep(tmp_path, current=SAME, other=other)
    row = body["trials"][1]
    assert row["difference"]["low"] <= 0 <= row["difference"]["high"]
    assert row["outcome"] == "no difference shown"
    assert (body["proposed"], body["shown"]) == (1, False)
    assert "no difference shown" in body["sentence"]
    assert "keep that" in body["sentence"]


def test_where_nothing_is_better_the_current_decoding_is_kept(tmp_path: Path):
    body = sweep(tmp_path, current=SAME, worse=BAD)
    assert body["proposed"] == 0
    assert body["sentence"].startswith("keep the current decoding")


def test_the_same_line_decodes_only_what_is_missing_and_finds_the_same(tmp_path: Path):
    whole = sweep(tmp_path / "whole", current=BAD, good=[1] * 60, worse=[3] * 60)
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path / "parts", current=BAD, good=[1] * 60, worse=())
    again: list[DecodingSettings] = []
    found = sweep(tmp_path / "parts", decoded=again, current=BAD, good=[1] * 60, worse=[3] * 60)
    assert [one.beam_size for one in again] == [4]
    assert found == whole
    assert json.loads((tmp_path / "parts" / RECORD).read_text("utf-8")) == found
    again.clear()
    assert sweep(tmp_path / "parts", decoded=again, current=BAD, good=[1] * 60, worse=[3] * 60) == whole
    assert again == []


def test_a_trial_without_its_predictions_is_decoded_again(tmp_path: Path):
    whole = sweep(tmp_path, current=BAD, good=[1] * 60)
    for row in whole["trials"]:
        (tmp_path / row["predictions"]).unlink()
        again: list[DecodingSettings] = []
        assert sweep(tmp_path, decoded=again, current=BAD, good=[1] * 60) == whole
        assert len(again) == 1


def test_other_weights_or_clips_under_the_same_names_are_another_sweep(tmp_path: Path):
    sweep(tmp_path, current=BAD, good=[1] * 60)
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    with pytest.raises(ConfigError, match=r"of another sweep \(other model\)"):
        sweep(tmp_path, identity="b", current=BAD, good=SAME)
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*.json*")} == before


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"schema": 9}, "schema"),
        ({"trials": []}, "lack what it says"),
        ({"score": "gone"}, "lack what it says"),
        ({"proposed": 7}, "lack what it says"),
        ({"proposed": -1}, "proposed"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, changed: dict[str, Any], told: str):
    body = sweep(tmp_path, current=BAD, good=[1] * 60)
    (tmp_path / RECORD).write_text(json.dumps(body | changed), "utf-8")
    with pytest.raises(ConfigError, match=told):
        sweep(tmp_path, current=BAD, good=[1] * 60)


def test_a_record_names_no_file_outside_its_folder(tmp_path: Path):
    body = sweep(tmp_path / "d", current=BAD, good=[1] * 60)
    for row in body["trials"]:
        row["predictions"] = "../elsewhere/" + row["predictions"]
    (tmp_path / "d" / RECORD).write_text(json.dumps(body), "utf-8")
    found = sweep(tmp_path / "d", current=BAD, good=[1] * 60)
    assert [row["predictions"] for row in found["trials"]] == ["predictions/000.jsonl", "predictions/001.jsonl"]


def test_two_processes_do_not_work_on_one_sweep(tmp_path: Path):
    code = (
        "import sys, pathlib; from sonotune.sweeps.claims import open_claims;"
        "lock = open_claims(pathlib.Path(sys.argv[1])).take('decoding'); print(lock, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip().isdigit()
        with pytest.raises(ConfigError, match="another process is at work"):
            sweep(tmp_path, current=BAD)
        other.kill()
    assert sweep(tmp_path, current=BAD, good=[1] * 60)["proposed"] == 1


def test_inserted_words_have_an_interval(tmp_path: Path):
    row = sweep(tmp_path, current=BAD, other=SAME)["trials"][0]
    rate = row["insertion_rate"]
    assert (rate["value"], rate["count"], rate["title"]) == (0.0, 60, "Inserted words")
    assert rate["high"] > 0


def test_what_stops_half_way_leaves_what_it_found(tmp_path: Path):
    def recognize(decoding: DecodingSettings) -> EvaluationResult:
        if decoding.beam_size > 1:
            raise KeyboardInterrupt
        return result(BAD)

    trials = [
        Trial(values={}, decoding=DEFAULT_DECODING),
        Trial(values={"evaluation.beam_size": "2"}, decoding=replace(DEFAULT_DECODING, beam_size=2)),
    ]
    with pytest.raises(KeyboardInterrupt):
        sweep_decoding(trials, CLIPS, TASK, recognize, folder=tmp_path, about={}, told=lambda line: None)
    left = json.loads((tmp_path / RECORD).read_text("utf-8"))
    assert (left["asked"], len(left["trials"])) == (2, 1)


def test_rows_say_what_was_inserted_and_what_loops(tmp_path: Path):
    row = sweep(tmp_path, current=BAD, other=SAME)["trials"][0]
    assert {"insertions", "loops", "cut", "fallbacks", "seconds", "real_time_factor", "scores"} <= row.keys()
    assert row["name"] == CURRENT
    assert row["scores"]["wer"]["low"] <= row["scores"]["wer"]["value"] <= row["scores"]["wer"]["high"]


def settings_of(point: Any) -> tuple[dict[str, str], DecodingSettings]:
    """As the command has it: without beams there is no length to weigh."""
    beams = int(point.get("evaluation.beam_size", 1))
    length = point.get("evaluation.length_penalty") if beams > 1 else None
    kept = {name: value for name, value in point.items() if beams > 1 or name != "evaluation.length_penalty"}
    return kept, DecodingSettings(beam_size=beams, length_penalty=None if length is None else float(length))


def test_combinations_that_mean_the_same_are_tried_once_and_the_current_one_first():
    axes = {
        name: Axis(name=name, text="", values=values)
        for name, values in (("evaluation.beam_size", ("1", "4")), ("evaluation.length_penalty", ("0.5", "2")))
    }
    trials = decoding_trials(axes, settings_of)
    assert [trial.name for trial in trials] == [
        CURRENT,
        "evaluation.beam_size=4 evaluation.length_penalty=0.5",
        "evaluation.beam_size=4 evaluation.length_penalty=2",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["evaluation.beam_size=1,4", "data.test=x.jsonl"], "never on data.test"),
        (["evaluation.beam_size=1,4", "data.train=x.jsonl"], "never on data.test or data.train"),
        (["training.learning_rate=1e-3,1e-4"], "only decoding can vary"),
        (["evaluation.beam_size=4"], "nothing varies"),
        ([], "nothing varies"),
        (["evaluation.repetition_penalty=1.0:2.0"], "list a few"),
        (["evaluation.beam_size=1,1"], "stands twice"),
    ],
)
def test_what_is_no_sweep_of_decoding_is_refused(words: list[str], told: str):
    with pytest.raises(ConfigError, match=told):
        decoding_axes(words)


def test_lists_are_one_value_in_brackets():
    fixed, axes = decoding_axes(["model=x", "evaluation.temperatures=[0],[0,0.4]", "data.eval=dev.jsonl"])
    assert axes["evaluation.temperatures"].values == ("[0]", "[0,0.4]")
    assert list(fixed) == ["model", "data.eval"]


def test_too_many_combinations_are_refused():
    axes = {name: Axis(name=name, text="", values=tuple(map(str, range(20)))) for name in SWEPT[:2]}
    with pytest.raises(ConfigError, match="400 combinations"):
        decoding_trials(axes, settings_of)
