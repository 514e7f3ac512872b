"""Words for synthetic speech: what is written and, where it differs, what the synthesiser is told to say.

Written text is what a transcript holds: lower case, digits as words, Hebrew without niqqud. Spoken text is what
espeak-ng is given: Hebrew as phonemes, because its rules guess vowels; digits of a foreign accent spelt by the rules
of that language, because its own English dictionary would switch to an English voice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DIGITS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_TEENS: Final = (
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
_TENS: Final = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

# The 25 words of Speech Commands v2 (Warden 2018, arXiv:1804.03209) that are not digits, then everyday ones.
COMMANDS: Final = (
    "yes",
    "no",
    "up",
    "down",
    "left",
    "right",
    "on",
    "off",
    "stop",
    "go",
    "forward",
    "backward",
    "follow",
    "learn",
    "visual",
    "bed",
    "bird",
    "cat",
    "dog",
    "happy",
    "house",
    "marvin",
    "sheila",
    "tree",
    "wow",
    "start",
    "open",
    "close",
    "play",
    "pause",
    "next",
    "previous",
    "louder",
    "quieter",
    "volume",
    "light",
    "lamp",
    "door",
    "window",
    "heat",
    "cool",
    "fan",
    "music",
    "radio",
    "call",
    "cancel",
    "repeat",
    "help",
    "home",
    "back",
    "hello",
    "goodbye",
    "thanks",
    "please",
    "wait",
    "turn",
    "set",
    "timer",
    "alarm",
    "morning",
    "evening",
    "night",
    "today",
    "tomorrow",
    "red",
    "green",
    "blue",
    "yellow",
    "white",
    "black",
    "big",
    "small",
    "fast",
    "slow",
    "hot",
    "cold",
    "water",
    "coffee",
    "tea",
    "food",
    "kitchen",
    "garden",
    "office",
    "car",
    "bus",
    "train",
    "school",
    "book",
    "phone",
    "message",
    "write",
    "send",
    "delete",
    "save",
    "search",
    "minute",
    "hour",
)

# Feminine forms, as counting and telephone numbers use. Written -> espeak-ng phonemes of its Hebrew voice.
HEBREW_DIGITS: Final[Mapping[str, str]] = {
    "אפס": "'efes",
    "אחת": "aX'at",
    "שתיים": "St'ajim",
    "שלוש": "Sal'oS",
    "ארבע": "'arba",
    "חמש": "Xam'eS",
    "שש": "S'eS",
    "שבע": "S'eva",
    "שמונה": "Sm'one",
    "תשע": "t'eSa",
}

HEBREW_WORDS: Final[Mapping[str, str]] = {
    "שלום": "Sal'om",
    "כן": "k'en",
    "לא": "l'o",
    "תודה": "tod'a",
    "בבקשה": "bevakaS'a",
    "בוקר": "b'oker",
    "טוב": "t'ov",
    "לילה": "l'ajla",
    "ערב": "'erev",
    "מים": "m'ajim",
    "בית": "b'ajit",
    "ילד": "j'eled",
    "ילדה": "jald'a",
    "אבא": "'aba",
    "אמא": "'ima",
    "כלב": "k'elev",
    "חתול": "Xat'ul",
    "ספר": "s'efer",
    "דלת": "d'elet",
    "חלון": "Xal'on",
    "אור": "'or",
    "ימין": "jam'in",
    "שמאל": "sm'ol",
    "למעלה": "lem'ala",
    "למטה": "lem'ata",
    "קדימה": "kad'ima",
    "אחורה": "aX'ora",
    "עצור": "ats'or",
    "התחל": "hatX'el",
    "סגור": "sag'ur",
    "היום": "haj'om",
    "מחר": "maX'ar",
    "עכשיו": "aXS'av",
    "ירושלים": "jeruSal'ajim",
    "שמש": "S'emeS",
    "לחם": "l'eXem",
}

# English digits as a speaker of the language says them, spelt so that its espeak-ng voice reads them aloud that way.
FOREIGN_DIGITS: Final[Mapping[str, tuple[str, ...]]] = {
    "de": ("siero", "wann", "tu", "sri", "fohr", "feiw", "sicks", "säwen", "ejt", "nein"),
    "fr": ("ziro", "ouane", "tou", "sri", "fore", "faïve", "sicse", "sévène", "éïte", "naïne"),
    "es": ("siro", "uan", "tu", "tri", "for", "faif", "sics", "seven", "eit", "nain"),
    "it": ("ziro", "uan", "tu", "tri", "for", "faiv", "sics", "seven", "eit", "nain"),
    "nl": ("ziero", "wan", "toe", "srie", "for", "fajf", "sikks", "sevven", "eet", "najn"),
    "pl": ("zirou", "łan", "tu", "fri", "for", "fajw", "syks", "sewen", "ejt", "najn"),
    "hi": ("ज़ीरो", "वन", "टू", "थ्री", "फ़ोर", "फ़ाइव", "सिक्स", "सेवन", "एट", "नाइन"),
    "ru": ("зироу", "уан", "ту", "сри", "фор", "файв", "сикс", "сэвэн", "эйт", "найн"),
    "pt-br": ("zirou", "uãn", "tu", "tri", "fór", "faiv", "sics", "séven", "eit", "nain"),
    "fi": ("siirou", "uan", "tuu", "srii", "foor", "faiv", "siks", "seven", "eit", "nain"),
    "tr": ("ziro", "van", "tu", "tri", "for", "fayv", "siks", "sevın", "eyt", "nayn"),
    "sv": ("siro", "wann", "to", "sri", "får", "fajv", "sicks", "sevven", "ejt", "najn"),
}

ENGLISH_ACCENTS: Final = (
    "en-us",
    "en",
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-029",
    "en-us-nyc",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
)

# Variants of espeak-ng 1.52 that sound like a person. Robots, whispers and creatures are left out; `max`, `Tweaky`
# and the like are pitch effects that random pitch and vocal tract already give.
_COMMON_VARIANTS: Final = (
    "m1",
    "m2",
    "m3",
    "m4",
    "m6",
    "m8",
    "f1",
    "f3",
    "f5",
    "klatt",
    "klatt2",
    "klatt3",
    "klatt5",
    "Alex",
    "Alicia",
    "Andy",
    "Annie",
    "AnxiousAndy",
    "Denis",
    "Gene",
    "Gene2",
    "Henrique",
    "Hugo",
    "Jacky",
    "Lee",
    "Marco",
    "Mario",
    "Mike",
    "Nguyen",
    "Reed",
    "RicishayMax",
    "RicishayMax2",
    "RicishayMax3",
    "Storm",
    "adam",
    "anika",
    "announcer",
    "antonio",
    "belinda",
    "benjamin",
    "boris",
    "caleb",
    "ed",
    "edward",
    "edward2",
    "grandma",
    "grandpa",
    "ian",
    "iven",
    "iven2",
    "iven3",
    "iven4",
    "kaukovalta",
    "marcelo",
    "mike2",
    "michel",
    "norbert",
    "pablo",
    "paul",
    "rob",
    "robert",
    "shelby",
    "steph",
    "steph2",
    "steph3",
)

# Voices that training never hears, so that a development score is about new voices.
DEVELOPMENT_VARIANTS: Final = ("m5", "f2", "klatt4", "Diogo", "aunty", "miguel", "travis", "david")
# Voices of the packaged quickstart corpus, heard by no other corpus.
QUICKSTART_VARIANTS: Final = (
    "Michael",
    "f4",
    "m7",
    "Andrea",
    "john",
    "pedro",
    "gustave",
    "linda",
    "quincy",
    "sandro",
    "victor",
    "zac",
)
TRAINING_VARIANTS: Final = ("", *_COMMON_VARIANTS)


def number_words(number: int, *, say_and: bool) -> str:
    """Write a number as English words.

    Args:
        number: From 0 to 9999.
        say_and: Whether "and" stands after the hundreds, as in Britain.

    Returns:
        Lower-case words without hyphens, such as `two thousand forty five`.

    Raises:
        ValueError: The number is outside the range.
    """
    if not 0 <= number <= 9999:
        raise ValueError(f"Numbers to be spoken lie in 0..9999, found {number}. Split it into digits.")
    thousands, rest = divmod(number, 1000)
    hundreds, rest = divmod(rest, 100)
    words: list[str] = []
    if thousands:
        words += [DIGITS[thousands], "thousand"]
    if hundreds:
        words += [DIGITS[hundreds], "hundred"]
    if rest and words and say_and:
        words.append("and")
    if rest >= 20:
        words.append(_TENS[rest // 10 - 2])
        rest %= 10
    if rest >= 10:
        words.append(_TEENS[rest - 10])
    elif rest or not words:
        words.append(DIGITS[rest])
    return " ".join(words)
