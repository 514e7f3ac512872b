"""The four shifts that adapters are compared on: two real speakers, new voices through a codec, new words.

    python benchmarks/ablation/corpora.py FOLDER --fsdd ../shared/data/fsdd

writes `fsdd_theo`, `fsdd_nicolas`, `codec` and `words` below FOLDER, each with train.jsonl, dev.jsonl and
test.jsonl that share no speaker. The synthetic ones need the extra `synth`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from sonotune.data import vocabulary
from sonotune.data.espeak import Voice
from sonotune.data.importers import load_fsdd
from sonotune.data.manifest import write_manifest
from sonotune.data.speech_plans import PlannedClip
from sonotune.data.synth import synthesize_corpus
from sonotune.runs import generator

FOLDS: Final = {
    "fsdd_theo": {"train": ("jackson", "nicolas"), "dev": ("lucas",), "test": ("theo",)},
    "fsdd_nicolas": {"train": ("theo", "lucas"), "dev": ("jackson",), "test": ("nicolas",)},
}
CLIPS: Final = {"train": 400, "dev": 300, "test": 600}
WORDS: Final = (
    "monday",
    "friday",
    "august",
    "purple",
    "silver",
    "elephant",
    "rabbit",
    "penguin",
    "camera",
    "hospital",
    "banana",
    "winter",
)
"""None of them is in what whisper-nano was trained on. With sixty, a hundred steps taught too little to compare."""


def main() -> None:
    """Write them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fsdd", default=os.environ.get("SONOTUNE_FSDD", "../shared/data/fsdd"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    assert not set(WORDS) & {*vocabulary.DIGITS, *vocabulary.COMMANDS}
    write_folds(Path(options.fsdd).resolve(), options.folder)
    for name, plan in (("codec", codec_plan(options.seed)), ("words", words_plan(options.seed))):
        if not (options.folder / name / "test.jsonl").is_file():
            synthesize_corpus(plan, options.folder / name, seed=options.seed)
    print(*sorted(path.name for path in options.folder.iterdir()))


def write_folds(fsdd: Path, folder: Path) -> None:
    """Two folds of the Free Spoken Digit Dataset: two speakers to learn from, one to choose by, one to score."""
    clips = load_fsdd(fsdd)
    for name, splits in FOLDS.items():
        for split, speakers in splits.items():
            chosen = [replace(clip, language="en") for clip in clips if clip.speaker in speakers]
            (folder / name).mkdir(parents=True, exist_ok=True)
            write_manifest(folder / name / f"{split}.jsonl", chosen)


def codec_plan(seed: int) -> list[PlannedClip]:
    """Digit strings of voices that whisper-nano never heard, through a bad intercom with GSM on the line."""
    voices = vocabulary.QUICKSTART_VARIANTS
    # Two people with each voice of the test, for six speakers can hardly show a difference among several arms.
    people = [f"{voice}/{one}" for voice in voices[6:] for one in "ab"]
    split = {"train": voices[:4], "dev": voices[4:6], "test": people}
    return _plan(seed, "codec", split, vocabulary.DIGITS, "intercom")


def words_plan(seed: int) -> list[PlannedClip]:
    """Words that whisper-nano never heard, clean, of voices like those it was trained on."""
    known, new = vocabulary.TRAINING_VARIANTS[1:], vocabulary.DEVELOPMENT_VARIANTS
    return _plan(seed, "words", {"train": known[:8], "dev": known[8:12], "test": (*known[12:18], *new)}, WORDS, None)


def _plan(
    seed: int, corpus: str, variants: Mapping[str, Sequence[str]], words: Sequence[str], channel: str | None
) -> list[PlannedClip]:
    return [
        _clip(seed, corpus, split, index, of_split, words, channel)
        for split, of_split in variants.items()
        for index in range(CLIPS[split])
    ]


def _clip(
    seed: int, corpus: str, split: str, index: int, variants: Sequence[str], words: Sequence[str], channel: str | None
) -> PlannedClip:
    speaker = variants[index % len(variants)]
    # One person has one voice, accent, pace and vocal tract.
    person, rng = generator(seed, corpus, "speaker", speaker), generator(seed, corpus, split, index)
    said = [words[int(place)] for place in rng.integers(0, len(words), int(rng.integers(1, 4)))]
    accents = vocabulary.ENGLISH_ACCENTS
    return PlannedClip(
        id=f"{split}-{index:04d}",
        text=" ".join(said),
        voice=Voice(
            accent=accents[int(person.integers(len(accents)))],
            variant=speaker.partition("/")[0],
            words_per_minute=int(person.integers(130, 210)),
            pitch=int(person.integers(20, 80)),
            pitch_range=int(person.integers(20, 80)),
        ),
        tract=round(float(np.exp(person.uniform(np.log(0.8), np.log(1.25)))), 4),
        lead_s=round(rng.uniform(0.05, 0.2), 3),
        trail_s=round(rng.uniform(0.05, 0.2), 3),
        peak_db=round(rng.uniform(-12, -3), 2),
        channel=channel,
        domain=corpus,
        speaker=speaker,
        split=split,
    )


if __name__ == "__main__":
    main()
