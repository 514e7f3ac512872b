"""Qwen3-ASR checkpoints of the authors' own package (`qwen-asr`): their names, configuration and files.

There every name begins with `thinker.`, the projector is part of the audio tower (`proj1`, `proj2`), and the
configuration is nested one level deeper. `transformers` reads neither by itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from sonotune.errors import ModelError
from sonotune.models.pretrained import load_weights, mismatched, wrong_shape
from sonotune.runs import digest_file, digest_json

# In this order: a name is changed by the first that matches it.
_RENAMED: Final = (
    (r"^thinker\.lm_head(?=\.|$)", "lm_head"),
    (r"^thinker\.audio_tower\.proj1(?=\.|$)", "model.multi_modal_projector.linear_1"),
    (r"^thinker\.audio_tower\.proj2(?=\.|$)", "model.multi_modal_projector.linear_2"),
    (r"^thinker\.audio_tower(?=\.|$)", "model.audio_tower"),
    (r"^thinker\.model(?=\.|$)", "model.language_model"),
    (r"^proj1$", "model.multi_modal_projector.linear_1"),
    (r"^proj2$", "model.multi_modal_projector.linear_2"),
    (r"^ln_post$", "model.audio_tower.ln_post"),
)
_AUDIO: Final = (
    "num_mel_bins",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "d_model",
    "dropout",
    "attention_dropout",
    "activation_function",
    "activation_dropout",
    "scale_embedding",
    "initializer_range",
    "n_window",
    "output_dim",
    "n_window_infer",
    "downsample_hidden_size",
)
_TEXT: Final = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "attention_bias",
    "attention_dropout",
    "tie_word_embeddings",
)


def modern_name(name: str) -> str:
    """The name a parameter or module of `qwen-asr` has in `transformers`; any other name is returned unchanged."""
    for pattern, new in _RENAMED:
        changed, count = re.subn(pattern, new, name)
        if count:
            return changed
    return name


def is_old(config: Any) -> bool:
    """Whether a configuration was written by `qwen-asr`."""
    return bool(getattr(config, "thinker_config", None))


def modern_config(config: Any) -> Any:
    """The same architecture as `transformers` configures it.

    M-RoPE is left out: with audio and text alone its three positions are the same, which is plain RoPE.
    """
    import transformers  # noqa: PLC0415

    nested: dict[str, Any] = config.thinker_config
    audio = {key: nested["audio_config"][key] for key in _AUDIO if key in nested["audio_config"]}
    text = {key: nested["text_config"][key] for key in _TEXT if key in nested["text_config"]}
    given = nested["text_config"]
    rope = {**(given.get("rope_scaling") or {}), **(given.get("rope_parameters") or {})}
    theta = float(given.get("rope_theta") or rope.get("rope_theta") or 1_000_000.0)
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    modern = transformers.Qwen3ASRConfig(
        audio_config=audio,
        text_config=text,
        audio_token_id=nested.get("audio_token_id", config.audio_token_id),
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        tie_word_embeddings=text.get("tie_word_embeddings", True),
        architectures=["Qwen3ASRForConditionalGeneration"],
    )
    modern._commit_hash = getattr(config, "_commit_hash", None)
    return modern


def load_old_weights(source: Path | str, config: Any, revision: str | None) -> tuple[Any, str]:
    """The module with the weights of an old checkpoint, in fp32, and its identity; it is saved under modern names.

    Args:
        source: Folder or hub name.
        config: The modern configuration.
        revision: Hub revision.

    Raises:
        ModelError: Missing, unreachable, damaged or incomplete.
    """
    from safetensors import SafetensorError  # noqa: PLC0415

    try:
        module, told = load_weights(
            "Qwen3ASRForConditionalGeneration",
            source,
            config=config,
            revision=revision,
            key_mapping=dict(_RENAMED),
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise ModelError(
            f"the qwen-asr checkpoint {source} could not be loaded: {reason}. Its folder needs config.json and "
            "safetensors weights. Download it again, or use its modern form, such as Qwen/Qwen3-ASR-1.7B-hf."
        ) from error
    if shapes := mismatched(told):
        raise ModelError(wrong_shape(source, sorted(shapes), shapes))
    if absent := sorted(told["missing_keys"]):
        raise ModelError(
            f"the qwen-asr checkpoint {source} lacks {len(absent)} weights of its architecture, such as {absent[0]}; "
            "they would be random. Download it again, or use its modern form, such as Qwen/Qwen3-ASR-1.7B-hf."
        )
    module._weight_conversions = []  # else `save_pretrained` would bring the old names back
    module.eval()
    if isinstance(source, str):
        return module, str(config._commit_hash or "unknown")
    return module, digest_json({path.name: digest_file(path) for path in sorted(source.glob("*.safetensors"))})[:16]
