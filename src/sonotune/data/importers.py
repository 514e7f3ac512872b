"""Corpora of other tools become clips: which reader a source is for, and the call of it.

A format that the user names (`kaldi:DIR`, `csv:FILE`) always counts. Without a name, `sniff` takes the first format of
`FOLDERS` or of the file's kind that the files themselves prove; names of files prove nothing. The readers are in
`data.readers` and `data.hub`, and the table of their names is `registry.IMPORTERS`.

Every reader fences relative paths to its source's folder (`allow_outside_root`), raises all problems of a source as
one error, and notes what it assumed or left out in `findings`.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sonotune import registry
from sonotune.data.columns import Columns
from sonotune.data.hub import load_hub as load_hub  # imports `datasets` only when called
from sonotune.data.lines import Problems, require_file, text_lines
from sonotune.data.readers.base import find_encoding
from sonotune.data.readers.corpora import DIGITS as DIGITS
from sonotune.data.readers.corpora import TRANSCRIPTS, mls_tables
from sonotune.data.readers.corpora import load_fsdd as load_fsdd
from sonotune.data.readers.folders import metadata_of
from sonotune.data.readers.json_records import first_record, is_one_value
from sonotune.data.readers.tables import header_of, is_ljspeech
from sonotune.errors import ManifestError, suggest
from sonotune.paths import exists, is_folder
from sonotune.types import Clip, Finding

logger = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"^[\w-][\w.-]*/[\w.-]+$")
_PARQUET: Final = ".parquet"
_JSON: Final = frozenset({".jsonl", ".json", ".ndjson", ".manifest"})
_TABLES: Final = frozenset({".csv", ".tsv", ".tab"})
_TELLING: Final = frozenset({"text", "speaker", "start_s", "end_s", "duration_s"})
"""Columns whose foreign names say that a manifest is not our own; others may be extra columns of ours."""
_NOT_OPTIONS: Final = ("source", "findings")


def load(
    source: str | Path, *, format: str = "auto", findings: list[Finding] | None = None, **options: Any
) -> list[Clip]:
    """Read clips from anything we know.

    Args:
        source: A file, a folder, `assets:<name>`, or the name of a hub data set (`owner/name`).
        format: `auto`, or a name of the importers table: `jsonl`, `json`, `csv`, `folder`, `kaldi`, `hub`, ..., or a
            plug-in's.
        findings: Where the reader notes what it assumed and left out; the log where None.
        options: Options of that importer.

    Raises:
        ManifestError: The source cannot be recognised or read, or the importer has no such option.
        ConfigError: There is no such format.
        MissingExtraError: The importer needs a package that is not installed.
    """
    if registry.is_asset(str(source)):
        source = registry.resolve_asset(str(source))
    name = sniff(source) if format == "auto" else format
    importer = registry.resolve("importers", name)
    known = options_of(name)
    for word in options:
        if word not in known:
            raise ManifestError(
                f"importing {source} as {name}: found the option {word!r}; allowed are {', '.join(known)}. "
                f"Remove it{suggest(word, known)}".rstrip(".")
                + "."
            )
    noted: list[Finding] = []
    if "findings" in inspect.signature(importer).parameters:
        options["findings"] = noted
    clips: list[Clip] = importer(source if name == "hub" else Path(source), **options)
    if findings is None:
        for finding in noted:
            logger.log(logging.INFO if finding.severity == "note" else logging.WARNING, "%s", finding.message)
    else:
        findings += noted
    return clips


def options_of(format: str) -> list[str]:
    """Names of the options that an importer takes.

    Raises:
        ConfigError: There is no such format.
    """
    parameters = inspect.signature(registry.resolve("importers", format)).parameters
    return [word for word in parameters if word not in _NOT_OPTIONS]


def sniff(source: str | Path) -> str:
    """Say which importer fits a source.

    Raises:
        ManifestError: Nothing is there, or it looks like nothing we know.
    """
    path = Path(source)
    if is_folder(path):
        return next(name for name, proven in FOLDERS if proven(path))
    if not exists(path):
        if _HUB_NAME.match(str(source)) and path.suffix not in {*_JSON, *_TABLES, _PARQUET}:
            return "hub"
        raise ManifestError(
            f"{source} cannot be imported: found nothing there; allowed is a file, a folder or the name of a hub data "
            "set (owner/name). Check the name."
        )
    require_file(path)
    suffix = path.suffix.lower()
    if suffix in _JSON:
        return _sniff_json(path)
    if suffix in _TABLES:
        return _sniff_table(path)
    if suffix == _PARQUET:
        return "hub"
    raise ManifestError(
        f"{path} cannot be imported: found the ending {suffix!r}; allowed are .jsonl, .json, .csv, .tsv, .parquet and "
        f"folders. Name the format, such as `csv:{path.name}`, if it is one of "
        f"{', '.join(registry.names('importers'))}."
    )


# --- folders -------------------------------------------------------------------------------------


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def _is_dataset(folder: Path) -> bool:
    names = _names(folder)
    saved = names & {"state.json", "dataset_info.json", "dataset_dict.json"}
    return bool(saved) or any(name.endswith(_PARQUET) for name in names)


def _is_common_voice(folder: Path) -> bool:
    names = _names(folder)
    return "clips" in names and any(name.endswith(".tsv") for name in names)


def _has_metadata(folder: Path) -> bool:
    """Whether a table of the folder names its audio; other files are called metadata too."""
    for table in metadata_of(folder)[:1]:
        columns = header_of(table) if table.suffix in _TABLES else first_record(table) or ()
        flat = {"path"} if "audios" in columns else Columns().match(columns).values()
        return "path" in flat
    return False


def _is_ljspeech(folder: Path) -> bool:
    return (folder / "metadata.csv").is_file() and _sniff_table(folder / "metadata.csv") == "ljspeech"


FOLDERS: Final[tuple[tuple[str, Callable[[Path], bool]], ...]] = (
    ("hub", _is_dataset),
    ("common_voice", _is_common_voice),
    ("kaldi", lambda folder: (folder / "wav.scp").is_file()),
    ("ljspeech", _is_ljspeech),
    ("audiofolder", _has_metadata),
    ("librispeech", lambda folder: next(folder.rglob(TRANSCRIPTS), None) is not None),
    ("mls", lambda folder: bool(mls_tables(folder))),
    ("folder", lambda folder: True),
)
"""Formats of folders and what proves each, in the order in which they are tried. What is left is a folder of audio,
whose reader takes transcripts and classes only where the files prove them, and names the tables that it does not read.
"""


# --- files ---------------------------------------------------------------------------------------


def _sniff_json(path: Path) -> str:
    """Our own manifest has `id` and `path`, a clip a line in UTF-8, and no column by another tool's name."""
    record = first_record(path)
    if record is None:
        return "json" if is_one_value(path, None) else "jsonl"  # whose reader says what is wrong
    if is_one_value(path, None) or find_encoding(path) != "utf-8":
        return "json"
    if "audio_filepath" in record:
        return "nemo"
    if any(isinstance(record.get(name), int) for name in ("id", "text", "label")):
        return "json"  # where numbers are names
    foreign = {ours for theirs, ours in Columns().match(record).items() if theirs != ours}
    if {"id", "path"} <= set(record) and not foreign & _TELLING:
        return "jsonl"
    return "qwen" if isinstance(record.get("audio"), str) else "json"


def _sniff_table(path: Path) -> str:
    lines = text_lines(path, Problems(path), encoding=find_encoding(path))
    first = next((line for _, line in lines), "")
    if {"client_id", "path", "sentence"} <= set(first.strip().split("\t")):
        return "common_voice"
    header = header_of(path)
    paths = [theirs for theirs, ours in Columns().match(header).items() if ours == "path"]
    return "ljspeech" if paths in ([], header[:1]) and is_ljspeech(path) else "csv"
