"""A folder that is replaced at one instant."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sonotune.errors import RunDirectoryError
from sonotune.runs import folders
from sonotune.runs.folders import adding, exchange, replacing


def fill(folder: Path, text: str) -> None:
    with replacing(folder) as draft:
        (draft / "inner").mkdir()
        (draft / "inner" / "file").write_text(text)


@pytest.mark.parametrize("at_once", [True, False])
def test_an_old_folder_is_replaced_and_nothing_else_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
):
    if not at_once:
        monkeypatch.setattr(folders.sys, "platform", "darwin")
    target = tmp_path / "deep" / "target"
    fill(target, "one")
    (target / "own").write_text("of the old one")
    fill(target, "two")
    assert (target / "inner" / "file").read_text() == "two"
    assert not (target / "own").exists()
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_block_that_fails_leaves_the_old_one(tmp_path: Path):
    target = tmp_path / "target"
    fill(target, "one")

    def killed() -> None:
        with replacing(target) as draft:
            (draft / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert (target / "inner" / "file").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_two_steps_are_undone_where_the_second_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folders.sys, "platform", "darwin")
    fill(tmp_path / "target", "one")
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "absent", tmp_path / "target")
    assert (tmp_path / "target" / "inner" / "file").read_text() == "one"


DRAFT = """
import sys, time
from pathlib import Path
from sonotune.runs.folders import replacing
with replacing(Path(sys.argv[1])) as draft:
    (draft / "half").touch()
    print(draft, flush=True)
    time.sleep(60)
"""


def test_a_draft_stays_while_its_process_runs_and_the_next_one_removes_it(tmp_path: Path):
    target, others = tmp_path / "target", [tmp_path / ".target.mine.tmp", tmp_path / ".target2.0123abcd.tmp"]
    for folder in others:
        folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", DRAFT, target], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        draft = Path(process.stdout.readline().strip())
        fill(target, "one")
        assert (draft / "half").exists()
        process.kill()
    assert draft.exists()
    fill(target, "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["target", *(path.name for path in others)])


def test_where_there_are_no_locks_a_draft_stays_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folders.fcntl, "flock", refused)
    old, new = tmp_path / ".target.0123abcd.tmp", tmp_path / ".target.4567abcd.tmp"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    fill(tmp_path / "target", "one")
    assert not old.exists()
    assert new.exists()


def test_an_old_folder_that_a_kill_left_aside_is_put_back_before_anything_is_removed(tmp_path: Path):
    old, new = tmp_path / ".target.0123abcd.tmp.old", tmp_path / ".target.0123abcd.tmp"
    old.mkdir()
    new.mkdir()
    (old / "file").write_text("old")

    def full() -> None:
        with replacing(tmp_path / "target", alone=True):
            raise BlockingIOError

    with pytest.raises(BlockingIOError):
        full()
    assert (tmp_path / "target" / "file").read_text() == "old"


def test_an_old_folder_stays_aside_while_nothing_has_its_name(tmp_path: Path):
    old = tmp_path / ".target.0123abcd.tmp.old"
    old.mkdir()
    os.utime(old, (0, 0))
    with replacing(tmp_path / "target"):
        assert old.exists()
    fill(tmp_path / "target", "two")
    assert not old.exists()


def test_a_link_keeps_its_place_and_what_it_names_is_replaced(tmp_path: Path):
    fill(tmp_path / "real", "one")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    fill(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "inner" / "file").read_text() == "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_what_a_link_names_is_not_touched(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    secret.chmod(0o600)
    with replacing(tmp_path / "target") as draft:
        (draft / "link").symlink_to(secret)
        (draft / "nowhere").symlink_to(tmp_path / "absent")
    assert secret.stat().st_mode & 0o777 == 0o600


def add(folder: Path, name: str) -> None:
    with adding(folder, {"file", "second"}) as place:
        (place / name).write_text(name)


def test_a_folder_that_holds_nothing_else_is_replaced_and_any_other_is_added_to(tmp_path: Path):
    add(tmp_path / "target", "file")
    add(tmp_path / "target", "second")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["second"]
    (tmp_path / "target" / "mine").write_text("mine")
    add(tmp_path / "target", "file")
    assert {path.name for path in (tmp_path / "target").iterdir()} == {"second", "mine", "file"}


def test_the_working_directory_is_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "target").mkdir()
    monkeypatch.chdir(tmp_path / "target")
    add(tmp_path / "target", "file")
    assert Path("file").read_text() == "file"


def test_what_comes_into_a_folder_meanwhile_is_not_lost(tmp_path: Path):
    target = tmp_path / "target"
    target.mkdir()

    def crowded() -> None:
        with adding(target) as place:
            (place / "file").write_text("new")
            (target / "mine").write_text("mine")

    with pytest.raises(RunDirectoryError, match="changed meanwhile"):
        crowded()
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "mine"]
