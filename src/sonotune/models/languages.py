"""Languages as people write them -> the code or the English name that a model is told.

`he`, `he-IL`, `he_IL`, `iw`, `Hebrew` and `hebrew` are one language. A tag that no table knows is never made to look
like a name: whoever asks is told that there is none.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Final

_CLOSE: Final = 0.7
_MISSPELT: Final = 0.81  # `arabik` and Arabic are 0.83; Guarani and Gujarati are 0.8, and two languages
_SHORTEST_NAME: Final = 4
_MOST_CODES: Final = 8
_FIRST_CODES: Final = 5

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
    for names in (trained or {}, whisper_names()):
        if (code := find_code(language, names)) is not None:
            return names[code]
    plain = language.strip().lower()
    return next((name for name in (trained or {}).values() if name.lower() == plain), None)


def nearest(language: str, names: Mapping[str, str]) -> str:
    """The languages that were probably meant, as the end of a message: `; did you mean he (Hebrew)?`; else nothing.

    Args:
        language: A code or name that is none of those.
        names: Code -> English name of those there are.
    """
    plain = language.strip().lower()
    written = {name.lower(): code for code, name in names.items()} | {code.lower(): code for code in names}
    if len(plain) < _SHORTEST_NAME:  # a code of three letters begins as the name does
        close = [name for name in written if len(plain) > 2 and name.startswith(plain)]
    else:
        close = difflib.get_close_matches(plain, written, n=3, cutoff=_CLOSE)
    found = dict.fromkeys(written[match] for match in close)
    return f"; did you mean {' or '.join(f'{code} ({names[code]})' for code in found)}?" if found else ""


def some_codes(codes: Collection[str]) -> str:
    """The codes for the end of a message, `en, he`, or the first of many: `af, am, ar, as, az and 94 more`."""
    ordered = sorted(codes)
    few = len(ordered) <= _MOST_CODES
    return ", ".join(ordered) if few else f"{', '.join(ordered[:_FIRST_CODES])} and {len(ordered) - _FIRST_CODES} more"


def misspelt(language: str) -> str:
    """What `nearest` says of a name that no table knows and that differs from a known one in a letter or two.

    A model that is told any name would take it for a language of its own. Codes say too little to tell.
    """
    plain = language.strip().lower()
    if len(plain) < _SHORTEST_NAME or language_name(plain) is not None:
        return ""
    names = {code: name for code, name in whisper_names().items() if _alike(plain, name.lower()) >= _MISSPELT}
    return nearest(plain, names)


def named(codes: Collection[str]) -> dict[str, str]:
    """Code -> English name, for those that have one; else the code itself."""
    return {code: language_name(code) or code for code in codes}


def _alike(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def nothing_to_note(language: str) -> str | None:
    """The answer of `SpeechFamily.note_on_language` where a family has nothing to say of any language."""
    return None


def _among(tag: str, known: Collection[str]) -> str | None:
    if tag in known:
        return tag
    same = next((codes for codes in _SAME if tag in codes), set[str]())
    return next((code for code in sorted(same) if code in known), None)


def whisper_names() -> dict[str, str]:
    """Code -> English name of Whisper's list."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES  # noqa: PLC0415

    return {code: name.title() for code, name in LANGUAGES.items()}


def _codes_of_names() -> dict[str, str]:
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE  # noqa: PLC0415

    return {**TO_LANGUAGE_CODE, "filipino": "fil"}
