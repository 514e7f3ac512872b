"""Scores in words: the one place that turns the JSON form of a score (`types.Score.to_json`) into text.

A score says of itself what it is called, in which unit it is, which direction is better and whether it decides; nothing
is guessed from its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from sonotune.types import Score

Scores = Mapping[str, Mapping[str, Any]]
"""Name -> score in JSON form."""
Change = Literal["better", "worse", "none"]


_BEFORE_TITLES = {
    "wer_loops_cut": ("WER with loops cut", "beside"),
    "wer_numbers_verbalized": ("WER with numbers as words", "beside"),
    "f1_macro": ("Macro F1", "plain"),
    "map": ("mAP", "plain"),
}
"""Titles and roles in records from before scores had them."""


WORSE: Final = "training.worse"
"""The finding of a run whose model is worse than before it was trained, by the score that decides."""


def _role(name: str, score: Mapping[str, Any]) -> str:
    return str(score.get("role") or ("plain" if "title" in score else _BEFORE_TITLES.get(name, ("", "plain"))[1]))


def score_title(name: str, score: Mapping[str, Any] | None = None) -> str:
    """What people call a score; a record from before scores had titles gives the name in capitals."""
    written = (score or {}).get("title")
    if written or name in _BEFORE_TITLES:
        return str(written or _BEFORE_TITLES[name][0])
    return name.upper() if len(name) <= 4 else name.replace("_", " ").capitalize()


def in_percent(score: Mapping[str, Any]) -> bool:
    """Whether it is a fraction, which is shown in per cent."""
    return bool(score.get("unit", "fraction") == "fraction")


def shown_number(score: Mapping[str, Any], number: float) -> float:
    """A value of a score, or a difference of two, in the unit in which it is shown: fractions in per cent."""
    return 100 * number if in_percent(score) else number


def shown_unit(score: Mapping[str, Any], *, difference: bool = False) -> str:
    """The unit in which a score is shown, or a difference of two of them; empty where it has none."""
    if in_percent(score):
        return "points" if difference else "%"
    return str(score["unit"])


def show_value(score: Mapping[str, Any], key: str = "value", *, digits: int = 1) -> str:
    """A score, or an end of its interval, with its unit."""
    return f"{_rounded(score, float(score[key]), digits)} {shown_unit(score)}".rstrip()


def show_change(score: Mapping[str, Any], change: float, *, digits: int = 1) -> str:
    """A difference of two values of a score, with its sign and unit: `+1.2 points`."""
    return f"{show_signed(score, change, digits=digits)} {shown_unit(score, difference=True)}".rstrip()


def show_signed(score: Mapping[str, Any], change: float, *, digits: int = 1) -> str:
    """The same without its unit."""
    return _rounded(score, change, digits, sign="+").replace("-", "\u2212")


def _rounded(score: Mapping[str, Any], number: float, digits: int, sign: str = "") -> str:
    """In the unit in which it is shown; a score without one, such as a perplexity of 1.33, has two digits at least."""
    least = digits if in_percent(score) or score["unit"] else 2
    return f"{shown_number(score, number):{sign}.{max(digits, least)}f}"


def show_score(score: Mapping[str, Any] | None, *, digits: int = 1) -> str:
    """A score with its interval, and how many texts loop where some do: `12.3 % [10.0, 14.5]`."""
    if score is None:
        return "-"
    low, high = (_rounded(score, float(score[end]), digits) for end in ("low", "high"))
    return f"{show_value(score, digits=digits)} [{low}, {high}]"


def decoding_note(score: Mapping[str, Any]) -> str:
    """How many texts of a rate loop or were cut, and what was written on silence, for the end of its line."""
    detail, clips = score.get("detail", {}), score["count"]
    note = ""
    for name, verb in (("loops", "loop"), ("cut", "end at their limit of tokens")):
        if count := int(detail.get(name, 0)):
            note += f", {count} of {clips} texts {verb} ({100 * count / clips:.1f} %)"
    if silent := int(detail.get("silent_clips", 0)):
        note += f", {silent} clips without words, {int(detail['silent_words'])} words written on them"
    return note


NUMBERS_VERBALIZED: Final = "wer_numbers_verbalized"
"""Name of the word error rate of texts whose numbers are written as words."""
_LEAST_POINTS: Final = 0.05
"""Percentage points below which a change is shown as none."""


def spelling_of_numbers(before: Scores, after: Scores) -> str | None:
    """How much of a change of the word error rate is the spelling of numbers, as a sentence; None where nothing is.

    A moment without the score with numbers as words has no clip with digits on one side only: the score would be its
    word error rate.
    """
    if "wer" not in before or "wer" not in after or not (NUMBERS_VERBALIZED in before or NUMBERS_VERBALIZED in after):
        return None
    was, now = (scores.get(NUMBERS_VERBALIZED, scores["wer"]) for scores in (before, after))
    whole = 100 * (after["wer"]["value"] - before["wer"]["value"])
    spelling = whole - 100 * (now["value"] - was["value"])
    if abs(spelling) < _LEAST_POINTS:
        return None
    told = (
        f"Of the change of {whole:+.1f} points of WER, {spelling:+.1f} points are the spelling of numbers: with "
        f"numbers as words, WER was {show_value(was)} before training and is {show_value(now)} after it."
    )
    return told.replace("-", "\u2212")


def better_sign(better: str) -> int:
    """What makes the better of two scores the smaller: 1 where lower is better, -1 where higher is."""
    return 1 if better == "lower" else -1


def change_of(difference: Mapping[str, Any]) -> Change:
    """Whether a paired difference in JSON form is to the better or the worse; `none` where its interval holds 0."""
    if difference["low"] <= 0 <= difference["high"]:
        return "none"
    return "better" if (difference["low"] < 0) == (difference["better"] == "lower") else "worse"


def primary_score(scores: Scores) -> str | None:
    """Name of the score that decides: the one that says so, else, in an older record, the first."""
    marked = next((name for name, score in scores.items() if _role(name, score) == "primary"), None)
    return marked or next(iter(scores), None)


def deciding(scores: Mapping[str, Score]) -> str:
    """Name of the score that decides, of scores that a task has given."""
    return next(name for name, score in scores.items() if score.role == "primary")


def drawn_scores(scores: Scores) -> tuple[str, ...]:
    """Names of the scores that reports draw, the one that decides first; what stands beside another is left out."""
    first = primary_score(scores)
    others = (name for name, score in scores.items() if name != first and _role(name, score) != "beside")
    return () if first is None else (first, *others)
