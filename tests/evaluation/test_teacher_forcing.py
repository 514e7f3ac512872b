"""Perplexity and token accuracy through `evaluate`: who takes part, and that batches change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sonotune.data.manifest import fill_durations, read_manifest
from sonotune.errors import ConfigError, TextError
from sonotune.evaluation.evaluate import EvaluationResult, evaluate
from sonotune.models.base import LoadedModel
from sonotune.models.families.ctc import CtcFamily
from sonotune.models.families.whisper import WhisperFamily
from sonotune.registry import resolve_asset
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.types import Clip

FAMILY = WhisperFamily()


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return FAMILY.load("assets:whisper-nano")


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return fill_durations(read_manifest(resolve_asset("assets:quickstart/test.jsonl")))[:6]


def run(loaded: LoadedModel, clips: list[Clip], **arguments: Any) -> EvaluationResult:
    settings = TaskSettings(language="en", scores=("perplexity", "token_accuracy"))
    return evaluate(Transcribe(FAMILY, settings), loaded, clips, bootstrap=50, **arguments)


def test_each_clip_is_rated_alike_in_any_batch(loaded: LoadedModel, clips: list[Clip]):
    one, many = run(loaded, clips, max_clips=1), run(loaded, clips, max_clips=6)
    for first, second in zip(one.predictions, many.predictions, strict=True):
        assert first.label_tokens is not None
        assert second.label_tokens is not None
        assert first.text == second.text
        assert first.label_tokens.nll == pytest.approx(second.label_tokens.nll, rel=1e-3, abs=1e-3)
        assert first.label_tokens.count == second.label_tokens.count
    assert many.scores["perplexity"].count == 6
    assert 1 <= many.scores["perplexity"].value < 100
    assert 0 < many.scores["token_accuracy"].value <= 1


def test_the_transcript_decides_and_not_what_was_recognised(loaded: LoadedModel, clips: list[Clip]):
    wrong = [replace(clip, text="seven seven nine zero") for clip in clips]
    right, other = run(loaded, clips), run(loaded, wrong)
    assert [one.text for one in right.predictions] == [one.text for one in other.predictions]
    assert other.scores["perplexity"].value > 2 * right.scores["perplexity"].value


def test_what_the_model_cannot_hold_has_no_part_and_is_named(loaded: LoadedModel, clips: list[Clip]):
    changed = [replace(clips[0], text="seven " * 90), replace(clips[1], text="one <|endoftext|>"), *clips[2:]]
    result = run(loaded, changed)
    [found] = [finding for finding in result.findings if finding.check == "evaluation.labels"]
    assert found.clip_ids == (clips[0].id, clips[1].id)
    assert result.scores["perplexity"].count == 4
    assert result.scores["wer"].count == 6
    nothing = run(loaded, changed[:2])
    assert "perplexity" not in nothing.scores
    assert {"evaluation.labels", "evaluation.no_score"} <= {finding.check for finding in nothing.findings}


def test_a_ctc_model_is_refused_before_it_decodes(clips: list[Clip], monkeypatch: pytest.MonkeyPatch):
    family = CtcFamily()
    monkeypatch.setattr(family, "transcribe", None)
    task = Transcribe(family, TaskSettings(scores=("perplexity",)))
    with pytest.raises(ConfigError, match="is a CTC model"):
        evaluate(task, family.load("assets:ctc-nano"), clips)


def test_a_score_that_is_to_decide_and_cannot_be_given_is_refused(loaded: LoadedModel, clips: list[Clip]):
    task = Transcribe(FAMILY, TaskSettings(language="en", primary="punctuation"))
    with pytest.raises(TextError, match=r"punctuation is to decide .* found wer, cer"):
        evaluate(task, loaded, clips, bootstrap=50)


def test_label_tokens_are_written_beside_predictions(loaded: LoadedModel, clips: list[Clip], tmp_path: Path):
    result = run(loaded, clips)
    task = Transcribe(FAMILY, TaskSettings(language="en"))
    row = task.row(result.predictions[0], clips[0])
    assert result.predictions[0].label_tokens is not None
    assert row["label_tokens"] == result.predictions[0].label_tokens.to_json()
