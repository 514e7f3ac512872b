"""A uniform sample of the tokens that the linears of a model see, the same however the data was cut into batches.

Every token has a key, a hash of the seed, the clip's id and its place among the clip's valid rows. The K tokens with
the smallest keys are kept (a bottom-K sketch): a uniform sample without replacement that depends on the set of tokens
alone, so neither on batch size nor on order, padding or sharding, and that can be merged. Which tokens are kept is
decided once for all inputs that see the same tokens; an input then stores the rows of accepted tokens and nothing else.

Given bit-identical rows, what is kept is bit-identical.

Source: Cohen & Kaplan 2007, bottom-k sketches.

Shape letters: B clips, P places, N tokens, K tokens kept, D channels.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sonotune.models.base import PADDING
from sonotune.runs import torch_seed

Keys = NDArray[np.uint64]
"""Hashes of tokens (N,), 63 bits each."""

_GOLDEN, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def token_keys(seed: int, clip_id: str, places: NDArray[np.int64]) -> Keys:
    """Hash tokens of one clip.

    Args:
        seed: Another seed draws another sample.
        clip_id: Hashed by SHA-256, so that it is the same in every process.
        places: Place of each token among the clip's valid rows (N,).

    Source: Steele et al. 2014, SplitMix64.
    """
    state_N = np.uint64(torch_seed(seed, "tokens", clip_id)) + (places.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    state_N = (state_N ^ (state_N >> np.uint64(30))) * _FIRST
    state_N = (state_N ^ (state_N >> np.uint64(27))) * _SECOND
    hashed_N: Keys = (state_N ^ (state_N >> np.uint64(31))) >> np.uint64(1)
    return hashed_N


def batch_keys(seed: int, clip_ids: Sequence[str], kinds_BP: NDArray[np.int8]) -> tuple[Keys, NDArray[np.int64]]:
    """Keys of all tokens of a batch, and the row of each in the batch laid out clip by clip (N,).

    A token's place is counted among the valid rows of its clip, so padding before, between or behind them changes
    nothing.
    """
    valid_BP = kinds_BP != PADDING
    keys = [
        token_keys(seed, clip_id, np.arange(int(count), dtype=np.int64))
        for clip_id, count in zip(clip_ids, valid_BP.sum(axis=1), strict=True)
    ]
    return np.concatenate(keys), np.flatnonzero(valid_BP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Tokens that a reservoir takes in.

    Attributes:
        tokens: Their indices among those offered, rising (A,).
        slots: Where each is kept (A,).
    """

    tokens: NDArray[np.int64]
    slots: NDArray[np.int64]


class Reservoir:
    """The tokens with the smallest keys, with their rows in several inputs.

    Args:
        size: K.
        dtype: How rows are kept.
    """

    def __init__(self, size: int, *, dtype: torch.dtype = torch.float32) -> None:
        if size < 1:
            raise ValueError(f"a reservoir keeps 1 token or more, got {size}.")
        self.size, self.dtype = size, dtype
        self.seen = 0
        self._keys: Keys = np.empty(0, dtype=np.uint64)  # by slot
        self._rows: dict[Hashable, Tensor] = {}

    def __len__(self) -> int:
        return self._keys.size

    @property
    def keys(self) -> Keys:
        """Keys of the tokens kept, rising."""
        return np.sort(self._keys)

    @property
    def inputs(self) -> tuple[Hashable, ...]:
        """What rows were put for."""
        return tuple(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return sum(rows.numel() * rows.element_size() for rows in self._rows.values())

    def admit(self, keys_N: Keys) -> Admission:
        """Take in what belongs to the K smallest, and push out what no longer does.

        The rows of every admitted token must then be put for every input. A key that is kept already is not taken
        again.
        """
        self.seen += keys_N.size
        # Once it is full, most tokens go no further than this.
        offered_N = np.flatnonzero(keys_N < self._keys.max()) if len(self) == self.size else np.arange(keys_N.size)
        offered_N = offered_N[np.unique(keys_N[offered_N], return_index=True)[1]]
        offered_N = offered_N[~_among(keys_N[offered_N], self.keys)]
        new = np.sort(offered_N[: self.size])  # `unique` gave them by rising key
        union = np.concatenate([self._keys, keys_N[new]])
        if union.size > self.size:
            kept = np.zeros(union.size, dtype=bool)
            kept[np.argpartition(union, self.size - 1)[: self.size]] = True
            free, new = np.flatnonzero(~kept[: len(self)]), new[kept[len(self) :]]
        else:
            free = np.empty(0, dtype=np.int64)
        slots = np.concatenate([free, np.arange(len(self), len(self) + new.size - free.size)])
        self._keys = np.concatenate([self._keys, np.zeros(new.size - free.size, dtype=np.uint64)])
        self._keys[slots] = keys_N[new]
        return Admission(tokens=new, slots=slots)

    def put(self, name: Hashable, rows_AD: Tensor, slots_A: Tensor | NDArray[np.int64]) -> None:
        """Keep the rows of admitted tokens in one input."""
        if not len(slots_A):
            return
        kept_KD = self._rows.get(name)
        if kept_KD is None:
            kept_KD = self._rows[name] = torch.zeros(self.size, rows_AD.shape[1], dtype=self.dtype)
        kept_KD.index_copy_(0, torch.as_tensor(slots_A), rows_AD.to(device="cpu", dtype=self.dtype))

    def rows(self, name: Hashable) -> Tensor:
        """Rows of the tokens kept, by rising key (N, D)."""
        return self._rows[name][torch.from_numpy(np.argsort(self._keys))]

    def forget(self, name: Hashable) -> None:
        """Let go of the rows of an input."""
        self._rows.pop(name, None)

    def merge(self, other: Reservoir) -> Reservoir:
        """The reservoir of both sets of tokens; both stay as they are.

        Raises:
            ValueError: They differ in size, in precision or in what they hold rows of.
        """
        if (self.size, self.dtype) != (other.size, other.dtype) or (
            len(self) and len(other) and set(self.inputs) != set(other.inputs)
        ):
            raise ValueError("reservoirs can be merged that keep as many rows, of the same inputs, in one precision.")
        merged = Reservoir(self.size, dtype=self.dtype)
        for part in (self, other):
            taken = merged.admit(part._keys)
            for name, rows_KD in part._rows.items():
                merged.put(name, rows_KD[torch.from_numpy(taken.tokens)], taken.slots)
        merged.seen = self.seen + other.seen
        return merged


def _among(keys_N: Keys, sorted_K: Keys) -> NDArray[np.bool_]:
    """Which keys are among sorted ones (N,); `np.isin` hashes all of both, which is several times slower."""
    if not sorted_K.size:
        return np.zeros(keys_N.shape, dtype=bool)
    places_N = np.searchsorted(sorted_K, keys_N).clip(max=sorted_K.size - 1)
    found_N: NDArray[np.bool_] = sorted_K[places_N] == keys_N
    return found_N


def joint_rows(parts: Sequence[Reservoir], name: Hashable) -> Tensor:
    """Rows in one input of the K smallest keys over several reservoirs of unlike tokens, by rising key (N, D).

    Each reservoir has the K smallest of its own, so the K smallest of all are among them.
    """
    keys = np.concatenate([part._keys for part in parts])
    chosen = np.argsort(keys)[: parts[0].size]
    kept = torch.cat([part._rows[name][: len(part)] for part in parts if len(part)])
    return kept[torch.from_numpy(chosen)]
