"""Whole sessions of three kinds of user, from their own recordings to a model in use."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sonotune import assets
from sonotune.audio import io as audio

ROOT = Path(__file__).resolve().parents[2]
SPEECH = Path(assets.__file__).parent / "quickstart"
Play = Callable[..., None]


@pytest.mark.parametrize(
    ("expected", "shown", "same"),
    [
        ("a\nb", "a\nb", True),
        ("a\nb", "a", False),
        ("a", "a\nb", False),
        ("", "", True),
        ("", "a", False),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...\nd", "a\nd", True),
        ("a\n...\nd", "a\nb\nc", False),
        ("tuned WER  27.7 % [20.2, 36.1] after 88 s", "tuned WER   9.1 % [3.0, 12.2]  after 1 min 20 s", True),
        ("on 50 clips", "on 49 clips", False),
        ("5.4 MB", "812 kB", True),
    ],
)
def test_numbers_may_differ_and_words_may_not(
    shown_as: Callable[[str, str], bool], expected: str, shown: str, same: bool
):
    assert shown_as(expected, shown) is same


@pytest.mark.parametrize(
    ("line", "left_out"),
    [
        ("starting: 1 s", True),
        ("training: 5 of 6 steps, loss 5.189, WER 100.0 %, 11.4 clips/s, 32 s, about 6 s left", True),
        ("step 3: recognising: 50 clips, took 19 s", True),
        ("before training: WER 54.2 % on 25 development clips", False),
        ("train: 24 clips, 2.1 min, 1 speaker", False),
        ("took     47 s, peak memory 1087 MiB", False),
    ],
)
def test_lines_about_phases_are_told_from_others(is_of_a_phase: Callable[[str], bool], line: str, left_out: bool):
    assert is_of_a_phase(line) is left_out


def write_table(folder: Path, name: str, clips: list[dict[str, Any]], source: Path) -> None:
    """`recordings/` and a table of them, as somebody has them: a path, a transcript, and what else is known."""
    (folder / "recordings").mkdir()
    columns = ["speaker", "domain", "language"]
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "sentence", *columns])
        for clip in clips:
            recording = source / (clip.get("path") or clip["audio"])
            shutil.copy(recording, folder / "recordings" / recording.name)
            table.writerow(
                [f"recordings/{recording.name}", clip["text"], *(clip.get(column, "") for column in columns)]
            )


def some_clips(manifest: Path, *, count: int, longest_s: float) -> list[dict[str, Any]]:
    clips = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    return [clip for clip in clips if clip["duration_s"] <= longest_s][:count]


@pytest.mark.slow
def test_a_researcher_compares_two_ways_to_train(play: Play, tmp_path: Path):
    clips = some_clips(SPEECH / "train.jsonl", count=160, longest_s=5.0)
    write_table(tmp_path, "recordings.csv", clips, SPEECH)
    play("researcher")


def test_an_engineer_with_one_card_has_a_folder_for_each_keyword(play: Play, tmp_path: Path):
    clips = some_clips(SPEECH / "train.jsonl", count=60, longest_s=5.0)
    for index, clip in enumerate(clips):
        word = ("one", "two", "three")[index % 3]
        (tmp_path / "sounds" / word).mkdir(parents=True, exist_ok=True)
        waveform_S = audio.read(SPEECH / clip["path"])
        audio.write(tmp_path / "sounds" / word / f"{word}-{index // 3}.wav", waveform_S, 16_000)
    play("one_card")


@pytest.mark.slow
@pytest.mark.realdata
def test_a_team_tunes_the_published_whisper_on_one_reader(play: Play, tmp_path: Path, whisper_base: Path):
    source = corpus("swahili")
    clips = [
        *some_clips(source / "train.jsonl", count=20, longest_s=12.0),
        *some_clips(source / "test.jsonl", count=10, longest_s=10.0),
    ]
    write_table(tmp_path, "swahili.csv", clips, source)
    shutil.copy(source / clips[20]["audio"], tmp_path / "recordings" / "test-000.opus")
    play("low_resource", WHISPER=whisper_base)


@pytest.mark.slow
@pytest.mark.realdata
def test_a_team_tunes_the_published_whisper_without_names_of_speakers(play: Play, tmp_path: Path, whisper_base: Path):
    source = corpus("breton")
    write_table(tmp_path, "breton.csv", some_clips(source / "all.jsonl", count=24, longest_s=6.0), source)
    play("breton", WHISPER=whisper_base)


def corpus(name: str) -> Path:
    """A folder of real recordings beside the checkout, or named by `SONOTUNE_CORPORA`."""
    for place in (os.environ.get("SONOTUNE_CORPORA"), ROOT.parent / "shared" / "data"):
        if place and (Path(place) / name).is_dir():
            return Path(place) / name
    pytest.skip(f"real recordings not found: set SONOTUNE_CORPORA to a folder that holds {name}")
