"""Tell ten spoken Arabic commands apart with the encoder of Whisper base under a new head: LoRA, or the head alone.

Every arm runs `sonotune train` as a user would, in a process of its own: the checkpoint's encoder, train.jsonl to learn
from, val.jsonl to choose the best epoch, and test.jsonl scored once at the end. The three share no speaker.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sonotune.runs import code_version, environment

ARMS = {
    "lora": [],
    "lora, stem frozen": ["adapter.stem=frozen"],
    # The smallest adapters there are, which no stage trains: they stay at zero, and the encoder is the checkpoint's.
    "head only": ["adapter.rank=1", "adapter.targets=q_v"],
}
_HEAD_ONLY = "training.stages=[{{name: head, weights: [head], adapters: none, max_epochs: {epochs}}}]"
_SCORES = ("accuracy", "f1_macro")


def main() -> None:
    """Run the arms and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="../shared/data/whisper_base", help="Folder of Whisper base.")
    parser.add_argument("--corpus", type=Path, default=Path("../shared/data/arabic_commands"))
    parser.add_argument("--work", type=Path, default=Path("runs/arabic_commands"))
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--learning-rate", default="auto", help="As `training.learning_rate`; of all that trains.")
    parser.add_argument("--context", help="`model.context` of every run; what the settings give where it is left out.")
    parser.add_argument("--train-clips", type=int, help="So many of train.jsonl, the same number of each class.")
    parser.add_argument("--eval-clips", type=int, help="So many of val.jsonl and of test.jsonl, likewise.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("arabic_commands.json"), help="Results; arms in it are not run again."
    )
    parser.add_argument("words", nargs="*", help="Further settings for every run.")
    options = parser.parse_args()
    manifests = write_manifests(options)
    rows = json.loads(options.out.read_text("utf-8"))["rows"] if options.out.is_file() else []
    done = {(row["arm"], row["context"], row["seed"]) for row in rows}
    for arm in options.arms:
        if (arm, options.context, options.seed) in done:
            continue
        rows.append(run_arm(arm, manifests, options) | {"code": code_version()})
        print(json.dumps(rows[-1]), flush=True)
        result = {
            "command": " ".join(map(bare, sys.argv)),
            "settings": options.words,
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "environment": environment(),
            "rows": rows,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(table(rows))


def write_manifests(options: argparse.Namespace) -> dict[str, Path]:
    """The manifests of the corpus, cut to as many clips as are asked for; speakers and repetitions in turn."""
    options.work.mkdir(parents=True, exist_ok=True)
    sizes = {"train": options.train_clips, "val": options.eval_clips, "test": options.eval_clips}
    found = {}
    for name, size in sizes.items():
        lines = (options.corpus / f"{name}.jsonl").read_text("utf-8").splitlines()
        clips: dict[str, list[dict[str, Any]]] = {}
        for clip in map(json.loads, lines):
            clips.setdefault(clip["label"], []).append(clip)
        each = None if size is None else max(1, size // len(clips))
        kept = [clip for own in clips.values() for clip in in_turn(own)[:each]]
        found[name] = options.work / f"{name}-{'all' if size is None else size}.jsonl"
        found[name].write_text("".join(json.dumps(clip) + "\n" for clip in kept), "utf-8")
    return found


def in_turn(clips: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One clip of each speaker, then a second of each, and so on."""
    seen: dict[str, int] = {}
    ranked = []
    for clip in clips:
        seen[clip["speaker"]] = seen.get(clip["speaker"], 0) + 1
        ranked.append((seen[clip["speaker"]], clip["speaker"], clip))
    return [clip for _, _, clip in sorted(ranked, key=lambda item: item[:2])]


def run_arm(arm: str, manifests: dict[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """One run of training and its scores on the test clips."""
    folder = options.work / f"{arm.replace(', ', '-').replace(' ', '-')}-{options.seed}-{int(time.time())}"
    length = _HEAD_ONLY.format(epochs=options.epochs) if arm == "head only" else f"training.max_epochs={options.epochs}"
    words = [
        f"model.checkpoint={options.checkpoint}",
        "model.task=classify",
        f"data.train={manifests['train']}",
        f"data.eval={manifests['val']}",
        f"data.test={manifests['test']}",
        f"data.root={options.corpus}",
        "data.leaks=stop",
        "evaluation.zero_shot=false",
        f"training.learning_rate={options.learning_rate}",
        f"training.seed={options.seed}",
        "run.progress=false",
        f"run.dir={folder}",
        length,
        *ARMS[arm],
        *([] if options.context is None else [f"model.context={options.context}"]),
        *options.words,
    ]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "sonotune", "train", *words, "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    body = json.loads(done.stdout)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return {
        "arm": arm,
        "context": options.context,
        "seed": options.seed,
        "epochs": options.epochs,
        "learning_rate": options.learning_rate,
        "clips": {name: len(path.read_text("utf-8").splitlines()) for name, path in manifests.items()},
        "val": {name: body["after"][name] for name in _SCORES},
        "test": {name: body["scores"][name] for name in _SCORES},
        "minutes": round((time.monotonic() - started) / 60, 2),
        "peak_bytes": body["peak_bytes"],
        "load": os.getloadavg(),  # above the number of threads, other work ran beside it
        "words": [bare(word) for word in words],
    }


def bare(word: str) -> str:
    """A word of a command line with a path cut to its last part: no result tells of the machine's folders."""
    name, equals, value = word.rpartition("=")
    return f"{name}{equals}{Path(value).name if value.startswith('/') else value}"


def table(rows: list[dict[str, Any]]) -> str:
    """Scores on the test clips in percent, with their intervals."""
    lines = ["| arm | context | clips | accuracy | macro F1 | minutes |", "|" + " --- |" * 6]
    for row in rows:
        cells = [
            f"{100 * score['value']:.1f} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
            for score in (row["test"][name] for name in _SCORES)
        ]
        clips = f"{row['clips']['train']}, {row['clips']['test']}"
        lines.append(
            f"| {row['arm']} | {row['context'] or 'default'} | {clips} | {' | '.join(cells)} | {row['minutes']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
