"""What calibration costs: its hooks beside the forward passes they sit in, and measuring a Whisper-large-sized sample.

Each part runs in a process of its own, so that the peak memory is its own. Linux only: peak memory is the kernel's
figure. `hooks` times the same forward passes of single clips with and without listening, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOKENS = 1024
DIRECTIONS = 64
CLIPS = 64


def main() -> None:
    """Run the parts and write one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("calibration.json"))
    parser.add_argument("--parts", nargs="*", default=["nano", "small", "large"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", help="run one part here and print it (used by the program itself)")
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.repeats)))
        return
    from sonotune.runs import code_version, environment

    rows: dict[str, Any] = {}
    for part in options.parts:
        before = time.monotonic()
        load_before = os.getloadavg()
        words = [sys.executable, __file__, "--part", part, "--repeats", str(options.repeats)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        rows[part] = {
            **json.loads(done.stdout.splitlines()[-1]),
            "wall_s": round(time.monotonic() - before, 1),
            # Processes that wanted to run, this one among them: above the number of threads, others worked beside it.
            "load": {"before": load_before, "after": os.getloadavg()},
        }
        print(json.dumps({part: rows[part]}), flush=True)
        result = {
            "command": " ".join(sys.argv),
            "code": code_version(),
            "environment": environment(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "processors": os.cpu_count(),
            "parts": rows,
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def nano(repeats: int) -> dict[str, Any]:
    """The packaged Whisper."""
    from sonotune.models.families.whisper import WhisperFamily

    return hooks(WhisperFamily().load("assets:whisper-nano"), seconds=(1.0, 6.0), repeats=repeats)


def small(repeats: int) -> dict[str, Any]:
    """Random weights in the geometry of Whisper-small, which has 12 + 12 layers, with the packaged vocabulary."""
    import transformers

    from sonotune.models.families.whisper import WhisperFamily

    nano_model = WhisperFamily().load("assets:whisper-nano")
    config = nano_model.module.config
    for key, value in {
        "d_model": 768,
        "encoder_layers": 12,
        "decoder_layers": 12,
        "encoder_attention_heads": 12,
        "decoder_attention_heads": 12,
        "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072,
        "num_hidden_layers": 12,
    }.items():
        setattr(config, key, value)
    folder = Path(tempfile.mkdtemp())
    try:
        transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
        nano_model.module.generation_config.save_pretrained(folder)
        nano_model.processor.save_pretrained(folder)
        return hooks(WhisperFamily().load(str(folder)), seconds=(1.0, 5.0), repeats=repeats)
    finally:
        shutil.rmtree(folder)


def hooks(loaded: Any, *, seconds: tuple[float, float], repeats: int) -> dict[str, Any]:
    """Time listening to clips against computing their loss alone, in turns; features are made beforehand."""
    import torch

    from sonotune.adapters.calibration.activations import collect_activations
    from sonotune.adapters.calibration.calibrate import measure_sample
    from sonotune.models.families.whisper import WhisperFamily
    from sonotune.tasks.base import TaskSettings
    from sonotune.tasks.transcribe import Transcribe
    from sonotune.training.objectives.base import ObjectiveSettings
    from sonotune.training.objectives.task import TaskObjective

    task = Transcribe(WhisperFamily(), TaskSettings(language="en"))
    batches = made_clips(loaded, task, seconds)

    def plain(some: list[Any]) -> None:
        with torch.no_grad():
            for batch in some:
                task.loss(loaded, batch)

    samples: list[Any] = []

    def listening() -> None:
        samples[:] = [collect_activations(loaded, TaskObjective(task, ObjectiveSettings()), batches, tokens=TOKENS)]

    plain(batches[:4])  # the first pass allocates
    times: dict[str, list[dict[str, float]]] = {"plain": [], "listening": []}
    for _ in range(repeats):
        times["plain"].append(timed(lambda: plain(batches)))
        times["listening"].append(timed(listening))
    measured = timed(lambda: measure_sample(samples[0]))
    directed = timed(lambda: measure_sample(samples[0], directions=DIRECTIONS))
    pairs = zip(times["listening"], times["plain"], strict=True)
    ratios = [one["processor_s"] / other["processor_s"] for one, other in pairs]
    walls = [one["wall_s"] / other["wall_s"] for one, other in zip(times["listening"], times["plain"], strict=True)]
    return {
        "clips": len(batches),
        "audio_s": sum(batch.seconds for batch in batches),
        "tokens": TOKENS,
        "modules": len(loaded.linears),
        "inputs": len(samples[0].inputs),
        "runs": times,
        "processor_ratio": {"median": statistics.median(ratios), "all": ratios},
        "wall_ratio": {"median": statistics.median(walls), "all": walls},
        "sample_bytes": samples[0].nbytes,
        "measure": measured,
        "measure_with_directions": directed,
        "peak_bytes": peak_bytes(),
    }


def made_clips(loaded: Any, task: Any, seconds: tuple[float, float]) -> list[Any]:
    """Batches of one clip of modulated noise, of lengths spread evenly, with transcripts of 6 to 20 words."""
    import numpy as np

    from sonotune.features.batching import Batch, pad_targets
    from sonotune.types import Clip

    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    rate = loaded.frontend.sample_rate_hz
    batches = []
    for index in range(CLIPS):
        draw = np.random.default_rng(index)
        duration_s = seconds[0] + (seconds[1] - seconds[0]) * index / (CLIPS - 1)
        noise = 0.1 * draw.standard_normal(int(duration_s * rate)).astype(np.float32)
        text = " ".join(draw.choice(words, draw.integers(6, 21)))
        clip = Clip(id=f"clip-{index}", path=Path("made"), duration_s=duration_s, text=text, language="en")
        prepared = task.prepare(loaded, [clip])
        inputs, lengths = loaded.frontend([noise * np.sin(np.arange(noise.size) / 4000).astype(np.float32)])
        targets, target_lengths = pad_targets(prepared.targets)
        batches.append(
            Batch(
                inputs=inputs,
                input_lengths=lengths,
                targets=targets,
                target_lengths=target_lengths,
                clips=prepared.clips,
                context=loaded.context,
            )
        )
    return batches


def large(repeats: int) -> dict[str, Any]:
    """Measure 32 + 32 layers of width 1280 with random rows of several power laws."""
    import numpy as np
    import torch

    from sonotune.adapters.calibration.activations import DistinctInput, TokenSample
    from sonotune.adapters.calibration.calibrate import measure_sample
    from sonotune.adapters.calibration.token_sample import Reservoir, token_keys
    from sonotune.models.base import AUDIO, TEXT

    del repeats  # a second time would be no different
    baseline = peak_bytes()
    narrow, wide = 1280, 5120
    own = {"qkv": narrow, "out": narrow, "fc1": narrow, "fc2": wide}
    both = own | {"cross.q": narrow, "cross.out": narrow}
    encoder = [(f"encoder.{layer}.{kind}", width) for layer in range(32) for kind, width in own.items()]
    crossing = [("decoder.cross.kv", narrow)]
    decoder = [(f"decoder.{layer}.{kind}", width) for layer in range(32) for kind, width in both.items()]
    reservoirs, inputs = {}, []
    generator = torch.Generator().manual_seed(0)
    for stream, (kind, names) in enumerate(((AUDIO, encoder), (AUDIO, crossing), (TEXT, decoder))):
        reservoir = reservoirs[stream, kind] = Reservoir(TOKENS, dtype=torch.bfloat16)
        admitted = reservoir.admit(token_keys(0, str(stream), np.arange(TOKENS)))
        for place, (name, width) in enumerate(names):
            decay = 0.3 + 1.2 * place / max(1, len(names))
            scales = torch.arange(1, width + 1).pow(-decay / 2)
            reservoir.put(name, torch.randn(TOKENS, width, generator=generator) * scales, admitted.slots)
            inputs.append(DistinctInput(modules=(name,), stream=stream, channels=width))
    sample = TokenSample(inputs=tuple(inputs), reservoirs=reservoirs, clips=("made",))
    filled = peak_bytes()
    measured = timed(lambda: measure_sample(sample))
    after_measuring = peak_bytes()
    directed = timed(lambda: measure_sample(sample, directions=DIRECTIONS))
    return {
        "inputs": len(inputs),
        "tokens": TOKENS,
        "sample_bytes": sample.nbytes,
        "measure": measured,
        "measure_with_directions": directed,
        "peak_bytes": {"imports": baseline, "filled": filled, "measured": after_measuring, "all": peak_bytes()},
    }


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {"nano": nano, "small": small, "large": large}


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds of the wall, and of processors, which work of others beside it lengthens less."""
    wall, used = time.perf_counter(), time.process_time()
    work()
    return {"wall_s": time.perf_counter() - wall, "processor_s": time.process_time() - used}


def peak_bytes() -> int:
    """The most memory that this process had so far."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
