"""Clips scored through a chain: what is changed, that it is always the same, and that every score says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sonotune import api
from sonotune.audio.chains import CHAINS
from sonotune.data.manifest import read_manifest
from sonotune.errors import ConfigError
from sonotune.evaluation.augmented import CHECK, EvaluationChain
from sonotune.evaluation.evaluate import evaluate
from sonotune.features.workers import Crew
from sonotune.registry import resolve_asset
from sonotune.serving.recognizer import Recognizer
from sonotune.types import Clip

RATE_HZ = 16_000
MODEL = "assets:ctc-nano"
HALL = EvaluationChain(name="hall")


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer.open(MODEL)


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return read_manifest(resolve_asset("assets:quickstart/eval.jsonl"))[:16]


def scored(recognizer: Recognizer, clips: list[Clip], **arguments):
    return recognizer.evaluate(clips, bootstrap=100, **arguments)


def tone(seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def test_no_chain_is_no_change():
    assert EvaluationChain.of("none", 3) is None
    assert EvaluationChain.of("voip", 3) == EvaluationChain(name="voip", seed=3)


def test_every_clip_is_changed_in_the_same_way_each_time():
    def run(chain=HALL, **draw):
        return chain(tone(), RATE_HZ, **({"seed": 0, "epoch": 0, "clip_id": "a"} | draw))

    first = run()
    assert not np.array_equal(first, tone())
    np.testing.assert_array_equal(first, run(seed=7, epoch=3))  # of the run, which decides nothing here
    assert not np.array_equal(first, run(clip_id="b"))
    assert not np.array_equal(first, run(replace(HALL, seed=1)))


def test_windows_of_one_clip_are_of_one_room():
    chain = replace(HALL, owners={"a#1": "a", "a#2": "a", "b": "b"})
    first, second, other = (chain(tone(), RATE_HZ, seed=0, epoch=0, clip_id=name) for name in ("a#1", "a#2", "b"))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_every_score_and_the_result_say_what_they_are_of(recognizer, clips):
    result = scored(recognizer, clips, augmentation=EvaluationChain(name="voip", seed=5))
    assert {score.title for score in result.scores.values()} >= {"WER through voip", "CER through voip"}
    body = json.loads(json.dumps(result.to_json()))
    assert body["augmentation"]["chain"] == "voip"
    assert body["augmentation"]["seed"] == 5
    assert [step["name"] for step in body["augmentation"]["steps"]] == [step.name for step in CHAINS["voip"]]
    titles = {score["title"] for row in body["slices"] for score in row["scores"].values()}
    assert titles
    assert all(title.endswith("through voip") for title in titles)
    [told] = [finding for finding in result.findings if finding.check == CHECK]
    assert "voip" in told.message
    assert "seed 5" in told.message


def test_scores_of_clips_as_they_are_say_nothing_of_a_chain(recognizer, clips):
    body = scored(recognizer, clips).to_json()
    assert body["augmentation"] is None
    assert not any("through" in score.get("title", "") for score in body["scores"].values())
    assert not any(finding["check"] == CHECK for finding in body["findings"])


def test_batches_and_workers_change_nothing_and_the_seed_does(recognizer, clips):
    texts = [
        [one.text for one in scored(recognizer, clips, augmentation=HALL, **how).predictions]
        for how in ({}, {"max_clips": 3})
    ]
    with Crew(1) as crew:
        result = scored(recognizer, clips, augmentation=HALL, crew=crew)
    assert texts[0] == [one.text for one in result.predictions]
    assert texts[0] == texts[1]
    clean = scored(recognizer, clips)
    assert texts[0] != [one.text for one in clean.predictions]
    assert result.scores["cer"].value > clean.scores["cer"].value
    other = scored(recognizer, clips, augmentation=replace(HALL, seed=1))
    assert texts[0] != [one.text for one in other.predictions]


def test_a_long_clip_is_changed_as_well(recognizer, tmp_path: Path):
    """Windows that a chain made longer would be read as they were recorded; no chain changes the length."""
    path = tmp_path / "long.wav"
    soundfile.write(path, np.tile(tone(1.0), 5), RATE_HZ)
    clip = Clip(id="long", path=path, duration_s=5.0, text="one")
    seen = []

    class Spy(EvaluationChain):
        def __call__(self, waveform_S, sample_rate_hz, **draw):
            made = EvaluationChain.__call__(self, waveform_S, sample_rate_hz, **draw)
            seen.append((len(waveform_S), len(made)))
            return made

    evaluate(recognizer.task, recognizer.opened.loaded, [clip], bootstrap=100, augmentation=Spy(name="phone_call"))
    assert seen
    assert all(before == after for before, after in seen)


def test_the_setting_reaches_evaluate_and_is_refused_by_transcribe(tmp_path: Path):
    manifest = resolve_asset("assets:quickstart/eval.jsonl")
    words = {"evaluation.augment": "hall", "evaluation.augment_seed": 2, "data.limit": 4, "data.min_duration_s": 0.1}
    result = api.evaluate(MODEL, manifest, words)
    assert result.augmentation == EvaluationChain(name="hall", seed=2)
    assert result.scores["wer"].title == "WER through hall"
    soundfile.write(tmp_path / "a.wav", tone(), RATE_HZ)
    with pytest.raises(ConfigError, match=r"evaluation\.augment=hall"):
        api.transcribe(MODEL, [tmp_path / "a.wav"], {"evaluation.augment": "hall"})


def test_names_that_are_no_chain_are_refused():
    with pytest.raises(ConfigError, match="phone_call, voip, whatsapp, hall"):
        api.settings_of_use([f"model.checkpoint={MODEL}", "evaluation.augment=telephone"])
    with pytest.raises(ConfigError, match=r"evaluation\.augment is none"):
        api.settings_of_use([f"model.checkpoint={MODEL}", "evaluation.augment_seed=3"])
