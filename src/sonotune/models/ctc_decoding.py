"""From frame-wise scores to labels: the best path, and prefix beam search.

Shape letters: T frames, V symbols, blank included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_NEVER = -math.inf


def collapse(path: Sequence[int], *, blank: int) -> list[int]:
    """Labels of a frame-wise path: repeats become one, blanks vanish."""
    return [
        symbol for index, symbol in enumerate(path) if symbol != blank and (index == 0 or symbol != path[index - 1])
    ]


def label_logprobs(path: Sequence[int], logprobs: Sequence[float], *, blank: int) -> list[float]:
    """Log-probability of each label that `collapse` gives: that of its surest frame.

    A symbol is sure in the middle of its frames and unsure where it goes over into another, whoever is right.

    Args:
        path: Symbol of each frame (T,).
        logprobs: Its log-probability there (T,).
        blank: Id of the blank.
    """
    found: list[float] = []
    for index, (symbol, logprob) in enumerate(zip(path, logprobs, strict=True)):
        if symbol == blank:
            continue
        if index and symbol == path[index - 1]:
            found[-1] = max(found[-1], logprob)
        else:
            found.append(logprob)
    return found


def beam_search(
    log_probs_TV: NDArray[np.float32], *, blank: int, beam_size: int, symbols_per_frame: int = 12
) -> list[int]:
    """The labels whose alignments together are most probable, within a beam.

    The best path counts one alignment of a text; this sums over all of them. Exact when the beam holds every prefix.

    Args:
        log_probs_TV: Natural logarithms of probabilities (T, V).
        blank: Id of the blank.
        beam_size: Prefixes kept after each frame.
        symbols_per_frame: Most probable symbols tried in each frame.

    Source: Hannun et al. 2014 (arXiv 1408.2873), algorithm 1, without a language model.
    """
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, _NEVER)}  # prefix -> (ends in blank, in a symbol)
    for scores in log_probs_TV.astype(np.float64):
        tried = np.argsort(-scores, kind="stable")[:symbols_per_frame].tolist()
        if blank not in tried:
            tried.append(blank)
        grown: dict[tuple[int, ...], tuple[float, float]] = {}
        for prefix, (in_blank, in_symbol) in beams.items():
            either = _sum(in_blank, in_symbol)
            for symbol in tried:
                score = float(scores[symbol])
                if symbol == blank:
                    _add(grown, prefix, either + score, _NEVER)
                elif prefix and symbol == prefix[-1]:
                    _add(grown, prefix, _NEVER, in_symbol + score)  # held on
                    _add(grown, (*prefix, symbol), _NEVER, in_blank + score)  # said again
                else:
                    _add(grown, (*prefix, symbol), _NEVER, either + score)
        kept = sorted(grown.items(), key=lambda item: (-_sum(*item[1]), item[0]))[:beam_size]
        beams = dict(kept)
    return list(next(iter(beams)))


def _add(
    beams: dict[tuple[int, ...], tuple[float, float]], prefix: tuple[int, ...], blank: float, symbol: float
) -> None:
    before = beams.get(prefix, (_NEVER, _NEVER))
    beams[prefix] = (_sum(before[0], blank), _sum(before[1], symbol))


def _sum(first: float, second: float) -> float:
    """Logarithm of the sum of two probabilities given as logarithms."""
    high, low = (first, second) if first >= second else (second, first)
    return high if low == _NEVER else high + math.log1p(math.exp(low - high))
