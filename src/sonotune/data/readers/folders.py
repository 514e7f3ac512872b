"""Readers of folders: audio with its transcripts beside it, folders of classes, audio with one table of metadata."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from sonotune.data.audio_files import AUDIO_SUFFIXES, enumerate_names, find_audio, left_out
from sonotune.data.columns import Columns
from sonotune.data.lines import Problems, text_lines
from sonotune.data.readers.base import Reading
from sonotune.data.readers.corpora import FSDD_NAME
from sonotune.data.readers.json_records import json_rows
from sonotune.data.readers.tables import table_records
from sonotune.errors import ManifestError
from sonotune.paths import is_file
from sonotune.types import Clip, Finding

METADATA: Final = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.json")


def load_folder(
    source: Path,
    *,
    language: str | None = None,
    speaker: Literal["none", "folder"] = "none",
    contents: Literal["auto", "transcripts", "classes"] = "auto",
    allow_outside_root: bool = False,
    encoding: str | None = None,
    findings: list[Finding] | None = None,
) -> list[Clip]:
    """Read a folder of audio files, with all below it.

    Where more than half of the audio files have a `.txt` of the same name beside them, these are transcripts; where
    fewer have one and all files lie in folders, the first folder below `source` is each file's class. Hidden files are
    left out without a word, recordings of a kind that cannot be read with a finding.

    Args:
        source: The folder.
        language: Language of all clips.
        speaker: `folder` takes the first folder below `source` as the speaker.
        contents: What the folder holds, where the files do not show it.
        allow_outside_root: Whether links may lead out of the folder.
        encoding: Of the transcripts.
        findings: Where assumptions and losses are noted.
    """
    if contents not in ("auto", "transcripts", "classes"):
        raise ManifestError(
            f"contents: found {contents!r}; allowed are auto, transcripts and classes. Name one of them."
        )
    reading = Reading(
        source,
        root=source,
        allow_outside_root=allow_outside_root,
        encoding=encoding,
        findings=findings,
        unit="file",
    )
    files, unreadable = find_audio(source)
    if unreadable:
        reading.add(left_out(unreadable, source))
    if not files:
        raise ManifestError(
            f"{source} cannot be imported: found no audio that can be read"
            + (f", and {left_out(unreadable, source).message} " if unreadable else "; ")
            + f"allowed are files ending in {', '.join(sorted(AUDIO_SUFFIXES))}. Check the folder."
        )
    texts = {path: text for path in files if (text := _transcript_beside(path))}
    kind = _contents(reading, files, list(texts)) if contents == "auto" else contents
    records = []
    for number, path in enumerate(files, 1):
        relative = path.relative_to(source)
        record: dict[str, Any] = {"path": relative.as_posix(), "language": language}
        first = relative.parts[0] if len(relative.parts) > 1 else None
        if kind == "transcripts" and path in texts:
            record["text"] = _read_transcript(reading, texts[path])
        elif kind == "classes" and first:
            record["label"] = first
        if speaker == "folder" and first:
            record["speaker"] = first
        records.append((number, record))
    return reading.clips(records)


def _transcript_beside(path: Path) -> Path | None:
    """The `.txt` of the same name, also where only one of the two names has its accents as separate characters."""
    forms: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD") if not path.stem.isascii() else ()
    names = (
        f"{path.stem}.txt",
        f"{path.stem}.TXT",
        *(unicodedata.normalize(form, f"{path.stem}.txt") for form in forms),
    )
    return next((text for name in names if is_file(text := path.with_name(name))), None)


def _contents(reading: Reading, files: Sequence[Path], with_text: Sequence[Path]) -> Literal["transcripts", "classes"]:
    """Transcripts or classes, by what most files have; says what is not read for that."""
    source = reading.source
    classes = {path.relative_to(source).parts[0] for path in files if path.parent != source}
    if not with_text and all(FSDD_NAME.match(path.name) for path in files):
        reading.say(
            "fsdd",
            f"the names in {source} are like those of the Free Spoken Digit Dataset: `fsdd:{source}` reads digits and "
            "speakers from them.",
        )
    few = 2 * len(with_text) <= len(files)
    if few and (len(classes) > 1 or (classes and not with_text)):
        reading.say("classes", f"the first folder below {source} is the class of each clip: {len(classes)} classes.")
        if with_text:
            names = enumerate_names([str(path.relative_to(source).with_suffix(".txt")) for path in with_text])
            reading.say(
                "texts_unread",
                f"{len(with_text)} of {len(files)} audio files have a .txt beside them, too few to be transcripts: "
                f"they are not read ({names}). --contents transcripts reads them, and no classes.",
                severity="warning",
            )
        return "classes"
    if with_text and len(with_text) < len(files):
        lacking = [str(path.relative_to(source)) for path in files if path not in set(with_text)]
        reading.say(
            "texts_missing",
            f"{len(lacking)} of {len(files)} audio files have no .txt beside them, and so no transcript: "
            f"{enumerate_names(lacking)}. "
            + ("--contents classes takes the folders as classes." if classes else "Add them, or leave the files out."),
            severity="warning",
        )
    return "transcripts"


def _read_transcript(reading: Reading, path: Path) -> str:
    inside = Problems(path)
    text = "".join(line for _, line in text_lines(path, inside, encoding=reading.encoding_of(path))).strip()
    if inside.count:
        reading.problems.add(
            None,
            f"the transcript {path.name!r} cannot be read",
            found="bytes that are not text of its encoding, a NUL character, or an endless line",
            allowed="UTF-8 text, or text of the encoding that is named (--encoding)",
            do="Save it as UTF-8, or name its encoding.",
        )
    return text


def load_audiofolder(
    source: Path,
    *,
    split: str | None = None,
    root: Path | None = None,
    allow_outside_root: bool = False,
    delimiter: str | None = None,
    encoding: str | None = None,
    audio_column: str | None = None,
    text_column: str | None = None,
    findings: list[Finding] | None = None,
) -> list[Clip]:
    """Read a folder of audio with a table of it: the audiofolder of `datasets`.

    Args:
        source: The folder; `metadata.jsonl`, `.csv`, `.tsv` or `.json` lies in it, or in each of its folders.
        split: Which of its folders, such as `train`; None takes all that have a table.
        root: Folder that paths are relative to and may not leave; that of each table where None.
        allow_outside_root: Whether paths may leave the root.
        delimiter: As for `load_csv`.
        encoding: Of the tables.
        audio_column: Column of the audio's path, where its name says nothing.
        text_column: Column of the transcript.
        findings: Where assumptions and losses are noted.

    Raises:
        ManifestError: There is no such table.
    """
    folder = source / split if split else source
    tables = metadata_of(folder)
    if not tables:
        raise ManifestError(
            f"{folder} has no table of its audio: allowed are {', '.join(METADATA)} in it or in one of its folders. "
            "Name another split, or `folder:` for audio with a .txt beside it."
        )
    clips: list[Clip] = []
    for table in tables:
        reading = Reading(
            table,
            root=root,
            allow_outside_root=allow_outside_root,
            encoding=encoding,
            columns=Columns(audio=audio_column, text=text_column),
            findings=findings,
        )
        by_lines = table.suffix.startswith(".json")
        found = reading.clips(json_rows(reading, table) if by_lines else table_records(reading, table, delimiter))
        _say_unnamed(reading, table.parent, found)
        clips += _with_own_ids(found, table.parent.relative_to(source), clips)
    return clips


def metadata_of(folder: Path) -> list[Path]:
    """The tables of an audiofolder: the one in it, else one in each of its folders."""
    if not folder.is_dir():
        return []
    for places in ([folder], sorted(entry for entry in folder.iterdir() if entry.is_dir())):
        tables = [next((path for name in METADATA if (path := place / name).is_file()), None) for place in places]
        if found := [table for table in tables if table is not None]:
            return found
    return []


def _say_unnamed(reading: Reading, folder: Path, clips: Sequence[Clip]) -> None:
    """Say which files of the folder no line names: they may be what the user wants most."""
    files, unreadable = find_audio(folder)
    named = {clip.path for clip in clips}
    unnamed = [str(path.relative_to(folder)) for path in files if path.absolute() not in named]
    if unnamed:
        reading.say(
            "unnamed",
            f"{len(unnamed)} audio files of {folder} are in no line of {reading.source.name} and are left out: "
            f"{enumerate_names(unnamed)}.",
            severity="warning",
        )
    if unreadable := [path for path in unreadable if path.absolute() not in named]:
        reading.add(left_out(unreadable, folder))


def _with_own_ids(clips: Sequence[Clip], folder: Path, others: Sequence[Clip]) -> Iterator[Clip]:
    """Clips of one table of several, with the folder before ids that another table has too."""
    taken = {clip.id for clip in others}
    for clip in clips:
        yield replace(clip, id=f"{folder.as_posix()}/{clip.id}") if clip.id in taken else clip
