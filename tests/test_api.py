"""The public functions: the script of the page runs, and importing the package costs nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sonotune
from sonotune.registry import resolve_asset

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "use-from-python.md"


def test_the_script_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    source = resolve_asset("assets:quickstart/eval.jsonl")
    shutil.copytree(source.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(script, str(PAGE), "exec"), names)  # noqa: S102  (our own page)
    lines = capsys.readouterr().out.splitlines()
    assert int(lines[0]) > 0
    assert int(lines[1]) > 0
    run = names["run"]
    assert isinstance(run, sonotune.Run)
    assert run.record.status == "finished"
    assert lines[2].endswith("runs/mine")
    assert sonotune.read_run("runs/mine").scores == run.scores
    assert (tmp_path / "runs" / "exported" / "parity.json").is_file()


def test_settings_are_a_mapping_or_words():
    from sonotune.api import words_of

    words = words_of(
        {"model": "whisper_nano", "data.limit": 3, "reallocation.at": [0.2], "run.progress": False, "data.eval": None}
    )
    assert words == [
        "model=whisper_nano",
        "data.limit=3",
        "reallocation.at=[0.2]",
        "run.progress=false",
        "data.eval=null",
    ]
    assert words_of(["model=whisper_nano"]) == ["model=whisper_nano"]


def test_errors_are_ours():
    with pytest.raises(sonotune.SonotuneError, match=r"data\.train: required") as caught:
        sonotune.train({"model": "whisper_nano"})
    assert caught.value.exit_code == 2


def test_every_public_name_is_there_and_none_is_imported_before_it_is_used():
    assert {name for name in sonotune.__all__ if getattr(sonotune, name) is None} == set()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sonotune.nothing  # noqa: B018
    code = "import sys, sonotune; sonotune.Clip; print('torch' in sys.modules, 'sonotune.training' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
