"""A little of every light target in each run of the tests, minutes of all among the slow ones; the fuzzer itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
LIGHT = (
    "wav",
    "flac",
    "ogg",
    "mp3",
    "other-audio",
    "random",
    "json",
    "tables",
    "kaldi",
    "folders",
    "settings",
    "lines",
    "choices",
)
HEAVY = ("hub", "run", "pictures", "checkpoint", "ranks", "notes", "adapter", "config", "model")
"""What loads torch, or draws pictures."""


def fuzz(*words: str, out: Path) -> tuple[int, dict[str, Any]]:
    """The exit code and the report of a run."""
    found = subprocess.run(
        [sys.executable, str(HERE), "run", "--json", "--out", str(out), *words],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert found.returncode in (0, 1), found.stderr
    assert found.stdout, found.stderr
    return found.returncode, json.loads(found.stdout)


def targets(*names: str) -> list[str]:
    return [word for name in names for word in ("--target", name)]


def check(report: dict[str, Any], out: Path) -> None:
    """No case with a fault, no valid one refused, and many damaged ones both refused and not."""
    for name, found in report.items():
        shown = {
            where.name: (where / "fault.txt").read_text("utf-8")[-2000:] for where in sorted(out.glob(f"{name}-*"))
        }
        assert not found["faults"], f"{name}: {found['faults']}\n{json.dumps(shown, indent=1)}"
        assert not found["seeds_refused"], f"{name}: valid cases are refused"
        assert found["peak_mb"] < 1100, name


def test_every_target_is_run_here() -> None:
    listed = subprocess.run([sys.executable, str(HERE), "list"], capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in listed.splitlines()} == {*LIGHT, *HEAVY}


@pytest.mark.parametrize("name", LIGHT)
def test_damaged_files_end_in_errors_of_the_tool(name: str, tmp_path: Path) -> None:
    code, report = fuzz(*targets(name), "--cases", "200", "--seconds", "3", "--seed", "1", out=tmp_path)
    check(report, tmp_path)
    assert code == 0
    assert report[name]["cases"] > 20
    assert report[name]["refused"] > report[name]["cases"] / 5


@pytest.mark.slow
@pytest.mark.parametrize(("names", "seconds"), [(LIGHT, 60), *(((name,), 15) for name in HEAVY)])
def test_more_damaged_files_end_in_errors_of_the_tool(names: tuple[str, ...], seconds: int, tmp_path: Path) -> None:
    words = (*targets(*names), "--cases", "100000", "--seconds", str(seconds), "--seed", "2")
    code, report = fuzz(*words, out=tmp_path)
    check(report, tmp_path)
    assert code == 0
    assert report.keys() == set(names)
    assert all(found["cases"] >= 5 for found in report.values())


# --- the fuzzer itself ---------------------------------------------------------------------------


def test_a_foreign_exception_is_found_kept_and_comes_again(tmp_path: Path) -> None:
    code, report = fuzz(*targets("broken-raise"), "--cases", "60", out=tmp_path)
    assert code == 1
    ((signature, count),) = report["broken-raise"]["faults"].items()
    assert signature.startswith("ZeroDivisionError at broken.py")
    assert count > 3
    kept = report["broken-raise"]["kept"][signature]
    assert len(kept) == 3  # of one cause, three examples
    again = subprocess.run([sys.executable, str(HERE), "replay", kept[0]], capture_output=True, text=True)
    assert again.returncode == 1
    assert "a foreign exception" in again.stdout
    (Path(kept[0]) / "files" / "file").write_bytes(b"0123456789")
    assert subprocess.run([sys.executable, str(HERE), "replay", kept[0]], capture_output=True).returncode == 0


def test_cases_depend_on_target_seed_and_number_alone(tmp_path: Path) -> None:
    whole = fuzz(*targets("broken-raise"), "--cases", "40", "--seed", "3", out=tmp_path / "a")[1]["broken-raise"]
    first = fuzz(*targets("broken-raise"), "--cases", "20", "--seed", "3", out=tmp_path / "b")[1]["broken-raise"]
    rest = fuzz(*targets("broken-raise"), "--cases", "20", "--first", "20", "--seed", "3", out=tmp_path / "c")
    other = fuzz(*targets("broken-raise"), "--cases", "40", "--seed", "4", out=tmp_path / "d")
    counts = [sum(found["faults"].values()) for found in (whole, first, rest[1]["broken-raise"])]
    assert counts[0] == counts[1] + counts[2] > 0
    assert {place.name for place in (tmp_path / "d").iterdir()} != {place.name for place in (tmp_path / "a").iterdir()}
    assert other[0] == 1


def test_an_error_of_the_tool_is_no_fault_but_an_endless_message_is(tmp_path: Path) -> None:
    code, report = fuzz(*targets("broken-refuse", "broken-bad-message"), "--cases", "60", out=tmp_path)
    assert code == 1
    assert report["broken-refuse"]["faults"] == {}
    assert report["broken-refuse"]["refused"] > 40
    (signature,) = report["broken-bad-message"]["faults"]
    assert signature.startswith("BadMessageError")


def test_a_process_that_dies_is_a_fault_and_the_next_case_is_run(tmp_path: Path) -> None:
    code, report = fuzz(*targets("broken-crash"), "--cases", "40", out=tmp_path)
    assert code == 1
    assert report["broken-crash"]["cases"] == 40
    assert report["broken-crash"]["faults"].keys() == {"crash: SIGABRT"}


def test_memory_beyond_the_limit_is_a_fault(tmp_path: Path) -> None:
    code, report = fuzz(*targets("broken-hog"), "--cases", "4", "--memory", "150", out=tmp_path)
    assert code == 1
    assert report["broken-hog"]["faults"].keys() == {"memory"}
    assert report["broken-hog"]["cases"] == 4


@pytest.mark.parametrize("name", ["broken-hang", "broken-busy", "broken-hang-outside-python"])
def test_a_hang_is_a_fault_wherever_it_is(name: str, tmp_path: Path) -> None:
    code, report = fuzz(*targets(name), "--cases", "17", "--limit", "0.2", out=tmp_path)
    assert code == 1
    assert report[name]["cases"] == 17
    assert report[name]["faults"]
    assert all(signature.startswith("hang at broken.py") for signature in report[name]["faults"])
