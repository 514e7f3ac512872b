"""Confidences of the words of an evaluation: made, scored, and calibrated on development clips.

A calibration is fitted on the development clips of a run and nothing else, and stands in its record
(`RunRecord.confidence`) and its exports; whoever uses them gets calibrated confidences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sonotune.errors import ConfigError
from sonotune.metrics.confidence import (
    MIN_WORDS,
    OF_SLICES,
    Calibration,
    RatedWords,
    confidence_curves,
    confidence_scores,
    fit_platt,
    is_of_confidence,
    probability,
    word_log_odds,
)
from sonotune.runs import digest_json
from sonotune.tasks.base import Task, WordTask
from sonotune.types import Clip, Context, DecodingSettings, Finding, Prediction, Score
from sonotune.wording import counted

if TYPE_CHECKING:
    from sonotune.evaluation.augmented import EvaluationChain
    from sonotune.models.base import LoadedModel

CHECK: Final = "evaluation.confidence"


class WordConfidence:
    """Makes and scores the confidences of one evaluation.

    Args:
        task: Says which words are right.
        calibration: None takes confidences as the model gives them.
        settings: What the words are written with (`settings_of`).

    Raises:
        ConfigError: The task has no words.
    """

    def __init__(self, task: Task, calibration: Calibration | None, settings: Mapping[str, Any]) -> None:
        if not isinstance(task, WordTask):
            raise ConfigError(
                "evaluation.confidence=true asks for confidences of words, and classes have none: their probabilities "
                "are given always. Leave it out."
            )
        self._task, self._calibration, self._settings = task, calibration, settings

    def rate(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """The predictions with a confidence of each word."""
        confidence = self._calibration or probability
        return [
            one
            if one.words is None
            else replace(
                one,
                words=tuple(replace(word, confidence=confidence(word_log_odds(word.logprobs))) for word in one.words),
            )
            for one in predictions
        ]

    def score(
        self, predictions: Sequence[Prediction], clips: Sequence[Clip], *, resamples: int, seed: int
    ) -> dict[str, Score]:
        """See `metrics.confidence.confidence_scores`."""
        return confidence_scores(
            self._words(predictions, clips),
            self._calibration,
            speakers=[clip.speaker for clip in clips],
            resamples=resamples,
            seed=seed,
        )

    def score_slice(
        self, predictions: Sequence[Prediction], clips: Sequence[Clip], *, resamples: int, seed: int
    ) -> dict[str, Score]:
        """The scores that are given of slices (`OF_SLICES`); none of fewer than `MIN_WORDS` words."""
        words = self._words(predictions, clips)
        if len(words.right) < MIN_WORDS:
            return {}
        speakers = [clip.speaker for clip in clips]
        return confidence_scores(
            words, self._calibration, speakers=speakers, resamples=resamples, seed=seed, names=OF_SLICES
        )

    def details(self, predictions: Sequence[Prediction], clips: Sequence[Clip]) -> dict[str, Any]:
        """The curves under `confidence`; nothing without words."""
        words = self._words(predictions, clips)
        return {"confidence": confidence_curves(words, self._calibration)} if len(words.right) else {}

    def findings(self, predictions: Sequence[Prediction], clips: Sequence[Clip]) -> list[Finding]:
        """What there is to know about the confidences."""
        words = self._words(predictions, clips)
        told = []
        if not len(words.right):
            told.append(f"no word was written on {counted(len(clips), 'clip')}: word confidences have no scores.")
        elif words.right.all() or not words.right.any():
            every, risk = ("right", 0) if words.right.all() else ("wrong", 100)
            told.append(
                f"all {len(words.right)} words are {every}: AUROC and NCE of word confidences cannot be given, for "
                f"they compare right words with wrong ones, and the risk over coverage (AURC) is {risk} % whatever the "
                "confidences are."
            )
        if self._calibration is None:
            told.append(
                "word confidences are not calibrated: they are the model's own, which is surer than it is right. "
                "`sonotune calibrate` fits them on the development clips of a run."
            )
        elif unlike := _differing(self._calibration.settings, self._settings):
            told.append(
                f"word confidences were calibrated on texts that were written with {unlike}: `sonotune calibrate` "
                "fits them again."
            )
        return [Finding(check=CHECK, severity="note", message=message) for message in told]

    def fit(self, predictions: Sequence[Prediction], clips: Sequence[Clip]) -> tuple[Calibration | None, list[Finding]]:
        """Fit the confidences of words on development clips.

        Args:
            predictions: Of `clips`, in their order, with words.
            clips: Development clips; those without a reference say nothing.

        Returns:
            The calibration; None where the clips cannot say one, and a warning that says why.
        """
        told = [(one, clip) for one, clip in zip(predictions, clips, strict=True) if clip.text is not None]
        words = self._words([one for one, _ in told], [clip for _, clip in told])
        count = len(words.right)
        fitted = fit_platt(words) if count >= MIN_WORDS else None
        if fitted is None:
            problem = (
                f"the development clips have {counted(count, 'word')}, and at least {MIN_WORDS} are needed"
                if count < MIN_WORDS
                else f"of {count} words of the development clips, the surer ones are not shown to be more often right"
            )
            message = f"word confidences were not calibrated: {problem}. They are given as the model has them."
            return None, [Finding(check=CHECK, severity="warning", message=message)]
        return Calibration(
            slope=fitted[0],
            intercept=fitted[1],
            words=count,
            clips=len(np.unique(words.clip)),
            settings=self._settings,
        ), []

    def _words(self, predictions: Sequence[Prediction], clips: Sequence[Clip]) -> RatedWords:
        return self._task.rated_words(predictions, clips)


def decoding_entries(decoding: DecodingSettings) -> dict[str, Any]:
    """What of the decoding decides how sure a word is, for a record."""
    entries = asdict(decoding)
    del entries["confidence"]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in entries.items()}


def settings_of(loaded: LoadedModel, decoding: DecodingSettings, *, context: Context | None = None) -> dict[str, Any]:
    """What decides how sure a word is, by the names of settings.

    Args:
        loaded: The model.
        decoding: How texts are written.
        context: Other than the model's own.
    """
    return {
        **{f"evaluation.{name}": value for name, value in decoding_entries(decoding).items()},
        "model.context": context or loaded.context,
        "quantization.bits": min(loaded.quantized.values(), default=16),
        **{f"frame_merging.{name}": value for name, value in loaded.merging.plain().items()},
    }


def _differing(fitted: Mapping[str, Any], used: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in fitted.items() if used.get(name, value) != value)


def calibration_in(entries: Mapping[str, Any]) -> Calibration | None:
    """The calibration of `RunRecord.confidence` or of an export's description, where it has one."""
    made = entries.get("calibration")
    return None if made is None else Calibration.of_json(made)


def kept_curves(curves: Mapping[str, Any], slices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The curves of an evaluation with the scores of confidences by slice, as a record keeps them.

    Args:
        curves: Of `WordConfidence.details`.
        slices: Of `EvaluationResult.slices`.
    """
    rows = [
        {name: row[name] for name in ("by", "value", "clips")} | {"scores": scores}
        for row in slices
        if (scores := {name: score for name, score in row["scores"].items() if is_of_confidence(name)})
    ]
    return {**curves, "slices": rows}


def curves_of_clips(source: str, digest: str, augmentation: EvaluationChain | None) -> tuple[str, dict[str, Any]]:
    """Under which name a record keeps the curves of some clips, and what it says of them.

    Args:
        source: How the clips were named; others may have the same name in another folder, or later.
        digest: Of the clips.
        augmentation: What they were put through.
    """
    chain = None if augmentation is None else augmentation.to_json()
    name = f"evaluate {digest_json([digest, chain])[:16]}"
    return name, {"source": source, "digest": digest, **({} if chain is None else {"chain": chain["chain"]})}


def with_curves(confidence: Mapping[str, Any], name: str, curves: Mapping[str, Any]) -> dict[str, Any]:
    """`RunRecord.confidence` with the curves of some clips under a name, as the last of them."""
    others = {one: kept for one, kept in confidence.get("curves", {}).items() if one != name}
    return {**confidence, "curves": {**others, name: dict(curves)}}
