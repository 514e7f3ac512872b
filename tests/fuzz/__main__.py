"""Damaged files for every reader of the tool: `python tests/fuzz run`, `replay FOLDER`, `list`. See CONTRIBUTING.md."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]  # the checkout that this is of, whatever is installed

import targets  # noqa: E402
import worker  # noqa: E402
from harness import MAX_BYTES, MAX_SECONDS  # noqa: E402


def main() -> None:
    """Run a command."""
    if sys.argv[1:2] == ["work"]:  # what this program starts for itself
        name, seed, first, last, seconds, limit, most = sys.argv[2:]
        worker.work(name, int(seed), int(first), int(last), float(seconds), float(limit), int(most))
        return
    asked = _arguments()
    if asked.command == "list":
        print("\n".join(f"{target.name:<12} {target.weight:g} ms a case" for target in targets.ALL))
    elif asked.command == "replay":
        worker.replay_here(asked.folder)
    else:
        sys.exit(run(asked))


def run(asked: argparse.Namespace) -> int:
    """Fuzz the targets that are asked for, one after another; the exit code says whether all of it was clean."""
    names = asked.target or [target.name for target in targets.ALL]
    chosen = [targets.find(name) for name in names]
    began, report, faults = time.monotonic(), {}, 0
    for position, target in enumerate(chosen):
        left = asked.seconds - (time.monotonic() - began)
        share = left / (len(chosen) - position)
        tally = worker.fuzz(
            target.name,
            seed=asked.seed,
            first=asked.first,
            cases=asked.cases,
            seconds=share,
            limits=(asked.limit, asked.memory * 10**6),
            out=asked.out,
        )
        report[target.name] = tally.to_json()
        faults += sum(tally.faults.values())
        if not asked.json:
            print(
                f"{target.name:<12} {tally.cases:>7} cases, {tally.refused:>7} refused, {tally.seconds:>8.1f} s, "
                f"slowest {tally.slowest[0]:.2f} s (case {tally.slowest[1]}), peak {tally.peak // 10**6} MB, "
                f"{sum(tally.faults.values())} faults",
                flush=True,
            )
            if tally.seeds_refused:
                print(f"    valid cases that are refused: {tally.seeds_refused}")
            for signature, count in tally.faults.most_common():
                print(f"    {count:>6} x {signature}   {tally.kept[signature][0]}", flush=True)
    if asked.json:
        print(json.dumps(report))
    return 1 if faults else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fuzzing = commands.add_parser("run", help="run cases; exit code 1 where a fault was found")
    fuzzing.add_argument("--target", action="append", help="one of `list`; may be given several times; default all")
    fuzzing.add_argument("--cases", type=int, default=1000, help="of each target")
    fuzzing.add_argument("--first", type=int, default=0, help="number of the first case, to go on with a seed")
    fuzzing.add_argument("--seed", type=int, default=0)
    fuzzing.add_argument("--seconds", type=float, default=float("inf"), help="for all targets together")
    fuzzing.add_argument("--limit", type=float, default=MAX_SECONDS, help="seconds that a case may take; %(default)g")
    fuzzing.add_argument("--memory", type=int, default=MAX_BYTES // 10**6, help="MB of its process; %(default)d")
    fuzzing.add_argument("--out", type=Path, default=Path("fuzz-faults"), help="where failing cases are kept")
    fuzzing.add_argument("--json", action="store_true")
    again = commands.add_parser("replay", help="run one failing case again; exit code 1 where it fails still")
    again.add_argument("folder", type=Path)
    commands.add_parser("list", help="names of the targets")
    return parser.parse_args()


if __name__ == "__main__":
    main()
