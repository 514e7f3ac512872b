"""Randomness as a function of what it is for, so that worker counts and restarts change nothing."""

from __future__ import annotations

import hashlib

import numpy as np

_SEPARATOR = "\x1f"


def _hash(seed: int, keys: tuple[str | int, ...]) -> bytes:
    return hashlib.sha256(_SEPARATOR.join(str(part) for part in (seed, *keys)).encode()).digest()


def generator(seed: int, *keys: str | int) -> np.random.Generator:
    """Make the random generator that belongs to one thing, such as one transform of one clip in one epoch.

    The same arguments give the same draws in any process, in any order, whatever was drawn before: that is what
    makes worker counts and restarts change nothing.

    Args:
        seed: The run's seed.
        keys: What the draws are for, such as `(epoch, clip_id, "noise")`.

    Returns:
        A Philox generator keyed by the first 128 bits of SHA-256 over seed and keys.
    """
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_hash(seed, keys)[:16], "big")))


def torch_seed(seed: int, *keys: str | int) -> int:
    """Derive a 63-bit seed for `torch.manual_seed` from the same hash as `generator`."""
    return int.from_bytes(_hash(seed, keys)[:8], "big") >> 1
