"""Qwen3-ASR: log-mel frames -> convolutional stem and encoder in windows -> projector -> Qwen3 language model.

Second by second the convolutions turn 100 frames into 13 positions; attention reaches over eight seconds. The encoder
takes the valid positions of all clips in one row, so no padding is computed there, and a clip's embeddings never
depend on its neighbours. The language model reads `prompt, audio, prompt` and writes
`language English<asr_text>what was said`. Only that answer has labels: the processor's own labels keep the prompt.

Shape letters: B clips, T frames, F mel bins, P audio positions, L positions of a row, U target tokens, D width,
V vocabulary, N labels of a batch.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sonotune.errors import ModelError, TextError, TextTooLongError
from sonotune.features.batching import Batch
from sonotune.features.chunked_mel import ChunkedLogMel
from sonotune.features.frontend import from_feature_extractor
from sonotune.features.normalization import valid_frames
from sonotune.models import decoding
from sonotune.models.audio_lm import (
    Answer,
    Rows,
    generate,
    hypothesis,
    kinds_of_rows,
    label_outputs,
    lay_out,
    own_targets,
)
from sonotune.models.audio_positions import AudioPositions, PositionedModules, announce, in_encoder
from sonotune.models.base import Component, LoadedModel, Stream
from sonotune.models.checkpoints import load_pretrained, load_processor, locate, outline_pretrained, read_config
from sonotune.models.encoder_rows import row_kinds
from sonotune.models.families.qwen3_asr_old import is_old, load_old_weights, modern_config, modern_name
from sonotune.models.families.qwen3_asr_text import (
    CHAT_TEMPLATE,
    TEXT_MARKER,
    language_name,
    language_prefix,
    nearest_languages,
    prompt_of,
    token_ids,
    trained_languages,
    written_text,
)
from sonotune.models.frame_merging.audio_tokens import compress
from sonotune.models.frame_merging.settings import MergePart
from sonotune.models.losses import LabelOutputs
from sonotune.models.outputs import refuse_new_outputs
from sonotune.types import DEFAULT_DECODING, NOT_FINITE, Context, DecodingSettings, Hypothesis

_STEP = 8  # frames from a position to the next within a chunk: three convolutions that halve them
_CLASS = "Qwen3ASRForConditionalGeneration"
_EMBEDDINGS, _HEAD = "model.language_model.embed_tokens", "lm_head"
# Tokens that an answer may have for each audio position (13 a second) where nobody gives a limit: letter by letter,
# the fastest speech stays below two. A clip on which the model repeats itself ends there.
_TOKENS_PER_POSITION, _SPARE_TOKENS = 2, 32


class Qwen3AsrFamily:
    """Qwen3-ASR speech-to-text: checkpoints of `transformers` (`-hf`) and of the authors' package."""

    name = "qwen3_asr"
    task = "transcribe"
    packaged = "qwen3_asr_nano"
    published_names = r"qwen3-asr"
    label_overhead = 4

    def handles(self, config: Any) -> bool:
        """See `ModelFamily.handles`; the forced aligner classifies tokens and is no transcriber."""
        aligner = any(name.endswith("ForTokenClassification") for name in config.architectures or ())
        old_aligner = is_old(config) and "classify_num" in config.thinker_config
        return config.model_type == "qwen3_asr" and not aligner and not old_aligner

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
        """See `ModelFamily.load`; text is written in the checkpoint's own tokens.

        The architecture has no dropout on hidden states. `dropout` is that of the language model's attention, the
        only one it has. There is no window, so all contexts are the same.
        """
        refuse_new_outputs(self.name, renew_outputs=renew_outputs, tokenizer=tokenizer)
        config = read_config(checkpoint, revision)
        changes = self._changes(config, dropout=dropout)
        if "thinker_config" in changes and not random_weights:
            modern = modern_config(config)
            modern.text_config = changes["text_config"]
            processor = load_processor(checkpoint, class_name="AutoProcessor", revision=revision)
            module, identity = load_old_weights(locate(checkpoint), modern, revision)
        else:
            module, processor, identity = load_pretrained(
                checkpoint,
                self,
                class_name=_CLASS,
                revision=revision,
                random_weights=random_weights,
                config_changes=changes,
            )
        processor = _modern_processor(processor)
        prompt_of(processor)  # a template that hears nothing is to be found before anything runs
        return self._mapped(
            module,
            checkpoint=checkpoint,
            revision=identity,
            context=context or "full",
            processor=processor,
            frontend=from_feature_extractor(processor.feature_extractor),
        )

    def _changes(self, config: Any, *, dropout: float | None = None) -> dict[str, Any]:
        """What must be set in a checkpoint's configuration; `thinker_config` is emptied where it was an old one."""
        if not self.handles(config):
            return {}
        changes: dict[str, Any] = {}
        if is_old(config):
            modern = modern_config(config)
            names = ("audio_config", "text_config", "audio_token_id", "tie_word_embeddings")
            changes = {"thinker_config": {}, **{name: getattr(modern, name) for name in names}}
        if dropout is not None:
            changes["text_config"] = changes.get("text_config", config.text_config)
            changes["text_config"].attention_dropout = dropout
        return changes

    def outline(self, checkpoint: str, *, revision: str | None = None, outputs: int | None = None) -> LoadedModel:
        """See `ModelFamily.outline`."""
        changes = self._changes(read_config(checkpoint, revision))
        module, identity = outline_pretrained(
            checkpoint, self, class_name=_CLASS, revision=revision, config_changes=changes
        )
        audio = module.config.audio_config
        frontend = ChunkedLogMel(audio.num_mel_bins, chunk_frames=2 * audio.n_window)
        return self._mapped(module, checkpoint=checkpoint, revision=identity, frontend=frontend, processor=None)

    def _mapped(self, module: Any, **given: Any) -> LoadedModel:
        homes = ("model.audio_tower.layers.", "model.multi_modal_projector.", "model.language_model.layers.")
        tied = module.lm_head.weight is module.model.language_model.embed_tokens.weight
        return LoadedModel(
            module=module,
            components=_components(module),
            linears=tuple(
                name
                for name, child in module.named_modules()
                if isinstance(child, nn.Linear) and name.startswith(homes)
            ),
            family=self,
            rename=modern_name,
            tied=((f"{_EMBEDDINGS}.weight", f"{_HEAD}.weight"),) if tied else (),
            **given,
        )

    def knows_language(self, loaded: LoadedModel, language: str) -> bool:
        """Whether the language has a name that can be written; the model may never have been trained on it."""
        return language_name(language) is not None

    def note_on_language(self, loaded: LoadedModel, language: str) -> str | None:
        """What a user should know before adapting the model to a language; None where there is nothing to say."""
        name = language_name(language)
        trained = trained_languages().values()
        if name is None or name in trained:
            return None
        return (
            f"{name} is not among the {len(trained)} languages Qwen3-ASR was trained on; it is written as "
            f"'language {name}', which the model learns from your clips alone. Expect to need more hours than for a "
            "language it knows, and compare with a checkpoint that does."
        )

    def encode_text(
        self, loaded: LoadedModel, text: str, language: str | None, *, duration_s: float | None = None
    ) -> NDArray[np.int64]:
        """`language X<asr_text>text<|im_end|>` as (U,) ids; `language None` for a clip whose language is unknown.

        Raises:
            TextError: The language has no name, the text holds a control token, or it is too long.
        """
        tokenizer, prompt = loaded.processor.tokenizer, prompt_of(loaded.processor)
        ids = token_ids(tokenizer, text)
        controls = tokenizer.added_tokens_decoder
        if found := [token for token in ids if token in controls]:
            raise TextError(
                f"the transcript holds {str(controls[found[0]])!r}, which is a control token of {loaded.checkpoint}. "
                "A transcript is words alone: take it out."
            )
        if tokenizer.decode(ids).split() != unicodedata.normalize("NFC", text).split():
            raise TextError(f"the tokenizer of {loaded.checkpoint} cannot write {text[:60]!r}. Normalise the text.")
        targets = [*token_ids(tokenizer, language_prefix(_name(loaded, language))), *ids, prompt.end]
        heard = 0 if duration_s is None else loaded.merging.audio_tokens(self._positions_of(loaded, duration_s))
        needed = len(prompt.before) + heard + len(prompt.after) + len(targets)
        limit = loaded.module.config.text_config.max_position_embeddings
        if needed > limit:
            raise TextTooLongError(
                f"audio and transcript need {needed} positions; {loaded.checkpoint} has {limit}. Cut the clip."
            )
        return np.asarray(targets, dtype=np.int64)

    def _positions_of(self, loaded: LoadedModel, duration_s: float) -> int:
        frames = torch.tensor([int(duration_s * loaded.frontend.frames_per_second)])
        return int(_positions(loaded, frames))

    def decode_text(self, loaded: LoadedModel, ids: Sequence[int]) -> str:
        """Ids -> what was said, without the language and without special tokens."""
        return written_text(loaded.processor.tokenizer.decode(list(ids), skip_special_tokens=True))

    def written_form(self, loaded: LoadedModel) -> Callable[[str], str]:
        """See `SpeechFamily.written_form`; letters of every case have tokens."""
        return str

    def forward(self, loaded: LoadedModel, batch: Batch) -> LabelOutputs:
        """States that predict language, text and end token, and CTC on the audio."""
        audio = self._encode(loaded, batch)
        rows = self._rows(loaded, audio, targets=own_targets(batch))
        # Padded on the right, causal attention keeps every row from its padding: no mask, and the faster kernels.
        hidden_BLD = loaded.module.model.language_model(inputs_embeds=rows.embeds, use_cache=False).last_hidden_state
        return label_outputs(
            hidden_BLD, rows.labels, loaded.module.lm_head, ctc=lambda: self._ctc(loaded, batch, audio)
        )

    def streams(self, loaded: LoadedModel, batch: Batch) -> tuple[Stream, ...]:
        """See `ModelFamily.streams`; encoder and projector take their rows packed."""
        positions_B = _positions(loaded, batch.input_lengths)
        heard_BP = row_kinds(positions_B, int(positions_B.max()))
        prompt, clips = prompt_of(loaded.processor), len(batch.clips)
        tokens = [loaded.merging.audio_tokens(size) for size in positions_B.tolist()]
        rows_BL = kinds_of_rows(
            before=[prompt.before] * clips,
            audio=[kinds_P[:size] for kinds_P, size in zip(heard_BP, tokens, strict=True)],
            after=[prompt.after] * clips,
            batch=batch,
        )
        return (
            Stream(modules=r"^model\.language_model\.", kinds=rows_BL),
            Stream(modules=r"^model\.(audio_tower|multi_modal_projector)\.", kinds=heard_BP),
        )

    def merging_refusals(self, loaded: LoadedModel) -> Mapping[MergePart, str]:
        """See `ModelFamily.merging_refusals`."""
        return {
            "encoder": "the encoder of Qwen3-ASR takes the positions of all clips in one row, cut into windows of "
            "eight seconds, which merging would shift"
        }

    def merge_layers(self, loaded: LoadedModel) -> Sequence[nn.Module]:
        """See `ModelFamily.merge_layers`."""
        return ()

    def positioned_modules(self, loaded: LoadedModel) -> PositionedModules:
        """See `PositionedFamily`; of the language model, no rows are those of the audio alone."""
        return in_encoder(loaded, loaded.module.model.audio_tower)

    def logits(self, loaded: LoadedModel, batch: Batch) -> Tensor:
        """Logits (N, V) at every target position."""
        return self.forward(loaded, batch).logits

    def _ctc(self, loaded: LoadedModel, batch: Batch, audio: Sequence[Tensor]) -> Tensor:
        """CTC loss of each clip (B,) from the projected audio by the output embedding; the padding token is the blank.

        It needs no weights of its own and is meant for models that start from nothing (see `WhisperFamily._ctc`).
        A clip with more tokens than positions, 13 a second, adds nothing.
        """
        scores_BPV = loaded.module.lm_head(nn.utils.rnn.pad_sequence(list(audio), batch_first=True))
        marker = loaded.processor.tokenizer.convert_tokens_to_ids(TEXT_MARKER)
        texts = []
        for target_U in own_targets(batch):
            begins = (target_U == marker).nonzero()
            texts.append(target_U[int(begins[0]) + 1 if len(begins) else 0 : -1])
        return F.ctc_loss(
            scores_BPV.float().log_softmax(dim=-1).transpose(0, 1),
            torch.cat(texts),
            torch.tensor([len(one) for one in audio]),
            torch.tensor([len(text) for text in texts]),
            blank=loaded.processor.tokenizer.pad_token_id,
            reduction="none",
            zero_infinity=True,
        )

    def _rows(
        self,
        loaded: LoadedModel,
        audio: Sequence[Tensor],
        *,
        targets: Sequence[Tensor] | None = None,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> Rows:
        prompt = prompt_of(loaded.processor)
        if loaded.merging.audio_ratio:  # CTC is taken of the audio as it was
            padded_BPD = nn.utils.rnn.pad_sequence(list(audio), batch_first=True)
            merged_BPD, sizes = compress(padded_BPD, [len(one) for one in audio], loaded.merging)
            audio = [merged_PD[:size] for merged_PD, size in zip(merged_BPD, sizes, strict=True)]
        return lay_out(
            loaded.module.model.language_model.embed_tokens,
            before=[prompt.before] * len(audio),
            audio=audio,
            after=[[*prompt.after, *prefix] for prefix in prefixes or [()] * len(audio)],
            targets=targets,
        )

    def _encode(self, loaded: LoadedModel, batch: Batch) -> tuple[Tensor, ...]:
        """Features (B, T, F) -> projected audio (P, D) of each clip."""
        tower = loaded.module.model.audio_tower
        chunk = 2 * tower.n_window
        features_BTF = batch.inputs
        if missing := -features_BTF.shape[1] % chunk:
            features_BTF = F.pad(features_BTF, (0, 0, 0, missing))
        lengths_B = batch.input_lengths.to(features_BTF.device)
        announce(tower, lambda: _audio_positions(loaded, features_BTF, batch.input_lengths))
        packed_ND = tower(
            input_features=features_BTF.transpose(1, 2).to(tower.conv2d1.weight.dtype).contiguous(),
            input_features_mask=valid_frames(lengths_B, features_BTF.shape[1]).long(),
        ).last_hidden_state
        projected_ND = loaded.module.model.multi_modal_projector(packed_ND)
        return tuple(projected_ND.split(_positions(loaded, batch.input_lengths).tolist()))

    @torch.no_grad()
    def transcribe(
        self, loaded: LoadedModel, batch: Batch, settings: DecodingSettings = DEFAULT_DECODING
    ) -> list[Hypothesis]:
        """Greedy (`beam_size=1`) or beam decoding with a key-value cache.

        The language of a clip is given to the model; where it is unknown the model writes it itself, and
        the limit does not count those tokens. No text is decoded again.
        """
        tokenizer = loaded.processor.tokenizer
        names = [_name(loaded, clip.language) for clip in batch.clips]
        prefixes = [[] if name is None else token_ids(tokenizer, language_prefix(name)) for name in names]
        audio = self._encode(loaded, batch)
        rows = self._rows(loaded, audio, prefixes=prefixes)
        own = _SPARE_TOKENS + _TOKENS_PER_POSITION * max(len(one) for one in audio)
        rate = decoding.tokens_per_second(tokenizer, loaded.tokens_per_second)
        limits = decoding.token_limits(
            settings, [clip.duration_s for clip in batch.clips], otherwise=own, tokens_per_second=rate
        )
        spare = 0 if all(prefixes) else _longest_prefix(tokenizer)
        room = loaded.module.config.text_config.max_position_embeddings - rows.embeds.shape[1]
        if room < 1:
            raise ModelError(
                f"a clip of this batch fills all positions of {loaded.checkpoint}: {rows.embeds.shape[1]} of "
                f"{loaded.module.config.text_config.max_position_embeddings}. Cut it with `start_s` and `duration_s`."
            )
        bounds = [min(limit + spare, room) for limit in limits]
        answers = generate(loaded.module, rows, limits=bounds, decoding=settings)
        marker = tokenizer.convert_tokens_to_ids(TEXT_MARKER)
        made = []
        for answer, limit, bound in zip(answers, limits, bounds, strict=True):
            if answer is None:
                made.append(NOT_FINITE)
                continue
            kept = _first_text_tokens(answer.ids, marker, limit)
            whole = len(kept) == len(answer.ids)
            made.append(
                hypothesis(
                    Answer(kept, answer.logprobs[: len(kept)]),
                    limit=bound if whole else len(kept),
                    decode=partial(self.decode_text, loaded),
                    rated=settings.confidence,
                )
            )
        return made


def _audio_positions(loaded: LoadedModel, features_BTF: Tensor, lengths_B: Tensor) -> AudioPositions:
    """Positions within each chunk of frames, eight frames apart; none reads beyond its chunk."""
    chunk = 2 * loaded.module.model.audio_tower.n_window
    each = int(_positions(loaded, torch.tensor([chunk])))
    chunks = features_BTF.shape[1] // chunk
    firsts = torch.arange(chunks).unsqueeze(1) * chunk
    within = (_STEP * torch.arange(each) - _STEP // 2).clamp(0, max(0, chunk - _STEP))
    return AudioPositions(
        inputs=features_BTF,
        lengths=lengths_B,
        starts=(firsts + within).flatten(),
        width=_STEP,
        own=_positions(loaded, lengths_B),
        packed=True,
    )


def _positions(loaded: LoadedModel, lengths_B: Tensor) -> Tensor:
    """Audio positions of each clip (B,): every chunk of frames goes through three convolutions that halve it."""
    chunk = 2 * loaded.module.model.audio_tower.n_window
    whole = torch.tensor(chunk)
    rest_B = lengths_B % chunk
    for _ in range(3):
        whole, rest_B = (whole + 1) // 2, (rest_B + 1) // 2
    positions_B: Tensor = lengths_B // chunk * int(whole) + rest_B
    return positions_B


def _name(loaded: LoadedModel, language: str | None) -> str | None:
    if language is None:
        return None
    name = language_name(language)
    if name is None:
        raise TextError(
            f"{loaded.checkpoint} is told a language by its name, and {language!r} has none that is known"
            f"{nearest_languages(language) or '.'} Give a code or an English name: "
            f"{', '.join(sorted(trained_languages()))}, or another of Whisper's list (he)."
        )
    return name


def _longest_prefix(tokenizer: Any) -> int:
    """Most tokens that a language takes at the beginning of an answer."""
    return max(len(token_ids(tokenizer, language_prefix(name))) for name in trained_languages().values())


def _first_text_tokens(answer: list[int], marker: int, limit: int) -> list[int]:
    """The answer with at most `limit` tokens behind the language."""
    begins = answer.index(marker) + 1 if marker in answer else 0
    return answer[: begins + limit]


def _modern_processor(processor: Any) -> Any:
    """The processor as `transformers` has it; that of an old folder has Whisper's extractor and no template."""
    import transformers  # noqa: PLC0415

    extractor, template = processor.feature_extractor, processor.chat_template or CHAT_TEMPLATE
    if type(extractor).__name__ == "Qwen3ASRFeatureExtractor" and processor.chat_template:
        return processor
    if type(extractor).__name__ == "WhisperFeatureExtractor":
        extractor = transformers.Qwen3ASRFeatureExtractor(
            feature_size=extractor.feature_size,
            sampling_rate=extractor.sampling_rate,
            hop_length=extractor.hop_length,
            n_fft=extractor.n_fft,
            dither=extractor.dither,
        )
        template = CHAT_TEMPLATE
    return transformers.Qwen3ASRProcessor(extractor, processor.tokenizer, chat_template=template)


def _components(module: Any) -> tuple[Component, ...]:
    audio, text = "model.audio_tower", "model.language_model"
    return (
        Component(
            name="stem",
            prefixes=(f"{audio}.conv2d1", f"{audio}.conv2d2", f"{audio}.conv2d3", f"{audio}.conv_out"),
            parts={"convolutions": r"\.conv2d\d\."},
        ),
        Component(
            name="encoder",
            prefixes=(f"{audio}.layers", f"{audio}.ln_post"),
            layers=tuple(f"{audio}.layers.{index}" for index in range(len(module.model.audio_tower.layers))),
            parts={"attention": r"\.self_attn\.", "feed_forward": r"\.fc[12]\."},
        ),
        Component(name="projector", prefixes=("model.multi_modal_projector",)),
        Component(
            name="decoder",
            prefixes=(f"{text}.layers", f"{text}.norm"),
            layers=tuple(f"{text}.layers.{index}" for index in range(len(module.model.language_model.layers))),
            parts={"self_attention": r"\.self_attn\.", "feed_forward": r"\.mlp\."},
        ),
        Component(name="embeddings", prefixes=(_EMBEDDINGS,)),
        Component(name="head", prefixes=(_HEAD,)),
    )
