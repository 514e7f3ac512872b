"""Readers of JSON: our own manifest, and the manifests of other tools, as lines or as one list.

NeMo (`audio_filepath`), Qwen (`language X<asr_text>...`), Whisper-Finetune (`audio: {path, start_time, end_time}`),
ms-swift (`messages` and `audios`, or `query`), `datasets` audiofolder (`file_name`) and SpeechBrain (an object of
objects) differ in where a clip's path and text stand. `_flatten` brings each to columns; the synonyms of `data.columns`
do the rest.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

from pydantic import TypeAdapter

from sonotune.data.columns import Columns, is_name_of
from sonotune.data.lines import RefusedError, check_value, json_type, show
from sonotune.data.manifest import read_manifest
from sonotune.data.readers.base import Reading, find_encoding
from sonotune.errors import ManifestError, first_line
from sonotune.json_files import MAX_BYTES, parse_json
from sonotune.types import Clip, Finding

_QWEN_TEXT = re.compile(r"^\s*language\s+(?P<language>[^<]*?)\s*<asr_text>(?P<text>.*)$", re.DOTALL)
_TAGGED = re.compile(r"<audio>([^<>]+)</audio>")
_ANYTHING: Final[TypeAdapter[Any]] = TypeAdapter(Any)
_CONVERSATION: Final = ("messages", "conversations", "audios", "query", "response")
_KEY: Final = re.compile(r'"([^"\\]*)"\s*:')
_NAME: Final = r'\s*"(?:[^"\\]|\\.)*"\s*'
# An object that holds a list or an object, behind any number of texts and numbers.
_FIRST_ENTRIES: Final = re.compile(rf"\{{(?:{_NAME}:(?:{_NAME}|[^\"\[{{,]*),)*{_NAME}:\s*[\[{{]")
_SAMPLE_BYTES: Final = 4096
_SAMPLES: Final = ("bytes", "array")
"""Keys under which an object of audio holds the audio itself."""


def load_jsonl(source: Path, *, root: Path | None = None, allow_outside_root: bool = False) -> list[Clip]:
    """Read our own manifest. See `read_manifest`."""
    return read_manifest(source, root=root, allow_outside_root=allow_outside_root)


def load_json(
    source: Path,
    *,
    root: Path | None = None,
    allow_outside_root: bool = False,
    encoding: str | None = None,
    audio_column: str | None = None,
    text_column: str | None = None,
    findings: list[Finding] | None = None,
) -> list[Clip]:
    """Read the JSON of another tool: one object a line, or one list of objects.

    Args:
        source: The file.
        root: Folder that paths are relative to and may not leave; the file's folder where None.
        allow_outside_root: Whether paths may leave the root.
        encoding: Of the file.
        audio_column: Key of the audio's path, where its name says nothing.
        text_column: Key of the transcript.
        findings: Where assumptions and losses are noted.
    """
    reading = Reading(
        source,
        root=root,
        allow_outside_root=allow_outside_root,
        encoding=encoding,
        columns=Columns(audio=audio_column, text=text_column),
        findings=findings,
        unit="entry" if is_one_value(source, encoding) else None,
    )
    return reading.clips(json_rows(reading, source))


def json_rows(reading: Reading, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records of ours of a JSON file."""
    whole = is_one_value(path, reading.encoding_of(path))
    return reading.records(_flat(reading, _entries(reading, path) if whole else reading.json_lines(path)))


def is_one_value(path: Path, encoding: str | None) -> bool:
    """Whether a file holds one list, or one object of clips, instead of an object a line."""
    try:
        encoding = encoding or find_encoding(path)
        with path.open("rb") as file:
            sample = file.read(_SAMPLE_BYTES).decode(encoding, "replace").lstrip("\ufeff \t\r\n")
            first, ending, _ = sample.partition("\n")
            goes_on = bool(ending) and first.startswith("{") and first.rstrip().endswith(("{", "[", ","))
            if sample.startswith("[") or goes_on:
                return True
            entries = _FIRST_ENTRIES.match(first)
            if entries is None or any(_is_of_a_row(key) for key in _KEY.findall(entries[0])):
                return False
            return not _has_lines(file, encoding)
    except (OSError, LookupError):
        return False  # whose reader says what is wrong


def _has_lines(file: IO[bytes], encoding: str) -> bool:
    """Whether a file has more than one line that is not blank."""
    file.seek(0)
    with io.TextIOWrapper(file, encoding=encoding, errors="replace", newline="\n") as text:
        if len(text.readline(MAX_BYTES)) >= MAX_BYTES:
            return True
        return bool(text.read(_SAMPLE_BYTES).strip())


def _is_of_a_row(key: str) -> bool:
    """Whether a key is one of a clip, and not the id of one or the name of a list of them."""
    return is_name_of("path", key) or key in _CONVERSATION


def first_record(path: Path) -> Mapping[str, Any] | None:
    """The first clip of a JSON file as it stands there, or None where there is none that can be read."""
    reading = Reading(path)
    rows = _entries(reading, path) if is_one_value(path, None) else reading.json_lines(path)
    return next((row for _, row in rows), None)


def _entries(reading: Reading, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a list, or of an object that holds one for each id."""
    do = "Mend the file, or write one object a line."
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode(reading.encoding_of(path)).removeprefix("\ufeff")
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from error
    except UnicodeError as error:
        raise ManifestError(f"{path} is no text: {first_line(error)}. Name its encoding (--encoding).") from error
    if len(data) > MAX_BYTES:
        raise ManifestError(f"{path} is larger than the {MAX_BYTES:,} bytes that one list may have. {do}")
    value = parse_json(text.encode("utf-8", "surrogatepass"), _ANYTHING, where=str(path), error=ManifestError, do=do)
    clips = _clips_of(value, reading.columns.audio)
    if clips is None:
        raise ManifestError(
            f"{path} is no list of clips: found {json_type(value)} {show(value, 60)}; allowed are a list of objects, "
            "an object that holds one such list or one object for each id, and one object a line. Write it so."
        )
    for number, entry in enumerate(clips, 1):
        if not isinstance(entry, dict):
            reading.problems.add(
                number,
                "the entry is not an object",
                found=f"{json_type(entry)} {show(entry, 60)}",
                allowed="an object, in braces",
                do="Mend or remove it.",
            )
            continue
        try:
            check_value(entry)
        except RefusedError as error:
            reading.problems.add_refused(number, error)
        else:
            yield number, entry


def _clips_of(value: object, audio: str | None) -> list[Any] | None:
    """The entries of a list, of an object with one for each id, of the one list in an object, or a single entry."""
    if not isinstance(value, dict) or not value:
        return value if isinstance(value, list) else None
    if any(_is_of_a_row(key) or key == audio for key in value):
        return [value]
    if all(isinstance(entry, dict) for entry in value.values()):
        return [{"id": name, **entry} for name, entry in value.items()]
    lists = [entry for entry in value.values() if isinstance(entry, list) and entry and isinstance(entry[0], dict)]
    return lists[0] if len(lists) == 1 else None


def _flat(reading: Reading, rows: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in rows:
        try:
            yield number, _flatten(row)
        except RefusedError as error:
            reading.problems.add_refused(number, error)


def _flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """Bring path and text to columns of their own, wherever the tool that wrote the row has them."""
    flat = {name: value for name, value in row.items() if value is not None}
    in_query = isinstance(flat.get("query"), str) and _TAGGED.search(flat["query"]) is not None
    if "response" in flat and ("audios" in flat or in_query):  # the older forms of ms-swift
        asked = [{"role": "user", "content": flat.pop("query")}] if in_query else []
        flat["messages"] = [*asked, {"role": "assistant", "content": flat.pop("response")}]
    if isinstance(flat.get("conversations"), list) and "messages" not in flat:
        flat["messages"] = [_turn(turn) for turn in flat.pop("conversations") if isinstance(turn, dict)]
    if isinstance(flat.get("messages"), list):
        flat = _from_messages(flat)
    nested = next((name for name in flat if is_name_of("path", name) and isinstance(flat[name], dict)), None)
    if nested is not None:
        flat = _from_audio(flat, nested)
    return _split_qwen(flat)


def _from_audio(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Columns of a row whose audio is an object. The file and the span are what it says; the rest adds to the row."""
    audio = {key: value for key, value in row[name].items() if value is not None and key not in _SAMPLES}
    known = Columns().match(audio)
    path = next((audio[key] for key, column in known.items() if column == "path"), None)
    if not isinstance(path, str) or not path:
        raise RefusedError(
            "the audio names no file",
            found=f"the keys {', '.join(map(show, row[name])) or 'none'}",
            allowed='{"path": "a.wav"}',
            do="Write the audio to a file and name it. `hub:` reads data sets that hold the audio itself.",
        )
    inside = {known.get(key, key): value for key, value in audio.items()}
    of_the_clip = {key: inside.pop(key) for key in ("start_s", "end_s") if key in inside} | {name: inside.pop("path")}
    outside = {key: value for key, value in row.items() if key != name}
    said = {*outside, *Columns().match(outside).values()}
    return {**{key: value for key, value in inside.items() if key not in said}, **outside, **of_the_clip}


def _split_qwen(row: dict[str, Any]) -> dict[str, Any]:
    """Take Qwen's language off a transcript; `None` there means unknown. A text without the prefix is taken whole."""
    text = row.get("text")
    match = _QWEN_TEXT.match(text) if isinstance(text, str) else None
    if match is None:
        return row
    named = {"language": match["language"]} if match["language"] not in ("", "None") else {}
    return {**row, "text": match["text"], **named}


def _from_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    """One clip from a conversation: the one audio of it, and what the assistant answers last."""
    messages = [message for message in row["messages"] if isinstance(message, dict)]
    parts = [(message.get("role"), part) for message in messages for part in _parts(message.get("content"))]
    listed = row.get("audios")
    audios = [listed] if isinstance(listed, str) else listed if isinstance(listed, list) else []
    audios = audios or [part.get("audio") or part.get("audio_url") for _, part in parts if part.get("type") == "audio"]
    audios = audios or [path for _, part in parts for path in _TAGGED.findall(str(part.get("text", "")))]
    answers = [part["text"] for role, part in parts if role == "assistant" and isinstance(part.get("text"), str)]
    if len(audios) != 1 or not answers:
        raise RefusedError(
            "the conversation is not of one recording and its transcript",
            found=f"{len(audios)} audios and {len(answers)} answers",
            allowed='one audio and the answer to it: {"messages": [..., {"role": "assistant", "content": "one two"}], '
            '"audios": ["a.wav"]}',
            do="Split or remove the entry.",
        )
    rest = {name: value for name, value in row.items() if name not in ("messages", "audios")}
    return {**rest, "audio": audios[0], "text": answers[-1]}


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn of the older form of a conversation, `from` and `value`, as a message."""
    role = turn.get("role", turn.get("from"))
    return {"role": "assistant" if role == "gpt" else role, "content": turn.get("content", turn.get("value"))}


def _parts(content: object) -> list[dict[str, Any]]:
    """What a message says, as a list of parts; a plain text is one part."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
