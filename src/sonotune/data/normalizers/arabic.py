"""Arabic: what is vowelled or typed in several ways is one text.

The training form has no harakat, no Koranic signs, no dagger alef and no tatweel; presentation forms of letters are
plain letters, and the Persian kaf and yeh are the Arabic ones. Digits, punctuation, hamzas and the ta marbuta stay as
they are. Who trains a model that writes vowel signs takes `basic`.

The scoring form also writes

- a bare alef for those with a hamza, a madda or a wasla (أ إ آ ٱ), and the bare carrier of a hamza: ؤ as و, ئ as ي;
- an alef maqsura (ى) as a yeh, which Egyptian and much informal writing does not keep apart;
- the digits 0 to 9 and the marks between them in ASCII, from the Arabic-Indic and the Persian ones.

A hamza by itself (ء) and the ta marbuta (ة) stay, which are sounds of their own. The folded form, whose score stands
beside the first, writes ة as ه and leaves ء out at the end of a word with other letters.

Source: the choice of the Open Universal Arabic ASR Leaderboard (Wang et al. 2024), which drops vowel signs, hamzas of
alef, waw and yeh and Arabic digits; it leaves ى alone.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from sonotune.data.normalizers.parts import repair
from sonotune.data.text import Normalizer, basic_scoring

HARAKAT: Final = re.compile(
    "[\u0610-\u061a\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed]+"
)
"""Vowel signs, shadda, sukun, dagger alef and Koranic signs; not the madda and the hamzas that sit on a letter."""
DIGITS: Final = {
    **{chr(0x660 + digit): str(digit) for digit in range(10)},
    **{chr(0x6F0 + digit): str(digit) for digit in range(10)},
    "٫": ".",
    "٬": ",",
}
"""Arabic-Indic and Persian digits and marks between them -> ASCII."""
_TATWEEL: Final = "\u0640"
_PRESENTED: Final = re.compile("[\ufb50-\ufbb1\ufbd3-\ufd3d\ufd50-\ufd8f\ufd92-\ufdc7\ufdf2\ufe70-\ufefc]")
_TYPED: Final = str.maketrans({"ک": "ك", "ی": "ي"})
_SCORED: Final = str.maketrans({**dict.fromkeys("أإآٱ", "ا"), "ؤ": "و", "ئ": "ي", "ى": "ي", **DIGITS})
_LAST_HAMZA: Final = re.compile(r"(?<=\w)ء(?= |$)")


def plain_letters(text: str) -> str:
    """No vowel signs, no tatweel, and letters instead of their presentation forms.

    The forms U+FDF0-FDFB that stand for a phrase stay, but for the name of God; so does what presents a space.
    """
    text = repair(text).replace(_TATWEEL, "")
    text = _PRESENTED.sub(_letters, text)
    return repair(HARAKAT.sub("", unicodedata.normalize("NFC", text)))


def _letters(match: re.Match[str]) -> str:
    # Forms of a vowel sign by itself are a space or a tatweel with the sign: neither is a letter.
    return unicodedata.normalize("NFKC", match[0]).replace(" ", "").replace(_TATWEEL, "")


def _training(text: str) -> str:
    return plain_letters(text).translate(_TYPED)


def _scoring(text: str) -> str:
    return basic_scoring(_training(text).translate(_SCORED))


def _folded(text: str) -> str:
    return _LAST_HAMZA.sub("", text).replace("ة", "ه")


ARABIC = Normalizer(name="arabic", training=_training, scoring=_scoring, folded=_folded)
"""For Arabic, of any country, without vowel signs."""
