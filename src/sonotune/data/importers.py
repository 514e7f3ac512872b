"""Readers of other people's data sets. Each gives the clips that a manifest of ours would give.

`load(source)` looks at the source and picks one; `format=` says which. All but `jsonl` make up ids from file names.
Paths in any source are fenced to its folder (`allow_outside_root`), and all problems of a source come in one error.
"""

from __future__ import annotations

import csv
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from sonotune import registry
from sonotune.data.hub import load_hub as load_hub  # imports `datasets` only when called
from sonotune.data.lines import (
    AudioRoot,
    Problems,
    RefusedError,
    json_objects,
    require_file,
    show,
    text_lines,
)
from sonotune.data.manifest import fill_durations, read_manifest
from sonotune.data.records import AUDIO_SUFFIXES, SYNONYMS, ClipParser
from sonotune.errors import ManifestError, suggest
from sonotune.types import Clip

DIGITS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_HUB_NAME = re.compile(r"^[\w-][\w.-]*/[\w.-]+$")
_FSDD_NAME = re.compile(r"^(\d)_([^_]+)_(\d+)\.wav$")
_QWEN_TEXT = re.compile(r"^\s*language\s+(?P<language>[^<]*?)\s*<asr_text>(?P<text>.*)$", re.DOTALL)
_PARQUET: Final = ".parquet"


def load(source: str | Path, *, format: str = "auto", **options: Any) -> list[Clip]:
    """Read clips from anything we know.

    Args:
        source: A file, a folder, `assets:<name>`, or the name of a hub data set (`owner/name`).
        format: `auto`, or a name of the importers table: `jsonl`, `nemo`, `qwen`, `csv`, `common_voice`, `folder`,
            `fsdd`, `hub`, or a plug-in's.
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
    clips: list[Clip] = importer(source if name == "hub" else Path(source), **options)
    return clips


def options_of(format: str) -> list[str]:
    """Names of the options that an importer takes.

    Raises:
        ConfigError: There is no such format.
    """
    return [word for word in inspect.signature(registry.resolve("importers", format)).parameters if word != "source"]


def sniff(source: str | Path) -> str:
    """Say which importer fits a source.

    Raises:
        ManifestError: Nothing is there, or it looks like nothing we know.
    """
    path = Path(source)
    if path.is_dir():
        return _sniff_folder(path)
    if not path.exists():
        if _HUB_NAME.match(str(source)) and path.suffix not in {".jsonl", ".json", ".csv", ".tsv", _PARQUET}:
            return "hub"
        raise ManifestError(
            f"{source} cannot be imported: found nothing there; allowed is a file, a folder or the name of a hub data "
            "set (owner/name). Check the name."
        )
    require_file(path)
    suffix = path.suffix.lower()
    if suffix in {".jsonl", ".json", ".ndjson", ".manifest"}:
        return _sniff_json(path)
    if suffix in {".csv", ".tsv", ".tab"}:
        return _sniff_table(path)
    if suffix == _PARQUET:
        return "hub"
    raise ManifestError(
        f"{path} cannot be imported: found the ending {suffix!r}; allowed are .jsonl, .json, .csv, .tsv, .parquet and "
        "folders. Name the format (format=...) if it is one of them."
    )


def _sniff_folder(folder: Path) -> str:
    names = {entry.name for entry in folder.iterdir()}
    if names & {"state.json", "dataset_info.json", "dataset_dict.json"} or any(n.endswith(_PARQUET) for n in names):
        return "hub"
    if "clips" in names and any(name.endswith(".tsv") for name in names):
        return "common_voice"
    recordings = folder / "recordings" if "recordings" in names else folder
    audio = [path.name for path in recordings.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES]
    return "fsdd" if audio and all(map(_FSDD_NAME.match, audio)) else "folder"


def _sniff_json(path: Path) -> str:
    for _, record in json_objects(path, Problems(path)):
        if "path" in record:
            return "jsonl"
        if "audio_filepath" in record:
            return "nemo"
        return "qwen" if "audio" in record else "jsonl"
    return "jsonl"  # whose reader says what is wrong


def _sniff_table(path: Path) -> str:
    _, header = next(text_lines(path, Problems(path)), (0, ""))
    return "common_voice" if {"client_id", "path", "sentence"} <= set(header.strip().split("\t")) else "csv"


# --- JSON Lines ----------------------------------------------------------------------------------


def load_jsonl(source: Path, *, root: Path | None = None, allow_outside_root: bool = False) -> list[Clip]:
    """Read our own manifest. See `read_manifest`."""
    return read_manifest(source, root=root, allow_outside_root=allow_outside_root)


def load_nemo(source: Path, *, root: Path | None = None, allow_outside_root: bool = False) -> list[Clip]:
    """Read a NeMo manifest: `{"audio_filepath", "duration", "text", "offset"?, "lang"?, "speaker"?}` a line."""
    problems = Problems(source)
    records = ((line, _rename(record)) for line, record in json_objects(source, problems))
    return _parse(records, AudioRoot(root or source.parent, allow_outside=allow_outside_root), problems)


def load_qwen(source: Path, *, root: Path | None = None, allow_outside_root: bool = False) -> list[Clip]:
    """Read a Qwen3-ASR manifest: `{"audio": path, "text": "language English<asr_text>one two"}` a line.

    The language keeps the model's own name of it; `None` there means unknown. A text without the prefix is taken whole.
    """
    problems = Problems(source)
    records = ((line, _split_qwen(_rename(record))) for line, record in json_objects(source, problems))
    return _parse(records, AudioRoot(root or source.parent, allow_outside=allow_outside_root), problems)


def _split_qwen(record: dict[str, Any]) -> dict[str, Any]:
    text = record.get("text")
    match = _QWEN_TEXT.match(text) if isinstance(text, str) else None
    if match is None:
        return record
    language = match["language"]
    named = {"language": language} if language not in ("", "None") else {}
    return {**record, "text": match["text"], **named}


# --- tables --------------------------------------------------------------------------------------


def load_csv(
    source: Path,
    *,
    root: Path | None = None,
    allow_outside_root: bool = False,
    delimiter: str | None = None,
) -> list[Clip]:
    """Read a table with a header line.

    Args:
        source: `.tsv` and `.tab` are split at tabs and have no quoting; all else is comma-separated.
        root: Folder that paths are relative to and may not leave; the table's folder where None.
        allow_outside_root: Whether paths may leave the root.
        delimiter: Another delimiter.
    """
    problems = Problems(source)
    records = _table_records(source, problems, delimiter)
    return _parse(records, AudioRoot(root or source.parent, allow_outside=allow_outside_root), problems)


def load_common_voice(
    source: Path, *, split: str = "train", root: Path | None = None, allow_outside_root: bool = False
) -> list[Clip]:
    """Read a Common Voice release.

    Args:
        source: A language's folder, or one of its `.tsv` files.
        split: Which table of the folder: `train`, `dev`, `test`, `validated`, ...
        root: Folder of the clips; `clips/` beside the table where None.
        allow_outside_root: Whether paths may leave the root.
    """
    table = source / f"{split}.tsv" if source.is_dir() else source
    if not table.exists():
        known = ", ".join(sorted(path.stem for path in source.glob("*.tsv"))) if source.is_dir() else "none"
        raise ManifestError(
            f"{source} has no table {split!r}: found {known}; allowed is one of them. Set split=NAME or check the path."
        )
    problems = Problems(table)
    folder = root or (table.parent / "clips" if (table.parent / "clips").is_dir() else table.parent)
    durations_s = _common_voice_durations(table.parent / "clip_durations.tsv", problems)
    records = (
        (line, {"duration_s": durations_s.get(record.get("path")), **record})
        for line, record in _table_records(table, problems, None)
    )
    return _parse(records, AudioRoot(folder, allow_outside=allow_outside_root), problems)


def _common_voice_durations(path: Path, problems: Problems) -> dict[str | None, float]:
    """File name -> seconds, from the table that newer releases carry; empty where there is none."""
    if not path.is_file():
        return {}
    rows = (line.rstrip("\r\n").split("\t") for _, line in text_lines(path, problems))
    next(rows, None)
    return {row[0]: float(row[1]) / 1000 for row in rows if len(row) == 2 and row[1].isdecimal() and int(row[1]) > 0}


def _table_records(source: Path, problems: Problems, delimiter: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    tabs = source.suffix.lower() in {".tsv", ".tab"}
    reader = csv.reader(
        (line for _, line in text_lines(source, problems)),
        delimiter=delimiter or ("\t" if tabs else ","),
        # Common Voice writes bare quotation marks; to read them as quoting would swallow whole lines.
        quoting=csv.QUOTE_NONE if tabs and delimiter is None else csv.QUOTE_MINIMAL,
    )
    header: list[str] | None = None
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            problems.add(
                reader.line_num, "the row cannot be read", found=str(error), allowed="a table", do="Mend the row."
            )
            continue
        if row is None:
            break
        if header is None:
            header = [name.strip() for name in row]
            if not _check_header(header, problems):
                return
        elif len(row) != len(header) and row:
            problems.add(
                reader.line_num,
                "the row does not fit the header",
                found=f"{len(row)} cells",
                allowed=f"{len(header)}",
                do="Quote cells that hold the delimiter, or check which delimiter the file has.",
            )
        elif row:
            cells = {name: cell for name, cell in zip(header, row, strict=True) if cell.strip()}
            yield reader.line_num, _numbers(_rename(cells), reader.line_num, problems)


def _check_header(header: Sequence[str], problems: Problems) -> bool:
    double = sorted({name for name in header if header.count(name) > 1})
    if double:
        problems.add(1, "a column stands twice", found=show(double), allowed="each once", do="Rename one.")
    if not _rename(dict.fromkeys(header, "")).keys() & {"path"}:
        problems.add(
            1,
            "there is no column with the audio's path",
            found=", ".join(map(repr, header)) or "no header",
            allowed="one of " + ", ".join(SYNONYMS["path"]),
            do="Name the columns in the first line.",
        )
        return False
    return not double


def _numbers(record: dict[str, Any], line: int, problems: Problems) -> dict[str, Any]:
    kinds: Mapping[str, Callable[[str], float]] = {
        "duration_s": float,
        "start_s": float,
        "sample_rate_hz": int,
        "channel": int,
    }
    for name, kind in kinds.items():
        if name in record:
            try:
                record[name] = kind(record[name])
            except ValueError:
                problems.add(
                    line,
                    f"the column {name!r} is not a number",
                    found=show(record.pop(name)),
                    allowed="a plain number" if kind is float else "a whole number",
                    do="Mend or empty the cell.",
                )
    return record


# --- folders -------------------------------------------------------------------------------------


def load_folder(
    source: Path,
    *,
    language: str | None = None,
    speaker: Literal["none", "folder"] = "none",
    allow_outside_root: bool = False,
) -> list[Clip]:
    """Read a folder of audio files, with all below it.

    With at least one `.txt` beside an audio file of the same name, the texts are transcripts. With none, the first
    folder below `source` is each file's class. Hidden files are left out.

    Args:
        source: The folder.
        language: Language of all clips.
        speaker: `folder` takes the first folder below `source` as the speaker.
        allow_outside_root: Whether links may lead out of the folder.
    """
    problems = Problems(source)
    files = _audio_files(source)
    if not files:
        raise ManifestError(
            f"{source} cannot be imported: found no audio; allowed are files ending in "
            f"{', '.join(sorted(AUDIO_SUFFIXES))}. Check the folder."
        )
    texts = {path: path.with_suffix(".txt") for path in files if path.with_suffix(".txt").is_file()}
    records = []
    for number, path in enumerate(files, 1):
        relative = path.relative_to(source)
        record: dict[str, Any] = {"path": relative.as_posix()}
        first = relative.parts[0] if len(relative.parts) > 1 else None
        if path in texts:
            record["text"] = _read_transcript(texts[path], problems)
        elif not texts and first:
            record["label"] = first
        if speaker == "folder" and first:
            record["speaker"] = first
        records.append((number, {**record, "language": language}))
    return _parse(records, AudioRoot(source, allow_outside=allow_outside_root), problems)


def _audio_files(folder: Path) -> list[Path]:
    """Every audio file below a folder, sorted; folders that are links are not entered."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_SUFFIXES
        ]
    return sorted(found)


def _read_transcript(path: Path, problems: Problems) -> str:
    inside = Problems(path)
    text = "".join(line for _, line in text_lines(path, inside)).strip()
    if inside.count:
        problems.add(
            None,
            f"the transcript {path.name!r} cannot be read",
            found="bytes that are not UTF-8, or an endless line",
            allowed="UTF-8 text",
            do="Save it as UTF-8.",
        )
    return text


def load_fsdd(source: Path, *, speakers: Sequence[str] = ()) -> list[Clip]:
    """Read the Free Spoken Digit Dataset: `{digit}_{speaker}_{index}.wav` becomes the digit as an English word.

    Args:
        source: The recordings, or the folder with `recordings/`. An empty source is where `SONOTUNE_FSDD` points, or
            `data/fsdd`.
        speakers: Only these speakers; all where empty.

    Raises:
        ManifestError: The folder is not the data set.
    """
    if source == Path():
        source = Path(os.environ.get("SONOTUNE_FSDD") or "data/fsdd")
        if not source.is_dir():
            raise ManifestError(
                f"the Free Spoken Digit Dataset is not at {source}. Get it with `git clone "
                "https://github.com/Jakobovski/free-spoken-digit-dataset` and set SONOTUNE_FSDD to its `recordings`."
            )
    folder = source / "recordings" if (source / "recordings").is_dir() else source
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    matches = [match for name in names if (match := _FSDD_NAME.match(name))]
    known = sorted({match[2] for match in matches})
    if not matches or (unknown := sorted(set(speakers) - set(known))):
        found = "no file of that form" if not matches else f"no speaker {', '.join(unknown)}"
        raise ManifestError(
            f"{folder} is not the Free Spoken Digit Dataset: found {found}; allowed are files named "
            f"{{digit}}_{{speaker}}_{{index}}.wav of the speakers {', '.join(known) or '(any)'}. Check the folder."
        )
    records = (
        (
            number,
            {
                "id": Path(match.string).stem,
                "path": match.string,
                "text": DIGITS[int(match[1])],
                "label": DIGITS[int(match[1])],
                "speaker": match[2],
                "language": "en",
            },
        )
        for number, match in enumerate(matches, 1)
        if not speakers or match[2] in speakers
    )
    return _parse(records, AudioRoot(folder), Problems(folder))


# --- shared --------------------------------------------------------------------------------------


def _rename(record: Mapping[str, Any]) -> dict[str, Any]:
    """Give columns our names. Of two columns for one thing the better name wins; the other stays an extra."""
    by_folded = {name.casefold(): name for name in reversed(list(record))}
    ours: dict[str, str] = {}
    for column, synonyms in SYNONYMS.items():
        for synonym in synonyms:
            if synonym in by_folded and by_folded[synonym] not in ours:
                ours[by_folded[synonym]] = column
                break
    taken = set(ours.values())
    return {
        ours.get(name, f"source_{name}" if name in taken or name in {"words"} else name): value
        for name, value in record.items()
    }


def _parse(records: Iterable[tuple[int, dict[str, Any]]], root: AudioRoot, problems: Problems) -> list[Clip]:
    """Records without ids -> clips with durations, or one error with all problems."""
    parser = ClipParser(root, problems)
    used: set[str] = set()
    clips = []
    for line, record in records:
        if record.get("id") is None:
            named = isinstance(record.get("path"), str)
            record = {**record, "id": _make_id(record, root, used) if named else f"line {line}"}
        elif isinstance(record["id"], str):
            used.add(record["id"])
        if clip := parser.parse(line, record):
            clips.append(clip)
    problems.check()
    if not clips:
        raise ManifestError(
            f"{problems.source} has no clips: found an empty source; allowed is at least one clip. Check the path."
        )
    return fill_durations(clips)


def _make_id(record: Mapping[str, Any], root: AudioRoot, used: set[str]) -> str:
    """The path below the root without its ending, with the start where there is one; unique by a number."""
    try:
        path = root.resolve(record["path"])
    except RefusedError:
        return f"line {len(used)} {record['path']}"[:1000]  # the parser says what is wrong with the path
    inside = path.is_relative_to(root.root)
    stem = (path.relative_to(root.root) if inside else Path(path.name)).with_suffix("").as_posix()
    start_s = record.get("start_s")
    base = f"{stem}@{start_s:.3f}" if isinstance(start_s, (int, float)) and start_s else stem
    name, number = base, 1
    while name in used:
        number += 1
        name = f"{base}-{number}"
    used.add(name)
    return name
