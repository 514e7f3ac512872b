"""Two stages against adapters alone and full fine-tuning at equal steps: what is learnt, and what is forgotten.

Every run is `sonotune train` in a process of its own: qwen3_asr_nano on two speakers of the Free Spoken Digit Dataset.
Each arm's learning rate is chosen on a third speaker, with seed 0; the fourth is scored with every seed, and so are the
clips of the source, which the model was made on the like of.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sonotune.data.importers import load_fsdd
from sonotune.data.manifest import write_manifest
from sonotune.runs import code_version, environment

TRAIN, DEV, TEST = ("theo", "lucas"), ("jackson",), ("nicolas",)
ARMS = {
    "staged": ["recipe=nano_round2"],
    "staged, weights alone": ["recipe=nano_round2", "adapter=full"],
    "adapters": ["training.max_epochs=6"],  # as many as the two stages have together
    "full": ["adapter=full", "training.max_epochs=6"],
}
RATES = {
    "staged": (3.16e-4, 1e-3, 3.16e-3),
    "staged, weights alone": (3.16e-4, 1e-3, 3.16e-3),
    "adapters": (6.32e-4, 2e-3, 6.32e-3),
    "full": (6.32e-5, 2e-4, 6.32e-4),
}


def main() -> None:
    """Run the arms and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="Manifest of clips like those that the model was made on.")
    parser.add_argument("--fsdd", default=os.environ.get("SONOTUNE_FSDD", "../shared/data/fsdd"))
    parser.add_argument("--work", type=Path, default=Path("runs/stages"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("stages.json"), help="Results; runs in it are not done again.")
    parser.add_argument("words", nargs="*", help="Further settings for every run.")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    write_manifests(Path(options.fsdd).resolve(), options.work)
    rows = json.loads(options.out.read_text("utf-8"))["rows"] if options.out.is_file() else []
    for arm, rates in RATES.items():
        tried = [one_run(arm, rate, 0, rows, options) for rate in rates]
        best = min(tried, key=lambda row: row["dev"]["value"])["learning_rate"]
        for seed in range(1, options.seeds):
            one_run(arm, best, seed, rows, options)
    before = {
        "source": wer("model=qwen3_asr_nano", options.source),
        "test": wer("model=qwen3_asr_nano", manifest(options, "test")),
    }
    print(table(rows, before))


def write_manifests(fsdd: Path, work: Path) -> None:
    """Two speakers to learn from, one to choose by, one to score."""
    clips = load_fsdd(fsdd)
    for split, speakers in (("train", TRAIN), ("dev", DEV), ("test", TEST)):
        write_manifest(work / f"{split}.jsonl", [clip for clip in clips if clip.speaker in speakers])


def manifest(options: argparse.Namespace, split: str) -> Path:
    """Where a split lies."""
    path: Path = options.work / f"{split}.jsonl"
    return path


def one_run(
    arm: str, rate: float, seed: int, rows: list[dict[str, Any]], options: argparse.Namespace
) -> dict[str, Any]:
    """Train and score, unless the results have it."""
    for row in rows:
        if (row["arm"], row["learning_rate"], row["seed"]) == (arm, rate, seed):
            return row
    folder = options.work / f"{arm.replace(', ', '-').replace(' ', '-')}-lr{rate:g}-seed{seed}-{int(time.time())}"
    words = [
        "model=qwen3_asr_nano",
        *(f"data.{key}={manifest(options, split)}" for key, split in SPLITS.items()),
        "data.allow_outside_root=true",
        "quantization.bits=16",
        "training.batch_max_clips=16",
        "training.eval_steps=never",
        "evaluation.zero_shot=false",
        "evaluation.bootstrap=1000",
        f"training.learning_rate={rate}",
        f"training.seed={seed}",
        f"run.dir={folder}",
        *ARMS[arm],
        *options.words,
    ]
    body = sonotune("train", *words)
    events = (folder / "events.jsonl").read_text("utf-8").splitlines()
    row = {
        "arm": arm,
        "learning_rate": rate,
        "seed": seed,
        "dev": body["after"]["wer"],
        "test": body["scores"]["wer"],
        "source": wer(f"model={folder}", options.source),
        "seconds": body["seconds"],
        "peak_bytes": body["peak_bytes"],
        "steps": sum(json.loads(line)["kind"] == "step" for line in events),
        "code": code_version(),
    }
    rows.append(row)
    print(json.dumps(row), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n", "utf-8")
    return row


SPLITS = {"train": "train", "eval": "dev", "test": "test"}


def wer(model: str, clips: Path) -> dict[str, Any]:
    """Score of a model on a manifest."""
    words = (model, f"data.test={clips}", "data.allow_outside_root=true", "evaluation.bootstrap=1000")
    score: dict[str, Any] = sonotune("evaluate", *words)["scores"]["wer"]
    return score


def sonotune(*words: str) -> dict[str, Any]:
    """What a command prints with `--json`."""
    line = [sys.executable, "-m", "sonotune", *words, "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    body: dict[str, Any] = json.loads(done.stdout)
    return body


def table(rows: list[dict[str, Any]], before: dict[str, dict[str, Any]]) -> str:
    """WER in percent by arm, at the rate that the third speaker liked best: the mean, and each seed."""
    lines = ["| arm | rate | steps | test | source | seconds |", "|" + " --- |" * 6]
    lines.append(f"| before | | | {before['test']['value']:.1%} | {before['source']['value']:.1%} | |")
    for arm in dict.fromkeys(row["arm"] for row in rows):
        first = [row for row in rows if row["arm"] == arm and row["seed"] == 0]
        best = min(first, key=lambda row: row["dev"]["value"])["learning_rate"]
        mine = [row for row in rows if row["arm"] == arm and row["learning_rate"] == best]
        cells = [", ".join(f"{100 * row[key]['value']:.1f}" for row in mine) for key in ("test", "source")]
        means = [sum(100 * row[key]["value"] for row in mine) / len(mine) for key in ("test", "source")]
        seconds = sum(row["seconds"] for row in mine) / len(mine)
        lines.append(
            f"| {arm} | {best:g} | {mine[0]['steps']} | {means[0]:.1f} ({cells[0]}) | {means[1]:.1f} ({cells[1]}) | "
            f"{seconds:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
