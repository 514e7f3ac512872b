"""Which error rate decides, by the script of the references."""

from __future__ import annotations

import pytest

from sonotune.data.scripts import LETTERS_PER_WORD, deciding_rate, dominant_script


@pytest.mark.parametrize(
    ("texts", "rate"),
    [
        (["一二三", "four"], "wer"),  # three letters of seven
        (["一二三", "for"], "cer"),  # three of six
        (["ｶﾀｶﾅ"], "cer"),
        (["𠀀𠀁"], "cer"),
        (["ខ្ញុំស្រលាញ់អ្នក"], "cer"),
        (["ຂ້ອຍຮັກເຈົ້າ"], "cer"),
        (["המֶּמְשָׁלָה הֶחְלִיטָה"], "wer"),
        (["a" * round(LETTERS_PER_WORD)], "cer"),
        (["a" * (round(LETTERS_PER_WORD) - 1)], "wer"),
        (["a" * 30, "a b"], "wer"),  # ten letters a word
        ([], "wer"),
        (["", "..."], "wer"),
    ],
)
def test_scripts_without_spaces_are_scored_by_characters(texts: list[str], rate: str) -> None:
    found, reason = deciding_rate(texts)
    assert found == rate
    assert reason


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("seven four", "LATIN"),
        ("naïve ﬁnd Ａ", "LATIN"),
        ("שבע ארבע", "HEBREW"),
        ("שָׁלוֹם ok", "HEBREW"),
        ("семь", "CYRILLIC"),
        ("漢字とカタカナ", "HAN"),
        ("ｶﾀｶﾅ", "HAN"),
        ("مرحبا", "ARABIC"),
        ("ab гд", None),
        ("1234 !? 🎉", None),
        ("", None),
    ],
)
def test_the_script_of_most_letters(text: str, script: str | None) -> None:
    assert dominant_script(text) == script
