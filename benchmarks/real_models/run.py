"""Real Whisper-base on real recordings: what tuning gains, in which context, scored in all three.

    python benchmarks/real_models/corpora.py real-data
    python benchmarks/real_models/run.py real-data --model ../shared/data/whisper_base --only 'fsdd/.*'

A cell is one training run (or none, for the untuned model), scored on the test clips in the contexts it lists by plain
greedy decoding: without fallback, so that loops show. A finished cell is a file in `results/` and is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).parent / "results"
CONTEXTS: Final = ("thinned", "full", "cut")
EXAMPLES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One trained model, or the untuned one.

    Attributes:
        name: Of its result.
        corpus: Folder of its manifests.
        training: Settings of `sonotune train`; None scores the untuned model.
        contexts: In which it is scored.
        tests: Manifests that it is scored on.
    """

    name: str
    corpus: str
    training: Mapping[str, str] | None = None
    contexts: Sequence[str] = CONTEXTS
    tests: Sequence[str] = ("test",)


# Clips a step and not seconds a step, so that all contexts make the same steps.
DIGITS: Final = {"training.batch_max_clips": "16", "training.batch_seconds": "480", "training.max_epochs": "2"}
FOLDS: Final = ("fsdd", "fsdd-1", "fsdd-2", "fsdd-3")
STEPS: Final = {
    **dict.fromkeys(FOLDS, DIGITS),
    "swahili": {"training.batch_max_clips": "4", "training.batch_seconds": "120", "training.max_epochs": "6"},
    "breton": {"training.batch_max_clips": "8", "training.batch_seconds": "240", "training.max_epochs": "4"},
}
TESTS: Final = {**dict.fromkeys(FOLDS, ("test",)), "swahili": ("test",), "breton": ("test", "chess")}
METHODS: Final = {
    "lora": {"quantization.bits": "16"},
    "qlora": {"quantization.bits": "4"},
    "frozen_stem": {"quantization.bits": "16", "adapter.stem": "frozen"},
    "full": {"adapter.kind": "none", "quantization.bits": "16"},
}

# A rate alone is that of all parameters; the chosen one has the stem at a tenth of 5e-4.
RATES: Final = {
    "rate_1e-3": {"training.learning_rate": "1e-3"},
    "adapters_1e-3": {"training.learning_rate": "1e-3", "training.learning_rates": "{stem: 0.05}"},
    "adapters_2e-3": {"training.learning_rate": "2e-3", "training.learning_rates": "{stem: 0.025}"},
}

# One default changed, the others as they are.
CHANGES: Final = {
    "warmup_0": {"training.warmup_steps": "0"},
    "warmup_20": {"training.warmup_steps": "20"},
    "smoothing_0.1": {"training.label_smoothing": "0.1"},
    "specaugment": {"augmentation.frequency_masks": "2", "augmentation.time_masks": "2"},
}


def cells() -> Iterator[Cell]:
    """Every cell, the quickest corpus first."""
    for corpus, steps in STEPS.items():
        yield Cell(name=f"{corpus}/untuned", corpus=corpus, tests=TESTS[corpus])
        for name, change in (RATES | CHANGES).items():
            yield Cell(
                name=f"{corpus}/{name}-thinned-0",
                corpus=corpus,
                training=steps | METHODS["lora"] | change,
                contexts=("thinned",),
                tests=TESTS[corpus],
            )
        for seed in (0, 1, 2):
            for context in CONTEXTS:
                settings = steps | METHODS["lora"] | {"model.context": context, "training.seed": str(seed)}
                yield Cell(
                    name=f"{corpus}/lora-{context}-{seed}", corpus=corpus, training=settings, tests=TESTS[corpus]
                )
            for method in ("qlora", "frozen_stem", "full"):
                settings = steps | METHODS[method] | {"training.seed": str(seed)}
                yield Cell(
                    name=f"{corpus}/{method}-thinned-{seed}",
                    corpus=corpus,
                    training=settings,
                    tests=TESTS[corpus],
                )


def main() -> None:
    """Run the cells that are asked for and not yet there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="Folder that corpora.py wrote.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--only", default=".*", help="Regular expression over names of cells.")
    parser.add_argument("--epochs", type=int, default=None, help="Other than the corpus's own; stands in the name.")
    parser.add_argument("--contexts", nargs="+", choices=CONTEXTS, help="Of those of a cell, these only.")
    parser.add_argument("--work", type=Path, default=Path("runs/real_models"))
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    for cell in cells():
        if not re.fullmatch(options.only, cell.name):
            continue
        if options.epochs and cell.training is not None:
            settings = {**cell.training, "training.max_epochs": str(options.epochs)}
            cell = replace(cell, name=f"{cell.name}-{options.epochs}e", training=settings)
        if options.contexts:
            cell = replace(cell, contexts=tuple(one for one in cell.contexts if one in options.contexts))
        file = options.results / f"{cell.name.replace('/', '_')}.json"
        if options.list or file.is_file():
            print(f"{cell.name:<28} {'there' if file.is_file() else 'to do'}", flush=True)
            continue
        result = _run(cell, options.data.resolve(), str(Path(options.model).resolve()), options.work.resolve())
        options.results.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(f"{cell.name:<28} {_line(result)}", flush=True)


def _run(cell: Cell, data: Path, model: str, work: Path) -> dict[str, Any]:
    shared = ["data.allow_outside_root=true", f"data.root={data / cell.corpus}"]
    used, trained = model, None
    commands: list[str] = []
    if cell.training is not None:
        place = work / cell.name
        shutil.rmtree(place, ignore_errors=True)
        words = [
            f"model.checkpoint={model}",
            *(f"{name}={value}" for name, value in cell.training.items()),
            f"data.train={data / cell.corpus / 'train.jsonl'}",
            f"data.eval={data / cell.corpus / 'dev.jsonl'}",
            "evaluation.zero_shot=false",
            f"run.dir={place}",
            *shared,
        ]
        trained = _sonotune("train", words, commands)
        trained["choices"] = json.loads((place / "run.json").read_text("utf-8"))["choices"]  # rates, precision
        used = str(place)
    scores: dict[str, Any] = {}
    for test in cell.tests:
        for context in cell.contexts:
            words = [
                f"model.checkpoint={used}",
                f"model.context={context}",
                f"data.test={data / cell.corpus / f'{test}.jsonl'}",
                "evaluation.temperatures=[0]",
                *shared,
            ]
            found = _sonotune("evaluate", words, commands)
            scores[f"{test}/{context}"] = {
                name: found[name]
                for name in ("scores", "decoding", "seconds", "audio_seconds", "clips", "insertions")
                if name in found
            }
    return {
        "cell": cell.name,
        "commands": commands,
        "commit": commit(),
        "machine": machine(),
        "trained": trained and {key: trained[key] for key in ("scores", "seconds", "peak_bytes", "status", "choices")},
        "tests": scores,
    }


def _sonotune(command: str, words: Sequence[str], commands: list[str]) -> Any:
    line = [sys.executable, "-m", "sonotune", command, *words]
    # Names of folders differ from machine to machine.
    commands.append(" ".join(["sonotune", command, *(re.sub(r"=/\S*/(?=[^/]+/[^/]*$|[^/]+$)", "=", w) for w in words)]))
    started = time.perf_counter()
    done = subprocess.run([*line, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\nexit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    body = json.loads(done.stdout)
    return body | {"wall_s": time.perf_counter() - started}


def _line(result: Mapping[str, Any]) -> str:
    parts = [f"{result['trained']['seconds'] / 60:.1f} min" if result["trained"] else "untuned"]
    for name, found in result["tests"].items():
        wer, cer = found["scores"]["wer"], found["scores"]["cer"]
        parts.append(
            f"{name} WER {100 * wer['value']:.1f} [{100 * wer['low']:.1f}, {100 * wer['high']:.1f}] "
            f"CER {100 * cer['value']:.1f} loops {found['decoding']['loops']}"
        )
    return "; ".join(parts)


def commit() -> str:
    """Of the repository, in which this runs."""
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()  # noqa: S607


def machine() -> dict[str, Any]:
    """What a figure depends on beside the code."""
    import torch
    import transformers

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


if __name__ == "__main__":
    main()
