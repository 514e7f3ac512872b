"""Adapt whisper-nano to three real speakers, score the fourth: four folds of the Free Spoken Digit Dataset.

Every arm runs `sonotune train` as a user would, in a process of its own. No setting is chosen on the held-out speaker:
the number of steps is fixed beforehand and the last weights are scored (no early stop, no choice of checkpoint).
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

from sonotune.runs import code_version, environment

SPEAKERS = ("jackson", "nicolas", "theo", "lucas")
ARMS = {
    "qlora": ["quantization.bits=4"],
    "qlora, stem frozen": ["quantization.bits=4", "adapter.stem=frozen"],
    "lora bf16": ["quantization.bits=16"],
    "full": ["adapter=full"],
}


def main() -> None:
    """Run the folds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fsdd", default=os.environ.get("SONOTUNE_FSDD", "../shared/data/fsdd"))
    parser.add_argument("--work", type=Path, default=Path("runs/fsdd_folds"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--folds", nargs="*", default=list(SPEAKERS))
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--full-learning-rate", type=float, default=5e-4)
    parser.add_argument(
        "--out", type=Path, default=Path("fsdd_folds.json"), help="Results; folds in it are not run again."
    )
    parser.add_argument("words", nargs="*", help="Further settings for every run.")
    options = parser.parse_args()
    manifests = write_manifests(Path(options.fsdd).resolve(), options.work)
    rows = json.loads(options.out.read_text("utf-8"))["rows"] if options.out.is_file() else []
    done = {(row["arm"], row["held_out"]) for row in rows}
    for arm in options.arms:
        for speaker in options.folds:
            if (arm, speaker) in done:
                continue
            rows.append(run_fold(arm, speaker, manifests, options) | {"code": code_version()})
            print(json.dumps(rows[-1]), flush=True)
            result = {"steps": options.steps, "settings": options.words, "environment": environment(), "rows": rows}
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(table(rows))


def write_manifests(fsdd: Path, work: Path) -> dict[str, tuple[Path, Path]]:
    """Held-out speaker -> (training manifest of the three others, manifest of the speaker)."""
    work.mkdir(parents=True, exist_ok=True)
    whole = work / "all.jsonl"
    subprocess.run([sys.executable, "-m", "sonotune", "data", "import", f"fsdd:{fsdd}", str(whole)], check=True)
    lines = [json.loads(line) for line in whole.read_text("utf-8").splitlines()]
    found = {}
    for speaker in SPEAKERS:
        paths = (work / f"train-without-{speaker}.jsonl", work / f"only-{speaker}.jsonl")
        for path, wanted in zip(paths, (False, True), strict=True):
            kept = [json.dumps(line) for line in lines if (line["speaker"] == speaker) is wanted]
            path.write_text("\n".join(kept) + "\n", "utf-8")
        found[speaker] = paths
    return found


def run_fold(
    arm: str, speaker: str, manifests: dict[str, tuple[Path, Path]], options: argparse.Namespace
) -> dict[str, Any]:
    """One arm on one fold."""
    train, held_out = manifests[speaker]
    folder = options.work / f"{arm.replace(', ', '-').replace(' ', '-')}-{speaker}-{int(time.time())}"
    rate = options.full_learning_rate if arm == "full" else options.learning_rate
    words = [
        "model=whisper_nano",
        f"data.train={train}",
        f"data.eval={held_out}",
        "data.allow_outside_root=true",
        f"training.max_steps={options.steps}",
        "training.max_epochs=1000",
        "training.eval_steps=never",
        f"training.learning_rate={rate}",
        f"run.dir={folder}",
        *ARMS[arm],
        *options.words,
    ]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "sonotune", "train", *words, "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    body = json.loads(done.stdout)
    return {
        "arm": arm,
        "held_out": speaker,
        "before": body["before"]["wer"],
        "after": body["after"]["wer"],
        "wall_s": round(time.monotonic() - started, 1),
        "peak_bytes": body["peak_bytes"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """WER in percent by arm and held-out speaker."""
    speakers = list(dict.fromkeys(row["held_out"] for row in rows))
    lines = ["| arm | " + " | ".join(speakers) + " | mean | seconds a fold |", "|" + " --- |" * (len(speakers) + 3)]
    before = {row["held_out"]: row["before"]["value"] for row in rows}
    lines.append(line("zero-shot", [before[speaker] for speaker in speakers], None))
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        seconds = sum(row["wall_s"] for row in mine) / len(mine)
        lines.append(line(arm, [row["after"]["value"] for row in mine], seconds))
    return "\n".join(lines)


def line(title: str, values: list[float], seconds: float | None) -> str:
    """One row of the table."""
    cells = [f"{100 * value:.1f}" for value in [*values, sum(values) / len(values)]]
    return f"| {title} | " + " | ".join(cells) + f" | {'-' if seconds is None else f'{seconds:.0f}'} |"


if __name__ == "__main__":
    main()
