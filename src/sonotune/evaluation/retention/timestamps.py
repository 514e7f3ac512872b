"""The panel of timestamps: does the model still place the end of speech in time?

Whisper writes a time before and after each segment where it is not told to leave times out. Tuning on texts without
times never trains them, but moves the states that they are read from; and the sequential decoding of long recordings
by other tools goes on where the last time says that speech ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from sonotune.audio import io
from sonotune.audio.activity import speech_mask, speech_spans
from sonotune.audio.nonspeech import RATE_HZ
from sonotune.errors import ManifestError
from sonotune.evaluation.retention.base import Measured, PanelRequest, PanelScore, Predict, Question, first_windows
from sonotune.features.batching import Batch
from sonotune.types import Clip, DecodingSettings, Finding

TOLERANCE_S: Final = 0.5
"""How far the last time may be from where the recording becomes quiet for good."""
_END: Final = "end_of_speech_s"
"""Kept with each clip, whose recording is read for it once."""


class TimestampsPanel:
    """Share of clips whose last time lies where speech ends, by its energy."""

    name = "timestamps"
    takes_source = True

    def refusal(self, task: Any, loaded: Any) -> str | None:
        """The family needs tokens for times."""
        if getattr(loaded.family, "timestamps", None) is not None and loaded.family.writes_timestamps(loaded):
            return None
        return "it has no tokens for times (a published Whisper has)"

    def clips(self, source: str, task: Any, loaded: Any, request: PanelRequest) -> tuple[list[Clip], list[Finding]]:
        """The first window of each clip that somebody is heard in."""
        clips, findings = request.read(source, None)
        ends = [(clip, _end_of_speech_s(clip)) for clip in first_windows(loaded, clips)]
        usable = [replace(clip, extra={**clip.extra, _END: repr(end_s)}) for clip, end_s in ends if end_s is not None]
        if not usable:
            raise ManifestError(
                f"evaluation.keep=timestamps:{source}: none of its {len(clips)} clips is louder anywhere than digital "
                "silence, so no speech ends. Name clips of speech."
            )
        return usable, findings

    def measure(self, task: Any, loaded: Any, clips: Sequence[Clip], predict: Predict) -> Measured:
        """Compare the last time with the end of speech; a clip without a time is a miss."""
        predictions, _ = predict(Question(_times), loaded, clips)
        times = tuple(prediction.text or "" for prediction in predictions)
        right = tuple(float(_is_right(text, clip)) for text, clip in zip(times, clips, strict=True))
        score = PanelScore(
            name="ends_placed",
            title=f"Ends placed within {TOLERANCE_S:g} s",
            counting="share",
            better="higher",
            counts=right,
            totals=(1.0,) * len(clips),
        )
        return Measured((score,), times)


def _is_right(times: str, clip: Clip) -> bool:
    return bool(times) and abs(float(times.split()[-1]) - float(clip.extra[_END])) <= TOLERANCE_S


def _end_of_speech_s(clip: Clip) -> float | None:
    """Seconds from the beginning of the clip to the end of its last loud span; None where all is quiet."""
    waveform_S = io.read(
        clip.path,
        start_s=clip.start_s,
        duration_s=clip.duration_s,
        channel=clip.channel,
        sample_rate_hz=RATE_HZ,
    )
    spans = speech_spans(speech_mask(waveform_S, RATE_HZ))
    return spans[-1][1] if spans else None


def _times(loaded: Any, batch: Batch, settings: DecodingSettings) -> list[str]:
    """Seconds, with spaces between them."""
    found = loaded.family.timestamps(loaded, batch, settings)
    return [" ".join(f"{time_s:.2f}" for time_s in times_s) for times_s in found]


TIMESTAMPS = TimestampsPanel()
