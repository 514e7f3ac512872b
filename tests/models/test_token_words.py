"""Tokens and the words that they write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from sonotune.data.words import words_of
from sonotune.models.token_words import token_spans, words_of_tokens

TEXTS = [
    "one two",
    "שָׁלוֹם עולם",
    "你好世界, ok",
    "สวัสดี ก็ดี",
    "გადაწყვიტა 𞤆𞤵𞤤 e\u0301 😀👍",
    "x",
]


def bytes_of(text: str) -> list[int]:
    return list(text.encode())


def from_bytes(ids: Sequence[int]) -> str:
    """As tokenizers do: what is no whole character is one mark each."""
    return bytes(ids).decode("utf-8", "replace").strip()


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_a_letter_belong_to_it_and_none_is_lost(text: str):
    ids = bytes_of(text)
    words = words_of_tokens(text, ids, [-float(place) for place in range(len(ids))], from_bytes)
    assert [word.text for word in words] == words_of(text)
    place = 0
    for word in words:
        begin = text.encode().index(word.text.encode(), place)
        place = begin + len(word.text.encode())
        assert [-one for one in word.logprobs] == list(map(float, range(begin, place)))


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["one", " two"], {"one": 1, "two": 1}),
        ([" on", "e t", "wo"], {"one": 2, "two": 2}),  # a token of two words belongs to both
        (["one", " ", "two"], {"one": 1, "two": 1}),  # a space of its own belongs to none
        (["今天", "很好"], {"今": 1, "天": 1, "很": 1, "好": 1}),
    ],
)
def test_a_token_belongs_to_every_word_that_it_writes_a_part_of(tokens: list[str], words: dict[str, int]):
    def decode(ids: Sequence[int]) -> str:
        return "".join(tokens[one] for one in ids).strip()

    ids = list(range(len(tokens)))
    found = words_of_tokens(decode(ids), ids, [-1.0] * len(ids), decode)
    assert {word.text: len(word.logprobs) for word in found} == words


def test_a_decoder_that_changes_its_mind_leaves_no_word_without_tokens():
    """Spaces before punctuation vanish once the punctuation is there."""
    tokens = ["hello", " ", ", ", "you"]

    def decode(ids: Sequence[int]) -> str:
        return "".join(tokens[one] for one in ids).replace(" ,", ",").strip()

    found = words_of_tokens("hello, you", range(4), [-1.0, -2.0, -3.0, -4.0], decode)
    assert [word.text for word in found] == ["hello,", "you"]
    assert all(word.logprobs for word in found)
    assert found[1].logprobs[-1] == -4.0


def test_nothing_written_has_no_words():
    assert words_of_tokens("", [], [], from_bytes) == ()
    assert token_spans("", [], from_bytes) == []


@pytest.mark.realdata
def test_the_tokens_of_the_published_whisper_write_every_word(whisper_base: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(whisper_base)

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    for text in TEXTS:
        ids = tokenizer(f" {text}", add_special_tokens=False).input_ids
        written = decode(ids)
        found = words_of_tokens(written, ids, [-1.0] * len(ids), decode)
        assert [word.text for word in found] == words_of(written)
        assert all(word.logprobs for word in found)
        assert sum(len(word.logprobs) for word in found) >= len(ids) - written.count(" ")
