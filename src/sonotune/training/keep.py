"""Keep what was trained: the adapter, or the model after full fine-tuning. A folder that exists is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from sonotune.adapters import lora
from sonotune.models.base import LoadedModel
from sonotune.models.checkpoints import as_os_error
from sonotune.models.decoding_defaults import set_decoding_defaults
from sonotune.runs import RunDirectory, sync_directory, write_error


def keep(
    loaded: LoadedModel,
    directory: RunDirectory,
    *,
    extra: dict[str, Any],
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the adapter, or the whole model where there is none, beside its final name and rename it.

    Args:
        loaded: The trained model.
        directory: Where `adapter/` or `model/` goes; an older one is replaced.
        extra: Further entries of `sonotune.json`.
        weights: Of the whole model, where its own are in parts.

    Returns:
        The folder.

    Raises:
        ResourceError: The disk is full; nothing half written is left.
        RunDirectoryError: The directory cannot be written.
    """
    folder = directory.path / "model" if loaded.adapter is None else directory.adapter_dir
    draft = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        if loaded.adapter is None:
            set_decoding_defaults(
                loaded.module, getattr(loaded.processor, "tokenizer", None), family=loaded.family,
                language=extra.get("language"),
            )  # fmt: skip
            loaded.module.save_pretrained(draft, safe_serialization=True, state_dict=weights)
            loaded.processor.save_pretrained(draft)
            lora.write_side_car(loaded, draft, extra=extra)
        else:
            lora.save(loaded, draft, extra=extra)
            if loaded.new_outputs and hasattr(loaded.processor, "tokenizer"):
                loaded.processor.tokenizer.save_pretrained(draft)  # the base has another vocabulary, or none
        _flush(draft)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
        sync_directory(directory.path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise write_error(as_os_error(error), folder, _size(loaded)) from error
    return folder


def _flush(folder: Path) -> None:
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _size(loaded: LoadedModel) -> int:
    kept = [value for value in loaded.module.parameters() if loaded.adapter is None or value.requires_grad]
    return sum(value.numel() * value.element_size() for value in kept)
