"""Files of JSON of a model that somebody else made, checked before a reader without bounds builds what they ask for.

`transformers` checks few values. A number of layers or of mel bins that is wrong by some digits keeps it busy for
hours or fills the memory, also where a model is only laid out without weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sonotune.errors import ModelError
from sonotune.json_files import OBJECT, read_json
from sonotune.models.foreign_code import CLASS_NAMES, settings_files

_TOKENIZER: Final = "tokenizer_config.json"
_COPY: Final = "Copy the file again."
_MOST: Final = (
    (re.compile(r"(^|_)n?(layers|depth|blocks)$|^num_hidden_layers$"), 256, "layers"),
    (re.compile(r"mel_bins|^feature_size$|num_mel|kernel_size$|^n_filters$"), 16_384, "bins"),
    (re.compile(r"^(n_fft|win_length|fft_length|frame_length|hop_length)$"), 2**20, "samples"),
    (re.compile(r"^chunk_length(_s)?$"), 86_400, "seconds"),
    (re.compile(r"^(sampling|sample)_rate$"), 10_000_000, "Hz"),
)
"""Key -> the largest value that any published model is far below, and what it counts."""
_LARGEST: Final = 2**31
"""Of all other whole numbers of an architecture."""
_PARTS: Final = re.compile(r"^([^_].*_config|parts)$")
_SHOWN: Final = 60


def refuse_pipes(folder: Path) -> None:
    """Refuse a folder with a pipe or the like in it: whoever opens one waits for its other end.

    Raises:
        ModelError: Names it.
    """
    for path in folder.iterdir():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ModelError(f"{path} is neither a file nor a folder, and would be waited for. Copy the model again.")


def check_config_files(source: Path | str, revision: str | None = None) -> None:
    """Refuse a model whose files of settings are no JSON, or hold sizes that no model has.

    Args:
        source: A folder, or a hub name; see `foreign_code.settings_files`.
        revision: Of a hub name.

    Raises:
        ModelError: Names the file and the value.
        OSError: The hub checkpoint cannot be reached, or is none.
    """
    for path in settings_files(source, revision):
        if path.name == _TOKENIZER:  # it holds limits of 10^30, which cost nothing
            continue
        check_entries(read_json(path, OBJECT, error=ModelError, do=_COPY), str(path))


def check_entries(found: dict[str, Any], where: str) -> None:
    """Refuse values that no model has.

    Args:
        found: What a file holds, or what `transformers` made of it, which reads `Infinity` as a number.
        where: What the message names.

    Raises:
        ModelError: Names the first of them.
    """
    for key, value in _entries(found):
        if allowed := _refused(key.rpartition(".")[2], value):
            raise ModelError(f"{where}: {key} is {repr(value)[:_SHOWN]}, and it must be {allowed}. {_COPY}")


def _entries(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every entry; those of a list have the key of the list."""
    if isinstance(value, dict):
        for name, child in value.items():
            yield f"{prefix}{name}", child
            if name not in CLASS_NAMES:
                yield from _entries(child, f"{prefix}{name}.")
    elif isinstance(value, list):
        for child in value:
            if isinstance(child, dict):
                yield from _entries(child, prefix)
            elif isinstance(child, int | float):
                yield prefix.removesuffix("."), child


def _refused(key: str, value: Any) -> str | None:
    """What an entry may be where it is not that."""
    if key == "model_type" and not isinstance(value, str):
        return "text"
    if key == "architectures" and not (
        value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))
    ):
        return "a list of names of classes"
    if _PARTS.search(key) and not isinstance(value, dict | None):
        return "an object, or null"
    if not isinstance(value, int | float):
        return None
    for pattern, most, unit in _MOST:
        if pattern.search(key) and value > most:
            return f"at most {most:,} {unit}"
    return f"at most {_LARGEST:,}" if isinstance(value, int) and abs(value) > _LARGEST else None
