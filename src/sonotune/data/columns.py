"""The names that other tools give to the columns of a manifest, and what is made of their values.

This is the only table of synonyms; every reader of other people's files goes through `Columns.record`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sonotune.data.lines import RefusedError, show
from sonotune.errors import suggest

# Our column -> names that other tools give it, best first. `end_s` is no column of ours: with the start it is a length.
SYNONYMS: Final[Mapping[str, tuple[str, ...]]] = {
    "id": ("id", "clip_id", "utt_id", "utterance_id", "utt", "uttid", "key"),
    "path": (
        *("path", "audio_filepath", "audio_path", "audio", "file", "file_name", "filename", "wav", "wav_path"),
        *("wav_filename", "file_path", "filepath", "audio_file"),
    ),
    "text": ("text", "sentence", "transcript", "transcription", "wrd", "txt"),
    "speaker": ("speaker", "speaker_id", "client_id", "spk_id", "spk"),
    "language": ("language", "locale", "lang"),
    "domain": ("domain", "sentence_domain"),
    "duration_s": ("duration_s", "duration"),
    "start_s": ("start_s", "onset", "offset", "start", "start_time", "begin", "begin_time"),
    "end_s": ("end_s", "end", "end_time", "stop"),
    "sample_rate_hz": ("sample_rate_hz", "sample_rate", "sampling_rate"),
    "channel": ("channel",),
    "label": ("label", "category", "class"),
    "weight": ("weight",),
}
SPLIT_NAMES: Final = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("eval", "evaluation", "dev", "development", "val", "valid", "validation"), "eval"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What the splits of published corpora are called -> what they are called here."""
NOT_OURS: Final = ("words",)
"""Names of our columns that mean something else elsewhere: they become an extra column `source_NAME`, unless their
values have our form."""


def _whole(text: str) -> int:
    """A whole number, also as `16000.0`, which pandas writes where a column has gaps."""
    number = float(text)
    if number != int(number):
        raise ValueError(f"{text} is no whole number")
    return int(number)


_NUMBERS: Final[Mapping[str, Callable[[str], float]]] = {
    "duration_s": float,
    "start_s": float,
    "end_s": float,
    "sample_rate_hz": _whole,
    "channel": _whole,
    "weight": float,
}
_NAMES: Final = ("id", "text", "speaker", "label", "language", "domain")
_SEPARATOR = re.compile(r"[\s-]+")
# SpeechBrain's place of the corpus: $data_folder, {data_root}, ${root}
_DATA_ROOT = re.compile(r"^(\$\w*(root|folder|dir|path)|\$?\{\w*(root|folder|dir|path)\})/+", re.IGNORECASE)
_SPAN: Final[Mapping[str, str]] = {"from": "start_s", "to": "end_s"}
"""Names that are a start and an end only together, with numbers below them."""
_DECIMAL = re.compile(r"^\d+([.,]\d+)?$")
_DECIMAL_COMMA = re.compile(r"^\d+,\d+$")
_TIME_NAME = re.compile(
    r"(^|[_\W])(start|begin|from|to|onset|end|stop|offset|dur|duration|length|timestamps?|time)([_\W]|$)", re.IGNORECASE
)
_TIME_VALUE = re.compile(r"^\d+([.,:]\d+)*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Columns that the user names; the others are found by the table of synonyms.

    Attributes:
        audio: Column of the audio's path.
        text: Column of the transcript.
        decimal_comma: Whether `1,5` is a number, as in tables of many locales.
    """

    audio: str | None = None
    text: str | None = None
    decimal_comma: bool = False

    def match(self, present: Collection[str]) -> dict[str, str]:
        """Their name -> ours, for the columns that are known.

        Raises:
            RefusedError: A column that the user named is not there.
        """
        # Of two columns for one thing the better name wins; of two spellings of a name, the first.
        by_folded = {_folded(name): name for name in reversed(list(present))}
        matched: dict[str, str] = {}
        for column, given in (("path", self.audio), ("text", self.text)):
            if given is not None:
                if given not in present:
                    raise RefusedError(
                        f"there is no column {given!r}",
                        found=", ".join(map(repr, present)) or "no columns",
                        allowed="one of them",
                        do=f"Name another one{suggest(given, present)}".rstrip("?.") + ".",
                    )
                matched[given] = column
        synonyms = dict(SYNONYMS)
        if "onset" in by_folded and "offset" in by_folded:  # the words of sound event detection, for start and end
            synonyms |= {"start_s": ("onset",), "end_s": ("offset",)}
        for column, names in synonyms.items():
            if column in matched.values():
                continue
            name = next((by_folded[name] for name in names if by_folded.get(name, "") not in {"", *matched}), None)
            if name is not None:
                matched[name] = column
        return matched

    def match_values(self, source: Mapping[str, Any]) -> dict[str, str]:
        """As `match`, with the names that are known only by what stands below them.

        Raises:
            RefusedError: A column that the user named is not there.
        """
        matched = self.match(source)
        # SpeechBrain calls a transcript `words` or `wrd`, and beside it a duration `length`.
        if isinstance(source.get("words"), str) and "text" not in matched.values():
            matched["words"] = "text"
        if matched.keys() & {"words", "wrd"} and "duration_s" not in matched.values() and "length" in source:
            matched["length"] = "duration_s"
        if not {"start_s", "end_s"} & set(matched.values()):
            span = {_SPAN[_folded(name)]: name for name in source if _folded(name) in _SPAN}
            if len(span) == len(_SPAN) and all(_is_time(source[name]) for name in span.values()):
                matched |= {name: column for column, name in span.items()}
        return matched

    def record(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """A record of theirs with the names and kinds of values that a manifest has.

        Raises:
            RefusedError: A number is no number, an end is not behind its start, or a named column is missing.
        """
        matched = self.match_values(source)
        taken = {*matched.values(), *(name for name in NOT_OURS if not _is_timed(source.get(name)))}
        record = {
            matched.get(name, f"source_{name}" if name in taken else name): value for name, value in source.items()
        }
        for name in _NAMES:
            if isinstance(record.get(name), int) and not isinstance(record[name], bool):
                record[name] = str(record[name])
        for name, kind in _NUMBERS.items():
            if isinstance(value := record.get(name), str):
                record[name] = self._number(name, value, kind)
        if isinstance(path := record.get("path"), str):
            record["path"] = _DATA_ROOT.sub("", path)
        if (end_s := record.pop("end_s", None)) is not None:
            record["duration_s"] = _duration_s(record.get("start_s") or 0.0, end_s)
        return record

    def _number(self, name: str, value: str, kind: Callable[[str], float]) -> float:
        text = value.strip()
        if self.decimal_comma and _DECIMAL_COMMA.match(text):
            text = text.replace(",", ".")
        try:
            return kind(text)
        except ValueError:
            raise RefusedError(
                f"the column {name!r} is not a number",
                found=show(value),
                allowed="a plain number" + (" of seconds" if name.endswith("_s") else ""),
                do="Mend or empty the cell.",
            ) from None


def _folded(name: str) -> str:
    return _SEPARATOR.sub("_", name.casefold())


def _is_time(value: object) -> bool:
    if isinstance(value, str):
        return _DECIMAL.match(value.strip()) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_timed(words: object) -> bool:
    return isinstance(words, list) and all(
        isinstance(word, dict) and {"text", "start_s"} <= set(word) for word in words
    )


def _duration_s(start_s: object, end_s: object) -> float:
    if not (isinstance(start_s, int | float) and isinstance(end_s, int | float) and 0 <= start_s < end_s < 1e9):
        raise RefusedError(
            "the end of the clip is not behind its start",
            found=f"{show(start_s, 40)} to {show(end_s, 40)}",
            allowed="seconds from the start of the file, the end above the start",
            do="Mend the times.",
        )
    return end_s - start_s


def is_name_of(column: str, name: str) -> bool:
    """Whether another tool's name of a column stands for one of ours."""
    return _folded(name) in SYNONYMS[column]


def may_be_text(name: str) -> bool:
    """Whether a column that is not used has a name for transcripts."""
    return is_name_of("text", name.removeprefix("source_"))


def looks_like_time(name: str, value: str) -> bool:
    """Whether a column that is not used could be a start, an end or a length."""
    return bool(_TIME_NAME.search(name)) and len(value) <= 40 and bool(_TIME_VALUE.match(value.strip()))
