"""Audio-seconds a second of decoding, against `pipeline("automatic-speech-recognition", batch_size=16)`.

    python benchmarks/real_models/decoding.py real-data --model ../shared/data/whisper_base --clips 200
    python benchmarks/real_models/decoding.py real-data --model EXPORT --corpora fsdd --own-length

Both sides load the same folder in the same precision, decode once with as many beams (no fallback; the pipeline takes
five unless told), get the same clips and are told the language. The pipeline gets waveforms; sonotune reads the files
and scores the texts within its time. Sides take turns, each in a process of its own; reading the weights and a first
clip are not timed. `--own-length` adds the thinned window.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

SPLITS: Final = {"fsdd": ("test", "dev"), "breton": ("test", "chess", "dev"), "swahili": ("test",)}
LANGUAGES: Final = {"fsdd": "en", "breton": "br", "swahili": "sw"}
BATCH: Final = 16
LONGEST_S: Final = 29.9
SAMPLE_RATE_HZ: Final = 16_000


def main() -> None:
    """Run the sides in turn and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="Folder that corpora.py wrote.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--corpora", nargs="+", default=list(SPLITS))
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--beams", type=int, default=1, help="Of both sides; the pipeline's own default is 5.")
    parser.add_argument("--own-length", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--side", choices=["pipeline", "full", "thinned"], help="For the processes that this one starts."
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.side:
        texts, seconds = (usual if options.side == "pipeline" else ours)(options)
        options.out.write_text(json.dumps({"texts": texts, "seconds": seconds}), "utf-8")
        return
    sides = ["pipeline", "full", *(["thinned"] if options.own_length else [])]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.rounds):
            for side in sides if turn % 2 == 0 else sides[::-1]:
                out = Path(folder) / "side.json"
                words = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--out", str(out)]
                subprocess.run(words, check=True)
                runs[side].append(json.loads(out.read_text("utf-8")))
                print(side, round(runs[side][-1]["seconds"], 1), "s", file=sys.stderr, flush=True)
    summary = compare(options, runs)
    print(json.dumps({key: value for key, value in summary.items() if key != "texts"}, indent=1))
    if options.out:
        options.out.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", "utf-8")


def compare(options: argparse.Namespace, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Speeds, ratios to the pipeline, scores, and the share of texts that are the pipeline's."""
    import jiwer
    import torch
    import transformers

    from sonotune.data.text import get
    from sonotune.metrics.runaway import loops

    rows = clips(options)
    form = get("basic").scoring
    references = [form(row["text"]) for row in rows]
    audio_s = sum(row["duration_s"] for row in rows)
    usual_texts = [form(text) for text in runs["pipeline"][0]["texts"]]
    usual_s = statistics.median(run["seconds"] for run in runs["pipeline"])
    found = {}
    for side, own in runs.items():
        texts = [form(text) for text in own[0]["texts"]]
        seconds = [run["seconds"] for run in own]
        found[side] = {
            "seconds": seconds,
            "audio_seconds_a_second": audio_s / statistics.median(seconds),
            "times_faster": usual_s / statistics.median(seconds),
            "wer": jiwer.wer(references, [text or "-" for text in texts]),
            "loops": sum(loops(text, reference) for text, reference in zip(texts, references, strict=True)),
            "same_as_pipeline": sum(a == b for a, b in zip(texts, usual_texts, strict=True)) / len(texts),
        }
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {
        "clips": len(rows),
        "audio_s": audio_s,
        "corpora": options.corpora,
        "precision": options.precision,
        "beams": options.beams,
        "model": Path(options.model).name,
        "machine": machine,
        "sides": found,
        "texts": {side: own[0]["texts"] for side, own in runs.items()},
    }


def clips(options: argparse.Namespace) -> list[dict[str, Any]]:
    """As many clips of each corpus as there are, up to an equal share of all."""
    share = -(-options.clips // len(options.corpora))
    found = []
    for corpus in options.corpora:
        own = []
        for split in SPLITS[corpus]:
            path = options.data / corpus / f"{split}.jsonl"
            for line in path.read_text("utf-8").splitlines():
                row = json.loads(line)
                if row["duration_s"] <= LONGEST_S:
                    own.append(row | {"path": str(path.parent / row["path"]), "language": LANGUAGES[corpus]})
        found += own[:share]
    return found[: options.clips]


def waveforms(rows: Sequence[dict[str, Any]]) -> list[np.ndarray[Any, Any]]:
    """At 16 kHz."""
    from sonotune.audio.io import read

    return [read(Path(row["path"]), sample_rate_hz=SAMPLE_RATE_HZ) for row in rows]


def usual(options: argparse.Namespace) -> tuple[list[str], float]:
    """The pipeline, language by language."""
    import torch
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    rows = clips(options)
    heard = waveforms(rows)
    recognise = transformers.pipeline(
        "automatic-speech-recognition",
        model=options.model,
        batch_size=BATCH,
        dtype=torch.float32 if options.precision == "fp32" else torch.bfloat16,
        device="cpu",
    )
    texts = [""] * len(rows)
    seconds = 0.0
    for language in dict.fromkeys(row["language"] for row in rows):
        indices = [index for index, row in enumerate(rows) if row["language"] == language]
        settings = {"language": language, "task": "transcribe", "num_beams": options.beams}
        recognise([heard[indices[0]]], generate_kwargs=settings)
        began = time.perf_counter()
        outputs = recognise([heard[index] for index in indices], generate_kwargs=settings)
        seconds += time.perf_counter() - began
        for index, output in zip(indices, outputs, strict=True):
            texts[index] = output["text"].strip()
    return texts, seconds


def ours(options: argparse.Namespace) -> tuple[list[str], float]:
    """`Recognizer.evaluate`, reading and scoring included."""
    from sonotune.serving.recognizer import Recognizer
    from sonotune.types import Clip, DecodingSettings

    rows = clips(options)
    recognizer = Recognizer.open(options.model, precision=options.precision)
    given = [
        Clip(
            id=str(index),
            path=Path(row["path"]),
            duration_s=row["duration_s"],
            text=row["text"],
            language=row["language"],
        )
        for index, row in enumerate(rows)
    ]
    settings: dict[str, Any] = {
        "context": options.side,
        "decoding": DecodingSettings(temperatures=(0.0,), beam_size=options.beams),
        "max_clips": BATCH,
        "batch_seconds": 30.0 * BATCH,
    }
    recognizer.evaluate(given[:1], **settings)
    began = time.perf_counter()
    result = recognizer.evaluate(given, **settings)
    seconds = time.perf_counter() - began
    by_id = {prediction.clip_id: prediction.text or "" for prediction in result.predictions}
    return [by_id[clip.id] for clip in given], seconds


if __name__ == "__main__":
    main()
