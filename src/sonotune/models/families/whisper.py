"""Whisper: log-mel frames -> convolutional stem -> encoder -> autoregressive decoder.

`transformers` pads every clip to the model's whole window (30 s) and masks nothing. Here, with `context="dynamic"`, a
clip is computed at its own length: the positional table is cut, and attention to the padding of the batch is masked,
so that a clip's output never depends on its neighbours. With `context="full"` the computation is that of
`transformers`, to the bit.

Shape letters: B clips, T frames, P encoder positions (two frames each), F mel bins, U target tokens, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sonotune.errors import TextError
from sonotune.features.batching import Batch
from sonotune.features.frontend import from_feature_extractor
from sonotune.features.normalization import valid_frames
from sonotune.models import speech_encoders
from sonotune.models.base import TEXT, Component, LoadedModel, Losses, Stream
from sonotune.models.checkpoints import is_classifier, load_pretrained, outline_pretrained
from sonotune.models.families.whisper_checkpoint import (
    ENGLISH_VOCABULARY,
    complete_generation_config,
    load_whisper_processor,
)
from sonotune.models.languages import find_code, nothing_to_note
from sonotune.models.outputs import refuse_new_outputs


class WhisperFamily:
    """Whisper speech-to-text, multilingual or English-only."""

    name = "whisper"
    task = "transcribe"

    def handles(self, config: Any) -> bool:
        """See `ModelFamily.handles`; Whisper with a classification head is another family's."""
        return config.model_type == "whisper" and not is_classifier(config)

    def load(
        self,
        checkpoint: str,
        *,
        revision: str | None = None,
        context: Literal["dynamic", "full"] = "dynamic",
        random_weights: bool = False,
        dropout: float | None = None,
        outputs: Sequence[str] = (),
        renew_outputs: bool = False,
        tokenizer: str | None = None,
    ) -> LoadedModel:
        """See `ModelFamily.load`; text is written in the checkpoint's own tokens."""
        refuse_new_outputs(self.name, renew_outputs=renew_outputs, tokenizer=tokenizer)
        module, _, identity = load_pretrained(
            checkpoint, self, class_name="WhisperForConditionalGeneration", revision=revision,
            random_weights=random_weights, config_changes={"dropout": dropout}, processor_class=None,
        )  # fmt: skip
        processor = load_whisper_processor(checkpoint, revision=revision, config=module.config)
        complete_generation_config(module, processor.tokenizer, checkpoint)
        return self._mapped(
            module, checkpoint=checkpoint, revision=identity, context=context, processor=processor,
            frontend=from_feature_extractor(processor.feature_extractor),
        )  # fmt: skip

    def outline(self, checkpoint: str, *, revision: str | None = None, outputs: int | None = None) -> LoadedModel:
        """See `ModelFamily.outline`."""
        module, identity = outline_pretrained(
            checkpoint, self, class_name="WhisperForConditionalGeneration", revision=revision
        )  # fmt: skip
        frontend = speech_encoders.frontend_of(module.config)
        return self._mapped(module, checkpoint=checkpoint, revision=identity, frontend=frontend, processor=None)

    def _mapped(self, module: Any, **given: Any) -> LoadedModel:
        loaded = LoadedModel(
            module=module,
            components=_components(module),
            linears=tuple(
                name
                for name, child in module.named_modules()
                if isinstance(child, nn.Linear) and (".encoder.layers." in name or ".decoder.layers." in name)
            ),
            family=self.name,
            constant=frozenset({"model.encoder.embed_positions.weight"}),
            tied=(("model.decoder.embed_tokens.weight", "proj_out.weight"),)
            if module.proj_out.weight is module.model.decoder.embed_tokens.weight
            else (),
            **given,
        )
        _install_cross_attention_mask(module)
        return loaded

    def knows_language(self, loaded: LoadedModel, language: str) -> bool:
        """Whether the checkpoint has a token for the language; one that knows a single language is told none.

        The published English-only checkpoints know English; of any other without languages nothing is known.
        """
        if not _is_multilingual(loaded):
            return not _is_english(loaded) or find_code(language, ("en",)) is not None
        return find_code(language, _language_tokens(loaded)) is not None

    def note_on_language(self, loaded: LoadedModel, language: str) -> str | None:
        """See `SpeechFamily.note_on_language`; there is nothing to say."""
        return nothing_to_note(language)

    def encode_text(
        self, loaded: LoadedModel, text: str, language: str | None, *, duration_s: float | None = None
    ) -> NDArray[np.int64]:
        """`<|startoftranscript|> language task <|notimestamps|> text <|endoftext|>` as (U,) ids.

        Raises:
            TextError: The text is empty of tokens, has characters the tokenizer lacks, or is too long.
        """
        tokenizer = loaded.processor.tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        back = tokenizer.decode(ids, skip_special_tokens=True)
        if back.split() != text.split():
            lost = sorted(set(text) - set(back)) or [text]
            raise TextError(f"the tokenizer of {loaded.checkpoint} cannot write {' '.join(map(repr, lost))[:80]}.")
        targets = [*self._prompt(loaded, language), *ids, loaded.module.config.eos_token_id]
        limit = loaded.module.config.max_target_positions
        if len(targets) > limit:
            raise TextError(f"the transcript needs {len(targets)} tokens; {loaded.checkpoint} can write {limit}.")
        return np.asarray(targets, dtype=np.int64)

    def decode_text(self, loaded: LoadedModel, ids: Sequence[int]) -> str:
        """Ids -> text without special tokens."""
        text: str = loaded.processor.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()

    def loss(self, loaded: LoadedModel, batch: Batch, *, label_smoothing: float = 0.0) -> Losses:
        """Cross-entropy over text and end tokens; with `ctc_share`, a mixture with CTC on the encoder's states.

        The prompt is given at inference, so it is no target. Logits are computed at label positions only.
        """
        labels_BU = batch.targets[:, 1:].clone()
        labels_BU[:, : self._prompt_length(loaded) - 1] = -100
        wanted = labels_BU >= 0
        encoded_BPD = self._encode(loaded, batch)
        logits_NV = self._logits(loaded, batch, encoded_BPD, wanted)
        labels_N = labels_BU[wanted]
        losses_N = F.cross_entropy(logits_NV.float(), labels_N, reduction="none", label_smoothing=label_smoothing)
        losses = Losses.of_labels(losses_N, wanted)
        if loaded.ctc_share == 0:
            return losses
        ctc_B = self._ctc(loaded, batch, encoded_BPD)
        return replace(losses, sums=(1 - loaded.ctc_share) * losses.sums + loaded.ctc_share * ctc_B)

    def _ctc(self, loaded: LoadedModel, batch: Batch, encoded_BPD: Tensor) -> Tensor:
        """CTC loss of each clip (B,) from the encoder's states by the output embedding; `<|nospeech|>` is the blank.

        It needs no weights of its own. A model that starts from nothing learns to listen by it: cross-attention alone
        spells from what it has written for thousands of steps (recipes/nano).

        Source: Watanabe et al. 2017, hybrid CTC/attention.
        """
        scores_PBV = loaded.module.proj_out(encoded_BPD).float().log_softmax(dim=-1).transpose(0, 1)
        prompt = self._prompt_length(loaded)
        return F.ctc_loss(
            scores_PBV,
            batch.targets[:, prompt:].clamp_min(0),
            speech_encoders.positions_of(loaded.module.config, batch.input_lengths).clamp_max(len(scores_PBV)),
            batch.target_lengths - prompt - 1,
            blank=loaded.processor.tokenizer.convert_tokens_to_ids("<|nospeech|>"),
            reduction="none",
            zero_infinity=True,
        )

    def streams(self, loaded: LoadedModel, batch: Batch) -> tuple[Stream, ...]:
        """See `ModelFamily.streams`; cross-attention takes its keys and values from the encoder's rows."""
        heard = speech_encoders.streams_of(
            loaded.module.model.encoder, "model.encoder", batch.inputs, batch.input_lengths,
            full_context=batch.full_context,
        )  # fmt: skip
        # A token is put in for the next one to come out, so the last of each clip is not.
        written_BU = (batch.targets[:, 1:] >= 0).to(torch.int8) * TEXT
        return (
            Stream(modules=r"^model\.decoder\..*\.encoder_attn\.[kv]_proj$", kinds=heard[-1].kinds),
            Stream(modules=r"^model\.decoder\.", kinds=written_BU),
            *heard,
        )

    def logits(self, loaded: LoadedModel, batch: Batch) -> Tensor:
        """Logits (N, V) at every target position, prompt included."""
        return self._logits(loaded, batch, self._encode(loaded, batch), batch.targets[:, 1:] >= 0)

    def _logits(self, loaded: LoadedModel, batch: Batch, encoded_BPD: Tensor, wanted_BU: Tensor) -> Tensor:
        inputs_BU = batch.targets[:, :-1].clamp_min(0)
        hidden_BUD = loaded.module.model.decoder(
            input_ids=inputs_BU, encoder_hidden_states=encoded_BPD, use_cache=False
        ).last_hidden_state
        logits_NV: Tensor = loaded.module.proj_out(hidden_BUD[wanted_BU])
        return logits_NV

    @torch.no_grad()
    def transcribe(
        self, loaded: LoadedModel, batch: Batch, *, beam_size: int = 1, max_new_tokens: int | None = None
    ) -> list[str]:
        """Greedy (`beam_size=1`) or beam decoding with a key-value cache; the language is detected where unknown."""
        from transformers import GenerationMixin  # noqa: PLC0415  (slow import, decoding only)
        from transformers.modeling_outputs import BaseModelOutput  # noqa: PLC0415

        module = loaded.module
        encoded_BPD = self._encode(loaded, batch)
        languages = self._languages(loaded, batch, encoded_BPD)
        prompt_BU = torch.tensor([self._prompt(loaded, language) for language in languages], device=encoded_BPD.device)
        room = module.config.max_target_positions - prompt_BU.shape[1]
        settings = copy.deepcopy(module.generation_config)
        settings.update(
            max_length=None, max_new_tokens=min(max_new_tokens or room, room), num_beams=beam_size, do_sample=False,
            return_dict_in_generate=False, use_cache=True, forced_decoder_ids=None, return_timestamps=False,
        )  # fmt: skip
        ids_BU = GenerationMixin.generate(
            module,
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded_BPD),
            decoder_input_ids=prompt_BU,
            generation_config=settings,
        )
        return [self.decode_text(loaded, row) for row in ids_BU[:, prompt_BU.shape[1] :].tolist()]

    def _encode(self, loaded: LoadedModel, batch: Batch) -> Tensor:
        """Features (B, T, F) -> encoder states (B, P, D) at the batch's own length.

        Frames beyond a clip's end hold silence; positions that would see them are cut or masked, so a clip gives the
        same states alone and in any batch.
        """
        states_BPD, positions_B = speech_encoders.encode(
            loaded.module.model.encoder, batch.inputs, batch.input_lengths, full_context=batch.full_context
        )
        longest, mask = states_BPD.shape[1], None
        if int(positions_B.min()) < longest:
            mask = valid_frames(positions_B.to(states_BPD.device), longest)[:, None, None, :]
        loaded.module.model.decoder.cross_mask = mask
        return states_BPD

    def _prompt_length(self, loaded: LoadedModel) -> int:
        return 4 if _is_multilingual(loaded) else 2

    def _prompt(self, loaded: LoadedModel, language: str | None) -> list[int]:
        tokenizer, start = loaded.processor.tokenizer, loaded.module.config.decoder_start_token_id
        no_timestamps = tokenizer.convert_tokens_to_ids("<|notimestamps|>")
        if not _is_multilingual(loaded):
            if language is not None and not self.knows_language(loaded, language):
                raise TextError(
                    f"{loaded.checkpoint} is an English-only checkpoint and the language is {language!r}; it knows en. "
                    "Take a multilingual checkpoint, or set the language to en."
                )
            return [start, no_timestamps]
        if language is None:
            raise TextError(
                f"{loaded.checkpoint} is multilingual and a clip has no language. "
                "Set model.language=en (or another code), or give each manifest line a `language`."
            )
        known = _language_tokens(loaded)
        code = find_code(language, known)
        if code is None:
            codes = ", ".join(sorted(known))
            raise TextError(f"{loaded.checkpoint} does not know the language {language!r}; it knows {codes}.")
        return [start, known[code], tokenizer.convert_tokens_to_ids("<|transcribe|>"), no_timestamps]

    def _languages(self, loaded: LoadedModel, batch: Batch, encoded_BPD: Tensor) -> list[str | None]:
        languages = [clip.language for clip in batch.clips]
        if not _is_multilingual(loaded) or all(languages):
            return languages
        known = _language_tokens(loaded)
        start = torch.full((len(languages), 1), loaded.module.config.decoder_start_token_id, device=encoded_BPD.device)
        hidden = loaded.module.model.decoder(
            input_ids=start, encoder_hidden_states=encoded_BPD, use_cache=False
        ).last_hidden_state[:, -1]
        codes = list(known)
        best = loaded.module.proj_out(hidden)[:, [known[code] for code in codes]].argmax(dim=-1).tolist()
        return [given or codes[index] for given, index in zip(languages, best, strict=True)]


def _is_multilingual(loaded: LoadedModel) -> bool:
    return bool(getattr(loaded.module.generation_config, "lang_to_id", None))


def _is_english(loaded: LoadedModel) -> bool:
    return bool(loaded.module.config.vocab_size == ENGLISH_VOCABULARY)


def _language_tokens(loaded: LoadedModel) -> dict[str, int]:
    """Code -> id of the token that names the language."""
    known: dict[str, int] = loaded.module.generation_config.lang_to_id
    return {token.strip("<|>"): index for token, index in known.items()}


def _components(module: Any) -> tuple[Component, ...]:
    encoder, decoder = "model.encoder", "model.decoder"
    return (
        Component(
            name="stem", prefixes=(f"{encoder}.conv1", f"{encoder}.conv2", f"{encoder}.embed_positions"),
            parts={"convolutions": r"\.conv\d\."},
        ),
        Component(
            name="encoder",
            prefixes=(f"{encoder}.layers", f"{encoder}.layer_norm"),
            layers=tuple(f"{encoder}.layers.{index}" for index in range(len(module.model.encoder.layers))),
            parts={"attention": r"\.self_attn\.", "feed_forward": r"\.fc[12]\."},
        ),
        Component(
            name="decoder",
            prefixes=(f"{decoder}.layers", f"{decoder}.layer_norm", f"{decoder}.embed_positions"),
            layers=tuple(f"{decoder}.layers.{index}" for index in range(len(module.model.decoder.layers))),
            parts={
                "self_attention": r"\.self_attn\.",
                "cross_attention": r"\.encoder_attn\.",
                "feed_forward": r"\.fc[12]\.",
            },
        ),
        Component(name="embeddings", prefixes=(f"{decoder}.embed_tokens",)),
        Component(name="head", prefixes=("proj_out",)),
    )  # fmt: skip


def _install_cross_attention_mask(module: Any) -> None:
    """Let the decoder's layers see which encoder positions are valid.

    `transformers` passes `encoder_attention_mask=None` to every layer, so the mask of the last encoded batch is put in
    by a hook. It is kept until the next batch is encoded, which is what re-computation under gradient checkpointing
    needs. Beam search repeats the clips of a batch, so the mask is repeated as well.
    """
    decoder = module.model.decoder
    decoder.cross_mask = None

    def put_mask(
        layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        mask = decoder.cross_mask
        if mask is not None:
            repeats = inputs[0].shape[0] // mask.shape[0]
            named["encoder_attention_mask"] = mask.repeat_interleave(repeats, dim=0) if repeats > 1 else mask
        return inputs, named

    for layer in decoder.layers:
        layer.register_forward_pre_hook(put_mask, with_kwargs=True)
