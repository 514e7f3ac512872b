"""Fixtures every room shares."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ["SONOTUNE_PROGRESS"] = "never"  # what is shown after a second would be in the output of some runs of a test


def fsdd_folder() -> Path | None:
    """The Free Spoken Digit Dataset: `SONOTUNE_FSDD`, or where a checkout beside its shared data has it."""
    for candidate in (os.environ.get("SONOTUNE_FSDD"), ROOT.parent / "shared" / "data" / "fsdd"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    return None


@pytest.fixture(scope="session")
def whisper_base() -> Path:
    """Folder of the published multilingual Whisper-base; the test is skipped with the reason where it is absent."""
    for candidate in (os.environ.get("SONOTUNE_WHISPER_BASE"), ROOT.parent / "shared" / "data" / "whisper_base"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("real weights not found: set SONOTUNE_WHISPER_BASE to a folder of openai/whisper-base")


@pytest.fixture(scope="session")
def fsdd() -> Path:
    """Folder of `{digit}_{speaker}_{index}.wav`; the test is skipped with the reason where it is absent."""
    folder = fsdd_folder()
    if folder is None:
        pytest.skip("real recordings not found: set SONOTUNE_FSDD to a Free Spoken Digit Dataset recordings folder")
    return folder


# --- pages in a browser ------------------------------------------------------------------------------------------

_PATIENCE_S = 60.0


class Tab:
    """One page in a Chromium that is spoken to over pipes (Chrome DevTools Protocol)."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._buffer, self._next = b"", 0
        self._session: str | None = None
        self.problems: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._next += 1
        number = self._next
        self._write({"id": number, "method": method, "params": parameters})
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _write(self, asked: dict[str, Any]) -> None:
        if self._session is not None:
            asked["sessionId"] = self._session
        os.write(self._writer, json.dumps(asked).encode() + b"\0")

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready = select.select([self._reader], [], [], _PATIENCE_S)[0]
            assert ready, f"the browser does not answer; problems: {self.problems}"
            data = os.read(self._reader, 1 << 20)
            assert data, "the browser is gone"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        kind, what = found.get("method"), found.get("params", {})
        if kind == "Page.javascriptDialogOpening":  # a page with unsaved choices asks whether it may be left
            self._next += 1
            self._write({"id": self._next, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}})
        elif kind == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(what["exceptionDetails"])[:2000])
        elif kind == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning"):
            self.problems.append(json.dumps(what["args"])[:2000])
        elif kind == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
            self.problems.append(what["entry"]["text"])
        return found

    def run(self, script: str) -> Any:
        """The value of an expression, awaited."""
        found = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 20.0) -> Any:
        """The first true value of an expression."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"{script} is never true; problems: {self.problems}"
            time.sleep(0.05)
        return value

    def open(self, address: str, until: str = "#items .item") -> None:
        """Load a page, until an element that the selector finds stands there."""
        self.send("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && document.querySelector('{until}') !== null")

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, **(text if kind == "keyDown" else {}))

    def look(self, path: Path, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """A picture of the page."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.send(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def opened_tab(profile: Path) -> Iterator[Tab]:
    """A Chromium with a profile of its own, ended with the block."""
    program = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if program is None:
        pytest.skip("no Chromium on this machine")
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--mute-audio",
        "--remote-debugging-pipe",
        "--disable-dev-shm-usage",
    ]
    line = f'exec "$0" "$@" 3<&{to_read} 4>&{from_write}'
    process = subprocess.Popen(
        [
            "bash",
            "-c",
            line,
            program,
            *options,
            "--autoplay-policy=no-user-gesture-required",
            f"--user-data-dir={profile}",
        ],
        pass_fds=(to_read, from_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    try:
        tab = Tab(from_read, to_write)
        yield tab
        with suppress(OSError, AssertionError):
            tab._session = None
            tab.send("Browser.close")
    finally:
        process.terminate()
        process.wait(20)
        os.close(from_read)
        os.close(to_write)


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    with opened_tab(tmp_path / "profile") as found:
        yield found
