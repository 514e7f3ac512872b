"""What gates and filters cost in a training step: LoRA and the other kinds on one model and the same batches, in turn.

    taskset -c 0 env OMP_NUM_THREADS=1 python benchmarks/gated_adapters/cost.py MODEL MANIFEST

Every kind has a model of its own. In each round every kind makes one step (forward, backward, AdamW) on the same batch,
in an order that rotates, so that what else the machine does falls on all of them. A ratio is the median over rounds of
a kind's processor time over LoRA's in that round; time by the clock stands beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Final, cast

import numpy as np
import torch

from sonotune.adapters.kinds.base import AdapterSettings, kind_named
from sonotune.adapters.ranks.choose import RankSettings
from sonotune.adapters.trainable import adapt_uncalibrated
from sonotune.data.manifest import read_manifest
from sonotune.features.batching import Batch, ClipBatches
from sonotune.loading import open_model
from sonotune.models.base import LoadedModel, SpeechFamily
from sonotune.runs import code_version, environment
from sonotune.tasks.base import Task, TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.training.objectives.base import ObjectiveSettings
from sonotune.training.objectives.task import TaskObjective

KINDS: Final = ("lora", "gated_lora", "clip_gated_lora", "shuffled_gated_lora", "conv_lora")


class Trainer:
    """A model with adapters of one kind, and what steps it."""

    def __init__(self, kind: str, options: argparse.Namespace) -> None:
        self.loaded: LoadedModel = open_model(options.model, bits=options.bits).loaded
        settings = AdapterSettings(rank=options.rank, stem="frozen")
        ranks = RankSettings(rank=options.rank, stem="frozen")
        self.loaded = adapt_uncalibrated(self.loaded, kind_named(kind), ranks, settings)
        self.task: Task = Transcribe(cast(SpeechFamily, self.loaded.family), TaskSettings(language="en"))
        self.objective = TaskObjective(self.task, ObjectiveSettings())
        trains = [value for value in self.loaded.module.parameters() if value.requires_grad]
        self.parameters = sum(value.numel() for value in trains)
        self.optimizer = torch.optim.AdamW(trains, lr=1e-4, fused=True)
        self.bf16: bool = options.bf16
        self.loaded.module.train()

    def step(self, batch: Batch) -> tuple[float, float]:
        """Seconds of processor time and of the clock that a step takes."""
        began, started = time.process_time(), time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            losses = self.objective.losses(self.loaded, batch)
        torch.autograd.backward(losses.total / losses.count)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - began, time.perf_counter() - started


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--bits", type=int, default=16)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--clips", type=int, default=8, help="Of a batch.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    trainers = {kind: Trainer(kind, options) for kind in options.kinds}
    first = next(iter(trainers.values()))
    prepared = first.task.prepare(first.loaded, read_manifest(options.manifest)[: 4 * options.clips])
    places = np.arange(len(prepared.clips)).reshape(-1, options.clips).tolist()
    data = ClipBatches(
        prepared.clips,
        prepared.targets,
        first.loaded.frontend,
        batches=[tuple(p) for p in places],
        seed=0,
        epoch=0,
        context=first.loaded.context,
    )
    batches = [data[index] for index in range(len(places))]
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in trainers}
    for trainer in trainers.values():
        trainer.step(batches[0])
    names = list(trainers)
    for index in range(options.rounds):
        turn = index % len(names)
        for kind in names[turn:] + names[:turn]:
            seconds[kind].append(trainers[kind].step(batches[index % len(batches)]))
    rows = []
    for kind in names:
        pairs = list(zip(seconds[kind], seconds[names[0]], strict=True))
        ratios = [own[0] / base[0] for own, base in pairs]
        rows.append(
            {
                "kind": kind,
                "parameters": trainers[kind].parameters,
                "median_processor_s": statistics.median(one[0] for one in seconds[kind]),
                "median_clock_s": statistics.median(one[1] for one in seconds[kind]),
                "ratio": statistics.median(ratios),
                "clock_ratio": statistics.median(own[1] / base[1] for own, base in pairs),
                "ratio_quartiles": [float(value) for value in np.quantile(ratios, (0.25, 0.75))],
                "processor_and_clock_s": seconds[kind],
            }
        )
        low, high = rows[-1]["ratio_quartiles"]
        print(
            f"{kind:<20} {rows[-1]['parameters']:>9} parameters  {rows[-1]['median_processor_s']:.3f} s  "
            f"{rows[-1]['ratio']:.3f} [{low:.3f}, {high:.3f}]  "
            f"by the clock {rows[-1]['median_clock_s']:.3f} s, {rows[-1]['clock_ratio']:.3f}"
        )
    if options.out is not None:
        settings = {name: value for name, value in vars(options).items() if name not in ("model", "manifest", "out")}
        settings |= {"model": Path(options.model).name, "manifest": options.manifest.name}
        result = {"settings": settings, "code": code_version(), "environment": environment(), "rows": rows}
        options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
