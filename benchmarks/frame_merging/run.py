"""What merging does to the texts of real Whisper-base: ratios and rules, untuned and tuned.

    python benchmarks/real_models/corpora.py real-data
    python benchmarks/frame_merging/run.py real-data --model ../shared/data/whisper_base --only 'fsdd/.*'

A cell is one model scored on the first clips of a test manifest, over the thinned window, by plain greedy decoding:
without fallback, so that loops show. Rules that go by quantisation noise, and what they are compared with, have 4-bit
weights. A tuned cell is trained with its ratio first. A finished cell is a file in `results/` and is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sonotune.api import evaluate, train
from sonotune.runs import code_version, environment

RESULTS: Final = Path(__file__).parent / "results"
CLIPS: Final = 40
CORPORA: Final = ("fsdd", "swahili")
RATIOS: Final = ("0.25", "0.5")
PLAIN_RULES: Final = ("similarity", "uniform", "random", "energy")
NOISE_RULES: Final = ("similarity", "noise_aware", "noise_shuffled")
TUNED: Final = {
    "fsdd": {"training.batch_max_clips": "16", "training.batch_seconds": "480", "training.max_epochs": "2"},
    "swahili": {"training.batch_max_clips": "4", "training.batch_seconds": "120", "training.max_epochs": "3"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One model, scored.

    Attributes:
        name: Of its result.
        corpus: Folder of its manifests.
        merging: Settings of `token_merging`.
        bits: Of the weights.
        training: Settings of a training run with the same merging; None scores the untuned model.
    """

    name: str
    corpus: str
    merging: Mapping[str, str]
    bits: str = "16"
    training: Mapping[str, str] | None = None


def cells() -> Iterator[Cell]:
    """Every cell, the quickest corpus first."""
    for corpus in CORPORA:
        for bits, rules in (("16", PLAIN_RULES), ("4", NOISE_RULES)):
            yield Cell(name=f"{corpus}/{bits}-none", corpus=corpus, merging={}, bits=bits)
            for ratio in RATIOS:
                for rule in rules:
                    merging = {"token_merging.ratio": ratio, "token_merging.rule": rule}
                    yield Cell(name=f"{corpus}/{bits}-{ratio}-{rule}", corpus=corpus, merging=merging, bits=bits)
    for corpus in CORPORA:
        yield Cell(name=f"{corpus}/tuned-none", corpus=corpus, merging={}, training=TUNED[corpus])
        for ratio in RATIOS:
            yield Cell(
                name=f"{corpus}/tuned-{ratio}",
                corpus=corpus,
                merging={"token_merging.ratio": ratio},
                training=TUNED[corpus],
            )


def main() -> None:
    """Run the cells that are asked for and not yet there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="Folder that real_models/corpora.py wrote.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--only", default=".*", help="Regular expression over names of cells.")
    parser.add_argument("--work", type=Path, default=Path("runs/frame_merging"))
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    for cell in cells():
        if not re.fullmatch(options.only, cell.name):
            continue
        file = RESULTS / f"{cell.name.replace('/', '_')}.json"
        if options.list or file.is_file():
            print(f"{cell.name:<34} {'there' if file.is_file() else 'to do'}", flush=True)
            continue
        result = score(cell, options.data.resolve(), str(Path(options.model).resolve()), options.work.resolve())
        RESULTS.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1, ensure_ascii=False, default=str) + "\n", "utf-8")
        wer = result["scores"]["wer"]
        print(
            f"{cell.name:<34} WER {100 * wer['value']:.1f} [{100 * wer['low']:.1f}, {100 * wer['high']:.1f}] loops "
            f"{result['decoding'].get('loops')} {result['seconds']:.0f} s",
            flush=True,
        )


def score(cell: Cell, data: Path, model: str, work: Path) -> dict[str, Any]:
    """Train where that is asked for, and score."""
    folder = data / cell.corpus
    shared = {"data.root": str(folder), "data.allow_outside_root": "true", "quantization.bits": cell.bits}
    used, words = model, {**shared, **cell.merging}
    trained: dict[str, Any] | None = None
    if cell.training is not None:
        place = work / cell.name
        shutil.rmtree(place, ignore_errors=True)
        settings = {
            "model.checkpoint": model,
            **words,
            **cell.training,
            "data.train": str(folder / "train.jsonl"),
            "data.eval": str(folder / "dev.jsonl"),
            "evaluation.zero_shot": "false",
            "run.dir": str(place),
        }
        started = time.perf_counter()
        train(settings)
        trained = {"settings": dict(cell.training), "seconds": time.perf_counter() - started}
        used, words = str(place), shared  # the run knows what it merges
    started = time.perf_counter()
    asked = {**words, "data.limit": CLIPS, "evaluation.temperatures": "[0]"}
    found = evaluate(used, folder / "test.jsonl", asked)
    return {
        "cell": cell.name,
        "command": f"python benchmarks/frame_merging/run.py real-data --model whisper_base --only '{cell.name}'",
        "settings": {**cell.merging, "quantization.bits": cell.bits},
        "code": code_version(),
        "environment": environment(),
        "machine": "one of two shared cores of an AMD EPYC (AVX-512, bf16)",
        "load": os.getloadavg(),
        "trained": trained,
        "scores": {name: one.to_json() for name, one in found.scores.items()},
        "decoding": found.details.get("decoding", {}),
        "clips": CLIPS,
        "seconds": time.perf_counter() - started,
    }


if __name__ == "__main__":
    main()
