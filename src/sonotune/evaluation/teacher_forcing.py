"""How a model rates the transcripts of clips: one pass with the right text given, for perplexity and token accuracy.

The model reads the audio and, at every place of the transcript, the right tokens before it. Only label tokens count,
those of the text and the one that ends it: prompts, languages and padding are given and not predicted. A clip has one
pass, so a transcript that the model cannot hold, or audio beyond its window, has no part in these scores.

Shape letters: B clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sonotune.data.windows import WINDOW_SLACK_S
from sonotune.features.batching import Batch
from sonotune.tasks.base import LabelTask
from sonotune.types import DEFAULT_DECODING, Clip, DecodingSettings, Finding, LabelTokens, Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelPass:
    """The pass over some clips, in the form of a task that predicts nothing but `Prediction.label_tokens`.

    Attributes:
        task: Encodes the transcripts and rates them.
        clips: Those that take part.
        targets: Clip id -> label tokens with what the architecture puts before them.
        left_out: Those that do not.
        found: Clip id -> what the pass found; empty before it was made.
    """

    task: LabelTask
    clips: tuple[Clip, ...]
    targets: Mapping[str, NDArray[np.int64]]
    left_out: tuple[Finding, ...]
    found: Mapping[str, LabelTokens | None] = field(default_factory=dict)

    @classmethod
    def of(cls, task: LabelTask, loaded: Any, clips: Sequence[Clip]) -> Self:
        """Encode the transcripts of clips that have one."""
        told = [clip for clip in clips if clip.text is not None]
        limit_s = loaded.frontend.max_duration_s
        fitting = [clip for clip in told if limit_s is None or clip.duration_s <= limit_s + WINDOW_SLACK_S]
        targets = task.label_targets(loaded, fitting)
        taking_part = tuple(clip for clip in fitting if clip.id in targets)
        without = tuple(clip.id for clip in told if clip.id not in targets)
        left_out = Finding(
            check="evaluation.labels",
            severity="note",
            message=f"{len(without)} of {len(told)} clips have no part in perplexity and label-token accuracy: they "
            "are longer than the model's window, or it cannot write their transcript.",
            clip_ids=without,
            measured=float(len(without)),
            limit=float(len(told)),
            unit="clips",
        )
        return cls(task=task, clips=taking_part, targets=targets, left_out=(left_out,) if without else ())

    def predict(self, loaded: Any, batch: Batch, settings: DecodingSettings = DEFAULT_DECODING) -> list[Prediction]:
        """See `tasks.base.Task.predict`; nothing is decoded."""
        rated = self.task.rate_labels(loaded, batch)
        return [
            Prediction(clip_id=clip.id, label_tokens=one, finite=one is not None)
            for clip, one in zip(batch.clips, rated, strict=True)
        ]

    def with_ratings(self, rated: Sequence[Prediction]) -> Self:
        """The pass after it was made."""
        return replace(self, found={one.clip_id: one.label_tokens for one in rated})

    def merge(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """Predictions with what was found of their clips."""
        return [replace(prediction, label_tokens=self.found.get(prediction.clip_id)) for prediction in predictions]
