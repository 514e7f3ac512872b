"""Which tokens write which word, whatever the tokenizer: bytes, pieces of words or letters.

A token stands where the text grows when it is decoded with the tokens before it. One that holds a part of the bytes of
a letter belongs to that letter, as do those with its other parts; one that holds a space and letters belongs to their
word. The price is decoding each beginning of the text, some tens of microseconds a token.

Shape letters: U tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from sonotune.data.words import word_spans
from sonotune.types import RecognizedWord

_NO_CHARACTER = "\ufffd"
"""What a tokenizer writes for bytes that are not a whole character."""


def words_of_tokens(
    text: str, ids: Sequence[int], logprobs: Sequence[float], decode: Callable[[Sequence[int]], str]
) -> tuple[RecognizedWord, ...]:
    """The words of a text with the log-probabilities of the tokens that write them.

    Args:
        text: What the tokens say, without white space at its ends.
        ids: The tokens (U,).
        logprobs: Of each of them (U,).
        decode: Ids -> text, as `text` was made; of fewer ids it gives a beginning of that.

    Returns:
        The words of `data.words.words_of(text)`, each with one token at least.
    """
    spans = token_spans(text, ids, decode)
    words, first = [], 0
    for begin, end in word_spans(text):
        while first < len(spans) - 1 and spans[first][1] <= begin:
            first += 1
        of_word = []
        for place in range(first, len(spans)):
            if spans[place][0] >= end:
                break
            if spans[place][1] > begin:
                of_word.append(logprobs[place])
        words.append(RecognizedWord(text=text[begin:end], logprobs=tuple(of_word)))
    return tuple(words)


def token_spans(text: str, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[tuple[int, int]]:
    """Begin and end in the text of what each token writes, at least one character each and in order."""
    spans, begin = [], 0
    for count in range(1, len(ids) + 1):
        written = decode(ids[:count])
        whole = written.rstrip(_NO_CHARACTER)
        reached = len(whole) if text.startswith(whole) else _common_length(text, whole)
        end = len(text) if count == len(ids) else max(begin, reached)
        spans.append((begin, max(begin + 1, end + (whole != written))))
        begin = end
    return spans


def _common_length(first: str, second: str) -> int:
    """Characters with which both begin."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
