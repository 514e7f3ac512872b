"""Transcripts as tokens: every word has its tokens, in order, and what cannot be written is a wildcard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.alignment.tokens import BORDER, Spelling, Tokens
from sonotune.alignment.viterbi import WILDCARD
from sonotune.data import numbers
from sonotune.data.text import BASIC, ENGLISH, IDENTITY
from sonotune.data.tokenizer import train_tokenizer
from sonotune.errors import MissingExtraError
from sonotune.models.base import LoadedModel
from sonotune.models.families.ctc import character_tokenizer

needs_numbers = pytest.mark.skipif(not numbers.installed(), reason="num2words is not installed")


class _Processor:
    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer


def with_tokenizer(model: LoadedModel, tokenizer: Any) -> LoadedModel:
    return replace(model, processor=_Processor(tokenizer))


@pytest.fixture(scope="module")
def latin(ctc_nano: LoadedModel) -> LoadedModel:
    return with_tokenizer(ctc_nano, character_tokenizer(list("abcdefghijklmnopqrstuvwxyz'")))


@pytest.fixture(scope="module")
def upper(ctc_nano: LoadedModel) -> LoadedModel:
    return with_tokenizer(ctc_nano, character_tokenizer(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ'")))


def read(model: LoadedModel, tokens: Tokens) -> list[str]:
    """Symbols of each word, `?` for a wildcard."""
    known = model.processor.tokenizer.convert_ids_to_tokens
    return [
        "".join(
            "?" if symbol == WILDCARD else known(int(symbol))
            for symbol, owner in zip(tokens.ids, tokens.token_words, strict=True)
            if owner == word
        )
        for word in range(len(tokens.words))
    ]


def test_words_are_those_of_the_manifest(latin: LoadedModel) -> None:
    tokens = Spelling(latin, BASIC).encode("  Hello, World -  don't ", "en")
    assert tokens.words == ("Hello,", "World", "-", "don't")
    assert read(latin, tokens) == ["hello", "world", "", "don't"]
    assert (tokens.token_words == BORDER).sum() == 2  # one between two words that are spoken
    assert tokens.unknown_share == 0.0


def test_case_is_that_of_the_vocabulary(upper: LoadedModel) -> None:
    assert read(upper, Spelling(upper, BASIC).encode("Straße hello", "de")) == ["STRASSE", "HELLO"]


@needs_numbers
def test_numbers_and_symbols_are_said(latin: LoadedModel) -> None:
    spelling = Spelling(latin, BASIC)
    said = read(latin, spelling.encode("21 50% R&B 20 000 $5 mp3", "en"))
    assert said == ["twenty|one", "fifty|percent", "r|and|b", "twenty", "thousand", "five|dollars", "mp?"]
    assert read(latin, spelling.encode("21 50%", "de")) == ["einundzwanzig", "funfzig|?"]  # num2words says no percent
    unknown = spelling.encode("21", "sw")  # a language it does not know
    assert read(latin, unknown) == ["??"]
    assert unknown.unknown_share == 1.0


def test_characters_outside_the_vocabulary(latin: LoadedModel, ctc_nano: LoadedModel) -> None:
    tokens = Spelling(latin, BASIC).encode("café שלום x", "en")
    assert read(latin, tokens) == ["cafe", "????", "x"]
    assert tokens.unknown_share == pytest.approx(4 / 9)
    # The vocabulary of ctc-nano has Hebrew letters and no points.
    assert read(ctc_nano, Spelling(ctc_nano, BASIC).encode("שָׁלוֹם", "he")) == ["שלום"]


def test_other_scripts_are_romanised_for_a_latin_vocabulary_only(latin: LoadedModel, ctc_nano: LoadedModel) -> None:
    asked: list[tuple[str, str | None]] = []

    def romanize(text: str, language: str | None) -> str:
        asked.append((text, language))
        return "mir"

    assert read(latin, Spelling(latin, BASIC, romanize).encode("мир hello", "ru")) == ["mir", "hello"]
    assert asked == [("мир", "ru")]
    assert read(ctc_nano, Spelling(ctc_nano, BASIC, romanize).encode("мир", "ru")) == ["???"]
    assert len(asked) == 1


def test_without_the_library_that_romanises_there_are_wildcards(
    latin: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    def romanize(text: str, language: str | None) -> str:
        raise MissingExtraError("uroman is not installed")

    spelling = Spelling(latin, BASIC, romanize)
    assert read(latin, spelling.encode("мир мир", "ru")) == ["???", "???"]
    assert caplog.text.count("uroman is not installed") == 1


def test_hesitations_that_a_score_leaves_out_are_spoken(latin: LoadedModel) -> None:
    assert read(latin, Spelling(latin, ENGLISH).encode("Um, yes", "en")) == ["um", "yes"]


def test_punctuation_stays_where_the_vocabulary_has_it(ctc_nano: LoadedModel) -> None:
    model = with_tokenizer(ctc_nano, character_tokenizer(list("Helo,ABC")))
    assert read(model, Spelling(model, IDENTITY).encode("Hello, ", "en")) == ["Hello,"]


def test_pieces_belong_to_words(ctc_nano: LoadedModel, tmp_path: Path) -> None:
    import transformers

    texts = ["zero one two three four five six seven eight nine"] * 20
    train_tokenizer(texts, kind="bpe", vocab_size=40, folder=tmp_path / "words")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "words")
    model = with_tokenizer(ctc_nano, tokenizer)
    tokens = Spelling(model, BASIC).encode("Seven, x nine!", "en")
    assert tokens.words == ("Seven,", "x", "nine!")
    said = read(model, tokens)
    assert said[0].strip("▁") == "seven"
    assert said[2].strip("▁") == "nine"
    assert set(tokens.token_words.tolist()) == {0, 1, 2}
    assert len(tokens.ids) < len("sevenxnine") + 3  # pieces, not characters


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40), language=st.sampled_from(["en", "de", "he", None]))
def test_any_text_can_be_written(latin: LoadedModel, text: str, language: str | None) -> None:
    tokens = Spelling(latin, BASIC).encode(text, language)
    assert tokens.words == tuple(text.split())
    inside = tokens.token_words[tokens.token_words != BORDER]
    assert np.all(np.diff(inside) >= 0)
    assert len(tokens.ids) == len(tokens.token_words)
    assert not (tokens.ids == latin.processor.tokenizer.pad_token_id).any()
    assert 0.0 <= tokens.unknown_share <= 1.0
    first, stop = tokens.spans()
    for word, (begin, end) in enumerate(zip(first, stop, strict=True)):
        assert np.all(tokens.token_words[begin:end] == word)
        assert end - begin == (tokens.token_words == word).sum()
        letters = [one for one in tokens.words[word] if one.isalnum()]
        assert not letters or end > begin  # every word that says something gets a time
    gaps = tokens.between_words()
    assert len(gaps) == len(tokens.ids) + 1
    assert gaps[0]
    assert gaps[-1]
