"""The decoding settings that an export carries, so that another tool decodes it as it is scored.

A tool that is told nothing goes by `generation_config.json`. What sonotune decides by itself when it decodes (the
prompt, the beams, the penalties, the limit) must therefore stand there. The fallback of Whisper does not: `generate`
draws with its own random numbers. What that makes of the score is in the export's `parity.json`.
"""

from __future__ import annotations

from typing import Any

from sonotune.models.languages import find_code

_MOST_TOKENS = 512
"""Limit of a text where a checkpoint sets none: `transformers` would stop after 20 tokens."""
_UNLIMITED = (None, 20)  # `max_length` that nobody has set


def set_decoding_defaults(
    module: Any,
    tokenizer: Any,
    *,
    family: str,
    language: str | None,
    beam_size: int | None = None,
    length_penalty: float | None = None,
    no_repeat_ngram_size: int = 0,
    repetition_penalty: float = 1.0,
) -> dict[str, Any]:
    """Write into `module.generation_config`, in place, how the model is scored.

    Whisper: the task, without which `generate` leaves `<|transcribe|>` out of the prompt where it detects the language;
    the language a run was tuned for; no forced tokens of an older release; the ids that a checkpoint without
    `generation_config.json` lacks. Qwen3-ASR: a limit, where there is none.

    Args:
        module: A module with `generate`; any other is left alone.
        tokenizer: Its tokenizer.
        family: Registry name of its architecture.
        language: The run's; None leaves it to detection.
        beam_size: Beams the run is scored with; None or 1 is greedy.
        length_penalty: Of beams, as it is scored; None leaves it to the model.
        no_repeat_ngram_size: As it is scored; 0 hinders nothing.
        repetition_penalty: As it is scored; 1 hinders nothing.

    Returns:
        The settings that were written.
    """
    settings = getattr(module, "generation_config", None)
    if settings is None or family not in ("whisper", "qwen3_asr"):
        return {}
    written: dict[str, Any] = {"num_beams": beam_size} if beam_size is not None and beam_size > 1 else {}
    if written and length_penalty is not None:
        written["length_penalty"] = length_penalty
    written |= {"no_repeat_ngram_size": no_repeat_ngram_size} if no_repeat_ngram_size else {}
    written |= {"repetition_penalty": repetition_penalty} if repetition_penalty != 1 else {}
    if family == "whisper":
        written |= _whisper(settings, tokenizer, language)
        for name in ("forced_decoder_ids", "suppress_tokens", "begin_suppress_tokens"):
            if getattr(module.config, name, None) is not None:  # `generate` falls back on them
                setattr(module.config, name, None)
    elif settings.max_new_tokens is None and settings.max_length in _UNLIMITED:
        written["max_new_tokens"] = _MOST_TOKENS
    for name, value in written.items():
        setattr(settings, name, value)
    return written


def _whisper(settings: Any, tokenizer: Any, language: str | None) -> dict[str, Any]:
    known = getattr(settings, "lang_to_id", None)
    written: dict[str, Any] = {"forced_decoder_ids": None, "return_timestamps": False}
    if getattr(settings, "no_timestamps_token_id", None) is None:
        written["no_timestamps_token_id"] = tokenizer.convert_tokens_to_ids("<|notimestamps|>")
    if not known:  # English alone: it is told neither language nor task
        return written
    written["task"] = "transcribe"
    if not getattr(settings, "task_to_id", None):
        tasks = ("transcribe", "translate")
        written["task_to_id"] = {task: tokenizer.convert_tokens_to_ids(f"<|{task}|>") for task in tasks}
    code = None if language is None else find_code(language, {token.strip("<|>") for token in known})
    if code is not None:
        written["language"] = code
    return written
