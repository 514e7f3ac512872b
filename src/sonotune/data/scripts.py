"""Scripts that are written without spaces between words, and which error rate says more about transcripts.

Where nothing separates words, a whole clause is one word: one wrong letter makes all of it wrong, and the word error
rate stands at 100 % while a model learns. The rate of characters is what such languages are scored by.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, Literal

# Thai, Lao, Tibetan; Myanmar and its extensions; Khmer; Tai Le, New Tai Lue, Tai Tham, Tai Viet; Balinese, Javanese;
# Kana, Bopomofo, Han with its extensions and compatibility forms; Yi; half-width Katakana.
UNSPACED: Final = (
    "\u0e00-\u0fff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaadf\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f"
    "\ua980-\ua9df\u3005-\u3007\u3040-\u312f\u31a0-\u31ff\u3400-\u9fff\ua000-\ua4cf\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff"
)
"""Characters of scripts without spaces between words, as the inside of a class of a regular expression."""

UNSPACED_SHARE: Final = 0.5
"""Transcripts are of such a script where at least this share of their letters is."""
LETTERS_PER_WORD: Final = 15.0
"""Transcripts of another script are written without spaces where their words have at least so many letters each on
average: twice as many as those of languages with long words (Finnish has about 8)."""

_UNSPACED: Final = re.compile(f"[{UNSPACED}]")


def deciding_rate(texts: Iterable[str]) -> tuple[Literal["wer", "cer"], str]:
    """The error rate that decides about transcripts, and why.

    Args:
        texts: References in scoring form; without letters, words decide.
    """
    signs, words = Counter[str](), 0
    for text in texts:
        signs.update(text)
        words += len(text.split())
    found = {sign: count for sign, count in signs.items() if unicodedata.category(sign)[0] in "LM"}
    letters = sum(found.values())
    unspaced = sum(count for sign, count in found.items() if _UNSPACED.match(sign))
    if not letters:
        return "wer", "no reference has a letter"
    share, length = unspaced / letters, letters / words
    if share >= UNSPACED_SHARE:
        return "cer", f"{share:.0%} of the letters of the references are of scripts without spaces between words"
    if length >= LETTERS_PER_WORD:
        return "cer", f"the words of the references have {length:.0f} letters on average, so they have no spaces"
    return "wer", f"the references have spaces between words ({length:.1f} letters a word)"


# First words of names of letters that tell no script.
_NO_SCRIPT: Final = frozenset(
    {"MODIFIER", "FEMININE", "MASCULINE", "SUPERSCRIPT", "SUBSCRIPT", "MICRO", "OHM", "MATHEMATICAL", "DOUBLE"}
)
_ONE_SCRIPT: Final = {"CJK": "HAN", "HIRAGANA": "HAN", "KATAKANA": "HAN", "KATAKANA-HIRAGANA": "HAN"}
"""Japanese writes all of these in one sentence."""


@lru_cache(maxsize=100_000)
def script_of(sign: str) -> str | None:
    """The script of a letter, by the first word of its Unicode name; None of what is no letter or of no script.

    Han and both kana count as one, `HAN`.
    """
    if unicodedata.category(sign)[0] != "L":
        return None
    name = unicodedata.name(unicodedata.normalize("NFKC", sign)[:1], "").partition(" ")[0]
    return None if not name or name in _NO_SCRIPT else _ONE_SCRIPT.get(name, name)


def dominant_script(text: str) -> str | None:
    """The script of most letters of a text (`script_of`); None where no script has more than half of them."""
    scripts = [script for script in map(script_of, text) if script is not None]
    if not scripts:
        return None
    script, count = Counter(scripts).most_common(1)[0]
    return script if 2 * count > len(scripts) else None
