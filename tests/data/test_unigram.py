"""The unigram trainer agrees with counting every cut by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from sonotune.data import unigram
from sonotune.data.unigram import train_pieces


def cuts(word: str) -> list[list[str]]:
    found = []
    for inner in itertools.product((False, True), repeat=len(word) - 1):
        bounds = [0, *(place for place, cut in enumerate(inner, 1) if cut), len(word)]
        found.append([word[start:end] for start, end in itertools.pairwise(bounds)])
    return found


def test_expected_counts_and_best_cuts_are_those_of_all_cuts() -> None:
    pieces = ["a", "b", "c", "ab", "bc", "abc", "ca"]
    score = dict(zip(pieces, np.log([0.1, 0.2, 0.15, 0.25, 0.05, 0.15, 0.1]), strict=True))
    words = {"abc": 3, "abca": 1, "bcabc": 2, "a": 5}
    expected = dict.fromkeys(pieces, 0.0)
    best = []
    for word, count in words.items():
        allowed = [cut for cut in cuts(word) if all(piece in score for piece in cut)]
        weights = [math.exp(sum(score[piece] for piece in cut)) for cut in allowed]
        best.append(math.log(max(weights)))
        for cut, weight in zip(allowed, weights, strict=True):
            for piece in cut:
                expected[piece] += count * weight / sum(weights)
    graph = unigram._Graph.build(list(words), pieces)
    scores = np.array([score[piece] for piece in pieces])
    found = graph.expected(scores, np.array(list(words.values()), float))
    np.testing.assert_allclose(found, list(expected.values()), rtol=1e-12)
    np.testing.assert_allclose(graph.best(scores), best, rtol=1e-12)


def test_frequent_words_become_pieces_and_all_characters_stay() -> None:
    words = {"▁shalom": 50, "▁shalot": 2, "▁toda": 40, "▁z": 1}
    pieces = dict(train_pieces(words, 13))
    assert {"▁shalom", "▁toda"} <= set(pieces)
    assert set("".join(words)) <= set(pieces)
    assert len(pieces) <= 13
    assert all(score < 0 for score in pieces.values())


def test_the_order_of_the_words_does_not_matter() -> None:
    words = {f"▁{first}{second}": 1 + len(first + second) for first in ("ab", "c", "de") for second in ("f", "gh", "i")}
    assert train_pieces(words, 16) == train_pieces(dict(reversed(words.items())), 16)


def test_a_size_below_the_characters_is_refused() -> None:
    with pytest.raises(ValueError, match="2 pieces cannot hold 3 characters"):
        train_pieces({"abc": 1}, 2)
