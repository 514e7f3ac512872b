"""The file of choices: it only grows, goes on after a kill, and is refused where it is of something else."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from sonotune.errors import ManifestError
from sonotune.listening.choices import ChoiceLog, Entry, Session, check_entry, last_corrections, read_choices

SESSION = Session(mode="blind", seed=3, form="written", clips=200, random=None, files=("a" * 64, "b" * 64))
AT = "2026-12-01T10:00:00+00:00"


def choice(clip: str, listener: str = "דנה") -> Entry:
    return {"kind": "choice", "clip": clip, "choice": "left", "listener": listener, "at": AT}


def test_a_log_goes_on_where_it_was_killed_in_a_line(tmp_path: Path):
    path = tmp_path / "choices.jsonl"
    log = ChoiceLog(path=path, session=SESSION)
    log.add(choice("a"))
    log.add(choice("b\u2028"))
    whole = path.read_bytes()
    assert whole.isascii()
    path.write_bytes(whole + b'{"kind": "choice", "cl')
    assert read_choices(path) == (SESSION, log.entries)
    again = ChoiceLog(path=path, session=SESSION)
    assert path.read_bytes() == whole
    assert again.entries == log.entries
    again.add(choice("c"))
    assert read_choices(path)[1] == [choice("a"), choice("b\u2028"), choice("c")]
    assert path.read_bytes().startswith(whole)


def test_lines_of_several_threads_stay_whole(tmp_path: Path):
    log = ChoiceLog(path=tmp_path / "choices.jsonl", session=SESSION)
    threads = [
        threading.Thread(target=lambda name=str(name): [log.add(choice(f"c{i}", name)) for i in range(25)])
        for name in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_choices(log.path)[1] == log.entries
    assert len(log.entries) == 200


def test_the_log_of_another_comparison_is_not_written_to(tmp_path: Path):
    path = tmp_path / "choices.jsonl"
    ChoiceLog(path=path, session=SESSION).add(choice("a"))
    before = path.read_bytes()
    with pytest.raises(ManifestError, match=r"seed 3 and not 4.*--choices"):
        ChoiceLog(path=path, session=replace(SESSION, seed=4))
    with pytest.raises(ManifestError, match="other predictions"):
        ChoiceLog(path=path, session=replace(SESSION, files=("c" * 64, "b" * 64)))
    assert path.read_bytes() == before


def test_two_files_one_behind_the_other_are_one(tmp_path: Path):
    path = tmp_path / "choices.jsonl"
    log = ChoiceLog(path=path, session=SESSION)
    log.add(choice("a"))
    path.write_bytes(2 * path.read_bytes())
    assert read_choices(path)[1] == [choice("a"), choice("a")]
    other = json.dumps(replace(SESSION, seed=9).to_json()).encode()
    path.write_bytes(path.read_bytes() + other + b"\n")
    with pytest.raises(ManifestError, match=r"choices.jsonl:5 begins another comparison"):
        read_choices(path)


def test_corrections_are_composed_and_the_last_one_counts():
    lines = [
        check_entry(
            {"kind": "correction", "clip": "a", "was": None, "text": text, "listener": "ana", "at": AT}, "the request"
        )
        for text in ("first", " cafe\u0301 \n au  lait ")
    ]
    assert last_corrections(lines)["a"]["text"] == "café au lait"


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "choice", "clip": "a", "choice": "both", "listener": "x", "at": AT},
        {"kind": "choice", "clip": 7, "choice": "left", "listener": "x", "at": AT},
        {"kind": "choice", "clip": "a", "choice": "left", "listener": "", "at": AT},
        {"kind": "choice", "clip": "a", "choice": "left", "at": AT},
        {"kind": "correction", "clip": "a", "text": "x" * 20_001, "was": "", "listener": "x", "at": AT},
        {"kind": "session"},
        {"kind": ["choice"]},
        {},
    ],
)
def test_other_lines_are_refused(value: dict[str, object]):
    with pytest.raises(ManifestError, match="the request"):
        check_entry(value, "the request")
