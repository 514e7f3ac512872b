"""What fits into the span of audio that a model reads at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from sonotune.types import Clip, Finding
from sonotune.wording import long_time

WINDOW_SLACK_S: Final = 0.01
"""What rounding in a manifest, resampling and differences of times may add to a clip; the end beyond is cut off."""

MAX_TRAINING_S: Final = 30.0
"""Longest training clip where neither a setting nor a shorter window of the model says otherwise."""


def training_limit_s(window_s: float | None, max_duration_s: float | None) -> float:
    """Longest clip that is trained on: the setting, or 30 s where it is None, and never more than the window."""
    return min(MAX_TRAINING_S if max_duration_s is None else max_duration_s, math.inf if window_s is None else window_s)


def fit_for_training(
    clips: Sequence[Clip], limit_s: float, cut: Callable[[Clip, float], list[Clip]] = lambda clip, limit_s: []
) -> tuple[list[Clip], list[Finding]]:
    """Leave out clips too long to train on: cut short, they would stand for words that the model never read.

    They are not bad clips, only long ones: evaluation reads them in windows.

    Args:
        clips: The training clips.
        limit_s: Longest clip that is kept, in seconds.
        cut: Cuts a long clip into shorter ones with the text of each; no pieces where it cannot tell.

    Returns:
        The clips that are trained on, in order, and one finding each for those left out and those cut.
    """
    kept: list[Clip] = []
    left_out: list[Clip] = []
    divided: list[Clip] = []
    for clip in clips:
        pieces = [clip] if clip.duration_s <= limit_s + WINDOW_SLACK_S else cut(clip, limit_s)
        if not pieces:
            left_out.append(clip)
        elif pieces != [clip]:
            divided.append(clip)
        kept += pieces
    findings = []
    for check, found, outcome in (
        (
            "data.too_long",
            left_out,
            "left out of training. `sonotune data resegment` cuts them between their words; they can be scored",
        ),
        ("train.cut_at_words", divided, "cut between their words, each piece with its own text"),
    ):
        if found:
            length = long_time(sum(clip.duration_s for clip in found))
            findings.append(
                Finding(
                    check=check,
                    severity="warning" if found is left_out else "note",
                    message=f"{len(found)} of {len(clips)} training clips ({length}) are longer than "
                    f"{limit_s:.4g} s, the most that is trained on at a time, and are {outcome}.",
                    clip_ids=tuple(clip.id for clip in found),
                    measured=max(clip.duration_s for clip in found),
                    limit=limit_s,
                    unit="s",
                )
            )
    return kept, findings
