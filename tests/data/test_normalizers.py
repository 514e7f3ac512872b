"""Profiles of languages keep the promises of normalisers, and those that break one break no other."""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune import registry
from sonotune.data.normalizers.hebrew import _FULL, HEBREW, HEBREW_FOLDED
from sonotune.data.text import BASIC, Normalizer, get, profile_of
from sonotune.errors import MissingExtraError, TextError

PROFILES = [get(name) for name in ("hebrew", "hebrew_folded", "arabic", "persian", "hindi", "cjk")]
FORMS = [
    pytest.param(getattr(profile, form), id=f"{profile.name}.{form}")
    for profile in PROFILES
    for form in ("training", "scoring")
]
SPECIAL = (
    "אבגםןשׁ\u05b8\u05c1\u0591\u05bd\u05bf\u05c0\u05c3\u05c6\u05be\u05c7\u034f׳״'\"’“”„`´″<|0.10|>..!!?,:;װײﬡﭏ"
    "محمدًَّـٰأإآٱؤئىيیکكهةۀءﷲﷺﻻﹱ\u0653\u0654\u0655١۲٫٬"
    "नमसहिन्द\u093cक़\u0901\u0902\u094d।॥|१"
    "漢字かなカ゛ーｶﾞﾟ１Ａａ，。・々⼀\u3099\u3000한"
    "abß1\u0301\u200b\u200c\u200d\u200e\u202e\u2067\ufeff\ufffd\0 \u00a0-😀\ufe0f"
)
TEXT = st.text(st.one_of(st.sampled_from(SPECIAL), st.characters()), max_size=20)


def is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_twice_is_once(form, text: str) -> None:
    assert form(form(text)) == form(text)


@pytest.mark.parametrize("form", FORMS)
def test_twice_is_once_for_every_character_of_the_first_plane(form) -> None:
    for code in range(0, 0x10000, 13):
        text = f"a{chr(code)}b 1{chr(code)}2 א{chr(code)}ב"
        assert form(form(text)) == form(text), hex(code)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_scoring_takes_raw_and_training_text_alike(profile: Normalizer, text: str) -> None:
    assert profile.scoring(profile.training(text)) == profile.scoring(text)


SCRIPTS = {"hebrew": "אבםוי", "hebrew_folded": "אבםוי", "arabic": "سمىأة", "persian": "سمیأک", "hindi": "नमकहड"}
MARKS = "\u0301\u05b8\u05c1\u0591\u064b\u0654\u093e\u094d\u093c\u0902"


@pytest.mark.parametrize("name", SCRIPTS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_words_are_neither_fused_nor_split(name: str, data) -> None:
    """Whatever marks, quotes and signs that nobody sees are in and around them."""
    letter = st.tuples(st.sampled_from(SCRIPTS[name] + "aé"), st.text(st.sampled_from(MARKS), max_size=2)).map("".join)
    unseen = st.sampled_from(["", "", "\u200f", "\u2067", "\ufeff", "\u200d"])
    inner = st.lists(st.tuples(letter, unseen).map("".join), min_size=1, max_size=5).map("".join)
    around = st.sampled_from(["", "", ",", "!!", "...", "״", '"', "”", "'", "׃", "؟", "।", "\u200f"])
    words = data.draw(st.lists(st.tuples(around, inner, around).map("".join), min_size=1, max_size=5))
    spaces = [" ", "  ", "\u00a0", "\t", " - ", "׀ ", *(["<|0.00|>"] if "hebrew" in name else [])]
    between = [data.draw(st.sampled_from(spaces)) for _ in words]
    text = "".join(word + space for word, space in zip(words, between, strict=True))
    profile = get(name)
    for form in (profile.training, profile.scoring):
        kept = [word for word in form(text).split() if any(character.isalpha() for character in word)]
        assert len(kept) == len(words)
        assert not any(is_mark(word[0]) for word in form(text).split())
    if profile.folded is not None:
        assert len(profile.folded(profile.scoring(text)).split()) == len(words)


@pytest.mark.parametrize("profile", [one for one in PROFILES if one.folded is not None], ids=lambda one: one.name)
@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_the_folded_form_keeps_words_and_is_its_own(profile: Normalizer, text: str) -> None:
    scored = profile.scoring(text)
    folded = profile.folded(scored)
    assert len(folded.split()) == len(scored.split())
    assert profile.folded(folded) == folded == profile.folded(profile.scoring(folded))


@pytest.mark.parametrize("name", registry.names("normalizers"))
def test_each_profile_scores_plain_words_as_basic_does(name: str) -> None:
    text = "Hello world, what's that?"
    if name not in ("identity", "whisper_english"):  # which writes contractions out
        assert get(name).scoring(text) == BASIC.scoring(text)


# --- Hebrew --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", ['"', "״", "“", "”", "„", "″", "''", "׳׳", "’’", "\u200f״"])
def test_an_abbreviation_is_one_word_in_all_its_spellings(sign: str) -> None:
    assert HEBREW.training(f"צה{sign}ל") == 'צה"ל'
    assert HEBREW.scoring(f"ב{sign}צה{sign}ל,") == "ב״צה״ל"
    assert HEBREW_FOLDED.scoring(f"צה{sign}ל") == HEBREW_FOLDED.scoring("צהל")


@pytest.mark.parametrize(
    ("text", "training", "scoring"),
    [
        ("בְּרֵאשִׁ֖ית בָּרָ֣א ׀ אֱלֹהִ֑ים׃", "בראשית ברא אלהים.", "בראשית ברא אלהים"),
        ("בֵּית־סֵפֶר בית-ספר בית ספר", "בית-ספר בית-ספר בית ספר", "בית ספר בית ספר בית ספר"),
        ("<|0.00|>שלום<|1.20|>עולם<|2|>\u0301", "שלום עולם", "שלום עולם"),
        ("<\u200b|0.0\u05b80|>כן", "כן", "כן"),
        ("מה?? לא... כן!!!", "מה? לא. כן!", "מה לא כן"),
        ("1..5 ו־3.5", "1..5 ו-3.5", "1 5 ו 3.5"),
        ("ג׳ירפה ג’ירפה ג`ירפה רח׳", "ג'ירפה ג'ירפה ג'ירפה רח'", "ג'ירפה ג'ירפה ג'ירפה רח"),
        ("\u202bשלום\u202c לָךְ ארץ", "שלום לך ארץ", "שלום לך ארץ"),
        ("ﬡﬢ אﭏ מײַן", "אד אאל מיין", "אד אאל מיין"),
        ("לךָ a\u034f\u0301", "לך á", "לך á"),
        ("Rock `n’ roll", "Rock `n' roll", "rock n roll"),
    ],
)
def test_hebrew(text: str, training: str, scoring: str) -> None:
    assert HEBREW.training(text) == training
    assert HEBREW.scoring(text) == scoring


@given(st.text(st.characters(min_codepoint=0x591, max_codepoint=0x5C7), max_size=6))
def test_every_mark_goes_and_every_separator_separates(signs: str) -> None:
    separates = any(not is_mark(sign) for sign in signs)
    assert HEBREW.scoring(f"בית{signs}ספר").split() == (["בית", "ספר"] if separates else ["ביתספר"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("תוכנית", "תכנית"),
        ("כשהתוכנית", "כשהתכנית"),
        ("שולחן", "שלחן"),
        ("עירייה", "עיריה"),
        ("בספריות", "בספרייות"),
        ("תקווה", "תקוה"),
        ("והאווירה", "והאוירה"),
        ("דו״ח", "דוח"),
        ("צוהריים", "צהרים"),
        ("היא הייתה", "היא היתה"),
    ],
)
def test_spelling_variants_are_one(one: str, other: str) -> None:
    assert HEBREW.scoring(one) != HEBREW.scoring(other)
    assert HEBREW_FOLDED.scoring(one) == HEBREW_FOLDED.scoring(other)


def test_a_listed_word_is_folded_once_behind_any_prefix() -> None:
    for other, full in _FULL.items():
        for prefix in ("", "ה", "וכשה", "מש", "ל"):
            folded = HEBREW.folded(prefix + other)
            assert HEBREW.folded(folded) == folded
            if not prefix or len(other) >= 4:
                assert folded == HEBREW.folded(prefix + full), prefix + other


def test_other_words_stay_apart() -> None:
    """Pairs that differ in a vav or yod and in what they say."""
    apart = "ספר סיפור סופר כתב כותב כתוב כתיב שיר שר בית בת דין דיין שנים שניים מות מוות מכון מכוון שואה השואה השוואה"
    apart += (
        " עליה עלייה ראיה ראייה לפניה לפנייה הפניה הפנייה חדש חודש בקר בוקר אילו אלו חברת חברות טכנולוגית טכנולוגיית"
    )
    apart += " שמיד מיד שכח כוח ההוות ההות עליך עלייך"
    words = apart.split()
    assert len({HEBREW_FOLDED.scoring(word) for word in words}) == len(set(words))


# --- other scripts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "training", "scoring"),
    [
        ("arabic", "مُحَمَّدٌ، إلى ﻻـــ", "محمد، إلى لا", "محمد الي لا"),
        ("arabic", "الآن مؤمن رئيس شيء مدرسة", "الآن مؤمن رئيس شيء مدرسة", "الان مومن رييس شيء مدرسة"),
        ("arabic", "ا\u0655ن ١٬٢٣٤٫٥ کی", "إن ١٬٢٣٤٫٥ كي", "ان 1,234.5 كي"),
        ("arabic", "ﷲ ﷺ ﹱ", "الله ﷺ", "الله ﷺ"),
        ("persian", "مي\u200cخواهم \u200cكتاب\u200c", "می\u200cخواهم کتاب", "میخواهم کتاب"),
        ("persian", "می خواهم خانۀ ١٢", "می خواهم خانهٔ ۱۲", "می خواهم خانه 12"),
        ("persian", "آب أب", "آب أب", "آب اب"),
        ("hindi", "क़लम कि\u093c | १२।", "क़लम क़ि । १२।", "क़लम क़ि 12"),
        ("hindi", "क्\u200dष राम || a|b", "क्ष राम ॥ a|b", "क्ष राम a b"),
        ("cjk", "Ｗｅ　我们 都 是１２３。", "We 我们 都 是123。", "we我们都是123"),
        ("cjk", "hello world 我 用 Python ｶﾞｷ ﾞ⼀", "hello world 我 用 Python ガキ ゛一", "hello world我用pythonガキ一"),
        ("cjk", "東京・ラーメン 時々", "東京・ラーメン 時々", "東京ラーメン時々"),
        ("cjk", "한국어 문장", "한국어 문장", "한국어 문장"),
    ],
)
def test_profiles(name: str, text: str, training: str, scoring: str) -> None:
    profile = get(name)
    assert profile.training(text) == unicodedata.normalize("NFC", training)
    assert profile.scoring(text) == unicodedata.normalize("NFC", scoring)


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("arabic", "شيء مدرسة", "شي مدرسه"),
        ("hindi", "हिन्दी सम्बन्ध क़लम हँस", "हिंदी संबंध कलम हंस"),
    ],
)
def test_folded_forms(name: str, one: str, other: str) -> None:
    profile = get(name)
    assert profile.scoring(one) != profile.scoring(other)
    assert profile.folded(profile.scoring(one)) == profile.folded(profile.scoring(other))


def test_letters_of_their_own_are_not_folded() -> None:
    hindi, arabic = get("hindi"), get("arabic")
    for one, other in (("पढ़ना", "पढना"), ("सड़क", "सडक"), ("अन्य", "अंय"), ("जन्म", "जंम")):
        assert hindi.folded(hindi.scoring(one)) != hindi.folded(hindi.scoring(other))
    for one, other in (("سأل", "سل"), ("ماء بارد", "مابارد"), ("ء", "")):
        assert arabic.folded(arabic.scoring(one)) != arabic.folded(arabic.scoring(other))


@given(words=st.lists(st.text(st.sampled_from("漢字かなー々"), min_size=1, max_size=3), min_size=1, max_size=5))
def test_no_space_of_han_and_kana_counts(words: list[str]) -> None:
    assert get("cjk").scoring(" ".join(words)) == "".join(words)


# --- names and digests ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "profile"),
    [
        *(("he", "hebrew"), ("iw", "hebrew"), ("he-IL", "hebrew"), ("Hebrew", "hebrew"), ("en_US", "english")),
        *(("ar-EG", "arabic"), ("arz", "arabic"), ("fa", "persian"), ("Farsi", "persian"), ("hi", "hindi")),
        *(("zh_Hant", "cjk"), ("ja", "cjk"), ("yi", "basic"), ("ko", "basic"), ("mr", "basic"), ("ur", "basic")),
        *((None, "basic"), ("", "basic"), ("xx", "basic")),
    ],
)
def test_profile_of_a_language(language: str | None, profile: str) -> None:
    assert profile_of(language) == profile
    assert get(profile).name == profile


def test_a_digest_says_which_rules_a_score_has() -> None:
    digests = {get(name).digest for name in registry.names("normalizers")}
    assert len(digests) == len(registry.names("normalizers"))
    assert BASIC.digest == BASIC.digest == "basic:ef671cbf"  # changes with the rules of basic, and never by itself
    name, _, number = HEBREW.digest.partition(":")
    assert name == "hebrew"
    assert int(number, 16) >= 0
    changed = Normalizer(
        name="basic", training=BASIC.training, scoring=lambda text: BASIC.scoring(text).replace("é", "e")
    )
    assert changed.digest != BASIC.digest


def test_a_digest_of_folded_spellings_knows_each_listed_word() -> None:
    def without_one(text: str) -> str:
        return " ".join(word if word == "תכנית" else HEBREW.folded(word) for word in text.split())

    changed = Normalizer(
        name="hebrew", training=HEBREW.training, scoring=HEBREW.scoring, folded=without_one, probes=HEBREW.probes
    )
    assert changed.digest == HEBREW.digest
    assert replace(HEBREW, probes=("one",)).digest == HEBREW.digest  # a longer list changes no score of this form
    assert replace(HEBREW_FOLDED, probes=("one",)).digest != HEBREW_FOLDED.digest
    assert changed.folded_digest != HEBREW.folded_digest
    with pytest.raises(TextError, match="folds no spellings"):
        _ = BASIC.folded_digest


@pytest.mark.parametrize(
    ("text", "scored"),
    [
        ("Mr. Smith\u2019s colour: twenty-one dollars & 50%!", "mister smith is color $21 50%"),
        ("I won't, um, [laughs] go", "i will not go"),
        ("nine four", "94"),
        ("", ""),
        ("\u05e9\u05b8\u05dc\u05d5\u05dd", "\u05e9\u05dc\u05d5\u05dd"),
    ],
)
def test_whispers_english_is_that_of_the_published_rules(text: str, scored: str) -> None:
    pytest.importorskip("whisper_normalizer", reason="the extra open-asr is not installed")
    profile = get("whisper_english")
    assert profile.scoring(text) == scored
    assert profile.digest.startswith("whisper_english:")
    assert profile.training("\u201cWon\u2019t\u201d") == '"Won\'t"'


def test_whispers_english_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from sonotune.data.normalizers import whisper_english

    whisper_english._rules.cache_clear()
    monkeypatch.setitem(sys.modules, "whisper_normalizer.english", None)
    with pytest.raises(MissingExtraError, match=r"sonotune\[open-asr\].*data\.text_scoring=english"):
        get("whisper_english").scoring("one")
    whisper_english._rules.cache_clear()
