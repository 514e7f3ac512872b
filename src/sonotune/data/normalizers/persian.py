"""Persian: one yeh, one kaf, one set of digits, and a zero-width non-joiner (ZWNJ) only inside words.

The training form writes the Persian ی and ک for the Arabic ي, ى and ك, a ه with a hamza for ۀ, the digits ۰ to ۹ for
the Arabic-Indic ones, and no vowel signs and no tatweel. It keeps the ZWNJ, which is a part of the spelling
("می‌خواهم"), once, and where a letter stands on either side of it.

The scoring form has no ZWNJ, so "می‌خواهم" and "میخواهم" are one word and "می خواهم" is two: the non-joiner is not seen
by itself, a space is. It also writes أ, إ and ٱ as ا (آ is a letter of its own and stays), ة as ه, a ه without the
hamza of the ezafe, which is mostly left out, and digits and the marks between them in ASCII.
"""

from __future__ import annotations

import re
from typing import Final

from sonotune.data.normalizers.arabic import DIGITS, plain_letters
from sonotune.data.normalizers.parts import repair
from sonotune.data.text import Normalizer, basic_scoring

_HAMZA: Final = "\u0654"
_TYPED: Final = str.maketrans(
    {
        "ك": "ک",
        "ي": "ی",
        "ى": "ی",
        "ۀ": f"ه{_HAMZA}",
        **{chr(0x660 + digit): chr(0x6F0 + digit) for digit in range(10)},
    }
)
_SCORED: Final = str.maketrans({**dict.fromkeys("أإٱ", "ا"), "ة": "ه", **DIGITS})
_NON_JOINERS: Final = re.compile("\u200c+")


def _training(text: str) -> str:
    text = plain_letters(text).translate(_TYPED)
    return repair(_NON_JOINERS.sub(_between_letters, text))


def _between_letters(match: re.Match[str]) -> str:
    before, after = match.string[: match.start()][-1:], match.string[match.end() : match.end() + 1]
    return "\u200c" if (before.isalpha() or before == _HAMZA) and after.isalpha() else ""


def _scoring(text: str) -> str:
    return basic_scoring(_training(text).translate(_SCORED).replace(f"ه{_HAMZA}", "ه"))


PERSIAN = Normalizer(name="persian", training=_training, scoring=_scoring)
"""For Persian and Dari."""
