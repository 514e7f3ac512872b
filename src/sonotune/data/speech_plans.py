"""What the project's synthetic corpora say, and with which voices: plans, drawn from a seed, before anything speaks.

`nano_speech` is what whisper-nano learns from: mostly strings of a few digits, with as many different voices as
espeak-ng and a random vocal tract give. `quickstart` is what the package carries: voices and a channel that
`nano_speech` never has, so that adapting to them is a real if small task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

import numpy as np

from sonotune.data import vocabulary
from sonotune.data.espeak import Voice
from sonotune.runs import generator

AudioFormat = Literal["wav", "flac", "opus"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedClip:
    """One clip to be spoken. Every choice is made; speaking it draws nothing but breath and the channel's noise.

    Attributes:
        id: Unique within the corpus.
        text: Transcript.
        spoken: What espeak-ng is given where that differs from the text.
        phonemes: Whether `spoken` holds `[[phonemes]]`.
        voice: Who speaks, and how. `words_per_minute` is what is heard, after the vocal tract's change of tempo,
            as far as espeak-ng's own 80 to 450 allow.
        tract: Factor on all formants: 0.8 is a long vocal tract, 1.25 a short one.
        lead_s: Silence before the first word.
        trail_s: Silence after the last word.
        peak_db: Level of the highest sample, dB of full scale.
        channel: Name of one of `data.channels.CHANNELS`, or None.
        language: ISO 639-1 code.
        domain: Kind of text or of channel.
        speaker: Who is to be thought to speak; accent and variant where None.
        split: Name of the manifest the clip belongs to.
    """

    id: str
    text: str
    spoken: str | None = None
    phonemes: bool = False
    voice: Voice = field(default_factory=Voice)
    tract: float = 1.0
    lead_s: float = 0.0
    trail_s: float = 0.0
    peak_db: float = -3.0
    channel: str | None = None
    language: str = "en"
    domain: str | None = None
    speaker: str | None = None
    split: str = "manifest"


# --- nano_speech ---------------------------------------------------------------------------------

_KINDS: Final[Mapping[str, float]] = {
    "digit": 0.16,
    "digits": 0.46,
    "number": 0.10,
    "command": 0.08,
    "sequence": 0.11,
    "hebrew": 0.09,
}
# Words of a digit string and how many strings have so many. Attention learns where to listen from strings of two and
# three; with 44 % isolated digits and strings of 2 to 8 alike it had not begun to after 2000 steps.
_STRING_LENGTHS: Final[Mapping[int, float]] = {2: 0.30, 3: 0.24, 4: 0.17, 5: 0.12, 6: 0.08, 7: 0.05, 8: 0.04}
# Of isolated digits and digit strings, how many have a foreign accent.
_FOREIGN_SHARE: Final = 0.2
_DEVELOPMENT_CLIPS: Final = 300
# Intonation follows punctuation; the transcript has none.
_ENDINGS: Final = ("", ".", "?", "!", ",")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Phrase:
    kind: str
    text: str
    spoken: str
    language: str = "en"
    phonemes: bool = False
    accents: tuple[str, ...] = vocabulary.ENGLISH_ACCENTS


def nano_speech(clips: int, seed: int) -> list[PlannedClip]:
    """Plan the corpus that whisper-nano learns from.

    Args:
        clips: Number of training clips (split `manifest`); 300 with voices of their own follow as split `dev`.
        seed: Of every choice.

    Returns:
        The plan. Clip i is the same whatever the number of clips.
    """
    training = [_nano_clip(seed, "manifest", index) for index in range(clips)]
    return training + [_nano_clip(seed, "dev", index) for index in range(_DEVELOPMENT_CLIPS)]


def _nano_clip(seed: int, split: str, index: int) -> PlannedClip:
    rng = generator(seed, "nano_speech", split, index)
    phrase = _phrase(rng)
    variants = vocabulary.DEVELOPMENT_VARIANTS if split == "dev" else vocabulary.TRAINING_VARIANTS
    slow, fast = (90, 320) if phrase.kind in ("digit", "command") else (110, 280)
    return PlannedClip(
        id=f"{'dev' if split == 'dev' else 'nano'}-{index:05d}",
        text=phrase.text,
        spoken=phrase.spoken,
        phonemes=phrase.phonemes,
        voice=Voice(
            accent=_pick(rng, phrase.accents),
            variant=_pick(rng, variants),
            words_per_minute=round(_log_uniform(rng, slow, fast)),
            pitch=int(rng.integers(0, 100)),
            pitch_range=int(rng.integers(0, 100)),
            word_gap=int(rng.integers(0, 9)) if rng.random() < 0.5 else 0,
        ),
        tract=round(_log_uniform(rng, 0.8, 1.25), 4),
        lead_s=round(rng.uniform(0, 0.3), 3),
        trail_s=round(rng.uniform(0, 0.3), 3),
        peak_db=round(rng.uniform(-20, -1), 2),
        language=phrase.language,
        domain=phrase.kind,
        split=split,
    )


def _phrase(rng: np.random.Generator) -> _Phrase:
    kind = str(rng.choice(list(_KINDS), p=list(_KINDS.values())))
    if kind == "hebrew":
        return _hebrew(rng)
    if kind in ("digit", "digits"):
        count = 1
        if kind == "digits":
            count = int(rng.choice(list(_STRING_LENGTHS), p=list(_STRING_LENGTHS.values())))
        numbers = [int(value) for value in rng.integers(0, 10, count)]
        words = [vocabulary.DIGITS[value] for value in numbers]
        if rng.random() < _FOREIGN_SHARE:
            accent = _pick(rng, tuple(vocabulary.FOREIGN_DIGITS))
            foreign = [vocabulary.FOREIGN_DIGITS[accent][value] for value in numbers]
            return _Phrase(kind=kind, text=" ".join(words), spoken=_punctuate(rng, foreign), accents=(accent,))
    elif kind == "number":
        highest = int(rng.choice([100, 1000, 10000]))
        words = vocabulary.number_words(int(rng.integers(10, highest)), say_and=bool(rng.random() < 0.5)).split()
        return _Phrase(kind=kind, text=" ".join(words), spoken=" ".join(words) + _pick(rng, _ENDINGS))
    elif kind == "command":
        words = [_pick(rng, vocabulary.COMMANDS)]
    else:
        pools = (vocabulary.COMMANDS, vocabulary.DIGITS)
        words = [_pick(rng, pools[int(rng.random() < 0.4)]) for _ in range(int(rng.integers(2, 6)))]
    return _Phrase(kind=kind, text=" ".join(words), spoken=_punctuate(rng, words))


def _hebrew(rng: np.random.Generator) -> _Phrase:
    count = int(rng.integers(2, 5)) if rng.random() < 0.3 else 1
    pools = (vocabulary.HEBREW_WORDS, vocabulary.HEBREW_DIGITS)
    words = []
    for _ in range(count):
        pool = pools[int(rng.random() < 0.5)]
        written = _pick(rng, tuple(pool))
        words.append((written, f"[[{pool[written]}]]"))
    return _Phrase(
        kind="hebrew",
        text=" ".join(written for written, _ in words),
        spoken=_punctuate(rng, [spoken for _, spoken in words]),
        language="he",
        phonemes=True,
        accents=("he",),
    )


def _punctuate(rng: np.random.Generator, words: Sequence[str]) -> str:
    """Join words as one breath, as a list, or as a mixture of both."""
    comma = _pick(rng, (0.0, 0.0, 0.4, 1.0))
    joined = "".join(f"{word}{',' if rng.random() < comma else ''} " for word in words[:-1]) + words[-1]
    return joined + _pick(rng, _ENDINGS)


# --- quickstart ----------------------------------------------------------------------------------

_QUICKSTART_CLIPS: Final[Mapping[str, int]] = {"eval": 50, "test": 50}


def quickstart(clips: int, seed: int) -> list[PlannedClip]:
    """Plan the corpus that the package carries: digits of new voices through one bad intercom.

    The twelve speakers have voices that `nano_speech` lacks, a vocal tract near the ends of its range, and one pitch
    and pace each. Six speak in split `train`, three in `eval`, three in `test`.

    Args:
        clips: Number of training clips; 50 of `eval` and 50 of `test` follow.
        seed: Of every choice.

    Returns:
        The plan.
    """
    speakers = [_quickstart_speaker(seed, index) for index in range(len(vocabulary.QUICKSTART_VARIANTS))]
    of_split = {"train": speakers[:6], "eval": speakers[6:9], "test": speakers[9:]}
    return [
        _quickstart_clip(seed, split, index, of_split[split][index % len(of_split[split])])
        for split, count in {"train": clips, **_QUICKSTART_CLIPS}.items()
        for index in range(count)
    ]


def _quickstart_speaker(seed: int, index: int) -> tuple[Voice, float]:
    rng = generator(seed, "quickstart", "speaker", index)
    voice = Voice(
        accent=vocabulary.ENGLISH_ACCENTS[index % len(vocabulary.ENGLISH_ACCENTS)],
        variant=vocabulary.QUICKSTART_VARIANTS[index],
        words_per_minute=int(rng.integers(130, 210)),
        pitch=int(rng.integers(20, 80)),
        pitch_range=int(rng.integers(20, 80)),
    )
    return voice, round(rng.uniform(0.80, 0.86) if index % 2 else rng.uniform(1.16, 1.25), 4)


def _quickstart_clip(seed: int, split: str, index: int, speaker: tuple[Voice, float]) -> PlannedClip:
    rng = generator(seed, "quickstart", split, index)
    voice, tract = speaker
    words = [_pick(rng, vocabulary.DIGITS) for _ in range(int(rng.integers(1, 4)))]
    return PlannedClip(
        id=f"{split}-{index:03d}",
        text=" ".join(words),
        spoken=_punctuate(rng, words),
        voice=voice,
        tract=tract,
        lead_s=round(rng.uniform(0.05, 0.2), 3),
        trail_s=round(rng.uniform(0.05, 0.2), 3),
        peak_db=round(rng.uniform(-12, -3), 2),
        channel="intercom",
        domain="intercom",
        split=split,
    )


# --- drawing -------------------------------------------------------------------------------------


def _pick(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    return choices[int(rng.integers(len(choices)))]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


# --- by name -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedCorpus:
    """A corpus the project names.

    Attributes:
        plan: Number of training clips, seed -> plan.
        clips: Its own number of training clips.
        format: How its audio is kept.
    """

    plan: Callable[[int, int], list[PlannedClip]]
    clips: int
    format: AudioFormat


PLANS: Final[Mapping[str, NamedCorpus]] = {
    "nano_speech": NamedCorpus(plan=nano_speech, clips=18000, format="wav"),
    "quickstart": NamedCorpus(plan=quickstart, clips=200, format="opus"),
}
