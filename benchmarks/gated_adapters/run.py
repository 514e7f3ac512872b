"""Gates by frame against LoRA, a router, filters over time and frames in another order, on real recordings.

    python benchmarks/real_models/corpora.py real-data
    python benchmarks/gated_adapters/run.py real-data --model ../shared/data/whisper_base --corpora fsdd swahili
    python benchmarks/gated_adapters/run.py real-data --model ../shared/data/whisper_base --report

A cell is one training run of an arm on a corpus with a learning rate and a seed, scored on the development and the test
clips, and on recordings without speech (`evaluation.keep=[nonspeech]`). A finished cell is a file in `results/` and is
not run again, so a plan of days can be stopped at any time. `--report` chooses the rate of every arm by the development
clips, over all seeds, and compares the test scores of `gated_lora` with those of the other arms, paired, speakers
resampled (`sonotune compare`).

All arms train as many parameters to within half a percent, or the cell is refused: LoRA, which has no gates, is given
the budget of the gated arm.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sonotune.runs import code_version

RESULTS: Final = Path(__file__).parent / "results"
ARMS: Final = {
    "lora": "lora",
    "router": "clip_gated_lora",
    "conv": "conv_lora",
    "gate": "gated_lora",
    "shuffled": "shuffled_gated_lora",
}
"""Arm -> kind of adapter."""
STEPS: Final = {
    "swahili": {"training.batch_max_clips": "4", "training.batch_seconds": "120", "training.max_epochs": "6"},
    "breton": {"training.batch_max_clips": "8", "training.batch_seconds": "240", "training.max_epochs": "4"},
}
DIGITS: Final = {"training.batch_max_clips": "16", "training.batch_seconds": "480", "training.max_epochs": "2"}
PARAMETERS_APART: Final = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One trained model."""

    corpus: str
    arm: str
    rate: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.corpus}/{self.arm}-{self.rate}-{self.seed}"


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Every cell, all arms of a corpus, rate and seed one after the other."""
    for corpus in options.corpora:
        for seed in options.seeds:
            for rate in options.rates:
                for arm in options.arms:
                    yield Cell(corpus=corpus, arm=arm, rate=rate, seed=seed)


def main() -> None:
    """Run the cells that are not yet there, or report on those that are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="Folder of corpora, each with train.jsonl, dev.jsonl and test.jsonl.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpora", nargs="+", default=["fsdd", "swahili", "breton"])
    parser.add_argument("--arms", nargs="+", choices=sorted(ARMS), default=list(ARMS))
    parser.add_argument("--rates", nargs="+", default=["3e-4", "1e-3", "3e-3"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--work", type=Path, default=Path("runs/gated_adapters"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--keep-clips", type=int, default=100, help="Of recordings without speech.")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], metavar="SETTING=VALUE", help="Further settings of every run.")
    options = parser.parse_args()
    options.data, options.work = options.data.resolve(), options.work.resolve()
    options.model = str(Path(options.model).resolve())
    if options.report:
        print("\n".join(report(options)))
        return
    sizes: dict[str, int] = {}
    for cell in cells(options):
        file = file_of(options, cell)
        if options.list or file.is_file():
            print(f"{cell.name:<36} {'there' if file.is_file() else 'to do'}", flush=True)
            continue
        result = run_cell(cell, options, sizes)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(f"{cell.name:<36} {line(result)}", flush=True)


def file_of(options: argparse.Namespace, cell: Cell) -> Path:
    found: Path = options.results / f"{cell.name.replace('/', '_')}.json"
    return found


def run_cell(cell: Cell, options: argparse.Namespace, sizes: dict[str, int]) -> dict[str, Any]:
    """Train and score one cell."""
    folder, place = options.data / cell.corpus, options.work / cell.name
    shutil.rmtree(place, ignore_errors=True)
    adapter = {"adapter.kind": ARMS[cell.arm], "adapter.rank": str(options.rank), "quantization.bits": "16"}
    wanted = parameters(options, {**adapter, "adapter.kind": ARMS["gate"]}, sizes)
    if cell.arm == "lora":
        adapter["adapter.budget"] = str(wanted)
    found = parameters(options, adapter, sizes)
    if abs(found - wanted) > PARAMETERS_APART * wanted:
        raise SystemExit(f"{cell.name} would train {found} parameters of adapters, and gated_lora {wanted}.")
    # The stem trains beside the adapters in every arm, and learns at a tenth of their rate.
    settings = {
        **(STEPS.get(cell.corpus) or DIGITS),
        **adapter,
        "training.learning_rate": cell.rate,
        "training.learning_rates": "{stem: 0.1}",
        "training.seed": str(cell.seed),
    }
    shared = ["data.allow_outside_root=true", f"data.root={folder}", "evaluation.temperatures=[0]"]
    commands: list[str] = []
    trained = sonotune(
        "train",
        [
            f"model.checkpoint={options.model}",
            *(f"{name}={value}" for name, value in settings.items()),
            f"data.train={folder / 'train.jsonl'}",
            f"data.eval={folder / 'dev.jsonl'}",
            f"data.test={folder / 'test.jsonl'}",
            "evaluation.zero_shot=false",
            f"run.dir={place}",
            *shared,
            *options.set,
        ],
        commands,
    )
    scored = sonotune(
        "evaluate",
        [
            f"model.checkpoint={place}",
            f"data.test={folder / 'test.jsonl'}",
            "evaluation.keep=[nonspeech]",
            f"evaluation.keep_clips={options.keep_clips}",
            *shared,
        ],
        commands,
    )
    record = json.loads((place / "run.json").read_text("utf-8"))
    return {
        "cell": cell.name,
        "kind": ARMS[cell.arm],
        "adapter_parameters": found,
        "commands": commands,
        "code": code_version(),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "seconds": trained["seconds"],
        "dev": trained["scores"],
        "test": {name: scored[name] for name in ("scores", "insertions", "decoding", "clips") if name in scored},
        "nonspeech": scored.get("retention"),
        "predictions": str(place.relative_to(options.work) / "predictions"),
        "status": record["status"],
    }


def parameters(options: argparse.Namespace, adapter: Mapping[str, str], sizes: dict[str, int]) -> int:
    """Parameters of adapters that settings would train."""
    words = [f"model.checkpoint={options.model}", *(f"{name}={value}" for name, value in adapter.items())]
    key = " ".join(words)
    if key not in sizes:
        sizes[key] = sonotune("inspect", words, [])["parameters"]["adapter"]
    return sizes[key]


def sonotune(command: str, words: Sequence[str], commands: list[str]) -> Any:
    """What a command of sonotune prints as JSON."""
    begun = [sys.executable, "-m", "sonotune", command, *words]
    commands.append(" ".join(["sonotune", command, *(word.split("=")[0] + "=" + _short(word) for word in words)]))
    started = time.perf_counter()
    done = subprocess.run([*begun, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(begun)}\nexit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout) | {"wall_s": time.perf_counter() - started}


def _short(word: str) -> str:
    """The value of a setting without the folders that differ from machine to machine."""
    value = word.partition("=")[2]
    return "/".join(Path(value).parts[-2:]) if value.startswith("/") else value


def line(result: Mapping[str, Any]) -> str:
    """A cell in words."""
    wer = result["test"]["scores"]["wer"]
    parts = [f"test WER {100 * wer['value']:.2f} [{100 * wer['low']:.2f}, {100 * wer['high']:.2f}]"]
    for panel in result["nonspeech"] or ():
        after = panel.get("after") or {}
        value = after.get("value", after)
        parts.append(f"{panel.get('panel')}: {value}")
    return f"{result['seconds'] / 60:.1f} min; {'; '.join(parts)}"


def report(options: argparse.Namespace) -> list[str]:
    """The rate of every arm by the development clips, and the gates against every other arm on the test clips."""
    lines = []
    for corpus in options.corpora:
        chosen: dict[str, tuple[str, list[int]]] = {}
        for arm in options.arms:
            found = {rate: _dev(options, corpus, arm, rate) for rate in options.rates}
            whole = {rate: wers for rate, wers in found.items() if wers}
            if not whole:
                lines.append(f"{corpus:<10} {arm:<9} no cell is there")
                continue
            best = min(whole, key=lambda rate: statistics.mean(whole[rate].values()))
            chosen[arm] = (best, sorted(whole[best]))
            lines.append(
                f"{corpus:<10} {arm:<9} rate {best}, seeds {chosen[arm][1]}: {_test(options, corpus, arm, best)}"
            )
        for arm in chosen:
            if arm != "gate" and "gate" in chosen:
                lines += _compared(options, corpus, arm, chosen)
    return lines


def _cell(options: argparse.Namespace, corpus: str, arm: str, rate: str, seed: int) -> dict[str, Any] | None:
    file = file_of(options, Cell(corpus=corpus, arm=arm, rate=rate, seed=seed))
    found: dict[str, Any] | None = json.loads(file.read_text("utf-8")) if file.is_file() else None
    return found


def _dev(options: argparse.Namespace, corpus: str, arm: str, rate: str) -> dict[int, float]:
    """Seed -> word error rate on the development clips."""
    found = {seed: _cell(options, corpus, arm, rate, seed) for seed in options.seeds}
    return {seed: one["dev"]["wer"]["value"] for seed, one in found.items() if one}


def _test(options: argparse.Namespace, corpus: str, arm: str, rate: str) -> str:
    found = [one for seed in options.seeds if (one := _cell(options, corpus, arm, rate, seed))]
    wers = [100 * one["test"]["scores"]["wer"]["value"] for one in found]
    return f"test WER {statistics.mean(wers):.2f} ({', '.join(f'{one:.2f}' for one in wers)})"


def _compared(
    options: argparse.Namespace, corpus: str, arm: str, chosen: Mapping[str, tuple[str, list[int]]]
) -> list[str]:
    """The gates minus another arm, paired over clips and seeds."""
    seeds = [seed for seed in chosen[arm][1] if seed in chosen["gate"][1]]
    sides = []
    for one in (arm, "gate"):
        places = [options.work / Cell(corpus=corpus, arm=one, rate=chosen[one][0], seed=seed).name for seed in seeds]
        if missing := [place for place in places if not (place / "predictions").is_dir()]:
            return [f"{corpus:<10} gate minus {arm}: {missing[0]} is not there"]
        sides.append(",".join(map(str, places)))
    row = sonotune("compare", [*sides, "--moment", "test"], [])["difference"]["wer"]
    low, high = 100 * row["low"], 100 * row["high"]
    return [
        f"{corpus:<10} gate minus {arm:<9} {100 * row['value']:+.2f} points [{low:+.2f}, {high:+.2f}], p {row['p']:.3f}"
    ]


if __name__ == "__main__":
    main()
