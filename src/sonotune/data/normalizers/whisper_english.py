"""English in the scoring form of the Whisper paper, in which most published English error rates are given.

Numbers become digits, contractions are written out, British spellings become American, hesitations and what stands in
brackets are dropped (`whisper-normalizer`, the rules of openai/whisper). It breaks promises of `sonotune.data.text`:
words are split and fused ("twenty one" is "21"), and a combining mark that no letter has a composed form with is
dropped. For English alone; other scripts lose their marks. The training form is that of `english`.

Source: Radford et al. 2022, appendix C.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

from sonotune.data.text import ENGLISH, Normalizer
from sonotune.errors import MissingExtraError


@cache
def _rules() -> Callable[[str], str]:
    try:
        from whisper_normalizer.english import EnglishTextNormalizer  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise MissingExtraError(
            "the normaliser whisper_english needs the package whisper-normalizer, which is not installed. Install it "
            "with pip install 'sonotune[open-asr]', or set data.text_scoring=english."
        ) from error
    found: Callable[[str], str] = EnglishTextNormalizer()
    return found


def _scoring(text: str) -> str:
    return " ".join(_rules()(ENGLISH.training(text)).split())


WHISPER_ENGLISH: Final = Normalizer(name="whisper_english", training=ENGLISH.training, scoring=_scoring)
"""For English scores that are compared with published ones."""
