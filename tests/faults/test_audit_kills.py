"""An audit that is killed, anywhere, goes on: nothing half is left, nothing is aligned twice, the same comes out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Killer = Any  # of conftest.py


def outcome(folder: Path) -> dict[str, Any]:
    """What an audit left, without the time it took."""
    report = json.loads((folder / "alignment_report.json").read_text("utf-8"))
    del report["seconds"], report["started"]
    scores = [json.loads(line) | {"left": 0} for line in lines(folder)]
    return {"report": report, "clips": (folder / "clips.jsonl").read_bytes(), "scores": scores}


def lines(folder: Path) -> list[bytes]:
    file = folder / "scores.jsonl"
    return file.read_bytes().splitlines(keepends=True) if file.exists() else []


def complete(written: list[bytes]) -> list[bytes]:
    """Without a last write that was cut."""
    ends = [at for at, line in enumerate(written, start=1) if line.endswith(b"\n") and json.loads(line)["left"] == 0]
    return written[: ends[-1] if ends else 0]


def keys(written: list[bytes]) -> list[str]:
    return [json.loads(line)["key"] for line in written]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["sampled", "every"])
def test_an_audit_killed_at_a_file_operation_goes_on(
    model_killer: Killer, make_corpus: Callable[..., Path], tmp_path: Path, every: bool
):
    train, trusted = (
        make_corpus(tmp_path / "corpus", name, count, first=first)
        for name, count, first in (("train", 6, 0), ("trusted", 20, 6))
    )
    work = tmp_path / "work"
    work.mkdir()
    words = ["audit", "model=ctc_nano", f"data.train={train}", f"audit.trusted={trusted}"]
    words += [f"audit.dir={work / 'audit'}", "training.threads=1", "training.precision=fp32"]
    whole = model_killer.run(words, work)
    assert whole.code in (0, 3), whole.said
    wanted = outcome(work / "audit")
    count = len(whole.operations)
    writes = [at for at, what in enumerate(whole.operations, start=1) if what.startswith("write")]
    for point in range(1, count + 1) if every else sorted({1, *writes[:2], writes[-1], count}):
        shutil.rmtree(work)
        work.mkdir()
        ended = model_killer.run(words, work, at=point)
        assert ended.killed, (point, ended.said)
        if (work / "audit" / "alignment_report.json").exists():
            assert outcome(work / "audit")["report"] == wanted["report"]
        kept = complete(lines(work / "audit"))
        again = model_killer.run(words, work)
        assert again.code == whole.code, (point, again.said)
        assert outcome(work / "audit") == wanted, f"killed at {point} of {count}: {whole.operations[point - 1]}"
        done = keys(lines(work / "audit"))
        assert done[: len(kept)] == keys(kept), "what was measured stands as it was"
        assert len(set(done)) == len(done), "nothing is aligned twice"
    assert count > 10


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [("SIGKILL", -9), ("SIGTERM", 143), ("SIGINT", 130)])
def test_an_audit_stopped_while_it_measures_goes_on_to_the_same_report(tmp_path: Path, number: str, code: int):
    def words(folder: Path) -> list[str]:
        corpora = ["data.train=assets:quickstart/train.jsonl", "data.eval=assets:quickstart/eval.jsonl"]
        setup = ["training.threads=1", "training.precision=fp32", f"audit.dir={folder}"]
        return [sys.executable, "-m", "sonotune", "audit", "model=ctc_nano", *corpora, *setup]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = subprocess.run(words(tmp_path / "whole"), env=environment, capture_output=True, timeout=240)
    assert whole.returncode in (0, 3), whole.stderr
    folder = tmp_path / "stopped"
    process = subprocess.Popen(words(folder), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not lines(folder) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(getattr(signal, number))
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert b"Traceback" not in err
    assert not out
    kept = lines(folder)
    assert kept
    assert not (folder / "alignment_report.json").exists()
    again = subprocess.run(words(folder), env=environment, capture_output=True, timeout=240)
    assert again.returncode == whole.returncode, again.stderr
    done = lines(folder)
    assert done[: len(kept)] == kept
    assert len(set(keys(done))) == len(done)
    assert outcome(folder)["clips"] == outcome(tmp_path / "whole")["clips"]
    reports = [outcome(one)["report"] for one in (folder, tmp_path / "whole")]
    for report in reports:
        report["settings"].pop("dir", None)
    assert reports[0] == reports[1]
