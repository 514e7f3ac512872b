"""Copies and near copies among many texts, found without comparing every pair.

MinHash (Broder, 1997) with banding: the smallest of many hashes of a text's character 4-grams. Two texts agree in one
of them with a probability that is their Jaccard similarity, so equal runs of four name the pairs worth a look, and
the share of all that agree estimates the similarity of a pair (standard error 0.05). Character n-grams need no
words, so the rule is the same for scripts without spaces. The work grows with the characters, not with the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_T = TypeVar("_T", str, int)

SIMILARITY: Final = 0.6
"""Share of character 4-grams in common from which two texts count as near copies."""

_GRAM: Final = 4
_BANDS: Final = 24
_ROWS: Final = 4
_BLOCK: Final = 1 << 16  # 4-grams hashed at once: what stays in the cache
_PRIME: Final = np.uint64(0x100000001B3)


def near_copies(texts: Sequence[str], *, similarity: float = SIMILARITY) -> NDArray[np.int64]:
    """Put texts that are nearly the same into one cluster; similarity carries over from text to text.

    A text in a bucket of many is compared with the first and with the one before it, so that a corpus of templates
    costs no more than any other; a pair between others may be missed there and mostly meets in another bucket.

    Args:
        texts: The texts, normalised by the caller.
        similarity: Jaccard similarity of their character 4-grams from which two are near copies.

    Returns:
        The number of the cluster of each text, (texts,); clusters are numbered by their first text.
    """
    unique, copy_of = _numbered(texts)
    if not unique:
        return np.zeros(0, dtype=np.int64)
    signatures = _signatures(unique)
    pairs = [_similar_in_band(signatures, band, similarity) for band in range(_BANDS)]
    first, second = np.concatenate(pairs, axis=1)
    size = len(unique)
    links = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(size, size))
    _, component = connected_components(links, directed=False)
    return _numbered(component[copy_of].tolist())[1]


def _numbered(values: Sequence[_T]) -> tuple[list[_T], NDArray[np.int64]]:
    """The different values in order of appearance, and which of them each value is."""
    number: dict[_T, int] = {}
    places = np.fromiter((number.setdefault(value, len(number)) for value in values), np.int64, len(values))
    return list(number), places


def _signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """MinHash values, (texts, bands * rows)."""
    rng = np.random.Generator(np.random.Philox(key=0))
    factors = rng.integers(0, 1 << 63, size=_BANDS * _ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    signatures = np.empty((len(texts), _BANDS * _ROWS), dtype=np.uint32)
    start = 0
    while start < len(texts):
        stop, grams = start, 0
        while stop < len(texts) and (grams == 0 or grams < _BLOCK):
            grams += len(texts[stop])
            stop += 1
        hashes, offsets = _gram_hashes(texts[start:stop])
        for column, factor in enumerate(factors):
            mixed = ((hashes * factor) >> np.uint64(32)).astype(np.uint32)
            signatures[start:stop, column] = np.minimum.reduceat(mixed, offsets)
        start = stop
    return signatures


def _gram_hashes(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """64-bit hashes of the 4-grams of each text, one after the other, and where each text begins."""
    padded = [text.ljust(_GRAM, "\0") for text in texts]
    points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    lengths = np.fromiter(map(len, padded), np.int64, len(padded))
    hashes = np.zeros(len(points) - _GRAM + 1, dtype=np.uint64)
    for shift in range(_GRAM):
        hashes = (hashes ^ points[shift : len(points) - _GRAM + 1 + shift]) * _PRIME
    hashes ^= hashes >> np.uint64(29)  # a product alone leaves the low bits of similar letters alike
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(32)
    ends = np.cumsum(lengths)
    inside = np.ones(len(points), dtype=bool)
    for shift in range(1, _GRAM):
        inside[ends - shift] = False  # a window that reaches into the next text
    counts = lengths - (_GRAM - 1)
    return hashes[inside[: len(hashes)]], np.cumsum(counts) - counts


def _similar_in_band(signatures: NDArray[np.uint32], band: int, similarity: float) -> NDArray[np.int64]:
    """Pairs of texts that agree in the rows of a band and are similar by the whole signature, (2, pairs)."""
    rows = signatures[:, band * _ROWS : (band + 1) * _ROWS].astype(np.uint64)
    keys = np.zeros(len(rows), dtype=np.uint64)
    for row in range(_ROWS):
        keys = (keys ^ rows[:, row]) * _PRIME
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]]) + 1
    new = np.ones(len(order), dtype=bool)
    new[same] = False
    first_of_bucket = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    members = order[same]
    found = []
    for partners in (order[first_of_bucket[same]], order[same - 1]):
        agree = np.empty(len(members))
        for start in range(0, len(members), _BLOCK):
            part = slice(start, start + _BLOCK)
            agree[part] = (signatures[members[part]] == signatures[partners[part]]).mean(axis=1)
        found.append(np.stack([members, partners])[:, agree >= similarity])
    return np.concatenate(found, axis=1)
