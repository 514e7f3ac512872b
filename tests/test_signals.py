"""A signal ends a command at once, with a word, and without leaving half-written files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sonotune.signals import STOP_SIGNALS, Stopped, heeded, stopping_at_once

PROGRAM = """
import time
from pathlib import Path
from sonotune.cli import app, main
from sonotune.runs.folders import replacing

@app.command()
def write(folder: Path) -> None:
    with replacing(folder) as draft:
        (draft / "half").touch()
        print("ready", flush=True)
        time.sleep(60)

main()
"""


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_answered_and_the_draft_removed(tmp_path: Path, number: signal.Signals):
    command = [sys.executable, "-c", PROGRAM, "write", str(tmp_path / "target")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, restore_signals=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert said == f"\nsonotune: {number.name}: stopping.\nsonotune: stopped.\n"
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_that_closes_does_not_stop_what_nohup_started():
    assert set(heeded()) == set(STOP_SIGNALS)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in heeded()
        with stopping_at_once():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_does_not_disturb_the_clean_up(capfd: pytest.CaptureFixture[str]):
    cleaned = []

    def work() -> None:
        with stopping_at_once():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGHUP)
                cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM"):
        work()
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) == before
    assert capfd.readouterr().err.count("stopping") == 1


def test_another_thread_installs_nothing():
    found = []

    def look() -> None:
        with stopping_at_once():
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [before]
