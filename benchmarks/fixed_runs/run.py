"""Five short runs at fixed seeds, and digests of what they compute: the same before and after a change that moves code.

    python benchmarks/fixed_runs/run.py --out before.json       # in a checkout of the earlier commit
    python benchmarks/fixed_runs/run.py --out after.json
    python benchmarks/fixed_runs/run.py --compare before.json after.json

A digest covers the loss of every step, the scores, and every tensor that was kept. Digests of two machines differ:
compare two checkouts on one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, Final

SPEECH: Final = ("data=quickstart", "data.limit=48", "training.max_steps=12", "training.batch_max_clips=4")
CLASSES: Final = ("data=rudiments_tiny", "data.limit=48", "training.max_steps=12", "training.batch_max_clips=4")
STAGES: Final = (
    "[{name: stem, weights: [stem], adapters: none, max_steps: 4}, {name: all, weights: [stem], max_steps: 4}, "
    "{name: adapters, max_steps: 4}]"
)
RUNS: Final = {
    "lora": ("model=whisper_nano", *SPEECH),
    "qlora, entropy ranks, reallocation": (
        "model=whisper_nano",
        *SPEECH,
        "quantization.bits=4",
        "adapter.allocator=entropy",
        "allocation.clips=12",
        "reallocation.at=[0.2,0.5]",
        "regularization.entropy=concentrate",
    ),
    "full fine-tuning": ("model=whisper_nano", *SPEECH, "adapter.kind=none", "quantization.bits=16"),
    "stages": (
        "model=whisper_nano",
        *(word for word in SPEECH if "max_steps" not in word),
        f"training.stages={STAGES}",
    ),
    "classes": ("model=ast_nano", *CLASSES),
}
SHARED: Final = ("training.precision=fp32", "training.threads=1", "run.progress=false", "training.seed=3")


def main() -> None:
    """Run all five and write their digests, or compare two such files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compare", type=Path, nargs=2)
    options = parser.parse_args()
    if options.compare:
        before, after = (json.loads(path.read_text("utf-8")) for path in options.compare)
        for name, parts in before.items():
            same = {what: after.get(name, {}).get(what) == digest for what, digest in parts.items()}
            print(f"{name:<40}", "  ".join(f"{what} {'same' if equal else 'DIFFERS'}" for what, equal in same.items()))
        raise SystemExit(before != after)
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, words) in enumerate(RUNS.items()):
            found[name] = digests([*words, *SHARED, f"run.dir={folder}/{index}"])
            print(f"{name:<40}", found[name], flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def digests(words: list[str]) -> dict[str, str]:
    """Train, and digest losses, scores and weights."""
    from safetensors.torch import load_file

    from sonotune.config.load import load_run_config
    from sonotune.training.run import run

    settings = load_run_config(words)
    record, folder = run(settings)
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "step"]
    kept = next(path for path in (*folder.glob("adapter/*.safetensors"), *folder.glob("model/*.safetensors")))
    tensors = {name: digest(value.numpy().tobytes()) for name, value in sorted(load_file(kept).items())}
    return {
        "settings": settings.digest[:16],
        "losses": digest(losses),
        "scores": digest(_plain(record.scores)),
        "weights": digest(tensors),
        "ranks": digest(dict(record.ranks)),
    }


def digest(value: Any) -> str:
    """SHA-256, shortened."""
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def _plain(scores: Any) -> dict[str, dict[str, float]]:
    return {point: {name: row["value"] for name, row in found.items()} for point, found in scores.items()}


if __name__ == "__main__":
    main()
