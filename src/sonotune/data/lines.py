"""What every reader of other people's files shares: bounded lines, strict JSON, a fence around paths, one error list.

A manifest comes from somebody else. A line may have no end, a number may be NaN, a key may stand twice, a path may
point at `/etc/passwd`. Each of these becomes one entry, with file and line, of one `ManifestError`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sonotune.errors import ManifestError

MAX_LINE_BYTES: Final = 1_000_000
MAX_LISTED: Final = 20

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_BOM = b"\xef\xbb\xbf"


class RefusedError(Exception):
    """A value from outside that cannot be taken, with the four parts of its message; ends up in `Problems`."""

    def __init__(self, what: str, *, found: str, allowed: str, do: str) -> None:
        super().__init__(what)
        self.what, self.found, self.allowed, self.do = what, found, allowed, do


class Problems:
    """Collects what is wrong with a source, so that a person sees it all at once.

    Args:
        source: The file or folder being read; it begins every entry.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self.count = 0
        self._listed: list[str] = []

    def add(self, line: int | None, what: str, *, found: str, allowed: str, do: str) -> None:
        """Note one problem.

        Args:
            line: Line number from 1, or None for the source as a whole.
            what: What is wrong, and with which thing.
            found: What stands there.
            allowed: What may stand there.
            do: What the person can do about it.
        """
        self.count += 1
        if len(self._listed) < MAX_LISTED:
            where = self.source if line is None else f"{self.source}:{line}"
            self._listed.append(f"{where}: {what}: found {found}; allowed is {allowed}. {do}")

    def add_refused(self, line: int | None, error: RefusedError) -> None:
        """Note a value that was refused."""
        self.add(line, error.what, found=error.found, allowed=error.allowed, do=error.do)

    def check(self) -> None:
        """Stop here when there are problems.

        Raises:
            ManifestError: Lists the first 20 and counts the rest.
        """
        if not self.count:
            return
        if self.count == 1:
            raise ManifestError(self._listed[0])
        lines = [f"{self.count} problems in {self.source}:", *(f"  - {entry}" for entry in self._listed)]
        if self.count > len(self._listed):
            lines.append(f"  ... and {self.count - len(self._listed)} more")
        raise ManifestError("\n".join(lines))


def show(value: object, limit: int = 80) -> str:
    """A value as it can stand in a one-line message: quoted, control characters escaped, cut when long."""
    text = ascii(value) if isinstance(value, str) and _SURROGATE.search(value) else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def require_file(path: Path) -> None:
    """Refuse what is not a regular file, before opening it could block (a FIFO) or make no sense.

    Raises:
        ManifestError: Nothing is there, or it is a folder, a pipe or a device.
    """
    if path.is_file():
        return
    found = "a folder" if path.is_dir() else "neither a file nor a folder" if path.exists() else "nothing there"
    raise ManifestError(
        f"{path} cannot be read as a manifest: found {found}; allowed is a regular file. "
        "Check the name; `sonotune data import` makes manifests from folders and other formats."
    )


def text_lines(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    r"""Read a text file line by line without ever holding more than one bounded line.

    Only `\n` and `\r\n` end a line, so that U+2028 or U+0085 inside a transcript does not. A byte order mark is
    dropped. Lines that are too long or not UTF-8 go to `problems` and are left out.

    Args:
        path: The file.
        problems: Where bad lines are noted.

    Yields:
        Line number from 1, and the line with its ending.

    Raises:
        ManifestError: The file is not a regular file or cannot be opened.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if number == 1:
                    raw = raw.removeprefix(_BOM)
                if len(raw) > MAX_LINE_BYTES:
                    while raw and not raw.endswith(b"\n"):
                        raw = file.readline(MAX_LINE_BYTES)
                    problems.add(
                        number,
                        "the line is too long",
                        found=f"more than {MAX_LINE_BYTES} bytes",
                        allowed=f"at most {MAX_LINE_BYTES} bytes",
                        do="Write one clip a line.",
                    )
                    continue
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    problems.add(
                        number,
                        "the line is not UTF-8",
                        found=f"byte 0x{raw[error.start]:02x} at offset {error.start}",
                        allowed="UTF-8 text",
                        do="Save the file as UTF-8.",
                    )
                    continue
                yield number, line
    except OSError as error:
        raise ManifestError(
            f"{path} cannot be read: found {error.strerror or error}; allowed is a readable file. "
            "Check its permissions."
        ) from error


def json_objects(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a JSON Lines file. Blank lines are skipped; bad ones go to `problems`.

    Yields:
        Line number from 1, and the object on that line: no duplicate keys, no NaN, no lone surrogates.
    """
    for number, line in text_lines(path, problems):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
            _refuse_surrogates(value)
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


def _refuse_surrogates(value: Any) -> None:
    r"""Half of a character (`\ud800`) is legal JSON but no text: it could never be written again as UTF-8."""
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
            _refuse_surrogates(key)
            _refuse_surrogates(child)
    elif isinstance(value, list):
        for child in value:
            _refuse_surrogates(child)


class AudioRoot:
    """Turns the paths of a manifest into files below one folder.

    A manifest from elsewhere must not make this program open `/etc/passwd` or a neighbour's recordings, so a path
    that leaves the root by `..`, by being absolute or through a symbolic link is refused, unless allowed.

    Args:
        root: The folder.
        allow_outside: Whether paths may leave it.
    """

    def __init__(self, root: Path, *, allow_outside: bool = False) -> None:
        self.root = root.absolute()
        self.allow_outside = allow_outside
        self._real_root = self._real(self.root)
        self._real_folders: dict[Path, Path] = {}

    def resolve(self, value: str) -> Path:
        """Find the file that a manifest's path names.

        Args:
            value: The path as written: relative to the root, or absolute.

        Returns:
            An absolute path. The file may be missing: that is for the audio check to find.

        Raises:
            RefusedError: Empty, a URL, impossible as a file name, or outside the root.
        """
        name = "the name of an audio file"
        do = "Mend the path."
        if not value:
            raise RefusedError("the path is empty", found="''", allowed=name, do=do)
        if "\0" in value:
            raise RefusedError("the path has a NUL character", found=show(value), allowed=name, do=do)
        if _URL.match(value):
            raise RefusedError(
                "the path is a URL", found=show(value), allowed="a file on this machine", do="Download the audio first."
            )
        path = self.root / value
        if _size_bytes(value) > 4000 or max(map(_size_bytes, path.parts)) > 255:
            raise RefusedError(
                "the path is too long", found=show(value), allowed="names that a file system can hold", do=do
            )
        real = self._real_file(path)
        if not self.allow_outside and not real.is_relative_to(self._real_root):
            raise RefusedError(
                "the path leaves the root of the manifest",
                found=f"{show(value)}, which is {show(str(real), 200)}",
                allowed=f"files below {self.root}",
                do="Move the audio there, set another root (data.root), or set data.allow_outside_root=true.",
            )
        return real if ".." in path.parts else path

    def _real_file(self, path: Path) -> Path:
        # Folders repeat over thousands of lines, and resolving costs one system call for each of their parts.
        folder = path.parent
        if ".." in path.parts or path.is_symlink():
            return self._real(path)
        if folder not in self._real_folders:
            self._real_folders[folder] = self._real(folder)
        return self._real_folders[folder] / path.name

    @staticmethod
    def _real(path: Path) -> Path:
        try:
            return path.resolve()
        except (OSError, RuntimeError) as error:  # Python 3.11 raises RuntimeError for a loop of links
            raise RefusedError(
                "the path cannot be followed",
                found=f"{show(str(path))}: {error}",
                allowed="an audio file",
                do="Mend the links.",
            ) from error


def _size_bytes(name: str) -> int:
    return len(name.encode("utf-8", "surrogatepass"))  # a name on disk need not be UTF-8
