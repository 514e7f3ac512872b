"""The unigram language model of subwords: which pieces to keep, and how likely each is.

The unigram trainer of the `tokenizers` library (0.23) iterates over hash maps with random seeds, so each run over the
same texts gives other scores. A tokenizer decides every label of a corpus and must be reproducible to the byte, hence
this trainer; only the model that it fills comes from the library.

The method is that of Kudo (2018, "Subword Regularization", arXiv:1804.10959) as SentencePiece runs it: seed with
frequent substrings, fit by expectation maximisation, drop the pieces whose loss matters least, repeat. All words are
treated at once as one graph: a node is a place between two characters, an edge a piece between two places. Shape
letters: E edges, N nodes, P pieces, W words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MAX_PIECE_LENGTH: Final = 16  # SentencePiece's default, in characters

_SEEDS_PER_PIECE: Final = 10
_SHRINK: Final = 0.75
_FITS_PER_ROUND: Final = 2
_RARE: Final = 0.5  # an expected count below it says that a piece is not used (SentencePiece's threshold)
_DECIMALS: Final = 6  # the last bits depend on the processor's vector instructions


def train_pieces(words: Mapping[str, int], size: int) -> list[tuple[str, float]]:
    """Find the pieces that explain some words best.

    Args:
        words: Word -> how often it occurs, with the mark of its beginning. The order does not matter.
        size: How many pieces to keep; at least the number of different characters, which are all kept.

    Returns:
        Pieces and their natural log probabilities, likeliest first. Fewer than `size` where the words have fewer
        repeated substrings that are used.

    Raises:
        ValueError: There are no words, or `size` is below the number of characters.
    """
    names = sorted(words)
    alphabet = sorted(set().union(*names))
    if not alphabet or size < len(alphabet):
        raise ValueError(f"{size} pieces cannot hold {len(alphabet)} characters; there must be one, and room for all.")
    count_W = np.array([words[name] for name in names], np.float64)
    pieces, weight_P = _seeds(names, count_W, alphabet, _SEEDS_PER_PIECE * size)
    graph = _Graph.build(names, pieces)
    inner = _Graph.build(pieces, pieces, whole=False)
    single_P = np.arange(len(pieces)) < len(alphabet)
    alive_P = np.ones(len(pieces), np.bool_)
    score_P = np.log(weight_P / weight_P.sum())
    while True:
        expected_P = weight_P
        for _ in range(_FITS_PER_ROUND):
            expected_P = graph.expected(score_P, count_W)
            score_P = _scores(expected_P, alive_P)
        if alive_P.sum() <= size:
            break
        alive_P = _kept(inner, score_P, expected_P, alive_P, single_P, size)
        score_P = _scores(expected_P, alive_P)
    found = [(pieces[index], round(float(score_P[index]), _DECIMALS)) for index in np.flatnonzero(alive_P)]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def _seeds(names: Sequence[str], count_W: Floats, alphabet: Sequence[str], limit: int) -> tuple[list[str], Floats]:
    """Every character, then the repeated substrings that cover most text; with the text each covers."""
    counts: Counter[str] = Counter()
    for name, count in zip(names, count_W.tolist(), strict=True):
        for start, end in _spans(name):
            counts[name[start:end]] += count
    repeated = [piece for piece, count in counts.items() if len(piece) > 1 and count > 1]
    repeated.sort(key=lambda piece: (-counts[piece] * len(piece), piece))
    pieces = [*alphabet, *sorted(repeated[:limit])]
    return pieces, np.array([counts[piece] * len(piece) for piece in pieces], np.float64)


def _spans(name: str) -> Iterator[tuple[int, int]]:
    for start in range(len(name)):
        for end in range(start + 1, min(start + MAX_PIECE_LENGTH, len(name)) + 1):
            yield start, end


def _scores(expected_P: Floats, alive_P: NDArray[np.bool_]) -> Floats:
    """Log probabilities by variational Bayes, which favours few pieces (as SentencePiece does); -inf if dropped."""
    floor_P = np.where(alive_P, np.maximum(expected_P, _RARE), 0.0)
    total = float(floor_P.sum())
    return np.where(alive_P, digamma(np.maximum(floor_P, _RARE)) - digamma(total), -np.inf)


def _kept(
    inner: _Graph,
    score_P: Floats,
    expected_P: Floats,
    alive_P: NDArray[np.bool_],
    single_P: NDArray[np.bool_],
    size: int,
) -> NDArray[np.bool_]:
    """Keep all characters and the pieces that would cost most if they were spelt by others."""
    spelt_P = inner.best(score_P)
    loss_P = expected_P * np.where(alive_P & ~single_P, score_P - spelt_P, 0.0)
    useful_P = alive_P & ~single_P & (expected_P >= _RARE)
    room = max(size, int(_SHRINK * alive_P.sum())) - int(single_P.sum())
    order = np.argsort(np.where(useful_P, -np.round(loss_P, _DECIMALS), np.inf), kind="stable")
    keep_P = single_P.copy()
    keep_P[order[: min(room, int(useful_P.sum()))]] = True
    return keep_P


@dataclass(frozen=True, slots=True)
class _Sweep:
    """One direction through the graph: (E,) sources; per step its edges, where each target's run begins, targets."""

    source: Integers
    steps: list[tuple[Integers, Integers, Integers]]

    @classmethod
    def build(cls, source_E: Integers, target_E: Integers, level_E: Integers) -> _Sweep:
        order_E = np.lexsort((target_E, level_E))
        steps = []
        for edges in np.split(order_E, np.flatnonzero(np.diff(level_E[order_E])) + 1):
            targets, runs = np.unique(target_E[edges], return_index=True)
            steps.append((edges, runs.astype(np.int64), targets))
        return cls(source_E, steps)

    def run(self, score_E: Floats, first_W: Integers, num_nodes: int, join: np.ufunc) -> Floats:
        value_N = np.full(num_nodes, -np.inf)
        value_N[first_W] = 0.0
        for edges, runs, targets in self.steps:
            value_N[targets] = join.reduceat(value_N[self.source[edges]] + score_E[edges], runs)
        return value_N


@dataclass(frozen=True, slots=True)
class _Graph:
    """All ways of cutting some words into pieces: (E,) pieces and words, (W,) first and last nodes."""

    piece: Integers
    word: Integers
    first: Integers
    last: Integers
    forward: _Sweep
    backward: _Sweep

    @classmethod
    def build(cls, names: Sequence[str], pieces: Sequence[str], *, whole: bool = True) -> _Graph:
        """Without `whole`, a word longer than one character may not be one piece."""
        index = {piece: number for number, piece in enumerate(pieces)}
        rows = (
            (index[name[start:end]], word, start, end)
            for word, name in enumerate(names)
            for start, end in _spans(name)
            if name[start:end] in index and (whole or len(name) == 1 or end - start < len(name))
        )
        flat = np.fromiter((value for row in rows for value in row), np.int64)  # a list takes more memory
        piece_E, word_E, start_E, end_E = np.ascontiguousarray(flat.reshape(-1, 4).T)
        length_W = np.array([len(name) for name in names], np.int64)
        last_W = np.cumsum(length_W + 1) - 1
        first_W = last_W - length_W
        source_E, target_E = first_W[word_E] + start_E, first_W[word_E] + end_E
        return cls(
            piece_E,
            word_E,
            first_W,
            last_W,
            _Sweep.build(source_E, target_E, end_E),
            _Sweep.build(target_E, source_E, length_W[word_E] - start_E),
        )

    def best(self, score_P: Floats) -> Floats:
        """(W,) log probability of each word's likeliest cut."""
        value_N = self.forward.run(score_P[self.piece], self.first, int(self.last[-1]) + 1, np.maximum)
        return value_N[self.last]

    def expected(self, score_P: Floats, count_W: Floats) -> Floats:
        """(P,) how often each piece is expected, over all cuts of all words."""
        score_E = score_P[self.piece]
        num_nodes = int(self.last[-1]) + 1
        before_N = self.forward.run(score_E, self.first, num_nodes, np.logaddexp)
        after_N = self.backward.run(score_E, self.last, num_nodes, np.logaddexp)
        total_E = before_N[self.last][self.word]
        share_E = np.exp(before_N[self.forward.source] + score_E + after_N[self.backward.source] - total_E)
        return np.bincount(self.piece, share_E * count_W[self.word], minlength=score_P.size).astype(np.float64)
