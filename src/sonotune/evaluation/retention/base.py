"""The seam of panels: what a kind of panel must do to be scored before and after tuning.

A kind is one object in a file of this package and one line in `registry.PANELS`. It makes clips, asks the model about
them, and says for each clip what was counted. Scores, intervals and differences are made of the counts, alike for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sonotune.features.batching import Batch
from sonotune.metrics.intervals import MIN_BLOCKS, block_bootstrap_ratio, poisson, wilson
from sonotune.metrics.paired import PairedDifference, choose_blocks, paired_difference
from sonotune.metrics.paired_shares import paired_share_difference
from sonotune.types import DEFAULT_DECODING, Clip, DecodingSettings, Finding, Prediction, Score

Counting = Literal["errors", "share", "rate"]
"""What a count is of: units of a reference, single clips, or minutes."""
Predict = Callable[[Any, Any, Sequence[Clip]], tuple[list[Prediction], list[Finding]]]
"""`evaluation.evaluate.predict_clips` with its settings: task, model, clips -> predictions and findings."""


class PanelRequest(NamedTuple):
    """What a kind of panel makes clips with.

    Attributes:
        read: Clips of a manifest, checked as those of `data.test` are: source, what each clip must have.
        clips: How many at most.
        seed: Of whatever is drawn.
        folder: Where audio may be written; it is gone when the panels are closed.
        language: Of clips that name none.
    """

    read: Callable[[str, Literal["text", "label"] | None], tuple[list[Clip], list[Finding]]]
    clips: int
    seed: int
    folder: Path
    language: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelScore:
    """One score of a panel, as counts a clip.

    Attributes:
        name: Of the score, such as `wer`.
        title: What people call it.
        counting: What the counts are a part of, which decides the interval.
        better: Which direction is better.
        counts: How often it happened in each clip.
        totals: How often it could have: reference words; 1 for a share of clips; minutes for a rate.
    """

    name: str
    title: str
    counting: Counting
    better: Literal["lower", "higher"] = "lower"
    counts: tuple[float, ...]
    totals: tuple[float, ...]

    def score(self, clips: Sequence[Clip], *, resamples: int, seed: int) -> Score:
        """The score with its interval: bootstrap for errors, Wilson for a share, Poisson for a rate.

        Args:
            clips: The clips that were counted, in order.
            resamples: Of the bootstrap.
            seed: Of the bootstrap.
        """
        counted, total = sum(self.counts), sum(self.totals)
        if self.counting == "share":
            low, high = wilson(counted, total)
        elif self.counting == "rate":
            low, high = poisson(counted, total)
        else:
            speakers = [clip.speaker for clip in clips]
            low, high, _ = block_bootstrap_ratio(self.counts, self.totals, speakers, resamples=resamples, seed=seed)
        return Score(
            name=self.name,
            value=counted / total,
            low=low,
            high=high,
            count=len(self.counts),
            unit="words/min" if self.counting == "rate" else "fraction",
            better=self.better,
            title=self.title,
        )

    def difference(
        self, after: PanelScore, clips: Sequence[Clip], *, resamples: int, seed: int
    ) -> PairedDifference | None:
        """The score after minus this one, paired by clip; None where there are too few clips to say.

        Args:
            after: The same score of the tuned model.
            clips: The clips that were counted, in order.
            resamples: Of the bootstrap.
            seed: Of the bootstrap.
        """
        blocks = choose_blocks([clip.speaker for clip in clips])
        if self.counting == "share" and blocks.unit == "clip":
            one, two = (np.asarray(part.counts) > 0 for part in (self, after))
            return paired_share_difference(self.name, one, two, better=self.better)
        if int(blocks.owner.max(initial=-1)) + 1 < MIN_BLOCKS:
            return None
        return paired_difference(
            self.name,
            [self.counts],
            [after.counts],
            self.totals,
            blocks=blocks,
            better=self.better,
            resamples=resamples,
            seed=seed,
        )


class Measured(NamedTuple):
    """What a model did on a panel.

    Attributes:
        scores: The one that decides comes first.
        texts: What the model wrote on each clip, for a person to read.
    """

    scores: tuple[PanelScore, ...]
    texts: tuple[str, ...]


class PanelKind(Protocol):
    """One kind of panel. Its `name` is that of the registry; a source is what stands behind `name:` in the setting."""

    name: str
    takes_source: bool
    """Whether it is made of a manifest."""

    def refusal(self, task: Any, loaded: Any) -> str | None:
        """Why this model cannot be asked, as the end of a sentence; None where it can."""
        ...

    def clips(self, source: str, task: Any, loaded: Any, request: PanelRequest) -> tuple[list[Clip], list[Finding]]:
        """The clips, the same for every call with the same arguments, and what was found in them.

        Raises:
            ManifestError: The source cannot be read, or no clip of it can be used.
        """
        ...

    def measure(self, task: Any, loaded: Any, clips: Sequence[Clip], predict: Predict) -> Measured:
        """Ask the model, and count."""
        ...


def refuse_classes(task: Any, counted: str = "words") -> str | None:
    """Why a classifier is not asked, for a panel that counts something in texts; None for what writes texts."""
    return None if task.reference == "text" else f"it writes no text, and the panel counts {counted}"


def predicted_rows(task: Any, loaded: Any, clips: Sequence[Clip], predict: Predict) -> list[Mapping[str, Any]]:
    """What the model makes of the clips, a row each as files of predictions have it (`Task.row`)."""
    predictions, _ = predict(task, loaded, clips)
    return [task.row(prediction, clip) for prediction, clip in zip(predictions, clips, strict=True)]


def first_windows(loaded: Any, clips: Sequence[Clip]) -> list[Clip]:
    """The clips, each no longer than the model reads at once."""
    longest_s = loaded.frontend.max_duration_s or float("inf")
    return [replace(clip, duration_s=min(clip.duration_s, longest_s)) for clip in clips]


@dataclass(frozen=True, slots=True)
class Question:
    """As much of a task as `predict_clips` asks for: the text of a clip is what the family answers.

    Attributes:
        ask: Model, batch and decoding -> a text for each clip.
    """

    ask: Callable[[Any, Batch, DecodingSettings], Sequence[str]]

    def predict(self, loaded: Any, batch: Batch, settings: DecodingSettings = DEFAULT_DECODING) -> list[Prediction]:
        """One text a clip."""
        texts = self.ask(loaded, batch, settings)
        return [Prediction(clip_id=clip.id, text=text) for clip, text in zip(batch.clips, texts, strict=True)]


def as_counts(values: NDArray[np.float64] | Sequence[float]) -> tuple[float, ...]:
    """Plain numbers, which JSON can hold."""
    return tuple(float(value) for value in values)
