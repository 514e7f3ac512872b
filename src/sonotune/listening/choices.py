"""Choices and corrections of listeners: a file of JSON lines that only grows.

The first line says what was asked (`session`); what follows are a `choice` for a clip, a `correction` of its
transcript, and `revealed` where a listener has seen which system is which. A choice names the side of the screen and
not the system: which system stood there follows from the seed. Of several lines of one listener on one clip the last
counts.
"""

from __future__ import annotations

import json
import threading
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from sonotune.errors import ManifestError
from sonotune.json_files import Count, check_json, read_json_lines
from sonotune.listening.utterances import Form
from sonotune.paths import exists
from sonotune.runs import atomic_write_bytes, digest_json
from sonotune.runs.files import append_bytes

SCHEMA: Final = 1
MAX_TEXT: Final = 20_000
"""Characters of a corrected transcript."""

_Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]
_Id = Annotated[str, Field(max_length=5_000)]
_When = Annotated[str, Field(max_length=40)]
_DO: Final = "A page or server of `sonotune listen` writes this file; take the file that it wrote."

Mode = Literal["blind", "errors"]


class SessionLine(TypedDict):
    """What was asked: the first line of a file."""

    kind: Literal["session"]
    schema: Literal[1]
    id: str
    mode: Mode
    seed: Count
    form: Form
    clips: Count | None
    random: Count | None
    files: Annotated[list[str], Field(min_length=1, max_length=2)]


class ChoiceLine(TypedDict):
    """Which side a listener preferred."""

    kind: Literal["choice"]
    clip: _Id
    choice: Literal["left", "right", "same"]
    listener: _Name
    at: _When


class CorrectionLine(TypedDict):
    """What a listener heard, and what the transcript was; `was` is null where there was none."""

    kind: Literal["correction"]
    clip: _Id
    text: Annotated[str, Field(max_length=MAX_TEXT)]
    was: str | None
    listener: _Name
    at: _When


class RevealedLine(TypedDict):
    """A listener has seen which system is which; later choices are not blind."""

    kind: Literal["revealed"]
    listener: _Name
    at: _When


Entry = ChoiceLine | CorrectionLine | RevealedLine

_SESSION: Final = TypeAdapter(SessionLine)
_KINDS: Final[Mapping[str, TypeAdapter[Any]]] = {
    "choice": TypeAdapter(ChoiceLine),
    "correction": TypeAdapter(CorrectionLine),
    "revealed": TypeAdapter(RevealedLine),
}
_OBJECT: Final = TypeAdapter(dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What decides the questions, so that they can be asked again and the answers understood.

    Attributes:
        mode: A blind comparison of two systems, or the errors of one.
        seed: Of the draw, the order and the sides.
        form: Of the texts that are shown.
        clips: Questions at most; None sets no limit.
        random: Of them drawn at random; None takes half.
        files: SHA-256 of the predictions of each system.
    """

    mode: Mode
    seed: int
    form: Form
    clips: int | None
    random: int | None
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The first line of a file."""
        plain = {**asdict(self), "files": list(self.files)}
        return {"kind": "session", "schema": SCHEMA, "id": digest_json(plain)[:16], **plain}


def session_from_json(value: Mapping[str, Any], where: str) -> Session:
    """Read a first line.

    Raises:
        ManifestError: It is none, or of another version.
    """
    if value.get("kind") != "session":
        raise ManifestError(f"{where} does not say what was asked: it is no file of choices. {_DO}")
    line = check_json(dict(value), _SESSION, where=where, error=ManifestError, do=_DO)
    return Session(
        mode=line["mode"],
        seed=line["seed"],
        form=line["form"],
        clips=line["clips"],
        random=line["random"],
        files=tuple(line["files"]),
    )


def check_entry(value: Mapping[str, Any], where: str) -> Entry:
    """Check a line that is no first one; texts are composed (NFC), as in a manifest.

    Raises:
        ManifestError: It is none.
    """
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ManifestError(f"{where} has the kind {kind!r:.40}; known are {', '.join(_KINDS)}. {_DO}")
    entry = check_json(dict(value), _KINDS[kind], where=where, error=ManifestError, do=_DO)
    if kind == "correction":
        entry = {**entry, "text": unicodedata.normalize("NFC", " ".join(entry["text"].split()))}
    return cast("Entry", entry)


def read_choices(path: Path) -> tuple[Session, list[Entry]]:
    """Read a file of choices, without a last line that was cut.

    Raises:
        ManifestError: It cannot be read, or a line is damaged; names it.
    """
    lines = _numbered(path)
    first = next(lines, None)
    if first is None:
        raise ManifestError(f"{path} has no line. {_DO}")
    session = session_from_json(first[1], first[0])
    entries = []
    for where, value in lines:
        if value.get("kind") == "session":
            if session_from_json(value, where) != session:
                raise ManifestError(f"{where} begins another comparison. Give each comparison a file of its own.")
            continue  # two files of one comparison, one behind the other
        entries.append(check_entry(value, where))
    return session, entries


def _numbered(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = read_json_lines(path, _OBJECT, error=ManifestError, do=_DO, whole=True)
    for number, row in enumerate(rows, start=1):
        yield f"{path}:{number}", row


def line_of(value: Mapping[str, Any]) -> bytes:
    """A line of the file, in ASCII: a transcript may hold what ends a line elsewhere, or half a character."""
    return json.dumps(dict(value), allow_nan=False).encode("ascii") + b"\n"


@dataclass(kw_only=True)
class ChoiceLog:
    """A file of choices that is written to: made, or continued where an earlier session ended.

    Attributes:
        path: The file.
        session: What is asked.
        entries: All lines but the first.
    """

    path: Path
    session: Session
    entries: list[Entry] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if not exists(self.path):
            atomic_write_bytes(self.path, line_of(self.session.to_json()))
            return
        found, entries = read_choices(self.path)
        if found != self.session:
            told = "; ".join(_differences(found, self.session))
            raise ManifestError(
                f"{self.path} has the choices of another comparison ({told}). Name another file with --choices, or ask "
                "the same again."
            )
        self.entries = entries
        data = self.path.read_bytes()
        if not data.endswith(b"\n"):  # a kill in the middle of a line
            atomic_write_bytes(self.path, data[: data.rfind(b"\n") + 1])

    def add(self, entry: Entry) -> None:
        """Append a line, whole or not at all.

        Raises:
            ResourceError: The disk is full.
            RunDirectoryError: The file cannot be written.
        """
        with self._lock:
            append_bytes(self.path, line_of(entry))
            self.entries.append(entry)


def _differences(found: Session, asked: Session) -> Iterator[str]:
    for name, value in asdict(found).items():
        if (other := getattr(asked, name)) != value:
            yield "other predictions" if name == "files" else f"{name} {value} and not {other}"


def last_corrections(entries: Sequence[Entry]) -> dict[str, CorrectionLine]:
    """The correction of each clip that counts, which is the last."""
    return {entry["clip"]: entry for entry in entries if entry["kind"] == "correction"}
