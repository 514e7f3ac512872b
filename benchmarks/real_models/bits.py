"""What fewer bits of the frozen weights cost an untuned Whisper: WER of each, and the paired difference from 16 bits.

    python benchmarks/real_models/bits.py real-data --model ../shared/data/whisper_base --clips 60 --out FILE

Every precision decodes the same clips greedily without fallback over the thinned window with `sonotune evaluate --out`;
`sonotune compare` pairs the predictions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

BITS: Final = {
    "fp16": ["quantization.bits=16"],
    "int8": ["quantization.bits=8"],
    "nf4": ["quantization.bits=4"],
    "nf4_single": ["quantization.bits=4", "quantization.double=false"],
}
TESTS: Final = {"fsdd": "test", "breton": "test", "swahili": "test"}


def main() -> None:
    """Score every precision on every corpus; print and keep a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="Folder that corpora.py wrote.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpora", nargs="+", default=sorted(TESTS), choices=sorted(TESTS))
    parser.add_argument("--clips", type=int, default=60, help="The first of each test that are at most 29.9 s long.")
    parser.add_argument("--context", default="thinned")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for corpus in options.corpora:
            place = options.data.resolve() / corpus
            lines = (place / f"{TESTS[corpus]}.jsonl").read_text("utf-8").splitlines()
            clips = [clip for clip in map(json.loads, lines) if clip["duration_s"] <= 29.9][: options.clips]
            manifest = Path(folder) / f"{corpus}.jsonl"
            manifest.write_text("".join(json.dumps(clip) + "\n" for clip in clips), "utf-8")
            for bits, words in BITS.items():
                predictions = Path(folder) / f"{corpus}-{bits}.jsonl"
                found = _sonotune(
                    [
                        "evaluate",
                        f"model.checkpoint={Path(options.model).resolve()}",
                        f"model.context={options.context}",
                        f"data.test={manifest}",
                        f"data.root={place}",
                        "data.allow_outside_root=true",
                        "evaluation.temperatures=[0]",
                        *words,
                        "--out",
                        str(predictions),
                    ]
                )
                row = {"corpus": corpus, "bits": bits, "clips": found["clips"], "seconds": found["seconds"]}
                row |= {"scores": found["scores"], "decoding": found["decoding"]}
                if bits != "fp16":
                    pair = [str(Path(folder) / f"{corpus}-fp16.jsonl"), str(predictions)]
                    row["from_fp16"] = _sonotune(["compare", *pair])["difference"]
                rows.append(row)
                print(json.dumps(row), flush=True)
                options.out.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _sonotune(words: Sequence[str]) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "sonotune", *words, "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"sonotune {' '.join(words)}\nexit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
