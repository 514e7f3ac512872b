"""Hindi: one encoding of the nukta, joiners only where they are seen, and one sign for the danda.

The training form writes a letter with its nukta in one way (NFC, which takes क़ apart; a nukta that was typed behind
the vowel sign comes before it), no ZWJ and no ZWNJ behind a virama, where they choose between two shapes of the same
letters, and the danda for a vertical bar behind Devanagari.

The scoring form is that of `basic`, which drops the danda with the punctuation, with digits in ASCII. It keeps the
nukta and every vowel sign.

Its folded form, whose score stands beside the first, writes what print spells in two ways in one:

- a nasal letter with a virama before a letter of its own row as an anusvara: हिन्दी and हिंदी, सम्बन्ध and संबंध;
- a chandrabindu as an anusvara: हँस and हंस, which print does not keep apart above a vowel sign;
- no nukta below क ख ग ज फ, which loan words have or not: क़लम and कलम. ड़ and ढ़ are letters of their own and stay.

Source: Indic NLP Library (Kunchukuttan 2020), `nasals_mode="to_anusvaara_strict"`; Central Hindi Directorate, rules of
spelling. Not for other languages in Devanagari: Marathi and Nepali tell ZWJ forms apart.
"""

from __future__ import annotations

import re
from typing import Final

from sonotune.data.normalizers.parts import repair
from sonotune.data.text import Normalizer, basic_scoring

_LATE_NUKTA: Final = re.compile("([\u0915-\u0939])([\u093e-\u094c\u0900-\u0903]+)\u093c")
_JOINERS: Final = re.compile("(?<=\u094d)[\u200c\u200d]+")
_BAR: Final = re.compile(r"(?<=[\u0900-\u097f])( ?)\|{1,2}")
_DIGITS: Final = str.maketrans({chr(0x966 + digit): str(digit) for digit in range(10)})
_ROWS: Final = (("ङ", "क-घ"), ("ञ", "च-झ"), ("ण", "ट-ढ"), ("न", "त-ध"), ("म", "प-भ"))
_NASAL: Final = re.compile("|".join(f"{nasal}\u094d(?=[{row}])" for nasal, row in _ROWS))
_LOAN_NUKTA: Final = re.compile("(?<=[कखगजफ])\u093c")
_ANUSVARA: Final = "\u0902"


def _training(text: str) -> str:
    text = _JOINERS.sub("", repair(text))
    return repair(_BAR.sub(_danda, _LATE_NUKTA.sub("\\1\u093c\\2", text)))


def _danda(match: re.Match[str]) -> str:
    return match[1] + ("॥" if match[0].endswith("||") else "।")


def _scoring(text: str) -> str:
    return basic_scoring(_training(text).translate(_DIGITS))


def _folded(text: str) -> str:
    return _LOAN_NUKTA.sub("", _NASAL.sub(_ANUSVARA, text.replace("\u0901", _ANUSVARA)))


HINDI = Normalizer(name="hindi", training=_training, scoring=_scoring, folded=_folded)
"""For Hindi."""
