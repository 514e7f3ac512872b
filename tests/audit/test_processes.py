"""An audit by two processes that torchrun starts is that of one, to the last digit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WAIT_S = 240


def audit(folder: Path, processes: int) -> tuple[dict[str, Any], bytes, str]:
    """The report without its time, the clips, and what was printed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    line = [
        *(sys.executable, *(launcher if processes > 1 else []), "-m", "sonotune", "audit", "model=ctc_nano"),
        *("data.train=assets:quickstart/train.jsonl", "data.eval=assets:quickstart/eval.jsonl", f"audit.dir={folder}"),
        *("audit.min_clips=150", "audit.max_clips=150", "training.threads=1", "training.precision=fp32"),
    ]
    done = subprocess.run(
        line, capture_output=True, text=True, timeout=WAIT_S, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "alignment_report.json").read_text("utf-8"))
    for name in ("seconds", "started"):
        del report[name]
    del report["settings"]["dir"]
    return report, (folder / "clips.jsonl").read_bytes(), done.stdout


@pytest.mark.slow
def test_two_processes_report_what_one_does(tmp_path: Path):
    alone, together = audit(tmp_path / "one", 1), audit(tmp_path / "two", 2)
    assert together[:2] == alone[:2]
    assert together[2].count("intercom: ") == 1, "one of them prints"
    assert (tmp_path / "two" / "report.html").is_file()
