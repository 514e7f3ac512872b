"""Predicted and measured peaks of training steps, on this processor or on a card.

    OMP_NUM_THREADS=1 python benchmarks/planner/run.py --out benchmarks/planner/results/NAME.json
    make bench-gpu

Each configuration is measured in processes of its own. On a processor the peak is the kernel's own figure (Linux), over
what the process held before the model was loaded: once with an allocator that gives every block back at once
(`tensors`), once with the allocator as a run sets it (`process`). On a card `tensors` is what torch allocated there and
`process` what it reserved; the models have the geometry of published ones and random weights.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STEPS = 3
ROWS: dict[str, dict[str, Any]] = {
    "whisper": {"checkpoint": "assets:whisper-nano", "clips": 32, "clip_s": 10.0},
    "qwen3_asr": {"checkpoint": "assets:qwen3-asr-nano", "clips": 32, "clip_s": 10.0},
    "ctc": {"checkpoint": "assets:ctc-nano", "clips": 32, "clip_s": 10.0},
    "ast": {"checkpoint": "assets:ast-nano", "clips": 128, "clip_s": 4.0},
    "whisper_large": {
        "checkpoint": "openai/whisper-large-v3",
        "written": "assets:whisper-nano",
        "clips": 8,
        "clip_s": 10.0,
    },
    "qwen3_asr_1_7b": {
        "checkpoint": "Qwen/Qwen3-ASR-1.7B-hf",
        "written": "assets:qwen3-asr-nano",
        "clips": 8,
        "clip_s": 10.0,
    },
}
"""`written` has the files that a geometry lacks: tokenizer, prompt, decoding."""
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "fp32-checkpointing": {"precision": "fp32", "gradient_checkpointing": True},
    "bf16-checkpointing": {"precision": "bf16", "gradient_checkpointing": True},
    "nf4": {"precision": "bf16", "bits": 4},
    "nf4-checkpointing": {"precision": "bf16", "bits": 4, "gradient_checkpointing": True},
    "nf4-paged": {"precision": "bf16", "bits": 4, "optimizer": "paged_adamw_8bit"},
}
# On a processor: families x checkpointing x precision, each value of each met with each of the others.
DEFAULT = {
    "cpu": (
        "whisper/fp32",
        "whisper/bf16-checkpointing",
        "qwen3_asr/bf16",
        "qwen3_asr/fp32-checkpointing",
        "ctc/fp32",
        "ctc/bf16-checkpointing",
        "ast/bf16",
        "ast/fp32-checkpointing",
    ),
    "cuda": (
        "whisper_large/nf4",
        "whisper_large/nf4-checkpointing",
        "whisper_large/nf4-paged",
        "whisper_large/bf16",
        "qwen3_asr_1_7b/nf4",
        "qwen3_asr_1_7b/nf4-checkpointing",
        "qwen3_asr_1_7b/nf4-paged",
        "qwen3_asr_1_7b/bf16",
    ),
}
LABELS = 40


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", choices=tuple(DEFAULT), default="cpu")
    options.add_argument("--configurations", nargs="*", help="FAMILY/VARIANT; those of the device where none is named")
    options.add_argument("--layers", type=int, help="of each part of the published geometries, to see that all runs")
    options.add_argument("--out", type=Path, help="Where to write the results.")
    options.add_argument("--measure", help=argparse.SUPPRESS)
    options.add_argument("--predict", help=argparse.SUPPRESS)
    given = options.parse_args()
    import torch

    if name := given.measure or given.predict:
        with checkpoint_of(name, given.layers) as checkpoint:
            measured = measure_on_card if given.device == "cuda" else measure
            found = (measured if given.measure else predict)(name, checkpoint, given.device)
        print(json.dumps(found))
        return
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda needs a card, and torch finds none here.")
    results = []
    for name in given.configurations or DEFAULT[given.device]:
        result = {"configuration": name, **child(given, "--predict", name)}
        if given.device == "cuda":
            result |= child(given, "--measure", name)
        else:
            result["tensors"] = child(given, "--measure", name, MALLOC_MMAP_THRESHOLD_="65536")["tensors"]
            own = child(given, "--measure", name)
            result |= {"process": own["tensors"], "process_before": own["process_before"], "load": own["load"]}
        for kind in ("formula", "exact"):
            result[f"{kind}_error"] = result[kind] / result["tensors"] - 1
        results.append(result)
        print(json.dumps(result), flush=True)
        if given.out is not None:  # after each, for one that does not fit ends the program
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps({**machine(), "results": results}, indent=2) + "\n", "utf-8")


def child(given: argparse.Namespace, flag: str, name: str, **changes: str) -> dict[str, Any]:
    line = [sys.executable, str(Path(__file__).resolve()), "--device", given.device, flag, name]
    if given.layers is not None:
        line += ["--layers", str(given.layers)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900, check=False, env=os.environ | changes)
    if done.returncode:
        raise SystemExit(f"{name} {flag}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def parts_of(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    family, _, variant = name.partition("/")
    return ROWS[family], {"bits": 16, **VARIANTS[variant]}


@contextmanager
def checkpoint_of(name: str, layers: int | None) -> Iterator[str]:
    """A checkpoint that can be opened: packaged, or a folder with a published geometry and the files it lacks."""
    from sonotune.models.checkpoints import read_config
    from sonotune.registry import resolve_asset

    row, _ = parts_of(name)
    if "written" not in row:
        yield row["checkpoint"]
        return
    written = resolve_asset(row["written"])
    config, packaged = read_config(row["checkpoint"], None), read_config(row["written"], None)
    for key in ("audio_token_id", "decoder_start_token_id"):  # as the packaged tokenizer has them
        if hasattr(config, key):
            setattr(config, key, getattr(packaged, key))
    for part in (config, *(getattr(config, f"{one}_config", None) for one in ("audio", "text"))):
        for key in ("num_hidden_layers", "encoder_layers", "decoder_layers"):
            if layers is not None and getattr(part, key, None):
                setattr(part, key, layers)
        if layers is not None and getattr(part, "layer_types", None):
            part.layer_types = part.layer_types[:layers]
    audio = getattr(config, "audio_config", config)
    frontend = {"feature_size": audio.num_mel_bins, "chunk_length": 30, "n_samples": 480_000, "nb_max_frames": 3000}
    with tempfile.TemporaryDirectory() as folder:
        for file in Path(written).iterdir():
            if file.name == "processor_config.json":
                settings = json.loads(file.read_text("utf-8"))
                settings["feature_extractor"] |= frontend
                Path(folder, file.name).write_text(json.dumps(settings), "utf-8")
            elif file.suffix != ".safetensors":
                shutil.copy(file, folder)
        config.save_pretrained(folder)
        yield folder


def predict(name: str, checkpoint: str, device: str) -> dict[str, Any]:
    from sonotune.planning.exact import measure_step
    from sonotune.planning.layout import TrainingSettings, lay_out
    from sonotune.planning.memory import predict_step

    row, variant = parts_of(name)
    layout = lay_out(TrainingSettings(checkpoint=checkpoint, **variant), device=device)
    batch = layout.batch(row["clips"], row["clip_s"], LABELS)
    formula = predict_step(layout, batch).peak_bytes
    started = time.perf_counter()
    exact = measure_step(layout, batch).bytes
    return {"formula": formula, "exact": exact, "exact_s": time.perf_counter() - started}


class Training:
    """Real steps: the model as a run opens and adapts it, the task's loss, clipping and the optimiser, on noise."""

    def __init__(self, name: str, checkpoint: str, device: str) -> None:
        import torch

        from sonotune.planning.layout import TrainingSettings, lay_out

        self.row, self.variant = parts_of(name)
        self.checkpoint, self.device = checkpoint, torch.device(device)
        self.planned = lay_out(TrainingSettings(checkpoint=checkpoint, **self.variant), device=device)

    def __call__(self, clips: int, clip_s: float, labels: int, steps: int) -> list[float]:
        """Seconds of each step."""
        import torch

        from sonotune.adapters.kinds.base import AdapterSettings
        from sonotune.adapters.kinds.lora import LORA
        from sonotune.adapters.ranks.choose import RankSettings, plan_ranks
        from sonotune.adapters.trainable import adapt
        from sonotune.loading import open_model
        from sonotune.models.precision import autocast
        from sonotune.registry import resolve
        from sonotune.stages import whole_run
        from sonotune.tasks.base import TaskSettings
        from sonotune.training.optimizer import build_optimizer, enter_stage
        from sonotune.training.sharding import clip_gradients

        precision, device = self.variant["precision"], self.device
        opened = open_model(
            self.checkpoint,
            bits=self.variant["bits"],
            precision=precision,
            device=device,
            random_weights="written" in self.row,
        )
        checkpointing = self.variant.get("gradient_checkpointing", False)
        loaded = adapt(
            opened.loaded,
            LORA,
            plan_ranks(opened.loaded, RankSettings()),
            AdapterSettings(),
            precision=precision,
            gradient_checkpointing=checkpointing,
        )
        task: Any = resolve("tasks", opened.loaded.family.task)(opened.loaded.family, TaskSettings())
        batch = self.planned.batch(clips, clip_s, labels)
        fields = {field: getattr(batch, field) for field in batch.__dataclass_fields__ if field != "inputs"}
        real = type(batch)(**fields, inputs=torch.randn(batch.inputs.shape)).to(device)
        stage = whole_run(loaded, learning_rate=1e-3, learning_rates={}, max_epochs=1, max_steps=None, patience=None)
        optimizer = build_optimizer(
            loaded.module, [stage], weight_decay=0.01, betas=(0.9, 0.999), kind=self.variant.get("optimizer", "adamw")
        )
        enter_stage(optimizer, 0)
        trainable = [parameter for parameter in loaded.module.parameters() if parameter.requires_grad]
        loaded.module.train()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # a model may take more while it is loaded, which is another figure
        times = []
        for _ in range(steps):
            before = time.perf_counter()
            with autocast(precision, device):
                losses = task.loss(loaded, real, label_smoothing=0.0)
                loss = losses.total / losses.count
            del losses
            loss.backward()
            clip_gradients(trainable, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - before)
        return times


def measure(name: str, checkpoint: str, device: str) -> dict[str, Any]:
    """Peak on the processor."""
    from sonotune.training.runtime import keep_freed_memory

    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        keep_freed_memory()
    train = Training(name, checkpoint, device)
    # Kernels load code with the first step, and keep what they made for its shapes: neither is part of a step.
    train(train.row["clips"], train.row["clip_s"], LABELS, 1)
    gc.collect()
    held = status("VmRSS")
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = status("VmRSS")
    train(train.row["clips"], train.row["clip_s"], LABELS, STEPS)
    return {
        "tensors": status("VmHWM") - before,
        "process_before": before,
        "trimmed": held - before,
        "load": os.getloadavg()[0],
    }


def measure_on_card(name: str, checkpoint: str, device: str) -> dict[str, Any]:
    """Peak on the card, and seconds of a step."""
    import torch

    from sonotune.training.runtime import let_segments_grow

    let_segments_grow()
    train = Training(name, checkpoint, device)
    train(train.row["clips"], train.row["clip_s"], LABELS, 1)  # libraries keep workspaces of it
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    times = train(train.row["clips"], train.row["clip_s"], LABELS, 5 * STEPS)
    return {
        "tensors": torch.cuda.max_memory_allocated() - before,
        "process": torch.cuda.max_memory_reserved(),
        "process_before": before,
        "step_s": statistics.median(times[STEPS:]),
        "card": torch.cuda.get_device_name(),
    }


def status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def machine() -> dict[str, Any]:
    from sonotune.runs.machine import environment

    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    return {
        "command": " ".join(["python", "benchmarks/planner/run.py", *sys.argv[1:]]),
        "commit": commit,
        "tree": "changed" if changed else "clean",
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "environment": environment(),
    }


if __name__ == "__main__":
    main()
