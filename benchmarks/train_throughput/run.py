"""How fast is a training step, and how much memory does it take, against the usual way of each architecture?

    python benchmarks/train_throughput/run.py                    # every row, about twenty minutes on two cores
    python benchmarks/train_throughput/run.py --row qwen3_asr    # one of them
    python benchmarks/train_throughput/run.py --quick            # does it still run?

Both sides train the same LoRA on the same batches from the same weights, each in a process of its own, by turns. The
README beside this file has the question, the method and the tables.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psutil

from sonotune.runs import code_version, environment

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.train_throughput.rows.comparison import Row  # noqa: E402
from benchmarks.train_throughput.sides import ROWS  # noqa: E402

LOSS_TOLERANCE: Final = 1e-4  # relative
OTHERS_ALLOWED: Final = 0.05  # of the processors, by anything else while a side runs
START_TARGETS_S: Final = {"import sonotune": 0.3, "sonotune --help": 0.5}


def in_process(row: str, work: Path, side: str, given: str) -> dict[str, Any]:
    """Run one side in a fresh process; `given` is its precision, or the number of steps to prepare."""
    print(f"{datetime.now():%H:%M:%S} {row} {side} {given}", flush=True)
    out = work / "out.json"
    out.unlink(missing_ok=True)
    quiet = {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(work / "cache"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "benchmarks.train_throughput.sides", row, side, given, str(work)]
    began, busy, ours = time.perf_counter(), _busy_seconds(), _children_seconds()
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        sys.exit(f"{row} {side} {given} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(out.read_text())
    others = _busy_seconds() - busy - (_children_seconds() - ours)
    available = (time.perf_counter() - began) * len(os.sched_getaffinity(0))
    return result | {"others": max(0.0, others / available)}


def undisturbed(row: str, work: Path, side: str, precision: str, *, tries: int) -> dict[str, Any]:
    """Run a side, again where other work disturbed it; the least disturbed run counts.

    With more than one try, each waits up to two minutes for an idle machine.
    """
    best: dict[str, Any] | None = None
    for _ in range(tries):
        for _ in range(24 if tries > 1 else 0):
            if psutil.cpu_percent(interval=5.0) < 100 * OTHERS_ALLOWED:
                break
        found = in_process(row, work, side, precision)
        if best is None or found["others"] < best["others"]:
            best = found
        if best["others"] <= OTHERS_ALLOWED:
            break
    assert best is not None
    return best


def _busy_seconds() -> float:
    """Processor seconds that anything on this machine has used."""
    used = psutil.cpu_times()
    return sum(used) - used.idle - used.iowait - used.guest - used.guest_nice


def _children_seconds() -> float:
    ended = os.times()
    return ended.children_user + ended.children_system


def start_times(repeats: int) -> dict[str, float]:
    """Median seconds of an import and of the help text, in fresh processes."""
    timed_import = "import time; t = time.perf_counter(); import sonotune; print(time.perf_counter() - t)"
    imports, helps = [], []
    for _ in range(repeats):
        said = subprocess.run([sys.executable, "-c", timed_import], capture_output=True, text=True, check=True)
        imports.append(float(said.stdout))
        began = time.perf_counter()
        subprocess.run([Path(sys.executable).with_name("sonotune"), "--help"], capture_output=True, check=True)
        helps.append(time.perf_counter() - began)
    return {"import sonotune": statistics.median(imports), "sonotune --help": statistics.median(helps)}


def compare(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Medians of each side and of the ratios of neighbouring runs."""
    ours, theirs = runs["sonotune"], runs["trainer"]
    pairs = list(zip(ours, theirs, strict=True))
    rates = [a["samples_per_s"] / b["samples_per_s"] for a, b in pairs]
    for run in (*ours, *theirs):
        assert all(math.isfinite(loss) for loss in run["losses"]), run["losses"]
    keys = ("samples_per_s", "one_epoch_samples_per_s", "preparation_s", "processor_s")
    table = {
        side: {key: statistics.median(run[key] for run in of_side) for key in keys}
        | {key: statistics.median(run["memory"][key] for run in of_side) for key in ("peak", "above", "baseline")}
        for side, of_side in runs.items()
    }
    return table | {
        "ratio": {
            "samples_per_s": statistics.median(rates),
            "lowest": min(rates),
            "highest": max(rates),
            "of_fastest": max(a["samples_per_s"] for a in ours) / max(b["samples_per_s"] for b in theirs),
            "processor_s": statistics.median(b["processor_s"] / a["processor_s"] for a, b in pairs),
            "one_epoch_samples_per_s": statistics.median(
                a["one_epoch_samples_per_s"] / b["one_epoch_samples_per_s"] for a, b in pairs
            ),
            "peak": statistics.median(a["memory"]["peak"] / b["memory"]["peak"] for a, b in pairs),
            "above": statistics.median(a["memory"]["above"] / b["memory"]["above"] for a, b in pairs),
        }
    }


def markdown(row: Row, results: Mapping[str, Any]) -> str:
    """The tables of the README."""
    clips = results["corpus"]["clips"]
    lines = [
        "| precision | | samples/s | with features, one epoch | CPU ms a sample | peak memory | above the model |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for precision, table in results["summary"].items():
        for side, name in (("sonotune", "sonotune"), ("trainer", row.usual)):
            of = table[side]
            lines.append(
                f"| {precision} | {name} | {of['samples_per_s']:.2f} | {of['one_epoch_samples_per_s']:.2f} "
                f"| {1000 * of['processor_s'] / clips:.0f} | {of['peak'] / 2**20:.0f} MiB "
                f"| {of['above'] / 2**20:.0f} MiB |"
            )
        lines.append(_ratios(row, precision, table["ratio"]))
    if "breakdown" in results:
        lines += ["", *_breakdown(results["breakdown"])]
    if "start" in results:
        lines += ["", "| start | seconds | wanted |", "| --- | --- | --- |"]
        lines += [f"| `{what}` | {took:.2f} | {START_TARGETS_S[what]:g} |" for what, took in results["start"].items()]
    busy = results["others"]
    lines += [
        "",
        _agreement(row, results["check"]),
        "",
        f"Other work on the machine took {busy['median']:.0%} of its processors (median of the runs; at most "
        f"{busy['most']:.0%}). " + ("" if busy["most"] <= OTHERS_ALLOWED else "**The times above do not count.**"),
    ]
    return "\n".join(lines).rstrip()


def _ratios(row: Row, precision: str, ratio: Mapping[str, float]) -> str:
    rate = row.rate_targets.get(precision)
    wanted = "" if rate is None else f"; wanted {rate:g}"
    memory = "" if row.memory_target is None else f" (wanted {row.memory_target:g})"
    return (
        f"| {precision} | **ratio** | **{ratio['samples_per_s']:.2f}x** ({ratio['lowest']:.2f} to "
        f"{ratio['highest']:.2f}; of the fastest runs {ratio['of_fastest']:.2f}{wanted}) "
        f"| {ratio['one_epoch_samples_per_s']:.2f}x | {ratio['processor_s']:.2f}x "
        f"| **{ratio['peak']:.2f}**{memory} | {ratio['above']:.2f} |"
    )


def _breakdown(parts_of: Mapping[str, Any]) -> list[str]:
    lines = ["| sonotune's step, ms | " + " | ".join(parts_of) + " |", "| --- |" + " --- |" * len(parts_of)]
    parts = [part["milliseconds"] for part in parts_of.values()]
    for what in ("decode", "features", "forward", "backward", "optimiser"):
        shares = " | ".join(f"{part[what]:.1f} ({part[what] / sum(part.values()):.0%})" for part in parts)
        lines.append(f"| {what} | {shares} |")
    return lines


def _agreement(row: Row, check: Mapping[str, Any]) -> str:
    names = {"full": "over the whole window", "thinned": "over the thinned window", "cut": "at the clips' own length"}
    ours = ", ".join(f"{names[context]} {check[context]:.6f}" for context in row.contexts)
    return (
        f"First-step loss on the same {row.batch} clips: Trainer {check['trainer']:.6f}, sonotune {ours} (relative "
        f"difference {check['relative']:.1e}). The Trainer's data of that batch took {check['trainer_data_ms']:.0f} ms."
    )


def measure(
    name: str, work: Path, *, steps: int | None, repeats: int, tries: int, precisions: Sequence[str] | None
) -> dict[str, Any]:
    """Everything the results file of a row holds."""
    from sonotune.models.precision import choose_precision

    began, row = time.perf_counter(), ROWS[name]
    steps = row.steps if steps is None else steps
    corpus = in_process(name, work, "prepare", str(steps))
    print(f"clips: {corpus['source']}")
    automatic, why = choose_precision("auto")
    wanted = precisions or row.precisions
    chosen = [one for one in wanted if one != "bf16" or automatic == "bf16"] or ["fp32"]
    if "bf16" in wanted and automatic != "bf16":
        print(f"bf16 is left out: {why}.")
    check = in_process(name, work, "check", "fp32")
    runs: dict[str, dict[str, list[Any]]] = {one: {"sonotune": [], "trainer": []} for one in chosen}
    for _ in range(repeats):
        for precision in chosen:
            for side in ("sonotune", "trainer"):
                runs[precision][side].append(undisturbed(name, work, side, precision, tries=tries))
    results = {
        "benchmark": "train_throughput",
        "row": name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "benchmarks/train_throughput/run.py", *sys.argv[1:]]),
        "code": code_version(),
        "machine": environment(),
        "corpus": corpus,
        "steps": steps,
        "repeats": repeats,
        "against": row.usual,
        "check": check,
        "summary": {precision: compare(of) for precision, of in runs.items()},
        "breakdown": {one: undisturbed(name, work, "breakdown", one, tries=tries) for one in chosen},
        "runs": runs,
    }
    if name == "whisper":  # of the package, not of a row; once is enough
        results["start"] = start_times(7)
    others = [run["others"] for of in runs.values() for side in of.values() for run in side]
    results["others"] = {"median": statistics.median(others), "most": max(others)}
    return results | {"seconds": time.perf_counter() - began}


def write_results(name: str, results: Mapping[str, Any], hardware: str | None) -> Path:
    machine, commit = results["machine"], results["code"]["commit"][:8]
    slug = re.sub(r"[^a-z0-9]+", "-", (hardware or f"{machine['processor']} {machine['cores']} cores").lower())
    ending = "" if name == "whisper" else f"_{name}"
    path = HERE / "results" / f"{slug.strip('-')}_{datetime.now(UTC):%Y%m}_{commit}{ending}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    return path.relative_to(ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=["all", *ROWS], default="all", help="architecture")
    parser.add_argument("--steps", type=int, help="optimiser steps measured a run (at most 30); otherwise the row's")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side and precision")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], help="otherwise those of the row")
    parser.add_argument("--tries", type=int, default=1, help="runs of a side at most, where other work disturbs it")
    parser.add_argument("--quick", action="store_true", help="two steps, once, no results file")
    parser.add_argument("--hardware", help="name of this machine in the results file's name")
    given = parser.parse_args()
    steps, repeats = (2, 1) if given.quick else (given.steps, given.repeats)
    wrong = []
    for name in ROWS if given.row == "all" else [given.row]:
        with tempfile.TemporaryDirectory(prefix="sonotune-bench-") as folder:
            results = measure(
                name, Path(folder), steps=steps, repeats=repeats, tries=given.tries, precisions=given.precision
            )
        print(f"\n{name}\n\n{markdown(ROWS[name], results)}")
        if not given.quick:
            path = write_results(name, results, given.hardware)
            print(f"\n{path} written after {results['seconds']:.0f} s.")
        if results["check"]["relative"] > LOSS_TOLERANCE:
            wrong.append(f"the two sides of {name} do not compute the same loss: {results['check']}")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
