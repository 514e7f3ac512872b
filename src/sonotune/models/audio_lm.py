"""A causal language model that hears: audio embeddings stand among the embeddings of its prompt.

What every such model shares: rows of unequal length put into one tensor, the loss at the positions of the target
alone, and generation. Rows are padded on the right for training and on the left for generation; labels are placed by
each row's own length, so the side of the padding can never move them into the prompt.

Shape letters: B clips, P audio positions, L positions of a row (prompt, audio, target), U target tokens, D width,
V vocabulary, N labels of a batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sonotune.errors import ConfigError
from sonotune.features.batching import Batch
from sonotune.models.base import PADDING, TEXT
from sonotune.models.decoding import (
    generating_with,
    generation_settings,
    is_cut,
    watched_rows,
    without_half_character,
)
from sonotune.models.losses import LabelOutputs
from sonotune.models.token_words import words_of_tokens
from sonotune.types import DEFAULT_DECODING, DecodingSettings, Hypothesis


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Prompts with audio in them, and targets where there are any.

    Attributes:
        embeds: Embeddings (B, L, D); padding is 0.
        mask: Which positions are real (B, L) bool.
        labels: Token that each position must predict next (B, L) int64, -100 where none.
    """

    embeds: Tensor
    mask: Tensor
    labels: Tensor

    @property
    def positions(self) -> Tensor:
        """Position of each token in its own row (B, L), from 0, whichever side is padded."""
        return (self.mask.long().cumsum(dim=1) - 1).clamp_min(0)


class Answer(NamedTuple):
    """What a model wrote in a row: its tokens, and the log-probability of each where that was asked for."""

    ids: list[int]
    logprobs: list[float]


def hypothesis(answer: Answer, *, limit: int, decode: Callable[[Sequence[int]], str], rated: bool) -> Hypothesis:
    """The text of an answer.

    Args:
        answer: Its tokens.
        limit: Most tokens that it may have, the end token included.
        decode: Ids -> text.
        rated: Whether its words are to be rated.
    """
    cut = is_cut(answer.ids, limit)
    text = without_half_character(decode(answer.ids), cut=cut)
    words = words_of_tokens(text, *answer, decode) if rated else None
    return Hypothesis(text=text, cut=cut, words=words)


def lay_out(
    embed: Callable[[Tensor], Tensor],
    *,
    before: Sequence[Sequence[int]],
    audio: Sequence[Tensor],
    after: Sequence[Sequence[int]],
    targets: Sequence[Tensor] | None = None,
) -> Rows:
    """Put `before + audio + after + target` of each clip into one tensor.

    Args:
        embed: Token ids (L,) -> embeddings (L, D).
        before: Ids before the audio, one list a clip.
        audio: Audio embeddings (P, D) of each clip.
        after: Ids between the audio and the target, one list a clip.
        targets: Target ids (U,) of each clip; None for generation, which pads on the left.
    """
    device = audio[0].device
    rows, labels = [], []
    for index, sound_PD in enumerate(audio):
        target_U = targets[index].to(device) if targets is not None else torch.zeros(0, dtype=torch.long, device=device)
        first, rest = list(before[index]), list(after[index])
        tokens = torch.tensor([*first, *rest, *target_U.tolist()], dtype=torch.long, device=device)
        embedded_LD = embed(tokens)
        rows.append(torch.cat([embedded_LD[: len(first)], sound_PD.to(embedded_LD.dtype), embedded_LD[len(first) :]]))
        row_labels = torch.full((len(rows[-1]),), -100, dtype=torch.long, device=device)
        if len(target_U):  # the position before a token predicts it
            row_labels[-len(target_U) - 1 : -1] = target_U
        labels.append(row_labels)
    side = "left" if targets is None else "right"
    pad = torch.nn.utils.rnn.pad_sequence
    mask = [torch.ones(len(row), dtype=torch.bool, device=device) for row in rows]
    return Rows(
        embeds=pad(rows, batch_first=True, padding_side=side),
        mask=pad(mask, batch_first=True, padding_side=side),
        labels=pad(labels, batch_first=True, padding_value=-100, padding_side=side),
    )


def kinds_of_rows(
    *, before: Sequence[Sequence[int]], audio: Sequence[Tensor], after: Sequence[Sequence[int]], batch: Batch
) -> Tensor:
    """What the rows of `lay_out` are (B, L) int8, with the batch's targets behind them.

    Args:
        before: Ids before the audio, one list a clip.
        audio: Kinds of the audio embeddings (P,) int8 of each clip.
        after: Ids between the audio and the target, one list a clip.
        batch: Has the targets.
    """
    rows = []
    for first, kinds_P, rest, written in zip(before, audio, after, batch.target_lengths.tolist(), strict=True):
        text_L = kinds_P.new_full((len(first) + len(rest) + written,), TEXT)
        rows.append(torch.cat([text_L[: len(first)], kinds_P, text_L[len(first) :]]))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)


def own_targets(batch: Batch) -> list[Tensor]:
    """Target ids (U,) of each clip, padding left out."""
    return [row[:length] for row, length in zip(batch.targets, batch.target_lengths.tolist(), strict=True)]


def label_outputs(
    hidden_BLD: Tensor, labels_BL: Tensor, head: Any, *, ctc: Callable[[], Tensor] | None = None
) -> LabelOutputs:
    """The positions that have a label, and nothing else.

    Args:
        hidden_BLD: Last states of rows of tokens.
        labels_BL: Token that each of them should predict, -100 where there is none.
        head: See `LabelOutputs`.
        ctc: See `LabelOutputs`.
    """
    places_BL = labels_BL >= 0
    return LabelOutputs(states=hidden_BLD[places_BL], head=head, labels=labels_BL[places_BL], places=places_BL, ctc=ctc)


@torch.no_grad()
def generate(
    module: Any,
    rows: Rows,
    *,
    limits: Sequence[int],
    decoding: DecodingSettings = DEFAULT_DECODING,
    settings: Any | None = None,
) -> list[Answer | None]:
    """What is written in each row, its end token and what follows left out; greedy or beam search with a cache.

    A row whose logits are not finite has none.

    Args:
        module: A `transformers` model with a `generate` of its own, which takes `inputs_embeds`.
        rows: Prompts, padded on the left.
        limits: Most tokens to write in each row, the end token included.
        decoding: Beams and what hinders repetition; a row that loops ends early.
        settings: End and padding tokens; None takes the model's own settings.

    Raises:
        ConfigError: Confidences are asked for of beam search, whose rows change places.
    """
    rated = decoding.confidence
    if rated and decoding.beam_size > 1:
        raise ConfigError(
            f"evaluation.confidence=true with evaluation.beam_size={decoding.beam_size}: word confidences of this "
            "architecture are there for greedy decoding alone. Take evaluation.beam_size=1."
        )
    settings = generation_settings(
        settings or module.generation_config, limits, decoding, temperature=None, top_k=None, top_p=None
    )
    watching, watched = watched_rows(limits, rated=rated)
    with generating_with(module, settings):
        written_BU = module.generate(
            inputs_embeds=rows.embeds,
            attention_mask=rows.mask.long(),
            generation_config=settings,
            **watching,
        )
    ends = settings.eos_token_id
    stop = ({ends} if isinstance(ends, int) else set(ends or ())) | {settings.pad_token_id}
    answers: list[Answer | None] = []
    for row, finite, logprobs in zip(written_BU.tolist(), watched.finite_B.tolist(), watched.logprobs, strict=True):
        ids = list(itertools.takewhile(lambda token: token not in stop, row))
        answers.append(Answer(ids, logprobs[: len(ids)]) if finite else None)
    return answers
