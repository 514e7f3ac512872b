"""The command `data split`: what it writes, says and refuses."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sonotune import cli
from sonotune.data.manifest import SPLIT_MARK, read_manifest


def split(*words: object) -> tuple[int, str, str]:
    """Run the command: exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        cli.main(["data", "split", *map(str, words)])
    assert isinstance(caught.value.code, int)
    return caught.value.code, out.getvalue(), err.getvalue()


def speech(folder: Path, speakers: Sequence[str | None], **columns: Sequence[str]) -> Path:
    """A manifest of ten seconds a clip; the first two clips say the same."""
    lines: list[dict[str, Any]] = []
    for index, speaker in enumerate(speakers):
        text = "the same words" if index < 2 else f"{index} is what clip number {index * 7919} says"
        line = {"id": f"c{index}", "path": f"{index}.wav", "duration_s": 10.0, "speaker": speaker, "text": text}
        lines.append(line | {name: values[index] for name, values in columns.items()})
    manifest = folder / "all.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return manifest


def test_one_speaker_is_refused_with_the_way_that_works_and_that_way_works(tmp_path: Path):
    manifest = speech(tmp_path, ["ann"] * 40)
    code, _, err = split(manifest, tmp_path / "parts")
    assert code == 2
    assert "found 1 speaker" in err
    assert "--by text" in err
    assert not (tmp_path / "parts").exists()
    code, out, err = split(manifest, tmp_path / "parts", "--by", "text")
    assert code == 0, err
    assert "train: 32 clips, 5.3 min, 1 speaker" in out
    assert "test: 4 clips, 40.0 s, 1 speaker\n" in out
    assert "texts" not in out
    assert err.count("speaker") == 1
    assert "WARNING: train, eval and test share their only speaker ('ann'): the scores hold for this voice only." in err


def test_json_says_of_each_part_what_it_holds_and_shares(tmp_path: Path):
    manifest = speech(tmp_path, [f"s{index % 10}" for index in range(40)], domain=["phone", "studio"] * 20)
    code, out, err = split(manifest, tmp_path, "--eval-size", "80s", "--test-size", "10%", "--json")
    assert code == 0, err
    body = json.loads(out)
    assert set(body) == {"train", "eval", "test"}
    for name in ("train", "eval", "test"):
        part = body[name]
        clips = read_manifest(tmp_path / f"{name}.jsonl")
        assert part["manifest"] == str(tmp_path / f"{name}.jsonl")
        assert part["clips"] == len(clips)
        assert part["seconds"] == sum(clip.duration_s for clip in clips)
        assert part["hours"] == pytest.approx(part["seconds"] / 3600)
        assert part["speakers"] == sorted({clip.speaker for clip in clips})
        assert sum(part["domains"].values()) == len(clips)
    assert body["eval"]["seconds"] == 80
    assert body["test"]["shared"]["train"]["speakers"] == 0
    assert body["test"]["shared"].keys() == {"train", "eval"}
    record = json.loads((tmp_path / SPLIT_MARK).read_text("utf-8"))
    assert (record["by"], record["seed"], record["eval_size"]) == ("speaker", 0, "80s")
    assert record["splits"]["eval"]["clips"] == body["eval"]["clips"]


def test_a_column_of_splits_is_taken_as_it_is_and_what_leaks_is_said(tmp_path: Path):
    names = ["train", "dev", "test", *["train"] * 7]
    code, out, err = split(speech(tmp_path, ["ann"] * 10, split=names), tmp_path / "parts", "--by", "column=split")
    assert code == 0, err
    assert "eval: 1 clip, 10.0 s, 1 speaker; 1 text also in train" in out
    assert "train and eval share 1 transcript ('the same words'). That is usual" in err
    assert [clip.id for clip in read_manifest(tmp_path / "parts" / "test.jsonl", root=tmp_path)] == ["c2"]


def test_an_earlier_split_is_replaced_and_what_no_split_wrote_is_not(tmp_path: Path):
    manifest = speech(tmp_path, [f"s{index}" for index in range(20)])
    assert split(manifest, tmp_path)[0] == 0
    assert split(manifest, tmp_path, "--test-fraction", "0", "--seed", "1")[0] == 0
    assert not (tmp_path / "test.jsonl").exists()
    (tmp_path / "test.jsonl").write_text("by hand")
    code, _, err = split(manifest, tmp_path)
    assert code == 2
    assert "test.jsonl was not written with" in err
    assert (tmp_path / "test.jsonl").read_text() == "by hand"
    assert split(manifest, tmp_path, "--overwrite")[0] == 0
    for overwrite in ([], ["--overwrite"]):
        code, _, err = split(tmp_path / "train.jsonl", tmp_path, *overwrite)
        assert code == 2
        assert "is what is split, and would be lost" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--by", "speakers"], "did you mean 'speaker'"),
        (["--by", "column=room"], "no clip with that column"),
        (["--eval-size", "1h", "--eval-fraction", "0.1"], "--eval-fraction and --eval-size"),
        (["--eval-size", "lots"], "'lots'"),
        (["--eval-speakers", "s1", "--by", "text"], "--by text would too"),
        (["--eval-speakers", "s1", "--test-size", "1h"], "--test-size would too"),
        (["--eval-speakers", "s100"], "'s100'"),
        (["--by", "column=split", "--eval-fraction", "0.2"], "--eval-fraction has no meaning"),
        (["--eval-fraction", "1.5"], "nothing to train on"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(tmp_path: Path, words: list[str], said: str):
    manifest = speech(tmp_path, [f"s{index}" for index in range(20)], split=["train", "test"] * 10)
    code, out, err = split(manifest, tmp_path / "parts", *words)
    assert code == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "parts").exists()


def test_audio_of_unknown_length_is_said(tmp_path: Path):
    (tmp_path / "noise.wav").write_bytes(b"no audio")
    manifest = tmp_path / "all.jsonl"
    lines = [{"id": f"c{index}", "path": f"{index}.wav", "duration_s": 5.0, "text": f"{index}"} for index in range(10)]
    lines += [{"id": name, "path": f"{name}.wav", "text": name} for name in ("noise", "gone")]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    code, _, err = split(manifest, tmp_path / "parts", "--by", "clip")
    assert code == 0, err
    assert "the audio of 2 of 12 clips does not exist or does not open" in err
    assert "noise.wav" in err
    assert "gone.wav" in err
