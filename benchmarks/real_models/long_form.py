"""What decoding in windows costs: WER of recordings of five minutes against that of the short clips they are made of.

    python benchmarks/real_models/long_form.py real-data/swahili/test.jsonl --model RUN --language sw --out FILE

Clips of at most 29 s are joined with half a second of silence to recordings of four to five minutes, so that both sides
have the same words. Both are scored with `sonotune evaluate`, which cuts long clips at pauses. `--sequential EXPORT`
also decodes the recordings as plain `transformers` does, by the model's own timestamps (Radford et al. 2022, section
4.5), from a folder that `sonotune export` wrote.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from sonotune.audio.io import read
from sonotune.data.chunking import join
from sonotune.data.manifest import read_manifest, write_manifest
from sonotune.data.text import get
from sonotune.metrics.error_rate import wer
from sonotune.types import Clip

LONGEST_S: Final = 29.0
RATE_HZ: Final = 16_000


def main() -> None:
    """Score both sides, print and keep what they have."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--language", required=True)
    parser.add_argument("--minutes", type=float, default=5.0, help="Of a recording at most.")
    parser.add_argument("--clips", type=int, help="The first so many.")
    parser.add_argument("--sequential", type=Path, help="Folder of an export, for plain transformers.")
    parser.add_argument("--settings", nargs="*", default=[], help="Of both evaluations.")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    clips = [clip for clip in read_manifest(options.manifest) if clip.duration_s <= LONGEST_S and clip.text]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        longest_s = 60 * options.minutes
        recordings = join(
            clips[: options.clips],
            folder / "long",
            min_duration_s=0.8 * longest_s,
            max_duration_s=longest_s,
            gap_s=0.5,
        )
        used = {name for clip in recordings for name in clip.extra["sources"].split()}
        write_manifest(folder / "short.jsonl", [clip for clip in clips if clip.id in used])
        sides = {
            "short": _evaluate(options, folder / "short.jsonl"),
            "long": _evaluate(options, folder / "long" / "manifest.jsonl"),
        }
        if options.sequential:
            sides["sequential"] = _sequential(options.sequential, recordings, options.language)
    short = sides["short"]["wer"]["value"]
    for name, side in sides.items():
        side["excess"] = side["wer"]["value"] / short - 1
        print(f"{name:<10} WER {100 * side['wer']['value']:.2f} %, {100 * side['excess']:+.2f} % relative")
    body = {
        "command": " ".join(["python", "benchmarks/real_models/long_form.py", *map(_short, sys.argv[1:])]),
        "recordings": [clip.duration_s for clip in recordings],
        "clips": len(used),
        "sides": sides,
    }
    options.out.write_text(json.dumps(body, indent=1) + "\n", "utf-8")


def _short(word: str) -> str:
    return "/".join(Path(word).parts[-2:]) if "/" in word else word


def _evaluate(options: argparse.Namespace, manifest: Path) -> dict[str, Any]:
    words = [
        sys.executable,
        "-m",
        "sonotune",
        "evaluate",
        f"model.checkpoint={options.model}",
        f"data.test={manifest}",
        f"model.language={options.language}",
        "data.allow_outside_root=true",
        *options.settings,
        "--json",
    ]
    started = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr[-2000:]}")
    body = json.loads(done.stdout)
    return {
        "wer": body["scores"]["wer"],
        "cer": body["scores"]["cer"],
        "decoding": body["decoding"],
        "findings": [one["message"] for one in body["findings"] if one["check"].startswith("evaluation.windows")],
        "seconds": round(time.perf_counter() - started, 1),
    }


def _sequential(export: Path, recordings: Sequence[Clip], language: str) -> dict[str, Any]:
    """Plain `transformers`, whose long-form decoding goes on where the last timestamp ends."""
    import torch
    from transformers import AutoProcessor, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(export)
    processor = AutoProcessor.from_pretrained(export)
    scoring = get("basic").scoring
    texts = []
    started = time.perf_counter()
    for clip in recordings:
        features = processor(
            read(clip.path, sample_rate_hz=RATE_HZ),
            sampling_rate=RATE_HZ,
            return_tensors="pt",
            truncation=False,
            padding="longest",
            return_attention_mask=True,
        )
        with torch.inference_mode():
            ids = model.generate(
                **features,
                language=language,
                task="transcribe",
                return_timestamps=True,
                temperature=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
                compression_ratio_threshold=2.4,
                logprob_threshold=-1.0,
                no_speech_threshold=0.6,
                condition_on_prev_tokens=False,
            )
        texts.append(processor.batch_decode(ids, skip_special_tokens=True)[0])
    score = wer([scoring(clip.text or "") for clip in recordings], [scoring(text) for text in texts])
    return {"wer": score.to_json(), "seconds": round(time.perf_counter() - started, 1)}


if __name__ == "__main__":
    main()
