"""The files of a checkpoint's weights: which they are, whether they are whole, and what they contain in one digest."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sonotune.errors import ModelError, first_line
from sonotune.json_files import read_json
from sonotune.runs import digest_file, digest_json

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"


class _WeightIndex(TypedDict):
    weight_map: dict[str, str]


_WEIGHT_INDEX: Final = TypeAdapter(_WeightIndex)


def named_files(folder: Path) -> list[str]:
    """The single file of weights, which goes before an index as in `transformers`, else those that the index names.

    Raises:
        ModelError: The index is damaged.
    """
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        return []
    read = read_json(index, _WEIGHT_INDEX, error=ModelError, do="Copy the file again.")
    return sorted(set(read["weight_map"].values()))


def check_weight_files(folder: Path) -> None:
    """Refuse a folder whose index names files that are not there, or whose files are not whole.

    Raises:
        ModelError: The message names every such file.
    """
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    index = folder / INDEX
    names = named_files(folder)
    missing, damaged = [], []
    for name in names:
        try:
            with safe_open(folder / name, "pt") as opened:  # its header says how long the file must be
                opened.keys()
        except (FileNotFoundError, UnicodeError):  # a lone surrogate is in no file's name
            missing.append(name)
        except (OSError, SafetensorError) as error:
            damaged.append(f"{name} ({first_line(error)})")
    if missing:
        raise ModelError(
            f"{index} names {len(names)} files of weights, and {len(missing)} are missing in {folder}: "
            f"{', '.join(missing[:10])}. Copy them there too."
        )
    if damaged:
        raise ModelError(
            f"{folder} could not be loaded: {', '.join(damaged[:10])} is damaged or cut short. Copy the file again."
        )


def stored_types(path: Path) -> dict[str, str]:
    """Tensor -> its type in a file of weights, in the words of safetensors (`F32`, `BF16`, `I8`); reads the header."""
    from safetensors import safe_open  # noqa: PLC0415

    with safe_open(path, "pt") as opened:
        return {name: str(opened.get_slice(name).get_dtype()) for name in opened.keys()}  # noqa: SIM118


def weights_digest(folder: Path) -> str:
    """Digest of the content of every file of weights, in the folder or where its index says."""
    files = {path.name for path in folder.glob("*.safetensors")}.union(named_files(folder))
    return digest_json({name: digest_file(folder / name) for name in sorted(files)})[:16]
