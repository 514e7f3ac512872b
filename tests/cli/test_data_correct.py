"""The command `data correct`: a new revision of a manifest, and what its audit and its leaks say then."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sonotune import api, cli
from sonotune.data.manifest import read_manifest, write_manifest
from sonotune.listening.choices import Session, line_of
from sonotune.registry import resolve_asset
from sonotune.types import Clip

WRONG = 20
TRUSTED = "assets:quickstart/eval.jsonl"


def command(*words: object) -> tuple[int, str, str]:
    """Run a command: exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        cli.main(list(map(str, words)))
    assert isinstance(caught.value.code, int)
    return caught.value.code, out.getvalue(), err.getvalue()


def corrections(path: Path, lines: Sequence[tuple[str, str | None, str]], *, by: str = "dana") -> Path:
    """A file of corrections: clip, the text before, and the one after."""
    session = Session(mode="errors", seed=0, form="written", clips=None, random=None, files=("0" * 64,))
    rows = [
        {
            "kind": "correction",
            "clip": clip,
            "was": was,
            "text": text,
            "listener": by,
            "at": "2026-12-01T10:00:00+00:00",
        }
        for clip, was, text in lines
    ]
    path.write_bytes(b"".join(map(line_of, [session.to_json(), *rows])))
    return path


@pytest.fixture
def clips() -> list[Clip]:
    return read_manifest(resolve_asset("assets:quickstart/train.jsonl"))


def test_twenty_corrections_make_a_revision_that_its_audit_lets_pass(tmp_path: Path, clips: list[Clip]) -> None:
    clips = sorted(clips, key=lambda clip: -len(clip.words))[:60]
    texts = [clip.text or "" for clip in clips]
    broken = []
    for index, clip in enumerate(clips):
        other = next(text for text in texts[index + 7 :] + texts if not {*text.split()} & {*texts[index].split()})
        broken.append(replace(clip, text=other if index % 3 == 0 else clip.text, words=()))
    write_manifest(tmp_path / "train.jsonl", broken)
    before = (tmp_path / "train.jsonl").read_bytes()
    settings = {
        "model": "ctc_nano",
        "data.train": tmp_path / "train.jsonl",
        "audit.trusted": TRUSTED,
        "audit.min_clips": 60,
        "audit.max_clips": 60,
        "audit.proceed_below": 0.24,
        "audit.stop_above": 0.25,
        "audit.rule": "point",
    }
    assert api.audit(settings)[0].decision == "STOP"
    file = corrections(
        tmp_path / "choices.jsonl",
        [
            (clip.id, one.text, texts[index])
            for index, (clip, one) in enumerate(zip(clips, broken, strict=True))
            if index % 3 == 0
        ],
    )
    code, out, err = command("data", "correct", tmp_path / "train.jsonl", file, tmp_path / "train-2.jsonl", "--json")
    assert code == 0, err
    body: dict[str, Any] = json.loads(out)
    assert (body["clips"], body["corrected"], body["unchanged"]) == (60, WRONG, 0)
    assert (body["audit"]["before"], body["audit"]["decision"]) == ("STOP", "PROCEED")
    assert body["audit"]["report"] == str(tmp_path / "train-2.jsonl.audit" / "alignment_report.json")
    settings_then, settings_now = (
        json.loads((tmp_path / f"{name}.jsonl.audit" / "alignment_report.json").read_text("utf-8"))["settings"]
        for name in ("train", "train-2")
    )
    assert settings_now == settings_then
    assert (tmp_path / "train.jsonl").read_bytes() == before
    made = read_manifest(tmp_path / "train-2.jsonl")
    assert [clip.text for clip in made] == texts
    corrected = [clip for clip in made if "corrected_by" in clip.extra]
    assert len(corrected) == WRONG
    old = {clip.id: clip.text for clip in broken}
    assert all(clip.extra["text_before"] == old[clip.id] for clip in corrected)
    assert {(clip.extra["corrected_by"], clip.extra["corrected_at"]) for clip in corrected} == {
        ("dana", "2026-12-01T10:00:00+00:00")
    }
    again = command(
        "data", "correct", tmp_path / "train-2.jsonl", file, tmp_path / "train-3.jsonl", "--no-audit", "--json"
    )
    assert (again[0], json.loads(again[1])["unchanged"]) == (0, WRONG)
    assert read_manifest(tmp_path / "train-3.jsonl") == made


def test_a_corpus_that_still_fails_its_audit_ends_with_3(tmp_path: Path, clips: list[Clip]) -> None:
    broken = [replace(clip, text="nine nine nine", words=()) for clip in clips[:40]]
    write_manifest(tmp_path / "train.jsonl", broken)
    settings = {"model": "ctc_nano", "data.train": tmp_path / "train.jsonl", "audit.trusted": TRUSTED}
    settings |= {"audit.rule": "point"}
    assert api.audit(settings)[0].decision == "STOP"
    file = corrections(tmp_path / "choices.jsonl", [(clips[0].id, "nine nine nine", clips[0].text or "")])
    code, _, err = command("data", "correct", tmp_path / "train.jsonl", file, tmp_path / "next.jsonl")
    assert code == 3, err
    assert "still says STOP" in err
    assert read_manifest(tmp_path / "next.jsonl")[0].text == clips[0].text


def test_leaks_are_looked_for_again(tmp_path: Path, clips: list[Clip]) -> None:
    train, scored = clips[:4], [replace(clips[5], speaker=clips[0].speaker)]
    write_manifest(tmp_path / "in.jsonl", train)
    write_manifest(tmp_path / "dev.jsonl", scored)
    file = corrections(tmp_path / "choices.jsonl", [(train[1].id, train[1].text, clips[5].text or "")])
    words = ("data", "correct", tmp_path / "in.jsonl", file, tmp_path / "out.jsonl", "--scored", tmp_path / "dev.jsonl")
    code, out, err = command(*words, "--json")
    assert code == 0, err
    body = json.loads(out)
    assert body["audit"] is None
    checks = {one["check"] for one in body["findings"]}
    assert {"leak.speaker", "leak.sentence"} <= checks


def test_leaks_are_looked_for_in_every_manifest_whatever_its_file_is_called(tmp_path: Path, clips: list[Clip]) -> None:
    """Of two with one file name in two folders, the first has the leak."""
    write_manifest(tmp_path / "in.jsonl", clips[:4])
    scored = []
    for folder, clip in (("a", replace(clips[5], speaker=clips[0].speaker)), ("b", replace(clips[6], speaker="other"))):
        (tmp_path / folder).mkdir()
        write_manifest(tmp_path / folder / "dev.jsonl", [clip])
        scored += ["--scored", tmp_path / folder / "dev.jsonl"]
    file = corrections(tmp_path / "choices.jsonl", [(clips[1].id, clips[1].text, "a new text")])
    words = ("data", "correct", tmp_path / "in.jsonl", file, tmp_path / "out.jsonl", "--allow-outside-root", *scored)
    code, out, err = command(*words, "--json")
    assert code == 0, err
    leaks = [one["message"] for one in json.loads(out)["findings"] if one["check"] == "leak.speaker"]
    assert len(leaks) == 1
    assert "a/dev.jsonl" in leaks[0]


def test_what_cannot_be_corrected_is_said(tmp_path: Path, clips: list[Clip]) -> None:
    write_manifest(tmp_path / "in.jsonl", clips[:3])
    lines = [
        (clips[0].id, clips[0].text, "a new text"),
        (clips[1].id, "what it never was", "another"),
        ("gone", "x", "y"),
    ]
    file = corrections(tmp_path / "choices.jsonl", lines)
    code, out, _ = command("data", "correct", tmp_path / "in.jsonl", file, tmp_path / "out.jsonl", "--json")
    body = json.loads(out)
    assert (code, body["corrected"]) == (0, 1)
    warned = {one["check"]: one["clip_ids"] for one in body["findings"]}
    assert warned["correct.other_text"] == [clips[1].id]
    assert warned["correct.unknown_clip"] == ["gone"]
    assert warned["correct.words"] == [clips[0].id]
    assert [clip.text for clip in read_manifest(tmp_path / "out.jsonl")] == ["a new text", clips[1].text, clips[2].text]
    corrections(file, lines[1:])
    code, _, err = command("data", "correct", tmp_path / "in.jsonl", file, tmp_path / "none.jsonl")
    assert code == 2
    assert "none of 2 corrections can be made" in err
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.replace(b'"kind": "correction"', b'"kind": "deletion"'), "has the kind 'deletion'"),
        (lambda data: data.replace(b'"schema": 1', b'"schema": 7'), "schema"),
        (lambda data: data.split(b"\n", 1)[1], "does not say what was asked"),
        (lambda data: b"", "has no line"),
        (lambda data: data.replace(b'"listener": "dana"', b'"listener": " "'), "listener"),
        (lambda data: data.split(b"\n", 1)[0] + b"\n", "has no correction"),
        (lambda data: b"\xff\xfe" + data, "is damaged"),
    ],
)
def test_damaged_corrections_are_refused(tmp_path: Path, clips: list[Clip], change: Any, said: str) -> None:
    write_manifest(tmp_path / "in.jsonl", clips[:2])
    file = corrections(tmp_path / "choices.jsonl", [(clips[0].id, clips[0].text, "new")])
    file.write_bytes(change(file.read_bytes()))
    code, _, err = command("data", "correct", tmp_path / "in.jsonl", file, tmp_path / "out.jsonl")
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "out.jsonl").exists()


def test_what_is_read_is_not_overwritten(tmp_path: Path, clips: list[Clip]) -> None:
    write_manifest(tmp_path / "in.jsonl", clips[:2])
    file = corrections(tmp_path / "choices.jsonl", [(clips[0].id, clips[0].text, "new")])
    for out in (tmp_path / "in.jsonl", file):
        before = out.read_bytes()
        code, _, err = command("data", "correct", tmp_path / "in.jsonl", file, out)
        assert (code, out.read_bytes()) == (2, before)
        assert "is what is read, and would be lost" in err
