"""A run that says what it broke."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sonotune.cli import app
from sonotune.config.load import LoadedConfig
from sonotune.errors import ConfigError, ManifestError
from sonotune.evaluation.retention.nonspeech import NonspeechPanel
from sonotune.runs import read_record
from sonotune.training.run import run

Settings = Callable[..., LoadedConfig]
PANELS = '["nonspeech", "{}"]'


def keep(corpus: Path) -> tuple[str, ...]:
    return f"evaluation.keep={PANELS.format(corpus / 'train.jsonl')}", "evaluation.keep_clips=7"


def test_a_run_keeps_what_it_broke_and_what_each_scale_scores(settings: Settings, corpus: Path, tmp_path: Path):
    record, folder = run(settings(*keep(corpus), "evaluation.adapter_scales=[0, 0.5, 1]"))
    sounds, clips = record.retention
    assert (sounds["panel"], sounds["clips"], sounds["score"]) == ("nonspeech", 7, "clips_with_words")
    assert clips["panel"].endswith("/train")
    assert set(clips["before"]) == set(clips["after"]) == set(clips["difference"]) == {"wer"}
    found = clips["difference"]["wer"]
    assert found["value"] == pytest.approx(clips["after"]["wer"]["value"] - clips["before"]["wer"]["value"])
    assert found["low"] <= found["value"] <= found["high"]
    points = record.adapter_scales["points"]
    assert [point["scale"] for point in points] == [0, 0.5, 1]
    assert points[0]["scores"]["wer"]["value"] == record.scores["before"]["wer"]["value"]
    assert points[2]["scores"]["wer"]["value"] == record.scores["after"]["wer"]["value"]
    assert points[0]["panels"][clips["panel"]]["scores"] == clips["before"]
    assert points[2]["panels"]["nonspeech"]["scores"] == sounds["after"]
    assert read_record(folder).retention == record.retention
    assert len(list((folder / "retention").iterdir())) == 2


def test_a_run_without_panels_keeps_nothing(settings: Settings):
    record, folder = run(settings("training.max_epochs=1"))
    assert record.retention == ()
    assert record.adapter_scales == {}
    assert not (folder / "retention").exists()


def test_a_run_that_goes_on_reads_what_the_base_did(settings: Settings, corpus: Path, monkeypatch: pytest.MonkeyPatch):
    first, _ = run(settings(*keep(corpus)))
    asked: list[int] = []
    measure = NonspeechPanel.measure

    def counted(self: NonspeechPanel, task: Any, loaded: Any, clips: Any, predict: Any) -> Any:
        asked.append(len(clips))
        return measure(self, task, loaded, clips, predict)

    monkeypatch.setattr(NonspeechPanel, "measure", counted)
    changed = settings(*keep(corpus), "training.max_epochs=3", "run.allow_change=[training.max_epochs]")
    second, _ = run(changed)
    assert asked == [7]  # after training; what the base did is in the directory
    assert second.retention[0]["before"] == first.retention[0]["before"]
    assert second.retention[0]["digest"] == first.retention[0]["digest"]


def test_full_fine_tuning_is_compared_with_where_it_began(settings: Settings, corpus: Path):
    record, folder = run(settings(*keep(corpus), "adapter.kind=none", "training.learning_rate=1e-2"))
    [sounds, clips] = record.retention
    words = [f"model={folder}", f"data.test={corpus / 'eval.jsonl'}", *keep(corpus), "training.precision=fp32"]
    words += ["evaluation.adapter_scales=[0, 0.5, 1]", "evaluation.max_new_tokens=4", "evaluation.bootstrap=100"]
    result = CliRunner().invoke(app, ["evaluate", *words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["retention"][1]["before"]["wer"]["value"] == clips["before"]["wer"]["value"]
    assert told["retention"][1]["after"]["wer"]["value"] == clips["after"]["wer"]["value"]
    assert [point["scale"] for point in told["adapter_scales"]["points"]] == [0, 0.5, 1]
    assert sounds["panel"] == told["retention"][0]["panel"]


def test_scales_of_a_run_that_trains_every_weight_are_refused_before_it_trains(settings: Settings, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"evaluation\.adapter_scales needs an adapter"):
        run(settings("adapter.kind=none", "training.learning_rate=1e-3", "evaluation.adapter_scales=[0, 1]"))
    assert not (tmp_path / "run").exists()


def test_a_panel_that_cannot_be_read_stops_the_run_before_it_trains(settings: Settings, tmp_path: Path):
    with pytest.raises(ManifestError, match=r"evaluation\.keep=gone\.jsonl"):
        run(settings("evaluation.keep=[gone.jsonl]"))
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_an_evaluation_of_a_run_adds_to_its_record_and_report(settings: Settings, corpus: Path):
    _, folder = run(settings("training.max_epochs=1"))
    words = [f"model={folder}", f"data.test={corpus / 'eval.jsonl'}", *keep(corpus), "training.precision=fp32"]
    words += ["evaluation.max_new_tokens=4", "evaluation.bootstrap=100"]
    runner = CliRunner()
    assert runner.invoke(app, ["report", str(folder)]).exit_code == 0
    assert "What tuning broke" not in (folder / "report.html").read_text()
    result = runner.invoke(app, ["evaluate", *words])
    assert result.exit_code == 0, result.output
    assert "nonspeech: Clips with words" in result.output
    record = read_record(folder)
    assert [row["panel"].rpartition("/")[2] for row in record.retention] == ["nonspeech", "train"]
    assert "What tuning broke" in (folder / "report.html").read_text()
    again = runner.invoke(app, ["evaluate", *words])
    assert again.exit_code == 0
    assert len(read_record(folder).retention) == 2


def test_a_model_whose_base_nobody_knows_is_refused(tiny_model: Path, corpus: Path):
    words = [f"model={tiny_model}", f"data.test={corpus / 'eval.jsonl'}", "evaluation.keep=[nonspeech]"]
    with pytest.raises(ConfigError, match="nothing says which one"):
        CliRunner().invoke(app, ["evaluate", *words], catch_exceptions=False)
