"""Groups of clips given to splits: sizes as asked, and each split like the whole in domain, duration and class.

Groups are taken in an order that only their own names and the seed decide, and fill the test split, then the evaluation
split; what is left is trained on. So a clip that is added to a corpus moves only groups near the borders, while a draw
over the whole list would move all. Where groups are few and large, some orders are tried and the nearest to what was
asked is taken; the first that is near enough wins, which keeps the result stable as well.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sonotune.metrics.slices import UNKNOWN, duration_bucket
from sonotune.types import Clip

_TRIALS: Final = 64
_VISITS: Final = 60_000  # groups looked at in all trials, or a large corpus would take minutes
_NEAR: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Which part each group goes to.

    Attributes:
        parts: Index of the part of each group.
        miss: How far the parts are from what was asked: relative errors of size, added up, and the mean distance of
            domains, durations and classes from those of the whole. 0 is exact.
    """

    parts: NDArray[np.int64]
    miss: float


def assign(
    clips: Sequence[Clip],
    groups: NDArray[np.int64],
    names: Sequence[str],
    *,
    shares: Mapping[str, float],
    weights: NDArray[np.float64],
    seed: int,
) -> Assignment:
    """Give every group to a part.

    Args:
        clips: The clips.
        groups: The group of each clip, (clips,), numbered from 0 without gaps; at least as many as parts.
        names: What each clip is kept together by; decides the order with the seed.
        shares: Part -> share of the weight. The first takes what the others leave.
        weights: Of each clip, (clips,): seconds, or 1 to count clips.
        seed: Of the order.

    Returns:
        The assignment. No part is empty.
    """
    count = int(groups.max()) + 1
    sizes = np.bincount(groups, weights=weights, minlength=count).astype(np.float64)
    order_keys = np.zeros(count, dtype=np.uint64)
    np.maximum.at(order_keys, groups, _hashes(names, seed))  # the largest: large groups tend to be trained on
    table = _Table(clips, groups, weights)
    targets = np.array(list(shares.values())) * max(float(sizes.sum()), 1e-9)
    best = Assignment(parts=np.zeros(count, dtype=np.int64), miss=math.inf)
    for trial in range(max(1, min(_TRIALS, _VISITS // count))):
        order = np.argsort(_mixed(order_keys, trial), kind="stable")
        parts = _fill(order, sizes, table, targets)
        miss, near = _miss(parts, sizes, table, targets)
        if miss < best.miss - 1e-9:
            best = Assignment(parts=parts, miss=miss)
        if near:
            break
    return best


def _hashes(names: Sequence[str], seed: int) -> NDArray[np.uint64]:
    number = {
        name: int.from_bytes(
            hashlib.blake2b(f"{seed}\x1f{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        )
        for name in set(names)
    }
    return np.fromiter((number[name] for name in names), np.uint64, len(names))


def _mixed(keys: NDArray[np.uint64], trial: int) -> NDArray[np.uint64]:
    """Another order for each trial; the first leaves the keys as they are."""
    if trial == 0:
        return keys
    mixed = (keys ^ np.uint64(trial * 0x9E3779B97F4A7C15 % 2**64)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(31)
    return mixed * np.uint64(0x94D049BB133111EB)


class _Table:
    """What the groups are made of, by property (domain, duration, classes) and value.

    Args:
        clips: The clips.
        groups: The group of each.
        weights: Of each.
    """

    def __init__(self, clips: Sequence[Clip], groups: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        kinds: list[list[str]] = [
            [clip.domain or UNKNOWN for clip in clips],
            [duration_bucket(clip.duration_s) for clip in clips],
            [" ".join(clip.label) for clip in clips],
        ]
        self.rows: list[list[list[tuple[int, float]]]] = [[] for _ in range(int(groups.max()) + 1)]
        self.properties: list[NDArray[np.float64]] = []  # weight of the whole by value
        for kind in kinds:
            number: dict[str, int] = {}
            values = np.array([number.setdefault(value, len(number)) for value in kind], dtype=np.int64)
            if len(number) < 2:
                continue
            cells, place = np.unique(groups * len(number) + values, return_inverse=True)
            amounts = np.bincount(place, weights=weights)
            for row in self.rows:
                row.append([])
            for cell, amount in zip(cells.tolist(), amounts.tolist(), strict=True):
                group, value = divmod(cell, len(number))
                self.rows[group][-1].append((value, amount))
            self.properties.append(np.bincount(values, weights=weights).astype(np.float64))

    def by_part(
        self, parts: NDArray[np.int64], count: int
    ) -> Iterable[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """For each property: what each part has of each value, (parts, values), and what the whole has, (values,)."""
        for index, whole in enumerate(self.properties):
            found = np.zeros((count, len(whole)))
            for part, row in zip(parts.tolist(), self.rows, strict=True):
                for value, amount in row[index]:
                    found[part, value] += amount
            yield found, whole


def _fill(
    order: NDArray[np.int64], sizes: NDArray[np.float64], table: _Table, targets: NDArray[np.float64]
) -> NDArray[np.int64]:
    parts = np.zeros(len(order), dtype=np.int64)
    lack = targets.copy()
    held_out = range(len(targets) - 1, 0, -1)
    total = max(float(targets.sum()), 1e-9)
    wanted = [[whole * (target / total) for whole in table.properties] for target in targets]
    size_of, smallest = sizes.tolist(), float(sizes.min())

    def give(group: int, part: int) -> None:
        parts[group] = part
        lack[part] -= size_of[group]
        for quota, row in zip(wanted[part], table.rows[group], strict=True):
            for value, amount in row:
                quota[value] -= amount

    for stratified in (True, False):  # what is too rare for a share of its own is made up for at the end
        for group in order.tolist():
            if parts[group]:
                continue
            if all(lack[part] < smallest / 2 for part in held_out):
                break
            for part in held_out:
                if lack[part] >= size_of[group] / 2 and (not stratified or _fits(wanted[part], table.rows[group])):
                    give(group, part)
                    break
    _fill_empty(parts, sizes, len(targets))
    return parts


def _fits(quotas: Sequence[NDArray[np.float64]], row: Sequence[Sequence[tuple[int, float]]]) -> bool:
    """Whether a part still lacks at least half of the group in every property."""
    for quota, cells in zip(quotas, row, strict=True):
        whole = sum(amount for _, amount in cells)
        if sum(min(amount, max(float(quota[value]), 0.0)) for value, amount in cells) < whole / 2:
            return False
    return True


def _fill_empty(parts: NDArray[np.int64], sizes: NDArray[np.float64], count: int) -> None:
    """Give an empty part the smallest group of a part that has more than one."""
    for part in range(count - 1, -1, -1):
        members = np.bincount(parts, minlength=count)
        if members[part]:
            continue
        spare = np.flatnonzero(members[parts] > 1)
        parts[spare[np.argmin(sizes[spare])]] = part


def _miss(
    parts: NDArray[np.int64], sizes: NDArray[np.float64], table: _Table, targets: NDArray[np.float64]
) -> tuple[float, bool]:
    """The distance from what was asked, and whether it is near enough."""
    totals = np.bincount(parts, weights=sizes, minlength=len(targets))
    errors = np.abs(totals / np.maximum(targets, 1e-9) - 1)
    distances = []
    for found, whole in table.by_part(parts, len(targets)):
        share = found / np.maximum(found.sum(axis=1, keepdims=True), 1e-9)
        distances.append(float(np.abs(share - whole / max(float(whole.sum()), 1e-9)).sum(axis=1).mean() / 2))
    apart = float(np.mean(distances)) if distances else 0.0
    return float(errors.sum()) + apart, bool(errors.max() <= _NEAR and apart <= 2 * _NEAR)
