"""Hebrew: what is pointed, quoted or hyphenated in several ways is one text.

The training form writes

- no niqqud and no cantillation (U+0591-05BD, 05BF, 05C1-05C2, 05C4-05C5, 05C7), no varika and no grapheme joiner;
- geresh and gershayim in ASCII, `'` and `"`, whether typed in Hebrew, ASCII or typographic signs or as two single ones;
- the maqaf as a hyphen, a paseq and a reversed nun as a space, a sof pasuq as a full stop: none of them is a letter's
  mark, and a pattern from U+0591 to U+05C7 that deletes them glues words;
- no time stamps of Whisper (`<|0.00|>`), and one sign for a run of the same sign (`!!`, `...`), except between digits;
- wide letters, digraphs of Yiddish keyboards and the ligature of alef and lamed as plain letters.

Final letters stay. The scoring form is that of `basic` on it: `צה"ל` is one word in all its spellings, and `בית־ספר`,
`בית-ספר` and `בית ספר` are the same two. Numbers stay in digits; `sonotune.data.numbers` writes them as words.
It is for Hebrew alone: Yiddish needs its points.

The folded form also has no geresh and no gershayim, and one spelling for words that are written with and without a
vav or yod (ktiv male, ktiv haser) or with one and two of them. Which letters may be left out cannot be seen: without
the vav and yod inside words, "ספר" (book), "סיפור" (story) and "סופר" (author) were one, as 52 % of running words
would be one with another. So it is a list of words, with their prefixes, and three endings; see `_FULL` and `_ENDING`.
A word that is not listed is left as it is. Spellings are those of the Academy of the Hebrew Language (rules of 2017).
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from sonotune.data.normalizers.parts import is_mark, repair
from sonotune.data.text import Normalizer, basic_scoring

_POINTS: Final = re.compile("[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\ufb1e\u034f]+")
_TIMESTAMP: Final = re.compile(r"<\|\d+(?:[.:]\d+)*\|>")
_RUN: Final = re.compile(r"([.,!?;:])\1+")
_SINGLE: Final = "'\u05f3\u2018\u2019\u201b\uff07"
_DOUBLE: Final = '"\u05f4\u201c\u201d\u201e\u201f\uff02'
_SIGNS: Final = str.maketrans(
    {
        **dict.fromkeys(_SINGLE, "'"),
        **dict.fromkeys(_DOUBLE, '"'),
        "\u05be": "-",
        "\u05c0": " ",
        "\u05c6": " ",
        "\u05c3": ".",
        "…": "...",
        "װ": "וו",
        "ױ": "וי",
        "ײ": "יי",
        **{chr(code): unicodedata.normalize("NFKC", chr(code)) for code in (*range(0xFB20, 0xFB29), 0xFB4F)},
    }
)
_LETTER: Final = "א-ת"
# Signs that stand for a geresh only behind a letter: backtick, acute accent, prime; and their doubles.
_SINGLE_BEHIND: Final = re.compile(f"(?<=[{_LETTER}])[`´′]")
_DOUBLE_BEHIND: Final = re.compile(f"(?<=[{_LETTER}])[″˝]")
_TWO_SINGLE: Final = re.compile(f"(?<=[{_LETTER}])''(?=[{_LETTER}])")


def _without_timestamps(text: str) -> str:
    """Each becomes a space, together with marks that were put on it."""
    if "<|" not in text:
        return text
    kept, at = [], 0
    for match in _TIMESTAMP.finditer(text):
        kept.append(text[at : match.start()])
        at = match.end()
        while at < len(text) and is_mark(text[at]):
            at += 1
    return " ".join([*kept, text[at:]])


def _one_of_a_run(match: re.Match[str]) -> str:
    before, after = match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 1]
    return match[0] if before.isdecimal() and after.isdecimal() else match[1]


def _training(text: str) -> str:
    text = repair(_POINTS.sub("", repair(text)))
    text = _without_timestamps(text).translate(_SIGNS)
    text = _SINGLE_BEHIND.sub("'", _DOUBLE_BEHIND.sub('"', text))
    return repair(_RUN.sub(_one_of_a_run, _TWO_SINGLE.sub('"', text)))


def _scoring(text: str) -> str:
    return basic_scoring(_training(text))


# --- spelling variants ---------------------------------------------------------------------------

_OTHER_SPELLINGS: Final = (
    # full spelling: the others, which are no other common word
    "אישה: אשה, אימא: אמא, תוכנית: תכנית, תוכניות: תכניות, תוכניתי: תכניתי, שולחן: שלחן, שולחנות: שלחנות, "
    "צוהריים: צהריים צהרים, זיכרון: זכרון, זיכרונות: זכרונות, ביטחון: בטחון, ביטחוני: בטחוני, כישרון: כשרון, "
    "כישרונות: כשרונות, כישרוני: כשרוני, חיסרון: חסרון, חיסרונות: חסרונות, ניסיון: נסיון, ניסיונות: נסיונות, "
    "עיתון: עתון, עיתונים: עתונים, עיתונות: עתונות, עיתונאי: עתונאי, עיתונאים: עתונאים, גיליון: גליון, "
    "גיליונות: גליונות, דיכאון: דכאון, שיגעון: שגעון, היגיון: הגיון, ביזיון: בזיון, פיקדון: פקדון, ריאיון: ראיון, "
    "מאוד: מאד, אלוהים: אלהים, שלושה: שלשה, שלושים: שלשים, שישה: ששה, שישים: ששים, חמישה: חמשה, חמישים: חמשים, "
    "שתיים: שתים, מאתיים: מאתים, יישוב: ישוב, יישובים: ישובים, מייד: מיד, ייתכן: יתכן, אומנם: אמנם, כוחות: כחות, "
    "הייתה: היתה היייתה, הייתי: היתי, הכול: הכל, בוודאי: בודאי, הוועדה: הועדה, לוועדה: לועדה, הוועד: הועד, "
    "עניין: ענין, עניינים: ענינים, מעניין: מענין, מעניינת: מענינת, מעניינים: מענינים, מעוניין: מעונין, "
    "מעוניינת: מעונינת, מעוניינים: מעונינים, בניין: בנין, בניינים: בנינים, מצוין: מצויין, מצוינת: מצויינת, "
    "מצוינים: מצויינים, מסוים: מסויים, מסוימת: מסויימת, מסוימים: מסויימים, מסוימות: מסויימות, מדויק: מדוייק, "
    "מדויקת: מדוייקת, מדויקים: מדוייקים, דווקא: דוקא, אוויר: אויר, אווירי: אוירי, אווירה: אוירה, "
    "טלוויזיה: טלויזיה, עכשיו: עכשו, לוויין: לווין לוין, לוויינים: לווינים, קריית: קרית, כיוון: כיון, "
    "כיוונים: כיונים, צוואר: צואר, קווים: קוים, שווה: שוה, נווה: נוה, הווה: הוה, בינתיים: בינתים בנתיים, "
    "עיניים: עינים, ידיים: ידים, אוזניים: אזניים אזנים, אליי: אלי, עליי: עלי, שיעור: שעור, "
    "תקווה: תקוה, מצווה: מצוה, ביקור: בקור, תיקון: תקון, סיכוי: סכוי, ירושלים: ירושליים"
)
_FULL: Final = {
    other: full
    for entry in _OTHER_SPELLINGS.split(", ")
    for full, others in [entry.split(": ")]
    for other in others.split()
}
"""Spelling -> the fuller one of the same word."""
_PREFIXES: Final = "משהוכלב"
_MAX_PREFIXES: Final = 4  # וכשה
_MIN_BEHIND_PREFIX: Final = 4
"""Letters of a listed word that is looked for behind prefixes; "שמיד" is no "מיד"."""
_ENDING: Final = re.compile("(?<=...)(?:י(?=יה$)|י(?=יות$)|ו(?=וה$))")
"""One of two letters before the endings of feminine nouns: עירייה and עיריה, ספרייות and ספריות, תקווה and תקוה.
-יית and -וות are left: טכנולוגית (technological) and טכנולוגיית (technology of), המהות and המהוות are two words."""
_KEPT: Final = ("עלייה", "ראייה", "פנייה")
"""Their shorter spelling is another common word, perhaps behind a prefix: עליה (on her), ראיה (evidence), לפניה
(before her)."""
_NOT_SPELLED: Final = str.maketrans(dict.fromkeys("״'"))
_HEBREW_WORD: Final = re.compile(f"[{_LETTER}]+(?:['״][{_LETTER}]+)*")


def _fold_word(word: str) -> str:
    if not _HEBREW_WORD.fullmatch(word):
        return word
    word = word.translate(_NOT_SPELLED)
    for prefixes in range(min(_MAX_PREFIXES, len(word)) + 1):
        stem = word[prefixes:]
        if prefixes and (word[prefixes - 1] not in _PREFIXES or len(stem) < _MIN_BEHIND_PREFIX):
            break
        if stem in _KEPT:
            return word
        if stem in _FULL:
            return _ENDING.sub("", word[:prefixes] + _FULL[stem])
    return _ENDING.sub("", word)


def _folded(text: str) -> str:
    return " ".join(_fold_word(word) for word in text.split())


def _folded_scoring(text: str) -> str:
    return _folded(_scoring(text))


_PROBES: Final = (*_FULL, *_KEPT, "עירייה ספרייות תקווה")

HEBREW = Normalizer(name="hebrew", training=_training, scoring=_scoring, folded=_folded, probes=_PROBES)
"""For Hebrew with or without points. Scores give a second word error rate beside the first, of the folded form."""

HEBREW_FOLDED = Normalizer(name="hebrew_folded", training=_training, scoring=_folded_scoring, probes=_PROBES)
"""The folded form as the one that is scored."""
