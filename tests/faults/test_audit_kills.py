"""An audit that is killed, anywhere, goes on: nothing half is left, nothing is aligned twice, the same comes out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

Killer = Any  # of conftest.py


def tones(folder: Path, name: str, count: int, *, first: int = 0) -> Path:
    from faults.conftest import write_corpus

    return write_corpus(folder, name, count, first=first)


def outcome(folder: Path) -> dict[str, Any]:
    """What an audit left, without the time it took."""
    report = json.loads((folder / "alignment_report.json").read_text("utf-8"))
    del report["seconds"], report["started"]
    return {"report": report, "clips": (folder / "clips.jsonl").read_bytes(), "scores": sorted(lines(folder))}


def lines(folder: Path) -> list[bytes]:
    file = folder / "scores.jsonl"
    return file.read_bytes().splitlines(keepends=True) if file.exists() else []


def keys(written: list[bytes]) -> list[str]:
    return [json.loads(line)["key"] for line in written if line.endswith(b"\n")]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["sampled", "every"])
def test_an_audit_killed_at_a_file_operation_goes_on(model_killer: Killer, tmp_path: Path, every: bool):
    corpus = tmp_path / "corpus"
    tones_train, trusted = tones(corpus, "train", 6), tones(corpus, "trusted", 20, first=6)
    work = tmp_path / "work"
    work.mkdir()
    words = ["audit", "model=ctc_nano", f"data.train={tones_train}", f"audit.trusted={trusted}"]
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
        kept = [line for line in lines(work / "audit") if line.endswith(b"\n")]
        again = model_killer.run(words, work)
        assert again.code == whole.code, (point, again.said)
        assert outcome(work / "audit") == wanted, f"killed at {point} of {count}: {whole.operations[point - 1]}"
        assert lines(work / "audit")[: len(kept)] == kept, "what was measured stands as it was"
        assert len(set(keys(lines(work / "audit")))) == len(lines(work / "audit")), "nothing is aligned twice"
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
