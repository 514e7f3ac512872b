"""The commands `listen` and `preference`: what they write, say and refuse."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sonotune import cli
from sonotune.data.manifest import write_manifest
from sonotune.evaluation.evaluate import write_predictions
from sonotune.listening.choices import line_of, read_choices
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.types import Clip, Prediction

WORDS = ["one", "two", "three", "four", "five", "שש"]


def command(*words: object) -> tuple[int, str, str]:
    """Run a command: exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        cli.main(list(map(str, words)))
    assert isinstance(caught.value.code, int)
    return caught.value.code, out.getvalue(), err.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve clips, on which A is right, and B as well on every third."""
    tone = 0.2 * np.sin(np.arange(8000) / 5)
    soundfile.write(tmp_path / "tone.wav", tone, 16_000)
    clips = [
        Clip(id=f"c{index}", path=tmp_path / "tone.wav", duration_s=0.5, text=f"{WORDS[index % 6]} {WORDS[index % 5]}")
        for index in range(12)
    ]
    write_manifest(tmp_path / "clips.jsonl", clips)
    task = Transcribe(None, TaskSettings())  # type: ignore[arg-type]
    for name, keep in (("a", 1), ("b", 3)):
        texts = [clip.text if index % keep == 0 else "zero" for index, clip in enumerate(clips)]
        predictions = [Prediction(clip_id=clip.id, text=text) for clip, text in zip(clips, texts, strict=True)]
        write_predictions(tmp_path / f"{name}.jsonl", task, predictions, clips)
    return tmp_path


def listened(folder: Path, *words: object) -> dict[str, Any]:
    pair = (folder / "a.jsonl", folder / "b.jsonl", "--manifest", folder / "clips.jsonl")
    code, out, err = command("listen", *pair, "--out", folder / "page.html", "--json", *words)
    assert code == 0, err
    body: dict[str, Any] = json.loads(out)
    return body


def test_a_page_is_written_and_its_choices_are_counted(folder: Path) -> None:
    body = listened(folder)
    assert (body["mode"], body["clips"], body["random"], body["with_sound"]) == ("blind", 8, 4, 8)
    assert body["bytes"] == (folder / "page.html").stat().st_size
    code, out, _ = command(
        "listen", folder / "a.jsonl", "--manifest", folder / "clips.jsonl", "--out", folder / "e.html"
    )
    assert code == 0
    assert "e.html: 12 clips, 12 with sound, " in out
    # A listener who takes the first system on every clip, as the page's data and its sides say which that is.
    html = (folder / "page.html").read_text("utf-8")
    data = json.loads(html.partition('id="data">')[2].partition("</script>")[0])
    rows = []
    for item in data["items"]:
        left = item["texts"][0] != [["zero"]]
        rows.append(
            {
                "kind": "choice",
                "clip": item["id"],
                "choice": "left" if left else "right",
                "listener": "ana",
                "at": "now",
            }
        )
    choices = folder / "choices.jsonl"
    choices.write_bytes(b"".join(map(line_of, [data["session"], *rows])))
    words = ("preference", choices, folder / "a.jsonl", folder / "b.jsonl")
    code, out, err = command(*words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["first"], found["second"], found["clips"], found["disagreements"]["first"]) == (4, 0, 4, 4)
    assert found["preference"]["value"] == found["preference"]["low"] == 0
    assert found["p"] == pytest.approx(2 / 2**4)
    assert found["listeners"].keys() == {"ana"}
    assert "B is preferred: 0.0 % [0.0, 49.0]  p = 0.1250  (A 4, B 0, no difference 0)" in command(*words)[1]
    other = folder / "ben.jsonl"
    other.write_bytes(choices.read_bytes().replace(b'"ana"', b'"ben"').replace(b'"left"', b'"same"'))
    both = command("preference", f"{choices},{other}", *words[2:], "--json")
    assert both[0] == 0
    assert json.loads(both[1])["listeners"].keys() == {"ana", "ben"}
    assert json.loads(both[1])["agreement"]["pairs"] == 4


def test_choices_of_other_predictions_are_refused(folder: Path) -> None:
    session = listened(folder)["session"]
    choices = folder / "choices.jsonl"
    row = {"kind": "choice", "clip": "c1", "choice": "left", "listener": "ana", "at": "now"}
    choices.write_bytes(line_of(session) + line_of(row))
    code, _, err = command("preference", choices, folder / "b.jsonl", folder / "a.jsonl")
    assert (code, "in the other order" in err) == (2, True)
    (folder / "b.jsonl").write_bytes((folder / "b.jsonl").read_bytes() + b"\n")
    code, _, err = command("preference", choices, folder / "a.jsonl", folder / "b.jsonl")
    assert (code, "they have changed since" in err) == (2, True)


def test_what_cannot_be_listened_to_is_refused(folder: Path, tmp_path: Path) -> None:
    a, b, manifest = folder / "a.jsonl", folder / "b.jsonl", folder / "clips.jsonl"
    out = ("--out", tmp_path / "page.html")

    def refused(said: str, *words: object) -> None:
        code, _, err = command("listen", *words, *out)
        assert code == 2
        assert said in " ".join(err.split())
        assert "Traceback" not in err
        assert not (tmp_path / "page.html").exists()

    refused("Name the manifest that has them with --manifest", a, b)
    refused("wrote the same text for all 12 clips", a, a, "--manifest", manifest)
    refused("too many for a page", a, b, "--manifest", manifest, "--clips", 201)
    refused("--form scord is not known; did you mean 'scored'?", a, b, "--manifest", manifest, "--form", "scord")
    refused("does not exist", folder / "c.jsonl", b, "--manifest", manifest)
    lines = manifest.read_text("utf-8").splitlines(keepends=True)
    (folder / "few.jsonl").write_text("".join(lines[:10]), "utf-8")
    refused("2 of 12 clips", a, b, "--manifest", folder / "few.jsonl")
    (folder / "long.jsonl").write_text("".join(lines).replace('"duration_s": 0.5', '"duration_s": 3.5'), "utf-8")
    refused("have another length", a, b, "--manifest", folder / "long.jsonl")
    (folder / "classes.jsonl").write_text('{"id": "c0", "labels": ["x"], "decided": ["x"], "scores": {"x": 1}}\n')
    refused("has classes, and what is listened to are texts", folder / "classes.jsonl", "--manifest", manifest)
    code, _, err = command("listen", a, b, "--manifest", manifest, "--out", folder)
    assert (code, "is a folder" in err) == (2, True)


def test_a_clip_without_audio_is_said_and_shown(folder: Path) -> None:
    (folder / "tone.wav").unlink()
    pair = (folder / "a.jsonl", folder / "b.jsonl", "--manifest", folder / "clips.jsonl", "--out", folder / "page.html")
    code, out, err = command("listen", *pair)
    assert code == 0
    assert "8 clips without sound, the first:" in err
    assert "8 clips, 0 with sound" in out


def made_run(folder: Path, name: str = "b") -> Path:
    """A finished run that scored the clips."""
    run = folder / "run"
    (run / "predictions").mkdir(parents=True)
    (folder / f"{name}.jsonl").rename(run / "predictions" / "test.jsonl")
    record = {
        "schema": 1,
        "run_id": "run",
        "status": "finished",
        "config_origin": {},
        "config_digest": "",
        "ranks": {},
        "data_digest": {},
        "code": {},
        "environment": {},
        "model": {},
        "findings": [],
        "scores": {},
        "stages": [],
        "choices": {},
        "peak_memory_bytes": 0,
        "seconds": 0.0,
        "energy_joules": None,
        "data": {},
        "config": {"data": {"test": str(folder / "clips.jsonl"), "train": "elsewhere.jsonl"}},
    }
    (run / "run.json").write_text(json.dumps(record))
    return run


def test_a_run_says_where_its_clips_are(folder: Path) -> None:
    run = made_run(folder)
    code, out, err = command("listen", run, "--out", folder / "page.html", "--json")
    assert code == 0, err
    assert json.loads(out)["with_sound"] == 12
    (folder / "clips.jsonl").rename(folder / "moved.jsonl")
    code, _, err = command("listen", run, "--out", folder / "page.html")
    assert code == 2
    assert "the audio of the clips of" in err
    assert "--manifest" in err


def test_a_server_tells_its_address_keeps_choices_and_ends_with_ctrl_c(folder: Path) -> None:
    words = ["listen", "a.jsonl", "b.jsonl", "--manifest", "clips.jsonl", "--serve", "--json"]
    environment = {**os.environ, "SONOTUNE_PROGRESS": "never"}
    process = subprocess.Popen(
        [sys.executable, "-m", "sonotune", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    body = json.loads(process.stdout.readline())
    assert body["url"].startswith("http://127.0.0.1:")
    line = {"kind": "choice", "clip": "c1", "choice": "left", "listener": "ana"}
    address = urllib.parse.urlsplit(body["url"])
    connection = http.client.HTTPConnection(address.netloc, timeout=20)
    connection.request(
        "POST", f"{address.path}entries", json.dumps(line).encode(), {"Content-Type": "application/json"}
    )
    assert connection.getresponse().status == 200
    connection.close()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "1 new line in choices.jsonl" in err
    assert len(read_choices(folder / "choices.jsonl")[1]) == 1


def test_a_report_has_an_error_browser_beside_it(folder: Path) -> None:
    run = made_run(folder)
    code, out, err = command("report", run, "--json")
    assert code == 0, err
    page = (run / "errors.html").read_text("utf-8")
    assert page.count('"errors":1') + page.count('"errors":2') == 8
    assert "<audio" not in page
    assert '<a href="errors.html">' in Path(json.loads(out)["report"]).read_text("utf-8")
