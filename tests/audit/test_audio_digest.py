"""One digest of what recordings contain, and what is remembered of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sonotune.audit import audio_digest
from sonotune.audit.audio_digest import AudioDigests
from sonotune.types import Clip


def clips(folder: Path, *contents: bytes) -> list[Clip]:
    made = []
    for index, content in enumerate(contents):
        path = folder / f"{index}.wav"
        path.write_bytes(content)
        made.append(Clip(id=str(index), path=path, duration_s=1.0))
    return made


def test_it_follows_content_and_order_and_not_names(tmp_path: Path):
    (one, two) = (tmp_path / "one", tmp_path / "two")
    one.mkdir()
    two.mkdir()
    before = AudioDigests().of(clips(one, b"aa", b"bb"))
    assert AudioDigests().of(clips(two, b"aa", b"bb")) == before
    assert AudioDigests().of(clips(two, b"aa", b"bc")) != before
    assert AudioDigests().of(clips(two, b"bb", b"aa")) != before
    Path(clips(two, b"aa", b"bb")[1].path).unlink()
    assert AudioDigests().of(clips(one, b"aa", b"bb")) == before


def test_a_missing_file_is_a_state_of_the_data(tmp_path: Path):
    made = clips(tmp_path, b"aa", b"bb")
    whole = AudioDigests().of(made)
    made[1].path.unlink()
    assert AudioDigests().of(made) != whole


def test_a_file_is_read_again_only_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return path.read_bytes().hex()

    monkeypatch.setattr(audio_digest, "digest_file", counted)
    made, kept = clips(tmp_path, b"aa", b"bb"), tmp_path / "audio.json"

    def digest() -> str:
        return AudioDigests(kept).of(made)

    first = digest()
    assert (digest(), len(read)) == (first, 2)
    before = made[0].path.stat()
    made[0].path.write_bytes(b"cc")
    os.utime(made[0].path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync leaves it
    assert digest() != first
    assert len(read) == 3


@pytest.mark.parametrize("damage", ["", "[", "[1, 2]", '{"a": 1}', "[" * 100_000])
def test_a_damaged_memory_is_as_good_as_none(tmp_path: Path, damage: str):
    made, kept = clips(tmp_path, b"aa"), tmp_path / "audio.json"
    kept.write_text(damage, "utf-8")
    assert AudioDigests(kept).of(made) == AudioDigests().of(made)
