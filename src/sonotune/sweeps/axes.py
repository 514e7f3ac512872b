"""What varies in a sweep: one axis for each setting, read from words such as `adapter.rank=4,8,16`.

A value is text, exactly as the word of a trial has it. The grammar is that of the command line with two additions:
commas outside brackets and quotes part values, and `LOW:HIGH` is a range where a setting takes numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sonotune.errors import ConfigError

MAX_VALUES: Final = 1000
"""Of one axis."""
_OPENING, _CLOSING, _QUOTES, _BEFORE_QUOTES = "[{(", "]})", "'\"", "[{(,:"
_NUMBER: Final = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE: Final = re.compile(
    rf"(?P<low>{_NUMBER}):(?P<high>{_NUMBER})(?::(?:(?P<log>log)(?::(?P<points>\d+))?|(?P<step>{_NUMBER})))?"
)
_FORMS: Final = "LOW:HIGH, LOW:HIGH:STEP, LOW:HIGH:log or LOW:HIGH:log:POINTS"
_MAX_STEPS: Final = 64
"""Whole numbers of a range that a grid tries without being told a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A range of numbers.

    Attributes:
        low: Smallest value.
        high: Largest value.
        integer: Whether the setting takes whole numbers alone.
        log: Whether values are spread evenly over the logarithm.
        step: Distance of neighbours; None for none.
        points: Number of values, for a logarithmic range; None for any.
    """

    low: float
    high: float
    integer: bool = False
    log: bool = False
    step: float | None = None
    points: int | None = None

    def listed(self) -> tuple[str, ...]:
        """The values where there is a limited number of them; nothing where there is not."""
        found: NDArray[np.floating[Any]]
        if self.points is not None:
            found = np.geomspace(self.low, self.high, self.points)
        elif self.step is not None:
            count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
            found = self.low + self.step * np.arange(count, dtype=np.float64)
        elif self.integer and not self.log and self.high - self.low < _MAX_STEPS:
            found = np.arange(self.low, self.high + 1, dtype=np.float64)
        else:
            return ()
        return tuple(dict.fromkeys(self.show(float(value)) for value in found))

    def draw(self, rng: np.random.Generator) -> str:
        """A value, uniform in the range or in its logarithm."""
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low - 0.5, self.high + 0.5) if self.integer else rng.uniform(self.low, self.high)
        return self.show(min(max(value, self.low), self.high))

    def show(self, value: float) -> str:
        """A value as a word has it: four digits, unless they would leave the range."""
        if self.integer:
            return str(round(value))
        text = f"{value:.4g}"
        return text if self.low <= float(text) <= self.high else repr(float(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One thing that varies.

    Attributes:
        name: The setting, preset group or choice.
        text: Its values as they were written.
        values: All values, where they are limited in number; else nothing.
        span: The range they are of, if they are.
        choice: Label -> words, where a value stands for words.
    """

    name: str
    text: str
    values: tuple[str, ...] = ()
    span: Span | None = None
    choice: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def ends(self) -> tuple[str, ...]:
        """Values that are checked before any trial: all, or the ends of a range."""
        if self.values or self.span is None:
            return self.values
        return (self.span.show(self.span.low), self.span.show(self.span.high))

    def draw(self, rng: np.random.Generator) -> str:
        """One value by chance."""
        if self.values or self.span is None:
            return self.values[int(rng.integers(len(self.values)))]
        return self.span.draw(rng)


def split_values(text: str) -> list[str]:
    """Parts between commas that stand in no bracket and in no quotes.

    Raises:
        ConfigError: A bracket or a quotation is not closed.
    """
    parts, depth, quote, begin = [], 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in _QUOTES and text[:place].rstrip()[-1:] in ("", *_BEFORE_QUOTES):
            quote = letter  # an apostrophe within a word opens nothing
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[begin:place].strip())
            begin = place + 1
    if quote or depth:
        raise ConfigError(f"{text!r:.120}: a {'quotation' if quote else 'bracket'} is not closed.")
    return [*parts, text[begin:].strip()]


def parse_axis(name: str, text: str, *, numbers: bool, integer: bool) -> Axis | None:
    """The axis of a word; None where the word has one value.

    Args:
        name: What is before the equals sign.
        text: What is behind it.
        numbers: Whether the setting takes numbers, so that `LOW:HIGH` is a range.
        integer: Whether it takes whole numbers alone.

    Raises:
        ConfigError: A range is wrong, a value is empty or given twice, or there are too many.
    """
    if numbers and (found := _RANGE.fullmatch(text.strip())) is not None:
        span = _span(name, text, found.groupdict(), integer=integer)
        return Axis(name=name, text=text, values=span.listed(), span=span)
    values = [_unquoted(part) for part in split_values(text)]
    if len(values) == 1:
        if numbers and ":" in text and not text.startswith(("{", "[")):
            raise ConfigError(f"{name}={text}: {text!r:.60} is no range; a range is {_FORMS}.")
        return None
    return Axis(name=name, text=text, values=_checked(name, values))


def choice_axis(name: str, labels: Mapping[str, Sequence[str]]) -> Axis:
    """An axis whose values stand for words.

    Raises:
        ConfigError: A choice is of one label, or has something that is no word.
    """
    for label, words in labels.items():
        if wrong := [word for word in words if not word.partition("=")[1] or word.startswith(("sweep", "run.dir="))]:
            raise ConfigError(f"sweep.choices: {wrong[0]!r} of {name}={label} is not of the form SETTING=VALUE.")
    values = _checked(name, list(labels))
    return Axis(
        name=name,
        text=",".join(values),
        values=values,
        choice=MappingProxyType({label: tuple(words) for label, words in labels.items()}),
    )


def single_value(text: str) -> str:
    """The text of a word of one value, without the quotes that keep its commas together."""
    return _unquoted(text) if "," in text else text


def _unquoted(part: str) -> str:
    quoted = len(part) >= 2 and part[0] in _QUOTES and part[-1] == part[0]
    return part[1:-1] if quoted else part


def _checked(name: str, values: Sequence[str]) -> tuple[str, ...]:
    if "" in values:
        raise ConfigError(f"{name}: an empty value between commas; found {','.join(values)!r:.120}.")
    if repeated := [value for value in values if values.count(value) > 1]:
        raise ConfigError(f"{name}: the value {repeated[0]!r} stands twice; keep one of them.")
    if len(values) > MAX_VALUES:
        raise ConfigError(f"{name} has {len(values):,} values; at most {MAX_VALUES:,} are allowed. Write a range.")
    return tuple(values)


def _span(name: str, text: str, parts: Mapping[str, str | None], *, integer: bool) -> Span:
    low, high = float(parts["low"] or 0), float(parts["high"] or 0)
    step = None if parts["step"] is None else float(parts["step"])
    points = None if parts["points"] is None else int(parts["points"])
    problem = None
    if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
        problem = "a range rises from a smaller number to a larger one"
    elif integer and any(value != round(value) for value in (low, high, step or 0)):
        problem = "this setting takes whole numbers alone"
    elif parts["log"] and low <= 0:
        problem = "a logarithmic range begins above 0"
    elif step is not None and not 0 < step <= high - low:
        problem = "the step of a range is above 0 and no longer than the range"
    elif (points is not None and not 2 <= points <= MAX_VALUES) or (step and (high - low) / step >= MAX_VALUES):
        problem = f"a range has 2 to {MAX_VALUES:,} values"
    if problem is not None:
        raise ConfigError(f"{name}={text}: {problem}. Ranges are {_FORMS}.")
    return Span(low=low, high=high, integer=integer, log=bool(parts["log"]), step=step, points=points)
