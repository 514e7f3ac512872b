"""One model of two: a speech encoder, a projector, and a causal language model that is told what was heard.

What is heard reaches the language model either as embeddings in its prompt (`prompt`), or through gated cross-attention
before some of its layers (`cross_attention`), which leaves the language model as it was until the gates open.

Source: Ma et al. 2024, SLAM-ASR (arXiv 2402.08846), for the prompt; Alayrac et al. 2022, Flamingo (arXiv 2204.14198),
for cross-attention.

Shape letters: B clips, T frames or samples, F bins, Q audio positions, L text positions, D language model width.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec

from sonotune.errors import ModelError
from sonotune.features.normalization import valid_frames
from sonotune.models import encoder_rows, speech_encoders
from sonotune.models.composed.projectors import PROJECTORS, EncodedAudio, GatedCrossAttention, outputs_of
from sonotune.models.frame_merging.audio_tokens import compress
from sonotune.models.frame_merging.settings import NO_MERGING, FrameMerging
from sonotune.models.thinning import DEFAULT_THINNING, Thinning
from sonotune.types import Context

AUDIO_MARK = "<audio>"
MODEL_TYPE = "sonotune_speech_llm"
_EVERY = 4  # a cross-attention block before every fourth layer, as in Flamingo
_HEAD_WIDTH = 64  # of an attention head, about, where nobody says how many there are

BOUNDS: Final = MappingProxyType(
    {
        "downsample": (1, 64),
        "projector_hidden_size": (1, 65_536),
        "perceiver_latents": (1, 1024),
        "perceiver_depth": (1, 64),
        "projector_heads": (1, 512),
        "cross_attention_heads": (1, 512),
    }
)
"""Setting of `SpeechLlmConfig` -> least and largest value."""
NEW_PARTS: Final = MappingProxyType(
    {
        "projector": r"^projector\.",
        "decoder.cross_attention": r"^cross_attention\.(?!.*_gate\.)",
        "decoder.gates": r"^cross_attention\..*_gate\.",
    }
)
"""Component selector -> parameters of what is made anew when a model is composed."""


class SpeechLlmConfig(PreTrainedConfig):  # type: ignore[misc]
    """Everything a composed model is made of.

    Attributes:
        audio_config: Of the encoder.
        text_config: Of the language model.
        projector_kind: `linear`, `mlp`, `perceiver` or `conv`; see `models.composed.projectors`.
        downsample: Encoder positions that become one audio position.
        projector_hidden_size: Width inside the projector; None stands for that of the language model, and in the
            perceiver, whose layers are 16 times its square, for the encoder's.
        perceiver_latents: Outputs of one window of the perceiver.
        perceiver_depth: Layers of the perceiver.
        projector_heads: Attention heads of the perceiver; None takes as many as make them about 64 wide.
        fusion: `prompt` or `cross_attention`.
        cross_attention_layers: Language model layers that a cross-attention block stands before; None stands for the
            last of every four (3, 7, 11, ...), or the last of all where there are fewer.
        cross_attention_heads: Heads of these blocks; None stands for those of the language model.
        prompt: What the language model reads before it writes. `<audio>` is where the audio embeddings go (with
            cross-attention they go nowhere), `{language}` becomes the name of the clip's language.
        chat: Whether the prompt is put into the tokenizer's chat template, as what the user says.
        tie_word_embeddings: As in `text_config`.
        untrained: Selector of a part that was made anew -> digest of its weights as they were made. A part whose
            weights still have that digest was never trained.
        parts: Arguments of `composing.put_together` of a folder that names its parts and has no weights of its own.
    """

    model_type = MODEL_TYPE
    sub_configs_defaults = {  # noqa: RUF012  (read by transformers under this name)
        "audio_config": SubConfigSpec(config_class=AutoConfig, model_type="whisper"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2"),
    }

    audio_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    projector_kind: Literal["linear", "mlp", "perceiver", "conv"] = "linear"
    downsample: int = 4
    projector_hidden_size: int | None = None
    perceiver_latents: int = 8
    perceiver_depth: int = 2
    projector_heads: int | None = None
    fusion: Literal["prompt", "cross_attention"] = "prompt"
    cross_attention_layers: list[int] | None = None
    cross_attention_heads: int | None = None
    prompt: str = f"{AUDIO_MARK}Transcribe:"
    chat: bool = False
    tie_word_embeddings: bool = False
    untrained: dict[str, str] | None = None
    parts: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        text: Any = self.text_config
        self.tie_word_embeddings = bool(getattr(text, "tie_word_embeddings", False))
        layers = text.num_hidden_layers
        if self.cross_attention_layers is None and self.fusion == "cross_attention":
            self.cross_attention_layers = list(range(min(_EVERY, layers) - 1, layers, _EVERY))
        if self.projector_hidden_size is None:
            width = speech_encoders.width_of(self.audio_config)
            self.projector_hidden_size = width if self.projector_kind == "perceiver" else int(text.hidden_size)
        if self.projector_heads is None:
            self.projector_heads = _heads_for(self.projector_hidden_size)
        _check_settings(self)

    @property
    def vocab_size(self) -> int:
        """Tokens that the language model can write."""
        return int(self.text_config.vocab_size)  # type: ignore[union-attr]

    @property
    def dropout(self) -> float:
        """Dropout on the hidden states of the encoder."""
        audio: Any = self.audio_config
        return float(getattr(audio, _dropout_name(audio)))

    @dropout.setter
    def dropout(self, value: float) -> None:
        setattr(self.audio_config, _dropout_name(self.audio_config), value)


def _heads_for(width: int) -> int:
    """The largest number of heads of at least `_HEAD_WIDTH` that divides a width."""
    return next(heads for heads in range(max(1, width // _HEAD_WIDTH), 0, -1) if width % heads == 0)


def _dropout_name(audio: Any) -> str:
    return "dropout" if encoder_rows.kind_of(audio) == "whisper" else "hidden_dropout"


def _check_settings(config: Any) -> None:
    allowed = {"projector_kind": tuple(PROJECTORS), "fusion": ("prompt", "cross_attention")}
    for name, choices in allowed.items():
        if getattr(config, name) not in choices:
            raise ModelError(
                f"{name}={getattr(config, name)!r} is not known; allowed are {', '.join(choices)}. Take one of these."
            )
    for name, (least, most) in BOUNDS.items():
        value = getattr(config, name)
        if value is not None and not least <= value <= most:
            raise ModelError(f"{name}={value} is out of bounds; allowed are {least} to {most}. Take one of these.")
    layers = config.text_config.num_hidden_layers
    wrong = [index for index in config.cross_attention_layers or () if not 0 <= index < layers]
    if wrong or (config.fusion == "cross_attention" and not config.cross_attention_layers):
        raise ModelError(
            f"cross_attention_layers={config.cross_attention_layers} names no layers of the language model, which has "
            f"{layers}; allowed are numbers from 0 to {layers - 1}, at least one. Leave it out for every fourth."
        )
    if config.prompt.count(AUDIO_MARK) != 1 and config.fusion == "prompt":
        raise ModelError(
            f"the prompt {config.prompt!r} has {config.prompt.count(AUDIO_MARK)} times {AUDIO_MARK}; exactly one is "
            f"needed, where the audio goes. Write for example '{AUDIO_MARK}Transcribe:'."
        )


def new_parts_of(module: nn.Module) -> tuple[str, ...]:
    """Selectors of the parts that composing makes."""
    return tuple(selector for selector in NEW_PARTS if _of_new_part(module, selector))


def digests_of_new_parts(module: nn.Module) -> dict[str, str]:
    """Selector of each part that composing makes -> digest of its weights as they are."""
    return {selector: digest_of_weights(_of_new_part(module, selector)) for selector in new_parts_of(module)}


def _of_new_part(module: nn.Module, selector: str) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in module.named_parameters() if re.search(NEW_PARTS[selector], name)]


def digest_of_weights(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """One digest of names and values."""
    digest = hashlib.sha256()
    for name, value in parameters:
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class SpeechLlm(PreTrainedModel):  # type: ignore[misc]
    """A speech encoder, a projector and a language model.

    Args:
        config: What it is made of.
        audio_encoder: One with weights, from `speech_encoders.make_plain`; random where it is left out.
        language_model: One with weights, from `plain_language_model`; random where it is left out.
    """

    config_class = SpeechLlmConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = False
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012  (read by transformers under this name)

    def __init__(
        self, config: Any, audio_encoder: nn.Module | None = None, language_model: nn.Module | None = None
    ) -> None:
        super().__init__(config)
        text = config.text_config
        self.audio_encoder: Any = audio_encoder or speech_encoders.build(config.audio_config)
        self.projector = PROJECTORS[config.projector_kind](
            speech_encoders.width_of(config.audio_config),
            text.hidden_size,
            downsample=config.downsample,
            hidden=config.projector_hidden_size,
            latents=config.perceiver_latents,
            depth=config.perceiver_depth,
            heads=config.projector_heads,
        )
        self.language_model: Any = language_model or plain_language_model(_random_language_model(text))
        self.encoded_audio: EncodedAudio | None = None
        if config.fusion == "cross_attention":
            heads = config.cross_attention_heads or text.num_attention_heads
            self.cross_attention = nn.ModuleDict(
                {str(index): GatedCrossAttention(text.hidden_size, heads=heads) for index in _listening(config)}
            )
            layers = layers_of(self.language_model)
            for index in _listening(config):
                hook = functools.partial(self._listen, index)
                layers[index].register_forward_pre_hook(hook, with_kwargs=True)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The parts bring their weights, and the projector's are those of its constructors."""

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings of the language model."""
        return self.language_model.get_input_embeddings()  # type: ignore[no-any-return]

    def get_output_embeddings(self) -> nn.Module:
        """The output layer of the language model."""
        return self.language_model.get_output_embeddings()  # type: ignore[no-any-return]

    def hear(
        self,
        inputs_BTF: Tensor,
        lengths_B: Tensor,
        *,
        context: Context,
        thinning: Thinning = DEFAULT_THINNING,
        merging: FrameMerging = NO_MERGING,
    ) -> tuple[Tensor, Tensor]:
        """Features -> audio embeddings (B, Q, D) and how many are valid (B,); kept for cross-attention.

        They are kept until the next batch is heard, which is what re-computation under gradient checkpointing needs.
        """
        encoded = speech_encoders.encode(
            self.audio_encoder,
            inputs_BTF,
            lengths_B.to(inputs_BTF.device),
            context=context,
            thinning=thinning,
            merging=merging,
        )
        audio_BQD, audio_lengths_B = self.projector(encoded.own_states, encoded.positions.to(encoded.states.device))
        if merging.audio_ratio:
            audio_BQD, lengths = compress(audio_BQD, audio_lengths_B.tolist(), merging)
            audio_lengths_B = torch.tensor(lengths, device=audio_BQD.device)
        if self.config.fusion == "cross_attention":
            self.encoded_audio = EncodedAudio(audio=audio_BQD, mask=valid_frames(audio_lengths_B, audio_BQD.shape[1]))
        return audio_BQD, audio_lengths_B

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """Last hidden states (B, L, D) of rows of embeddings; logits are the caller's, where they are needed."""
        hidden_BLD: Tensor = decoder_of(self.language_model)(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask.long(),
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        return hidden_BLD

    def audio_positions(self, duration_s: float, *, merging: FrameMerging = NO_MERGING) -> int:
        """Positions in the prompt that a clip of so many seconds takes.

        Args:
            duration_s: Of the clip.
            merging: Of audio tokens; what is merged within the encoder is not counted, so it may take fewer.
        """
        if self.config.fusion == "cross_attention":
            return 0
        positions = encoder_rows.positions_in(self.config.audio_config, duration_s)
        outputs = outputs_of(
            self.config.projector_kind,
            positions,
            downsample=self.config.downsample,
            latents=self.config.perceiver_latents,
        )
        return merging.audio_tokens(outputs)

    def _listen(
        self, index: int, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put what was heard into the states that go into a layer of the language model."""
        if self.encoded_audio is None:
            return inputs, named
        block = self.cross_attention[str(index)]
        if inputs:
            return (block(inputs[0], self.encoded_audio, index), *inputs[1:]), named
        return inputs, named | {"hidden_states": block(named["hidden_states"], self.encoded_audio, index)}


def _random_language_model(config: Any) -> Any:
    # Its configuration may name the type it was saved in; here it has that of the whole.
    return plain_language_model(AutoModelForCausalLM.from_config(config, dtype=torch.get_default_dtype()))


def _listening(config: Any) -> list[int]:
    return list(config.cross_attention_layers)


def decoder_of(language_model: Any) -> Any:
    """The language model without its output layer."""
    return language_model.base_model


def stack_of(language_model: Any) -> Any:
    """The module that holds embeddings, layers and last norm; mostly the language model without its output layer."""
    return language_model.get_decoder()


def layers_of(language_model: Any) -> nn.ModuleList:
    """The numbered layers of a causal language model.

    Raises:
        ModelError: None are found.
    """
    wanted = language_model.config.num_hidden_layers
    for child in stack_of(language_model).children():
        if isinstance(child, nn.ModuleList) and len(child) == wanted:
            return child
    raise ModelError(
        f"no list of {wanted} layers was found in {type(language_model).__name__}; a language model is needed whose "
        "decoder holds its layers in one list, such as Qwen, Llama, Mistral or GPT-2. Take another language model."
    )


def plain_language_model(language_model: Any) -> Any:
    """Put `nn.Linear` for the transposed `Conv1D` of GPT-2, in place: adapters, 4 bits and merging know linears.

    Raises:
        ModelError: Its layers cannot be found, or it changes logits behind its output layer.
    """
    from transformers.pytorch_utils import Conv1D  # noqa: PLC0415

    layers_of(language_model)
    settings = {"final_logit_softcapping": None, "logit_scale": 1, "logits_scaling": 1}
    for name, plain in settings.items():
        if getattr(language_model.config, name, None) not in (None, plain):
            raise ModelError(
                f"{type(language_model).__name__} changes its logits ({name}="
                f"{getattr(language_model.config, name)}) behind the output layer; only plain logits are known here. "
                "Take another language model, such as Qwen, Llama, Mistral or GPT-2."
            )
    for parent in list(language_model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                inputs, outputs = child.weight.shape
                linear = nn.Linear(inputs, outputs, device=child.weight.device, dtype=child.weight.dtype)
                if not child.weight.is_meta:
                    with torch.no_grad():
                        linear.weight.copy_(child.weight.T)
                        linear.bias.copy_(child.bias)
                linear._is_hf_initialized = True  # type: ignore[assignment]  # or `post_init` would draw it anew
                setattr(parent, name, linear)
    return language_model


class SpeechLlmProcessor:
    """The feature extractor of one part and the tokenizer of the other, saved into one folder."""

    def __init__(self, feature_extractor: Any, tokenizer: Any) -> None:
        self.feature_extractor = feature_extractor
        self.tokenizer = tokenizer

    def save_pretrained(self, folder: str | Path) -> None:
        """Write both; `AutoFeatureExtractor` and `AutoTokenizer` read them from there."""
        self.feature_extractor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


AutoConfig.register(MODEL_TYPE, SpeechLlmConfig, exist_ok=True)
AutoModel.register(SpeechLlmConfig, SpeechLlm, exist_ok=True)
