"""The words of a text, and which of them are right."""

from __future__ import annotations

import pytest

from sonotune.data.text import get
from sonotune.data.words import right_words, word_spans, words_of
from sonotune.metrics.error_rate import word_edits

BASIC = get("basic").scoring

TEXTS = [
    "hello world, it's 20 000",
    "שָׁלוֹם עוֹלָם זה טוב",
    "مرحبا بالعالم",
    "你好世界, 今天 ok",
    "สวัสดีครับ ก็ดี",
    "naïve cafe\u0301 😀 -",
    "",
    "  \n ",
]


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_all_that_is_no_white_space_in_order(text: str):
    assert "".join(words_of(text)) == "".join(text.split())
    assert all(begin < end for begin, end in word_spans(text))


@pytest.mark.parametrize("text", [TEXTS[0], TEXTS[1], TEXTS[2], TEXTS[5]])
def test_where_a_script_has_spaces_words_are_those_of_split(text: str):
    assert words_of(text) == text.split()


def test_signs_of_a_script_without_spaces_keep_their_marks():
    assert words_of("你好ก็ดี") == ["你", "好", "ก็", "ดี"]


@pytest.mark.parametrize(
    ("hypothesis", "reference"),
    [
        ("one two three", "one two three"),
        ("one too three three", "one two three"),
        ("", "one two"),
        ("one two", ""),
        ("a b c d e f", "b c x e f g"),
    ],
)
def test_right_words_are_the_hits_of_the_word_error_rate(hypothesis: str, reference: str):
    right = right_words(hypothesis, reference, BASIC)
    assert len(right) == len(words_of(hypothesis))
    assert sum(map(bool, right)) == word_edits(reference, hypothesis).hits


def test_case_and_punctuation_make_no_word_wrong_and_a_dash_is_no_word():
    assert right_words("Hello, WORLD -", "hello world", BASIC) == [True, True, None]


def test_a_word_that_scoring_makes_two_of_is_right_where_both_are():
    def scoring(text: str) -> str:
        return text.replace("won't", "will not")

    assert right_words("i won't go", "i will not go", scoring) == [True, True, True]
    assert right_words("i won't go", "i will go", scoring) == [True, False, True]


def test_two_words_that_scoring_makes_one_of_are_right_together():
    def scoring(text: str) -> str:
        return text.replace("twenty one", "21")

    assert right_words("say twenty one now", "say 21 now", scoring) == [True, True, True, True]
    assert right_words("say twenty one now", "say 22 now", scoring) == [True, False, False, True]


def test_what_scoring_adds_to_a_whole_text_belongs_to_the_word_before_it():
    def scoring(text: str) -> str:
        return text.replace("10 %", "10 percent").replace("%", "")

    assert right_words("10 % more", "10 percent more", scoring) == [True, None, True]
    assert right_words("10 % more", "10 more", scoring) == [False, None, True]


def test_a_sign_is_right_by_itself_where_there_are_no_spaces():
    assert right_words("今天很好", "今天真好", BASIC) == [True, True, False, True]


def test_points_of_hebrew_make_no_word_wrong_under_its_own_normaliser():
    assert right_words("שָׁלוֹם עולם", "שלום עולם", get("hebrew").scoring) == [True, True]
