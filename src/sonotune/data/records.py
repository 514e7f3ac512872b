"""One line of a manifest, checked column by column and turned into a clip."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sonotune.data.audio_root import AudioRoot
from sonotune.data.lines import Problems, RefusedError, json_type, show
from sonotune.errors import suggest
from sonotune.types import Clip, Word

COLUMNS: Final = (
    "id",
    "path",
    "start_s",
    "duration_s",
    "sample_rate_hz",
    "channel",
    "text",
    "label",
    "words",
    "language",
    "domain",
    "speaker",
    "weight",
)
REQUIRED: Final = ("id", "path")
MAX_NAME: Final = 1000
"""Characters of an id, a class, a speaker and the like."""


class ClipParser:
    """Turns records (one line of a manifest each) into clips and notes what is wrong with them.

    Args:
        root: Where the paths lead.
        problems: Where problems are noted.
        require: Columns each record must have, beside `id` and `path`.
        language: Language of the clips that name none.
        domain: Domain of the clips that name none.
    """

    def __init__(
        self,
        root: AudioRoot,
        problems: Problems,
        *,
        require: Sequence[str] = (),
        language: str | None = None,
        domain: str | None = None,
    ) -> None:
        self._root = root
        self._problems = problems
        self._require = dict.fromkeys((*REQUIRED, *require))
        self._defaults = {"language": language, "domain": domain}
        self._line_of: dict[str, int] = {}

    def parse(self, line: int, record: Mapping[str, Any]) -> Clip | None:
        """Read one record.

        Args:
            line: Line number for messages.
            record: Column -> value, in the column names of this module.

        Returns:
            The clip, or None where something was wrong with it.
        """
        before = self._problems.count
        for name in self._require:
            if record.get(name) is None:
                self._problems.add(
                    line,
                    f"the column {name!r} is missing",
                    found=", ".join(map(repr, record)) or "no columns",
                    allowed=f"at least {', '.join(map(repr, self._require))}",
                    do=_rename_hint(name, record),
                )
        values: dict[str, Any] = {}
        for name, value in record.items():
            if value is None or name not in COLUMNS:
                continue
            try:
                values[name] = self._root.resolve(_text(name, value)) if name == "path" else _READERS[name](name, value)
            except RefusedError as error:
                self._problems.add_refused(line, error)
        if "id" in values:
            self._check_unique(line, values["id"])
        if self._problems.count > before:
            return None
        for name, default in self._defaults.items():
            if values.get(name) is None:
                values[name] = default
        extra = {name: _as_text(value) for name, value in record.items() if name not in COLUMNS and value is not None}
        values.setdefault("duration_s", 0.0)
        return Clip(**values, extra=extra)

    def _check_unique(self, line: int, clip_id: str) -> None:
        first = self._line_of.setdefault(clip_id, line)
        if first != line:
            self._problems.add(
                line,
                "the id is not unique",
                found=f"{show(clip_id)} again, first on line {first}",
                allowed="each id once",
                do="Rename or remove one of the two.",
            )


def _rename_hint(name: str, record: Mapping[str, Any]) -> str:
    if name == "path" and "audio_filepath" in record:
        return "This looks like a NeMo manifest: convert it with `sonotune data import`."
    if name == "path" and "audio" in record:
        return "This looks like a Qwen manifest: convert it with `sonotune data import`."
    extra = [column for column in record if column not in COLUMNS]
    return f"Add it to every line{suggest(name, extra)}".rstrip(".?") + "."


def _refuse_type(name: str, value: object, allowed: str) -> RefusedError:
    return RefusedError(
        f"the column {name!r} has the wrong type",
        found=f"{json_type(value)} {show(value, 60)}",
        allowed=allowed,
        do="Mend the value, or leave the column out." if name not in REQUIRED else "Mend the value.",
    )


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _refuse_type(name, value, "text in quotes")
    return value


def _name(name: str, value: object) -> str:
    text = _text(name, value)
    if not text.strip() or len(text) > MAX_NAME:
        raise RefusedError(
            f"the column {name!r} is {'empty' if not text.strip() else 'too long'}",
            found=show(text),
            allowed=f"1 to {MAX_NAME} characters",
            do="Mend the value.",
        )
    return text


def _speaker(name: str, value: object) -> str:
    # Numbers are the usual names of speakers, and JSON of other tools has them without quotes.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _name(name, value)


def _transcript(name: str, value: object) -> str:
    return unicodedata.normalize("NFC", _text(name, value))


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _refuse_type(name, value, "a number of seconds, without quotes")
    # A finite but absurd number would only fail much later, as an overflow of a sample index.
    if not (abs(value) < 1e9 and math.isfinite(value) and value >= 0 and (value > 0 or name != "duration_s")):
        raise RefusedError(
            f"the column {name!r} is out of range",
            found=show(value, 40),
            allowed="above 0 and below 1e9 seconds" if name == "duration_s" else "0 to 1e9 seconds",
            do="Mend the value, or leave the column out to take the rest of the file.",
        )
    return float(value)


def _share(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _refuse_type(name, value, "a number from 0 to 1, without quotes")
    if not 0 <= value <= 1:  # NaN is none of them
        raise RefusedError(
            f"the column {name!r} is out of range",
            found=show(value, 40),
            allowed="0, which leaves the clip out of training, to 1, which counts it in full",
            do="Mend the value, leave the column out to count the clip in full, or rename it if it is no such weight.",
        )
    return float(value)


def _whole(name: str, value: object) -> int:
    low, high = (0, 1023) if name == "channel" else (1, 10_000_000)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _refuse_type(name, value, "a whole number, without quotes")
    if not low <= value <= high:
        raise RefusedError(
            f"the column {name!r} is out of range",
            found=show(value, 40),
            allowed=f"{low} to {high}",
            do="Mend the value, or leave the column out.",
        )
    return value


def _labels(name: str, value: object) -> tuple[str, ...]:
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) and entry.strip() and len(entry) <= MAX_NAME for entry in entries):
        allowed = f"a class name, or a list of class names, in quotes and of 1 to {MAX_NAME} characters"
        raise _refuse_type(name, value, allowed)
    # Two ways to write the same letters would be two classes.
    return tuple(dict.fromkeys(_transcript(name, entry).strip() for entry in entries))


def _words(name: str, value: object) -> tuple[Word, ...]:
    allowed = 'a list of {"text": "one", "start_s": 0.1, "end_s": 0.4}, each with 0 <= start_s <= end_s'
    if not isinstance(value, list):
        raise _refuse_type(name, value, allowed)
    words = []
    for entry in value:
        if not isinstance(entry, dict) or not {"text", "start_s", "end_s"} <= set(entry):
            raise _refuse_type(name, entry, allowed)
        start_s, end_s = _seconds("words.start_s", entry["start_s"]), _seconds("words.end_s", entry["end_s"])
        if end_s < start_s:
            raise RefusedError(
                f"a word of the column {name!r} ends before it begins",
                found=show(entry),
                allowed=allowed,
                do="Mend the times.",
            )
        score = entry.get("score")
        words.append(
            Word(
                text=_transcript("words.text", entry["text"]),
                start_s=start_s,
                end_s=end_s,
                score=None if score is None else _seconds("words.score", score),
            )
        )
    return tuple(words)


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


_READERS: Mapping[str, Callable[[str, object], Any]] = {
    "id": _name,
    "start_s": _seconds,
    "duration_s": _seconds,
    "sample_rate_hz": _whole,
    "channel": _whole,
    "text": _transcript,
    "label": _labels,
    "words": _words,
    "language": _name,
    "domain": _name,
    "speaker": _speaker,
    "weight": _share,
}
