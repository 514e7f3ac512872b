"""The clips of a run: silence is seen, and an empty transcript says that nothing is said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from sonotune.data.corpus import Corpus, load_corpus
from sonotune.errors import ManifestError
from sonotune.types import Finding

RATE_HZ = 8_000
TONE = 0.1 * np.sin(2 * np.pi * 220 * np.arange(RATE_HZ) / RATE_HZ)
NOTHING = np.zeros(RATE_HZ)
DITHER = np.random.default_rng(0).integers(-1, 2, RATE_HZ) / 2**15
WAVEFORMS: Mapping[str, NDArray[np.float64]] = {
    "tone": TONE,
    "quiet": 0.01 * TONE,
    "zeros": NOTHING,
    "offset": NOTHING + 0.3,
    "dither": DITHER,
    "opposed": np.stack([TONE, -TONE], axis=1),
    "one_side": np.stack([NOTHING, TONE], axis=1),
}
SILENT = {"zeros", "offset", "dither", "opposed"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, waveform in WAVEFORMS.items():
        soundfile.write(tmp_path / f"{name}.wav", waveform, RATE_HZ, subtype="PCM_16")
    return tmp_path


def write(folder: Path, name: str, *clips: dict[str, Any]) -> str:
    path = folder / f"{name}.jsonl"
    lines = [{"id": f"{name}{place}", **clip, "path": f"{clip['path']}.wav"} for place, clip in enumerate(clips)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return str(path)


def load(sources: dict[str, str], **changes: Any) -> Corpus:
    given: dict[str, Any] = {
        "root": None,
        "allow_outside_root": False,
        "min_duration_s": 0.0,
        "max_duration_s": None,
        "check": "decode",
        "max_bad_fraction": 0.9,
        "truncated": "use",
        "eval_speakers": (),
        "eval_fraction": 0.5,
        "leaks": "report",
        "limit": None,
        "seed": 0,
    }
    return load_corpus(sources, **(given | changes))


def silent(corpus: Corpus) -> list[Finding]:
    return [finding for finding in corpus.findings if finding.check == "audio.silent"]


def everything(text: str | None = "one", **more: Any) -> list[dict[str, Any]]:
    return [{"id": name, "path": name, "text": text, **more} for name in WAVEFORMS]


def test_training_clips_without_signal_that_have_words_are_left_out(folder: Path):
    sources = {
        "train": write(folder, "train", *everything()),
        "eval": write(folder, "eval", {"path": "tone", "text": "x"}),
    }
    corpus = load(sources)
    assert {clip.id for clip in corpus.splits["train"]} == set(WAVEFORMS) - SILENT
    [finding] = [finding for finding in corpus.findings if finding.check == "data.no_signal"]
    assert set(finding.clip_ids) == SILENT
    assert finding.severity == "warning"
    assert "Channels 0 and 1 of the file have a signal, and the channels cancel each other in" in finding.message
    assert load(sources, max_bad_fraction=0.0).splits["train"] == corpus.splits["train"]  # none of them is bad audio
    assert {clip.id for clip in load(sources, silence_db=-200.0).splits["train"]} == set(WAVEFORMS)
    assert {clip.id for clip in load(sources, check="header").splits["train"]} == set(WAVEFORMS)


def test_what_is_held_out_does_not_depend_on_what_is_silent(folder: Path):
    clips = [
        {"path": path, "text": "one", "speaker": f"s{place % 4}"} for place, path in enumerate(["tone", "zeros"] * 8)
    ]
    sources = {"train": write(folder, "train", *clips)}
    usual, loud = load(sources), load(sources, silence_db=-200.0)
    assert usual.splits["eval"] == loud.splits["eval"]
    assert {clip.path.name for clip in usual.splits["train"]} <= {"tone.wav"}


def test_a_split_of_nothing_but_silence_says_so(folder: Path):
    sources = {name: write(folder, name, {"path": "zeros", "text": "one"}) for name in ("train", "eval")}
    with pytest.raises(ManifestError, match=r"no clip of data.train is left.*data.silence_db"):
        load(sources)


def test_a_named_channel_is_what_counts(folder: Path):
    clips = [
        {"id": f"{name}{channel}", "path": name, "text": "one", "channel": channel}
        for name in ("opposed", "one_side")
        for channel in (0, 1)
    ]
    corpus = load({"eval": write(folder, "eval", *clips)})
    [finding] = silent(corpus)
    assert finding.clip_ids == ("one_side0",)
    assert "Channel 1 of the file has one." in finding.message


def test_scored_clips_without_signal_stay_and_are_told(folder: Path):
    clips = [*everything(), {"id": "said", "path": "zeros", "text": ""}]
    corpus = load({"test": write(folder, "test", *clips)})
    assert len(corpus.splits["test"]) == len(clips)
    told = {finding.severity: set(finding.clip_ids) for finding in silent(corpus)}
    assert told == {"warning": SILENT, "note": {"said"}}
    warning = next(finding for finding in silent(corpus) if finding.severity == "warning")
    said = (
        f"{len(SILENT)} of {len(clips)} clips of data.test have no signal in their audio and words in their transcript"
    )
    assert said in warning.message


def test_silence_may_be_a_class(folder: Path):
    clips = [{"path": "zeros", "label": "nothing"}, {"path": "tone", "label": "tone"}]
    sources = {name: write(folder, name, *clips) for name in ("train", "eval")}
    corpus = load(sources, require="label")
    assert [len(corpus.splits[name]) for name in ("train", "eval")] == [2, 2]
    assert {finding.severity for finding in silent(corpus)} == {"note"}


@pytest.mark.parametrize(("empty_texts", "trained"), [("leave_out", 1), ("learn", 3)])
def test_an_empty_transcript_is_scored_and_trained_on_if_asked(folder: Path, empty_texts: str, trained: int):
    clips = [
        {"path": "tone", "text": "one"},
        {"path": "tone", "text": ""},
        {"path": "zeros", "text": " "},
        {"path": "tone"},
    ]
    sources = {name: write(folder, name, *clips) for name in ("train", "eval", "test")}
    corpus = load(sources, empty_texts=empty_texts)
    assert {name: len(found) for name, found in corpus.splits.items()} == {"train": trained, "eval": 3, "test": 3}
    left_out = {finding.check: finding.clip_ids for finding in corpus.findings if finding.check.startswith("data.")}
    assert ("data.empty_text" in left_out) == (empty_texts == "leave_out")
    if empty_texts == "leave_out":
        assert left_out["data.empty_text"] == ("train1", "train2")


def test_clips_that_say_nothing_are_among_those_held_out(folder: Path):
    clips = [
        {"path": "tone", "text": text, "speaker": f"s{place % 4}"}
        for place, text in enumerate(["one", "", "two", ""] * 3)
    ]
    corpus = load({"train": write(folder, "train", *clips)}, eval_speakers=("s0", "s1"))
    assert [clip.text for clip in corpus.splits["eval"]].count("") == 3
    assert [clip.text for clip in corpus.splits["train"]] == ["two"] * 3


def test_nothing_but_silence_can_be_scored_and_not_trained_on(folder: Path):
    clips = [{"path": "tone", "text": ""}, {"path": "zeros", "text": ""}]
    assert len(load({"test": write(folder, "test", *clips)}).splits["test"]) == 2
    sources = {"train": write(folder, "train", *clips), "eval": write(folder, "eval", *clips)}
    with pytest.raises(ManifestError, match=r"have an empty transcript \(data.empty_texts=learn"):
        load(sources)
