"""What a report shows of classes: scores by slice, every class, what is taken for what, and the worst clips.

A class that the clips lack is called absent: a rate of zero would say something about it, and nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from sonotune.evaluation.prediction_rows import clip_of
from sonotune.metrics.classification import ClassScore, class_report
from sonotune.metrics.error_rate import AlignedWord
from sonotune.metrics.intervals import block_bootstrap_ratio, wilson
from sonotune.metrics.slices import slice_clips
from sonotune.reports.edits import direction
from sonotune.reports.matrix import Matrix, draw_matrix
from sonotune.reports.predictions import MAX_WORST, facts_of, shown_slices

MAX_CLASSES = 60
"""Rows of the class table, and of the matrix; more are named by their number."""

MAX_CONFUSIONS = 20
"""Pairs of classes in the list of confusions."""

_MAX_ABSENT = 30
_MAX_TRUTHS = 3
_RESAMPLES = 1000


class ClassView(TypedDict):
    """What the template needs of a file of class predictions.

    Attributes:
        many: Whether a clip may have several classes.
        clips: Clips with a known reference.
        slices: As `predictions.shown_slices` gives them; a row has `accuracy`, `low`, `high` and `f1_macro`.
        table: The worst classes first; `left_out` says how many more there are.
        left_out: Classes beyond the table.
        absent: Names of classes that no clip has, at most some.
        absent_more: How many more of them there are.
        matrix: The confusion matrix as SVG, or nothing.
        matrix_notes: Sentences to read it by.
        confusions: `truth`, `decided`, `count` and `of`, the most frequent first.
        confusions_more: Pairs beyond the list.
        worst: Clips with the highest probability for a wrong class.
        wrong: Clips that were decided wrongly.
    """

    many: bool
    clips: int
    slices: list[dict[str, Any]]
    table: list[ClassScore]
    left_out: int
    absent: list[str]
    absent_more: int
    matrix: str
    matrix_notes: list[str]
    confusions: list[dict[str, Any]]
    confusions_more: int
    worst: list[dict[str, Any]]
    wrong: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """A prediction: its line, what was so, what was decided, and the probability of each class."""

    row: Mapping[str, Any]
    truth: tuple[str, ...]
    decided: tuple[str, ...]
    scores: Mapping[str, float]

    @property
    def right(self) -> bool:
        return set(self.truth) == set(self.decided)

    @property
    def highest_wrong(self) -> tuple[float, str]:
        """Probability and name of the likeliest class that the clip does not have; 0 and "" if none."""
        wrong = [(score, label) for label, score in self.scores.items() if label not in self.truth]
        return max(wrong, key=lambda pair: pair[0], default=(0.0, ""))


def view_classes(
    predictions: Sequence[Mapping[str, Any]], edges_s: Sequence[float], *, multi_label: bool | None = None
) -> ClassView | None:
    """All that the report shows of the rows of a classification.

    Args:
        predictions: Lines as `tasks.classify` writes them; those without `labels` are passed over.
        edges_s: Borders of the duration slices, in seconds.
        multi_label: Whether a clip may have several classes; None where the run does not say, and then the rows do:
            several classes, or none, in one of them.

    Returns:
        None where no row tells its classes.
    """
    judged = [_read(row) for row in predictions if isinstance(row.get("labels"), list | tuple)]
    many = any(len(one.truth) > 1 or len(one.decided) > 1 for one in judged) or (
        any(not one.truth for one in judged) if multi_label is None else multi_label
    )
    if not many:  # a clip without a class is one whose truth is not known
        judged = [one for one in judged if one.truth]
    if not judged:
        return None
    labels = _labels(judged)
    report = _report(judged, labels)
    absent = [row.label for row in report if not row.support]
    table = sorted(report, key=lambda row: (row.f1 is None, row.f1 or 0.0, -row.support))
    heard = [] if many else [one for one in judged if one.decided]
    matrix, notes, confusions = _confusion(heard, labels, len(judged)) if heard else ("", [], [])
    worst, wrong = _worst(judged)
    return ClassView(
        many=many,
        clips=len(judged),
        slices=_slices(judged, labels, edges_s),
        table=table[:MAX_CLASSES],
        left_out=max(0, len(table) - MAX_CLASSES),
        absent=absent[:_MAX_ABSENT],
        absent_more=max(0, len(absent) - _MAX_ABSENT),
        matrix=matrix,
        matrix_notes=notes,
        confusions=confusions[:MAX_CONFUSIONS],
        confusions_more=max(0, len(confusions) - MAX_CONFUSIONS),
        worst=worst,
        wrong=wrong,
    )


def _read(row: Mapping[str, Any]) -> _Judged:
    scores = row.get("scores")
    return _Judged(
        row=row,
        truth=tuple(map(str, row["labels"])),
        decided=tuple(map(str, row.get("decided") or ())),
        scores={
            str(label): float(score) if isinstance(score, int | float) and math.isfinite(score) else 0.0
            for label, score in (scores.items() if isinstance(scores, Mapping) else ())
        },
    )


def _labels(judged: Sequence[_Judged]) -> list[str]:
    """The model's classes in its order, and then any that only the clips name."""
    known = list(next((one.scores for one in judged if one.scores), {}))
    named = {label for one in judged for label in (*one.truth, *one.decided)}
    return known + sorted(named - set(known))


def _report(judged: Sequence[_Judged], labels: Sequence[str]) -> list[ClassScore]:
    # What was decided counts, by whatever threshold, so the decisions go in as certainties.
    return class_report(
        [one.truth for one in judged], [dict.fromkeys(one.decided, 1.0) for one in judged], labels, multi_label=True
    )


def _slices(judged: Sequence[_Judged], labels: Sequence[str], edges_s: Sequence[float]) -> list[dict[str, Any]]:
    clips = [clip_of(one.row) for one in judged]
    right = [float(one.right) for one in judged]
    groups: dict[str, list[dict[str, Any]]] = {}
    for part in slice_clips(clips, duration_edges_s=edges_s):
        hits = [right[index] for index in part.members]
        accuracy = math.fsum(hits) / len(hits)
        low, high = _interval(hits, [clips[index].speaker for index in part.members])
        found = [row.f1 for row in _report([judged[index] for index in part.members], labels) if row.f1 is not None]
        row = {
            "value": part.value,
            "clips": len(hits),
            "accuracy": accuracy,
            "low": min(low, accuracy),
            "high": max(high, accuracy),
            "f1_macro": math.fsum(found) / len(found) if found else None,
            "badness": 1 - accuracy,
            "bar": 100 * accuracy,
        }
        groups.setdefault(part.by, []).append(row)
    return shown_slices(groups)


def _interval(hits: Sequence[float], speakers: Sequence[str | None]) -> tuple[float, float]:
    found = block_bootstrap_ratio(hits, [1.0] * len(hits), speakers, resamples=_RESAMPLES, seed=0)
    if found.high > found.low:
        return found.low, found.high
    return wilson(math.fsum(hits), len(hits))  # all right or all wrong: resampling says nothing could be otherwise


# --- what is taken for what ----------------------------------------------------------------------------------------


def _confusion(
    heard: Sequence[_Judged], labels: Sequence[str], clips: int
) -> tuple[str, list[str], list[dict[str, Any]]]:
    """The picture, the sentences to read it by, and all confusions."""
    index_of = {label: index for index, label in enumerate(labels)}
    counts_CC = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(
        counts_CC, ([index_of[one.truth[0]] for one in heard], [index_of[one.decided[0]] for one in heard]), 1
    )  # `metrics.classification.confusion` says the same, after half a second of imports
    kept = _most_confused(counts_CC)
    totals_C = counts_CC.sum(axis=1)
    seen = int(((totals_C + counts_CC.sum(axis=0)) > 0).sum())
    notes = ["Colour grows with the share of the row; the number at its end is the clips of the class."]
    if len(kept) < seen:
        notes.append(f"Of {seen} classes, the {len(kept)} that are confused most often are drawn.")
    if seen < len(labels):
        number = len(labels) - seen
        notes.append(f"{number} {'class' if number == 1 else 'classes'} that no clip has and none was given left out.")
    if len(heard) < clips:
        number = clips - len(heard)
        notes.append(f"{number} {'clip' if number == 1 else 'clips'} without a decision left out.")
    svg = draw_matrix(
        Matrix(
            labels=[labels[index] for index in kept],
            counts=counts_CC[np.ix_(kept, kept)].tolist(),
            totals=totals_C[kept].tolist(),
        ),
        title="Confusion matrix: rows are the truth, columns what was decided",
    )
    confusions = [
        {"truth": labels[row], "decided": labels[column], "count": int(counts_CC[row, column]), "of": int(total)}
        for row, column in np.argwhere(counts_CC).tolist()
        if row != column and (total := totals_C[row])
    ]
    return svg, notes, sorted(confusions, key=lambda pair: (-pair["count"], pair["of"]))


def _most_confused(counts_CC: NDArray[np.int64]) -> list[int]:
    """Places of the classes to draw, in order: those that occur, at most `MAX_CLASSES` with the most mistakes."""
    wrong_CC = counts_CC - np.diag(np.diag(counts_CC))
    mistakes_C = wrong_CC.sum(axis=0) + wrong_CC.sum(axis=1)
    occurs_C = counts_CC.sum(axis=0) + counts_CC.sum(axis=1) > 0
    places: list[int] = np.flatnonzero(occurs_C).tolist()
    return sorted(sorted(places, key=lambda place: -mistakes_C[place])[:MAX_CLASSES])


# --- the worst clips -----------------------------------------------------------------------------------------------


def _worst(judged: Sequence[_Judged]) -> tuple[list[dict[str, Any]], int]:
    """Wrong clips with the highest probability for a class they do not have, then in file order; and all wrong ones."""
    wrong = sorted((one for one in judged if not one.right), key=lambda one: -one.highest_wrong[0])
    worst = [
        {
            "id": one.row.get("id", ""),
            "facts": " · ".join([*_likely(one), *facts_of(one.row)]),
            "words": (words := _words(one)),
            "direction": direction(*(name for word in words for name in word[1:])),
            "silent": not one.scores,
        }
        for one in wrong[:MAX_WORST]
    ]
    return worst, len(wrong)


def _likely(one: _Judged) -> list[str]:
    if not one.scores:
        return []
    score, label = one.highest_wrong
    told = [(score, label)] if label else []
    told += [(one.scores.get(label, 0.0), label) for label in one.truth[:_MAX_TRUTHS]]
    return [f"{100 * score:.1f} % {label}" for score, label in told]


def _words(one: _Judged) -> list[AlignedWord]:
    """The classes as the words of a text: right, missed, or made up; one taken for another is a substitution."""
    missed = [label for label in one.truth if label not in one.decided]
    made_up = [label for label in one.decided if label not in one.truth]
    if len(one.truth) == len(one.decided) == len(missed) == 1:
        return [AlignedWord("substitute", missed[0], made_up[0])]
    kinds: list[tuple[Literal["equal", "delete"], str]] = [
        ("delete" if label in missed else "equal", label) for label in one.truth
    ]
    return [AlignedWord(kind, label, label if kind == "equal" else "") for kind, label in kinds] + [
        AlignedWord("insert", "", label) for label in made_up
    ]
