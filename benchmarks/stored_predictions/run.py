"""How long scores of stored predictions take: no model, no audio.

    OMP_NUM_THREADS=1 python benchmarks/stored_predictions/run.py --clips 100000
    OMP_NUM_THREADS=1 python benchmarks/stored_predictions/run.py --clips 100000 --profile

Texts are drawn from a vocabulary with Zipf's frequencies, errors with a rate of each speaker. Two parts are timed, each
in a process of its own: `score`, which reads a file of predictions and gives what `sonotune evaluate` gives after
decoding (WER, CER, every slice, 1,000 replicates each), and `compare`, which is `sonotune compare A B` with as many.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import platform
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from sonotune.evaluation.compare import compare
from sonotune.evaluation.prediction_rows import clip_of
from sonotune.evaluation.scoring import score_slices
from sonotune.metrics.slices import slice_clips
from sonotune.runs import code_version, read_predictions
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.types import Prediction

RESAMPLES: Final = 1000
WORDS: Final = 8_000  # of the vocabulary
DOMAINS: Final = ("phone", "studio", "street", "meeting")
LANGUAGES: Final = ("en", "sw", "he")


def main() -> None:
    """Time both parts, or one of them in this process, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--speakers", type=int, default=400)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--part", choices=sorted(PARTS), help="time one part on --files, in this process")
    parser.add_argument("--files", type=Path, nargs=2)
    asked = parser.parse_args()
    if asked.part is not None:
        print(json.dumps(timed(PARTS[asked.part], asked.files, profile=asked.profile)))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("a.jsonl", "b.jsonl")]
        write(files, clips=asked.clips, speakers=asked.speakers)
        body: dict[str, Any] = {"clips": asked.clips, "speakers": asked.speakers, "resamples": RESAMPLES}
        body |= {"code": code_version(), "machine": platform.processor(), "load": os.getloadavg()}
        for part in PARTS:
            words = [sys.executable, __file__, "--part", part, "--files", *map(str, files)]
            words += ["--profile"] if asked.profile else []
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            body[part] = json.loads(done.stdout)
    print(json.dumps(body, indent=2))


def timed(part: Callable[[Path, Path], dict[str, Any]], files: list[Path], *, profile: bool) -> dict[str, Any]:
    """Wall and processor seconds, peak memory, and what was found."""
    profiler = cProfile.Profile()
    wall, processor = time.perf_counter(), time.process_time()
    found = profiler.runcall(part, *files) if profile else part(*files)
    measured = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
    if profile:
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(25)
    return {**measured, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, **found}


def score(file: Path, _: Path) -> dict[str, Any]:
    """What `sonotune evaluate` gives after decoding."""
    rows = read_predictions(file)
    clips = [replace(clip_of(row), text=row["reference"]) for row in rows]
    predictions = [Prediction(clip_id=row["id"], text=row["hypothesis"]) for row in rows]
    task = Transcribe(None, TaskSettings())  # type: ignore[arg-type]  # scoring asks nothing of a family
    scores = task.score(predictions, clips, resamples=RESAMPLES)
    task.details(predictions, clips)
    slices = score_slices(task, predictions, clips, slice_clips(clips), primary="wer", bootstrap=RESAMPLES)
    return {"wer": scores["wer"].value, "slices": len(slices)}


def both(first: Path, second: Path) -> dict[str, Any]:
    """What `sonotune compare` gives."""
    found = compare([first], [second], resamples=RESAMPLES)
    return {"wer_difference": found.primary.value, "slices": len(found.slices)}


PARTS: Final[dict[str, Callable[[Path, Path], dict[str, Any]]]] = {"score": score, "compare": both}


def write(files: list[Path], *, clips: int, speakers: int) -> None:
    """Predictions of two systems on the same clips, the second a little better."""
    rng = np.random.default_rng(0)
    vocabulary = np.array(["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 2 + n % 9)) for n in range(WORDS)])
    frequency = 1 / np.arange(1, WORDS + 1)
    rates = rng.beta(2, 10, speakers)
    with files[0].open("w", encoding="utf-8") as first, files[1].open("w", encoding="utf-8") as second:
        for number in range(clips):
            speaker = number % speakers
            said = vocabulary[rng.choice(WORDS, rng.integers(2, 22), p=frequency / frequency.sum())]
            row = {
                "id": f"clip-{number:06d}",
                "reference": " ".join(said),
                "duration_s": round(float(0.4 * len(said) + rng.random()), 2),
                "domain": DOMAINS[number % len(DOMAINS)],
                "speaker": f"speaker-{speaker:04d}",
                "language": LANGUAGES[speaker % len(LANGUAGES)],
            }
            for file, factor in ((first, 1.0), (second, 0.9)):
                text = _heard(said, vocabulary, factor * rates[speaker], rng)
                told = {"hypothesis": text, "scored_reference": row["reference"], "scored_hypothesis": text}
                file.write(json.dumps(row | told) + "\n")


def _heard(said: Any, vocabulary: Any, rate: float, rng: np.random.Generator) -> str:
    """Of ten errors seven are substitutions, two deletions and one an insertion."""
    heard: list[str] = []
    for word, draw in zip(said, rng.random(len(said)) / rate, strict=True):
        if draw >= 0.3:
            heard.append(str(word) if draw >= 1 else str(rng.choice(vocabulary)))
        if draw < 0.1:
            heard += [str(word), str(rng.choice(vocabulary))]
    return " ".join(heard)


if __name__ == "__main__":
    main()
