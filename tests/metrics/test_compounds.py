"""The rate with compounds merged against edit distances by the definition, on random pairs."""

from __future__ import annotations

import random
from functools import cache

import pytest

from sonotune.metrics.compounds import OPEN_ASR, join_alike
from sonotune.metrics.text_scores import ScoredText

PIECES = ["a", "b", "ab", "ba", "aba", "ß", "é", "יום", "白", "白紙", "😀"]


def text(reference: str, hypothesis: str, language: str | None = "en") -> ScoredText:
    return ScoredText(
        reference="", hypothesis="", scored_reference=reference, scored_hypothesis=hypothesis, language=language
    )


def least_edits(reference: tuple[str, ...], hypothesis: tuple[str, ...]) -> int:
    """By the definition: a word equals neighbouring words of the other side that are written together."""

    @cache
    def cost(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        best = min(cost(i - 1, j) + 1, cost(i, j - 1) + 1, cost(i - 1, j - 1) + (reference[i - 1] != hypothesis[j - 1]))
        joined = [cost(k, j - 1) for k in range(i) if "".join(reference[k:i]) == hypothesis[j - 1]]
        joined += [cost(i - 1, k) for k in range(j) if "".join(hypothesis[k:j]) == reference[i - 1]]
        return min(best, *joined) if joined else best

    return cost(len(reference), len(hypothesis))


def test_1000_random_pairs_have_the_fewest_edits() -> None:
    pytest.importorskip("kaldialign")
    rng = random.Random(0)  # noqa: S311
    sides = [[tuple(rng.choices(PIECES, k=rng.randrange(7))) for _ in range(1000)] for _ in range(2)]
    pairs = list(zip(*sides, strict=True))
    rows = OPEN_ASR.statistics([text(" ".join(one), " ".join(two)) for one, two in pairs])
    assert [int(row[:3].sum()) for row in rows] == [least_edits(*pair) for pair in pairs]
    assert [int(row[3]) for row in rows] == [len(one) for one, _ in pairs]
    assert any(row[3] == 0 and row[2] for row in rows)  # words on silence are insertions


def test_only_languages_other_than_english_are_joined_where_both_sides_have_several_words() -> None:
    pytest.importorskip("kaldialign")
    for language, edits in (("en", 2), ("en-GB", 2), (None, 2), ("de", 0), ("Hebrew", 0)):
        [row] = OPEN_ASR.statistics([text("ab cd e", "abc de", language)])
        assert (language, row[:3].sum() > 0) == (language, edits > 0)


def test_stretches_that_differ_in_spaces_alone_become_one_word() -> None:
    assert join_alike(["x", "ab", "cd", "y"], ["x", "abc", "d", "y"]) == (["x", "abcd", "y"], ["x", "abcd", "y"])
    assert join_alike(["ab", "cd"], ["abc", "e"]) == (["ab", "cd"], ["abc", "e"])
    assert join_alike([], ["a"]) == ([], ["a"])
