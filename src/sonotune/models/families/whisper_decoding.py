"""How Whisper writes: token by token with a key-value cache, or by the beam search of `transformers`, judged after it.

Shape letters: B clips, R rows of a batch that is being decoded, P encoder positions, U target tokens, V entries of the
vocabulary, N rows of logits, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sonotune.features.batching import Batch
from sonotune.models import decoding
from sonotune.models.audio_positions import decode_rows
from sonotune.models.base import LoadedModel
from sonotune.types import DecodingSettings


class CachedDecoder:
    """The decoder of a batch's rows with its key-value cache; see `decoding.Decoder`.

    Attributes:
        no_speech: Probability of `<|nospeech|>` in each row at first.
    """

    def __init__(self, loaded: LoadedModel, encoded_BPD: Tensor, mask: Tensor | None, rows_R: Tensor) -> None:
        from transformers import DynamicCache, EncoderDecoderCache  # noqa: PLC0415  (slow import, decoding only)

        self._loaded, self._encoded_RPD, self._mask, self._rows_R = loaded, encoded_BPD, mask, rows_R
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self._first = True
        self.no_speech: list[float] = []

    def next(self, tokens_RU: Tensor) -> Tensor:
        """See `decoding.Decoder.next`; the tokens that the checkpoint suppresses are -inf."""
        module = self._loaded.module
        module.model.decoder.cross_mask = self._mask
        decode_rows(module.model.encoder, self._rows_R)
        hidden_RUD = module.model.decoder(
            input_ids=tokens_RU, encoder_hidden_states=self._encoded_RPD, past_key_values=self._cache, use_cache=True
        ).last_hidden_state
        logits_RV: Tensor = module.proj_out(hidden_RUD[:, -1]).float()
        if self._first:
            self.no_speech = _no_speech(self._loaded, hidden_RUD)
        _suppress(self._loaded, logits_RV, first=self._first)
        self._first = False
        return logits_RV

    def keep(self, rows_R: Tensor) -> None:
        """See `decoding.Decoder.keep`."""
        self._cache.batch_select_indices(rows_R)
        self._encoded_RPD, self._rows_R = self._encoded_RPD[rows_R], self._rows_R[rows_R]
        self._mask = None if self._mask is None else self._mask[rows_R]


def token_limits(loaded: LoadedModel, batch: Batch, settings: DecodingSettings, *, prompt: int) -> list[int]:
    """Most tokens of each clip's text after a prompt of so many."""
    room: int = loaded.module.config.max_target_positions - prompt
    rate = decoding.tokens_per_second(loaded.processor.tokenizer, loaded.tokens_per_second)
    durations_s = [clip.duration_s for clip in batch.clips]
    limits = decoding.token_limits(settings, durations_s, otherwise=room, tokens_per_second=rate)
    return [min(limit, room) for limit in limits]


def _suppress(loaded: LoadedModel, logits_NV: Tensor, *, first: bool) -> None:
    """Put -inf where the checkpoint's generation settings allow no token, or none at the start of a text."""
    settings = loaded.module.generation_config
    never = [*(settings.suppress_tokens or ()), *((settings.begin_suppress_tokens or ()) if first else ())]
    if never:
        logits_NV[:, never] = -torch.inf


def _no_speech(loaded: LoadedModel, hidden_BUD: Tensor) -> list[float]:
    """Probability of `<|nospeech|>` after `<|startoftranscript|>`; checkpoints name the token either way."""
    tokenizer = loaded.processor.tokenizer
    vocabulary = tokenizer.get_added_vocab()
    token = vocabulary.get("<|nospeech|>", vocabulary.get("<|nocaptions|>"))
    if token is None:
        return [0.0] * len(hidden_BUD)
    found: list[float] = loaded.module.proj_out(hidden_BUD[:, 0]).float().softmax(dim=-1)[:, token].tolist()
    return found


def draw(
    loaded: LoadedModel,
    encoded_BPD: Tensor,
    prompt_BU: Tensor,
    *,
    limits: Sequence[int],
    draw_keys: Sequence[str],
) -> list[list[int]]:
    """Draw a text for each clip from the model's own distribution: its prompt, its tokens and the one that ends it.

    The end token is absent where the text was cut at its limit or loops.

    Args:
        loaded: The model.
        encoded_BPD: States of the encoder, whose mask the decoder has.
        prompt_BU: Tokens that come first.
        limits: Most tokens of each text, the end token included.
        draw_keys: Seeds the draws of each clip.
    """
    end, rows_B = loaded.module.config.eos_token_id, torch.arange(len(encoded_BPD), device=encoded_BPD.device)
    room = loaded.module.config.max_target_positions - prompt_BU.shape[1]
    limits = [min(limit, room) for limit in limits]
    decoder = CachedDecoder(loaded, encoded_BPD, loaded.module.model.decoder.cross_mask, rows_B)
    written = decoding.write(decoder, prompt_BU, end=end, limits=limits, temperature=1.0, draw_keys=draw_keys)
    targets = []
    for prompt, one, limit in zip(prompt_BU.tolist(), written, limits, strict=True):
        ended = one.finite and len(one.ids) < limit and not bool(decoding.loops_at_end(torch.tensor([one.ids])))
        targets.append([*prompt, *one.ids, *([end] if ended else [])])
    return targets


def generate(
    loaded: LoadedModel,
    encoded_BPD: Tensor,
    prompt_BU: Tensor,
    limits: Sequence[int],
    settings: DecodingSettings,
    processors: Sequence[Any] = (),
) -> tuple[list[list[int]], list[bool]]:
    """Tokens of each clip, by the greedy or beam search of `transformers`, and whether its logits were finite.

    Args:
        loaded: The model.
        encoded_BPD: States of the encoder.
        prompt_BU: Tokens that come first.
        limits: Most tokens of each clip.
        settings: Beams and what hinders repetition.
        processors: Further logits processors of `transformers`.
    """
    from transformers import GenerationMixin  # noqa: PLC0415  (slow import, decoding only)
    from transformers.modeling_outputs import BaseModelOutput  # noqa: PLC0415

    chosen = decoding.generation_settings(
        loaded.module.generation_config, limits, settings, forced_decoder_ids=None, return_timestamps=False
    )
    watching, watched = decoding.watched_rows(limits, prompt=prompt_BU.shape[1])
    watching["logits_processor"].extend(processors)
    with decoding.generating_with(loaded.module, chosen):
        ids_BU = GenerationMixin.generate(
            loaded.module,
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded_BPD),
            attention_mask=encoded_BPD.new_ones(encoded_BPD.shape[:2]),  # not used, and asked for
            decoder_input_ids=prompt_BU,
            generation_config=chosen,
            **watching,
        )
    ends = {loaded.module.config.eos_token_id, chosen.pad_token_id}
    rows = [[one for one in row if one not in ends] for row in ids_BU[:, prompt_BU.shape[1] :].tolist()]
    return rows, watched.finite_B.tolist()


def judge(
    loaded: LoadedModel,
    encoded_BPD: Tensor,
    prompt_BU: Tensor,
    rows: Sequence[list[int]],
    finite: Sequence[bool],
) -> tuple[list[decoding.Written], list[float]]:
    """Given texts with their log-probabilities, and the probability that there is no speech.

    Logits are made of one clip at a time, for those of a whole batch are many.
    """
    end, start = loaded.module.config.eos_token_id, prompt_BU.shape[1]
    width = min(max(len(row) for row in rows) + 1, loaded.module.config.max_target_positions - start)
    text_BU = torch.tensor([[*row, *[end] * width][:width] for row in rows], device=prompt_BU.device)
    hidden_BUD = loaded.module.model.decoder(
        input_ids=torch.cat([prompt_BU, text_BU[:, :-1]], dim=1), encoder_hidden_states=encoded_BPD, use_cache=False
    ).last_hidden_state
    written = []
    for hidden_UD, text_U, row, number in zip(hidden_BUD[:, start - 1 :], text_BU, rows, finite, strict=True):
        length = min(len(row) + 1, width)
        logits_UV = loaded.module.proj_out(hidden_UD[:length]).float()
        _suppress(loaded, logits_UV, first=False)
        _suppress(loaded, logits_UV[:1], first=True)
        logprobs_U = -F.cross_entropy(logits_UV, text_U[:length], reduction="none")
        written.append(decoding.Written(row, float(logprobs_U.mean()), number, logprobs_U[: len(row)].tolist()))
    return written, _no_speech(loaded, hidden_BUD)
