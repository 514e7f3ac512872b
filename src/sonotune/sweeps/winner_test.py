"""The score of the best trial of a sweep on the test clips, by `sonotune evaluate` in a process of its own."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic_core import to_jsonable_python

from sonotune.config.load import idle_settings
from sonotune.config.setting_list import settings
from sonotune.errors import SonotuneError
from sonotune.runs import make_folder, read_record
from sonotune.sweeps.trials import error_in

_TRAINING_ONLY: Final = {
    *("data.train", "data.eval", "data.test", "data.eval_speakers", "data.eval_fraction"),
    *("evaluation.zero_shot", "evaluation.entropy_clips"),
}


def score_on_test(
    folder: Path, winner: Mapping[str, Any], test: str, *, told: Callable[[str], None]
) -> tuple[list[dict[str, Any]] | None, str | None]:
    """Score the runs of the best configuration on the test clips.

    Args:
        folder: Of the sweep; predictions go to `test` in it.
        winner: As in `sweep.json`.
        test: `data.test` of the line.
        told: Called with the line that is run.

    Returns:
        For each run `trial`, `line` and `scores`, and None; or None and what went wrong.
    """
    found = []
    for name, run in zip(winner["trials"], winner["runs"], strict=True):
        try:
            words = evaluation_words(Path(run), test)
        except SonotuneError as error:
            return None, str(error)
        line = f"sonotune evaluate {shlex.join(words)}"
        told(f"the best trial on data.test: {line}")
        make_folder(folder / "test", choose="sweep.dir=PATH")
        out = folder / "test" / f"{name}.jsonl"
        command = [sys.executable, "-m", "sonotune", "evaluate", *words, "--json", "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (our own command)
        if done.returncode != 0:
            return None, error_in(done.stderr)
        found.append({"trial": name, "line": line, "scores": json.loads(done.stdout)["scores"]})
    return found, None


def evaluation_words(run: Path, test: str) -> Sequence[str]:
    """Words of `sonotune evaluate` that score a run's model as the run scored it, on other clips."""
    config = read_record(run).config
    given = {"model": f"model={run}", "data.test": f"data.test={test}"}
    for name, setting in settings().items():
        section, _, key = name.partition(".")
        value = config.get(section, {}).get(key)
        if section not in {"data", "evaluation"} or name in _TRAINING_ONLY or key not in config.get(section, {}):
            continue
        if value != to_jsonable_python(setting.default):
            given[name] = f"{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
    for name in idle_settings(list(given.values())):
        given.pop(name, None)
    return list(given.values())
