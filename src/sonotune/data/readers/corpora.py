"""Readers of corpora with a layout of their own: Kaldi, LibriSpeech in one language and many, spoken digits."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sonotune.audio.io import probe
from sonotune.data.audio_files import AUDIO_SUFFIXES, enumerate_names, find_audio
from sonotune.data.lines import RefusedError, show
from sonotune.data.readers.base import Reading
from sonotune.errors import AudioError, ManifestError
from sonotune.paths import is_file
from sonotune.types import Clip, Finding

DIGITS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FSDD_NAME: Final = re.compile(r"^(\d)_([^_]+)_(\d+)\.wav$")
TRANSCRIPTS: Final = "*.trans.txt"
MLS_TRANSCRIPTS: Final = "transcripts.txt"

_CHANNELS: Final[Mapping[str, int]] = {"A": 0, "B": 1, "1": 0, "2": 1}
# Options with which a program of a Kaldi pipe only decodes; anything else may change what is heard.
_DECODERS: Final[Mapping[str, frozenset[str]]] = {
    "cat": frozenset(),
    "flac": frozenset({"-c", "-d", "-s", "-cd", "-cds", "-dc", "-dcs", "--decode", "--stdout", "--silent"}),
    "sph2pipe": frozenset({"-f", "-p", "-c", "wav", "1", "2"}),
    "ffmpeg": frozenset(
        {"-i", "-f", "-ar", "-ac", "-acodec", "-c:a", "-ab", "-v", "-loglevel", "-nostdin", "-hide_banner", "-vn", "-y"}
        | {"wav", "pcm_s16le", "1", "8000", "16000", "16k", "error", "fatal", "quiet", "panic", "warning", "-"}
    ),
}


# --- Kaldi ---------------------------------------------------------------------------------------


def load_kaldi(
    source: Path,
    *,
    root: Path | None = None,
    allow_outside_root: bool = False,
    language: str | None = None,
    encoding: str | None = None,
    findings: list[Finding] | None = None,
) -> list[Clip]:
    """Read a data folder of Kaldi: `wav.scp`, and what of the other tables is there.

    These are `segments`, `text`, `utt2spk`, `utt2lang` and `reco2file_and_channel`.
    Commands in `wav.scp` are never run. Where one only decodes a file (`flac -c -d a.flac |`), the file is read.

    Args:
        source: The folder.
        root: Folder that paths are relative to and may not leave. Where None, the folder, or the one of the two above
            it in which the first audio file is found.
        allow_outside_root: Whether paths may leave the root.
        language: Language of the clips that name none.
        encoding: Of the text files.
        findings: Where assumptions and losses are noted.
    """
    _require(source, "wav.scp", "kaldi")
    reading = Reading(
        source,
        root=root,
        base=_kaldi_root(source),
        allow_outside_root=allow_outside_root,
        encoding=encoding,
        findings=findings,
        unit="clip",
    )
    if reading.root.root != source.absolute() and root is None:
        reading.say("root", f"paths of {source / 'wav.scp'} are taken from {reading.root.root}; --root names another.")
    recordings = _recordings(reading, _pairs(reading, "wav.scp"))
    _set_channels(reading, recordings)
    tables = {name: _pairs(reading, name) for name in ("text", "utt2spk", "utt2lang")}
    spans = _spans(reading, recordings) if (source / "segments").is_file() else dict(recordings)
    known = {"text": "text", "utt2spk": "speaker", "utt2lang": "language"}
    records = []
    for number, (name, span) in enumerate(spans.items(), 1):
        record = {"id": name, "language": language, **span}
        record |= {column: tables[table][name] for table, column in known.items() if name in tables[table]}
        records.append((number, record))
    _say_difference(reading, "text", set(tables["text"]), set(spans))
    return reading.clips(records)


def _kaldi_root(source: Path) -> Path:
    """Kaldi names files from the folder that its recipe runs in, which is above its data folders."""
    reading = Reading(source)
    first = next((path for _, path in zip(range(1), _plain_paths(_pairs(reading, "wav.scp")), strict=False)), None)
    folder = source.absolute()
    places = (folder, folder.parent, folder.parent.parent)
    return next((place for place in places if first and is_file(place / first)), folder)


def _plain_paths(entries: Mapping[str, str]) -> Iterator[str]:
    for entry in entries.values():
        try:
            yield _audio_of(entry)["path"]
        except RefusedError:
            continue


def _pairs(reading: Reading, name: str) -> dict[str, str]:
    """A table of Kaldi: a key, white space, and the rest of the line; empty where there is no such file."""
    path = reading.source / name
    pairs: dict[str, str] = {}
    if not path.is_file():
        return pairs
    for number, line in reading.lines(path):
        key, _, rest = line.strip().replace("\t", " ", 1).partition(" ")
        if not key:
            continue
        if key in pairs:
            reading.problems.add(
                None,
                f"a key stands twice in {name}",
                found=f"{show(key)} on line {number}",
                allowed="each key once",
                do="Remove one of the two.",
            )
        pairs.setdefault(key, rest.strip())
    return pairs


def _recordings(reading: Reading, entries: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    found = {}
    commands = 0
    for name, entry in entries.items():
        try:
            found[name] = _audio_of(entry)
        except RefusedError as error:
            reading.problems.add(
                None, f"wav.scp, {show(name)}: {error.what}", found=error.found, allowed=error.allowed, do=error.do
            )
        commands += entry.endswith("|")
    if commands:
        reading.say(
            "commands", f"{commands} entries of wav.scp are commands: they are not run, the files they decode are read."
        )
    return found


def _set_channels(reading: Reading, recordings: Mapping[str, dict[str, Any]]) -> None:
    """Take the channels of `reco2file_and_channel` (`recording file A`).

    A command that picks the channel counts more, and so does a file that has one only.
    """
    mono = []
    for name, entry in _pairs(reading, "reco2file_and_channel").items():
        channel = _CHANNELS.get(entry.split()[-1].upper() if entry else "")
        record = recordings.get(name)
        if channel is None:
            reading.problems.add(
                None,
                f"reco2file_and_channel, {show(name)}: the channel cannot be used",
                found=show(entry),
                allowed="the name of a file, and A, B, 1 or 2",
                do="Mend the line.",
            )
        elif record is not None and "channel" not in record:
            record["channel"] = channel
            with suppress(AudioError, RefusedError):  # whose reader says what is wrong with it
                if probe(reading.root.resolve(record["path"])).num_channels == 1:
                    del record["channel"]
                    mono += [name] if channel else []
    if mono:
        reading.say(
            "channels",
            f"reco2file_and_channel names another channel than the first of {len(mono)} recordings whose files have "
            f"one: they are read as they are ({enumerate_names(mono)}).",
            severity="warning",
        )


def _audio_of(entry: str) -> dict[str, Any]:
    """The file of an entry of `wav.scp`, and its channel where a command picks one."""
    if not entry.endswith("|"):
        return {"path": entry}
    refused = RefusedError(
        "the audio is a command, which is not run",
        found=show(entry),
        allowed="the path of an audio file, or a command that only decodes one (flac, sph2pipe, ffmpeg, cat)",
        do="Write its output to a file and name that.",
    )
    try:
        program, *words = shlex.split(entry.removesuffix("|"))
    except ValueError:
        raise refused from None
    known = _DECODERS.get(Path(program).name)
    rest = [word for word in words if known is not None and word not in known]
    if known is None or len(rest) != 1 or Path(rest[0]).suffix.lower() not in AUDIO_SUFFIXES:
        raise refused
    record: dict[str, Any] = {"path": rest[0]}
    if Path(program).name == "sph2pipe" and "-c" in words[:-1]:
        channel = words[words.index("-c") + 1]
        if channel not in ("1", "2"):
            raise refused
        record["channel"] = int(channel) - 1
    return record


def _spans(reading: Reading, recordings: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The utterances of `segments`: `utterance recording start end`, where an end of -1 is that of the recording."""
    spans = {}
    for name, entry in _pairs(reading, "segments").items():
        words = entry.split()
        try:
            recording, start_s, end_s = words[0], float(words[1]), float(words[2])
            if recording not in recordings or not (0 <= start_s < end_s or end_s == -1):
                raise ValueError
        except (ValueError, IndexError):
            reading.problems.add(
                None,
                f"segments, {show(name)}: the span cannot be used",
                found=show(entry),
                allowed="a recording of wav.scp, its start and its end in seconds",
                do="Mend the line.",
            )
            continue
        span: dict[str, Any] = {**recordings[recording], "start_s": start_s}
        spans[name] = span if end_s == -1 else {**span, "duration_s": end_s - start_s}
    return spans


def _say_difference(reading: Reading, name: str, texts: set[str], clips: set[str]) -> None:
    for lacking, message in (
        (sorted(texts - clips), f"of {len(texts)} transcripts have no audio and are left out"),
        (sorted(clips - texts) if texts else [], f"of {len(clips)} clips have no transcript in {name}"),
    ):
        if lacking:
            reading.say("unmatched", f"{len(lacking)} {message}: {enumerate_names(lacking)}.", severity="warning")


def _require(source: Path, name: str, format: str) -> None:
    if not (source / name).is_file():
        raise ManifestError(
            f"{source} cannot be read as {format}: found no {name} in it; allowed is the folder that has one. Check "
            "the folder, or name another format."
        )


# --- LibriSpeech ---------------------------------------------------------------------------------


def load_librispeech(
    source: Path,
    *,
    language: str | None = None,
    allow_outside_root: bool = False,
    encoding: str | None = None,
    findings: list[Finding] | None = None,
) -> list[Clip]:
    """Read the layout of LibriSpeech: `SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt` with lines `ID TEXT`, audio beside.

    Args:
        source: Any folder above the chapters, or one of them.
        language: Language of the clips.
        allow_outside_root: Whether links may lead out of the folder.
        encoding: Of the transcripts.
        findings: Where assumptions and losses are noted.
    """
    tables = sorted(source.rglob(TRANSCRIPTS)) if source.is_dir() else []
    if not tables:
        raise ManifestError(
            f"{source} cannot be read as librispeech: found no {TRANSCRIPTS} in it; allowed is a folder with chapters "
            "of LibriSpeech. Check the folder, or name another format."
        )
    reading = Reading(
        source,
        root=source,
        allow_outside_root=allow_outside_root,
        encoding=encoding,
        findings=findings,
        unit="clip",
    )
    audio: dict[str, Path] = {}
    for path in find_audio(source)[0]:
        audio.setdefault(f"{path.parent}/{path.stem}", path)

    def speaker(name: str, path: Path) -> dict[str, str | None]:
        return {"speaker": (name.split("-")[0] if "-" in name else path.parent.parent.name) or None}

    return _transcribed(reading, tables, audio, speaker, language)


def _transcribed(
    reading: Reading,
    tables: Sequence[Path],
    audio: Mapping[str, Path],
    columns: Callable[[str, Path], Mapping[str, str | None]],
    language: str | None,
) -> list[Clip]:
    """The clips of tables with lines `ID TEXT`.

    Args:
        reading: Of the source.
        tables: The tables.
        audio: `FOLDER OF THE TABLE/ID` -> the file.
        columns: Other columns of a clip, by its id and its file.
        language: Language of the clips.
    """
    with_text: set[Path] = set()
    records: list[tuple[int, dict[str, Any]]] = []
    without_audio = []
    lines = ((table, line) for table in tables for _, line in reading.lines(table) if line.strip())
    for table, line in lines:
        name, _, text = line.strip().replace("\t", " ", 1).partition(" ")
        found = audio.get(f"{table.parent}/{name}")
        if found is None:
            without_audio.append(name)
            continue
        with_text.add(found)
        record = {"id": name, "path": found.relative_to(reading.source).as_posix(), "text": text.strip()}
        records.append((len(records) + 1, {**record, **columns(name, found), "language": language}))
    _say_libri_losses(reading, sorted(set(audio.values()) - with_text), without_audio)
    return reading.clips(records)


def _say_libri_losses(reading: Reading, without_text: Sequence[Path], without_audio: Sequence[str]) -> None:
    if without_text:
        names = enumerate_names([str(path.relative_to(reading.source)) for path in without_text])
        reading.say(
            "unmatched",
            f"{len(without_text)} audio files have no line in the transcripts and are left out: {names}.",
            severity="warning",
        )
    if without_audio:
        reading.say(
            "unmatched",
            f"{len(without_audio)} lines of transcripts have no audio and are left out: "
            f"{enumerate_names(without_audio)}.",
            severity="warning",
        )


# --- Multilingual LibriSpeech --------------------------------------------------------------------


def load_mls(
    source: Path,
    *,
    split: str | None = None,
    language: str | None = None,
    allow_outside_root: bool = False,
    encoding: str | None = None,
    findings: list[Finding] | None = None,
) -> list[Clip]:
    """Read Multilingual LibriSpeech: `transcripts.txt` with lines `ID TEXT`, audio in `audio/SPEAKER/BOOK/ID.flac`.

    Args:
        source: The folder of a split, or of a language.
        split: Which folder of a language, such as `train`; None takes all that have transcripts.
        language: Language of the clips.
        allow_outside_root: Whether links may lead out of the folder.
        encoding: Of the transcripts.
        findings: Where assumptions and losses are noted.
    """
    tables = mls_tables(source / split if split else source)
    if not tables:
        raise ManifestError(
            f"{source} cannot be read as mls: found no {MLS_TRANSCRIPTS} beside a folder `audio`; allowed is a folder "
            "of Multilingual LibriSpeech, or of one of its splits. Check the folder, or name another format."
        )
    reading = Reading(
        source, root=source, allow_outside_root=allow_outside_root, encoding=encoding, findings=findings, unit="clip"
    )
    audio = {f"{table.parent}/{path.stem}": path for table in tables for path in find_audio(table.parent / "audio")[0]}

    def of_folders(name: str, path: Path) -> dict[str, str | None]:
        parts = path.relative_to(source).parts[:-1]
        place = parts.index("audio")
        return {"speaker": next(iter(parts[place + 1 :]), None), "split": next(iter(parts[:place]), None)}

    return _transcribed(reading, tables, audio, of_folders, language)


def mls_tables(folder: Path) -> list[Path]:
    """The transcripts of a folder of Multilingual LibriSpeech: its own, else those of its splits."""
    for found in ([folder / MLS_TRANSCRIPTS], sorted(folder.glob(f"*/{MLS_TRANSCRIPTS}"))):
        if tables := [table for table in found if table.is_file() and (table.parent / "audio").is_dir()]:
            return tables
    return []


# --- the Free Spoken Digit Dataset ---------------------------------------------------------------


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
    matches = [match for name in names if (match := FSDD_NAME.match(name))]
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
    return Reading(folder, root=folder, unit="clip").clips(records)
