"""Whisper: log-mel frames -> convolutional stem -> encoder -> autoregressive decoder.

`transformers` pads every clip to the model's whole window (30 s) and masks nothing; with `context="full"` the
computation is that, to the bit. With `context="thinned"` most of the silence behind a clip is left out and what is kept
stands for the rest in attention, which leaves the function of pretrained weights as it is (`models.thinning`). With
`context="cut"` all of it is left out, which only weights that were trained so bear. A clip's output never depends on
its neighbours in a batch.

Shape letters: B clips, T frames, P encoder positions (two frames each), F mel bins, U target tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sonotune.errors import TextError, TextTooLongError
from sonotune.features.batching import Batch
from sonotune.features.frontend import from_feature_extractor
from sonotune.models import decoding, encoder_rows, speech_encoders
from sonotune.models.audio_positions import PositionedModules, decode_rows, decoded_rows, in_encoder
from sonotune.models.base import TEXT, Component, LoadedModel, Stream
from sonotune.models.checkpoints import is_classifier, load_pretrained, outline_pretrained
from sonotune.models.families.whisper_checkpoint import (
    check_tokens,
    complete_generation_config,
    is_english,
    is_multilingual,
    language_tokens,
    load_whisper_processor,
)
from sonotune.models.families.whisper_decoding import CachedDecoder, draw, generate, judge, token_limits
from sonotune.models.frame_merging.settings import NO_AUDIO_TOKENS, MergePart
from sonotune.models.languages import find_code, named, nearest, nothing_to_note, some_codes
from sonotune.models.losses import LabelOutputs
from sonotune.models.outputs import refuse_new_outputs
from sonotune.models.token_words import words_of_tokens
from sonotune.types import DEFAULT_DECODING, Context, DecodingSettings, Hypothesis

_CROSSING: Final = r"^model\.decoder\..*\.encoder_attn\.[kv]_proj$"
_FIRST_TIME = "<|0.00|>"
_TIME_STEP_S = 0.02  # between the tokens of times


class WhisperFamily:
    """Whisper speech-to-text, multilingual or English-only."""

    name = "whisper"
    task = "transcribe"
    packaged = "whisper_nano"
    published_names = r"whisper"
    label_overhead = 5

    def handles(self, config: Any) -> bool:
        """See `ModelFamily.handles`; Whisper with a classification head is another family's."""
        return config.model_type == "whisper" and not is_classifier(config)

    def load(
        self,
        checkpoint: str,
        *,
        revision: str | None = None,
        context: Context | None = None,
        random_weights: bool = False,
        dropout: float | None = None,
        outputs: Sequence[str] = (),
        renew_outputs: bool = False,
        tokenizer: str | None = None,
    ) -> LoadedModel:
        """See `ModelFamily.load`; text is written in the checkpoint's own tokens."""
        refuse_new_outputs(self.name, renew_outputs=renew_outputs, tokenizer=tokenizer)
        module, _, identity = load_pretrained(
            checkpoint,
            self,
            class_name="WhisperForConditionalGeneration",
            revision=revision,
            random_weights=random_weights,
            config_changes={"dropout": dropout},
            processor_class=None,
        )
        processor = load_whisper_processor(checkpoint, revision=revision, config=module.config)
        complete_generation_config(module, processor.tokenizer, checkpoint)
        check_tokens(module, checkpoint)
        return self._mapped(
            module,
            checkpoint=checkpoint,
            revision=identity,
            processor=processor,
            **speech_encoders.contexts_of(module.config, context),
            frontend=from_feature_extractor(processor.feature_extractor),
        )

    def outline(self, checkpoint: str, *, revision: str | None = None, outputs: int | None = None) -> LoadedModel:
        """See `ModelFamily.outline`."""
        module, identity = outline_pretrained(
            checkpoint, self, class_name="WhisperForConditionalGeneration", revision=revision
        )
        frontend = speech_encoders.frontend_of(module.config)
        return self._mapped(
            module,
            checkpoint=checkpoint,
            revision=identity,
            frontend=frontend,
            processor=None,
            **speech_encoders.contexts_of(module.config, None),
        )

    def _mapped(self, module: Any, **given: Any) -> LoadedModel:
        loaded = LoadedModel(
            module=module,
            components=_components(module),
            linears=tuple(
                name
                for name, child in module.named_modules()
                if isinstance(child, nn.Linear) and (".encoder.layers." in name or ".decoder.layers." in name)
            ),
            family=self,
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
        if not is_multilingual(loaded):
            return not is_english(loaded) or find_code(language, ("en",)) is not None
        return find_code(language, language_tokens(loaded)) is not None

    def note_on_language(self, loaded: LoadedModel, language: str) -> str | None:
        """See `SpeechFamily.note_on_language`; there is nothing to say."""
        return nothing_to_note(language)

    def encode_text(
        self, loaded: LoadedModel, text: str, language: str | None, *, duration_s: float | None = None
    ) -> NDArray[np.int64]:
        """`<|startoftranscript|> language task <|notimestamps|> text <|endoftext|>` as (U,) ids.

        The text begins with a space where the tokenizer joins it to the first letters, as in the texts that the
        published checkpoints were trained on; a character tokenizer, or a script without spaces, has no such token.

        Raises:
            TextError: The text is empty of tokens, or has characters the tokenizer lacks.
            TextTooLongError: The decoder cannot write as many tokens.
        """
        tokenizer = loaded.processor.tokenizer
        ids = text_tokens(tokenizer, text)
        back = tokenizer.decode(ids, skip_special_tokens=True)
        if back.split() != text.split():
            lost = sorted(set(text) - set(back)) or [text]
            raise TextError(f"the tokenizer of {loaded.checkpoint} cannot write {' '.join(map(repr, lost))[:80]}.")
        targets = [*self.prompt_tokens(loaded, language), *ids, loaded.module.config.eos_token_id]
        limit = loaded.module.config.max_target_positions
        if len(targets) > limit:
            raise TextTooLongError(
                f"the transcript needs {len(targets)} tokens; {loaded.checkpoint} can write {limit}."
            )
        return np.asarray(targets, dtype=np.int64)

    def decode_text(self, loaded: LoadedModel, ids: Sequence[int]) -> str:
        """Ids -> text without special tokens."""
        text: str = loaded.processor.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()

    def written_form(self, loaded: LoadedModel) -> Callable[[str], str]:
        """See `SpeechFamily.written_form`; letters of every case have tokens."""
        return str

    def forward(self, loaded: LoadedModel, batch: Batch) -> LabelOutputs:
        """States that predict text and end tokens, and CTC on the encoder's states.

        The prompt is given at inference, so it is no target.
        """
        labels_BU = batch.targets[:, 1:].clone()
        labels_BU[:, : self._prompt_length(loaded) - 1] = -100
        places_BU = labels_BU >= 0
        encoded = self._encode(loaded, batch)
        return LabelOutputs(
            states=self._decoder_states(loaded, batch, encoded.states)[places_BU],
            head=loaded.module.proj_out,
            labels=labels_BU[places_BU],
            places=places_BU,
            ctc=lambda: self._ctc(loaded, batch, encoded.unmerged_states),
        )

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
            encoder_rows.positions_of(loaded.module.config, batch.input_lengths).clamp_max(len(scores_PBV)),
            batch.target_lengths - prompt - 1,
            blank=loaded.processor.tokenizer.convert_tokens_to_ids("<|nospeech|>"),
            reduction="none",
            zero_infinity=True,
        )

    def merging_refusals(self, loaded: LoadedModel) -> Mapping[MergePart, str]:
        """See `ModelFamily.merging_refusals`."""
        return {"audio": NO_AUDIO_TOKENS}

    def merge_layers(self, loaded: LoadedModel) -> Sequence[nn.Module]:
        """See `ModelFamily.merge_layers`."""
        layers: Sequence[nn.Module] = loaded.module.model.encoder.layers
        return layers

    def streams(self, loaded: LoadedModel, batch: Batch) -> tuple[Stream, ...]:
        """See `ModelFamily.streams`; cross-attention takes its keys and values from the encoder's rows."""
        heard = encoder_rows.streams_of(
            loaded.module.model.encoder,
            "model.encoder",
            batch.inputs,
            batch.input_lengths,
            context=batch.context,
            thinning=loaded.thinning,
            merging=loaded.merging,
        )
        # A token is put in for the next one to come out, so the last of each clip is not.
        written_BU = (batch.targets[:, 1:] >= 0).to(torch.int8) * TEXT
        return (
            Stream(modules=_CROSSING, kinds=heard[-1].kinds),
            Stream(modules=r"^model\.decoder\.", kinds=written_BU),
            *heard,
        )

    def positioned_modules(self, loaded: LoadedModel) -> PositionedModules:
        """See `PositionedFamily`; cross-attention takes its keys and values from the encoder's rows."""
        return in_encoder(loaded, loaded.module.model.encoder, crossing=_CROSSING)

    def logits(self, loaded: LoadedModel, batch: Batch) -> Tensor:
        """Logits (N, V) at every target position, prompt included."""
        states_BUD = self._decoder_states(loaded, batch, self._encode(loaded, batch).states)
        logits_NV: Tensor = loaded.module.proj_out(states_BUD[batch.targets[:, 1:] >= 0])
        return logits_NV

    def decoder_states(self, loaded: LoadedModel, batch: Batch, sources: Sequence[int]) -> Tensor:
        """States (B, U-1, D) that make the logits of every target but the first, which is given.

        Args:
            loaded: The model.
            batch: With targets; several rows may be of one recording.
            sources: For each row, a row of the same recording: each of these is encoded once.
        """
        encoded = sorted(set(sources))
        copies = [encoded.index(row) for row in sources]
        states_BPD = self._encode(loaded, batch.rows(encoded)).states[copies]
        decoder = loaded.module.model.decoder
        decoder.cross_mask = None if decoder.cross_mask is None else decoder.cross_mask[copies]
        decode_rows(loaded.module.model.encoder, torch.tensor(copies, device=states_BPD.device))
        return self._decoder_states(loaded, batch, states_BPD)

    def _decoder_states(self, loaded: LoadedModel, batch: Batch, encoded_BPD: Tensor) -> Tensor:
        inputs_BU = batch.targets[:, :-1].clamp_min(0)
        hidden_BUD: Tensor = loaded.module.model.decoder(
            input_ids=inputs_BU, encoder_hidden_states=encoded_BPD, use_cache=False
        ).last_hidden_state
        return hidden_BUD

    @torch.no_grad()
    def transcribe(
        self, loaded: LoadedModel, batch: Batch, settings: DecodingSettings = DEFAULT_DECODING
    ) -> list[Hypothesis]:
        """Greedy or beam decoding, then sampling of texts that look wrong; the language is detected where unknown."""
        with _batch_before_kept(loaded.module):
            return self._transcribed(loaded, batch, settings)

    def _transcribed(self, loaded: LoadedModel, batch: Batch, settings: DecodingSettings) -> list[Hypothesis]:
        encoded_BPD = self._encode(loaded, batch).states
        languages = self._languages(loaded, batch, encoded_BPD)
        prompts = [self.prompt_tokens(loaded, language) for language in languages]
        prompt_BU = torch.tensor(prompts, device=encoded_BPD.device)
        limits = token_limits(loaded, batch, settings, prompt=prompt_BU.shape[1])
        mask, keys = loaded.module.model.decoder.cross_mask, batch.draw_keys

        def candidates(rows: Sequence[int], temperature: float) -> tuple[list[decoding.Candidate], list[float]]:
            chosen = torch.tensor(list(rows), device=encoded_BPD.device)
            decoder = CachedDecoder(loaded, encoded_BPD[chosen], None if mask is None else mask[chosen], chosen)
            written = decoding.write(
                decoder,
                prompt_BU[chosen],
                end=loaded.module.config.eos_token_id,
                limits=[limits[row] for row in rows],
                settings=settings,
                temperature=temperature,
                draw_keys=[keys[row] for row in rows],
            )
            made = [
                self._candidate(loaded, one, limit=limits[row], rate=settings.confidence)
                for row, one in zip(rows, written, strict=True)
            ]
            return made, decoder.no_speech

        if settings.beam_size == 1:
            first, no_speech = candidates(range(len(limits)), 0.0)
        else:
            rows, finite = generate(loaded, encoded_BPD, prompt_BU, limits, settings)
            written, no_speech = judge(loaded, encoded_BPD, prompt_BU, rows, finite)
            first = [
                self._candidate(loaded, one, limit=limit, rate=settings.confidence)
                for one, limit in zip(written, limits, strict=True)
            ]
        return decoding.fall_back(first, no_speech, settings, lambda rows, heat: candidates(rows, heat)[0])

    @torch.no_grad()
    def draw_targets(
        self, loaded: LoadedModel, batch: Batch, *, limits: Sequence[int], draw_keys: Sequence[str]
    ) -> list[list[int]]:
        """See `training.objectives.distill.DrawingFamily`; tokens that the checkpoint suppresses are not drawn."""
        prompt_BU = batch.targets[:, : self._prompt_length(loaded)]
        with _batch_before_kept(loaded.module):
            encoded_BPD = self._encode(loaded, batch).states
            return draw(loaded, encoded_BPD, prompt_BU, limits=limits, draw_keys=draw_keys)

    def _candidate(
        self, loaded: LoadedModel, written: decoding.Written, *, limit: int, rate: bool
    ) -> decoding.Candidate:
        """The text of what was written, and the words of it where they are to be rated."""
        decode = partial(self.decode_text, loaded)
        cut = decoding.is_cut(written.ids, limit)
        text = decoding.without_half_character(decode(written.ids), cut=cut)
        words = words_of_tokens(text, written.ids, written.logprobs, decode) if rate else None
        return decoding.Candidate(text, written.mean_logprob, finite=written.finite, cut=cut, words=words)

    def _encode(self, loaded: LoadedModel, batch: Batch) -> speech_encoders.Encoded:
        """Features (B, T, F) -> encoder states (B, P, D); what they stand for is left for the decoder's layers."""
        encoded = speech_encoders.encode(
            loaded.module.model.encoder,
            batch.inputs,
            batch.input_lengths,
            context=batch.context,
            thinning=loaded.thinning,
            merging=loaded.merging,
        )
        weights_BP = encoded.log_weights
        loaded.module.model.decoder.cross_mask = None if weights_BP is None else weights_BP[:, None, None, :]
        return encoded

    def _prompt_length(self, loaded: LoadedModel) -> int:
        return 4 if is_multilingual(loaded) else 2

    def prompt_tokens(self, loaded: LoadedModel, language: str | None) -> list[int]:
        """Ids that the decoder is given before it writes: `<|startoftranscript|> language task <|notimestamps|>`.

        An English-only checkpoint has no tokens of language and task.

        Raises:
            TextError: The checkpoint does not know the language, or needs one.
        """
        tokenizer, start = loaded.processor.tokenizer, loaded.module.config.decoder_start_token_id
        no_timestamps = tokenizer.convert_tokens_to_ids("<|notimestamps|>")
        if not is_multilingual(loaded):
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
        known = language_tokens(loaded)
        code = find_code(language, known)
        if code is None:
            meant = nearest(language, named(known))
            it_knows = f"{meant} It knows" if meant else "; it knows"
            raise TextError(
                f"{loaded.checkpoint} does not know the language {language!r}{it_knows} "
                f"{some_codes(known)}. To teach it another, give the clips the code of a related one."
            )
        return [start, known[code], tokenizer.convert_tokens_to_ids("<|transcribe|>"), no_timestamps]

    def languages(self, loaded: LoadedModel) -> tuple[str, ...]:
        """Codes of the languages that the checkpoint has a token for; none where it is told no language."""
        return tuple(language_tokens(loaded)) if is_multilingual(loaded) else ()

    @torch.no_grad()
    def detect_languages(self, loaded: LoadedModel, batch: Batch) -> list[str]:
        """Code of the likeliest language token of each clip, whatever language the clip names."""
        with _batch_before_kept(loaded.module):
            return self._detected(loaded, self._encode(loaded, batch).states)

    def writes_timestamps(self, loaded: LoadedModel) -> bool:
        """Whether the checkpoint has tokens for times."""
        return _FIRST_TIME in loaded.processor.tokenizer.get_vocab()

    @torch.no_grad()
    def timestamps(
        self, loaded: LoadedModel, batch: Batch, settings: DecodingSettings = DEFAULT_DECODING
    ) -> list[tuple[float, ...]]:
        """Seconds that the model writes before and after the segments of each clip, none where it writes no text.

        Args:
            loaded: A checkpoint that `writes_timestamps`.
            batch: The clips.
            settings: Beams and what hinders repetition; nothing is decoded again.

        Source: Radford et al. 2022, section 2.3; the rules of times are those of `transformers`.
        """
        from transformers import WhisperTimeStampLogitsProcessor  # noqa: PLC0415  (slow import, decoding only)

        with _batch_before_kept(loaded.module):
            encoded_BPD = self._encode(loaded, batch).states
            prompts = [self.prompt_tokens(loaded, one)[:-1] for one in self._languages(loaded, batch, encoded_BPD)]
            prompt_BU = torch.tensor(prompts, device=encoded_BPD.device)
            limits = token_limits(loaded, batch, settings, prompt=prompt_BU.shape[1])
            rules = WhisperTimeStampLogitsProcessor(loaded.module.generation_config, begin_index=prompt_BU.shape[1])
            rows, _ = generate(loaded, encoded_BPD, prompt_BU, limits, settings, [rules])
        first = loaded.processor.tokenizer.convert_tokens_to_ids(_FIRST_TIME)
        return [tuple((one - first) * _TIME_STEP_S for one in row if one >= first) for row in rows]

    def _languages(self, loaded: LoadedModel, batch: Batch, encoded_BPD: Tensor) -> list[str | None]:
        languages = [clip.language for clip in batch.clips]
        if not is_multilingual(loaded) or all(languages):
            return languages
        return [given or found for given, found in zip(languages, self._detected(loaded, encoded_BPD), strict=True)]

    def language_logits(self, loaded: LoadedModel, states_D: Tensor) -> Tensor:
        """Logits of the language tokens (..., L), in the order of `languages`.

        Args:
            loaded: A multilingual checkpoint.
            states_D: What the decoder has at the start token (..., D).
        """
        ids = list(language_tokens(loaded).values())
        logits: Tensor = loaded.module.proj_out(states_D)[..., ids]
        return logits

    def _detected(self, loaded: LoadedModel, encoded_BPD: Tensor) -> list[str]:
        start = torch.full(
            (len(encoded_BPD), 1), loaded.module.config.decoder_start_token_id, device=encoded_BPD.device
        )
        hidden = loaded.module.model.decoder(
            input_ids=start, encoder_hidden_states=encoded_BPD, use_cache=False
        ).last_hidden_state[:, -1]
        codes = self.languages(loaded)
        return [codes[index] for index in self.language_logits(loaded, hidden).argmax(dim=-1).tolist()]


def text_tokens(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text without special tokens, with a space in front where the first token takes it in."""
    plain: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    if not plain or text[0].isspace():
        return plain
    spaced: list[int] = tokenizer(f" {text}", add_special_tokens=False).input_ids
    return plain if spaced[1:] == plain else spaced


def _components(module: Any) -> tuple[Component, ...]:
    encoder, decoder = "model.encoder", "model.decoder"
    return (
        Component(
            name="stem",
            prefixes=(f"{encoder}.conv1", f"{encoder}.conv2", f"{encoder}.embed_positions"),
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
    )


@contextmanager
def _batch_before_kept(module: Any) -> Iterator[None]:
    """What the decoder knows of the last encoded batch is there again afterwards: its backward pass may need it."""
    decoder, rows = module.model.decoder, decoded_rows(module.model.encoder)
    mask = decoder.cross_mask
    try:
        yield
    finally:
        decoder.cross_mask = mask
        decode_rows(module.model.encoder, rows)


def _install_cross_attention_mask(module: Any) -> None:
    """Let the decoder's layers see how many positions each encoder state stands for; padding stands for none.

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
