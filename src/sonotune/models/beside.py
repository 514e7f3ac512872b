"""Files beside weights that other tools read: features and tokens, and how a text is decoded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sonotune.models.checkpoints import load_processor, locate
from sonotune.models.decoding_defaults import set_decoding_defaults


def save_processor(processor: Any, folder: Path) -> None:
    """Write a processor, and the features by themselves.

    `transformers` 5 puts all of a processor into `processor_config.json`. Older releases, the converter of
    faster-whisper and others look for `preprocessor_config.json`.
    """
    processor.save_pretrained(folder)
    extractor = getattr(processor, "feature_extractor", None)
    if extractor is not None:
        extractor.save_pretrained(folder)


def save_use_of_adapter(
    base: str, folder: Path, *, revision: str | None, family: str, language: str | None, **scored_with: Any
) -> dict[str, Any]:
    """Write the features of a base and the decoding settings of its adapter beside the adapter.

    Args:
        base: Packaged, local or hub name.
        folder: Of the adapter.
        revision: Of a base on the hub.
        family: Registry name of the architecture.
        language: The run's.
        scored_with: See `set_decoding_defaults`.

    Returns:
        The decoding settings that were written.

    Raises:
        ModelError: The base cannot be read.
    """
    import transformers  # noqa: PLC0415

    load_processor(base, class_name="AutoFeatureExtractor", revision=revision).save_pretrained(folder)
    if family not in ("whisper", "qwen3_asr"):
        return {}
    try:
        settings = transformers.GenerationConfig.from_pretrained(locate(base), revision=revision)
    except OSError:  # it has none, and `transformers` decodes by its own
        return {}
    tokenizer = load_processor(base, class_name="AutoTokenizer", revision=revision)
    module = SimpleNamespace(generation_config=settings, config=SimpleNamespace())
    written = set_decoding_defaults(module, tokenizer, family=family, language=language, **scored_with)
    settings.save_pretrained(folder)
    return written
