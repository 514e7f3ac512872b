"""Clips that stand in a corpus twice."""

from __future__ import annotations

from sonotune.audit.duplicates import duplicate_audio, duplicate_texts

LONG = "the quick brown fox jumps over the lazy dog and runs away from the hounds again"


def test_audio():
    assert duplicate_audio({"a": "1", "b": "2", "c": "1", "d": "3", "e": "3"}) == [("a", "c"), ("d", "e")]


def test_long_texts_but_not_short_ones():
    texts = {"a": LONG, "b": LONG.upper() + "!", "c": "yes", "d": "Yes.", "e": LONG.replace("dog", "cat")}
    assert duplicate_texts(texts) == [("a", "b")]
    assert duplicate_texts(texts, min_letters=1) == [("a", "b"), ("c", "d")]
    assert duplicate_texts(texts, near=True) == [("a", "b", "e")]
    assert duplicate_texts({}) == []
    assert duplicate_texts({}, near=True) == []
