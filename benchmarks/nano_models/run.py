"""Every packaged nano model, as it is and adapted in three ways, on what it never heard.

Speech models: the Free Spoken Digit Dataset, trained on three real speakers and scored on the fourth. Drums: the tiny
corpus of rudiments, scored on kits that are in no training data. Every arm runs `sonotune train` as a user would, in a
process of its own, with a number of steps fixed beforehand; the last weights are scored.
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

SPEECH = ("whisper_nano", "ctc_nano", "qwen3_asr_nano")
DRUMS = ("ast_nano",)
ARMS = {
    "LoRA": ["quantization.bits=16"],
    "QLoRA": ["quantization.bits=4"],
    "full": ["adapter=full"],
}


def main() -> None:
    """Run what is missing in the results and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fsdd", default=os.environ.get("SONOTUNE_FSDD", "../shared/data/fsdd"))
    parser.add_argument("--held-out", default="theo")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--models", nargs="*", default=[*SPEECH, *DRUMS])
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--work", type=Path, default=Path("runs/nano_models"))
    parser.add_argument("--out", type=Path, default=Path("nano_models.json"))
    options = parser.parse_args()
    os.environ["SONOTUNE_FSDD"] = str(Path(options.fsdd).resolve())
    rows = json.loads(options.out.read_text("utf-8"))["rows"] if options.out.is_file() else []
    done = {(row["model"], row["arm"]) for row in rows}
    for model in options.models:
        for arm in options.arms:
            if (model, arm) in done:
                continue
            rows.append(run_arm(model, arm, options))
            print(json.dumps(rows[-1]), flush=True)
            result = {
                "command": " ".join(sys.argv),
                "code": code_version(),
                "environment": environment(),
                "held_out": options.held_out,
                "steps": options.steps,
                "rows": rows,
            }
            options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(table(rows))


def run_arm(model: str, arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """One way of adapting one model."""
    folder = options.work / f"{model}-{arm}-{int(time.time())}"
    data = (
        ["data=rudiments_tiny", "data.eval=rudiments:data/rudiments_tiny/test.jsonl", "data.test=null"]
        if model in DRUMS
        else ["data=fsdd", f"data.eval_speakers=[{options.held_out}]"]
    )
    rate = "training.learning_rate=" + ("5e-4" if arm == "full" else "2e-3")
    words = [
        f"model={model}",
        *data,
        f"training.max_steps={options.steps}",
        "training.max_epochs=1000",
        "training.eval_steps=never",
        rate,
        f"run.dir={folder}",
        *ARMS[arm],
    ]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "sonotune", "train", *words, "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    body = json.loads(done.stdout)
    score = "accuracy" if model in DRUMS else "wer"
    return {
        "model": model,
        "arm": arm,
        "score": score,
        "before": body["before"][score],
        "after": body["after"][score],
        "wall_s": round(time.monotonic() - started, 1),
        "peak_bytes": body["peak_bytes"],
        "words": words,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Scores in percent by model and arm, with the seconds of each."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    lines = [
        "| model | score | zero-shot, 16 bits | zero-shot, 4 bits | " + " | ".join(arms) + " |",
        "|" + " --- |" * (4 + len(arms)),
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = {row["arm"]: row for row in rows if row["model"] == model}
        cells = [f"{shown(mine[arm]['after'])}, {mine[arm]['wall_s']:.0f} s" if arm in mine else "-" for arm in arms]
        zero = [shown(mine[arm]["before"]) if arm in mine else "-" for arm in ("LoRA", "QLoRA")]
        lines.append(f"| {model} | {next(iter(mine.values()))['score']} | " + " | ".join([*zero, *cells]) + " |")
    return "\n".join(lines)


def shown(score: dict[str, Any]) -> str:
    """A score in per cent with its interval."""
    return f"{100 * score['value']:.1f} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


if __name__ == "__main__":
    main()
