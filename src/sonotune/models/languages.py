"""Languages as people write them -> the code or the English name that a model is told.

`he`, `he-IL`, `he_IL`, `iw`, `Hebrew` and `hebrew` are one language. A tag that no table knows is never made to look
like a name: whoever asks is told that there is none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

# Codes of one language: deprecated ones, those of the macro-language, and what the tables of `transformers` write.
_SAME: Final = (
    {"he", "iw"},
    {"id", "in"},
    {"yi", "ji"},
    {"jv", "jw"},
    {"ro", "mo"},
    {"no", "nb"},
    {"fil", "tl"},
    {"zh", "cmn"},
)


def find_code(language: str, known: Collection[str]) -> str | None:
    """The code among those that are known which means this language; None where none does.

    Args:
        language: A code with or without script and region (`zh-Hans-CN`, `he_IL`), a deprecated code (`iw`), or an
            English name in any case.
        known: Codes in lower case.
    """
    plain = language.strip().lower()
    primary, *further = re.split(r"[-_.@]", plain)
    # In `zh-yue` the second subtag is a language of its own; scripts have four letters, regions two or three digits.
    extended = [tag for tag in further[:1] if re.fullmatch(r"[a-z]{3}", tag)]
    for tag in (*extended, primary, _codes_of_names().get(plain)):
        if tag is not None and (found := _among(tag, known)) is not None:
            return found
    return None


def language_name(language: str, *, trained: Mapping[str, str] | None = None) -> str | None:
    """The English name of a language; None where no table has one.

    Args:
        language: As in `find_code`.
        trained: Code -> name that a model was trained with, which goes before Whisper's list.
    """
    for names in (trained or {}, _whisper_names()):
        if (code := find_code(language, names)) is not None:
            return names[code]
    plain = language.strip().lower()
    return next((name for name in (trained or {}).values() if name.lower() == plain), None)


def nothing_to_note(language: str) -> str | None:
    """The answer of `SpeechFamily.note_on_language` where a family has nothing to say of any language."""
    return None


def _among(tag: str, known: Collection[str]) -> str | None:
    if tag in known:
        return tag
    same = next((codes for codes in _SAME if tag in codes), set[str]())
    return next((code for code in sorted(same) if code in known), None)


def _whisper_names() -> dict[str, str]:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES  # noqa: PLC0415

    return {code: name.title() for code, name in LANGUAGES.items()}


def _codes_of_names() -> dict[str, str]:
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE  # noqa: PLC0415

    return {**TO_LANGUAGE_CODE, "filipino": "fil"}
