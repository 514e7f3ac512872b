"""Words of a sweep become axes: values, ranges, lists in brackets."""

from __future__ import annotations

import numpy as np
import pytest

from sonotune.errors import ConfigError
from sonotune.sweeps.axes import Axis, choice_axis, parse_axis, single_value, split_values


def axis(text: str, *, numbers: bool = True, integer: bool = False) -> Axis:
    found = parse_axis("a.b", text, numbers=numbers, integer=integer)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2,3", ["1", "2", "3"]),
        ("[a,b],[c]", ["[a,b]", "[c]"]),
        ("{stem: 0.5, encoder: 1},{stem: 1}", ["{stem: 0.5, encoder: 1}", "{stem: 1}"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ('["a,]b", "c"],d', ['["a,]b", "c"]', "d"]),
        ("o'neil.jsonl,b", ["o'neil.jsonl", "b"]),
        ("שלום,עולם", ["שלום", "עולם"]),
        ("", [""]),
    ],
)
def test_commas_part_values_outside_brackets_and_quotes(text: str, parts: list[str]):
    assert split_values(text) == parts


@pytest.mark.parametrize("text", ["[a,b", "'a,b", "{a: 1"])
def test_what_is_not_closed_is_refused(text: str):
    with pytest.raises(ConfigError, match="is not closed"):
        split_values(text)


@pytest.mark.parametrize("text", ["8", "[encoder,fc1]", "{stem: 0.1, encoder: 2}", "'a,b.jsonl'", "folder:clips"])
def test_one_value_is_no_axis(text: str):
    assert parse_axis("a.b", text, numbers=False, integer=False) is None


def test_quotes_keep_a_comma_in_a_value():
    assert single_value("'a,b.jsonl'") == "a,b.jsonl"
    assert single_value("'a'") == "'a'"
    assert axis("'a,b',c", numbers=False).values == ("a,b", "c")


@pytest.mark.parametrize(
    ("text", "integer", "values"),
    [
        ("2:5", True, ("2", "3", "4", "5")),
        ("4:16:4", True, ("4", "8", "12", "16")),
        ("0:0.3:0.1", False, ("0", "0.1", "0.2", "0.3")),
        ("1e-5:1e-3:log:3", False, ("1e-05", "0.0001", "0.001")),
        ("4:64:log:5", True, ("4", "8", "16", "32", "64")),
        ("1:3:log:9", True, ("1", "2", "3")),
        ("-1:1:1", False, ("-1", "0", "1")),
    ],
)
def test_ranges_with_a_number_of_values(text: str, integer: bool, values: tuple[str, ...]):
    assert axis(text, integer=integer).values == values


@pytest.mark.parametrize(("text", "integer"), [("1e-5:1e-3:log", False), ("0:1", False), ("4:64:log", True)])
def test_ranges_without_end_are_drawn_from(text: str, integer: bool):
    made = axis(text, integer=integer)
    assert made.values == ()
    assert made.span is not None
    rng = np.random.default_rng(0)
    drawn = [float(made.draw(rng)) for _ in range(400)]
    assert made.span.low <= min(drawn) <= max(drawn) <= made.span.high
    middle = (made.span.low * made.span.high) ** 0.5 if made.span.log else (made.span.low + made.span.high) / 2
    assert 0.4 < sum(value < middle for value in drawn) / 400 < 0.6
    assert made.ends == (made.span.show(made.span.low), made.span.show(made.span.high))


def test_a_drawn_value_never_leaves_its_range():
    made = axis("0.123456:0.123457")
    assert all(0.123456 <= float(made.draw(np.random.default_rng(seed))) <= 0.123457 for seed in range(50))


@pytest.mark.parametrize(
    ("text", "integer", "says"),
    [
        ("3:1", False, "rises"),
        ("1:1", False, "rises"),
        ("0:1:log", False, "begins above 0"),
        ("-1:1:log", False, "begins above 0"),
        ("0.5:4", True, "whole numbers"),
        ("0:1:2", False, "no longer than the range"),
        ("0:1:0", False, "above 0"),
        ("0:1:0.0001", False, "2 to 1,000 values"),
        ("1:2:log:1", False, "2 to 1,000 values"),
        ("1e400:2e400", False, "rises"),
        ("1:2:linear", False, "is no range"),
        ("1:", False, "is no range"),
        ("1,,2", False, "empty value"),
        ("1,2,1", False, "stands twice"),
    ],
)
def test_wrong_axes_say_what_is_wrong(text: str, integer: bool, says: str):
    with pytest.raises(ConfigError, match=says):
        parse_axis("a.b", text, numbers=True, integer=integer)


def test_too_many_values_are_refused():
    with pytest.raises(ConfigError, match="1,001 values"):
        parse_axis("a.b", ",".join(map(str, range(1001))), numbers=True, integer=True)


def test_a_choice_stands_for_words():
    made = choice_axis("bits", {"4": ["quantization.bits=4", "quantization.double=true"], "16": []})
    assert made.values == ("4", "16")
    assert made.choice["4"] == ("quantization.bits=4", "quantization.double=true")
    with pytest.raises(ConfigError, match="not of the form SETTING=VALUE"):
        choice_axis("bits", {"4": ["quantization.bits"]})
    with pytest.raises(ConfigError, match="not of the form"):
        choice_axis("bits", {"4": ["run.dir=elsewhere"]})
