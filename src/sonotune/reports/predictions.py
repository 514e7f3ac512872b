"""What a report shows of texts: scores by slice, and the texts with the most errors. Classes: see `classes`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from sonotune.evaluation.prediction_rows import clip_of
from sonotune.metrics.error_rate import align_words, edit_counts, error_rate, word_edits
from sonotune.metrics.slices import slice_clips
from sonotune.reports.edits import direction

Rate = Literal["wer", "cer"]
_UNITS: Final[Mapping[Rate, Literal["word", "character"]]] = {"wer": "word", "cer": "character"}
MAX_WORST = 20
"""Predictions shown with their edits; the file in `predictions/` has all."""

MAX_SLICES = 40
"""Slices shown of one property, the worst first when there are more."""


def text_slices(
    predictions: Sequence[Mapping[str, Any]], edges_s: Sequence[float], *, rate: Rate = "wer"
) -> list[dict[str, Any]]:
    """Groups of slices by property: `by`, `rows`, and `left_out`, how many more there are.

    The `score` of a row is the rate that decides in the run; None for a slice of silence.
    """
    judged = [(row, texts) for row in predictions if (texts := _scored(row)) is not None]
    if not judged:
        return []
    edits = edit_counts([texts[0] for _, texts in judged], [texts[1] for _, texts in judged], unit=_UNITS[rate])
    clips = [clip_of(row) for row, _ in judged]
    groups: dict[str, list[dict[str, Any]]] = {}
    for found in slice_clips(clips, duration_edges_s=edges_s):
        counts = [edits[index] for index in found.members]
        score = None
        if any(count.reference for count in counts):
            score = error_rate(rate, counts, speakers=[clips[index].speaker for index in found.members]).to_json()
        insertions = sum(count.insertions for count in counts)
        made = {"value": found.value, "clips": len(counts), "insertions": insertions, "score": score}
        groups.setdefault(found.by, []).append(made)
    for rows in groups.values():
        widest = max((part["score"]["value"] for part in rows if part["score"]), default=0.0) or 1.0
        for part in rows:
            part["badness"] = part["score"]["value"] if part["score"] else -1.0
            part["bar"] = 100 * max(0.0, part["badness"]) / widest
    return shown_slices(groups)


def shown_slices(groups: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The slices of each property in their order; where there are more than `MAX_SLICES`, those of most `badness`."""
    shown = []
    for by, rows in groups.items():
        ordered = sorted(rows, key=lambda row: -row["badness"]) if len(rows) > MAX_SLICES else rows
        shown.append({"by": by, "rows": ordered[:MAX_SLICES], "left_out": max(0, len(rows) - MAX_SLICES)})
    return shown


def worst_texts(predictions: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Those with the most wrong words, then the highest rate, then in file order; and how many have any."""
    judged: list[tuple[int, float, Mapping[str, Any], tuple[str, str]]] = []
    for row in predictions:
        if (texts := _scored(row)) is not None:
            edits = word_edits(*texts)
            if edits.errors:
                judged.append((edits.errors, edits.errors / max(1, edits.reference), row, texts))
    judged.sort(key=lambda entry: (-entry[0], -entry[1]))
    worst = [
        {
            "id": row.get("id", ""),
            "facts": " · ".join([f"{errors} wrong", f"{100 * rate:.0f} % WER", *facts_of(row)]),
            "words": align_words(*texts),
            "direction": direction(*texts),
            "silent": not texts[1].strip(),
        }
        for errors, rate, row, texts in judged[:MAX_WORST]
    ]
    return worst, len(judged)


def facts_of(row: Mapping[str, Any]) -> list[str]:
    """What is known of the clip of a prediction, in words."""
    duration = [f"{float(row['duration_s']):.1f} s"] if row.get("duration_s") else []
    return duration + [str(row[key]) for key in ("domain", "speaker", "language") if row.get(key)]


def _scored(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Reference and hypothesis in the form that was compared; None without a transcript."""
    reference = row.get("scored_reference", row.get("reference"))
    if reference is None:
        return None
    hypothesis = row.get("scored_hypothesis")
    return str(reference), str(row.get("hypothesis") or "" if hypothesis is None else hypothesis)
