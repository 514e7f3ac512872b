"""Times from cross-attention: a monotonic path through what some heads look at. No torch here.

A decoder that writes a token looks at where it is spoken. A head that does so has an attention matrix whose maxima lie
on a rising line, which dynamic time warping finds. Three things differ from the published word times of Whisper:
attention is taken as log-probability against looking everywhere alike, not as deviation from the mean over tokens; the
path may rest in a pause between words, which it must otherwise give to a word; and the filter over time is narrower.
With heads that were selected by reference times, word starts of Whisper-base are so nearer by half on synthetic speech
and more on digit strings; with the heads that its checkpoint names they are on synthetic speech, and hardly on digits.

Source: the path is that of the word times of OpenAI's Whisper (2022); the pause is our own.

Shape letters: H heads, U tokens, P positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

MEDIAN_WIDTH: Final = 3
"""Positions of the median filter over time. 7, as published, puts starts of a model whose tokens are letters later by
20 to 40 ms, and is as good where tokens are words."""

PAUSE: Final = 0.5
"""What a position in a pause is worth: a word takes a position where its attention is exp(0.5) times that of looking
everywhere alike."""

_FLOOR: Final = 1e-6


def gains(attention_HUP: NDArray[np.float32]) -> NDArray[np.float64]:
    """How much more than everywhere alike the heads together look at each position: log-ratio (U, P).

    Args:
        attention_HUP: Probabilities over positions.
    """
    mean_UP = median_filter(attention_HUP, MEDIAN_WIDTH).mean(axis=0, dtype=np.float64)
    found: NDArray[np.float64] = np.log(mean_UP + _FLOOR) + np.log(attention_HUP.shape[-1])
    return found


def median_filter(values: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Running median over the last axis, mirrored at its ends; an axis that is too short to mirror stays as it is.

    Args:
        values: Of any shape.
        width: Odd number of values.

    Raises:
        ValueError: The width is even or below 1.
    """
    if width < 1 or width % 2 == 0:
        raise ValueError(f"the width of a median filter is odd and at least 1; got {width}.")
    half = width // 2
    if values.shape[-1] <= half:
        return values
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(half, half)], mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=-1)
    median: NDArray[np.float32] = np.partition(windows, half, axis=-1)[..., half]
    return median


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """A monotonic path through a matrix of tokens and positions, with pauses between words.

    Attributes:
        starts: First position of each row (U,) int64, rising.
        ends: Position behind the last of each row (U,) int64; a row has one position at least.
        gain: Sum of the matrix on the path, and of its pauses.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    gain: float


def best_path(gains_UP: NDArray[np.floating], begins: NDArray[np.bool_], *, pause: float = PAUSE) -> Path:
    """The path of highest gain from the first row to the last, by dynamic time warping.

    A step goes to the next position, to the next row, or both. Before a row that begins a word, and behind the last,
    positions may be left out, each for the gain of a pause. Row by row: a path that comes into a row at k and goes on
    to j gains S(j) - S(k-1) with running sums S, so that the best k of every j is a running maximum. That is a few
    passes of numpy for a row instead of a step of Python for a cell.

    Args:
        gains_UP: Higher is better; at least one row and one position.
        begins: Whether a pause may be before each row (U,).
        pause: Gain of a position in a pause.
    """
    rows, positions = gains_UP.shape
    places_P = np.arange(positions)
    entered = np.zeros((rows, positions), dtype=np.int32)
    left = np.zeros((rows, positions), dtype=np.int32)
    total_P = np.zeros(positions)
    for row in range(rows):
        if row == 0:
            coming_P = pause * places_P if begins[0] else np.where(places_P == 0, 0.0, -np.inf)
        else:
            before_P = np.concatenate([[-np.inf], total_P[:-1]])
            coming_P = np.maximum(before_P, total_P)
            left[row] = np.where(before_P >= total_P, places_P - 1, places_P)
            if begins[row]:
                rested_P, rest_from_P = _running_best(total_P - pause * places_P)
                rested_P = np.concatenate([[-np.inf], rested_P[:-1]]) + pause * (places_P - 1)
                better_P = rested_P > coming_P
                left[row] = np.where(better_P, np.concatenate([[0], rest_from_P[:-1]]), left[row])
                coming_P = np.where(better_P, rested_P, coming_P)
        sums_P = np.cumsum(gains_UP[row], dtype=np.float64)
        best_P, entered[row] = _running_best(coming_P - (sums_P - gains_UP[row]))
        total_P = best_P + sums_P
    total_P = total_P + pause * (positions - 1 - places_P)
    last = int(total_P.argmax())
    gain = float(total_P[last])
    starts, ends = np.zeros(rows, dtype=np.int64), np.zeros(rows, dtype=np.int64)
    for row in range(rows - 1, -1, -1):
        starts[row], ends[row] = entered[row, last], last + 1
        last = int(left[row, starts[row]])
    return Path(starts=starts, ends=ends, gain=gain)


def _running_best(values_P: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Running maximum, and the last place up to each at which it was reached."""
    best_P = np.maximum.accumulate(values_P)
    places_P = np.where(values_P == best_P, np.arange(len(values_P), dtype=np.int32), 0)
    return best_P, np.maximum.accumulate(places_P)


def path_share(attention_UP: NDArray[np.float32], path: Path) -> float:
    """Mean probability over tokens that a head attends to where the path says that the token is."""
    sums_UQ = np.concatenate([np.zeros((len(attention_UP), 1)), np.cumsum(attention_UP, axis=1, dtype=np.float64)], 1)
    rows = np.arange(len(attention_UP))
    return float(np.mean(sums_UQ[rows, path.ends] - sums_UQ[rows, path.starts]))


def hits(
    attention_UP: NDArray[np.float32], spans_s: Sequence[tuple[float, float]], seconds: float
) -> tuple[int, float]:
    """How many tokens a head attends to at their true time most, and how much of its attention is there in all.

    Args:
        attention_UP: Of one head; a row for each span.
        spans_s: When each token's word begins and ends.
        seconds: Of one position.
    """
    middles_P = (np.arange(attention_UP.shape[1]) + 0.5) * seconds
    peaks_U = attention_UP.argmax(axis=1)
    inside_UP = np.array([(middles_P >= start_s) & (middles_P <= end_s) for start_s, end_s in spans_s])
    return int(inside_UP[np.arange(len(peaks_U)), peaks_U].sum()), float((attention_UP * inside_UP).sum())
