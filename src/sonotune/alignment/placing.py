"""What aligners share behind their models: words from tokens, and findings on a clip.

Shape letters: U tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sonotune.types import Clip, Finding, Word


def placed_words(
    words: Sequence[str],
    token_words: NDArray[np.int64],
    starts_s: NDArray[np.float64],
    ends_s: NDArray[np.float64],
    posteriors: NDArray[np.float32],
) -> tuple[Word, ...]:
    """Every word with the times of its tokens and their mean posterior; one without tokens lies between its neighbours.

    Args:
        words: Of the transcript.
        token_words: Index of each token's word (U,), rising.
        starts_s: Of each token (U,), rising.
        ends_s: Of each token (U,).
        posteriors: Of each token (U,).
    """
    placed: list[Word] = []
    for index, word in enumerate(words):
        first, behind = np.searchsorted(token_words, [index, index + 1])
        if first < behind:
            start_s, end_s = float(starts_s[first]), float(ends_s[behind - 1])
            score = float(np.mean(posteriors[first:behind]))
            placed.append(Word(text=word, start_s=start_s, end_s=end_s, score=score))
            continue
        start_s = placed[-1].end_s if placed else 0.0
        end_s = float(starts_s[first]) if first < len(starts_s) else start_s
        placed.append(Word(text=word, start_s=start_s, end_s=max(start_s, end_s)))
    return tuple(placed)


def clip_finding(
    clip: Clip, check: str, message: str, *, measured: float | None = None, limit: float | None = None, unit: str = ""
) -> Finding:
    """Why a clip has no alignment.

    Args:
        clip: The clip.
        check: Name of the check.
        message: What follows `clip ID `.
        measured: What was found.
        limit: What was allowed.
        unit: Of both.
    """
    return Finding(
        check=check,
        severity="error",
        message=f"clip {clip.id} {message}",
        clip_ids=(clip.id,),
        path=str(clip.path),
        measured=measured,
        limit=limit,
        unit=unit,
    )
