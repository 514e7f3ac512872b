"""Word confidences and sweeps of decoding, from the command line, with a packaged model."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from sonotune import cli
from sonotune.registry import resolve_asset

CTC = ["model=ctc_nano", "training.threads=1"]
DATA = ["data=quickstart", "data.limit=40"]


def call(*words: object) -> tuple[int, Any, str]:
    """Run a command with `--json`: exit code, its object and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        cli.main([*map(str, words), "--json"])
    return int(caught.value.code or 0), json.loads(out.getvalue()), err.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step that did not ask for confidences."""
    folder = tmp_path_factory.mktemp("runs") / "ctc"
    words = [*CTC, *DATA, "training.max_steps=1", "evaluation.zero_shot=false", f"run.dir={folder}"]
    code, _, err = call("train", *words)
    assert code == 0, err
    return folder


@pytest.fixture(scope="module")
def speech() -> Path:
    return sorted(resolve_asset("assets:quickstart").rglob("*.ogg"))[0]


def test_words_have_confidences_where_they_are_asked_for(speech: Path):
    code, plain, _ = call("transcribe", *CTC, speech)
    assert code == 0
    assert "words" not in plain["transcripts"][0]
    code, body, err = call("transcribe", *CTC, "evaluation.confidence=true", speech)
    assert code == 0, err
    [found] = body["transcripts"]
    assert found["text"] == plain["transcripts"][0]["text"]
    assert [word["text"] for word in found["words"]] == found["text"].split()
    assert all(0 < word["confidence"] < 1 for word in found["words"])


def test_a_run_is_calibrated_later_and_used_so(run: Path, speech: Path, tmp_path: Path):
    before = call("transcribe", f"model={run}", "evaluation.confidence=true", speech)[1]["transcripts"][0]
    code, body, err = call("calibrate", f"model={run}")
    assert code == 0, err
    fitted = body["calibration"]
    assert fitted["slope"] > 0
    assert json.loads((run / "run.json").read_text("utf-8"))["confidence"]["calibration"] == fitted
    assert {"ece", "aurc"} <= body["before"].keys()
    after = call("transcribe", f"model={run}", "evaluation.confidence=true", speech)[1]["transcripts"][0]
    assert after["text"] == before["text"]
    sure = [word["confidence"] for word in after["words"]]
    assert sure != [word["confidence"] for word in before["words"]]
    code, _, err = call("export", run, tmp_path / "export", "--no-parity")
    assert code == 0, err
    exported = call("transcribe", f"model={tmp_path / 'export'}", "evaluation.confidence=true", speech)[1]
    assert [word["confidence"] for word in exported["transcripts"][0]["words"]] == pytest.approx(sure, abs=0.02)
    code, scored, err = call(
        "evaluate",
        f"model={run}",
        "data.test=assets:quickstart/test.jsonl",
        "data.limit=40",
        "evaluation.confidence=true",
    )
    assert code == 0, err
    assert {"ece", "ece_uncalibrated", "auroc", "aurc"} <= scored["scores"].keys()
    record = json.loads((run / "run.json").read_text("utf-8"))
    [curves] = [one for one in record["confidence"]["curves"].values() if "source" in one]
    assert curves["source"] == "assets:quickstart/test.jsonl"
    assert curves["scores"]["ece"] == scored["scores"]["ece"]
    of_slices = {(row["by"], row["value"]): row["scores"] for row in scored["slices"] if "ece" in row["scores"]}
    assert of_slices
    assert {(row["by"], row["value"]) for row in curves["slices"]} == of_slices.keys()
    assert all("ece_uncalibrated" not in scores for scores in of_slices.values())
    assert 'id="confidence"' in (run / "report.html").read_text("utf-8")


def test_decoding_is_swept_on_the_development_clips_of_the_run(run: Path, tmp_path: Path):
    words = [
        f"model={run}",
        "evaluation.beam_size=1,2,3",
        f"sweep.dir={tmp_path / 'd'}",
    ]
    code, planned, err = call("sweep", "decode", *words, "--dry-run")
    assert code == 0, err
    assert planned["trials"][0]["name"] == "the current decoding"
    assert len(planned["trials"]) == 3
    assert not (tmp_path / "d").exists()
    code, body, err = call("sweep", "decode", *words)
    assert code == 0, err
    assert [row["decoding"]["beam_size"] for row in body["trials"]] == [1, 2, 3]
    assert body["trials"][1]["difference"]["count"] == body["clips"] == 40
    code, again, err = call("sweep", "decode", *words)
    assert code == 0, err
    assert again["trials"] == body["trials"]  # with its times: nothing was decoded
    assert err.count("(scored earlier)") == 3
    page = Path(again["report"]).read_bytes()
    Path(again["report"]).unlink()
    code, made, err = call("report", tmp_path / "d")
    assert code == 0, err
    assert Path(made["report"]).read_bytes() == page
    kept = (tmp_path / "d" / "decoding.json").read_bytes()
    code, body, _ = call("sweep", "decode", f"model={run}", "evaluation.beam_size=1,2", words[-1], "data.limit=4")
    assert code == 2
    assert "has the decoding.json of another sweep" in body["error"]
    assert (tmp_path / "d" / "decoding.json").read_bytes() == kept
    words[1:] = ["evaluation.beam_size=1,2", f"sweep.dir={tmp_path / 'e'}", "data.limit=8"]
    code, body, err = call("sweep", "decode", *words)
    assert code == 0, body
    assert body["clips"] == 8


def test_a_sweep_of_decoding_over_other_transcripts_is_another_one(run: Path, tmp_path: Path):
    source = resolve_asset("assets:quickstart/eval.jsonl")
    rows = [json.loads(line) for line in source.read_text("utf-8").splitlines()[:6]]
    rows = [row | {"path": str(source.parent / row["path"])} for row in rows]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"model={run}", "evaluation.beam_size=1,2", f"data.eval={tmp_path / 'dev.jsonl'}"]
    words += ["data.allow_outside_root=true", f"sweep.dir={tmp_path / 'd'}"]
    code, body, _ = call("sweep", "decode", *words)
    assert code == 0, body
    rows[0]["text"] = "one"
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, body, _ = call("sweep", "decode", *words)
    assert code == 2
    assert "(other clips)" in body["error"]


def test_some_clips_of_a_test_are_refused_too(run: Path, tmp_path: Path):
    source = resolve_asset("assets:quickstart/test.jsonl")
    rows = [json.loads(line) for line in source.read_text("utf-8").splitlines()[:30]]
    some = tmp_path / "some.jsonl"
    some.write_text("".join(json.dumps(row | {"path": str(source.parent / row["path"])}) + "\n" for row in rows))
    words = [f"data.eval={some}", "data.allow_outside_root=true", "data.test=assets:quickstart/test.jsonl"]
    code, body, _ = call("calibrate", f"model={run}", *words)
    assert code == 2
    assert "has clips of a test" in body["error"]


@pytest.mark.parametrize("command", ["calibrate", "sweep decode"])
def test_clips_of_a_test_are_refused_by_what_they_are(run: Path, tmp_path: Path, command: str):
    record = json.loads((run / "run.json").read_text("utf-8"))
    tested = tmp_path / "run"
    tested.mkdir()
    for path in run.iterdir():
        if path.name != "run.json":
            (tested / path.name).symlink_to(path)
    record["data_digest"]["test"] = record["data_digest"]["eval"]  # the same lines under another name
    (tested / "run.json").write_text(json.dumps(record), "utf-8")
    beams = ["evaluation.beam_size=1,2"] if command == "sweep decode" else []
    code, body, _ = call(*command.split(), f"model={tested}", *beams)
    assert code == 2
    assert "has clips of a test" in body["error"]


def test_clips_that_were_trained_on_calibrate_nothing(run: Path):
    before = (run / "run.json").read_bytes()
    words = ["data.eval=assets:quickstart/train.jsonl", "data.limit=40"]
    code, body, _ = call("calibrate", f"model={run}", *words)
    assert code == 2
    assert "was trained on: what is chosen or fitted on them holds for no others" in body["error"]
    assert (run / "run.json").read_bytes() == before


def test_a_sweep_of_decoding_refuses_what_has_no_effect_and_a_folder_that_is_not_its_own(run: Path):
    code, body, _ = call("sweep", "decode", f"model={run}", "evaluation.length_penalty=0.5,1")
    assert code == 2
    assert "evaluation.length_penalty has no effect" in body["error"]
    before = sorted(path.name for path in (run / "predictions").iterdir())
    code, body, _ = call("sweep", "decode", f"model={run}", "evaluation.beam_size=1,2", f"sweep.dir={run}")
    assert code == 2
    assert "has a run.json" in body["error"]
    assert sorted(path.name for path in (run / "predictions").iterdir()) == before


def test_a_model_that_is_no_run_cannot_be_calibrated():
    code, body, _ = call("calibrate", *CTC)
    assert code == 2
    assert "is no run" in body["error"]


def test_beam_search_of_ctc_has_no_confidences(speech: Path):
    code, body, _ = call("transcribe", *CTC, "evaluation.confidence=true", "evaluation.beam_size=2", speech)
    assert code == 2
    assert "evaluation.beam_size=1" in body["error"]


@pytest.mark.parametrize("setting", ["length_penalty=0.5", "repetition_penalty=1.2", "no_repeat_ngram_size=3"])
def test_ctc_refuses_penalties_that_it_has_no_place_for(speech: Path, setting: str):
    code, body, _ = call("transcribe", *CTC, "evaluation.beam_size=2", f"evaluation.{setting}", speech)
    assert code == 2
    assert f"evaluation.{setting} is for decoders that write token by token" in body["error"]


@pytest.mark.parametrize("form", [(), ("--adapter",)])
def test_a_tolerance_without_gates_is_refused(run: Path, tmp_path: Path, form: tuple[str, ...]):
    code, body, _ = call("export", run, tmp_path / "e", "--no-parity", "--bake-tolerance", "0.1", *form)
    assert code == 2
    assert "--bake-tolerance=0.1 is about gates" in body["error"]
    assert not (tmp_path / "e").exists()


def test_predictions_replace_predictions_and_no_other_file(run: Path, tmp_path: Path):
    words = [f"model={run}", "data.test=assets:quickstart/test.jsonl", "data.limit=4", "--out"]
    (tmp_path / "clips.jsonl").write_text('{"id": "a", "path": "a.wav", "text": "one"}\n')
    for place in (tmp_path / "clips.jsonl", run / "run.json", run / "predictions" / "after.jsonl"):
        before = place.read_bytes()
        code, body, _ = call("evaluate", *words, place)
        assert code == 2
        assert "Name another with --out" in body["error"] or "name another with --out" in body["error"]
        assert place.read_bytes() == before
    for _ in range(2):
        assert call("evaluate", *words, tmp_path / "said.jsonl")[0] == 0
    assert len((tmp_path / "said.jsonl").read_text("utf-8").splitlines()) == 4
