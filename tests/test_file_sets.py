"""Files that belong together are replaced together, and nothing of another origin goes with them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sonotune.errors import ManifestError, RunDirectoryError
from sonotune.runs.file_sets import check_whole, write_set

MARK = "set.json"


def write(folder: Path, *, overwrite: bool = False, **files: str) -> None:
    contents = {name: text.encode() for name, text in files.items()}
    write_set(folder, contents, mark=MARK, about={"seed": 1}, overwrite=overwrite)


def held(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != MARK}


@pytest.fixture(params=["alone", "among others", "working directory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a folder can be swapped for another, and where it cannot."""
    target = tmp_path / "target"
    if request.param != "alone":
        target.mkdir()
    if request.param == "among others":
        (target / "audio.wav").write_text("sound")
    if request.param == "working directory":
        monkeypatch.chdir(target)
    return target


def own(folder: Path) -> dict[str, str]:
    return {name: text for name, text in held(folder).items() if name != "audio.wav"}


def test_a_set_replaces_an_earlier_one_and_what_it_lacks_is_removed(folder: Path):
    write(folder, a="1", b="1", c="1")
    write(folder, a="2", d="2")
    assert own(folder) == {"a": "2", "d": "2"}
    assert json.loads((folder / MARK).read_text())["seed"] == 1
    assert not [path for path in (*folder.iterdir(), *folder.parent.iterdir()) if path.name.startswith(".")]


def test_files_of_another_origin_are_refused_and_stay(folder: Path):
    folder.mkdir(exist_ok=True)
    (folder / "a").write_text("by hand")
    with pytest.raises(RunDirectoryError, match=r"a was not written with set.json.*--overwrite"):
        write(folder, a="1")
    assert own(folder) == {"a": "by hand"}
    write(folder, a="1", b="1", overwrite=True)
    (folder / "b").write_text("changed")
    with pytest.raises(RunDirectoryError, match=r"b was changed since"):
        write(folder, a="2")
    assert own(folder) == {"a": "1", "b": "changed"}


@pytest.mark.parametrize("name", ["a", MARK])
def test_links_are_refused_and_what_they_name_is_not_touched(folder: Path, tmp_path: Path, name: str):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    folder.mkdir(exist_ok=True)
    (folder / name).symlink_to(secret)
    with pytest.raises(RunDirectoryError, match="is a link"):
        write(folder, a="1", overwrite=True)
    assert secret.read_text() == "mine"
    assert (folder / name).is_symlink()


def test_a_mark_of_another_origin_removes_nothing(folder: Path, tmp_path: Path):
    (tmp_path / "outside").write_text("mine")
    write(folder, a="1")
    mark = json.loads((folder / MARK).read_text())
    digest = next(iter(mark["files"].values()))
    (tmp_path / "outside").write_text("1")
    (folder / MARK).write_text(json.dumps({"files": {"a": digest, "../outside": digest, ".": digest}}))
    write(folder, b="2")
    assert (tmp_path / "outside").read_text() == "1"
    assert own(folder) == {"b": "2"}
    (folder / MARK).write_text(json.dumps({"another": "tool"}))
    with pytest.raises(RunDirectoryError, match="of another origin"):
        write(folder, b="3", overwrite=True)


def test_a_set_that_was_left_half_is_refused_and_completed(tmp_path: Path):
    """As a kill leaves it in a folder that holds other things."""
    (tmp_path / "audio.wav").write_text("sound")
    write(tmp_path, a="1", b="1")
    mark = json.loads((tmp_path / MARK).read_text())
    (tmp_path / MARK).write_text(json.dumps({**mark, "replaces": mark["files"]}))
    (tmp_path / "a").unlink()

    def check(name: str) -> None:
        check_whole(tmp_path / name, mark=MARK, again="the command", error=ManifestError)

    with pytest.raises(ManifestError, match=r"not finished.*`the command`"):
        check("b")
    check("another")
    write(tmp_path, a="2", b="2")
    check("b")
    assert held(tmp_path) == {"a": "2", "b": "2", "audio.wav": "sound"}
    (tmp_path / MARK).write_text("[]")
    check("b")  # not ours


def test_a_full_disk_leaves_the_old_set(folder: Path, monkeypatch: pytest.MonkeyPatch):
    write(folder, a="1", b="1")
    honest: Callable[[int], None] = os.fsync
    left = 2

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        honest(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Exception, match="disk is full") as caught:
        write(folder, a="2", b="2")
    monkeypatch.undo()
    assert getattr(caught.value, "exit_code", None) == 5
    assert own(folder) == {"a": "1", "b": "1"}
    check_whole(folder / "a", mark=MARK, again="", error=ManifestError)


def test_a_draft_is_never_taken_for_that_of_a_process_that_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sonotune.runs.folders.secrets.token_hex", lambda size: "9" * 2 * size)
    (tmp_path / "mine.txt").write_text("mine")
    write_set(tmp_path, {"train.jsonl": b"new"}, mark="m.json", about={})
    assert (tmp_path / "train.jsonl").read_bytes() == b"new"
