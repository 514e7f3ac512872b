r"""Transcript normalisers, each in two forms: what a model is taught to write, and what scores compare.

The *training* form repairs the encoding and keeps what a reader sees. The *scoring* form also drops case and
punctuation, so that a word error is a wrong word. Both keep these promises, tested over all of Unicode:

- applying a form twice changes nothing;
- two words are never fused: what separated them (a space, a hyphen, a maqaf) becomes a space, never nothing;
- a combining mark (niqqud, a Hindi vowel sign, an accent) stays on its letter and never starts a word;
- the logical order is kept, so right-to-left text needs nothing special.

Whisper's own normaliser does not: it turns marks into spaces and so shatters pointed Hebrew and Hindi ("ש לו ם";
openai/whisper#2849), and a pattern that deletes the maqaf fuses "בית־ספר" into one word.

A profile for a language (`sonotune.data.normalizers`) may break one of these promises where its writing asks for it,
and says so: `cjk` scores without the spaces between Han and Kana, `persian` without the zero-width non-joiner.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

from sonotune import registry
from sonotune.data.normalizers.parts import SHAPING, clusters, fold_case, repair, strip_punctuation
from sonotune.errors import TextError


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalizer:
    """A pair of pure functions on transcripts.

    Attributes:
        name: Its name in the registry.
        training: Transcript -> what the model learns to write.
        scoring: Transcript or prediction -> what error rates compare. Takes raw text or the training form alike.
        folded: Scoring form -> the same words in one spelling, where a language spells a word in several ways. Each
            word becomes one word. Its word error rate stands beside the first and never replaces it. None: no such.
        probes: Texts that tell one version of the rules from another, beside those that all normalisers are tried on:
            the words of a list. They go into the digest of the folded form, or of the scoring form where there is none.
    """

    name: str
    training: Callable[[str], str]
    scoring: Callable[[str], str]
    folded: Callable[[str], str] | None = None
    probes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """`name:` and 8 hexadecimal digits over what the scoring form makes of fixed texts: `basic:1a2b3c4d`.

        It stands beside every score. A changed rule changes it; a new version of the package by itself does not.
        """
        return f"{self.name}:{_digest(self.scoring, () if self.folded else self.probes)}"

    @property
    def folded_digest(self) -> str:
        """The same of the folded form: `hebrew+folded:1a2b3c4d`.

        Raises:
            TextError: There is no such form.
        """
        if self.folded is None:
            raise TextError(f"the normaliser {self.name!r} folds no spellings; ask for its `digest`.")
        return f"{self.name}+folded:{_digest(self.scoring, self.probes, self.folded)}"


def get(name: str) -> Normalizer:
    """Find a normaliser by name.

    Raises:
        ConfigError: No such name; suggests a close one and lists all.
        TextError: A plug-in stands behind the name that is no `Normalizer`.
    """
    found = registry.resolve("normalizers", name)
    if not isinstance(found, Normalizer):
        raise TextError(
            f"the normaliser {name!r} cannot be used: found a {type(found).__name__}; allowed is a "
            "sonotune.data.text.Normalizer. Mend the package that declares it."
        )
    return found


_PROFILES: Final = MappingProxyType(
    {
        "english": ("en", "eng", "english"),
        "hebrew": ("he", "iw", "heb", "hebrew"),
        "arabic": (
            *("ar", "ara", "arb", "arabic", "acm", "acw", "aeb", "afb", "ajp", "apc", "apd"),
            *("arq", "ars", "ary", "arz", "ayl", "ayn"),
        ),
        "persian": ("fa", "fas", "per", "pes", "prs", "persian", "farsi", "dari"),
        "hindi": ("hi", "hin", "hindi"),
        "cjk": (
            *("zh", "zho", "chi", "cmn", "yue", "wuu", "nan", "hak", "chinese", "cantonese", "mandarin"),
            *("ja", "jpn", "japanese"),
        ),
    }
)


def profile_of(language: str | None) -> str:
    """Name of the normaliser that knows a language; `basic` where none does, or for None.

    Args:
        language: A code with or without script and region (`he`, `he-IL`, `zh_Hant`), or an English name.
    """
    primary = (language or "").strip().lower().replace("_", "-").split("-")[0]
    return next((name for name, languages in _PROFILES.items() if primary in languages), "basic")


_PROBED_BLOCKS: Final = (
    *((0x20, 0x250), (0x300, 0x370), (0x590, 0x700), (0x900, 0x980), (0x2000, 0x2070), (0x3000, 0x3100)),
    *((0x4E00, 0x4E08), (0xAC00, 0xAC04), (0xFB1D, 0xFB50), (0xFE70, 0xFF00), (0xFF01, 0xFFA0)),
)
_PROBED_TEXTS: Final = (
    "Um, it’s 50% R&D... uh — well-known “quotes”, 1,000.5 and 5.",
    "שָׁלוֹם, צה\"ל צה״ל צה''ל בית־ספר בית-ספר ג׳ירפה!! <|0.00|> כל׀דבר׃",
    "مُحَمَّدٌ ـــ إلى الآن مؤمن ١٢٣٫٥ می‌خواهم كي",
    "हिन्दी हिंदी क़लम पढ़ाई १२। र्‍य",
    "Ｗｅ 我们 都 是１２３。ｶﾞ ｷﾞ かな カナ",
)


@cache
def _digest(form: Callable[[str], str], probes: tuple[str, ...], fold: Callable[[str], str] | None = None) -> str:
    # Characters of Unicode 3.2, whose properties do not change, so that a newer Python gives the same digest.
    characters = [
        chr(code)
        for first, end in _PROBED_BLOCKS
        for code in range(first, end)
        if unicodedata.ucd_3_2_0.category(chr(code)) != "Cn"
    ]
    around = [f"{side}{one}{side}" for one in characters for side in ("aa", "11", "אא")]
    outputs = "\n".join((fold or str)(form(text)) for text in (*_PROBED_TEXTS, *probes, *around))
    return hashlib.sha256(outputs.encode("utf-8", "surrogatepass")).hexdigest()[:8]


_UNSEEN: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters of Unicode's property Default_Ignorable_Code_Point (fillers of Hangul), and the Braille pattern without dots.
Everything else that is not seen is no letter, digit or symbol by its category."""


def says_something(text: str) -> bool:
    """Whether a transcript has more than spaces, punctuation, marks and characters that are not seen."""
    return any(unicodedata.category(character)[0] in "LNS" and character not in _UNSEEN for character in text)


# --- identity ------------------------------------------------------------------------------------


def _unchanged(text: str) -> str:
    return text


IDENTITY = Normalizer(name="identity", training=_unchanged, scoring=_unchanged)
"""The text as it stands, for sources that are clean and scores that count every comma."""


# --- basic ---------------------------------------------------------------------------------------


def _basic_training(text: str) -> str:
    """NFC; bidi controls, zero-width and control characters dropped; runs of space made one."""
    return repair(text)


def basic_scoring(text: str) -> str:
    """The training form without case and punctuation; apostrophes, gershayim and decimal marks inside words stay."""
    return strip_punctuation(fold_case(SHAPING.sub("", repair(text))))


BASIC = Normalizer(name="basic", training=_basic_training, scoring=basic_scoring)
"""For any language in any script."""


# --- english -------------------------------------------------------------------------------------

_FILLERS = frozenset({"uh", "um", "uhm", "hm", "hmm", "mm", "mhm"})
_STRAIGHT = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "…": "..."})
_SPOKEN = {"&": " and ", "%": " percent "}


def _english_training(text: str) -> str:
    """As basic, with straight quotes and apostrophes."""
    return repair(text).translate(_STRAIGHT)


def _english_scoring(text: str) -> str:
    """As basic, with `&` and `%` as words and without hesitations."""
    spoken = "".join(_SPOKEN.get(cluster, cluster) for cluster in clusters(repair(text)))
    return " ".join(word for word in basic_scoring(spoken).split() if word not in _FILLERS)


ENGLISH = Normalizer(name="english", training=_english_training, scoring=_english_scoring)
"""For English: what speakers hesitate and how a typist writes quotes does not count."""
