"""A Whisper with half its decoder: trained on transcripts, and by its teacher in three ways, at equal steps.

    OMP_NUM_THREADS=1 python benchmarks/distillation/run.py WORK
    OMP_NUM_THREADS=1 python benchmarks/distillation/run.py WORK --report

The teacher is the packaged whisper-nano, tuned on the training clips of the packaged corpus and merged. The student is
the teacher without the first of its two decoder layers. A cell is a training run of an arm with a seed: all weights
train, for as many steps of the same batches, and the last weights are scored, so that nothing is chosen by a score. The
test is all clips that no run trains on. A finished cell is a line of WORK/cells.jsonl and is not run again. Arms:

    task       transcripts alone
    sequence   texts of the teacher in the place of the transcripts (`sonotune data label`)
    logits     training.objective=distill on the transcripts
    on_policy  the same, with texts that the student draws for half of the clips

`--report` writes results/NAME.json: word error rates, the part of the gap between `task` and the teacher that each arm
closes, paired differences over speakers with all seeds, and how fast teacher and student decode, in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, Final

import sonotune
from sonotune.data.manifest import read_manifest, write_manifest
from sonotune.metrics.paired import choose_blocks, paired_difference
from sonotune.registry import resolve_asset
from sonotune.runs import code_version, environment
from sonotune.types import Clip

ARMS: Final[dict[str, dict[str, Any]]] = {
    "task": {"training.objective": "task"},
    "sequence": {"training.objective": "task"},
    "logits": {"training.objective": "distill"},
    "on_policy": {"training.objective": "distill", "distillation.on_policy_share": 0.5},
}
TEACHER_EPOCHS: Final = 10


def main() -> None:
    """Run what is not done, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="Folder of the teacher, the student and the cells.")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--clips", type=int, default=16, help="Of a step.")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rounds", type=int, default=7, help="Of the comparison of speed.")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--name", default="cells", help="Of the file in results.")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.report:
        report(options)
        return
    prepare(options.work)
    done = {(cell["arm"], cell["seed"]) for cell in cells(options)}
    for seed in range(options.seeds):
        for arm in options.arms:
            if (arm, seed) not in done:
                run_cell(options, arm, seed)


def plan_of(options: argparse.Namespace) -> dict[str, Any]:
    """What all cells of a plan share."""
    return {"steps": options.steps, "clips": options.clips, "learning_rate": options.learning_rate}


def prepare(work: Path) -> None:
    """The test, the teacher, its texts and the student, each once."""
    corpus = resolve_asset("assets:quickstart")
    if not (work / "test.jsonl").exists():
        held_out = [*read_manifest(corpus / "eval.jsonl"), *read_manifest(corpus / "test.jsonl")]
        write_manifest(work / "test.jsonl", held_out)
    if not (work / "teacher").exists():
        tuned = sonotune.train(
            {
                "model": "whisper_nano",
                "data": "quickstart",
                "training.max_epochs": TEACHER_EPOCHS,
                "run.dir": work / "teacher_run",
            }
        )
        sonotune.export(tuned.folder, work / "teacher", parity_clips=0)
    if not (work / "labels.jsonl").exists():
        sonotune.label(corpus / "train.jsonl", work / "labels.jsonl", model=work / "teacher")
    if not (work / "student").exists():
        sonotune.prune(work / "teacher", work / "student", decoder_layers=1)


def run_cell(options: argparse.Namespace, arm: str, seed: int) -> None:
    """Train the student, score it, and keep the line."""
    work = options.work
    train = work / "labels.jsonl" if arm == "sequence" else resolve_asset("assets:quickstart/train.jsonl")
    settings: dict[str, Any] = {
        "model": "whisper_nano",
        "model.checkpoint": work / "student",
        "data.train": train,
        "adapter.kind": "none",
        "training.learning_rate": options.learning_rate,
        "training.max_epochs": 1000,
        "training.max_steps": options.steps,
        "training.batch_max_clips": options.clips,
        "training.eval_steps": "never",
        "training.save_steps": options.steps,
        "training.seed": seed,
        "evaluation.zero_shot": False,
        "run.dir": work / "-".join([arm, *(f"{value:g}" for value in plan_of(options).values()), str(seed)]),
        **ARMS[arm],
    }
    if arm in ("logits", "on_policy"):
        settings["distillation.teacher"] = work / "teacher"
    started = time.process_time()
    run = sonotune.train(settings)
    seconds = time.process_time() - started
    found = scored(run.folder, work)
    cell = {
        "arm": arm,
        "seed": seed,
        **plan_of(options),
        "train_processor_s": seconds,
        **found,
    }
    print(f"{arm:<10} seed {seed}  WER {100 * found['wer']:.1f} %  empty {found['empty']}  {seconds:.0f} s", flush=True)
    with (work / "cells.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(cell) + "\n")


def scored(model: Path, work: Path) -> dict[str, Any]:
    """Word errors of each test clip, and how many texts are empty."""
    result = sonotune.evaluate(model, work / "test.jsonl", {"evaluation.bootstrap": 100, "data.min_duration_s": 0.1})
    counts = [
        sonotune_edits(clip.text or "", prediction.text or "")
        for clip, prediction in zip(test_clips(work), result.predictions, strict=True)
    ]
    return {
        "wer": result.scores["wer"].value,
        "errors": [errors for errors, _ in counts],
        "empty": sum(not (prediction.text or "").strip() for prediction in result.predictions),
    }


def sonotune_edits(reference: str, hypothesis: str) -> tuple[int, int]:
    """Word errors and reference words of a pair in scoring form."""
    from sonotune.data.text import BASIC
    from sonotune.metrics.error_rate import edit_counts

    [edits] = edit_counts([BASIC.scoring(reference)], [BASIC.scoring(hypothesis)], unit="word")
    return edits.errors, edits.reference


def test_clips(work: Path) -> list[Clip]:
    """The clips of the test, in order."""
    return read_manifest(work / "test.jsonl")


def cells(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What was run of this plan."""
    path = options.work / "cells.jsonl"
    found = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    return [cell for cell in found if plan_of(options).items() <= cell.items()]


def report(options: argparse.Namespace) -> None:
    """Tables on stdout, and the file."""
    work, clips = options.work, test_clips(options.work)
    found = cells(options)
    words = [sonotune_edits(clip.text or "", "")[1] for clip in clips]
    blocks = choose_blocks([clip.speaker for clip in clips])
    teacher, start = scored(work / "teacher", work), scored(work / "student", work)
    by_arm = {arm: [cell for cell in found if cell["arm"] == arm] for arm in ARMS}
    means = {arm: statistics.mean(cell["wer"] for cell in runs) for arm, runs in by_arm.items() if runs}
    gap = means["task"] - teacher["wer"]
    print(f"teacher {100 * teacher['wer']:.1f} %, student as it was cut {100 * start['wer']:.1f} %")
    rows: list[dict[str, Any]] = []
    for arm, mean in means.items():
        runs = by_arm[arm]
        row: dict[str, Any] = {
            "arm": arm,
            "wer": mean,
            "wer_by_seed": [cell["wer"] for cell in runs],
            "empty": [cell["empty"] for cell in runs],
            "gap_closed": (means["task"] - mean) / gap if gap > 0 else None,
            "train_processor_s": statistics.mean(cell["train_processor_s"] for cell in runs),
        }
        for other in ("task", "logits"):
            if other in means and other != arm:
                difference = paired_difference(
                    "wer",
                    [cell["errors"] for cell in by_arm[other]],
                    [cell["errors"] for cell in runs],
                    words,
                    blocks=blocks,
                )
                row[f"against_{other}"] = [difference.value, difference.low, difference.high, difference.p]
        rows.append(row)
        told = "  ".join(
            f"{name.replace('_', ' ')} {100 * value[0]:+.1f} [{100 * value[1]:.1f}, {100 * value[2]:.1f}]"
            for name, value in row.items()
            if name.startswith("against_")
        )
        closed = "" if row["gap_closed"] is None else f"closes {100 * row['gap_closed']:.0f} %  "
        print(f"{arm:<10} {100 * mean:5.1f} %  {closed}{row['train_processor_s']:.0f} s  {told}")
    result = {
        "settings": {**plan_of(options), "seeds": options.seeds, "teacher_epochs": TEACHER_EPOCHS},
        "code": code_version(),
        "environment": environment(),
        "test": {"clips": len(clips), "words": sum(words), "resampled": blocks.unit, "speakers": blocks.speakers},
        "teacher": {"wer": teacher["wer"], "empty": teacher["empty"]},
        "student_before": {"wer": start["wer"], "empty": start["empty"]},
        "arms": rows,
        "speed": speed(work, options.rounds),
        "cells": found,
    }
    place = Path(__file__).parent / "results" / f"{options.name}.json"
    place.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def speed(work: Path, rounds: int) -> dict[str, Any]:
    """Processor seconds that teacher and student take for the test, in turn, and the median ratio of the rounds."""
    models = {name: sonotune.load(work / name) for name in ("teacher", "student")}
    clips = test_clips(work)
    taken: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds):
        for name in list(models)[:: 1 if turn % 2 else -1]:
            started = time.process_time()
            models[name].evaluate(clips, bootstrap=10)
            taken[name].append(time.process_time() - started)
    ratios = [first / second for first, second in zip(taken["teacher"][1:], taken["student"][1:], strict=True)]
    print(f"the student decodes {statistics.median(ratios):.2f} times as fast as the teacher")
    return {"processor_s": taken, "median_ratio": statistics.median(ratios)}


if __name__ == "__main__":
    main()
