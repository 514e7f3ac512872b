"""Speech language models put together from parts: any known encoder, a projector, any causal language model.

`models.composed.build.compose` makes the folder. The prompt is part of the folder: `<audio>Transcribe:` by default.
What is trained is the text and the end token behind it, nothing else, and no logit is computed anywhere else.

Shape letters: B clips, Q audio positions, U target tokens, L positions of a row, D language model width, V vocabulary,
N labels of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sonotune.errors import ModelError, TextError, TextTooLongError
from sonotune.features.batching import Batch
from sonotune.features.frontend import from_feature_extractor
from sonotune.features.normalization import valid_frames
from sonotune.models import decoding, encoder_rows, speech_encoders
from sonotune.models.audio_lm import (
    Rows,
    generate,
    hypothesis,
    kinds_of_rows,
    label_outputs,
    lay_out,
    own_targets,
)
from sonotune.models.audio_positions import PositionedModules, in_encoder
from sonotune.models.base import PADDING, Component, LoadedModel, Stream
from sonotune.models.checkpoints import (
    architecture_digest,
    built_from,
    load_pretrained,
    load_processor,
    read_config,
)
from sonotune.models.composed import model as composed
from sonotune.models.composed.build import processor_of_parts, put_together
from sonotune.models.composed.model import (
    AUDIO_MARK,
    MODEL_TYPE,
    NEW_PARTS,
    SpeechLlm,
    SpeechLlmProcessor,
    digest_of_weights,
    digests_of_new_parts,
    new_parts_of,
)
from sonotune.models.frame_merging.settings import MergePart
from sonotune.models.languages import language_name, misspelt
from sonotune.models.losses import LabelOutputs
from sonotune.models.outputs import refuse_new_outputs
from sonotune.types import DEFAULT_DECODING, NOT_FINITE, Context, DecodingSettings, Hypothesis

_MOST_TOKENS = 448  # of a transcript, where the caller sets no limit: Whisper's, for clips of 30 s


class SpeechLlmFamily:
    """Speech encoder + projector + causal language model, composed from checkpoints."""

    name = "speech_llm"
    task = "transcribe"
    packaged = "speech_llm_nano"
    published_names = r""
    label_overhead = 1

    def handles(self, config: Any) -> bool:
        """See `ModelFamily.handles`."""
        return bool(config.model_type == MODEL_TYPE)

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
        """See `ModelFamily.load`; text is written in the language model's own tokens."""
        refuse_new_outputs(self.name, renew_outputs=renew_outputs, tokenizer=tokenizer)
        config = self._config(checkpoint, revision)
        processor = _processor(checkpoint, config, revision)
        if random_weights:
            config.dropout = config.dropout if dropout is None else dropout
            with built_from(checkpoint):
                module, identity = SpeechLlm(config).eval(), f"random-{architecture_digest(config)}"
        elif config.parts:
            module, identity = _of_parts(config, dropout)
        else:
            module, _, identity = load_pretrained(
                checkpoint,
                self,
                class_name="AutoModel",
                revision=revision,
                random_weights=False,
                config_changes={"dropout": dropout},
                processor_class=None,
            )
        module.config.parts = None  # saved, it has weights of its own
        loaded = self._mapped(
            module,
            checkpoint=checkpoint,
            revision=identity,
            processor=processor,
            **_contexts_of(module.config.audio_config, context),
            frontend=from_feature_extractor(processor.feature_extractor),
            untrained=() if random_weights else _untrained(module),
        )
        if not any(self.prompt_tokens(loaded, None)) and module.config.fusion == "cross_attention":
            raise ModelError(
                f"the prompt {module.config.prompt!r} of {checkpoint} has no tokens; with fusion=cross_attention at "
                "least one is needed to write the first word from. Set prompt='Transcribe:' in its config.json."
            )
        return loaded

    def outline(self, checkpoint: str, *, revision: str | None = None, outputs: int | None = None) -> LoadedModel:
        """See `ModelFamily.outline`."""
        config = self._config(checkpoint, revision)
        with built_from(checkpoint), torch.device("meta"):
            module = SpeechLlm(config)
        module.eval()
        frontend = speech_encoders.frontend_of(config.audio_config)
        identity = architecture_digest(config)
        return self._mapped(
            module,
            checkpoint=checkpoint,
            revision=identity,
            frontend=frontend,
            processor=None,
            **_contexts_of(config.audio_config, None),
            untrained=new_parts_of(module) if config.parts else tuple(config.untrained or ()),  # as far as it is known
        )

    def _config(self, checkpoint: str, revision: str | None) -> Any:
        config = read_config(checkpoint, revision)
        if not self.handles(config):
            raise ModelError(
                f"{checkpoint} is a {config.model_type!r} checkpoint, and the family {self.name!r} takes composed "
                f"models ({MODEL_TYPE}) alone. Set model.family=auto, or compose one with: sonotune compose."
            )
        named = config.parts or {}
        if named and not all(isinstance(named.get(part), str) for part in ("encoder", "language_model")):
            raise ModelError(
                f"the config.json of {checkpoint} names its parts and has {sorted(named)}; `parts` needs the text "
                "`encoder` and `language_model`. Copy the file again, or compose the model again."
            )
        return config

    def _mapped(self, module: Any, **given: Any) -> LoadedModel:
        components = _components(module)
        adaptable = tuple(
            component for component in components if component.name in ("encoder", "projector", "decoder")
        )
        embeddings, head = module.get_input_embeddings(), module.get_output_embeddings()
        names = {child: name for name, child in module.named_modules()}
        return LoadedModel(
            module=module,
            components=components,
            linears=tuple(
                name
                for name, child in module.named_modules()
                if isinstance(child, nn.Linear) and any(part.owns(name) for part in adaptable)
            ),
            family=self,
            constant=speech_encoders.constants_of(module.audio_encoder, "audio_encoder"),
            tied=((f"{names[embeddings]}.weight", f"{names[head]}.weight"),)
            if head.weight is embeddings.weight
            else (),
            **given,
        )

    def knows_language(self, loaded: LoadedModel, language: str) -> bool:
        """A language model is told any name, or none where the prompt has no `{language}`; not one that is misspelt."""
        return "{language}" not in loaded.module.config.prompt or not misspelt(language)

    def note_on_language(self, loaded: LoadedModel, language: str) -> str | None:
        """See `SpeechFamily.note_on_language`; a tag without a name goes into the prompt as it stands."""
        prompt = loaded.module.config.prompt
        if "{language}" not in prompt or language_name(language) is not None:
            return None
        return (
            f"{language!r} is the code or name of no language that is known; the prompt {prompt!r} says it as it "
            "stands. Write a code such as he, or an English name."
        )

    def encode_text(
        self, loaded: LoadedModel, text: str, language: str | None, *, duration_s: float | None = None
    ) -> NDArray[np.int64]:
        """Text and end token as (U,) ids; the prompt is given at inference, so it is no target.

        Raises:
            TextError: The text cannot be written, the row is too long, or the prompt needs a language.
        """
        tokenizer, config = loaded.processor.tokenizer, loaded.module.config
        if "{language}" in config.prompt and language is None:
            raise TextError(
                f"the prompt {config.prompt!r} of {loaded.checkpoint} names the language and a clip has none. "
                "Set model.language=en (or another code), or give each manifest line a `language`."
            )
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        back = tokenizer.decode(ids, skip_special_tokens=True)
        if back.split() != text.split():
            lost = sorted(set(text) - set(back)) or [text]
            raise TextError(f"the tokenizer of {loaded.checkpoint} cannot write {' '.join(map(repr, lost))[:80]}.")
        targets = [*ids, tokenizer.eos_token_id]
        window_s = loaded.frontend.max_duration_s if loaded.context == "full" else None
        heard_s = window_s or duration_s or 0.0
        room = self._room(loaded, language, loaded.module.audio_positions(heard_s, merging=loaded.merging))
        if len(targets) > room:
            raise TextTooLongError(
                f"the transcript needs {len(targets)} tokens; behind prompt and audio, {loaded.checkpoint} has room "
                f"for {max(room, 0)}. Shorten the clip, or compose the model with a higher downsample."
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
        """States that predict text and end tokens."""
        rows = self._rows(loaded, batch, with_targets=True)
        hidden_BLD = loaded.module(inputs_embeds=rows.embeds, attention_mask=rows.mask, position_ids=rows.positions)
        return label_outputs(hidden_BLD, rows.labels, loaded.module.get_output_embeddings())

    def streams(self, loaded: LoadedModel, batch: Batch) -> tuple[Stream, ...]:
        """See `ModelFamily.streams`; of a window, the audio positions behind the clip are padding."""
        module, config = loaded.module, loaded.module.config
        encoded = encoder_rows.streams_of(
            module.audio_encoder,
            "audio_encoder",
            batch.inputs,
            batch.input_lengths,
            context=batch.context,
            thinning=loaded.thinning,
            merging=loaded.merging,
        )
        fills = batch.context == "full" and encoder_rows.kind_of(config.audio_config) == "whisper"
        kinds_BP = encoded[-1].kinds
        own_BP = kinds_BP if fills else kinds_BP[:, : int(kinds_BP.ne(PADDING).sum(dim=1).max())]
        projected, heard_BQ, sizes_B = _projected(config, own_BP, self._given(loaded, batch, own_BP, fills))
        if loaded.merging.audio_ratio:
            sizes_B = [loaded.merging.audio_tokens(size) for size in sizes_B]
            heard_BQ = encoder_rows.row_kinds(torch.tensor(sizes_B), max(sizes_B))
        crossing = config.fusion == "cross_attention"
        prompts = [self.prompt_tokens(loaded, clip.language) for clip in batch.clips]
        rows_BL = kinds_of_rows(
            before=[before for before, _ in prompts],
            audio=[kinds_Q[: 0 if crossing else size] for kinds_Q, size in zip(heard_BQ, sizes_B, strict=True)],
            after=[after for _, after in prompts],
            batch=batch,
        )
        return (
            *encoded,
            *projected,
            Stream(modules=r"^cross_attention\.\d+\.attention\.[kv]_proj$", kinds=heard_BQ),
            Stream(modules=r"^(cross_attention|language_model)\.", kinds=rows_BL),
        )

    def _given(self, loaded: LoadedModel, batch: Batch, own_BP: Tensor, fills: bool) -> Tensor:
        """Positions of each clip (B,) that the projector is given: with a whole window, all that are left of it."""
        own_B = own_BP.ne(PADDING).sum(dim=1)
        if not fills:
            return own_B
        before_B = encoder_rows.positions_of(loaded.module.config.audio_config, batch.input_lengths)
        window = encoder_rows.rows_of(
            loaded.module.config.audio_config, batch.inputs, batch.input_lengths, context="full"
        ).width
        return window - (before_B.clamp_max(window).to(own_B.device) - own_B)

    def merging_refusals(self, loaded: LoadedModel) -> Mapping[MergePart, str]:
        """See `ModelFamily.merging_refusals`."""
        config = loaded.module.config
        refused: dict[MergePart, str] = {}
        if refusal := encoder_rows.merging_refusal(config.audio_config):
            refused["encoder"] = refusal
        if encoder_rows.kind_of(config.audio_config) == "whisper" and loaded.context == "full":
            refused["audio"] = (
                "with model.context=full the language model reads the whole window, and which of its tokens are "
                "silence is not known any more; take model.context=thinned"
            )
        return refused

    def merge_layers(self, loaded: LoadedModel) -> Sequence[nn.Module]:
        """See `ModelFamily.merge_layers`."""
        if "encoder" in self.merging_refusals(loaded):
            return ()
        layers: Sequence[nn.Module] = speech_encoders.layers_of(loaded.module.audio_encoder)
        return layers

    def positioned_modules(self, loaded: LoadedModel) -> PositionedModules:
        """See `PositionedFamily`; what the projector makes of them is not those of the audio any more."""
        return in_encoder(loaded, loaded.module.audio_encoder, without=speech_encoders.NO_POSITIONS)

    def logits(self, loaded: LoadedModel, batch: Batch) -> Tensor:
        """Logits (N, V), one row for each target token."""
        return self.forward(loaded, batch).logits

    @torch.no_grad()
    def transcribe(
        self, loaded: LoadedModel, batch: Batch, settings: DecodingSettings = DEFAULT_DECODING
    ) -> list[Hypothesis]:
        """Greedy (`beam_size=1`) or beam decoding with a key-value cache; no text is decoded again."""
        from transformers import GenerationConfig  # noqa: PLC0415  (slow import, decoding only)

        tokenizer = loaded.processor.tokenizer
        rows = self._rows(loaded, batch, with_targets=False)
        room = _positions_of(loaded.module.config) - rows.mask.shape[1]
        if room < 1:
            raise ModelError(
                f"prompt and audio take {rows.mask.shape[1]} positions; {loaded.checkpoint} has "
                f"{_positions_of(loaded.module.config)}. Shorten the clips, or compose with a higher downsample."
            )
        pad = tokenizer.pad_token_id
        rate = decoding.tokens_per_second(tokenizer, loaded.tokens_per_second)
        limits = decoding.token_limits(
            settings, [clip.duration_s for clip in batch.clips], otherwise=_MOST_TOKENS, tokens_per_second=rate
        )
        limits = [min(limit, room) for limit in limits]
        answers = generate(
            loaded.module.language_model,
            rows,
            limits=limits,
            decoding=settings,
            settings=GenerationConfig(
                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id if pad is None else pad
            ),
        )
        made = partial(hypothesis, decode=partial(self.decode_text, loaded), rated=settings.confidence)
        return [
            NOT_FINITE if answer is None else made(answer, limit=limit)
            for answer, limit in zip(answers, limits, strict=True)
        ]

    def _rows(self, loaded: LoadedModel, batch: Batch, *, with_targets: bool) -> Rows:
        """Prompts with what was heard in them, and targets where wanted."""
        module = loaded.module
        audio_BQD, lengths_B = module.hear(
            batch.inputs,
            batch.input_lengths,
            context=batch.context,
            thinning=loaded.thinning,
            merging=loaded.merging,
        )
        if module.config.fusion == "cross_attention":
            lengths_B = torch.zeros_like(lengths_B)
        prompts = [self.prompt_tokens(loaded, clip.language) for clip in batch.clips]
        return lay_out(
            module.get_input_embeddings(),
            before=[before for before, _ in prompts],
            audio=[sound_QD[:size] for sound_QD, size in zip(audio_BQD, lengths_B.tolist(), strict=True)],
            after=[after for _, after in prompts],
            targets=own_targets(batch) if with_targets else None,
        )

    def prompt_tokens(self, loaded: LoadedModel, language: str | None) -> tuple[list[int], list[int]]:
        """Ids of the prompt before and after the audio; a language that is not known is called `unknown`.

        Raises:
            TextError: The prompt names the language, and its name is misspelt.
        """
        config, tokenizer = loaded.module.config, loaded.processor.tokenizer
        if language is not None and not self.knows_language(loaded, language):
            raise TextError(
                f"the prompt {config.prompt!r} of {loaded.checkpoint} names the language, and {language!r} is none "
                f"that is known{misspelt(language)} Write that, or write the language into the prompt when you compose."
            )
        text = config.prompt.replace("{language}", _told(language))
        if config.chat:
            said = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        before, _, after = text.partition(AUDIO_MARK)
        start = [] if config.chat else _start(tokenizer)
        ids = [tokenizer(part, add_special_tokens=False).input_ids if part else [] for part in (before, after)]
        return [*start, *ids[0]], ids[1]

    def _room(self, loaded: LoadedModel, language: str | None, audio: int) -> int:
        """Tokens that can follow the prompt."""
        return _positions_of(loaded.module.config) - audio - sum(map(len, self.prompt_tokens(loaded, language)))


def _contexts_of(config: Any, context: Context | None) -> dict[str, Any]:
    """Fields of a `LoadedModel`: the projector is given the whole window, or the clip alone, which is not the same."""
    found = speech_encoders.contexts_of(config, context)
    if "trained_contexts" not in found:
        return found
    return {"context": found["context"], "trained_contexts": (found["context"],)}


def _projected(config: Any, kinds_BP: Tensor, given_B: Tensor) -> tuple[tuple[Stream, ...], Tensor, list[int]]:
    """Rows within the projector, kinds of what comes out (B, Q), and how many of it each clip is given.

    Of what a clip is given (B,), the whole window in one context, what stands for no position of it is padding. The
    perceiver takes the windows of all clips one after the other, and only those it computes.
    """
    own_B = kinds_BP.ne(PADDING).sum(dim=1)
    step = config.downsample
    if config.projector_kind != "perceiver":
        heard_BQ = encoder_rows.row_kinds(-(-own_B // step), -(-kinds_BP.shape[1] // step))
        return (Stream(modules=r"^projector\.", kinds=heard_BQ),), heard_BQ, (-(-given_B // step)).tolist()
    latents = config.perceiver_latents
    window = latents * step
    windows = -(-kinds_BP.shape[1] // window)
    computed_BN = valid_frames(-(-given_B // window), windows)
    read_NW = encoder_rows.row_kinds(own_B, windows * window).view(-1, windows, window)[computed_BN]
    heard_BN = encoder_rows.row_kinds(-(-own_B // window), windows)
    latents_NK = heard_BN[computed_BN].unsqueeze(1).repeat(1, latents)
    streams = (
        Stream(modules=r"^projector\.(narrow|layers\.\d+\.read\.[kv]_proj)$", kinds=read_NW),
        Stream(modules=r"^projector\.", kinds=latents_NK),
    )
    return streams, heard_BN.repeat_interleave(latents, dim=1), (-(-given_B // window) * latents).tolist()


def _start(tokenizer: Any) -> list[int]:
    """The token that this tokenizer puts before every text, if it does."""
    begin = tokenizer.bos_token_id
    return [begin] if begin is not None and tokenizer("a").input_ids[:1] == [begin] else []


def _told(language: str | None) -> str:
    """What a prompt says of a language: its English name, or what was given where no name is known."""
    if language is None or not language.strip():
        return "unknown"
    return language_name(language) or language.strip()


def _processor(checkpoint: str, config: Any, revision: str | None) -> SpeechLlmProcessor:
    if config.parts:
        return processor_of_parts(**config.parts)
    return SpeechLlmProcessor(
        load_processor(checkpoint, class_name="AutoFeatureExtractor", revision=revision),
        load_processor(checkpoint, class_name="AutoTokenizer", revision=revision),
    )


def _of_parts(config: Any, dropout: float | None) -> tuple[SpeechLlm, str]:
    """The model of a folder that only names its parts: the same every time, its identity that of all its weights."""
    module, _ = put_together(**config.parts, dropout=dropout)
    return module, digest_of_weights(module.named_parameters())


def _untrained(module: Any) -> tuple[str, ...]:
    """Selectors of the parts whose weights are those they were made with."""
    made = module.config.untrained or {}
    now = digests_of_new_parts(module) if made else {}
    return tuple(selector for selector in now if made.get(selector) == now[selector])


def _positions_of(config: Any) -> int:
    return int(getattr(config.text_config, "max_position_embeddings", None) or 2**20)


def _components(module: Any) -> tuple[Component, ...]:
    """Parts by what they are: embeddings and head by identity, layers by their list, the rest by exclusion."""
    language_model = module.language_model
    names = {child: name for name, child in module.named_modules()}
    embeddings = names[language_model.get_input_embeddings()]
    head = names[language_model.get_output_embeddings()]
    stack, layers = composed.stack_of(language_model), names[composed.layers_of(language_model)]
    children = [names[child] for child in stack.children() if any(True for _ in child.parameters())]
    decoder = tuple(name for name in children if name not in (embeddings, head))
    return (
        *speech_encoders.components_of(module.audio_encoder, "audio_encoder"),
        Component(name="projector", prefixes=("projector",)),
        Component(
            name="decoder",
            prefixes=(*decoder, "cross_attention"),
            layers=tuple(f"{layers}.{index}" for index in range(len(composed.layers_of(language_model)))),
            parts={
                "self_attention": r"^language_model\..*\.(self_attn|attn|attention)\.",
                "cross_attention": r"^cross_attention\.",
                "gates": NEW_PARTS["decoder.gates"],
                "feed_forward": r"^language_model\..*\.(mlp|feed_forward|fc[12])\b",
            },
        ),
        Component(name="embeddings", prefixes=(embeddings,)),
        Component(name="head", prefixes=(head,)),
    )
