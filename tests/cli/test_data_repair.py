"""The commands `data realign`, `data filter` and `data resegment`: what they write, say and refuse."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import sonotune
from sonotune import api, cli
from sonotune.data.chunking import join
from sonotune.data.manifest import read_manifest, write_manifest
from sonotune.data.windows import fit_for_training
from sonotune.errors import ConfigError
from sonotune.registry import resolve_asset
from sonotune.types import Clip

NANO = ("--model", "assets:ctc-nano")
TRUSTED = ("--trusted", "assets:quickstart/eval.jsonl")
SWAPPED = 12


def data(*words: object) -> tuple[int, str, str]:
    """Run a command of `data`: exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        cli.main(["data", *map(str, words)])
    assert isinstance(caught.value.code, int)
    return caught.value.code, out.getvalue(), err.getvalue()


def done(*words: object) -> dict[str, Any]:
    """Run a command that has to succeed, and read its JSON."""
    code, out, err = data(*words, "--json")
    assert code == 0, err
    body: dict[str, Any] = json.loads(out)
    return body


def packaged() -> list[Clip]:
    return read_manifest(resolve_asset("assets:quickstart/train.jsonl"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty clips of several digits, of which every fifth has the transcript of the clip farthest from it."""
    folder = tmp_path_factory.mktemp("corpus")
    clips = sorted(packaged(), key=lambda clip: -len(clip.words))[:60]
    texts = [clip.text or "" for clip in clips]
    made = []
    for index, clip in enumerate(clips):
        wrong = index % 5 == 0
        other = next(text for text in texts[index + 7 :] + texts if not {*text.split()} & {*(clip.text or "").split()})
        extra = {"truth": "bad" if wrong else "good"}
        made.append(replace(clip, text=other if wrong else clip.text, words=(), extra=extra))
    write_manifest(folder / "all.jsonl", made)
    return folder / "all.jsonl"


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """About a minute of digits in a row, whose words are known."""
    folder = tmp_path_factory.mktemp("joined")
    clips = [replace(clip, speaker="all") for clip in packaged()]
    made = join(clips, folder, min_duration_s=55.0, max_duration_s=65.0, gap_s=0.3, limit=1)
    return made[0]


def test_realign_places_words_near_where_they_are(tmp_path: Path) -> None:
    truth = packaged()[:40]
    silent = replace(truth[0], id="silent", text="", words=())
    long = replace(truth[1], id="long", text="nine " * 60, words=truth[1].words)
    write_manifest(tmp_path / "in.jsonl", [*(replace(clip, words=()) for clip in truth), silent, long])
    body = done("realign", tmp_path / "in.jsonl", tmp_path / "out.jsonl", *NANO)
    assert (body["clips"], body["aligned"]) == (42, 40)
    made = read_manifest(tmp_path / "out.jsonl")
    assert [clip.id for clip in made] == [clip.id for clip in [*truth, silent, long]]
    errors = []
    for clip, known in zip(made, truth, strict=False):
        assert [word.text for word in clip.words] == (clip.text or "").split()
        assert all(0 <= (word.score or 0) <= 1 for word in clip.words)
        assert (clip.path, clip.text, clip.speaker, clip.domain) == (
            known.path,
            known.text,
            known.speaker,
            known.domain,
        )
        pairs = zip(clip.words, known.words, strict=True)
        errors += [abs(at - right) for a, b in pairs for at, right in ((a.start_s, b.start_s), (a.end_s, b.end_s))]
    assert np.median(errors) < 0.1
    assert np.percentile(errors, 95) < 0.3
    assert made[40:] == [silent, long]  # as they were
    found = {one["check"]: one for one in body["findings"]}
    assert found["align.too_long_text"]["clip_ids"] == ["long"]
    assert "clip long has a transcript that needs" in found["align.too_long_text"]["message"]
    assert found["repair.no_text"]["clip_ids"] == ["silent"]
    kept = (tmp_path / "out.scores.jsonl").read_bytes()
    assert kept.count(b"\n") == 41
    again = done("realign", tmp_path / "in.jsonl", tmp_path / "again.jsonl", *NANO)
    assert again["words"] == body["words"]
    first = (tmp_path / "out.jsonl").read_bytes()
    assert (tmp_path / "again.jsonl").read_bytes() == first
    python = sonotune.realign(
        tmp_path / "in.jsonl", tmp_path / "out.jsonl", model=NANO[1], root=str(tmp_path), allow_outside_root=True
    )
    assert python == body
    with pytest.raises(ConfigError, match="trusted_clips is 0"):
        sonotune.filter_corpus(tmp_path / "in.jsonl", tmp_path / "x.jsonl", mode="drop", trusted_clips=0)
    assert (tmp_path / "out.jsonl").read_bytes() == first
    # Stopped in the middle of a line: the rest is computed, and nothing twice.
    lines = kept.splitlines(keepends=True)
    (tmp_path / "out.scores.jsonl").write_bytes(b"".join(lines[:30]) + lines[30][:20])
    (tmp_path / "out.jsonl").unlink()
    done("realign", tmp_path / "in.jsonl", tmp_path / "out.jsonl", *NANO)
    for clip, before in zip(read_manifest(tmp_path / "out.jsonl"), made, strict=True):  # other batches, same places
        assert [word.start_s for word in clip.words] == pytest.approx([word.start_s for word in before.words], abs=0.01)
    resumed = (tmp_path / "out.scores.jsonl").read_bytes()
    assert resumed.startswith(b"".join(lines[:30]))
    assert sorted(row["key"] for row in map(json.loads, resumed.splitlines())) == sorted(
        row["key"] for row in map(json.loads, lines)
    )


def test_a_long_recording_is_trained_on_after_realign(tmp_path: Path, recording: Clip) -> None:
    from sonotune.data.chunking import cut_at_words

    bare = replace(recording, words=())
    write_manifest(tmp_path / "in.jsonl", [bare])
    assert fit_for_training([bare], 30.0, cut_at_words)[0] == []
    done("realign", tmp_path / "in.jsonl", tmp_path / "out.jsonl", *NANO)
    kept, findings = fit_for_training(read_manifest(tmp_path / "out.jsonl"), 30.0, cut_at_words)
    assert len(kept) >= 2
    assert " ".join(clip.text or "" for clip in kept) == recording.text
    assert [finding.check for finding in findings] == ["train.cut_at_words"]


def test_a_minute_is_cut_into_clips_that_say_each_word_once(tmp_path: Path, recording: Clip) -> None:
    write_manifest(tmp_path / "known.jsonl", [recording])
    body = done("resegment", tmp_path / "known.jsonl", tmp_path / "cut.jsonl", "--max-duration", 10)
    made = read_manifest(tmp_path / "cut.jsonl", root=recording.path.parent)
    assert (body["recordings"], body["cut"], body["clips"], body["findings"]) == (1, 1, len(made), [])
    assert body["longest_s"] == max(clip.duration_s for clip in made) <= 10.0
    assert " ".join(clip.text or "" for clip in made) == recording.text
    edges = [float(clip.extra[f"source_{name}_s"]) for clip in made for name in ("start", "end")]
    assert edges[0] == 0.0
    assert edges[-1] == pytest.approx(recording.duration_s)
    assert edges[1:-1:2] == edges[2::2]
    for clip in made:
        end_s = clip.start_s + clip.duration_s
        heard = [word.text for word in recording.words if word.end_s > clip.start_s and word.start_s < end_s]
        assert clip.text == " ".join(heard)  # what is in its audio, no more and no less
        assert clip.extra["source_id"] == recording.id
    code, out, _ = data("stats", tmp_path / "cut.jsonl")
    assert code == 0
    assert f"clips                  {len(made)}" in out
    before = (tmp_path / "cut.jsonl").read_bytes()
    done("resegment", tmp_path / "known.jsonl", tmp_path / "cut.jsonl", "--max-duration", 10)
    assert (tmp_path / "cut.jsonl").read_bytes() == before


def test_a_model_places_the_words_of_long_recordings_first(tmp_path: Path, recording: Clip) -> None:
    short = replace(packaged()[0], words=())
    write_manifest(tmp_path / "bare.jsonl", [replace(recording, words=()), short])
    code, _, err = data("resegment", tmp_path / "bare.jsonl", tmp_path / "cut.jsonl")
    assert code == 2
    assert "1 of 2 clips longer than 15 s, which have no words with times. Name a model" in err
    assert not (tmp_path / "cut.jsonl").exists()
    body = done("resegment", tmp_path / "bare.jsonl", tmp_path / "cut.jsonl", "--max-duration", 10, *NANO)
    made = read_manifest(tmp_path / "cut.jsonl")
    assert body["longest_s"] <= 10.0
    assert " ".join(clip.text or "" for clip in made[:-1]) == recording.text
    assert made[-1] == replace(short, extra=made[-1].extra)  # fits, and is not aligned
    assert (tmp_path / "cut.scores.jsonl").read_text().count("\n") == 1


@pytest.fixture(scope="module")
def audited(corpus: Path) -> Path:
    """An audit of a third of the corpus, in the folder where a filter looks for it."""
    words = {
        "model": "ctc_nano",
        "data.train": corpus,
        "audit.trusted": TRUSTED[1],
        "audit.min_clips": 20,
        "audit.max_clips": 20,
        "audit.looks": 1,
        "audit.false_positive_rate": 0.1,
    }
    return api.audit(words)[1]


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_filter_is_a_census_by_the_thresholds_of_the_audit(tmp_path: Path, corpus: Path, audited: Path) -> None:
    measured = (audited / "scores.jsonl").read_bytes()
    body = done("filter", corpus, tmp_path / "flagged.jsonl", "--mode", "flag")
    report = json.loads((audited / "alignment_report.json").read_text())
    assert body["thresholds"] == report["calibration"]["thresholds"]
    assert (body["judged"], body["clips"], body["audit"]) == (60, 60, str(audited))
    looked_at = sum(stratum["sampled"] for stratum in report["strata"])
    assert looked_at == 20
    after = (audited / "scores.jsonl").read_bytes()
    assert after.startswith(measured)
    assert after.count(b"\n") - measured.count(b"\n") == 40  # those alone that the audit did not look at
    rows = read_rows(tmp_path / "flagged.jsonl")
    flagged = [row for row in rows if row["audit"] == "bad"]
    assert len(flagged) == body["flagged"] == sum(row["audit"] != "good" for row in rows)
    assert all(row["audit_reasons"] for row in flagged)
    assert not any("audit_reasons" in row for row in rows if row["audit"] == "good")
    bad = [row for row in rows if row["truth"] == "bad"]
    assert len(bad) == SWAPPED
    found = sum(row["audit"] == "bad" for row in bad)
    assert found >= SWAPPED / 2
    assert len(flagged) - found <= 0.2 * (60 - SWAPPED)
    sampled = {row["id"]: row["low_quality"] for row in read_rows(audited / "clips.jsonl")}
    assert {row["id"]: row["audit"] == "bad" for row in rows if row["id"] in sampled} == sampled

    dropped = done("filter", corpus, tmp_path / "kept.jsonl", "--mode", "drop")
    left = read_rows(tmp_path / "kept.dropped.jsonl")
    assert dropped["dropped_manifest"] == str(tmp_path / "kept.dropped.jsonl")
    assert {row["id"] for row in left} == {row["id"] for row in flagged}
    assert all(row["audit_reasons"] for row in left)
    assert [row["id"] for row in read_rows(tmp_path / "kept.jsonl")] == [
        row["id"] for row in rows if row["audit"] == "good"
    ]
    assert data("stats", tmp_path / "kept.jsonl")[0] == data("stats", tmp_path / "kept.dropped.jsonl")[0] == 0

    done("filter", corpus, tmp_path / "weighted.jsonl", "--mode", "weight")
    weighted = read_manifest(tmp_path / "weighted.jsonl")
    assert [clip.extra["audit"] for clip in weighted] == [row["audit"] for row in rows]
    by_truth = {
        truth: np.mean([clip.weight for clip in weighted if clip.extra["truth"] == truth]) for truth in ("good", "bad")
    }
    assert by_truth["bad"] < by_truth["good"] - 0.2
    again = done(
        "filter", tmp_path / "weighted.jsonl", tmp_path / "twice.jsonl", "--mode", "weight", "--audit", audited
    )
    assert again["weight"] < sum(clip.weight for clip in weighted)  # an earlier weight is multiplied

    code, _, err = data("filter", corpus, tmp_path / "star.jsonl", "--mode", "star")
    assert code == 0
    assert "train with training.objective=star" in err
    assert (tmp_path / "star.jsonl").read_bytes() == (tmp_path / "flagged.jsonl").read_bytes()


def test_an_audit_by_another_model_is_refused(tmp_path: Path, corpus: Path, audited: Path) -> None:
    place = tmp_path / "audit"
    place.mkdir()
    report = json.loads((audited / "alignment_report.json").read_text())
    report["model"]["digest"] = "0" * 64
    (place / "alignment_report.json").write_text(json.dumps(report))
    code, _, err = data("filter", corpus, tmp_path / "out.jsonl", "--mode", "flag", "--audit", place)
    assert code == 2
    assert "was made with another aligner" in err
    assert not (tmp_path / "out.jsonl").exists()


def test_thresholds_are_calibrated_where_no_audit_was_made(tmp_path: Path) -> None:
    clips = packaged()[:25]
    silent = replace(clips[0], id="silent", text=None, words=())
    write_manifest(tmp_path / "in.jsonl", [*clips, silent])
    code, _, err = data("filter", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--mode", "drop")
    assert code == 2
    assert f"there is no audit in {tmp_path / 'in.jsonl.audit'}" in err
    body = done("filter", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--mode", "drop", *NANO, *TRUSTED)
    assert (body["judged"], body["audit"]) == (25, None)
    assert body["flagged"] <= 4
    rows = read_rows(tmp_path / "out.jsonl")
    assert "audit" not in next(row for row in rows if row["id"] == "silent")
    assert body["clips"] + body["dropped"] == 26
    assert [one["check"] for one in body["findings"] if one["severity"] == "note"] == ["repair.no_text"]


def manifest(folder: Path, *clips: dict[str, Any]) -> Path:
    place = folder / "in.jsonl"
    place.write_text("".join(json.dumps(clip) + "\n" for clip in clips), "utf-8")
    return place


COMMANDS: dict[str, Sequence[str]] = {
    "realign": NANO,
    "filter": (*NANO, *TRUSTED, "--mode", "drop"),
    "resegment": (),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_input_is_refused_and_nothing_is_written(tmp_path: Path, command: str) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000 * 20, np.float32), 16_000)
    clip = {"id": "a", "path": "a.wav", "text": "one two"}
    options = COMMANDS[command]
    empty = manifest(tmp_path)
    assert_refused(data(command, empty, tmp_path / "out.jsonl", *options), "no clips")
    source = manifest(tmp_path, {**clip, "text": ""}, {"id": "b", "path": "a.wav"})
    before = source.read_bytes()
    assert_refused(data(command, source, tmp_path / "out.jsonl", *options), "no transcript with words")
    source = manifest(tmp_path, clip)
    before = source.read_bytes()
    assert_refused(data(command, source, source, *options), "is what is read, and would be lost")
    os.link(source, tmp_path / "same.jsonl")
    assert_refused(data(command, source, tmp_path / "same.jsonl", *options), "is what is read, and would be lost")
    (tmp_path / "same.jsonl").unlink()
    assert_refused(data(command, source, tmp_path / "gone" / "out.jsonl", *options), "there is no folder")
    assert_refused(data(command, source, tmp_path, *options), "is a folder")
    ast = [word if word != "assets:ctc-nano" else "assets:ast-nano" for word in options or NANO]
    assert_refused(data(command, source, tmp_path / "out.jsonl", *ast), "cannot align: its family is ast")
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "in.jsonl"]


def assert_refused(result: tuple[int, str, str], said: str) -> None:
    code, out, err = result
    assert (code, out) == (2, ""), err
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["filter", "--mode", "dropp", *NANO, *TRUSTED], "did you mean 'drop'"),
        (["filter", "--mode", "drop", *NANO], "--model needs --trusted"),
        (["filter", "--mode", "drop", "--audit", "nowhere"], "there is no audit in nowhere"),
        (["resegment", "--max-duration", "0"], "longest clip is 0 s"),
        (["resegment", "--overlap", "8"], "less than half"),
        (["realign", *NANO, "--aligner", "ctcc"], "did you mean 'ctc'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, words: list[str], said: str) -> None:
    source = manifest(tmp_path, {"id": "a", "path": "a.wav", "text": "one", "duration_s": 2.0})
    assert_refused(data(words[0], source, tmp_path / "out.jsonl", *words[1:]), said)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_no_clip_that_can_be_aligned_is_a_message(tmp_path: Path) -> None:
    source = manifest(tmp_path, {"id": "a", "path": "gone.wav", "text": "one", "duration_s": 2.0})
    assert_refused(data("realign", source, tmp_path / "out.jsonl", *NANO), "none of 1 clip could be aligned")
