"""Making a composed model's folder of two checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from sonotune.errors import ModelError, RunDirectoryError
from sonotune.models import encoder_rows, speech_encoders
from sonotune.models.checkpoints import as_os_error, load_processor, locate, read_config
from sonotune.models.composed.model import (
    SpeechLlm,
    SpeechLlmConfig,
    SpeechLlmProcessor,
    digests_of_new_parts,
    plain_language_model,
)
from sonotune.models.pretrained import load_weights
from sonotune.runs import write_error
from sonotune.runs.folders import replacing


def compose(folder: Path, **told: Any) -> SpeechLlm:
    """Write the folder of a model made of two checkpoints; the projector between them is random and must be trained.

    Args:
        folder: Where to write; it must not exist.
        told: Arguments of `put_together`.

    Returns:
        The model that was written, in fp32.

    Raises:
        ModelError: A part is missing, damaged or of the wrong kind, or a setting is wrong.
        RunDirectoryError: The folder exists or cannot be written.
        ResourceError: The disk is full; nothing half written is left.
    """
    _refuse_existing(folder)
    module, processor = put_together(**told)
    _write(folder, module, processor)
    return module


def _refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise RunDirectoryError(f"{folder} exists already; a composed model needs a new folder. Give another one.")


def put_together(
    *,
    encoder: str,
    language_model: str,
    encoder_revision: str | None = None,
    language_model_revision: str | None = None,
    random_weights: bool = False,
    seed: int = 0,
    dropout: float | None = None,
    **settings: Any,
) -> tuple[SpeechLlm, SpeechLlmProcessor]:
    """Make one model of two checkpoints.

    Args:
        encoder: Folder or hub name of a Whisper, wav2vec 2.0, HuBERT, WavLM or wav2vec 2.0 conformer checkpoint.
        language_model: Folder or hub name of a causal language model, or of a Qwen3-ASR, whose own is taken.
        encoder_revision: Hub revision.
        language_model_revision: Hub revision.
        random_weights: Take only the configurations of both, for tests and for training from nothing.
        seed: Of the projector's weights.
        dropout: Overrides the encoder's, on hidden states.
        settings: Further fields of `SpeechLlmConfig`, such as `projector_kind` and `fusion`.

    Returns:
        The model in fp32 and in evaluation mode, and its processor.

    Raises:
        ModelError: A part is missing, damaged or of the wrong kind, or a setting is wrong.
    """
    known = set(SpeechLlmConfig.__annotations__) - {"audio_config", "text_config", "untrained", "parts"}
    if unknown := sorted(set(settings) - known):
        raise ModelError(
            f"{unknown[0]!r} is no setting of a composed model; known: {', '.join(sorted(known))}. Check its spelling."
        )
    audio = _audio_config(encoder, encoder_revision)
    text = _text_config(language_model, language_model_revision)
    processor = processor_of_parts(
        encoder=encoder,
        language_model=language_model,
        encoder_revision=encoder_revision,
        language_model_revision=language_model_revision,
    )
    _check_tokenizer(language_model, processor.tokenizer, chat=bool(settings.get("chat")))
    config = _config(audio, text, settings)
    config.dropout = config.dropout if dropout is None else dropout
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: dict[str, Any] = {}
        if not random_weights:
            parts["audio_encoder"] = _load_encoder(encoder, config.audio_config, encoder_revision)
            parts["language_model"] = _load_language_model(language_model, config.text_config, language_model_revision)
        module = SpeechLlm(config, **parts)
    if not random_weights:
        config.untrained = digests_of_new_parts(module)
    module.eval()
    return module, processor


def processor_of_parts(
    *,
    encoder: str,
    language_model: str,
    encoder_revision: str | None = None,
    language_model_revision: str | None = None,
    **_: Any,
) -> SpeechLlmProcessor:
    """Feature extractor and tokenizer of the parts; takes the arguments of `put_together`."""
    return SpeechLlmProcessor(
        load_processor(encoder, class_name="AutoFeatureExtractor", revision=encoder_revision),
        load_processor(language_model, class_name="AutoTokenizer", revision=language_model_revision),
    )


def _config(audio: Any, text: Any, settings: dict[str, Any]) -> SpeechLlmConfig:
    try:
        return SpeechLlmConfig(audio_config=audio, text_config=text, **settings)
    except (TypeError, ValueError) as error:
        first = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the settings {settings} make no composed model: {first}. "
            "Check the names and values against SpeechLlmConfig."
        ) from error


def _audio_config(encoder: str, revision: str | None) -> Any:
    config = copy.deepcopy(read_config(encoder, revision))
    try:
        encoder_rows.kind_of(config)
    except ModelError as error:
        raise ModelError(f"encoder={encoder}: {error}") from error
    config.dtype, config._name_or_path = None, ""  # a folder names no place of the machine that made it
    return speech_encoders.prepare_config(config)


def _text_config(language_model: str, revision: str | None) -> Any:
    from transformers.models.auto.modeling_auto import (  # noqa: PLC0415
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    config = copy.deepcopy(read_config(language_model, revision))
    if _has_language_model(config):
        config = config.text_config
    kind = config.model_type
    # BERT and its like can be built as decoders, but were not trained as one unless their configuration says so.
    both_ways = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    spoken = getattr(config, "is_encoder_decoder", False) or kind in encoder_rows.ENCODER_TYPES
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or both_ways or spoken:
        heads = ", ".join(config.architectures or ()) or "no architecture named"
        raise ModelError(
            f"language_model={language_model} is a {kind!r} checkpoint ({heads}), which is no causal language model; "
            "one is needed that writes from left to right. Give a checkpoint such as Qwen/Qwen2.5-0.5B."
        )
    config.dtype, config._name_or_path = None, ""
    return config


def _check_tokenizer(language_model: str, tokenizer: Any, *, chat: bool) -> None:
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {language_model} has no end token, so the model could never stop; found eos_token=None. "
            "Set eos_token in its tokenizer_config.json."
        )
    if chat and not tokenizer.chat_template:
        raise ModelError(
            f"chat=true needs a chat template, and the tokenizer of {language_model} has none. "
            "Take the instruction-tuned checkpoint, or set chat=false."
        )


def _load_encoder(checkpoint: str, config: Any, revision: str | None) -> Any:
    module = _from_pretrained("AutoModel", checkpoint, config, revision, within="encoder.")
    part = module.encoder if encoder_rows.kind_of(config) == "whisper" else module
    return speech_encoders.make_plain(part)


def _load_language_model(checkpoint: str, config: Any, revision: str | None) -> Any:
    whole = read_config(checkpoint, revision)
    if not _has_language_model(whole):
        return plain_language_model(_from_pretrained("AutoModelForCausalLM", checkpoint, config, revision))
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    aligner = _from_pretrained("Qwen3ASRForConditionalGeneration", checkpoint, copy.deepcopy(whole), revision)
    language_model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    language_model.base_model.load_state_dict(aligner.model.language_model.state_dict())
    language_model.lm_head.load_state_dict(aligner.lm_head.state_dict())
    return plain_language_model(language_model)


def _has_language_model(config: Any) -> bool:
    """Whether a checkpoint hears by itself and is asked for the language model inside."""
    return bool(config.model_type == "qwen3_asr" and not getattr(config, "thinker_config", None))


def _from_pretrained(class_name: str, checkpoint: str, config: Any, revision: str | None, *, within: str = "") -> Any:
    """Load one part in fp32; every weight that is used must be in the checkpoint."""
    from safetensors import SafetensorError  # noqa: PLC0415

    try:
        module, told = load_weights(class_name, locate(checkpoint), config=config, revision=revision)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().partition("\n")[0][:200]
        raise ModelError(
            f"the weights of {checkpoint} could not be loaded ({first}); safetensors weights are needed. "
            "Check the folder or hub name, or convert pickled weights first."
        ) from error
    prefix = within if config.model_type == "whisper" else ""
    missing = sorted(name for name in told["missing_keys"] if name.startswith(prefix))
    if missing:
        raise ModelError(
            f"{checkpoint} lacks {len(missing)} weights of its architecture, such as {missing[0]}; all are needed. "
            "Save the model again, or compose with random weights."
        )
    return module


def _write(folder: Path, module: SpeechLlm, processor: SpeechLlmProcessor) -> None:
    from safetensors import SafetensorError  # noqa: PLC0415

    try:
        with replacing(folder) as draft:
            module.save_pretrained(draft, safe_serialization=True)
            processor.save_pretrained(draft)
            _refuse_existing(folder)  # that was minutes ago
    except (OSError, SafetensorError) as error:
        size = sum(value.numel() * value.element_size() for value in module.parameters())
        raise write_error(as_os_error(error), folder, size, choose="FOLDER") from error
