"""Audio classification: one class a clip, or any number of them.

Shape letters: B clips, C classes, U classes of a clip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sonotune.errors import ManifestError
from sonotune.features.batching import Batch
from sonotune.metrics.classification import class_report, classification_scores, confusion
from sonotune.models.base import LoadedModel, ModelFamily
from sonotune.models.losses import Losses
from sonotune.tasks.base import PreparedClips, TaskSettings
from sonotune.types import DEFAULT_DECODING, Clip, DecodingSettings, Finding, Prediction, Score

DECIDING = ("accuracy", "f1_macro", "map")
"""Scores that can decide."""
_THRESHOLD = 0.5


class Classify:
    """Classification with any family whose logits are one row of classes a clip.

    Args:
        family: Computes the logits.
        settings: Whether a clip may have several classes, and how classes weigh.
    """

    name = "classify"

    def __init__(self, family: ModelFamily, settings: TaskSettings) -> None:
        settings.check_primary(self.name, DECIDING)
        self.family = family
        self._primary = settings.primary
        self.reference: Literal["text", "label"] | None = None if settings.multi_label else "label"
        self._many = settings.multi_label
        self._balanced = settings.class_weights == "balanced"
        self._weights_C: Tensor | None = None

    def outputs(self, clips: Sequence[Clip]) -> tuple[str, ...]:
        """Every class of the clips, in alphabetical order."""
        return tuple(sorted({label for clip in clips for label in clip.label}))

    def prepare(self, loaded: LoadedModel, clips: Sequence[Clip]) -> PreparedClips:
        """Number the classes; a clip with none or several becomes a finding where it should have one.

        Raises:
            ManifestError: A class is not among the model's, or there is nothing to tell apart.
        """
        _refuse_unknown(loaded, clips)
        self._refuse_nothing_to_learn(loaded, clips)
        index_of = {label: index for index, label in enumerate(loaded.labels)}
        kept, targets, findings = [], [], []
        for clip in clips:
            if len(clip.label) != 1 and not self._many:
                found = f"the classes {', '.join(clip.label)}" if clip.label else "no class"
                message = f"clip {clip.id!r} has {found}; one is needed. The clip is left out."
                if clip.label:
                    message += " Set data.multi_label=true if clips have several."
                findings.append(Finding(check="label.count", severity="error", message=message, clip_ids=(clip.id,)))
                continue
            kept.append(clip)
            targets.append(np.array(sorted(index_of[label] for label in clip.label), dtype=np.int64))
        if self._balanced:
            self._weights_C = _balanced_weights(targets, len(loaded.labels))
        return PreparedClips(clips=tuple(kept), targets=tuple(targets), findings=tuple(findings))

    def loss(self, loaded: LoadedModel, batch: Batch, *, label_smoothing: float = 0.0) -> Losses:
        """Cross-entropy, or the mean binary cross-entropy over the classes where a clip may have several.

        Targets of mixed clips are mixed in the same shares. A clip counts once, whatever its weight; balanced weights
        have a mean of 1 over the training clips.
        """
        logits_BC = self.family.logits(loaded, batch).float()
        targets_BC = _soft_targets(batch, logits_BC.shape[1])
        weights_C = None if self._weights_C is None else self._weights_C.to(logits_BC.device)
        if self._many:
            smooth_BC = targets_BC * (1 - label_smoothing) + label_smoothing / 2
            losses_BC = F.binary_cross_entropy_with_logits(logits_BC, smooth_BC, reduction="none", weight=weights_C)
            sums_B = losses_BC.mean(dim=1)
        else:
            sums_B = F.cross_entropy(
                logits_BC, targets_BC, weight=weights_C, reduction="none", label_smoothing=label_smoothing
            )
        return Losses(sums=sums_B, counts=torch.ones(len(sums_B), dtype=torch.int64, device=sums_B.device))

    @torch.no_grad()
    def predict(
        self, loaded: LoadedModel, batch: Batch, settings: DecodingSettings = DEFAULT_DECODING
    ) -> list[Prediction]:
        """Probability of each class, none where a logit is not finite; settings of text decoding mean nothing here."""
        logits_BC = self.family.logits(loaded, batch).float()
        scores_BC = logits_BC.sigmoid() if self._many else logits_BC.softmax(dim=-1)
        finite_B = logits_BC.isfinite().all(dim=1)
        return [
            Prediction(
                clip_id=clip.id, scores=dict(zip(loaded.labels, row, strict=True)) if finite else {}, finite=finite
            )
            for clip, row, finite in zip(batch.clips, scores_BC.tolist(), finite_B.tolist(), strict=True)
        ]

    def has_reference(self, clip: Clip) -> bool:
        """See `Task.has_reference`; where several classes are allowed, none is a reference as well."""
        return bool(clip.label) or self._many

    def check_references(self, loaded: LoadedModel, clips: Sequence[Clip]) -> None:
        """Raises ManifestError where a class is not among the model's, or a clip has several where it has one."""
        _refuse_unknown(loaded, clips)
        several = [clip for clip in clips if len(clip.label) > 1]
        if several and not self._many:
            others = f" and {len(several) - 1} more clips have several" * (len(several) > 1)
            raise ManifestError(
                f"clip {several[0].id!r} has the classes {', '.join(several[0].label)}{others}; a clip that is scored "
                "has one. Mend its label, or set data.multi_label=true if clips have several."
            )

    def _refuse_nothing_to_learn(self, loaded: LoadedModel, clips: Sequence[Clip]) -> None:
        """Raises ManifestError where a model would learn to say the same of everything."""
        if not self._many and len(loaded.labels) == 1:
            raise ManifestError(
                f"the training clips and the model have one class, {loaded.labels[0]!r}; two or more are needed to "
                "tell apart. Add clips of another class, such as sounds that are none of it."
            )
        if self._many and clips and not any(clip.label for clip in clips):
            raise ManifestError(
                f"none of the {len(clips)} training clips has a class, so there is nothing to learn. "
                "Fill the column 'label' of data.train; an empty list says that a clip has no class."
            )

    def primary_of(self, clips: Sequence[Clip]) -> tuple[str, str]:
        """The score that is asked for, else mAP where a clip may have several classes, and accuracy otherwise."""
        if self._primary != "auto":
            return self._primary, "asked for (evaluation.primary)"
        return ("map", "a clip may have several classes") if self._many else ("accuracy", "a clip has one class")

    def score(
        self,
        predictions: Sequence[Prediction],
        clips: Sequence[Clip],
        *,
        primary: str | None = None,
        resamples: int = 1000,
        seed: int = 0,
    ) -> dict[str, Score]:
        """Accuracy, macro F1 and mean average precision."""
        seen = self._aligned(predictions, clips)
        return classification_scores(
            seen.truths,
            seen.scores,
            seen.labels,
            multi_label=self._many,
            threshold=_THRESHOLD,
            groups=[clip.speaker for clip in clips],
            primary=primary or self.primary_of(clips)[0],
            bootstrap=resamples,
            seed=seed,
        )

    def details(self, predictions: Sequence[Prediction], clips: Sequence[Clip]) -> tuple[dict[str, Any], list[Finding]]:
        """Every class by itself and, where a clip has one class, the confusion matrix."""
        seen = self._aligned(predictions, clips)
        report = class_report(seen.truths, seen.scores, seen.labels, multi_label=self._many, threshold=_THRESHOLD)
        details: dict[str, Any] = {"classes": [row.to_json() for row in report]}
        if not self._many:
            decided = [max(scores, key=scores.__getitem__) if scores else "" for scores in seen.scores]
            heard = [index for index, label in enumerate(decided) if label]
            if heard:
                matrix = confusion([seen.truths[i][0] for i in heard], [decided[i] for i in heard], seen.labels)
                details["confusion"] = {"labels": list(seen.labels), "counts": matrix.tolist()}
        return details, [] if any(seen.truths) else [_no_class_at_all(len(clips))]

    def row(self, prediction: Prediction, clip: Clip) -> Mapping[str, Any]:
        """The true classes, those decided, and the probability of each."""
        return {"labels": list(clip.label), "decided": self.decide(prediction), "scores": dict(prediction.scores)}

    def decide(self, prediction: Prediction) -> list[str]:
        """The classes that are given to a clip; none for a clip that could not be read."""
        if self._many:
            return [label for label, score in prediction.scores.items() if score >= _THRESHOLD]
        scores = prediction.scores
        return [max(scores, key=scores.__getitem__)] if scores else []

    def _aligned(self, predictions: Sequence[Prediction], clips: Sequence[Clip]) -> _Seen:
        heard = next((prediction.scores for prediction in predictions if prediction.scores), None)
        return _Seen(
            truths=[clip.label for clip in clips],
            scores=[prediction.scores for prediction in predictions],
            labels=self.outputs(clips) if heard is None else tuple(heard),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    truths: list[tuple[str, ...]]
    scores: list[Mapping[str, float]]
    labels: tuple[str, ...]


def _refuse_unknown(loaded: LoadedModel, clips: Sequence[Clip]) -> None:
    """Raises ManifestError where a class is not among the model's."""
    if unknown := sorted({label for clip in clips for label in clip.label} - set(loaded.labels)):
        known = ", ".join(loaded.labels[:8]) + f" and {len(loaded.labels) - 8} more" * (len(loaded.labels) > 8)
        advice = (
            "The output layer is made for the classes of the training clips that are used: add clips of the others, "
            "look at data.limit, or leave them out of the evaluation."
            if loaded.new_outputs
            else "Training and evaluation need the same classes; model.outputs=data makes a new output layer."
        )
        raise ManifestError(
            f"{len(unknown)} classes of the clips are not among the {len(loaded.labels)} that the model knows: "
            f"{', '.join(unknown[:8])}. It knows {known}. {advice}"
        )


def _no_class_at_all(clips: int) -> Finding:
    message = (
        f"none of {clips} clips has a class: scores of 0 say nothing about the model. "
        "Fill the column 'label', if these clips were to be scored."
    )
    return Finding(check="label.none", severity="warning", message=message, measured=float(clips), unit="clips")


def _soft_targets(batch: Batch, classes: int) -> Tensor:
    """Share of each class in each clip (B, C)."""
    targets_BC = _one_hot(batch.targets, classes)
    if batch.mixed_targets is None or batch.mixed_shares is None:
        return targets_BC
    shares_B1 = batch.mixed_shares.unsqueeze(1).to(targets_BC)
    return (1 - shares_B1) * targets_BC + shares_B1 * _one_hot(batch.mixed_targets, classes)


def _one_hot(ids_BU: Tensor, classes: int) -> Tensor:
    targets_BC = torch.zeros(len(ids_BU), classes + 1, device=ids_BU.device)
    targets_BC.scatter_(1, torch.where(ids_BU < 0, classes, ids_BU), 1.0)  # padding goes to a column of its own
    return targets_BC[:, :classes]


def _balanced_weights(targets: Sequence[Any], classes: int) -> Tensor:
    """Weight of each class (C,), clips / (classes that occur x clips of the class); 1 for a class without clips."""
    counts = Counter(int(index) for ids in targets for index in ids)
    total = sum(counts.values())
    return torch.tensor([total / (len(counts) * counts[index]) if counts[index] else 1.0 for index in range(classes)])
