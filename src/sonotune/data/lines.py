"""What every reader of other people's files shares: bounded lines of text, strict JSON, one list of problems.

A manifest comes from somebody else. A line may have no end, a number may be NaN, a key may stand twice, a path may
point at `/etc/passwd`. Each of these becomes one entry, with file and line, of one `ManifestError`.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

from sonotune.errors import ManifestError, shortened
from sonotune.json_files import MAX_DEPTH
from sonotune.paths import exists, is_file, is_folder
from sonotune.wording import counted

MAX_LINE_BYTES: Final = 1_000_000
MAX_LISTED: Final = 20
MAX_KEPT: Final = 100_000

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_NOT_A_NAME = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")
_BOM = b"\xef\xbb\xbf"


class RefusedError(Exception):
    """A value from outside that cannot be taken, with the four parts of its message; ends up in `Problems`.

    Args:
        what: What is wrong, and with which thing.
        found: What stands there.
        allowed: What may stand there.
        do: What the person can do about it.
        together: Makes one of all errors of a source that share it, where one cause has many.
    """

    def __init__(self, what: str, *, found: str, allowed: str, do: str, together: Merge | None = None) -> None:
        super().__init__(what)
        self.what, self.found, self.allowed, self.do, self.together = what, found, allowed, do, together


Merge = Callable[[Sequence[RefusedError]], RefusedError]


class Problems:
    """Collects what is wrong with a source, so that a person sees it all at once.

    Args:
        source: The file or folder being read; it begins every entry.
        unit: What is counted in it where that is not lines, such as `entry`.
    """

    def __init__(self, source: Path, *, unit: str | None = None) -> None:
        self.source = source
        self.unit = unit
        self.count = 0
        self._listed: list[str] = []
        self._alone: list[str] = []
        self._shared: dict[Merge, list[tuple[int | None, RefusedError]]] = {}

    def add(self, line: int | None, what: str, *, found: str, allowed: str, do: str) -> None:
        """Note one problem.

        Args:
            line: Line number (or number of the unit) from 1, or None for the source as a whole.
            what: What is wrong, and with which thing.
            found: What stands there.
            allowed: What may stand there.
            do: What the person can do about it.
        """
        self.add_refused(line, RefusedError(what, found=found, allowed=allowed, do=do))

    def add_refused(self, line: int | None, error: RefusedError) -> None:
        """Note a value that was refused."""
        self.count += 1
        if len(self._listed) >= MAX_KEPT:
            return
        entry = self._entry(line, error)
        self._listed.append(entry)
        if error.together is None:
            self._alone.append(entry)
        else:
            self._shared.setdefault(error.together, []).append((line, error))

    def _entry(self, line: int | None, error: RefusedError) -> str:
        number = f"{self.source}:{line}" if self.unit is None else f"{self.source}, {self.unit} {line}"
        where = self.source if line is None else number
        return shortened(f"{where}: {error.what}: found {error.found}; allowed is {error.allowed}. {error.do}")

    def absorb(self, other: Problems) -> None:
        """Note the problems of another file of the same source."""
        self.count += other.count
        self._listed += other._listed[: MAX_KEPT - len(self._listed)]
        self._alone += other._alone[: MAX_KEPT - len(self._alone)]
        for together, errors in other._shared.items():
            self._shared.setdefault(together, []).extend(errors)

    def check(self) -> None:
        """Stop here when there are problems.

        Raises:
            ManifestError: Lists the first 20 and counts the rest; all of them are in its `listing`.
        """
        if not self.count:
            return
        shared = [
            self._entry(errors[0][0] if len(errors) == 1 else None, together([error for _, error in errors]))
            for together, errors in self._shared.items()
        ]
        shown = [*shared, *self._alone][:MAX_LISTED]
        more = len(self._alone) + len(shared) + self.count - len(self._listed) - len(shown)
        if len(shown) == 1:
            raise ManifestError(shown[0]).listed(self._listed if self.count > 1 else ())
        lines = [f"{counted(self.count, 'problem')} in {self.source}:", *(f"  - {entry}" for entry in shown)]
        if more:
            lines.append(f"  ... and {more} more")
        error = ManifestError("\n".join(lines))
        raise error.listed(self._listed) if more or shared else error


def show(value: object, limit: int = 80) -> str:
    """A value as it can stand in a one-line message: quoted, control characters escaped, cut when long."""
    text = ascii(value) if isinstance(value, str) and _SURROGATE.search(value) else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def require_file(path: Path) -> None:
    """Refuse what is not a regular file, before opening it could block (a FIFO) or make no sense.

    Raises:
        ManifestError: Nothing is there, or it is a folder, a pipe or a device.
    """
    if is_file(path):
        return
    found = "a folder" if is_folder(path) else "neither a file nor a folder" if exists(path) else "nothing there"
    raise ManifestError(
        f"{path} cannot be read as a manifest: found {found}; allowed is a regular file. "
        "Check the name; `sonotune data import` makes manifests from folders and other formats."
    )


def text_lines(path: Path, problems: Problems, *, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    r"""Read a text file line by line without ever holding more than one bounded line.

    Only `\n` and `\r\n` end a line, so that U+2028 or U+0085 inside a transcript does not. A byte order mark is
    dropped. Lines that are too long, in another encoding or with a NUL character go to `problems` and are left out.

    Args:
        path: The file.
        problems: Where bad lines are noted.
        encoding: Of the text; see `readers.base.find_encoding`.

    Yields:
        Line number from 1, and the line with its ending.

    Raises:
        ManifestError: The file is not a regular file or cannot be opened.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            lines = _utf8_lines(file, problems) if encoding == "utf-8" else _decoded_lines(file, problems, encoding)
            for number, line in lines:
                if "\0" in line:
                    problems.add(
                        number,
                        "the line has a NUL character",
                        found=show(line.strip(), 60),
                        allowed="text",
                        do="Mend the line, or name the encoding (--encoding utf-16) if that is what the file has.",
                    )
                else:
                    yield number, line
    except OSError as error:
        raise ManifestError(
            f"{path} cannot be read: found {error.strerror or error}; allowed is a readable file. "
            "Check its permissions."
        ) from error


def _utf8_lines(file: IO[bytes], problems: Problems) -> Iterator[tuple[int, str]]:
    """Lines of UTF-8; a line that is something else does not hide the others."""
    number = 0
    bad: list[int] = []

    def merge(errors: Sequence[RefusedError]) -> RefusedError:
        """One error for a file, whose encoding is one."""
        one = errors[0]
        if len(errors) == 1:
            return one
        found = f"{one.found} of line {bad[0]} of {Path(file.name).name} first"
        return RefusedError(f"{len(errors)} lines are not UTF-8", found=found, allowed=one.allowed, do=one.do)

    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            raw = raw.removeprefix(_BOM)
        if len(raw) > MAX_LINE_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(MAX_LINE_BYTES)
            _add_long_line(problems, number, "bytes")
            continue
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            bad.append(number)
            refused = RefusedError(
                "the line is not UTF-8",
                found=f"byte 0x{raw[error.start]:02x} at offset {error.start}",
                allowed="UTF-8 text",
                do="Save the file as UTF-8, or name its encoding where `sonotune data import` reads it: --encoding "
                "cp1252 is Western Windows, cp1255 its Hebrew, cp1256 its Arabic, shift_jis Japanese.",
                together=merge,
            )
            problems.add_refused(number, refused)
            continue
        yield number, line


def _decoded_lines(file: IO[bytes], problems: Problems, encoding: str) -> Iterator[tuple[int, str]]:
    """Lines of another encoding, up to the first place that is something else."""
    number = 0
    try:
        with io.TextIOWrapper(file, encoding=encoding, newline="\n") as text:
            while line := text.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    while line and not line.endswith("\n"):
                        line = text.readline(MAX_LINE_BYTES)
                    _add_long_line(problems, number, "characters")
                    continue
                yield number, line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeError as error:
        problems.add(
            number + 1,
            f"the text is not {encoding}",
            found=getattr(error, "reason", None) or str(error),
            allowed=f"{encoding} text",
            do="Name the encoding that the file has (--encoding), or save it as UTF-8.",
        )


def _add_long_line(problems: Problems, number: int, unit: str) -> None:
    problems.add(
        number,
        "the line is too long",
        found=f"more than {MAX_LINE_BYTES} {unit}",
        allowed=f"at most {MAX_LINE_BYTES} {unit}",
        do="Write one clip a line.",
    )


def json_objects(path: Path, problems: Problems, *, encoding: str = "utf-8") -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a JSON Lines file. Blank lines are skipped; bad ones go to `problems`.

    Args:
        path: The file.
        problems: Where bad lines are noted.
        encoding: Of the text.

    Yields:
        Line number from 1, and the object on that line: no duplicate keys, no NaN, no lone surrogates.
    """
    for number, line in text_lines(path, problems, encoding=encoding):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
            check_record(value)
        except RefusedError as error:
            problems.add_refused(number, error)
        except RecursionError:
            problems.add(
                number,
                "the JSON is nested too deeply",
                found="hundreds of levels",
                allowed="one flat object",
                do="Remove the nested value.",
            )
        except ValueError as error:
            found = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            problems.add(
                number,
                "the line is not JSON",
                found=f"{found} in {show(line.strip(), 60)}",
                allowed='one JSON object a line, such as {"id": "a1", "path": "a1.wav", "text": "one"}',
                do="Mend or remove the line.",
            )
        else:
            if isinstance(value, dict):
                yield number, value
            else:
                problems.add(
                    number,
                    "the line is not an object",
                    found=f"{json_type(value)} {show(value, 60)}",
                    allowed="one JSON object a line, in braces",
                    do="Mend or remove the line.",
                )


def json_type(value: object) -> str:
    """What JSON calls a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "text"
    return "list" if isinstance(value, list) else "object"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        double = ", ".join(show(key) for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise RefusedError("a key stands twice", found=double, allowed="each key once", do="Remove one of the two.")
    return table


def _refuse_constant(name: str) -> None:
    raise RefusedError("a number is not a number", found=name, allowed="finite numbers", do="Mend or remove the value.")


def check_record(value: Any) -> None:
    r"""Check a line of a manifest as `check_value` does, but let the name of a file be any that a disk can hold.

    Bytes that are no UTF-8 stand in the path, and in the id that is made of it, as Python writes them (`\udcff`).

    Raises:
        RefusedError: There is a value that could never be written again.
    """
    if not isinstance(value, dict):
        return check_value(value)
    names = {key for key in ("id", "path") if isinstance(value.get(key), str) and not _NOT_A_NAME.search(value[key])}
    return check_value({key: child for key, child in value.items() if key not in names})


def check_value(value: Any, depth: int = 0) -> None:
    r"""Refuse JSON that could never be written again.

    Half of a character (`\ud800`) is legal JSON but no text, and what is nested deeply ends a reader's stack.

    Raises:
        RefusedError: There is such a value.
    """
    if depth > MAX_DEPTH:
        raise RefusedError(
            "the JSON is nested too deeply",
            found=f"more than {MAX_DEPTH} levels",
            allowed="one flat object",
            do="Remove the nested value.",
        )
    if isinstance(value, str):
        if _SURROGATE.search(value):
            raise RefusedError(
                "a text has half of a surrogate pair",
                found=show(value),
                allowed="whole characters",
                do="Mend the text at its source.",
            )
    elif isinstance(value, dict):
        for key, child in value.items():
            check_value(key, depth + 1)
            check_value(child, depth + 1)
    elif isinstance(value, list):
        for child in value:
            check_value(child, depth + 1)
