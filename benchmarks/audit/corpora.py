"""Corpora whose transcripts are right, for the measurements of this folder.

    python benchmarks/audit/corpora.py FOLDER --fsdd FSDD     # synthetic speech needs the extra `synth`

writes `strings/{corpus,trusted}.jsonl` (digit strings of 1 to 10 s from the Free Spoken Digit Dataset, of two speakers
that the aligner was not trained on; no recording stands in both files) and `synthetic/{en,he}.jsonl` (strings of 5 to
12 words by espeak-ng, in many voices).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from sonotune.data import vocabulary
from sonotune.data.chunking import join
from sonotune.data.espeak import Voice
from sonotune.data.importers import load_fsdd
from sonotune.data.manifest import write_manifest
from sonotune.data.speech_plans import PlannedClip
from sonotune.data.synth import synthesize_corpus
from sonotune.runs import generator
from sonotune.types import Clip

SPEAKERS: Final = ("lucas", "theo")
TRUSTED_TAKES: Final = 15  # of the 50 recordings that each speaker has of each digit
STRINGS: Final = {"corpus": 1500, "trusted": 400}
SYNTHETIC: Final = 60
SEED: Final = 18


def main() -> None:
    """Write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fsdd", type=Path, required=True)
    options = parser.parse_args()
    folder = options.folder.resolve()
    counts = write_strings(options.fsdd.resolve(), folder / "strings")
    plan = [_planned(language, index) for language in ("en", "he") for index in range(SYNTHETIC)]
    spoken = synthesize_corpus(plan, folder / "synthetic", seed=SEED, workers=1)
    print(json.dumps(counts | {split: len(clips) for split, clips in spoken.items()}))


def write_strings(fsdd: Path, folder: Path) -> dict[str, int]:
    """Digit strings; every recording is used as often as it takes to have enough of them."""
    clips = [replace(clip, language="en") for clip in load_fsdd(fsdd, speakers=SPEAKERS)]
    is_trusted = {clip.id: int(clip.id.rsplit("_", 1)[1]) < TRUSTED_TAKES for clip in clips}
    for split, wanted in STRINGS.items():
        own = [clip for clip in clips if is_trusted[clip.id] == (split == "trusted")]
        strings: list[Clip] = []
        seed = SEED
        while len(strings) < wanted:
            name = f"{split}-{seed}"
            joined = join(own, folder / "audio" / name, max_duration_s=10.0, seed=seed)
            strings += [replace(clip, id=f"{name}-{clip.id}") for clip in joined]
            seed += 1
        # Evenly from all passes and speakers: what is left over would else be of the last speaker alone.
        chosen = generator(SEED, "strings", split).permutation(len(strings))[:wanted]
        write_manifest(folder / f"{split}.jsonl", [strings[index] for index in sorted(chosen.tolist())])
    return dict(STRINGS)


def _planned(language: str, index: int) -> PlannedClip:
    rng = generator(SEED, "audit", language, index)
    count = int(rng.integers(5, 13))
    written, spoken = (_english if language == "en" else _hebrew)(rng.integers(0, 10**6, count).tolist())
    accents = ("he",) if language == "he" else vocabulary.ENGLISH_ACCENTS
    voice = Voice(
        accent=accents[int(rng.integers(len(accents)))],
        variant=vocabulary.TRAINING_VARIANTS[int(rng.integers(len(vocabulary.TRAINING_VARIANTS)))],
        words_per_minute=int(rng.integers(120, 220)),
        pitch=int(rng.integers(20, 80)),
        pitch_range=int(rng.integers(20, 80)),
    )
    return PlannedClip(
        id=f"{language}-{index:03d}",
        text=written,
        spoken=spoken,
        phonemes=language == "he",
        voice=voice,
        lead_s=0.2,
        trail_s=0.2,
        language=language,
        split=language,
    )


def _english(draws: Sequence[int]) -> tuple[str, str]:
    known = (*vocabulary.COMMANDS, *vocabulary.DIGITS)
    words = " ".join(known[draw % len(known)] for draw in draws)
    return words, words


def _hebrew(draws: Sequence[int]) -> tuple[str, str]:
    known = [*vocabulary.HEBREW_WORDS.items(), *vocabulary.HEBREW_DIGITS.items()]
    chosen = [known[draw % len(known)] for draw in draws]
    return " ".join(word for word, _ in chosen), " ".join(f"[[{phonemes}]]" for _, phonemes in chosen)


if __name__ == "__main__":
    main()
