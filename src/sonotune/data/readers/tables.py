"""Readers of tables: any delimiter, any encoding, the columns of any tool; Common Voice and LJSpeech."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from sonotune.data.audio_files import AUDIO_SUFFIXES
from sonotune.data.columns import SYNONYMS, Columns, is_name_of
from sonotune.data.lines import Problems, RefusedError, show, text_lines
from sonotune.data.readers.base import Reading
from sonotune.data.readers.json_records import json_rows
from sonotune.errors import ManifestError
from sonotune.paths import is_file
from sonotune.types import Clip, Finding

DELIMITERS: Final = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_UNQUOTED: Final = ("\t", "|")
"""Common Voice and LJSpeech write bare quotation marks; to read them as quoting would swallow whole lines."""
_SEPARATOR_LINE: Final = re.compile(r'^"?sep=(?P<mark>[^\w"\r\n])"?[\s,;]*$', re.IGNORECASE)
"""The first line in which Excel names the delimiter."""
_SAMPLE_LINES: Final = 10
_SAMPLE_CHARACTERS: Final = 1000  # of a line
_LJSPEECH_COLUMNS: Final = ("id", "text", "normalized_text")


def load_csv(
    source: Path,
    *,
    root: Path | None = None,
    allow_outside_root: bool = False,
    delimiter: str | None = None,
    encoding: str | None = None,
    audio_column: str | None = None,
    text_column: str | None = None,
    findings: list[Finding] | None = None,
) -> list[Clip]:
    """Read a table with a header line.

    Args:
        source: The table.
        root: Folder that paths are relative to and may not leave; the table's folder where None.
        allow_outside_root: Whether paths may leave the root.
        delimiter: One character, or `comma`, `semicolon`, `tab`, `pipe`; found by the header where None. Tables with
            tabs and pipes have no quoting.
        encoding: Of the file.
        audio_column: Column of the audio's path, where its name says nothing.
        text_column: Column of the transcript.
        findings: Where assumptions and losses are noted.
    """
    reading = Reading(
        source,
        root=root,
        allow_outside_root=allow_outside_root,
        encoding=encoding,
        columns=Columns(audio=audio_column, text=text_column),
        findings=findings,
    )
    return reading.clips(table_records(reading, source, delimiter))


def load_speechbrain(
    source: Path,
    *,
    root: Path | None = None,
    allow_outside_root: bool = False,
    delimiter: str | None = None,
    encoding: str | None = None,
    audio_column: str | None = None,
    text_column: str | None = None,
    findings: list[Finding] | None = None,
) -> list[Clip]:
    """Read a manifest of SpeechBrain: a table, or JSON with one object for each id (`.json`).

    Args:
        source: The file.
        root: Folder that paths are relative to and may not leave, which `$data_folder` and the like stand for; the
            file's folder where None.
        allow_outside_root: Whether paths may leave the root.
        delimiter: As for `load_csv`.
        encoding: Of the file.
        audio_column: Column of the audio's path, where its name says nothing.
        text_column: Column of the transcript.
        findings: Where assumptions and losses are noted.
    """
    reading = Reading(
        source,
        root=root,
        allow_outside_root=allow_outside_root,
        encoding=encoding,
        columns=Columns(audio=audio_column, text=text_column),
        findings=findings,
        unit="entry" if source.suffix.lower() == ".json" else None,
    )
    if source.suffix.lower() == ".json":
        return reading.clips(json_rows(reading, source))
    return reading.clips(table_records(reading, source, delimiter))


def load_common_voice(
    source: Path,
    *,
    split: str = "train",
    root: Path | None = None,
    allow_outside_root: bool = False,
    encoding: str | None = None,
    audio_column: str | None = None,
    text_column: str | None = None,
    findings: list[Finding] | None = None,
) -> list[Clip]:
    """Read a Common Voice release.

    Args:
        source: A language's folder, or one of its `.tsv` files.
        split: Which table of the folder: `train`, `dev`, `test`, `validated`, ...
        root: Folder of the clips; `clips/` beside the table where None.
        allow_outside_root: Whether paths may leave the root.
        encoding: Of the tables.
        audio_column: Column of the audio's path.
        text_column: Column of the transcript.
        findings: Where assumptions and losses are noted.
    """
    table = source / f"{split}.tsv" if source.is_dir() else source
    if not table.exists():
        known = ", ".join(sorted(path.stem for path in source.glob("*.tsv"))) if source.is_dir() else "none"
        raise ManifestError(
            f"{source} has no table {split!r}: found {known}; allowed is one of them. Set split=NAME or check the path."
        )
    folder = root or (table.parent / "clips" if (table.parent / "clips").is_dir() else table.parent)
    reading = Reading(
        table,
        root=folder,
        allow_outside_root=allow_outside_root,
        encoding=encoding,
        columns=Columns(audio=audio_column, text=text_column),
        findings=findings,
    )
    durations_s = _common_voice_durations(table.parent / "clip_durations.tsv", reading)
    records = (
        (line, {"duration_s": durations_s.get(record.get("path")), **record})
        for line, record in table_records(reading, table, "\t")
    )
    return reading.clips(records)


def _common_voice_durations(path: Path, reading: Reading) -> dict[str | None, float]:
    """File name -> seconds, from the table that newer releases carry; empty where there is none."""
    if not path.is_file():
        return {}
    rows = (line.rstrip("\r\n").split("\t") for _, line in reading.lines(path))
    next(rows, None)
    return {row[0]: float(row[1]) / 1000 for row in rows if len(row) == 2 and row[1].isdecimal() and int(row[1]) > 0}


def load_ljspeech(
    source: Path,
    *,
    root: Path | None = None,
    allow_outside_root: bool = False,
    delimiter: str | None = None,
    encoding: str | None = None,
    text_column: str | None = None,
    findings: list[Finding] | None = None,
) -> list[Clip]:
    """Read the layout of LJSpeech: lines `name|text|normalized text`, with a header or without, audio in `wavs/`.

    Args:
        source: The folder with `metadata.csv`, or that file.
        root: Folder of the table; audio is looked for there and in `wavs/`.
        allow_outside_root: Whether paths may leave the root.
        delimiter: As for `load_csv`; a pipe where None.
        encoding: Of the file.
        text_column: `text` (the second column), or `normalized_text` (the third); with a header, a name in it.
        findings: Where assumptions and losses are noted.
    """
    table = source / "metadata.csv" if source.is_dir() else source
    reading = Reading(
        table,
        root=root,
        allow_outside_root=allow_outside_root,
        encoding=encoding,
        columns=Columns(text=text_column),
        findings=findings,
    )
    mark = "|" if delimiter is None else known_delimiter(delimiter)
    header = _ljspeech_header(reading, table, mark)
    names = "a header" if header else "no header"
    columns = ", ".join(header) if header else "file, text and normalized_text"
    taken = text_column or next((name for name in header if is_name_of("text", name)), "text")
    reading.say(
        "columns",
        f"{table.name} is read as LJSpeech: {names}, the {DELIMITERS.get(mark, mark)} as delimiter, the columns "
        f"{columns}; the transcript is {taken} (--text-column names another).",
    )
    return reading.clips(reading.records(_ljspeech_rows(reading, table, mark, header)))


def _ljspeech_header(reading: Reading, table: Path, delimiter: str) -> list[str]:
    """The names of the first line, where it is the second that begins with an audio file; else none.

    The first column is the id and, where no name is one of transcripts, the second is the text.
    """
    # The rows are read once more, and their problems are noted then.
    rows = _rows(Reading(table, encoding=reading.encoding_of(table)), table, delimiter)
    first, second = (next(rows, (0, [""]))[1] for _ in range(2))
    if len(first) != len(second) or not _is_named(reading, second[0]) or _is_named(reading, first[0]):
        return []
    header = ["id", *(name.strip() for name in first[1:])]
    if len(header) > 1 and not any(is_name_of("text", name) for name in header):
        header[1] = "text"
    return header


def _is_named(reading: Reading, name: str) -> bool:
    """Whether a cell is the name of an audio file, and not its path, which any table can have."""
    found = find_named_audio(reading.root.root, name)
    return found is not None and found != name


def _ljspeech_rows(
    reading: Reading, table: Path, delimiter: str, header: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = _rows(reading, table, delimiter)
    if header:
        next(rows, None)
    for line, row in rows:
        if not (len(row) == len(header) if header else 2 <= len(row) <= len(_LJSPEECH_COLUMNS)):
            reading.problems.add(
                line,
                "the row is not of LJSpeech",
                found=f"{len(row)} cells",
                allowed=f"{len(header)}, as in the header"
                if header
                else "2 or 3: the name of the file, its text, and the text with numbers written out",
                do="Mend the row, or name the delimiter (--delimiter).",
            )
            continue
        cells = dict(zip(header or _LJSPEECH_COLUMNS, row, strict=False))
        name = cells["id"]
        yield line, {**cells, "path": find_named_audio(reading.root.root, name) or f"wavs/{name}.wav"}


def find_named_audio(folder: Path, name: str) -> str | None:
    """The file that a table without paths means: in the folder or its `wavs`, with or without its ending."""
    if not name or "\0" in name:
        return None
    for place in ("wavs/", "wav/", ""):
        for suffix in ("", ".wav", ".flac", *sorted(AUDIO_SUFFIXES - {".wav", ".flac"})):
            # A name that holds folders is fenced later, as every path is.
            if (suffix or Path(name).suffix.lower() in AUDIO_SUFFIXES) and is_file(folder / f"{place}{name}{suffix}"):
                return f"{place}{name}{suffix}"
    return None


def is_ljspeech(table: Path) -> bool:
    """Whether a table is proven to be of LJSpeech: its first cell, or that below its header, names an audio file."""
    reading = Reading(table)
    rows = (line.rstrip("\r\n").split("|") for _, line in reading.lines(table))
    cells = next(rows, [""])
    clip = 2 <= len(cells) <= len(_LJSPEECH_COLUMNS) and find_named_audio(table.parent, cells[0]) is not None
    return clip or bool(len(cells) > 1 and _ljspeech_header(reading, table, "|"))


# --- any table -----------------------------------------------------------------------------------


def table_records(reading: Reading, path: Path, delimiter: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records of ours of a table with a header."""
    mark = _find_delimiter(reading, path) if delimiter is None else known_delimiter(delimiter)
    if mark != ",":
        reading.columns = Columns(audio=reading.columns.audio, text=reading.columns.text, decimal_comma=True)
    return reading.records(_with_header(reading, path, mark))


def known_delimiter(name: str) -> str:
    """The character that a user names.

    Raises:
        ManifestError: It is not one character.
    """
    named = {word: mark for mark, word in DELIMITERS.items()} | {"\\t": "\t", "space": " "}
    mark = named.get(name, name)
    if len(mark) != 1 or mark in '\r\n"\0' or mark.isalnum():
        raise ManifestError(
            f"the delimiter {show(name)} cannot be used; allowed is one character that is no letter, digit or "
            f"quotation mark, or one of {', '.join(named)}. Name one of them."
        )
    return mark


def header_of(path: Path, encoding: str | None = None) -> list[str]:
    """The cells of a table's first line."""
    reading = Reading(path, encoding=encoding)
    return next((row for _, row in _rows(reading, path, _find_delimiter(reading, path))), [])


def _find_delimiter(reading: Reading, path: Path) -> str:
    """The delimiter under which the header has a column of audio; else the most regular one."""
    sample = []
    # The lines are read once more, and their problems are noted then.
    for _, line in text_lines(path, Problems(path), encoding=reading.encoding_of(path)):
        sample.append(line[:_SAMPLE_CHARACTERS])
        if len(sample) == _SAMPLE_LINES:
            break
    told = _SEPARATOR_LINE.match(sample[0]) if sample else None
    usual = "\t" if path.suffix.lower() in {".tsv", ".tab"} else ","
    if told:
        return told["mark"]
    found = next((mark for mark in (usual, *DELIMITERS) if _proven(reading.columns, sample[:1], mark)), None)
    if found is None:
        found = _most_regular(sample, usual)
    if found != usual:
        reading.say(
            "delimiter",
            f"{path.name} is read with the {DELIMITERS[found]} as delimiter, by its first lines; --delimiter sets it.",
        )
    return found


def _most_regular(sample: Sequence[str], usual: str) -> str:
    """The delimiter that stands in the header and as often in most of the other lines."""
    counts = {mark: [line.count(mark) for line in sample] for mark in (usual, *DELIMITERS)}
    in_header = {mark: found for mark, found in counts.items() if found and found[0]}
    return max(in_header, key=lambda mark: (counts[mark].count(counts[mark][0]), counts[mark][0]), default=usual)


def _proven(columns: Columns, sample: Sequence[str], delimiter: str) -> bool:
    header = [cell.strip().strip('"').strip() for line in sample for cell in line.split(delimiter)]
    try:
        return len(set(header)) > 1 and "path" in columns.match(header).values()
    except RefusedError:
        return False


def _rows(reading: Reading, path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    number = 0

    def lines() -> Iterator[str]:
        nonlocal number
        for number, line in reading.lines(path):
            if number > 1 or not _SEPARATOR_LINE.match(line):
                yield line

    reader = csv.reader(
        lines(),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if delimiter in _UNQUOTED else csv.QUOTE_MINIMAL,
        skipinitialspace=delimiter not in _UNQUOTED,
        strict=True,  # a quote that nothing closes would take every row behind it into its cell
    )
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            reading.problems.add(
                number, "the row cannot be read", found=str(error), allowed="a table", do="Mend the row."
            )
            continue
        if row is None:
            return
        if row:
            yield number, row


def _with_header(reading: Reading, path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    header: list[str] | None = None
    for line, row in _rows(reading, path, delimiter):
        if header is None and reading.problems.count:
            return  # the header may be the line that cannot be read
        if header is None:
            header = [name.strip() for name in row]
            if not _check_header(reading, header, delimiter):
                return
        elif len(row) != len(header):
            reading.problems.add(
                line,
                "the row does not fit the header",
                found=f"{len(row)} cells",
                allowed=f"{len(header)}",
                do="Quote cells that hold the delimiter, or say which delimiter the file has (--delimiter).",
            )
        else:
            yield line, {name: cell for name, cell in zip(header, row, strict=True) if name and cell.strip()}


def _check_header(reading: Reading, header: Sequence[str], delimiter: str) -> bool:
    double = sorted(name for name, count in Counter(header).items() if name and count > 1)
    if double:
        reading.problems.add(1, "a column stands twice", found=show(double), allowed="each once", do="Rename one.")
        return False
    try:
        matched = reading.columns.match(header)
    except RefusedError as error:
        reading.problems.add_refused(1, error)
        return False
    if "path" not in matched.values():
        reading.problems.add(
            1,
            "there is no column with the audio's path",
            found=", ".join(show(name) for name in header[:20]) or "no header",
            allowed="one of " + ", ".join(SYNONYMS["path"]),
            do="Name the columns in the first line, or the column of the path with --audio-column. The line was split "
            f"at the {DELIMITERS.get(delimiter, delimiter)}: where that is wrong, name the delimiter with --delimiter, "
            "and the encoding with --encoding. A table without a header, whose columns are file and text, is "
            f"ljspeech:{reading.source}.",
        )
        return False
    return True
