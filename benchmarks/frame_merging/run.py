"""What merging does to real Whisper-base: the loss of the right text by ratio and rule, and the texts it writes.

    python benchmarks/real_models/corpora.py real-data
    python benchmarks/frame_merging/run.py real-data --model ../shared/data/whisper_base --tuned swahili=RUN

A cell is one corpus, the untuned model or a run that was tuned without merging, a width of the weights, a ratio and a
rule, over the thinned window. `loss` is the mean negative logarithm of the probability of each token of the transcript
given those before, which tells settings apart on few clips: every clip is its own pair. `wer` is by plain greedy
decoding, without fallback, so that loops show. Rules that go by quantisation noise, and what they are compared with,
have 4-bit weights. A finished cell is a file in `results/` and is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import torch

from sonotune.audio.io import read
from sonotune.data.manifest import read_manifest
from sonotune.evaluation.evaluate import evaluate
from sonotune.features.batching import Batch, pad_targets
from sonotune.loading import Opened, open_model
from sonotune.models.frame_merging.settings import NO_MERGING, FrameMerging
from sonotune.models.precision import autocast
from sonotune.registry import resolve
from sonotune.runs import code_version, environment
from sonotune.tasks.base import Task, TaskSettings
from sonotune.types import Clip, DecodingSettings

RESULTS: Final = Path(__file__).parent / "results"
CLIPS: Final = 40
LANGUAGES: Final = {"fsdd-1": "en", "swahili": "sw"}
RATIOS: Final = (0.25, 0.5)
RULES: Final = {16: ("similarity", "uniform", "random", "energy"), 4: ("similarity", "noise_aware", "noise_shuffled")}
GREEDY: Final = DecodingSettings(temperatures=(0.0,), compression_ratio_threshold=None, logprob_threshold=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One number, or one list of texts.

    Attributes:
        measure: `loss` or `wer`.
        corpus: Folder of its manifests.
        weights: `untuned` or `tuned`.
        bits: Of the weights.
        merging: What is merged.
    """

    measure: str
    corpus: str
    weights: str
    bits: int
    merging: FrameMerging

    @property
    def name(self) -> str:
        """Of its result."""
        merged = f"{self.merging.ratio:g}-{self.merging.rule}" if self.merging.parts else "none"
        return f"{self.measure}/{self.corpus}/{self.weights}/{self.bits}-{merged}"


def cells() -> Iterator[Cell]:
    """Every cell."""
    for measure in ("loss", "wer"):
        for corpus in LANGUAGES:
            for weights in ("tuned", "untuned"):
                for bits, rules in RULES.items():
                    merged = [FrameMerging(ratio=ratio, rule=rule) for ratio in RATIOS for rule in rules]
                    for merging in (NO_MERGING, *merged):
                        yield Cell(measure=measure, corpus=corpus, weights=weights, bits=bits, merging=merging)


class Model:
    """A model that is opened once for all cells that share its weights."""

    def __init__(self, checkpoint: str, corpus: str, bits: int) -> None:
        # The rule that knows the weights' noise is asked for, and the others do not look at it.
        sketched = FrameMerging(ratio=RATIOS[0], rule="noise_aware") if bits == 4 else None
        self.opened: Opened = open_model(checkpoint, context="thinned", bits=bits, precision="bf16", merging=sketched)
        language = LANGUAGES[corpus]
        self.task: Task = resolve("tasks", "transcribe")(
            self.opened.loaded.family, TaskSettings(language=language, verbalize_numbers=language == "en")
        )

    def loss(self, clips: Sequence[Clip], merging: FrameMerging) -> dict[str, Any]:
        """Mean loss of a token, and each clip's."""
        loaded = self.opened.loaded.with_(merging=merging)
        loaded.module.eval()
        prepared, rows = self.task.prepare(loaded, clips), []
        for clip, target in zip(prepared.clips, prepared.targets, strict=True):
            wave = read(clip.path, start_s=clip.start_s, duration_s=clip.duration_s, sample_rate_hz=16_000)
            inputs, lengths = loaded.frontend([wave])
            targets, sizes = pad_targets([target])
            batch = Batch(
                inputs=inputs,
                input_lengths=lengths,
                targets=targets,
                target_lengths=sizes,
                clips=(clip,),
                context="thinned",
            )
            with torch.no_grad(), autocast("bf16", torch.device("cpu")):
                found = self.task.loss(loaded, batch, label_smoothing=0.0)
            rows.append((float(found.total), int(found.count)))
        return {"loss": sum(one for one, _ in rows) / sum(count for _, count in rows), "clips": rows}

    def wer(self, clips: Sequence[Clip], merging: FrameMerging) -> dict[str, Any]:
        """Scores of what is written."""
        loaded = self.opened.loaded.with_(merging=merging)
        found = evaluate(
            self.task,
            loaded,
            clips,
            decoding=GREEDY,
            batch_seconds=120,
            autocast=lambda: autocast("bf16", torch.device("cpu")),
        )
        return {
            "scores": {name: one.to_json() for name, one in found.scores.items()},
            "decoding": found.details.get("decoding"),
            "texts": [one.text for one in found.predictions],
        }


def main() -> None:
    """Run the cells that are asked for and not yet there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="Folder that real_models/corpora.py wrote.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--tuned", action="append", default=[], metavar="CORPUS=RUN")
    parser.add_argument("--only", action="append", default=[], help="Regular expressions over names, in this order.")
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tuned = dict(one.split("=", 1) for one in options.tuned)
    every = [cell for cell in cells() if cell.weights == "untuned" or cell.corpus in tuned or options.list]
    wanted = [cell for only in options.only or [".*"] for cell in every if re.fullmatch(only, cell.name)]
    models: dict[tuple[str, str, int], Model] = {}
    for cell in dict.fromkeys(wanted):
        file = RESULTS / f"{cell.name.replace('/', '_')}.json"
        if options.list or file.is_file():
            print(f"{cell.name:<48} {'there' if file.is_file() else 'to do'}", flush=True)
            continue
        key = (cell.weights, cell.corpus, cell.bits)
        if key not in models:
            models.clear()
            checkpoint = tuned[cell.corpus] if cell.weights == "tuned" else options.model
            models[key] = Model(checkpoint, cell.corpus, cell.bits)
        result = measured(cell, models[key], options.data.resolve(), tuned.get(cell.corpus), options.clips)
        file.write_text(json.dumps(result, indent=1, ensure_ascii=False, default=str) + "\n", "utf-8")
        print(f"{cell.name:<48} {told(result)}", flush=True)


def measured(cell: Cell, model: Model, data: Path, run: str | None, count: int) -> dict[str, Any]:
    """The cell with what it was measured on."""
    folder, started = data / cell.corpus, time.perf_counter()
    clips = read_manifest(folder / "test.jsonl", root=folder, allow_outside_root=True)[:count]
    found = getattr(model, cell.measure)(clips, cell.merging)
    return {
        "cell": cell.name,
        "command": "python benchmarks/frame_merging/run.py real-data --model whisper_base "
        f"--clips {count} --only '{cell.name}'",
        "trained": trained_with(Path(run)) if run and cell.weights == "tuned" else None,
        "merging": cell.merging.plain(),
        "code": code_version(),
        "environment": environment(),
        "machine": "one of two shared cores of an AMD EPYC (AVX-512, bf16)",
        "load": os.getloadavg(),
        "number_of_clips": len(clips),
        "seconds": time.perf_counter() - started,
        **found,
    }


def trained_with(run: Path) -> dict[str, Any]:
    """How the tuned weights came to be, without names of folders."""
    record = json.loads((run / "run.json").read_text("utf-8"))
    training = record["config"]["training"]
    names = ("max_epochs", "batch_seconds", "batch_max_clips", "learning_rate", "seed")
    return {"digest": record["config_digest"], **{name: training[name] for name in names}}


def told(result: dict[str, Any]) -> str:
    """One line."""
    if "loss" in result:
        return f"loss {result['loss']:.4f} {difference(result)} {result['seconds']:.0f} s"
    wer = result["scores"]["wer"]
    return (
        f"WER {100 * wer['value']:.1f} [{100 * wer['low']:.1f}, {100 * wer['high']:.1f}] loops "
        f"{wer['detail'].get('loops')} {result['seconds']:.0f} s"
    )


def difference(result: dict[str, Any]) -> str:
    """Against the same weights without merging: mean difference of a token's loss, with a paired bootstrap of clips."""
    name = re.sub(r"-[^-/]*-[^-/]*$|-none$", "-none", result["cell"]).replace("/", "_")
    file = RESULTS / f"{name}.json"
    if not file.is_file() or result["cell"].endswith("none"):
        return ""
    plain, draw = json.loads(file.read_text("utf-8"))["clips"], random.Random(0)  # noqa: S311
    rows = [(one - other, count) for (one, count), (other, _) in zip(result["clips"], plain, strict=True)]
    means = sorted(ratio(draw.choices(rows, k=len(rows))) for _ in range(2000))
    return f"{ratio(rows):+.4f} [{means[50]:+.4f}, {means[1949]:+.4f}] worse in {fmean(one > 0 for one, _ in rows):.0%}"


def ratio(rows: Sequence[tuple[float, int]]) -> float:
    """Sum over count."""
    return sum(one for one, _ in rows) / sum(count for _, count in rows)


if __name__ == "__main__":
    main()
