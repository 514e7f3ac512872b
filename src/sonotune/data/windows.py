"""What fits into the span of audio that a model hears at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sonotune.types import Clip, Finding

WINDOW_SLACK_S: Final = 0.01
"""What rounding in a manifest, resampling and differences of times may add to a clip; the end beyond is cut off."""


def within_window(
    clips: Sequence[Clip], window_s: float | None, *, check: str = "audio.too_long", outcome: str = "is left out"
) -> tuple[list[Clip], list[Finding]]:
    """Leave out clips longer than a model hears at a time: cut short, they would stand for words never heard.

    Args:
        clips: The clips.
        window_s: What the model hears, in seconds; None for a model without limit.
        check: Name of the check in the findings.
        outcome: What happens to such a clip, for the message.

    Returns:
        The clips kept, in order, and a finding for each that is not.
    """
    if window_s is None:
        return list(clips), []
    limit_s = window_s + WINDOW_SLACK_S
    findings = [
        Finding(
            check=check,
            severity="error",
            message=f"clip {clip.id!r} lasts {clip.duration_s:.2f} s and the model hears {window_s:.4g} s at a time; "
            f"it {outcome}. Cut it with `start_s` and `duration_s`, or set data.max_duration_s.",
            clip_ids=(clip.id,),
            path=str(clip.path),
            measured=clip.duration_s,
            limit=window_s,
            unit="s",
        )
        for clip in clips
        if clip.duration_s > limit_s
    ]
    return [clip for clip in clips if clip.duration_s <= limit_s], findings
