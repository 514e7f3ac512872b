"""YAML 1.2 scalars, and what is refused."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.config.plain_yaml import parse_yaml, read_yaml, write_yaml
from sonotune.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("y", "y"),
        ("010", "010"),
        ("0o17", "0o17"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-31", "2024-01-31"),
        ("=", "="),
        ("<<", "<<"),
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("0", 0),
        ("-7", -7),
        ("true", True),
        ("False", False),
        ("", None),
        ("~", None),
        ("null", None),
        ("'null'", "null"),
        ("[yes, no, 1]", ["yes", "no", 1]),
        ("{a: 1, b: {c: no}}", {"a": 1, "b": {"c": "no"}}),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
    ],
)
def test_scalars(text, value):
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


def test_infinity_is_a_number_here_and_refused_by_the_schema():
    assert parse_yaml(".inf") == float("inf")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the name 'a' stands twice"),
        ("1: x", "the name 1 is not text"),
        ("? [a]\n: b", "is not text"),
        ("a: !!python/object/apply:os.system [ls]", "line 1, column 4: the tag .* is not allowed"),
        ("!!str 1", "the tag"),
        ("!x 1", "the tag"),
        ("a: !!binary aGk=", "the tag"),
        ("a: &x 1\nb: *x", "anchors"),
        ("*x", "aliases"),
        ("a:\n\tb: 1", "line 2, column 1: not readable as YAML"),
        ("a: [1, 2", "not readable as YAML"),
        ("a: 'x", "not readable as YAML"),
        ("a: b: c", "line 1, column 5"),
        ("a: 1\n---\nb: 2", "not readable as YAML"),
        ("a: \x00", "character 4"),
        ("9" * 5000, "digits"),
    ],
)
def test_refusals_name_the_place(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_yaml(text, where="run.yaml")
    assert str(caught.value).startswith("run.yaml")


BOMBS = {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "flow depth": "[" * 200_000,
    "mapping depth": "".join(f"{' ' * i}a:\n" for i in range(1000)),
    "values": "[" + "1," * 400_000 + "]",
    "size": "a" * 1_000_001,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_quickly_and_in_little_memory(name):
    started = time.process_time()
    with pytest.raises(ConfigError):
        parse_yaml(BOMBS[name])
    assert time.process_time() - started < 1
    tracemalloc.start()  # by itself, because it slows things down
    try:
        with pytest.raises(ConfigError):
            parse_yaml(BOMBS[name])
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_depth_and_number_of_values_have_room_for_real_settings():
    assert parse_yaml("[" * 15 + "]" * 15) is not None
    assert len(parse_yaml("[" + "1," * 4000 + "]")) == 4000


def test_files(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes("﻿a: שלום\r\nb: 1\r\n".encode())
    assert read_yaml(path) == {"a": "שלום", "b": 1}
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError, match=r"run\.yaml, line 2: not UTF-8"):
        read_yaml(path)
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigError, match="more than 1000000 bytes"):
        read_yaml(path)
    path.write_text("a: [")
    with pytest.raises(ConfigError, match=r"run\.yaml, line 1"):
        read_yaml(path)
    with pytest.raises(ConfigError, match="not a regular file"):
        read_yaml(tmp_path)
    with pytest.raises(ConfigError, match="not there"):
        read_yaml(tmp_path / "nowhere.yaml")


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False)
    | st.text(max_size=12)
    | st.sampled_from(
        ["no", "1e-4", "010", "0o7", "1_0", ".5", "~", "true", "12:30", "<<", "=", "- a", "a: b", "1e5", ""]
    ),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.text(max_size=6), child, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(plain)
def test_what_is_written_reads_back_the_same(value):
    found = parse_yaml(write_yaml(value))
    assert found == value
    assert repr(found) == repr(value)  # 1 is not 1.0 and not True
