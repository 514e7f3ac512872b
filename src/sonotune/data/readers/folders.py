"""Readers of folders: audio with its transcripts beside it, folders of classes, audio with one table of metadata."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from sonotune.data.audio_files import AUDIO_SUFFIXES, enumerate_names, find_audio, find_files, left_out
from sonotune.data.columns import SPLIT_NAMES, Columns
from sonotune.data.lines import Problems, RefusedError, text_lines
from sonotune.data.readers.base import Reading
from sonotune.data.readers.corpora import FSDD_NAME
from sonotune.data.readers.json_records import json_rows
from sonotune.data.readers.tables import table_records
from sonotune.errors import ManifestError
from sonotune.paths import is_file
from sonotune.types import Clip, Finding

METADATA: Final = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.json")
_PLACES: Final = frozenset(
    {"wav", "wavs", "flac", "mp3", "audio", "audios", "data", "dataset", "clips", "recordings", "sounds", "samples"}
)
"""Names of folders that hold audio of any kind; with those of splits, no classes."""
_TEXT_SUFFIXES: Final = frozenset({".txt", ".csv", ".tsv", ".tab", ".json", ".jsonl", ".ndjson", ".lst", ".list"})
_MOST_LOOKED_AT: Final = 100
_SAMPLE_BYTES: Final = 65536
_SHORTEST_NAME: Final = 2  # characters; shorter ones stand in any text
_BETWEEN_CELLS: Final = (re.compile(r"[\s,;|\"'/\\]+"), re.compile(r"[\n\t,;|\"'/\\]+"))


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

    Where more than half of the audio files have a `.txt` of the same name beside them, these are transcripts. Where
    fewer have one, files lie in two or more folders and no other file of text names them, the folder is each file's
    class. Folders of splits (`train`, `test`, ...) and of audio (`wavs`, `clips`, ...) around these folders are no
    classes; the split becomes the column `split`. Hidden files are left out without a word, recordings of a kind that
    cannot be read and files of text that are not read with a finding.

    Args:
        source: The folder.
        language: Language of all clips.
        speaker: `folder` takes the folder that may be the class as the speaker.
        contents: What the folder holds, where the files do not show it. `classes` takes one folder too, and folders
            of any name.
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
    folders = _Folders([path.relative_to(source).parts[:-1] for path in files], named=contents == "classes")
    described = _say_unread(reading, files, texts.values(), may_be_classes=contents == "auto")
    kind = _contents(reading, files, list(texts), folders, described) if contents == "auto" else contents
    records = []
    for number, path in enumerate(files, 1):
        relative = path.relative_to(source)
        parents = relative.parts[:-1]
        record: dict[str, Any] = {"path": relative.as_posix(), "language": language, "split": folders.split(parents)}
        if kind == "transcripts" and path in texts:
            record["text"] = _read_transcript(reading, texts[path])
        elif kind == "classes":
            record["label"] = folders.of_class(parents)
        if speaker == "folder":
            record["speaker"] = folders.inner(parents)
        records.append((number, record))
    return reading.clips(records)


class _Folders:
    """What the folders between a source and its audio files are: splits, places of audio, or classes.

    Args:
        parents: The folders above each file, from the source down.
        named: Whether the user says that the folders are classes.
    """

    def __init__(self, parents: Sequence[tuple[str, ...]], *, named: bool) -> None:
        self._named = named
        depth = 0  # of the folders that all have names of splits or of places
        while parents and all(len(above) > depth and _is_place(above[depth]) for above in parents):
            depth += 1
        self._outer = depth
        if depth and not any(len(above) > depth for above in parents):  # these folders are all that there is
            depth -= 1
        self._depth = depth

    def inner(self, parents: tuple[str, ...]) -> str | None:
        """The first folder below those of splits and of audio."""
        return parents[self._depth] if len(parents) > self._depth else None

    def of_class(self, parents: tuple[str, ...]) -> str | None:
        """The class of a file, as far as its folders say one."""
        name = self.inner(parents)
        return None if name is None or (_is_place(name) and not self._named) else name

    def split(self, parents: tuple[str, ...]) -> str | None:
        """The split of a file."""
        return next((name for name in parents[: self._outer] if name.casefold() in SPLIT_NAMES), None)


def _is_place(name: str) -> bool:
    return name.casefold() in SPLIT_NAMES or name.casefold() in _PLACES


def _transcript_beside(path: Path) -> Path | None:
    """The `.txt` of the same name, also where only one of the two names has its accents as separate characters."""
    forms: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD") if not path.stem.isascii() else ()
    names = (
        f"{path.stem}.txt",
        f"{path.stem}.TXT",
        *(unicodedata.normalize(form, f"{path.stem}.txt") for form in forms),
    )
    return next((text for name in names if is_file(text := path.with_name(name))), None)


def _contents(
    reading: Reading, files: Sequence[Path], with_text: Sequence[Path], folders: _Folders, described: bool
) -> Literal["transcripts", "classes", "neither"]:
    """Transcripts or classes, by what most files have; says what is not read for that."""
    source = reading.source
    parents = [path.relative_to(source).parts[:-1] for path in files]
    classes = {name for above in parents if (name := folders.of_class(above))}
    if not with_text and all(FSDD_NAME.match(path.name) for path in files):
        reading.say(
            "fsdd",
            f"the names in {source} are like those of the Free Spoken Digit Dataset: `fsdd:{source}` reads digits and "
            "speakers from them.",
        )
    if 2 * len(with_text) <= len(files) and len(classes) > 1 and not described:
        places = sorted({name for above in parents if (name := folders.inner(above)) and name not in classes})
        reading.say("classes", f"the folders below {source} are the classes of the clips: {len(classes)} classes.")
        if places:
            reading.say(
                "no_class",
                f"the folders {enumerate_names(places)} of {source} have names of splits or of places of audio: their "
                "clips have no class. --contents classes takes these folders too.",
                severity="warning",
            )
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
    if not with_text and any(parents):
        names = enumerate_names(sorted({name for above in parents if (name := folders.inner(above))}))
        reading.say(
            "no_class",
            f"the folders below {source} ({names}) are not taken as classes. --contents classes takes them.",
            severity="warning",
        )
    return "transcripts" if with_text else "neither"


def _say_unread(reading: Reading, files: Sequence[Path], read: Collection[Path], *, may_be_classes: bool) -> bool:
    """Name the files of text that are not read; return whether one of them names the audio."""
    unread = sorted(set(find_files(reading.source, _TEXT_SUFFIXES)) - set(read))
    names = {name for path in files for name in (path.name, path.stem) if len(name) > _SHORTEST_NAME}
    of_audio = [path for path in unread[:_MOST_LOOKED_AT] if path.stem in names or _names_audio(path, names)]
    if of_audio:
        listed = enumerate_names([str(path.relative_to(reading.source)) for path in of_audio])
        reading.say(
            "texts_unread",
            f"{listed}: what names the audio of {reading.source} is not read. Name the format, such as "
            f"`csv:{of_audio[0]}` for a table whose header has a column of paths, or `ljspeech:{of_audio[0]}` for one "
            "whose first column names the audio"
            + (", or take the folders as classes with --contents classes." if may_be_classes else "."),
            severity="warning",
        )
    if others := [str(path.relative_to(reading.source)) for path in unread if path not in set(of_audio)]:
        reading.say("unread", f"files of text that are not read: {enumerate_names(others)}.")
    return bool(of_audio)


def _names_audio(path: Path, names: Collection[str]) -> bool:
    """Whether a file names as many files of audio as half of its first lines, as a table of transcripts does."""
    if not is_file(path):  # opening a pipe would wait for its writer
        return False
    try:
        with path.open("rb") as file:
            sample = file.read(_SAMPLE_BYTES).replace(b"\0", b"").decode("utf-8", "replace")
    except OSError:
        return False
    lines = [line for line in sample.splitlines() if line.strip()]
    cells = {cell.strip() for mark in _BETWEEN_CELLS for cell in mark.split(sample)}
    return 2 * len(cells.intersection(names)) >= max(1, len(lines) if path.suffix != ".json" else 1)


def _read_transcript(reading: Reading, path: Path) -> str:
    inside = Problems(path)
    text = "".join(line for _, line in text_lines(path, inside, encoding=reading.encoding_of(path))).strip()
    if inside.count:
        refused = RefusedError(
            f"the transcript {path.name!r} cannot be read",
            found="bytes that are not text of its encoding, a NUL character, or an endless line",
            allowed="UTF-8 text, or text of the encoding that is named (--encoding)",
            do="Save it as UTF-8, or name its encoding (--encoding cp1252, shift_jis, ...).",
            together=_unreadable_transcripts,
        )
        reading.problems.add_refused(None, refused)
    return text


def _unreadable_transcripts(errors: Sequence[RefusedError]) -> RefusedError:
    """One error for the transcripts of a folder, whose encoding is one."""
    one = errors[0]
    if len(errors) == 1:
        return one
    return RefusedError(
        f"{len(errors)} transcripts cannot be read; of the first, {one.what}",
        found=one.found,
        allowed=one.allowed,
        do=one.do.replace("Save it", "Save them").replace("its encoding", "their encoding"),
    )


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
