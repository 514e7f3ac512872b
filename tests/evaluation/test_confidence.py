"""Confidences of the words of an evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sonotune.data.text import get
from sonotune.errors import ConfigError
from sonotune.evaluation.confidence import WordConfidence, kept_curves
from sonotune.metrics.confidence import MIN_WORDS
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.classify import Classify
from sonotune.tasks.transcribe import Transcribe
from sonotune.types import Clip, Prediction, RecognizedWord

SETTINGS = {"evaluation.beam_size": 1, "model.context": "thinned", "quantization.bits": 16}


class NoFamily:
    """Scoring asks nothing of a family."""


def task() -> Transcribe:
    return Transcribe(NoFamily(), TaskSettings(scoring_text=get("basic")))  # type: ignore[arg-type]


def clips_of(*pairs: tuple[str, str], sure: float = 0.8) -> tuple[list[Prediction], list[Clip]]:
    """Clips of a hypothesis and a reference each; right words are as sure as told, others half as sure."""
    predictions, clips = [], []
    for number, (hypothesis, reference) in enumerate(pairs):
        words = tuple(
            RecognizedWord(text=word, logprobs=(float(np.log(sure if word in reference.split() else sure / 2)),))
            for word in hypothesis.split()
        )
        predictions.append(Prediction(clip_id=f"c{number}", text=hypothesis, words=words))
        clips.append(Clip(id=f"c{number}", path=Path("x.wav"), duration_s=1.0, text=reference))
    return predictions, clips


MIXED = [("one two", "one two"), ("one too", "one two"), ("three four", "three more")] * 20


def test_every_word_gets_a_confidence_and_the_text_stays():
    predictions, _ = clips_of(*MIXED)
    rated = WordConfidence(task(), None, SETTINGS).rate(predictions)
    assert [one.text for one in rated] == [one.text for one in predictions]
    assert [word.confidence for word in rated[1].words or ()] == pytest.approx([0.8, 0.4])


def test_a_calibration_fitted_on_some_clips_says_of_them_how_often_words_are_right():
    predictions, clips = clips_of(*MIXED)
    made, findings = WordConfidence(task(), None, SETTINGS).fit(predictions, clips)
    assert made is not None
    assert not findings
    assert (made.words, made.clips) == (120, 60)
    calibrated = WordConfidence(task(), made, SETTINGS)
    scores = calibrated.score(predictions, clips, resamples=50, seed=0)
    assert scores["ece"].value < 0.05 < scores["ece_uncalibrated"].value
    assert scores["ece"].count == 60
    notes = [found.message for found in calibrated.findings(predictions, clips)]
    assert notes == []
    assert calibrated.details(predictions, clips)["confidence"]["calibrated"] is True


def test_what_confidences_are_worth_is_said_of_other_decoding_and_of_none():
    predictions, clips = clips_of(*MIXED)
    made, _ = WordConfidence(task(), None, SETTINGS).fit(predictions, clips)
    [other] = WordConfidence(task(), made, SETTINGS | {"evaluation.beam_size": 4, "model.context": "full"}).findings(
        predictions, clips
    )
    assert "written with evaluation.beam_size=1, model.context=thinned" in other.message
    [bare] = WordConfidence(task(), None, SETTINGS).findings(predictions, clips)
    assert "not calibrated" in bare.message


@pytest.mark.parametrize("hypothesis", ["", "-"])
def test_without_a_word_there_is_a_sentence_and_no_number(hypothesis: str):
    predictions, clips = clips_of((hypothesis, "one two"), (hypothesis, "three"))
    words = WordConfidence(task(), None, SETTINGS)
    assert words.score(predictions, clips, resamples=50, seed=0) == {}
    assert words.details(predictions, clips) == {}
    assert "no word was written on 2 clips" in words.findings(predictions, clips)[0].message
    made, [finding] = words.fit(predictions, clips)
    assert made is None
    assert f"have 0 words, and at least {MIN_WORDS} are needed" in finding.message


def test_words_that_are_all_right_have_no_auroc_and_a_sentence():
    predictions, clips = clips_of(*[("one two", "one two")] * 40)
    words = WordConfidence(task(), None, SETTINGS)
    assert sorted(words.score(predictions, clips, resamples=50, seed=0)) == ["aurc", "ece"]
    told = words.findings(predictions, clips)[0].message
    assert "all 80 words are right" in told
    assert "(AURC) is 0 %" in told


def test_a_slice_has_scores_of_its_own_words_and_none_of_few():
    predictions, clips = clips_of(*MIXED)
    words = WordConfidence(task(), None, SETTINGS)
    part = slice(0, 30)
    found = words.score_slice(predictions[part], clips[part], resamples=50, seed=0)
    alone = words.score(predictions[part], clips[part], resamples=50, seed=0)
    assert found == {name: alone[name] for name in ("ece", "auroc", "aurc")}
    assert found["ece"].detail["words"] == 60
    assert words.score_slice(predictions[:20], clips[:20], resamples=50, seed=0) == {}


def test_a_record_keeps_the_confidences_of_slices_and_no_other_scores():
    score = {"value": 0.1}
    rows = [
        {"by": "domain", "value": "phone", "clips": 9, "seconds": 3.0, "scores": {"wer": score, "ece": score}},
        {"by": "domain", "value": "studio", "clips": 1, "seconds": 3.0, "scores": {"wer": score}},
    ]
    kept = kept_curves({"words": 9}, rows)
    assert kept == {
        "words": 9,
        "slices": [{"by": "domain", "value": "phone", "clips": 9, "scores": {"ece": score}}],
    }


def test_surer_words_that_are_less_often_right_are_not_calibrated():
    predictions, clips = clips_of(*[("one two", "one two"), ("one too", "one two")] * 40)
    turned = [
        replace(one, words=tuple(replace(word, logprobs=(-3.0 if word.text != "too" else -0.1,)) for word in one.words))
        for one in predictions
        if one.words is not None
    ]
    made, [finding] = WordConfidence(task(), None, SETTINGS).fit(turned, clips)
    assert made is None
    assert "the surer ones are not shown to be more often right" in finding.message


@pytest.mark.parametrize("right", [True, False])
def test_words_that_are_all_right_or_all_wrong_calibrate_nothing(right: bool):
    predictions, clips = clips_of(*[("one two", "one two"), ("three", "three")] * 40)
    rng = np.random.default_rng(3)
    varied = [
        replace(one, words=tuple(replace(word, logprobs=(float(-rng.random()),)) for word in one.words))
        for one in predictions
        if one.words is not None
    ]
    references = clips if right else [replace(clip, text="four five") for clip in clips]
    made, [finding] = WordConfidence(task(), None, SETTINGS).fit(varied, references)
    assert made is None
    assert "not shown to be more often right" in finding.message


def test_clips_without_a_reference_are_not_fitted_on():
    predictions, clips = clips_of(*MIXED)
    without = [replace(clip, text=None) if number < 30 else clip for number, clip in enumerate(clips)]
    made, _ = WordConfidence(task(), None, SETTINGS).fit(predictions, without)
    assert made is not None
    assert made.clips == 30


def test_classes_have_no_words():
    class NoModel:
        labels = ("a", "b")

    with pytest.raises(ConfigError, match="classes have none"):
        WordConfidence(Classify(NoModel(), TaskSettings()), None, SETTINGS)  # type: ignore[arg-type]


def test_rows_of_predictions_have_the_words():
    predictions, clips = clips_of(*MIXED[:2])
    made = task()
    row = json.loads(json.dumps(dict(made.row(WordConfidence(made, None, SETTINGS).rate(predictions)[1], clips[1]))))
    assert [(word["text"], word["right"]) for word in row["words"]] == [("one", True), ("too", False)]
    assert row["words"][0]["confidence"] == pytest.approx(0.8)
    assert row["words"][0]["logprobs"] == pytest.approx([np.log(0.8)], abs=1e-5)
    assert "words" not in made.row(replace(predictions[0], words=None), clips[0])
    assert "right" not in made.row(predictions[1], replace(clips[1], text=None))["words"][0]
