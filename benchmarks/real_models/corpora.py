"""Real recordings as manifests: digit strings of FSDD's speakers, and splits of the Breton corpus.

    python benchmarks/real_models/corpora.py FOLDER --data ../shared/data

writes `fsdd/{train,dev,test}.jsonl` (two speakers to learn from, one to choose by, one to score; 8 kHz recordings of
single digits joined into strings of 1 to 5.5 s), `fsdd-1`, `fsdd-2` and `fsdd-3` likewise with the four speakers moved
on by one, two and three, so that each is scored once, `breton/{train,dev,test,chess}.jsonl` (the documentary by the
order of its clips, the chess channel as a domain that nothing was trained on), and `swahili/{train,dev,test}.jsonl` as
they come. Their lines name files outside FOLDER: give `data.allow_outside_root=true`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from sonotune.data.chunking import join
from sonotune.data.importers import load_fsdd
from sonotune.data.manifest import write_manifest
from sonotune.types import Clip

SPEAKERS: Final = ("jackson", "nicolas", "lucas", "theo")  # two to learn from, one to choose by, one to score
STRINGS: Final = {"train": 300, "dev": 40, "test": 80}
PASSES: Final = 2  # each recording stands in about so many strings


def main() -> None:
    """Write them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    options = parser.parse_args()
    folder, data = options.folder.resolve(), options.data.resolve()
    for fold in range(len(SPEAKERS)):
        write_digit_strings(data / "fsdd", folder / (f"fsdd-{fold}" if fold else "fsdd"), fold)
    write_breton(_read(data / "breton" / "all.jsonl"), folder / "breton")
    for source, split in (("train", "train"), ("val", "dev"), ("test", "test")):
        _write(folder / "swahili" / f"{split}.jsonl", _read(data / "swahili" / f"{source}.jsonl"))
    print(json.dumps({str(path.relative_to(folder)): _count(path) for path in sorted(folder.rglob("*.jsonl"))}))


def write_digit_strings(fsdd: Path, folder: Path, fold: int = 0) -> None:
    """Strings of digits, each of one speaker, each recording at most `PASSES` times in a split."""
    clips = load_fsdd(fsdd)
    first, second, third, fourth = SPEAKERS[fold:] + SPEAKERS[:fold]
    for split, speakers in {"train": (first, second), "dev": (third,), "test": (fourth,)}.items():
        own = [replace(clip, language="en") for clip in clips if clip.speaker in speakers]
        strings: list[Clip] = []
        for seed in range(PASSES):
            joined = join(own, folder / "audio" / f"{split}-{seed}", max_duration_s=5.5, seed=seed)
            strings += [replace(clip, id=f"{split}-{seed}-{clip.id}") for clip in joined]
        _write(folder / f"{split}.jsonl", strings[: STRINGS[split]])


def write_breton(clips: Sequence[Clip], folder: Path) -> None:
    """The last fifth of the documentary is the test, the fifth before it chooses the checkpoint."""
    documentary = [clip for clip in clips if clip.domain != "chess"]
    first, second = round(0.6 * len(documentary)), round(0.8 * len(documentary))
    parts = {"train": documentary[:first], "dev": documentary[first:second], "test": documentary[second:]}
    parts["chess"] = [clip for clip in clips if clip.domain == "chess"]
    for split, own in parts.items():
        _write(folder / f"{split}.jsonl", own)


def _read(path: Path) -> list[Clip]:
    """The lines of a corpus; each names its file `audio`."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    return [
        Clip(
            id=row["id"],
            path=path.parent / row["audio"],
            duration_s=row["duration_s"],
            text=row["text"],
            language=row["language"],
            domain=row.get("domain"),
            speaker=row.get("speaker"),
        )
        for row in rows
    ]


def _write(path: Path, clips: Sequence[Clip]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(path, list(clips))


def _count(path: Path) -> int:
    return sum(1 for line in path.read_text("utf-8").splitlines() if line.strip())


if __name__ == "__main__":
    main()
