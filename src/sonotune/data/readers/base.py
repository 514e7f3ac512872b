"""What every reader shares: the encoding of a text file, what was assumed, and the way from records to clips."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final

from sonotune.audio.io import probe
from sonotune.data.audio_root import AudioRoot
from sonotune.data.columns import Columns, looks_like_time, may_be_text
from sonotune.data.lines import Problems, RefusedError, json_objects, require_file, show, text_lines
from sonotune.data.manifest import fill_durations
from sonotune.data.records import ClipParser
from sonotune.errors import AudioError, ManifestError
from sonotune.types import Clip, Finding, Severity
from sonotune.wording import counted

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark begins this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES: Final = 4096
_TIMED_CLIPS: Final = 20
_LATE_S: Final = 20.0


class Reading:
    """One source while it is read.

    Args:
        source: The file or folder that the user named.
        root: Folder that paths are relative to and may not leave. None: relative ones may not leave the base, and
            absolute ones are read as they are.
        base: What paths are relative to without a root; the source's folder where None.
        allow_outside_root: Whether paths may leave the root.
        encoding: Of the text files; None looks for marks of UTF-16 and takes UTF-8 otherwise.
        columns: Columns that the user named.
        findings: Where assumptions and losses are noted; None where nobody asks.
        unit: What problems are numbered by, where that is not lines.
    """

    def __init__(
        self,
        source: Path,
        *,
        root: Path | None = None,
        base: Path | None = None,
        allow_outside_root: bool = False,
        encoding: str | None = None,
        columns: Columns | None = None,
        findings: list[Finding] | None = None,
        unit: str | None = None,
    ) -> None:
        self.source = source
        self.root = AudioRoot(root or base or source.parent, absolute=root is None, allow_outside=allow_outside_root)
        self.problems = Problems(source, unit=unit)
        self.columns = columns or Columns()
        self._findings = [] if findings is None else findings
        self._encoding = None if encoding is None else known_encoding(encoding)
        self._found: dict[Path, str] = {}
        self._times: dict[str, str] = {}  # a time of ours -> their name of it

    def say(self, check: str, message: str, *, severity: Severity = "note") -> None:
        """Note an assumption (a note), or something that is lost (a warning)."""
        self._findings.append(
            Finding(check=f"import.{check}", severity=severity, message=message, path=str(self.source))
        )

    def add(self, finding: Finding) -> None:
        """Note a finding that was made elsewhere."""
        self._findings.append(finding)

    def encoding_of(self, path: Path) -> str:
        """The encoding of a text file: as the user says, or by its first bytes, which is then said."""
        if self._encoding is not None:
            return self._encoding
        if path in self._found:
            return self._found[path]
        found = find_encoding(path)
        if found != "utf-8" and found not in self._found.values():
            self.say("encoding", f"{path.name} is read as {found}, by its first bytes; --encoding names another.")
        self._found[path] = found
        return found

    def lines(self, path: Path) -> Iterator[tuple[int, str]]:
        """The lines of a text file."""
        inside = self.problems if path == self.source else Problems(path)
        yield from text_lines(path, inside, encoding=self.encoding_of(path))
        if inside is not self.problems:
            self.problems.absorb(inside)

    def json_lines(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """The objects of a JSON Lines file."""
        return json_objects(path, self.problems, encoding=self.encoding_of(path))

    def records(self, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows of theirs -> records of ours; a row that cannot be read becomes a problem."""
        for number, row in rows:
            try:
                record = self.columns.record(row)
                if not self._times and record.keys() & {"start_s", "duration_s"}:
                    self._times = self._names_of_times(row)
                yield number, record
            except RefusedError as error:
                self.problems.add_refused(number, error)

    def clips(self, records: Iterable[tuple[int, Mapping[str, Any]]]) -> list[Clip]:
        """Records of ours -> clips with ids and durations.

        Raises:
            ManifestError: Lists what is wrong with the source; or there is no clip in it.
        """
        parser = ClipParser(self.root, self.problems)
        used: dict[str, int] = {}  # an id -> the number of the last that was made of it
        clips = []
        for number, record in records:
            clip_id = record.get("id")
            if clip_id is None:
                named = isinstance(record.get("path"), str)
                record = {**record, "id": self._make_id(record, used) if named else f"line {number}"}
            elif isinstance(clip_id, str):
                used.setdefault(clip_id, 1)
            if clip := parser.parse(number, record):
                clips.append(clip)
        self._check_times(clips)
        self.problems.check()
        if not clips:
            raise ManifestError(
                f"{self.source} has no clips: found an empty source; allowed is at least one clip. Check the path."
            )
        self._say_unused_times(clips)
        self._say_other_texts(clips)
        return fill_durations(clips)

    def _names_of_times(self, row: Mapping[str, Any]) -> dict[str, str]:
        matched = self.columns.match_values(row).items()
        return {ours: theirs for theirs, ours in matched if ours in ("start_s", "end_s", "duration_s")}

    def _check_times(self, clips: Iterable[Clip]) -> None:
        """Refuse times that prove to be of another unit: the first files end before them, whatever the clip."""
        first = list(islice((clip for clip in clips if clip.start_s + clip.duration_s > 0), _TIMED_CLIPS))
        if not self._times or max((clip.start_s + clip.duration_s for clip in first), default=0) < _LATE_S:
            return
        spans = []
        for clip in first:
            with suppress(AudioError, OSError):  # the check of the audio says what is wrong with it
                spans.append((clip.start_s, clip.start_s + clip.duration_s, probe(clip.path)))
        if not spans or any(end_s <= info.duration_s + 1 for _, end_s, info in spans):
            return
        if all(end / 1000 <= info.duration_s + 1 for _, end, info in spans):
            meant, factor = "milliseconds", "1000"
        elif all(end / info.sample_rate_hz <= info.duration_s + 1 for _, end, info in spans):
            meant, factor = "samples", "the sample rate"
        else:
            return
        start_s, end_s, info = spans[0]
        names = [show(self._times[name]) for name in ("start_s", "end_s", "duration_s") if name in self._times]
        self.problems.add(
            None,
            f"the columns {' and '.join(names)} are not in seconds" if names[1:] else f"{names[0]} is not in seconds",
            found=f"{start_s:g} to {end_s:g} first, in a file of {info.duration_s:.3f} s",
            allowed="seconds",
            do=f"They fit the files as {meant}: divide them by {factor}.",
        )

    def _say_unused_times(self, clips: Iterable[Clip]) -> None:
        unused = Counter(name for clip in clips for name, value in clip.extra.items() if looks_like_time(name, value))
        for name, count in unused.items():
            self.say(
                "unused_time",
                f"the column {show(name)} of {counted(count, 'clip')} looks like a time or a length and is not used. "
                "Where clips are parts of longer files, name their columns start_s and end_s (or duration_s), in "
                "seconds.",
                severity="warning",
            )

    def _say_other_texts(self, clips: Iterable[Clip]) -> None:
        other = Counter(
            name
            for clip in clips
            for name, value in clip.extra.items()
            if may_be_text(name) and value.strip() != (clip.text or "").strip()
        )
        for name, count in other.items():
            self.say(
                "other_text",
                f"the column {show(name)} holds another transcript for {counted(count, 'clip')} and is not used; "
                f"--text-column {name} takes it.",
                severity="warning",
            )

    def _make_id(self, record: Mapping[str, Any], used: dict[str, int]) -> str:
        """The path below the root without its ending, with the start where there is one; unique by a number."""
        try:
            path = self.root.resolve(record["path"])
        except RefusedError:
            return f"line {len(used)} {record['path']}"[:1000]  # the parser says what is wrong with the path
        inside = path.is_relative_to(self.root.root)
        stem = (path.relative_to(self.root.root) if inside else Path(path.name)).with_suffix("").as_posix()
        start_s = record.get("start_s")
        base = f"{stem}@{start_s:.3f}" if isinstance(start_s, (int, float)) and start_s else stem
        number = used.get(base, 0) + 1
        while (name := base if number == 1 else f"{base}-{number}") in used:
            number += 1
        used[base] = number
        used.setdefault(name, 1)
        return name


def find_encoding(path: Path) -> str:
    """The encoding that the first bytes of a text file prove; `utf-8` where they prove none.

    Encodings of one byte a character (cp1252, cp1255, ...) cannot be told apart by a few bytes: the user names them.

    Raises:
        ManifestError: The file cannot be opened.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            sample = file.read(_SAMPLE_BYTES)
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from error
    for mark, encoding in _MARKS:
        if sample.startswith(mark):
            return encoding
    # Without a mark, ASCII in UTF-16 shows as a zero beside nearly every letter.
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    half = len(sample) // 2
    if half >= 4 and max(even, odd) > 0.4 * half and min(even, odd) < 0.05 * half:
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8"


def known_encoding(name: str) -> str:
    """The usual name of an encoding.

    Raises:
        ManifestError: There is no such encoding of text.
    """
    try:
        "".encode(name)  # refuses codecs that are no encodings of text
        return codecs.lookup(name).name.replace("utf-8-sig", "utf-8")
    except (LookupError, ValueError) as error:
        raise ManifestError(
            f"no encoding is called {show(name)}; known are utf-8, utf-16, cp1252 (Western Windows), cp1255 (Hebrew), "
            "cp1251 (Cyrillic), latin-1, shift_jis, gb18030, big5 and the others of Python. Name one of them."
        ) from error
