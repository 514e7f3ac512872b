"""What merging takes off a step: time of the encoder and of a whole training step, and peak memory, beside operations.

    python benchmarks/frame_merging/speed.py real-data --model ../shared/data/whisper_base

The batch is four clips of Swahili, cut to 10 s. LoRA with the defaults of sonotune on real Whisper-base, bf16; and on
a wav2vec 2.0 of the base size with random weights, for speed alone. Ratios take turns within a round; times are those
that the processor works in the process, and memory is that of a process of its own for each ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from sonotune.adapters.kinds.base import AdapterSettings, kind_named
from sonotune.adapters.ranks.choose import RankSettings
from sonotune.adapters.trainable import adapt_uncalibrated
from sonotune.audio.io import read
from sonotune.data.manifest import read_manifest
from sonotune.features.batching import Batch, pad_targets
from sonotune.loading import open_model
from sonotune.models.base import LoadedModel
from sonotune.models.frame_merging.settings import FrameMerging
from sonotune.models.precision import autocast
from sonotune.planning.work import encoder_work
from sonotune.registry import resolve
from sonotune.runs import code_version, environment
from sonotune.tasks.base import Task, TaskSettings
from sonotune.types import Context

ROOT: Final = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.train_throughput.measuring import Memory  # noqa: E402

RESULTS: Final = Path(__file__).parent / "results"
RATIOS: Final = (0.0, 0.25, 0.5)
EARLY: Final = (1, 2)
CLIPS: Final = 4
CONTEXTS: Final[dict[str, Context | None]] = {"thinned": "thinned", "full": "full", "own length": None}
CLIP_S: Final = 10.0


def settings_of(depth: int) -> dict[str, FrameMerging]:
    """What is compared: the ratios after the default layers, and 0.25 after the first two."""
    return {
        **{f"{ratio:g}": FrameMerging(ratio=ratio) for ratio in RATIOS},
        f"0.25 after layers {EARLY[0]} and {EARLY[1]} of {depth}": FrameMerging(ratio=0.25, layers=EARLY),
    }


def prepare(data: Path, checkpoint: str, context: str, count: int) -> tuple[LoadedModel, Task, Batch]:
    """A model with adapters, and a batch."""
    opened = open_model(checkpoint, context=CONTEXTS[context], bits=16, precision="bf16")
    loaded = adapt_uncalibrated(opened.loaded, kind_named("lora"), RankSettings(), AdapterSettings(), precision="bf16")
    task: Task = resolve("tasks", "transcribe")(loaded.family, TaskSettings(language="sw"))
    clips = read_manifest(data / "swahili" / "train.jsonl", allow_outside_root=True)
    long = [clip for clip in clips if CLIP_S < clip.duration_s < 1.4 * CLIP_S][:count]
    waves = [read(clip.path, duration_s=CLIP_S, sample_rate_hz=16_000) for clip in long]
    inputs, lengths = loaded.frontend(waves, full_context=context == "full")
    prepared = task.prepare(loaded, long)
    targets, sizes = pad_targets(prepared.targets)
    return (
        loaded,
        task,
        Batch(
            inputs=inputs,
            input_lengths=lengths,
            targets=targets,
            target_lengths=sizes,
            clips=prepared.clips,
            context=loaded.context,
        ),
    )


def wav2vec2(folder: Path) -> str:
    """A wav2vec 2.0 of the base size with random weights and letters to write."""
    import transformers

    from sonotune.models.families.ctc import character_tokenizer

    tokenizer = character_tokenizer([*"abcdefghijklmnopqrstuvwxyz0123456789.,'-"])
    config = transformers.Wav2Vec2Config(vocab_size=len(tokenizer), pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    transformers.Wav2Vec2Processor(transformers.Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)
    return str(folder)


def encoder(loaded: LoadedModel, batch: Batch) -> None:
    """The encoder alone, as it is used."""
    loaded.module.eval()
    with torch.no_grad(), autocast("bf16", torch.device("cpu")):
        family: Any = loaded.family
        family._encode(loaded, batch)


def step(loaded: LoadedModel, task: Task, batch: Batch, optimizer: torch.optim.Optimizer) -> float:
    """One training step."""
    loaded.module.train()
    with autocast("bf16", torch.device("cpu")):
        losses = task.loss(loaded, batch, label_smoothing=0.0)
        loss = losses.total / losses.count
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_([one for one in loaded.module.parameters() if one.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def optimizer_of(loaded: LoadedModel) -> torch.optim.Optimizer:
    """A rate of 1e-6: all sides do the same work on the same weights, about."""
    return torch.optim.AdamW([one for one in loaded.module.parameters() if one.requires_grad], lr=1e-6, fused=True)


def timed(run: Any, *arguments: Any) -> float:
    """Seconds that the processor works on a call in this process: other processes on a shared core do not count."""
    started = time.process_time()
    run(*arguments)
    return time.process_time() - started


def measure(data: Path, checkpoint: str, context: str, *, rounds: int, clips: int, memory: bool) -> dict[str, Any]:
    """Times of all settings by turns, and operations."""
    loaded, task, batch = prepare(data, checkpoint, context, clips)
    optimizer, depth = optimizer_of(loaded), len(loaded.family.merge_layers(loaded))
    sides = {name: loaded.with_(merging=merging) for name, merging in settings_of(depth).items()}
    times: dict[str, dict[str, list[float]]] = {name: {"encoder_s": [], "step_s": []} for name in sides}
    for number in range(rounds + 1):
        turn = number % len(sides)  # each side comes first once in so many rounds
        for name, side in [*list(sides.items())[turn:], *list(sides.items())[:turn]]:
            found = {"encoder_s": timed(encoder, side, batch), "step_s": timed(step, side, task, batch, optimizer)}
            if number:  # the first round warms up
                for key, seconds in found.items():
                    times[name][key].append(seconds)
    rows: dict[str, Any] = {}
    for name, side in sides.items():
        work = encoder_work(side, batch)
        assert work is not None
        rows[name] = {
            **{key: statistics.median(values) for key, values in times[name].items()},
            "all": times[name],
            "encoder_flops": work.flops,
            "positions": work.positions,
            "batch_positions": [int(one.kinds.shape[1]) for one in side.family.streams(side, batch)[2:]],
        }
    first = next(iter(rows.values()))
    for name, row in rows.items():
        quotients = {
            key: statistics.median(a / b for a, b in zip(first["all"][key], row["all"][key], strict=True))
            for key in ("encoder_s", "step_s")
        }
        row["times_faster"] = quotients
        row["flops_share"] = row["encoder_flops"] / first["encoder_flops"]
        if memory:
            row["peak_bytes_above_model"] = in_process(data, checkpoint, context, name, len(batch.clips))
    return rows


def in_process(data: Path, checkpoint: str, context: str, name: str, clips: int) -> int:
    """Peak memory of two steps above the opened model, in a process of its own."""
    line = [sys.executable, __file__, str(data), "--model", checkpoint, "--clips", str(clips), "--of", context, name]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=os.environ)
    return int(done.stdout.strip().splitlines()[-1])


def peak(data: Path, checkpoint: str, context: str, name: str, clips: int) -> int:
    """See `in_process`."""
    loaded, task, batch = prepare(data, checkpoint, context, clips)
    loaded = loaded.with_(merging=settings_of(len(loaded.family.merge_layers(loaded)))[name])
    optimizer, memory = optimizer_of(loaded), Memory()
    for _ in range(2):
        step(loaded, task, batch, optimizer)
    return int(memory.stop()["above"])


def main(words: Sequence[str] | None = None) -> None:
    """Measure and write `results/speed.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="Folder that real_models/corpora.py wrote.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", default=list(CONTEXTS), choices=CONTEXTS)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--memory", action="store_true", help="Measure peaks as well, a process each.")
    parser.add_argument("--of", nargs=2, metavar=("CONTEXT", "NAME"), help="The peak of one setting alone.")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    if options.of:
        context, name = options.of
        print(peak(options.data, options.model, context, name, options.clips))
        return
    file = RESULTS / "speed.json"
    results = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    with tempfile.TemporaryDirectory() as place:
        for context in options.only:
            checkpoint = wav2vec2(Path(place) / "wav2vec2_base_random") if context == "own length" else options.model
            name = f"{Path(checkpoint).name}, {context}, {options.clips} clips"
            results[name] = {
                "command": "taskset -c 0 python benchmarks/frame_merging/speed.py real-data --model whisper_base "
                f"--only '{context}' --clips {options.clips} --rounds {options.rounds}{' --memory' * options.memory}",
                "code": code_version(),
                "machine": f"one of two shared cores of an AMD EPYC (AVX-512, bf16), {platform.machine()}",
                "environment": environment(),
                "rounds": options.rounds,
                "load": os.getloadavg(),
                "rows": measure(
                    options.data.resolve(),
                    checkpoint,
                    context,
                    rounds=options.rounds,
                    clips=options.clips,
                    memory=options.memory,
                ),
            }
            file.write_text(json.dumps(results, indent=1, default=str) + "\n", "utf-8")
            for side, row in results[name]["rows"].items():
                print(
                    f"{name:<34} {side:<28} encoder {row['encoder_s']:.3f} s ({row['times_faster']['encoder_s']:.2f}) "
                    f"step {row['step_s']:.3f} s ({row['times_faster']['step_s']:.2f}) operations "
                    f"{row['flops_share']:.2f} memory {row.get('peak_bytes_above_model', 0) / 2**20:.0f} MiB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
