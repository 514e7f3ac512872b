"""Batches of clips of like length, results in the order of the clips, and little of either in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, TypeVar

from sonotune.features.batching import plan_batches
from sonotune.types import Finding

Item = TypeVar("Item")
Result = TypeVar("Result")

_POOL_BATCHES: Final = 16
"""Clips of so many batches are sorted by length together, so that padding is a few percent; their results wait for
those before them."""


def in_order(
    items: Iterable[Item | Finding],
    run: Callable[[Sequence[Item]], Sequence[Result | Finding]],
    *,
    seconds: Callable[[Item], float],
    batch_seconds: float,
    batch_max_clips: int,
) -> Iterator[Result | Finding]:
    """Run items in batches of like length and give their results in the order of the items.

    Args:
        items: What is to be run; a finding is passed on in its place.
        run: A batch of items -> the result of each.
        seconds: Computed seconds of an item.
        batch_seconds: Padded seconds of a batch at most; a longer item is a batch of its own.
        batch_max_clips: Items of a batch at most.
    """
    left = iter(items)
    while pool := list(islice(left, _POOL_BATCHES * batch_max_clips)):
        results: dict[int, Result | Finding] = {}
        runnable: list[tuple[int, Item]] = []
        for place, item in enumerate(pool):
            if isinstance(item, Finding):
                results[place] = item
            else:
                runnable.append((place, item))
        planned = plan_batches(
            [seconds(item) for _, item in runnable],
            max_seconds=batch_seconds,
            max_clips=batch_max_clips,
            seed=0,
            epoch=0,
            shuffle=False,
            jitter_s=0.0,
        )
        for batch in planned:
            chosen = [runnable[index] for index in batch]
            found = run([item for _, item in chosen])
            results.update({place: one for (place, _), one in zip(chosen, found, strict=True)})
        yield from (results[place] for place in range(len(pool)))
