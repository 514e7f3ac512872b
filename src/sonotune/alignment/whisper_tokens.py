"""Tokens of a transcript for Whisper as an aligner: whose they are, and which the model never writes.

Shape letter: U tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sonotune.errors import TextError
from sonotune.models.base import LoadedModel

_SPECIAL: Final = re.compile(r"<\|.*\|>")


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverWritten:
    """Ids that decoding writes nowhere, and those that it writes not at first."""

    always: list[int]
    at_first: list[int]


def never_written(loaded: LoadedModel) -> NeverWritten:
    """By the checkpoint's tokenizer and generation settings."""
    tokenizer, config, settings = loaded.processor.tokenizer, loaded.module.config, loaded.module.generation_config
    added = {token for token in tokenizer.get_added_vocab() if _SPECIAL.fullmatch(token)}
    text = {index for token, index in tokenizer.get_vocab().items() if token not in added}
    text -= set(tokenizer.all_special_ids)
    closed = set(range(config.vocab_size)) - text | set(settings.suppress_tokens or ())
    return NeverWritten(
        always=sorted(closed - {config.eos_token_id}), at_first=sorted(settings.begin_suppress_tokens or ())
    )


def begins_word(token_words: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which tokens begin a word (U,): a token of space does, and not the one behind it."""
    following = np.append(token_words[1:], token_words[-1:])
    owners = np.where(token_words < 0, following, token_words)
    return np.append(True, owners[1:] != owners[:-1])


def word_of_each_token(tokenizer: Any, text: str, ids: Sequence[int], words: Sequence[int]) -> NDArray[np.int64]:
    """The word that each token of a text belongs to (U,); -1 for a token that is nothing but space.

    Args:
        tokenizer: Gives the characters of each token.
        text: Words joined by single spaces.
        ids: Its tokens, by `text_tokens`.
        words: The number of each word of the text.

    Raises:
        TextError: The tokenizer cannot say which characters a token stands for.
    """
    owners = np.full(len(text), -1, dtype=np.int64)
    place = 0
    for word, number in zip(text.split(" "), words, strict=True):
        owners[place : place + len(word)] = number
        place += len(word) + 1
    for shift in (1, 0):
        try:
            made = tokenizer(" " * shift + text, add_special_tokens=False, return_offsets_mapping=True)
        except NotImplementedError as error:
            raise TextError("its tokenizer has no offsets. Save the model with a fast tokenizer.") from error
        if list(made.input_ids) == list(ids):
            # Some tokenizers count the space before a word to its token: the last character says whose it is.
            spans = [(max(start - shift, 0), end - shift) for start, end in made.offset_mapping]
            return np.array([owners[start:end].max(initial=-1) for start, end in spans], dtype=np.int64)
    raise TextError("its tokenizer makes other tokens of the same text. Save the model with its own tokenizer.")
