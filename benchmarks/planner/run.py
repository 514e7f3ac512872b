"""Predicted and measured peaks of training steps on this processor. Linux: the peak is the kernel's own figure.

    OMP_NUM_THREADS=1 python benchmarks/planner/run.py --out benchmarks/planner/results/NAME.json

Each configuration is measured in processes of its own, over what the process held before the model was loaded: once
with an allocator that gives every block back at once (`tensors`), once with the allocator as a run sets it (`process`).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STEPS = 3
ROWS: dict[str, dict[str, Any]] = {
    "whisper": {"checkpoint": "assets:whisper-nano", "clips": 32, "clip_s": 10.0},
    "qwen3_asr": {"checkpoint": "assets:qwen3-asr-nano", "clips": 32, "clip_s": 10.0},
    "ctc": {"checkpoint": "assets:ctc-nano", "clips": 32, "clip_s": 10.0},
    "ast": {"checkpoint": "assets:ast-nano", "clips": 128, "clip_s": 4.0},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "fp32-checkpointing": {"precision": "fp32", "gradient_checkpointing": True},
    "bf16-checkpointing": {"precision": "bf16", "gradient_checkpointing": True},
}
# Families x checkpointing x precision, each value of each met with each of the others.
DEFAULT = (
    "whisper/fp32", "whisper/bf16-checkpointing", "qwen3_asr/bf16", "qwen3_asr/fp32-checkpointing", "ctc/fp32",
    "ctc/bf16-checkpointing", "ast/bf16", "ast/fp32-checkpointing",
)  # fmt: skip
LABELS = 40


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--configurations", nargs="*", default=list(DEFAULT), help="FAMILY/VARIANT")
    options.add_argument("--out", type=Path, help="Where to write the results.")
    options.add_argument("--measure", help=argparse.SUPPRESS)
    options.add_argument("--predict", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.measure or given.predict:
        print(json.dumps(measure(given.measure) if given.measure else predict(given.predict)))
        return
    results = []
    for name in given.configurations:
        result = {"configuration": name, **child("--predict", name)}
        result["tensors"] = child("--measure", name, MALLOC_MMAP_THRESHOLD_="65536")["measured"]
        own = child("--measure", name)
        result |= {"process": own["measured"], "process_before": own["process_before"], "load": own["load"]}
        for kind in ("formula", "exact"):
            result[f"{kind}_error"] = result[kind] / result["tensors"] - 1
        results.append(result)
        print(json.dumps(result), flush=True)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({**machine(), "results": results}, indent=2) + "\n", "utf-8")


def child(flag: str, name: str, **changes: str) -> dict[str, Any]:
    line = [sys.executable, str(Path(__file__).resolve()), flag, name]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900, check=False, env=os.environ | changes)
    if done.returncode:
        raise SystemExit(f"{name} {flag}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def parts_of(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    family, _, variant = name.partition("/")
    return ROWS[family], VARIANTS[variant]


def predict(name: str) -> dict[str, Any]:
    from sonotune.planning.exact import measure_step
    from sonotune.planning.layout import TrainingSettings, lay_out
    from sonotune.planning.memory import predict_step

    row, variant = parts_of(name)
    layout = lay_out(TrainingSettings(checkpoint=row["checkpoint"], bits=16, **variant))
    batch = layout.batch(row["clips"], row["clip_s"], LABELS)
    formula = predict_step(layout, batch).peak_bytes
    started = time.perf_counter()
    exact = measure_step(layout, batch).bytes
    return {"formula": formula, "exact": exact, "exact_s": time.perf_counter() - started}


def measure(name: str) -> dict[str, Any]:
    """Peak of real steps: the model as a run opens and adapts it, the task's loss, clipping and AdamW."""
    import torch
    from torch import nn

    from sonotune.adapters.saved import open_model
    from sonotune.models.precision import autocast
    from sonotune.planning.layout import TrainingSettings, lay_out
    from sonotune.registry import resolve
    from sonotune.tasks.base import TaskSettings
    from sonotune.training.adapt import adapt
    from sonotune.training.memory import keep_freed_memory
    from sonotune.training.ranks import RankSettings, plan_ranks

    row, variant = parts_of(name)
    precision = variant["precision"]
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        keep_freed_memory()
    planned = lay_out(TrainingSettings(checkpoint=row["checkpoint"], bits=16, **variant))

    def train(clips: int, clip_s: float, labels: int, steps: int) -> None:
        batch = planned.batch(clips, clip_s, labels)
        opened = open_model(row["checkpoint"], bits=16, precision=precision)
        loaded = adapt(opened.loaded, plan_ranks(opened.loaded, RankSettings()), **variant)
        task: Any = resolve("tasks", opened.family.task)(opened.family, TaskSettings())
        inputs = torch.randn(batch.inputs.shape)
        fields = {field: getattr(batch, field) for field in batch.__dataclass_fields__ if field != "inputs"}
        real = type(batch)(**fields, inputs=inputs)
        trainable = [parameter for parameter in loaded.module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, fused=True)
        loaded.module.train()
        for _ in range(steps):
            with autocast(precision, torch.device("cpu")):
                losses = task.loss(loaded, real, label_smoothing=0.0)
                loss = losses.total / losses.count
            del losses
            loss.backward()
            nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    train(1, 1.0, 4, 1)  # code that is loaded with the first step is no part of a step
    gc.collect()
    held = status("VmRSS")
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = status("VmRSS")
    train(row["clips"], row["clip_s"], LABELS, STEPS)
    return {"measured": status("VmHWM") - before, "process_before": before, "trimmed": held - before,
            "load": os.getloadavg()[0]}  # fmt: skip


def status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def machine() -> dict[str, Any]:
    from sonotune.runs.machine import environment

    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    command = "OMP_NUM_THREADS=1 python benchmarks/planner/run.py"
    return {"command": command, "commit": commit, "tree": "changed" if changed else "clean",
            "threads": os.environ.get("OMP_NUM_THREADS"), "environment": environment()}  # fmt: skip


if __name__ == "__main__":
    main()
