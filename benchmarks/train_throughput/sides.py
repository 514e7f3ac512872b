"""Runs one part of one row. `run.py` calls this once for each process.

    python -m benchmarks.train_throughput.sides ROW PART GIVEN FOLDER     # -> FOLDER/out.json

PART is one of PARTS; GIVEN its precision, or the number of steps to prepare.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from benchmarks.train_throughput.rows import comparison
from benchmarks.train_throughput.rows.ast import ROW as AST
from benchmarks.train_throughput.rows.ctc import ROW as CTC
from benchmarks.train_throughput.rows.qwen3_asr import ROW as QWEN3_ASR
from benchmarks.train_throughput.rows.whisper import ROW as WHISPER

ROWS: Final = {"whisper": WHISPER, "qwen3_asr": QWEN3_ASR, "ctc": CTC, "ast": AST}
PARTS: Final = {
    "prepare": comparison.prepare,
    "sonotune": comparison.side_sonotune,
    "trainer": comparison.side_usual,
    "check": comparison.side_check,
    "breakdown": comparison.side_breakdown,
}

if __name__ == "__main__":
    row, part, given, folder = sys.argv[1:]
    (Path(folder) / "out.json").write_text(json.dumps(PARTS[part](ROWS[row], Path(folder), given)))
