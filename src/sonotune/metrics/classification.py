"""Scores of classification: accuracy, macro F1, mean average precision, and every class by itself.

A class that the test set lacks has no recall and no F1. It is absent, in the report and in every mean, and not zero:
the test set says nothing about it. What is given it by mistake counts in the recall of the true class.

Shape letters: N clips, C classes, R resamples, G groups that are resampled.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sonotune.errors import TextError
from sonotune.metrics.intervals import MIN_BLOCKS, percentile_interval, wilson
from sonotune.types import Score

Floats = NDArray[np.float64]

_RESAMPLES_AT_ONCE: Final = 256  # keeps the average precision at a few kB a clip


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """One class of a test set.

    Attributes:
        label: Its name.
        support: Clips that have it.
        predicted: Clips that were given it.
        precision: Share of those given it that have it; None where it was never given.
        recall: Share of those that have it that were given it; None where the test set lacks it.
        f1: Their harmonic mean; None where the test set lacks it.
    """

    label: str
    support: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None

    def to_json(self) -> dict[str, Any]:
        """The form of records and `--json` outputs; an absent class has `null`."""
        return {
            "label": self.label,
            "support": self.support,
            "predicted": self.predicted,
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """Truth, decision and score of every clip and class, each (N, C), and which clips were heard (N,)."""

    truth: NDArray[np.bool_]
    decided: NDArray[np.bool_]
    scores: Floats
    heard: NDArray[np.bool_]


_TITLES = {"accuracy": "Accuracy", "f1_macro": "Macro F1", "map": "mAP"}


def classification_scores(
    truths: Sequence[Collection[str]],
    scores: Sequence[Mapping[str, float]],
    labels: Sequence[str],
    *,
    multi_label: bool = False,
    threshold: float = 0.5,
    groups: Sequence[Hashable | None] | None = None,
    primary: str | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Score]:
    """Accuracy, macro F1 and mean average precision with intervals.

    Args:
        truths: Labels of each clip; exactly one each unless `multi_label`.
        scores: Label -> probability of each clip; a label that is left out has 0. A clip without any, such as one that
            could not be read, is given no class and is wrong whatever it is.
        labels: Every class, in the order of the model's outputs.
        multi_label: Whether a clip may have any number of labels. Each is then decided by `threshold`, and accuracy is
            the share of clips whose whole set is right; otherwise the largest score decides.
        threshold: Least score at which a label is given, if `multi_label`.
        groups: What each clip belongs to, such as its speaker; whole groups are resampled where there are at least
            `intervals.MIN_BLOCKS`, single clips otherwise.
        primary: Name of the score that decides; None takes mean average precision if `multi_label`, else accuracy.
        bootstrap: Resamples.
        seed: Of the resampling.

    Returns:
        `accuracy`, `f1_macro` (over the classes that the test set has) and `map`.

    Raises:
        TextError: There are no clips, lengths differ, or a label is unknown or missing.
    """
    table = _table(truths, scores, labels, multi_label=multi_label, threshold=threshold)
    count = len(truths)
    weights_RN, resampled = _weights(count, groups, bootstrap=bootstrap, seed=seed)
    all_1N = np.ones((1, count))
    right_N = ((table.truth == table.decided).all(axis=1) & table.heard).astype(np.float64)
    accuracy = float(right_N.mean())
    low, high = percentile_interval(weights_RN @ right_N / weights_RN.sum(axis=1))
    if low == high:  # all right or all wrong: resampling says that nothing could be otherwise
        low, high = wilson(float(right_N.sum()), count)
    made, decides = {"accuracy": (accuracy, low, high)}, primary or ("map" if multi_label else "accuracy")
    for name, metric in (("f1_macro", _f1_macro), ("map", _mean_average_precision)):
        made[name] = (float(metric(table, all_1N)[0]), *percentile_interval(metric(table, weights_RN)))
    return {
        name: Score(
            name=name,
            value=value,
            low=min(low, value),
            high=max(high, value),
            count=count,
            better="higher",
            title=_TITLES[name],
            role="primary" if name == decides else "plain",
            detail={"resampled": resampled, "classes": float(table.truth.any(axis=0).sum())},
        )
        for name, (value, low, high) in made.items()
    }


def class_report(
    truths: Sequence[Collection[str]],
    scores: Sequence[Mapping[str, float]],
    labels: Sequence[str],
    *,
    multi_label: bool = False,
    threshold: float = 0.5,
) -> list[ClassScore]:
    """Every class by itself, in the order of `labels`; arguments and errors as in `classification_scores`."""
    table = _table(truths, scores, labels, multi_label=multi_label, threshold=threshold)
    rows = []
    for index, label in enumerate(labels):
        truth_N, decided_N = table.truth[:, index], table.decided[:, index]
        support, predicted = int(truth_N.sum()), int(decided_N.sum())
        hits = int((truth_N & decided_N).sum())
        rows.append(
            ClassScore(
                label=label,
                support=support,
                predicted=predicted,
                precision=hits / predicted if predicted else None,
                recall=hits / support if support else None,
                f1=2 * hits / (support + predicted) if support else None,
            )
        )
    return rows


def confusion(truths: Sequence[str], decided: Sequence[str], labels: Sequence[str]) -> NDArray[np.int64]:
    """Confusion matrix (C, C): rows are what was so, columns what was said, both in the order of `labels`.

    Raises:
        TextError: There are no clips, lengths differ, or a label is unknown.
    """
    from sklearn.metrics import confusion_matrix  # noqa: PLC0415  (half a second, for classification only)

    _check(len(truths), len(decided), {*truths, *decided}, labels)
    matrix: NDArray[np.int64] = confusion_matrix(truths, decided, labels=list(labels))
    return matrix


def _table(
    truths: Sequence[Collection[str]],
    scores: Sequence[Mapping[str, float]],
    labels: Sequence[str],
    *,
    multi_label: bool,
    threshold: float,
) -> _Table:
    named = {label for found in truths for label in found} | {label for row in scores for label in row}
    _check(len(truths), len(scores), named, labels)
    if not multi_label and (odd := next((found for found in truths if len(found) != 1), None)) is not None:
        raise TextError(
            f"a clip has the labels {sorted(odd)}; exactly one is allowed. Mend the manifest, or "
            "train with several labels."
        )
    index_of = {label: index for index, label in enumerate(labels)}
    truth_NC = np.zeros((len(truths), len(labels)), dtype=np.bool_)
    scores_NC = np.zeros((len(truths), len(labels)))
    for row, (found, given) in enumerate(zip(truths, scores, strict=True)):
        truth_NC[row, [index_of[label] for label in found]] = True
        scores_NC[row, [index_of[label] for label in given]] = list(given.values())
    heard_N = np.array([bool(given) for given in scores])
    if multi_label:
        decided_NC = scores_NC >= threshold
    else:
        decided_NC = np.zeros_like(truth_NC)
        decided_NC[np.arange(len(truths)), scores_NC.argmax(axis=1)] = heard_N
    return _Table(truth=truth_NC, decided=decided_NC, scores=scores_NC, heard=heard_N)


def _check(truths: int, scores: int, named: Collection[str], labels: Sequence[str]) -> None:
    if truths != scores or not truths:
        raise TextError(
            f"classification needs one prediction a clip and at least one clip; found {scores} for {truths}."
        )
    if len(set(labels)) != len(labels):
        raise TextError("a class stands twice in the list of classes.")
    if unknown := sorted(set(named) - set(labels)):
        raise TextError(
            f"the model has no class {unknown[0]!r}; it has {', '.join(labels[:20])}{', ...' * (len(labels) > 20)}. "
            "Training and evaluation must have the same classes."
        )


def _weights(count: int, groups: Sequence[Hashable | None] | None, *, bootstrap: int, seed: int) -> tuple[Floats, str]:
    """How often each clip is in each resample (R, N), and whether groups or clips were drawn."""
    owners_N, resampled = np.arange(count), "clip"
    if groups is not None and all(group is not None for group in groups):
        index_of: dict[Hashable | None, int] = {}
        named_N = np.array([index_of.setdefault(group, len(index_of)) for group in groups])
        if len(index_of) >= MIN_BLOCKS:
            owners_N, resampled = named_N, "speaker"
    number = int(owners_N.max()) + 1
    drawn_RG = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=bootstrap)
    return drawn_RG[:, owners_N].astype(np.float64), resampled


def _f1_macro(table: _Table, weights_RN: Floats) -> Floats:
    """Macro F1 of each resample over the classes it has (R,)."""
    hits_RC = weights_RN @ (table.truth & table.decided)
    support_RC, given_RC = weights_RN @ table.truth, weights_RN @ table.decided
    present_RC = support_RC > 0
    f1_RC = np.divide(2 * hits_RC, support_RC + given_RC, out=np.zeros_like(hits_RC), where=present_RC)
    return _mean_over(f1_RC, present_RC)


def _mean_average_precision(table: _Table, weights_RN: Floats) -> Floats:
    """Mean over the classes of each resample of the area under precision and recall (R,).

    Source: `sklearn.metrics.average_precision_score`, here for weights; clips of one score are one step.
    """
    resamples, classes = len(weights_RN), table.truth.shape[1]
    found_RC, present_RC = np.zeros((resamples, classes)), np.zeros((resamples, classes), dtype=np.bool_)
    for index in range(classes):
        order = np.argsort(-table.scores[:, index], kind="stable")
        ranked = table.scores[order, index]
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # the last clip of each score
        truth_N = table.truth[order, index]
        for start in range(0, resamples, _RESAMPLES_AT_ONCE):
            part = slice(start, start + _RESAMPLES_AT_ONCE)
            ranked_RN = weights_RN[part][:, order]
            seen_RE = np.cumsum(ranked_RN, axis=1)[:, ends]
            hits_RE = np.cumsum(ranked_RN * truth_N, axis=1)[:, ends]
            total_R = hits_RE[:, -1]
            steps_RE = np.diff(hits_RE, axis=1, prepend=0.0)
            precision_RE = np.divide(hits_RE, seen_RE, out=np.zeros_like(hits_RE), where=seen_RE > 0)
            found_RC[part, index] = (precision_RE * steps_RE).sum(axis=1) / np.maximum(total_R, 1.0)
            present_RC[part, index] = total_R > 0
    return _mean_over(found_RC, present_RC)


def _mean_over(values_RC: Floats, present_RC: NDArray[np.bool_]) -> Floats:
    counts_R = np.maximum(present_RC.sum(axis=1), 1)
    means_R: Floats = (values_RC * present_RC).sum(axis=1) / counts_R
    return means_R
