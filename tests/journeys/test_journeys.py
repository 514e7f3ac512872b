"""Whole sessions of three kinds of user, from their own recordings to a model in use."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sonotune import assets

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


def own_recordings(folder: Path, *, clips: int) -> None:
    """`recordings/` and a table of them, as somebody has them: 16 kHz Ogg, a transcript, a speaker."""
    (folder / "recordings").mkdir()
    with (folder / "recordings.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "sentence", "speaker", "domain"])
        for line in (SPEECH / "train.jsonl").read_text("utf-8").splitlines()[:clips]:
            clip = json.loads(line)
            name = Path(clip["path"]).name
            shutil.copy(SPEECH / "audio" / name, folder / "recordings" / name)
            table.writerow([f"recordings/{name}", clip["text"], clip["speaker"], clip["domain"]])


def test_a_researcher_compares_two_ways_to_train(play: Play, tmp_path: Path):
    own_recordings(tmp_path, clips=160)
    play("researcher")
