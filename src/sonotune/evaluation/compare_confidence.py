"""Word confidences of two systems, read from their predictions and compared on the same clips.

`sonotune evaluate --out` writes every word with its confidence and whether it is right, where confidences are asked
for. Nothing is normalised or aligned again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sonotune.metrics.confidence import MIN_WORDS
from sonotune.metrics.paired import Blocks, PairedDifference
from sonotune.metrics.paired_confidence import SureWords, paired_confidence

Rows = Sequence[Mapping[str, Any]]


class PairedWords:
    """Words of two systems on the same clips.

    Args:
        first: Of the first system.
        second: Of the second.
    """

    def __init__(self, first: SureWords, second: SureWords) -> None:
        self._first: Final = first
        self._second: Final = second

    @classmethod
    def of(cls, systems: Sequence[Sequence[Rows]]) -> PairedWords | None:
        """Of the predictions of two systems, a row a clip, in one order; None where a run has no such words.

        Several runs of a system are not compared: the spread of seeds would have to be in the interval.
        """
        if any(len(runs) != 1 for runs in systems):
            return None
        first, second = (sure_words(runs[0]) for runs in systems)
        return None if first is None or second is None else cls(first, second)

    def compare(
        self,
        blocks: Blocks,
        *,
        members: NDArray[np.int64] | None = None,
        resamples: int,
        seed: int,
    ) -> dict[str, PairedDifference]:
        """See `paired_confidence`.

        Args:
            blocks: Of the clips that are compared.
            members: Numbers of these clips; a slice with fewer than `MIN_WORDS` words of a system has no scores. None
                takes all clips, and as few words as there are.
            resamples: Of the bootstrap.
            seed: Of the resampling.
        """
        first, second = self._first, self._second
        if members is not None:
            first, second = first.of(members), second.of(members)
            if min(len(first.right), len(second.right)) < MIN_WORDS:
                return {}
        return paired_confidence(first, second, blocks=blocks, resamples=resamples, seed=seed)


def sure_words(rows: Rows) -> SureWords | None:
    """Words with a confidence of which it is known whether they are right; None where a row does not say."""
    confidence, right, owners = list[float](), list[bool](), list[int]()
    for number, row in enumerate(rows):
        words = row.get("words")
        if not isinstance(words, list) or not all(map(_is_told, words)):
            return None
        for word in words:
            if word["right"] is not None:
                confidence.append(float(word["confidence"]))
                right.append(word["right"])
                owners.append(number)
    return SureWords(np.array(confidence), np.array(right, dtype=np.bool_), np.array(owners, dtype=np.int64))


def _is_told(word: Any) -> bool:
    """Whether an entry is a word that says how sure it is and whether it is right; other tools have other words."""
    if not (isinstance(word, Mapping) and "right" in word):
        return False
    sure = word.get("confidence")
    return (
        isinstance(sure, int | float)
        and not isinstance(sure, bool)
        and 0 <= sure <= 1
        and (word["right"] is None or isinstance(word["right"], bool))
    )
