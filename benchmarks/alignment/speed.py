"""How fast is alignment, how much memory does it take, and how far off are its words?

    python benchmarks/alignment/speed.py speed      # 1,000 clips, log-probabilities given
    python benchmarks/alignment/speed.py memory     # 30 minutes with 25,000 characters
    python benchmarks/alignment/speed.py borders    # ctc-nano against the word times of espeak-ng (extra `synth`)

Run it on one core (`taskset -c 0`, OMP_NUM_THREADS=1). The README beside this file has the figures.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonotune.alignment.viterbi import Target, align

SYMBOLS = 57


def log_probs(rng: np.random.Generator, frames: int) -> NDArray[np.float32]:
    logits = rng.standard_normal((frames, SYMBOLS), dtype=np.float32) * 2
    normalised: NDArray[np.float32] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return normalised


def speed(clips: int = 1000, seconds: float = 10.0, characters: int = 120) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    given = [log_probs(rng, round(seconds * 50)) for _ in range(clips)]
    targets = [Target(tokens=rng.integers(1, SYMBOLS, characters)) for _ in range(clips)]
    open_gaps = [rng.random(characters + 1) < 0.2 for _ in range(clips)]
    opened = [Target(tokens=one.tokens, open_gaps=gaps) for one, gaps in zip(targets, open_gaps, strict=True)]
    found: dict[str, Any] = {}
    for name, wanted in (("closed gaps", targets), ("open gaps", opened)):
        runs = []
        for _ in range(3):
            began = time.process_time()
            align(given, wanted, gap_penalty=4.0)
            runs.append(time.process_time() - began)
        found[name] = {"processor_seconds": min(runs), "times_real_time": clips * seconds / min(runs)}
    return found


def memory(frames: Sequence[int] = (45_000, 90_000), characters: int = 25_000) -> dict[str, Any]:
    """Peak resident memory, one length after the other, the shortest first."""
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for count in frames:
        given = log_probs(rng, count)
        target = Target(tokens=rng.integers(1, SYMBOLS, characters))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        [path] = align([given], [target])
        assert path is not None
        found[f"{count} frames"] = {
            "processor_seconds": time.process_time() - began,
            "peak_mb_before": before / 1e3,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
            "back_pointers_mb": count * (3 * characters + 3) / 8 / 1e6,
            "two_bits_a_state_mb": count * (2 * characters + 1) / 4 / 1e6,
        }
    return found


def borders(checkpoint: str = "assets:ctc-nano") -> dict[str, Any]:
    from sonotune.alignment.base import Alignment
    from sonotune.alignment.open import open_aligner
    from sonotune.data.manifest import read_manifest
    from sonotune.data.synth import synthesize_named
    from sonotune.registry import resolve_asset

    aligner = open_aligner(checkpoint, device="cpu")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        synthesize_named("nano_speech", Path(folder), clips=300, seed=18, workers=1)
        corpora = {
            "clean, voices known": Path(folder) / "manifest.jsonl",
            "clean, voices never heard": Path(folder) / "dev.jsonl",
            "intercom (quickstart, training)": resolve_asset("assets:quickstart/train.jsonl"),
        }
        for name, manifest in corpora.items():
            clips = [clip for clip in read_manifest(manifest) if clip.words]
            errors: dict[str, list[float]] = {"starts": [], "ends": [], "token starts": [], "token ends": []}
            right: list[bool] = []
            joined: list[bool] = []
            others = 0
            for clip, one in zip(clips, aligner.align(clips), strict=True):
                if not isinstance(one, Alignment):
                    others += 1
                    continue
                for index, (word, true) in enumerate(zip(one.words, clip.words, strict=True)):
                    tokens = np.flatnonzero(one.token_words == index)
                    errors["starts"].append(word.start_s - true.start_s)
                    errors["ends"].append(word.end_s - true.end_s)
                    errors["token starts"].append(float(one.token_starts_s[tokens[0]]) - true.start_s)
                    errors["token ends"].append(float(one.token_ends_s[tokens[-1]]) - true.end_s)
                    joined.append(index > 0 and true.start_s - clip.words[index - 1].end_s < 0.02)
                    right.append(one.transcript == clip.text)
            found[name] = {
                "words": len(right),
                "findings": others,
                "share_of_words_in_texts_read_right": np.mean(right),
            }
            starts = np.array(errors["starts"])
            errors["starts without a pause before"] = starts[np.array(joined)].tolist()
            for edge, values in errors.items():
                error = np.array(values)
                found[name][edge] = {
                    "median_ms": float(np.median(np.abs(error))) * 1e3,
                    "bias_ms": float(np.median(error)) * 1e3,
                    "p90_ms": float(np.quantile(np.abs(error), 0.9)) * 1e3,
                    "within_20_ms": float((np.abs(error) <= 0.0205).mean()),
                }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory", "borders"))
    asked = parser.parse_args().what
    measured = speed() if asked == "speed" else memory() if asked == "memory" else borders()
    print(json.dumps(measured, indent=2, default=float))


if __name__ == "__main__":
    main()
