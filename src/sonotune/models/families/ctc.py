"""CTC models: wav2vec2, HuBERT, WavLM, wav2vec2-Conformer and Parakeet.

A clip's frames are classified one by one, so the output layer is the vocabulary: the checkpoint's own, characters of
the training data, or the tokens of a tokenizer trained on it.

A clip gives the same output alone and in any batch (`models.speech_encoders`), and time masking by a global random
state is off: masks belong to `augmentation`.

Shape letters: B clips, T frames, D width, U target symbols, V symbols with the blank.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sonotune.errors import ConfigError, ModelError, TextError
from sonotune.features.batching import Batch
from sonotune.features.frontend import Frontend, RawWaveform, from_feature_extractor
from sonotune.features.normalization import valid_frames
from sonotune.features.parakeet import NormalizedLogMel
from sonotune.models import encoder_rows, speech_encoders
from sonotune.models.audio_positions import AudioPositions, PositionedModules, announce, in_encoder
from sonotune.models.base import AUDIO, Component, LoadedModel, Stream
from sonotune.models.checkpoints import (
    check_family,
    is_classifier,
    load_pretrained,
    load_processor,
    outline_pretrained,
    read_config,
    reinitialise,
)
from sonotune.models.ctc_decoding import beam_search, collapse, label_logprobs
from sonotune.models.frame_merging.settings import NO_AUDIO_TOKENS, MergePart
from sonotune.models.languages import nothing_to_note
from sonotune.models.letters import Letters
from sonotune.models.losses import FrameOutputs
from sonotune.models.norms import fix_batch_norms
from sonotune.models.token_words import words_of_tokens
from sonotune.types import DEFAULT_DECODING, NOT_FINITE, Context, DecodingSettings, Hypothesis

logger = logging.getLogger(__name__)

_CLASSES: Final = MappingProxyType(
    {
        "wav2vec2": "Wav2Vec2ForCTC",
        "hubert": "HubertForCTC",
        "wavlm": "WavLMForCTC",
        "wav2vec2-conformer": "Wav2Vec2ConformerForCTC",
        "parakeet_ctc": "ParakeetForCTC",
    }
)
_HEAD: Final = r"^(lm_head|ctc_head)\."
_PENALTIES: Final = ("length_penalty", "no_repeat_ngram_size", "repetition_penalty")
BLANK: Final = "<pad>"
UNKNOWN: Final = "<unk>"
WORD_BORDER: Final = "|"


class CtcFamily:
    """Frame-wise speech-to-text without a decoder."""

    name = "ctc"
    task = "transcribe"
    packaged = "ctc_nano"
    published_names = r"wav2vec2|hubert|wavlm|parakeet|ctc"
    label_overhead = 0

    def handles(self, config: Any) -> bool:
        """See `ModelFamily.handles`; a pretrained encoder without any head counts."""
        return config.model_type in _CLASSES and not is_classifier(config)

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
        """See `ModelFamily.load`.

        Args:
            checkpoint: Packaged, local or hub name.
            revision: Hub revision.
            context: These models have no window; all are the same.
            random_weights: Build from the configuration alone.
            dropout: Of hidden states.
            outputs: Characters of the data; they become the vocabulary where the checkpoint has none.
            renew_outputs: They become the vocabulary in any case.
            tokenizer: Folder of a tokenizer that is to be the vocabulary.

        Raises:
            ModelError: As in `ModelFamily.load`, or there is no vocabulary and no data to make one of.
        """
        config = read_config(checkpoint, revision, published=False)
        check_family(checkpoint, config, self)
        renew = renew_outputs or tokenizer is not None or not _has_outputs(config)
        words = _vocabulary(checkpoint, revision, outputs, tokenizer) if renew else None
        extractor = load_processor(checkpoint, class_name="AutoFeatureExtractor", revision=revision)
        module, _, identity = load_pretrained(
            checkpoint,
            self,
            class_name=_CLASSES.get(config.model_type, ""),
            revision=revision,
            random_weights=random_weights,
            processor_class=None,
            new_parameters=_HEAD if renew else None,
            config_changes=_settings(config, dropout) | (_sizes(words) if words is not None else {}),
        )
        if renew:  # also where an old layer of the same size could be loaded: its symbols are others
            reinitialise(module, [name for name, _ in module.named_parameters() if re.search(_HEAD, name)])
        if words is None:
            words = load_processor(checkpoint, class_name="AutoTokenizer", revision=revision)
        loaded = self._mapped(
            module,
            checkpoint=checkpoint,
            revision=identity,
            context=context or "full",
            processor=_processor(config.model_type, extractor, words),
            frontend=from_feature_extractor(extractor),
            new_outputs=tuple(words.convert_ids_to_tokens(list(range(len(words))))) if renew else (),
        )
        _check_vocabulary(loaded)
        return loaded

    def outline(self, checkpoint: str, *, revision: str | None = None, outputs: int | None = None) -> LoadedModel:
        """See `ModelFamily.outline`."""
        config = read_config(checkpoint, revision)
        module, identity = outline_pretrained(
            checkpoint,
            self,
            class_name=_CLASSES.get(config.model_type, ""),
            revision=revision,
            config_changes={**_settings(config, None), "vocab_size": outputs},
        )
        bins = getattr(getattr(config, "encoder_config", None), "num_mel_bins", 80)
        frontend: Frontend = NormalizedLogMel(bins) if config.model_type == "parakeet_ctc" else RawWaveform()
        symbols = tuple(f"symbol {index}" for index in range(module.config.vocab_size))
        return self._mapped(
            module,
            checkpoint=checkpoint,
            revision=identity,
            frontend=frontend,
            processor=None,
            new_outputs=symbols if outputs or not _has_outputs(config) else (),
        )

    def _mapped(self, module: Any, **given: Any) -> LoadedModel:
        if hasattr(module, "ctc_head"):
            fix_batch_norms(module)
        else:
            speech_encoders.make_plain(module.base_model, fold=False)
        components = _components(module)
        homes = tuple(f"{layer}." for component in components for layer in component.layers)
        return LoadedModel(
            module=module,
            components=components,
            linears=tuple(
                name
                for name, child in module.named_modules()
                if isinstance(child, nn.Linear) and (name.startswith(homes) or name == "lm_head")
            ),
            family=self,
            constant=_constant(module),
            # It masks padding behind whatever is a convolution, and a wrapped one is none.
            stem_modules=("encoder.subsampling",) if hasattr(module, "ctc_head") else (),
            **given,
        )

    def knows_language(self, loaded: LoadedModel, language: str) -> bool:
        """A vocabulary has no language; whatever it can spell it can be trained to write."""
        return True

    def note_on_language(self, loaded: LoadedModel, language: str) -> str | None:
        """See `SpeechFamily.note_on_language`; there is nothing to say."""
        return nothing_to_note(language)

    def encode_text(
        self, loaded: LoadedModel, text: str, language: str | None, *, duration_s: float | None = None
    ) -> NDArray[np.int64]:
        """Text -> (U,) symbols; a vocabulary of one case writes a text of any case in its own.

        Raises:
            TextError: The text has characters that the vocabulary lacks, or needs more frames than the clip has: one
                for each symbol, and a blank between two that are the same.
        """
        tokenizer = loaded.processor.tokenizer
        case = _letters(tokenizer)
        written = case.write(text)
        ids: list[int] = tokenizer(written, add_special_tokens=False).input_ids
        if tokenizer.unk_token_id in ids or case.write(_decoded(tokenizer, ids)).split() != written.split():
            known = {*case.write(_decoded(tokenizer, range(len(tokenizer)))), " "}
            lacking = sorted({one for one in text if not one.isspace() and not known.issuperset(case.write(one))})
            advice = (
                "or take data.train with all the characters that are needed"
                if loaded.new_outputs
                else "or model.outputs=data for a new vocabulary"
            )
            raise TextError(
                f"the vocabulary of {loaded.checkpoint} lacks {' '.join(map(repr, lacking))[:80] or repr(text)}. "
                f"Take a normaliser that removes it (data.text_training), {advice}."
            )
        if duration_s is not None:
            self._check_room(loaded, ids, duration_s)
        return np.asarray(ids, dtype=np.int64)

    def _check_room(self, loaded: LoadedModel, ids: Sequence[int], duration_s: float) -> None:
        rate = loaded.frontend.sample_rate_hz
        heard = int(round(duration_s * rate) * loaded.frontend.frames_per_second / rate)
        frames = int(self._frames(loaded, torch.tensor([heard]))[0])
        needed = len(ids) + sum(first == second for first, second in itertools.pairwise(ids))
        if needed > frames:
            raise TextError(
                f"the transcript needs {needed} frames and a clip of {duration_s:.2f} s has {frames}: CTC writes one "
                "symbol a frame at most. Check that the transcript belongs to the clip, or take longer tokens."
            )

    def decode_text(self, loaded: LoadedModel, ids: Sequence[int]) -> str:
        """Symbols -> text; every id stands for itself, repeats included. What is written upper is read lower."""
        tokenizer = loaded.processor.tokenizer
        return _letters(tokenizer).read(_decoded(tokenizer, ids))

    def written_form(self, loaded: LoadedModel) -> Callable[[str], str]:
        """See `SpeechFamily.written_form`."""
        return _letters(loaded.processor.tokenizer).write

    def word_starts(self, loaded: LoadedModel) -> Tensor:
        """Whether each symbol begins a word (V,): it is the border before one, or is written with it.

        A vocabulary without borders, such as that of a script without spaces, has one word a symbol.
        """
        tokenizer = loaded.processor.tokenizer
        border = getattr(tokenizer, "word_delimiter_token", None)
        symbols = tokenizer.convert_ids_to_tokens(list(range(loaded.module.config.vocab_size)))
        begins_V = torch.tensor(
            [symbol is not None and (symbol == border or symbol.startswith(_BORDERS)) for symbol in symbols]
        )
        return begins_V if bool(begins_V.any()) else torch.ones_like(begins_V)

    def forward(self, loaded: LoadedModel, batch: Batch) -> FrameOutputs:
        """Log-probabilities of every frame."""
        scores_BTV, lengths_B = self._scores(loaded, batch)
        return FrameOutputs(
            log_probs=scores_BTV,
            lengths=lengths_B,
            targets=batch.targets,
            target_lengths=batch.target_lengths,
            blank=loaded.module.config.pad_token_id,
        )

    def merging_refusals(self, loaded: LoadedModel) -> Mapping[MergePart, str]:
        """See `ModelFamily.merging_refusals`."""
        config = loaded.module.config
        if hasattr(loaded.module, "ctc_head"):
            config = config.encoder_config
        refusal = encoder_rows.merging_refusal(config)
        return {"audio": NO_AUDIO_TOKENS, **({"encoder": refusal} if refusal else {})}

    def merge_layers(self, loaded: LoadedModel) -> Sequence[nn.Module]:
        """See `ModelFamily.merge_layers`."""
        if "encoder" in self.merging_refusals(loaded):
            return ()
        layers: Sequence[nn.Module] = speech_encoders.layers_of(loaded.module.base_model)
        return layers

    def streams(self, loaded: LoadedModel, batch: Batch) -> tuple[Stream, ...]:
        """See `ModelFamily.streams`."""
        module = loaded.module
        if not hasattr(module, "ctc_head"):
            base = str(module.base_model_prefix)
            heard = encoder_rows.streams_of(
                module.base_model,
                base,
                batch.inputs,
                batch.input_lengths,
                context=batch.context,
                merging=loaded.merging,
            )
            frames_B = self._frames(loaded, batch.input_lengths)
            frames_BT = encoder_rows.row_kinds(frames_B, int(frames_B.max()))
            return (*heard, Stream(modules=r"^lm_head$", kinds=frames_BT))
        lengths_B = self._frames(loaded, batch.input_lengths)
        frames = int(self._frames(loaded, torch.tensor([batch.inputs.shape[1]])))
        # Parakeet's table of distances is as long as the batch; those that a clip has are in its middle.
        distances = torch.arange(2 * frames - 1, device=lengths_B.device) - (frames - 1)
        within_BQ = (distances.abs() < lengths_B.unsqueeze(1)).to(torch.int8) * AUDIO
        return (
            Stream(modules=r"^encoder\..*\.relative_k_proj$", kinds=within_BQ),
            Stream(modules=r"^encoder\.", kinds=encoder_rows.row_kinds(lengths_B, frames)),
        )

    def positioned_modules(self, loaded: LoadedModel) -> PositionedModules:
        """See `PositionedFamily`; tables of distances belong to no clip, and WavLM's gate takes heads."""
        module = loaded.module
        encoder = module.encoder if hasattr(module, "ctc_head") else module.base_model
        return in_encoder(loaded, encoder, without=speech_encoders.NO_POSITIONS)

    def logits(self, loaded: LoadedModel, batch: Batch) -> Tensor:
        """Logits (N, V) of every valid frame."""
        hidden_BTD, lengths_B = self._encode(loaded, batch)
        valid_BT = valid_frames(lengths_B, hidden_BTD.shape[1])
        logits_BTV: Tensor = _head(loaded.module)(hidden_BTD)
        return logits_BTV[valid_BT]

    @torch.no_grad()
    def transcribe(
        self, loaded: LoadedModel, batch: Batch, settings: DecodingSettings = DEFAULT_DECODING
    ) -> list[Hypothesis]:
        """Best path (`beam_size=1`) or prefix beam search; the frames bound the length. No text is decoded again.

        Raises:
            ConfigError: Confidences are asked for of the texts of a beam search, which no single path has written; or a
                penalty that only decoders which write token by token have.
        """
        rate = settings.confidence
        penalties = {name: getattr(settings, name) for name in _PENALTIES}
        if foreign := [name for name, value in penalties.items() if value != getattr(DEFAULT_DECODING, name)]:
            raise ConfigError(
                f"evaluation.{foreign[0]}={penalties[foreign[0]]:g} is for decoders that write token by token, and CTC "
                "has no place for it. Leave it out."
            )
        if rate and settings.beam_size > 1:
            raise ConfigError(
                "evaluation.confidence=true takes the probabilities of the best path, and evaluation.beam_size="
                f"{settings.beam_size} sums over many: a CTC model has word confidences with evaluation.beam_size=1."
            )

        def decode(ids: Sequence[int]) -> str:
            return self.decode_text(loaded, ids).strip()

        scores_BTV, lengths_B = self._scores(loaded, batch)
        blank = loaded.module.config.pad_token_id
        texts = []
        for scores_TV, length in zip(scores_BTV.cpu(), lengths_B.tolist(), strict=True):
            if bool(scores_TV[:length].isnan().any()):  # an infinite logit has no logarithm of a probability either
                texts.append(NOT_FINITE)
                continue
            path = scores_TV[:length].argmax(dim=-1).tolist()
            if settings.beam_size == 1:
                ids = collapse(path, blank=blank)
            else:
                ids = beam_search(scores_TV[:length].numpy(), blank=blank, beam_size=settings.beam_size)
            text, words = decode(ids), None
            if rate:
                logprobs = label_logprobs(path, scores_TV[:length].amax(dim=-1).tolist(), blank=blank)
                words = words_of_tokens(text, ids, logprobs, decode)
            texts.append(Hypothesis(text=text, words=words))
        return texts

    def _scores(self, loaded: LoadedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logarithms of probabilities (B, T, V) and valid frames (B,)."""
        hidden_BTD, lengths_B = self._encode(loaded, batch)
        return _head(loaded.module)(hidden_BTD).float().log_softmax(dim=-1), lengths_B

    def _frames(self, loaded: LoadedModel, lengths_B: Tensor) -> Tensor:
        """Output frames (B,) of so many input frames."""
        module = loaded.module
        if hasattr(module, "ctc_head"):
            frames: Tensor = module._get_subsampling_output_length(lengths_B)
            return frames.long().clamp_min(1)
        return encoder_rows.positions_of(module.config, lengths_B)

    def _encode(self, loaded: LoadedModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features -> states (B, T, D) and valid frames (B,)."""
        module = loaded.module
        if not hasattr(module, "ctc_head"):
            encoded = speech_encoders.encode(
                module.base_model, batch.inputs, batch.input_lengths, context=batch.context, merging=loaded.merging
            )
            # Merged states are repeated: a frame has its time again, and CTC as many frames as the clip has.
            states_BTD = encoded.unmerged_states
            return module.dropout(states_BTD), self._frames(loaded, batch.input_lengths).to(states_BTD.device)
        valid_BT = valid_frames(batch.input_lengths, batch.inputs.shape[1])
        announce(module.encoder, lambda: self._parakeet_positions(loaded, batch))
        hidden_BTD: Tensor = module.encoder(input_features=batch.inputs, attention_mask=valid_BT).last_hidden_state
        return hidden_BTD, self._frames(loaded, batch.input_lengths)

    def _parakeet_positions(self, loaded: LoadedModel, batch: Batch) -> AudioPositions:
        """Convolutions centred on every so many frames, with padding at both ends."""
        config = getattr(loaded.module.config, "encoder_config", loaded.module.config)
        step = int(config.subsampling_factor)
        positions = int(self._frames(loaded, torch.tensor([batch.inputs.shape[1]])))
        return AudioPositions(
            inputs=batch.inputs,
            lengths=batch.input_lengths,
            starts=step * torch.arange(positions) - step // 2,
            width=step,
            own=self._frames(loaded, batch.input_lengths),
        )


_BORDERS = ("▁", "Ġ")  # what tokenizers write before the first symbol of a word
_GROUPING = ("Wav2Vec2CTCTokenizer", "ParakeetTokenizer")  # decoders that collapse repeats unless told not to


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    grouping = {"group_tokens": False} if type(tokenizer).__name__ in _GROUPING else {}
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, **grouping)
    return text


@functools.cache
def _letters(tokenizer: Any) -> Letters:
    return Letters.of(tokenizer.get_vocab())


def _head(module: Any) -> Any:
    return module.ctc_head if hasattr(module, "ctc_head") else module.lm_head


def _has_outputs(config: Any) -> bool:
    """Whether the checkpoint was trained for CTC."""
    return any(name.endswith("ForCTC") for name in config.architectures or ())


def _components(module: Any) -> tuple[Component, ...]:
    if not hasattr(module, "ctc_head"):
        base = str(module.base_model_prefix)
        return (*speech_encoders.components_of(module.base_model, base), Component(name="head", prefixes=("lm_head",)))
    layers = tuple(f"encoder.layers.{index}" for index in range(len(module.encoder.layers)))
    parts = {
        "attention": r"\.self_attn\.",
        "feed_forward": r"\.feed_forward[12]\.",
        "convolution": r"\.conv\.",
    }
    return (
        Component(name="stem", prefixes=("encoder.subsampling",), parts={"convolutions": r"\.subsampling\.layers\."}),
        Component(name="encoder", prefixes=("encoder.layers",), layers=layers, parts=parts),
        Component(name="head", prefixes=("ctc_head",)),
    )


def _constant(module: Any) -> frozenset[str]:
    """Parameters that are never used: the mask of pretraining, and what an architecture carries along."""
    if hasattr(module, "ctc_head"):
        return frozenset()
    base = str(module.base_model_prefix)
    return speech_encoders.constants_of(module.base_model, base) | {f"{base}.masked_spec_embed"}


def _settings(config: Any, dropout: float | None) -> dict[str, Any]:
    """What is changed in a checkpoint's configuration: no random layers, no masks from a global random state."""
    if config.model_type == "parakeet_ctc":
        return {
            "encoder_config.layerdrop": 0.0,
            "encoder_config.dropout": dropout,
            "encoder_config.attention_dropout": dropout,
            "encoder_config.activation_dropout": dropout,
        }
    if getattr(config, "add_adapter", False):
        raise ModelError(
            "this checkpoint has convolutions behind its encoder (add_adapter=true in config.json), which are not "
            "supported: they leave CTC too few frames. Take one without them."
        )
    return {"apply_spec_augment": False, "layerdrop": 0.0, "hidden_dropout": dropout, "final_dropout": dropout}


def _sizes(tokenizer: Any) -> dict[str, Any]:
    return {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}


def _vocabulary(checkpoint: str, revision: str | None, outputs: Sequence[str], tokenizer: str | None) -> Any:
    """The tokenizer of a new output layer."""
    if tokenizer is not None:
        words = load_processor(tokenizer, class_name="AutoTokenizer", revision=None)
        if words.pad_token_id is None:
            raise ModelError(
                f"the tokenizer in {tokenizer} has no pad token, and CTC needs one as its blank. Make one with "
                "`sonotune data tokenizer`."
            )
        return words
    characters = sorted({character for text in outputs for character in text if not character.isspace()})
    if not characters:
        raise ModelError(
            f"{checkpoint} has no vocabulary of its own, and there are no transcripts to make one of. "
            "Give data.train, or a model that was trained for CTC."
        )
    return character_tokenizer(characters)


def character_tokenizer(characters: Sequence[str]) -> Any:
    """A tokenizer of single characters, in the order given; blank 0, unknown 1, border of words 2."""
    import transformers  # noqa: PLC0415

    symbols = [BLANK, UNKNOWN, WORD_BORDER, *(symbol for symbol in characters if symbol != WORD_BORDER)]
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "vocab.json"
        file.write_text(json.dumps({symbol: index for index, symbol in enumerate(symbols)}), "utf-8")
        return transformers.Wav2Vec2CTCTokenizer(
            str(file),
            pad_token=BLANK,
            unk_token=UNKNOWN,
            word_delimiter_token=WORD_BORDER,
            bos_token=None,
            eos_token=None,
        )


def _processor(model_type: str, extractor: Any, tokenizer: Any) -> Any:
    import transformers  # noqa: PLC0415

    if model_type == "parakeet_ctc":
        return transformers.ParakeetProcessor(extractor, tokenizer, decoder_type="ctc")
    return transformers.Wav2Vec2Processor(extractor, tokenizer)


def _check_vocabulary(loaded: LoadedModel) -> None:
    size, blank = loaded.module.config.vocab_size, loaded.module.config.pad_token_id
    largest = max(loaded.processor.tokenizer.get_vocab().values())
    if blank is None or not 0 <= blank < size or largest >= size:
        raise ModelError(
            f"the vocabulary of {loaded.checkpoint} does not fit its output layer: ids up to {largest}, blank {blank}, "
            f"{size} outputs. Save the checkpoint with its own tokenizer, or set model.outputs=data."
        )
