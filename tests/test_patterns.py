"""Regular expressions that somebody else wrote are tried where they can be stopped."""

from __future__ import annotations

import time

import pytest

from sonotune.patterns import Try, ends_in_time, problem_of


@pytest.mark.parametrize("pattern", ["(", "a{9999999999999999}", "[", "a" * 20_000])
def test_what_is_none(pattern: str):
    assert problem_of(pattern)


@pytest.mark.parametrize("pattern", ["", "whatsapp", r"(?<![a-z])kan(?![a-z])", "[[a]", "שלום.*"])
def test_what_is_one(pattern: str):
    assert problem_of(pattern) is None


def test_usual_ones_come_to_an_end():
    texts = ["a" * 1000, "\udcff", "שלום", ""]
    assert ends_in_time([([Try("search", "a+b"), Try("fullmatch", ".*")], texts), ([], texts)])
    assert ends_in_time([])


def test_one_without_end_is_stopped():
    started = time.monotonic()
    assert not ends_in_time([([Try("search", "(a+)+b")], ["a" * 60])], seconds=0.5)
    assert time.monotonic() - started < 5


def test_one_that_is_no_pattern_does_not_pass():
    assert not ends_in_time([([Try("search", "(")], ["a"])])
