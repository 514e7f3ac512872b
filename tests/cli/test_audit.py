"""The command `audit` on the packaged corpus: what it prints, what `train` makes of it, and clips that are no good."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sonotune import cli
from sonotune.audio.io import read, write
from sonotune.audit.record import read_report
from sonotune.audit.verdict import VERDICT
from sonotune.data.manifest import read_manifest, write_manifest
from sonotune.registry import resolve_asset
from sonotune.runs import files, read_record
from sonotune.types import Clip

RATE_HZ = 16_000
LONG = " ".join(["seven"] * 80)
"""No clip of two seconds has room for it."""
RIGHT = "data.eval=assets:quickstart/eval.jsonl"

FILES = {"alignment_report.json", "audio.json", "clips.jsonl", "report.html", "scores.jsonl"}

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Call:
    """Runs a command in this process: exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
            cli.main([*map(str, words)])
        assert isinstance(caught.value.code, int)
        assert "Traceback" not in err.getvalue()
        return caught.value.code, out.getvalue(), err.getvalue()

    return run


@pytest.fixture(scope="module")
def packaged() -> list[Clip]:
    return read_manifest(resolve_asset("assets:quickstart") / "train.jsonl")


def words(folder: Path, *more: object) -> list[object]:
    """An audit of `train.jsonl` in a folder by the packaged CTC model."""
    named = {
        "model": "ctc_nano",
        "data.train": folder / "train.jsonl",
        "data.allow_outside_root": "true",
        "training.precision": "fp32",
    }
    named = {name: value for name, value in named.items() if not any(str(one).startswith(f"{name}=") for one in more)}
    return ["audit", *(f"{name}={value}" for name, value in named.items()), *more]


def with_texts(clips: Sequence[Clip], texts: Mapping[int, str | None]) -> list[Clip]:
    return [replace(clip, text=texts.get(place, clip.text)) for place, clip in enumerate(clips)]


@pytest.fixture(scope="module")
def failed(call: Call, packaged: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train.jsonl` of 40 clips, half of them with a text that is too long, and its audit."""
    folder = tmp_path_factory.mktemp("failed")
    write_manifest(folder / "train.jsonl", with_texts(packaged[:40], dict.fromkeys(range(20), LONG)))
    code, out, err = call(*words(folder, RIGHT))
    assert code == 3, err
    assert out.startswith("STOP")
    assert "sonotune: the audit says STOP: " in err
    assert (folder / "train.jsonl.audit" / "report.html").is_file()
    return folder


# --- what it prints ------------------------------------------------------------------------------


def test_the_packaged_corpus(call: Call, tmp_path: Path):
    folder = tmp_path / "audit"
    line = ["audit", "model=ctc_nano", "data.train=assets:quickstart/train.jsonl", RIGHT]
    line += [f"audit.dir={folder}", "training.precision=fp32"]
    code, out, err = call(*line, "audit.min_clips=60", "audit.max_clips=60", "--json")
    assert code == 0, err
    body = json.loads(out)
    assert body["decision"] in ("PROCEED", "CAUTION")
    assert body["reasons"]
    assert all(isinstance(reason, str) for reason in body["reasons"])
    assert set(body["low_quality"]) >= {"value", "low", "high", "count"}
    assert 0 <= body["low_quality"]["low"] <= body["low_quality"]["value"] <= body["low_quality"]["high"] <= 1
    assert body["low_quality"]["count"] == 60
    [domain] = body["domains"]
    assert (domain["name"], domain["population"], domain["sampled"]) == ("intercom", 200, 60)
    assert Path(body["report"]) == folder / "alignment_report.json"
    report = read_report(folder)
    assert report.decision == body["decision"]
    assert report.model["checkpoint"] == "assets:ctc-nano"
    # What is known is not aligned again, and the same comes out.
    before = (folder / "scores.jsonl").read_bytes()
    code, out, _ = call(*line, "audit.min_clips=60", "audit.max_clips=60")
    assert code == 0
    assert (folder / "scores.jsonl").read_bytes() == before
    assert out.splitlines()[0].startswith(report.decision)
    assert "intercom: " in out
    assert f"report    {folder / 'report.html'}" in out
    assert not any(f"{digit}%" in out for digit in range(10)), "a per cent sign stands apart, as everywhere"


# --- what training makes of it -------------------------------------------------------------------


def train_words(folder: Path, run: Path, *more: str) -> list[object]:
    short = ["training.max_steps=1", "training.eval_steps=never", "evaluation.zero_shot=false", "run.progress=false"]
    usual = ["data.loader_workers=0", "evaluation.bootstrap=100", "training.precision=fp32", "training.threads=1"]
    data = [f"data.train={folder / 'train.jsonl'}", "data.allow_outside_root=true", f"run.dir={run}"]
    return ["train", "model=ctc_nano", *data, "data.max_bad_fraction=0.9", *short, *usual, *more]


def test_training_refuses_what_failed_unless_the_recipe_says_otherwise(call: Call, failed: Path, tmp_path: Path):
    code, out, err = call(*train_words(failed, tmp_path / "run"))
    assert code == 3, err
    assert not out
    assert "says STOP" in err
    assert "audit.require=false" in err
    assert not (tmp_path / "run" / "adapter").exists()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("audit: {require: false}\n", "utf-8")
    code, out, err = call(*train_words(failed, tmp_path / "run"), f"config={recipe}")
    assert code == 0, err
    [found] = [finding for finding in read_record(tmp_path / "run").findings if finding.check == VERDICT]
    assert found.severity == "warning"
    assert "said STOP" in found.message
    assert "said STOP" in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_training_refuses_clips_that_changed_since(call: Call, failed: Path, tmp_path: Path):
    shutil.copytree(failed, tmp_path / "copy")
    manifest = tmp_path / "copy" / "train.jsonl"
    write_manifest(manifest, read_manifest(manifest, allow_outside_root=True)[:-1])
    code, _, err = call(*train_words(tmp_path / "copy", tmp_path / "run"))
    assert code == 3
    assert "have changed since their audit" in err


def test_training_refuses_audio_that_changed_since(call: Call, packaged: list[Clip], tmp_path: Path):
    clips = []
    for clip in packaged[:24]:
        shutil.copy(clip.path, tmp_path / clip.path.name)
        clips.append(replace(clip, path=tmp_path / clip.path.name))
    write_manifest(tmp_path / "train.jsonl", clips)
    assert call(*words(tmp_path, RIGHT))[0] == 0
    file = clips[3].path
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)  # of the same size
    code, _, err = call(*train_words(tmp_path, tmp_path / "run"))
    assert code == 3
    assert "have changed since their audit" in err


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"schema": 1}', b'{"schema": 99}', b"\xff\xfe\x00"])
def test_a_damaged_report_is_the_users_to_mend(call: Call, failed: Path, tmp_path: Path, damage: bytes):
    place = tmp_path / "audit"
    place.mkdir()
    (place / "alignment_report.json").write_bytes(damage)
    code, _, err = call(*train_words(failed, tmp_path / "run", f"audit.dir={place}"))
    assert code == 2
    assert "alignment_report.json" in err
    assert "udit again" in err


# --- clips that are no good ----------------------------------------------------------------------


def sounds(folder: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    time_S = np.arange(3 * RATE_HZ) / RATE_HZ
    chord_S = sum(np.sin(2 * np.pi * hertz * time_S) for hertz in (262, 330, 392)) * (1 + np.sin(12 * time_S)) / 10
    made = {
        "music": chord_S,
        "noise": 0.1 * rng.standard_normal(3 * RATE_HZ),
        "silence": np.zeros(3 * RATE_HZ),
        "short": 0.1 * rng.standard_normal(20),
    }
    for name, samples_S in made.items():
        write(folder / f"{name}.wav", samples_S.astype(np.float32), RATE_HZ)
    (folder / "page.wav").write_bytes(b"<html>not found</html>")
    return {name: folder / f"{name}.wav" for name in (*made, "page", "gone")}


def test_every_bad_clip_is_a_finding_of_its_own(call: Call, packaged: list[Clip], tmp_path: Path):
    good = packaged[:30]
    files = sounds(tmp_path)
    bad = [
        Clip(id=name, path=path, duration_s=0.00125 if name == "short" else 3.0, text="seven four", language="en")
        for name, path in files.items()
    ]
    changed = {
        "empty": {"text": ""},
        "none": {"text": None},
        "nothing said": {"text": "... !?"},
        "too long": {"text": LONG},
        "other language": {"language": "he"},
        "no language": {"language": None},
        "other script": {"text": "שבע ארבע שמונה"},
        "unknown script": {"text": "один два три"},
        "emoji": {"text": "🎉 🎉"},
        "beyond the end": {"start_s": 500.0},
        "copy": {"text": good[0].text},
    }
    bad += [replace(good[0], id=name, **values) for name, values in changed.items()]
    write_manifest(tmp_path / "train.jsonl", [*good, *bad])
    code, out, err = call(*words(tmp_path, RIGHT, "--json"))
    assert code in (0, 3), err
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "train.jsonl.audit" / "clips.jsonl").open())}
    unaligned = {name for name, row in rows.items() if "scores" not in row}
    assert unaligned >= {"page", "gone", "short", "too long", "nothing said", "silence", "beyond the end"}
    assert unaligned <= {row["id"] for row in rows.values() if row["check"] and row["problem"] and row["low_quality"]}
    assert rows["unknown script"]["check"] == "audit.unknown_text"
    for name in ("music", "noise"):
        told = {"nothing_recognised", "recognised_otherwise"}.intersection(rows[name]["notes"])
        assert rows[name]["low_quality"] or told, "nobody speaks there"
    assert "other_script" in rows["other script"]["notes"]
    assert not any("other_script" in rows[clip.id]["notes"] for clip in good)
    assert rows["copy"]["notes"].count("repeated_audio") == rows[good[0].id]["notes"].count("repeated_audio") == 1
    assert not any("repeated_text" in row["notes"] for row in rows.values()), "digits are said again and again"
    assert all("repeated_audio" not in rows[clip.id]["notes"] for clip in good[1:])
    body = json.loads(out)
    assert {clip.id for clip in (*good, *bad)} - set(rows) == {"empty", "none"}
    assert any("2 clips of the corpus have no transcript with words" in said for said in body["remarks"])
    page = (tmp_path / "train.jsonl.audit" / "report.html").read_text("utf-8")
    assert "no transcript with words" in page


@pytest.mark.slow
def test_a_file_of_half_an_hour(call: Call, packaged: list[Clip], tmp_path: Path):
    samples_S = np.concatenate([read(clip.path, sample_rate_hz=RATE_HZ) for clip in packaged])
    said = " ".join(clip.text or "" for clip in packaged)
    times = int(np.ceil(30 * 60 * RATE_HZ / samples_S.size))
    long_S = np.tile(samples_S, times)[: 30 * 60 * RATE_HZ]
    write(tmp_path / "long.wav", long_S, RATE_HZ)
    text = " ".join([said] * times)
    write_manifest(
        tmp_path / "train.jsonl", [Clip(id="long", path=tmp_path / "long.wav", duration_s=1800.0, text=text)]
    )
    code, out, err = call(*words(tmp_path, RIGHT, "--json"))
    assert code in (0, 3), err
    assert json.loads(out)["low_quality"]["count"] == 1
    [row] = map(json.loads, (tmp_path / "train.jsonl.audit" / "clips.jsonl").open())
    assert len(row["words"]) == len(text.split())
    assert row["words"][-1][2] <= 1800.0


def test_one_clip(call: Call, packaged: list[Clip], tmp_path: Path):
    write_manifest(tmp_path / "train.jsonl", packaged[:1])
    code, out, err = call(*words(tmp_path, RIGHT, "--json"))
    assert code in (0, 3), err
    assert json.loads(out)["low_quality"]["count"] == 1


def test_a_full_disk_ends_with_exit_5_and_can_go_on(
    call: Call, packaged: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_manifest(tmp_path / "train.jsonl", packaged[:25])
    folder = tmp_path / "train.jsonl.audit"
    real, room = files.write_all, 0

    def write_all(descriptor: int, data: bytes) -> None:
        nonlocal room
        room -= len(data)
        if room < 0:
            os.write(descriptor, bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor, data)

    monkeypatch.setattr(files, "write_all", write_all)
    left: list[set[str]] = []
    # Room for nothing; for all but the page; for all.
    for space in (0, 400_000, 10_000_000):
        room = space
        code, _, err = call(*words(tmp_path))
        left.append({path.name for path in folder.iterdir()})
        if code == 5:
            assert "disk is full" in err
            assert str(folder) in err
    assert code == 0, err
    assert left == [set(), FILES - {"report.html"}, FILES]


# --- trusted clips -------------------------------------------------------------------------------


def test_without_trusted_clips_nothing_passes_and_all_say_so(call: Call, packaged: list[Clip], tmp_path: Path):
    write_manifest(tmp_path / "train.jsonl", packaged[:40])
    code, out, err = call(*words(tmp_path))
    assert code == 0, err
    assert out.startswith("CAUTION")
    assert "calibrated on the audited clips themselves" in out
    report = read_report(tmp_path / "train.jsonl.audit")
    assert "calibrated on the audited clips themselves" in report.remarks[0]
    assert "calibrated on the audited clips themselves" in (tmp_path / "train.jsonl.audit" / "report.html").read_text()
    # The same clips under the name of trusted ones are no more trusted.
    code, out, err = call(*words(tmp_path, f"audit.trusted={tmp_path / 'train.jsonl'}"))
    assert out.startswith("CAUTION")
    assert "calibrated on the audited clips themselves" in out
    # Fixed thresholds need none, and their error rates are unknown then.
    code, out, err = call(*words(tmp_path, "audit.thresholds=seed", "--json"))
    assert code in (0, 3), err
    body = json.loads(out)
    assert body["calibration"]["sensitivity"] is None
    assert "nobody knows how often the fixed thresholds are wrong" in body["remarks"][0]


def test_trusted_clips_that_are_audited_as_well_are_told(call: Call, packaged: list[Clip], tmp_path: Path):
    write_manifest(tmp_path / "train.jsonl", packaged[:40])
    write_manifest(tmp_path / "trusted.jsonl", packaged[10:50])
    code, out, err = call(*words(tmp_path, f"audit.trusted={tmp_path / 'trusted.jsonl'}"))
    assert code in (0, 3), err
    assert "30 of 40 trusted clips are audited as well" in out


def test_too_few_trusted_clips_are_refused_before_they_are_aligned(call: Call, packaged: list[Clip], tmp_path: Path):
    write_manifest(tmp_path / "train.jsonl", packaged[:19])
    code, _, err = call(*words(tmp_path))
    assert code == 2
    assert "at least 20 trusted clips; found 19" in err
    assert not (tmp_path / "train.jsonl.audit" / "scores.jsonl").exists()


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["model=ast_nano"], "cannot align"),
        (["model=qwen3_asr_nano"], "cannot align"),
        (["model=ast_nano", "audit.aligner=ctc"], "ctc"),
        (["audit.model=assets:whisper-nano", "audit.aligner=ctc"], "ctc"),
        (["audit.strata=[{name: a, share: 0.7}, {name: b, share: 0.7}]"], "add up to 1.4"),
        (["audit.strata=[{name: a, share: 0.7, where: {text: '('}}]"], "no regular expression"),
        (["audit.dir={file}"], "file"),
        (["data.train={gone}"], "gone.jsonl"),
        (["audit.trusted={gone}"], "gone.jsonl"),
        (["audit.trusted={silent}"], "no transcript with words"),
    ],
)
def test_what_cannot_be_is_refused(call: Call, packaged: list[Clip], tmp_path: Path, more: list[str], told: str):
    write_manifest(tmp_path / "train.jsonl", packaged[:25])
    write_manifest(tmp_path / "silent.jsonl", with_texts(packaged[:3], dict.fromkeys(range(3), "")))
    (tmp_path / "file").write_text("mine")
    places = {name: tmp_path / name for name in ("file",)} | {
        name: tmp_path / f"{name}.jsonl" for name in ("gone", "silent")
    }
    given = [word.format(**places) if word.endswith("}") and "{name" not in word else word for word in more]
    code, out, err = call(*words(tmp_path, *given))
    assert code == 2, err
    assert told in err
    assert not out
    assert (tmp_path / "file").read_text() == "mine"


def test_a_language_that_the_model_does_not_know_is_named(call: Call, packaged: list[Clip], tmp_path: Path):
    write_manifest(tmp_path / "train.jsonl", [replace(clip, language="tlh") for clip in packaged[:25]])
    code, _, err = call(*words(tmp_path, "audit.model=assets:whisper-nano"))
    assert code == 2
    assert "does not know" in err
    assert "tlh" in err


def test_a_pattern_without_end_is_refused_before_anything_is_aligned(
    call: Call, packaged: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sonotune.audit.sampling.PATTERN_SECONDS", 0.5)
    write_manifest(tmp_path / "train.jsonl", with_texts(packaged[:25], dict.fromkeys(range(25), "a" * 60)))
    started = time.monotonic()
    code, _, err = call(*words(tmp_path, RIGHT, "audit.strata=[{name: a, share: 0.5, where: {text: '(a+)+b'}}]"))
    assert code == 2, err
    assert "(a+)+b" in err
    assert time.monotonic() - started < 10
    assert not (tmp_path / "train.jsonl.audit").exists()
    for pattern in ("^a+$", "(b|c)*", "a{2,}"):
        rule = f"audit.strata=[{{name: a, share: 0.5, where: {{text: '{pattern}'}}}}]"
        code, _, err = call(*words(tmp_path, rule, "audit.model=ast_nano"))
        assert "(a+)+b" not in err
        assert "not matched with the clips" not in err
