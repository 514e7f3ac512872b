"""The command `benchmark`: which forms it measures, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

QUICKSTART = "data.test=assets:quickstart/test.jsonl"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sonotune", "benchmark", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_forms_of_a_model_are_measured_apart() -> None:
    done = run("model=ctc_nano", QUICKSTART, "--forms=base,base_4bit", "--latency-clips=2", "--watts=5", "--json")
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert list(body["forms"]) == ["base", "base_4bit"]
    base, packed = body["forms"].values()
    assert (base["bits"], packed["bits"]) == (16, 4)
    assert base["weight_bytes"] > packed["weight_bytes"]
    assert base["power"]["label"] in ("measured", "estimated")
    assert body["training"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model=ctc_nano", QUICKSTART, "--forms=bse"), "did you mean 'base'"),
        (("model=ctc_nano", QUICKSTART, "--forms=merged"), "has none"),
        (("model=ctc_nano", QUICKSTART, "--forms=,"), "--forms is empty"),
        (("model=ctc_nano",), "data.test"),
        (("model=ctc_nano", "data.test=nowhere.jsonl", "--forms=base"), "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: tuple[str, ...], said: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
