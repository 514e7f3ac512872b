"""What a Whisper checkpoint may lack and what is put in its place, so that it is served as it is scored.

Fine-tuned checkpoints often come without `generation_config.json` or `preprocessor_config.json`. What stood there
follows from the tokenizer and from `config.json`; every choice is logged, and an export has the files.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sonotune.errors import ModelError
from sonotune.json_files import Count, check_json
from sonotune.models.base import LoadedModel
from sonotune.models.checkpoints import load_processor, locate

logger = logging.getLogger(__name__)

ENGLISH_VOCABULARY: Final = 51_864
"""Of the published English-only checkpoints; all others have one token more, or two."""
_MULTILINGUAL_VOCABULARIES: Final = (51_865, 51_866)
_LIBRARY_MAX_LENGTH: Final = 20  # what `transformers` generates where nothing is said
_SPACE_TOKEN: Final = 220
_NEVER_WRITTEN: Final = (
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|nocaptions|>",
)


_COPY: Final = "Copy the file of the model again."


class _ConfigTokens(TypedDict):
    decoder_start_token_id: Count
    eos_token_id: Count
    pad_token_id: Count | None


class _Tokens(TypedDict):
    suppress_tokens: list[Count] | None
    begin_suppress_tokens: list[Count] | None
    lang_to_id: dict[str, Count] | None
    task_to_id: dict[str, Count] | None
    no_timestamps_token_id: Count | None
    prev_sot_token_id: Count | None


def load_whisper_processor(checkpoint: str, *, revision: str | None, config: Any) -> Any:
    """The processor of a checkpoint; a local folder without a feature extractor gets the one its config asks for.

    Raises:
        ModelError: The tokenizer is missing, or files are unreadable.
    """
    source = locate(checkpoint)
    described = ("preprocessor_config.json", "processor_config.json")
    if not isinstance(source, Path) or any((source / name).is_file() for name in described):
        return load_processor(checkpoint, class_name="AutoProcessor", revision=revision)
    from transformers import WhisperFeatureExtractor, WhisperProcessor  # noqa: PLC0415

    tokenizer = load_processor(checkpoint, class_name="AutoTokenizer", revision=revision)
    seconds = config.max_source_positions // 50  # two frames of 10 ms are one position
    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=seconds)
    try:
        processor = WhisperProcessor(feature_extractor=extractor, tokenizer=tokenizer)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"the tokenizer in {source} is no Whisper tokenizer ({type(tokenizer).__name__}). Copy the files of the "
            "model's own tokenizer there."
        ) from error
    logger.warning(
        "%s has no preprocessor_config.json: chose Whisper's own features with %d mel bins and a window of %d s, "
        "because config.json says so",
        checkpoint,
        config.num_mel_bins,
        seconds,
    )
    return processor


def complete_generation_config(module: Any, tokenizer: Any, checkpoint: str) -> None:
    """Fill in what the decoding settings lack, in place; what they have stays.

    Without `lang_to_id` a multilingual model would be prompted as one that knows English alone; without
    `no_timestamps_token_id` and `max_length`, `transformers` would serve an export with timestamps, cut after 20
    tokens. The tokenizers of English-only checkpoints have the tokens of all languages, so those are told apart by the
    size of their vocabulary. The prompt is made of language and task; ids that an old checkpoint forces are dropped.
    """
    settings, config = module.generation_config, module.config
    absent = bool(getattr(settings, "_from_model_config", False))
    vocabulary = {token: place for token, place in tokenizer.get_vocab().items() if place < config.vocab_size}
    made: dict[str, Any] = {}
    if _may_know_languages(settings, config, absent=absent):
        made |= _languages(vocabulary)
    elif config.vocab_size == ENGLISH_VOCABULARY:
        made["is_multilingual"] = False
    made["no_timestamps_token_id"] = vocabulary.get("<|notimestamps|>")
    made["prev_sot_token_id"] = vocabulary.get("<|startofprev|>")
    made["max_length"] = config.max_target_positions
    if absent:
        settings.begin_suppress_tokens = None  # the library's default holds for one vocabulary only
        if getattr(settings, "max_length", None) == _LIBRARY_MAX_LENGTH:
            settings.max_length = None
        made |= _suppressed(vocabulary, config)
    made = {
        name: value for name, value in made.items() if value is not None and getattr(settings, name, None) in (None, {})
    }
    for name, value in made.items():
        setattr(settings, name, value)
    settings.forced_decoder_ids = None
    if absent:
        settings.return_timestamps = False
        settings._from_model_config = False  # else `transformers` may make them anew from config.json
        logger.warning(
            "%s has no generation_config.json: chose %d languages and %d suppressed tokens, because its tokenizer has "
            "them",
            checkpoint,
            len(getattr(settings, "lang_to_id", None) or {}),
            len(settings.suppress_tokens or ()),
        )


def check_tokens(module: Any, checkpoint: str) -> None:
    """Refuse settings that name tokens which the model does not have.

    Raises:
        ModelError: Names the file, the setting and its value.
    """
    described = (
        ("config.json", module.config, _ConfigTokens),
        ("generation_config.json", module.generation_config, _Tokens),
    )
    for file, settings, kind in described:
        where = f"the {file} of {checkpoint}"
        tokens = {name: getattr(settings, name, None) for name in kind.__annotations__}
        check_json(tokens, TypeAdapter(kind), where=where, error=ModelError, do=_COPY)
        for name, value in tokens.items():
            named = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            if beyond := [token for token in named if token is not None and token >= module.config.vocab_size]:
                raise ModelError(
                    f"{where} names the token {beyond[0]} ({name}), and the vocabulary has "
                    f"{module.config.vocab_size}. {_COPY}"
                )


def _may_know_languages(settings: Any, config: Any, *, absent: bool) -> bool:
    if config.vocab_size == ENGLISH_VOCABULARY or getattr(settings, "is_multilingual", None) is False:
        return False
    return absent or config.vocab_size in _MULTILINGUAL_VOCABULARIES


def _languages(vocabulary: dict[str, int]) -> dict[str, Any]:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES  # noqa: PLC0415

    known = {token: vocabulary[token] for code in LANGUAGES if (token := f"<|{code}|>") in vocabulary}
    tasks = {task: vocabulary[f"<|{task}|>"] for task in ("transcribe", "translate") if f"<|{task}|>" in vocabulary}
    return {"lang_to_id": known, "is_multilingual": True, "task_to_id": tasks or None} if known else {}


def _suppressed(vocabulary: dict[str, int], config: Any) -> dict[str, Any]:
    """What the published checkpoints never write, where the vocabulary is theirs: signs of no speech, and prompts."""
    from transformers.models.whisper import configuration_whisper as published  # noqa: PLC0415

    if vocabulary.get("Ġ") != _SPACE_TOKEN:
        return {"suppress_tokens": [], "begin_suppress_tokens": []}
    english = config.vocab_size == ENGLISH_VOCABULARY
    signs = published.NON_SPEECH_TOKENS if english else published.NON_SPEECH_TOKENS_MULTI
    prompts = {vocabulary[token] for token in (*_NEVER_WRITTEN, "<|startoftranscript|>") if token in vocabulary}
    return {
        "suppress_tokens": sorted({sign for sign in signs if sign < config.eos_token_id} | prompts),
        "begin_suppress_tokens": [_SPACE_TOKEN, config.eos_token_id],
    }


def is_multilingual(loaded: LoadedModel) -> bool:
    """Whether the checkpoint is told a language."""
    return bool(getattr(loaded.module.generation_config, "lang_to_id", None))


def is_english(loaded: LoadedModel) -> bool:
    """Whether it is one of the published English-only checkpoints, or has their vocabulary."""
    return bool(loaded.module.config.vocab_size == ENGLISH_VOCABULARY)


def language_tokens(loaded: LoadedModel) -> dict[str, int]:
    """Code -> id of the token that names the language."""
    known: dict[str, int] = loaded.module.generation_config.lang_to_id
    return {token.strip("<|>"): index for token, index in known.items()}
