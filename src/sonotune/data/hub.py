"""Data sets of the Hugging Face `datasets` package, from the hub, from `save_to_disk` or from Parquet files.

Its audio decoder needs torchcodec, and that a matching FFmpeg; so the audio comes undecoded (`Audio(decode=False)`),
its bytes are written once under a cache folder, and our own audio room reads them.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sonotune.data.audio_files import AUDIO_SUFFIXES
from sonotune.data.audio_root import AudioRoot
from sonotune.data.columns import SYNONYMS, Columns
from sonotune.data.lines import Problems, RefusedError, show
from sonotune.data.manifest import fill_durations
from sonotune.data.records import COLUMNS, ClipParser
from sonotune.errors import ManifestError, MissingExtraError, SonotuneError
from sonotune.hub_access import why_unreachable
from sonotune.paths import exists
from sonotune.runs import atomic_write_bytes, clear_drafts
from sonotune.types import Clip

_MAGIC = ((b"RIFF", ".wav"), (b"fLaC", ".flac"), (b"OggS", ".ogg"), (b"FORM", ".aiff"), (b"ID3", ".mp3"))


def load_hub(
    source: str | Path,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    limit: int | None = None,
    audio_column: str | None = None,
    text_column: str | None = None,
    cache_dir: Path | None = None,
    allow_outside_root: bool = False,
) -> list[Clip]:
    """Read clips from a `datasets` data set.

    Args:
        source: A hub name (`owner/name`), a folder made by `save_to_disk`, or a Parquet file or folder of them.
        split: Which split.
        config: The data set's configuration, such as a language.
        revision: Branch, tag or commit on the hub.
        streaming: Read row by row without downloading the whole; use with `limit`.
        limit: At most this many rows.
        audio_column: Column of the audio; found by its type or name where None.
        text_column: Column of the transcript; found by its name where None.
        cache_dir: Where audio bytes are written, named by their SHA-256; a folder of the user's cache where None.
        allow_outside_root: Whether rows of a local data set may name files outside its folder.

    Raises:
        MissingExtraError: The package `datasets` is not installed.
        ManifestError: The data set cannot be found or reached, or rows of it cannot be used.
    """
    datasets = _import_datasets()
    local = exists(source)
    with _readable(source, local):
        data = _open(datasets, source, local, split=split, config=config, revision=revision, streaming=streaming)
        features = data.features or {}
        for column, feature in features.items():
            if isinstance(feature, datasets.Audio):
                audio_column = audio_column or column
                data = data.cast_column(column, datasets.Audio(decode=False))
    columns = _columns(source, list(features), {"path": audio_column, "text": text_column})
    label_names = getattr(features.get(columns.get("label", "")), "names", None)
    if local:
        folder = Path(source) if Path(source).is_dir() else Path(source).parent
    else:
        folder = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    root = AudioRoot(folder, allow_outside=allow_outside_root, movable=False)
    cache = (cache_dir or _default_cache()) / re.sub(r"[^\w.-]+", "-", f"{Path(source).name}-{split}")
    clear_drafts(cache)
    problems = Problems(Path(source))
    rows = _rows(_each(data, limit, source, local), columns, label_names, problems, cache=cache, root=root)
    # Cached files lie outside the root by design; `_rows` has already fenced every path that came from the data.
    parser = ClipParser(AudioRoot(cache, allow_outside=True), problems)
    clips = [clip for number, row in rows if (clip := parser.parse(number, row))]
    problems.check()
    if not clips:
        raise ManifestError(f"{source} has no clips: found split {split!r} empty; allowed is one row. Check the split.")
    return fill_durations(clips)


def _import_datasets() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise MissingExtraError(
            "hub data sets and Parquet need the package 'datasets': found it missing; allowed is 5.2 or newer. "
            "Run: pip install 'sonotune[hub]'"
        ) from error


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sonotune" / "hub"


def _open(
    datasets: Any,
    source: str | Path,
    local: bool,
    *,
    split: str,
    config: str | None,
    revision: str | None,
    streaming: bool,
) -> Any:
    path = Path(source)
    if not local:
        why_unreachable()
        return datasets.load_dataset(str(source), config, split=split, revision=revision, streaming=streaming)
    if odd := next((one for one in (path, *path.rglob("*")) if not (one.is_file() or one.is_dir())), None):
        raise ManifestError(f"{odd} is neither a file nor a folder, and would be waited for. Take it out.")
    parquet = [path] if path.suffix == ".parquet" else sorted(path.glob("**/*.parquet"))
    if parquet:
        files = {split: [str(file) for file in parquet]}
        return datasets.load_dataset("parquet", data_files=files, split=split, streaming=streaming)
    loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise ManifestError(
                f"{source} has no split {split!r}: found {', '.join(loaded)}; allowed is one of them. Set split=NAME."
            )
        loaded = loaded[split]
    loaded.data.table.validate(full=True)  # pyarrow follows offsets of a damaged file out of its memory
    return loaded


@contextmanager
def _readable(source: str | Path, local: bool) -> Iterator[None]:
    """What `datasets` raises, which may be of any class for a damaged file, and of its HTTP library's for the hub."""
    try:
        yield
    except SonotuneError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if not local and (unreachable := why_unreachable()):
            reason = f"{unreachable}; {reason}"
        where = "on this disk" if local else "on the hub; without network only data sets that are here can be used"
        raise ManifestError(
            f"the data set {str(source)!r} cannot be loaded: found {reason}; allowed is a data "
            f"set {where}. Check name, split and connection, or give a local file or folder."
        ) from error


def _each(data: Any, limit: int | None, source: str | Path, local: bool) -> Iterator[Mapping[str, Any]]:
    """The rows, which are read only now; what is done with them is not blamed on the data set."""
    with _readable(source, local):
        rows = iter(itertools.islice(data, limit))
    while True:
        with _readable(source, local):
            row = next(rows, None)
        if row is None:
            return
        yield row


def _columns(source: str | Path, present: list[str], given: Mapping[str, str | None]) -> dict[str, str]:
    """Our column -> the data set's column."""
    columns = {}
    for ours, synonyms in SYNONYMS.items():
        name = given.get(ours)
        if name is not None and name not in present:
            raise ManifestError(
                f"{source} has no column {name!r}: found {', '.join(present)}; allowed is one of them. "
                "Name another column."
            )
        # A path beside decoded audio is only its old name, so `audio` goes first here.
        order = ("audio", *synonyms) if ours == "path" else synonyms
        found = name or next((synonym for synonym in order if synonym in present), None)
        if found:
            columns[ours] = found
    if "path" not in columns:
        raise ManifestError(
            f"{source} has no audio: found the columns {', '.join(present) or 'none'}; allowed is one of "
            f"{', '.join(SYNONYMS['path'])}. Name it with audio_column=NAME."
        )
    return columns


def _rows(
    data: Iterable[Mapping[str, Any]],
    columns: Mapping[str, str],
    label_names: list[str] | None,
    problems: Problems,
    *,
    cache: Path,
    root: AudioRoot,
) -> Iterator[tuple[int, dict[str, Any]]]:
    ids: set[str] = set()
    for number, row in enumerate(data, 1):
        record = {ours: row[name] for ours, name in columns.items() if row.get(name) is not None}
        label = record.get("label")
        if label_names and isinstance(label, int) and 0 <= label < len(label_names):
            record["label"] = label_names[label]
        try:
            record = Columns().record(record)
            path = _store(record.get("path"), cache, root)
        except RefusedError as error:
            problems.add_refused(number, error)
            continue
        base = str(record.get("id") or f"row-{number - 1:07d}")
        clip_id = base if base not in ids else f"{base}-{number - 1}"
        ids.add(clip_id)
        used = {*columns.values(), *COLUMNS}
        extra = {
            name: value for name, value in row.items() if name not in used and isinstance(value, (str, int, float))
        }
        yield number, {**extra, **record, "id": clip_id, "path": str(path)}


def _store(audio: object, cache: Path, root: AudioRoot) -> Path:
    """Where a row's audio lies: its bytes written to the cache, or the file it names, inside the root."""
    if isinstance(audio, str):
        return root.resolve(audio)
    content = audio.get("bytes") if isinstance(audio, Mapping) else None
    name = audio.get("path") if isinstance(audio, Mapping) else None
    if isinstance(content, bytes) and content:
        suffix = Path(name).suffix.lower() if isinstance(name, str) else ""
        if suffix not in AUDIO_SUFFIXES:
            suffix = next((ending for magic, ending in _MAGIC if content.startswith(magic)), ".mp3")
        # Named by content: nothing in the data decides where on the disk it goes, and a second import writes nothing.
        path = cache / f"{hashlib.sha256(content).hexdigest()}{suffix}"
        if not path.is_file() or path.stat().st_size != len(content):
            atomic_write_bytes(path, content)
        return path
    if isinstance(name, str) and content is None:
        return root.resolve(name)
    raise RefusedError(
        "the row has no audio",
        found=show(audio if not isinstance(audio, Mapping) else sorted(audio)),
        allowed="encoded audio bytes, or the name of a file here",
        do="Name another column with audio_column=NAME, or turn streaming off.",
    )
