"""Sessions at a terminal, written down with what was shown, and run again as tests.

A script has lines `$ COMMAND`, each followed by what it prints (both streams) and by `[CODE]` where it does not end
with 0. Lines about phases are left out, for they depend on the time that a phase takes. `$ COMMAND  # killed after step
N` is killed as soon as its run has trained so far. Names such as `$SPEECH` stand for folders that a test gives. What
differs from machine to machine is written as `#` (`plain`), and a line `...` stands for any lines.
`SONOTUNE_WRITE_JOURNEYS=1` writes down what was shown anew where it is other than the script says: read the difference
as a user would before it is committed.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from sonotune.runs import read_events

KILLED: Final = re.compile(r"\s+# killed after step (\d+)$")
PHASE: Final = re.compile(r".+: (.*, )?(took )?\d+(\.\d)? (s|min|h)(, about \d+(\.\d)? (s|min|h) left)?")
LIMIT_S: Final = 1200
WIDTH: Final = 120
VARYING: Final = (
    (re.compile(r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?(\.\d+)?( ?UTC|Z|\+00:00)?"), "#"),
    (re.compile(r"(?<=\S) +WER with loops cut \S+ % \[[^]]*\]"), ""),
    (re.compile(r", \d+ of \d+ texts (loop|end at their limit of tokens) \([^)]*\)"), ""),
    (re.compile(r"\b(bf16|fp32) on cpu"), "# on cpu"),
    (re.compile(r"[-+]?\d[\d,]*(\.\d+)? (?=(B|kB|MB|GB|KiB|MiB|GiB|ms|s|min|h)\b)"), "# "),
    (re.compile(r"# (B|kB|MB|GB|KiB|MiB|GiB)\b"), "# B"),
    (re.compile(r"# (ms|s|min|h)( # s)?\b"), "# s"),
    (re.compile(r"[-+]?\d+(\.\d+)?(e-?\d+)?( ?%)"), "# %"),
    (re.compile(r"[-+]?\d[\d,]*\.\d+(e-?\d+)?"), "#"),
    (re.compile(r" {2,}"), " "),
    (re.compile(r"-{3,}|─{3,}"), "---"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a script.

    Attributes:
        line: As it is typed.
        shown: What the script says it prints, without what varies.
    """

    line: str
    shown: tuple[str, ...]


def plain(text: str) -> str:
    """What was shown, without the numbers that differ from machine to machine, and without space at line ends."""
    for pattern, stands in VARYING:
        text = pattern.sub(stands, text)
    return "\n".join(line.rstrip() for line in text.splitlines())


def read(script: Path) -> tuple[str, list[Step]]:
    """What stands above the first command, and the commands."""
    head: list[str] = []
    steps: list[Step] = []
    for line in script.read_text("utf-8").splitlines():
        if line.startswith("$ "):
            steps.append(Step(line[2:], ()))
        elif steps:
            steps[-1] = Step(steps[-1].line, (*steps[-1].shown, line))
        else:
            head.append(line)
    return "\n".join(head), steps


def _play(script: Path, folder: Path, places: Mapping[str, Path]) -> list[str]:
    """Run a script, or write it anew.

    Args:
        script: Its file.
        folder: Where it is run.
        places: Name in the script -> folder.

    Returns:
        What differs, a text for each command.
    """
    head, steps = read(script)
    lines, wrong = [head], []
    for step in steps:
        shown = tuple(_shown(step.line, folder, places))
        expected = _trimmed(step.shown)
        if not matches(expected, shown):
            wrong.append("\n".join(["", f"$ {step.line}", "--- in the script", *expected, "--- shown", *shown]))
            expected = shown
        lines += [f"$ {step.line}", *expected, ""]
    if os.environ.get("SONOTUNE_WRITE_JOURNEYS"):
        script.write_text("\n".join(lines).rstrip() + "\n", "utf-8")
        return []
    return wrong


def matches(expected: tuple[str, ...], shown: tuple[str, ...]) -> bool:
    """Whether lines are those expected, where `...` stands for any lines, also for none."""
    if not expected:
        return not shown
    if expected[0] == "...":
        return any(matches(expected[1:], shown[start:]) for start in range(len(shown) + 1))
    return bool(shown) and expected[0] == shown[0] and matches(expected[1:], shown[1:])


def _trimmed(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Without the empty lines that only part one command from the next."""
    end = len(lines)
    while end and not lines[end - 1]:
        end -= 1
    return lines[:end]


def _shown(line: str, folder: Path, places: Mapping[str, Path]) -> Iterator[str]:
    killed = KILLED.search(line)
    words = shlex.split(KILLED.sub("", line))
    for name, place in places.items():
        words = [word.replace(f"${name}", str(place)) for word in words]
    assert words[0] == "sonotune", line
    process = subprocess.Popen(
        [sys.executable, "-m", "sonotune", *words[1:]],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": str(WIDTH), "NO_COLOR": "1", "SONOTUNE_PROGRESS": "lines"},
    )
    try:
        if killed:
            _wait_for_step(process, folder / _run_dir(words), int(killed[1]))
            process.kill()
        said, _ = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    said = "\n".join(line for line in said.splitlines() if not PHASE.fullmatch(line))
    for name, place in places.items():
        said = said.replace(str(place), f"${name}")
    yield from _trimmed(tuple(plain(said.replace(str(folder), ".")).splitlines()))
    if process.returncode:
        yield f"[{'killed' if killed and process.returncode < 0 else process.returncode}]"


def _run_dir(words: list[str]) -> str:
    [place] = [word.removeprefix("run.dir=") for word in words if word.startswith("run.dir=")]
    return place


def _wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    ends = time.monotonic() + LIMIT_S
    while not any(event["kind"] == "step" and event["step"] >= step for event in read_events(run / "events.jsonl")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < ends, "nothing happened"
        time.sleep(0.02)


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., None]:
    """Runs a script beside this file in the test's folder, and fails with what differs."""

    def played(name: str, **places: Path) -> None:
        wrong = _play(Path(__file__).with_name(f"{name}.txt"), tmp_path, places)
        assert not wrong, "\n".join(wrong)

    return played


@pytest.fixture
def shown_as() -> Callable[[str, str], bool]:
    """Whether a text is what another one expects."""
    return lambda expected, shown: matches(tuple(plain(expected).splitlines()), tuple(plain(shown).splitlines()))


@pytest.fixture
def is_of_a_phase() -> Callable[[str], bool]:
    """Whether a line says how far a phase is, so that it is left out."""
    return lambda line: bool(PHASE.fullmatch(line))
