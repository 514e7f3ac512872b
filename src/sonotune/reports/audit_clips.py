"""What the page of an audit shows of single clips: their sound, waveform, words and spans, and what the model wrote.

It reads `clips.jsonl` of the audit's folder and the audio that its lines name. All text is data, to be escaped by the
page. A clip whose audio is gone is shown without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, NotRequired

import numpy as np
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from sonotune.audio.io import Waveform
from sonotune.audit.record import CLIPS_FILE, SpanEntries, WordEntries
from sonotune.audit.scores import LOW_POSTERIOR, STATISTICS
from sonotune.errors import ManifestError
from sonotune.json_files import Count, Number, read_json_lines
from sonotune.metrics.error_rate import AlignedWord, align_words
from sonotune.reports.canvas import count_letters, elide
from sonotune.reports.sound import SOUND_RATE_HZ, data_address, encode_sound, read_span
from sonotune.reports.spectrogram import spectrogram_address
from sonotune.wording import long_time

MAX_SOUND_S: Final = 20.0
"""Of a longer clip, so much around its worst span is embedded."""
MAX_WORDS: Final = 400
"""Words of a text that are shown and compared."""
MAX_CHARACTERS: Final = 4_000
MAX_UNALIGNED: Final = 100
"""Clips that could not be aligned, as many as are listed."""

_DO: Final = "An audit writes this file whole: something else changed it. Audit again with `sonotune audit`."
_COLUMNS: Final = 600
_HEIGHT: Final = 80
_SMALLEST_PEAK: Final = 0.02  # quieter recordings are drawn small, so that noise does not look like speech
_LETTER_PX: Final = 8.0
_WORD_ROWS: Final = 3
_MAX_WORD_LETTERS: Final = 24
_PX_PER_S: Final = (50.0, 260.0)  # so wide is a second drawn, at least and at most
_MIN_WIDTH_PX: Final = 300.0

Span = tuple[float, float]


_Seconds = Annotated[Number, Field(ge=0)]


class ReasonLine(TypedDict):
    """Why a clip was flagged (`audit.scores.Reason`)."""

    code: str
    statistic: str
    value: Number | None
    threshold: Number | None
    spans: list[SpanEntries]


class ClipLine(TypedDict):
    """A line of `clips.jsonl`, as far as it is read (`audit.run.Audited.to_json`)."""

    id: str
    path: str
    start_s: _Seconds
    duration_s: _Seconds
    text: str | None
    stratum: str
    low_quality: bool
    reasons: list[ReasonLine]
    notes: list[str]
    check: str
    problem: str
    channel: NotRequired[Count | None]
    language: NotRequired[str]
    domain: NotRequired[str]
    speaker: NotRequired[str]
    scores: NotRequired[dict[str, Any]]
    words: NotRequired[list[WordEntries]]
    transcript: NotRequired[str]


_LINE: Final[TypeAdapter[ClipLine]] = TypeAdapter(ClipLine)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipLines:
    """What is kept of `clips.jsonl`, in its order, which is the worst first.

    Attributes:
        worst: Clips that were aligned, the first ones.
        unaligned: Clips that could not be, the first ones.
        aligned: How many were aligned in all.
        failed: How many could not be.
    """

    worst: tuple[ClipLine, ...]
    unaligned: tuple[ClipLine, ...]
    aligned: int
    failed: int


def read_clips(folder: Path, *, worst: int) -> ClipLines:
    """Read `clips.jsonl`, every line of it checked.

    Args:
        folder: Of the audit.
        worst: Aligned clips that are kept.

    Raises:
        ManifestError: The file cannot be read, or a line is damaged; names the file and the line.
    """
    kept: list[ClipLine] = []
    unaligned: list[ClipLine] = []
    aligned = failed = 0
    for line in read_json_lines(folder / CLIPS_FILE, _LINE, error=ManifestError, do=_DO):
        if "scores" in line:
            aligned += 1
            if len(kept) < worst:
                kept.append(line)
        else:
            failed += 1
            if len(unaligned) < MAX_UNALIGNED:
                unaligned.append(line)
    return ClipLines(worst=tuple(kept), unaligned=tuple(unaligned), aligned=aligned, failed=failed)


class Part(NamedTuple):
    """The part of a clip that is heard and drawn, in seconds from the beginning of the clip."""

    start_s: float
    end_s: float


def clip_views(lines: Sequence[ClipLine], *, scoring: Callable[[str], str]) -> Iterator[dict[str, Any]]:
    """What the page shows of clips, one at a time, for each holds its sound.

    Args:
        lines: Of `clips.jsonl`.
        scoring: Gives the form in which texts are compared.
    """
    for line in lines:
        part = heard_part(line)
        waveform_S, problem = _heard(line, part)
        yield {
            "id": line["id"],
            "facts": clip_facts(line),
            "text": shortened_text(line["text"] or ""),
            "flagged": line["low_quality"],
            "reasons": [_reason(one) for one in line["reasons"]],
            "notes": line["notes"],
            "compared": _compared(line, scoring),
            "cut": _cut_note(line, part),
            "sound": None if waveform_S is None else data_address(encode_sound(waveform_S)),
            "silence": problem,
            "wave": _wave(line, part, waveform_S),
        }


def sound_of(line: ClipLine) -> str | None:
    """The sound of a clip as an address of a page; None where there is none, or too little of it."""
    waveform_S, _ = _heard(line, heard_part(line))
    return None if waveform_S is None else data_address(encode_sound(waveform_S))


def clip_facts(line: ClipLine) -> str:
    """What is known of a clip, in words."""
    named = [line["stratum"], line.get("language"), line.get("domain"), line.get("speaker")]
    where = [f"from {_clock(line['start_s'])} of its file"] if line["start_s"] else []
    known = dict.fromkeys(elide(name, 60) for name in named if name)  # a stratum is often a domain or a language
    return " · ".join([long_time(line["duration_s"]), *known, *where])


def shortened_text(text: str) -> str:
    """A transcript as it is given, without the rest of a very long one."""
    rest = len(text) - MAX_CHARACTERS
    return text if rest <= 0 else f"{text[:MAX_CHARACTERS]} [… {rest:,} more characters]"


def heard_part(line: ClipLine) -> Part:
    """All of a short clip, else `MAX_SOUND_S` around the first span that looks wrong, or its beginning."""
    duration_s = line["duration_s"]
    if duration_s <= MAX_SOUND_S:
        return Part(0.0, duration_s)
    spans = [span for reason in line["reasons"] for span in reason["spans"]]
    middle = sum(spans[0]) / 2 if spans else 0.0
    start_s = min(max(middle - MAX_SOUND_S / 2, 0.0), duration_s - MAX_SOUND_S)
    return Part(start_s, start_s + MAX_SOUND_S)


def show_statistic(name: str, value: float | None) -> str:
    """A statistic of `audit.scores` with its unit."""
    if value is None:
        return "unknown"
    unit = _UNITS.get(name, "")
    if unit == "%":
        return f"{100 * value:.1f} %"
    return f"{value:.2f}{unit and ' '}{unit}".replace("-", "\u2212")


_UNITS: Final[Mapping[str, str]] = {
    "min_window_llr": "nats",
    "mean_llr": "nats a token",
    "mean_log_probability": "nats",
    "min_window_log_probability": "nats",
    "token_posterior": "%",
    "low_token_share": "%",
    "coverage": "%",
    "longest_unaligned_s": "s",
    "total_unaligned_s": "s",
    "rate_deviation": "deviations",
    "cer": "%",
    "unknown_share": "%",
}


def statistic_title(name: str) -> str:
    """What a statistic is called on the page."""
    return STATISTIC_TITLES.get(name, name)


STATISTIC_TITLES: Final[Mapping[str, str]] = {
    "unaligned": "not aligned",
    "min_window_llr": "log-likelihood ratio of the worst window",
    "mean_llr": "mean log-likelihood ratio",
    "mean_log_probability": "mean log-probability",
    "min_window_log_probability": "log-probability of the worst window",
    "token_posterior": "mean probability of its tokens",
    "low_token_share": "share of improbable tokens",
    "coverage": "share of the speech under words",
    "longest_unaligned_s": "longest speech without words",
    "total_unaligned_s": "all speech without words",
    "rate_deviation": "distance of the speaking rate from the median",
    "cer": "character error rate of what the model writes",
    "unknown_share": "share of characters that the model does not know",
}


# --- text ----------------------------------------------------------------------------------------------------------


def _reason(reason: ReasonLine) -> dict[str, Any]:
    name = reason["statistic"]
    allowed = ""
    if reason["threshold"] is not None:
        least = STATISTICS.get(name) == "higher"
        allowed = f"{'at least' if least else 'at most'} {show_statistic(name, reason['threshold'])}"
    value = None if reason["value"] is None else show_statistic(name, reason["value"])
    where = ", ".join(f"{_clock(start)} to {_clock(end)}" for start, end in reason["spans"])
    return {"code": reason["code"], "title": statistic_title(name), "value": value, "allowed": allowed, "where": where}


def _compared(line: ClipLine, scoring: Callable[[str], str]) -> dict[str, Any] | None:
    """The words of both texts side by side, in the form that is scored; None where the model wrote nothing to compare.

    Of long texts the first words are compared, for the time that it takes grows with the product of their lengths.
    """
    transcript = line.get("transcript")
    if transcript is None:
        return None
    given, written = (scoring(text).split() for text in (line["text"] or "", transcript))
    words: list[AlignedWord] = align_words(
        " ".join(elide(word, MAX_CHARACTERS) for word in given[:MAX_WORDS]),
        " ".join(elide(word, MAX_CHARACTERS) for word in written[:MAX_WORDS]),
    )
    return {
        "words": words,
        "same": given == written,
        "nothing": not written,
        "left_out": max(0, max(len(given), len(written)) - MAX_WORDS),
    }


def _cut_note(line: ClipLine, part: Part) -> str:
    if part.end_s - part.start_s >= line["duration_s"]:
        return ""
    return (
        f"Heard and drawn are {_clock(part.start_s)} to {_clock(part.end_s)} of its {long_time(line['duration_s'])}, "
        f"{'around what looks wrong' if any(reason['spans'] for reason in line['reasons']) else 'its beginning'}."
    )


def _clock(seconds: float) -> str:
    """A moment: `3.2 s`, or `12:05.0` from a minute on."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    tenths = round(10 * seconds)
    return f"{tenths // 600}:{tenths % 600 / 10:04.1f}"


# --- sound and picture ---------------------------------------------------------------------------------------------


def _heard(line: ClipLine, part: Part) -> tuple[Waveform | None, str]:
    """The samples, or why there are none."""
    return read_span(
        Path(line["path"]),
        start_s=line["start_s"] + part.start_s,
        duration_s=part.end_s - part.start_s,
        channel=line.get("channel"),
    )


def _wave(line: ClipLine, part: Part, waveform_S: Waveform | None) -> dict[str, Any]:
    """Peaks as the path of an SVG, and words and spans placed in per cent of its width."""
    seconds = max(part.end_s - part.start_s, 1e-3)

    def place(start_s: float, end_s: float) -> tuple[float, float] | None:
        """Left edge and width; None of what lies outside."""
        left, right = (min(max((at - part.start_s) / seconds, 0.0), 1.0) for at in (start_s, end_s))
        inside = start_s < part.end_s and end_s > part.start_s
        return (100 * left, 100 * max(right - left, 0.0)) if inside else None

    inside = [(word, at) for word in line.get("words", ()) if (at := place(word[1], max(word[2], word[1] + 1e-3)))]
    width_px = _width_px([(elide(word[0], _MAX_WORD_LETTERS), at[0]) for word, at in inside], seconds)
    ends_px = [-math.inf] * _WORD_ROWS
    words: list[dict[str, Any]] = []
    for (text, _, _, score), (left, width) in inside[:MAX_WORDS]:
        shown = elide(text, _MAX_WORD_LETTERS)
        left_px = left / 100 * width_px
        row = next((row for row, end in enumerate(ends_px) if end <= left_px), int(np.argmin(ends_px)))
        ends_px[row] = left_px + _LETTER_PX * (count_letters(shown) + 1)
        low = score is not None and score < LOW_POSTERIOR
        words.append({"text": shown, "left": left, "width": width, "row": row, "score": score, "low": low})
    spans = {span for reason in line["reasons"] for span in map(tuple, reason["spans"])}
    step = next(step for step in (0.5, 1, 2, 5) if seconds / step <= 10 or step == 5)
    ticks = [index * step for index in range(1 + int(part.end_s / step)) if index * step >= part.start_s]
    return {
        "path": None if waveform_S is None else _peaks(waveform_S),
        "spectrogram": None if waveform_S is None else spectrogram_address(waveform_S, SOUND_RATE_HZ),
        "width": round(width_px),
        "rows": 1 + max((word["row"] for word in words), default=-1),
        "words": words,
        "spans": [at for span in sorted(spans) if (at := place(*span))],
        "ticks": [(at[0], _clock(tick)) for tick in ticks if (at := place(tick, tick + 1e-3)) and at[0] < 97],
    }


def _width_px(words: Sequence[tuple[str, float]], seconds: float) -> float:
    """So wide that words, in their rows, have room: a second is drawn wider where people speak fast."""
    letters = sum(count_letters(text) + 1 for text, _ in words)
    wanted = _LETTER_PX * letters / _WORD_ROWS * 1.25
    least, most = (rate * seconds for rate in _PX_PER_S)
    return max(_MIN_WIDTH_PX, min(max(wanted, least), most))


def _peaks(waveform_S: Waveform) -> str:
    """The lowest and highest sample of each column, as vertical lines in a box of `_COLUMNS` by `_HEIGHT`."""
    columns = min(_COLUMNS, waveform_S.size)
    starts = np.arange(columns) * waveform_S.size // columns
    scale = (_HEIGHT / 2 - 1) / max(float(np.abs(waveform_S).max()), _SMALLEST_PEAK)
    tops = _HEIGHT / 2 - scale * np.maximum.reduceat(waveform_S, starts) - 0.5
    bottoms = _HEIGHT / 2 - scale * np.minimum.reduceat(waveform_S, starts) + 0.5
    return "".join(
        f"M{_COLUMNS * (index + 0.5) / columns:g} {top:.1f}V{bottom:.1f}"
        for index, (top, bottom) in enumerate(zip(tops.tolist(), bottoms.tolist(), strict=True))
    )
