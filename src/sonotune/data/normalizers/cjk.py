"""Chinese and Japanese: one width of each character, and scores of characters that no space is part of.

The training form writes full-width letters and digits as ASCII, half-width Katakana as the full one, an ideographic
space as a space, and radicals that stand for a character as that character. Punctuation stays as it is.

The scoring form drops punctuation as `basic` does, and the spaces beside Han and Kana, between two of them or
between one and something else: they are typography ("我用 Python 写"), and one that only one of two texts has would
count as a wrong character. This is the one profile that fuses what spaces separate, so only its character error rate
says something, and that is the one that decides (`evaluation.primary=auto`). Spaces between words in Latin letters
stay. Simplified and traditional characters, variants of a character, and Kanji and Kana of a word stay apart.

Korean has spaces between words and takes `basic`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from sonotune.data.normalizers.parts import repair
from sonotune.data.text import Normalizer, basic_scoring

_WIDTHS: Final = str.maketrans(
    {
        chr(code): unicodedata.normalize("NFKC", chr(code))
        for first, last in ((0xFF10, 0xFF19), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A), (0x2E9F, 0x2E9F), (0x2EF3, 0x2EF3))
        for code in range(first, last + 1)
    }
    | {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in range(0x2F00, 0x2FD6)}
    | {"\uff9e": "\u309b", "\uff9f": "\u309c"}  # voicing marks that are on no letter
)
_HALF_KATAKANA: Final = re.compile("[\uff66-\uff9d][\uff9e\uff9f]?")
# Iteration marks and zero, Kana without the middle dot, Bopomofo, Han with its extensions.
_UNSPACED: Final = (
    "\u3005-\u3007\u3031-\u3035\u303b\u303c\u3041-\u309f\u30a1-\u30fa\u30fc-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_SPACE_BESIDE: Final = re.compile(f"(?<=[{_UNSPACED}]) | (?=[{_UNSPACED}])")


def _training(text: str) -> str:
    text = _HALF_KATAKANA.sub(lambda found: unicodedata.normalize("NFKC", found[0]), repair(text))
    return repair(text.translate(_WIDTHS))


def _scoring(text: str) -> str:
    return _SPACE_BESIDE.sub("", basic_scoring(_training(text)))


CJK = Normalizer(name="cjk", training=_training, scoring=_scoring)
"""For Chinese and Japanese."""
