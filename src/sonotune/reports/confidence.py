"""Word confidences of a run, for its report: whether they say how often words are right, and what they are good for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sonotune.metrics.confidence import is_of_confidence, show_confidence
from sonotune.metrics.scores import score_title, show_score
from sonotune.paths import short_names
from sonotune.reports.figures import Series, curve
from sonotune.reports.predictions import MAX_SLICES
from sonotune.reports.verdict import SPLITS
from sonotune.types import RunRecord

_FITTED = "after"
"""Development clips, on which a calibration is fitted: of all that is there they say least about it."""


def view_confidence(record: RunRecord) -> dict[str, Any]:
    """The section: `figures` (caption, SVG) of the clips that say most, `rows` of scores, and `told` sentences.

    `slices` of the same clips have by, value, clips, and the texts of their scores (`confidence.OF_SLICES`).

    Empty where the record has no confidences.
    """
    curves: Mapping[str, Mapping[str, Any]] = record.confidence.get("curves", {})
    if not curves:
        return {}
    called = _names(curves)
    name = max(
        reversed(list(curves)), key=lambda one: (one not in ("before", _FITTED), one == "test")
    )  # the newest of equals
    shown, clips = curves[name], SPLITS.get(name) or f"clips of {called[name]}"
    told = [f"The figures are of {shown['words']:,} words of the {clips}, {shown['wrong']:,} of them wrong."]
    if (fitted := record.confidence.get("calibration")) is not None:
        told.append(
            f"Calibrated on {fitted['words']:,} words of {fitted['clips']:,} development clips (Platt scaling: slope "
            f"{fitted['slope']:.3f}, intercept {fitted['intercept']:+.3f})."
        )
    else:
        told.append("Not calibrated: confidences are as the model gives them.")
    return {
        "figures": [
            ("Confidence and how many words are right", _reliability(shown)),
            ("Wrong words among those that are kept", _risk_coverage(shown["risk_coverage"])),
        ],
        "rows": _rows(record, curves, called),
        "slices": [
            (row["by"], row["value"], row["clips"], list(sure.values()))
            for row in shown.get("slices", ())
            if (sure := show_confidence(row["scores"], show_score))
        ][:MAX_SLICES],
        "slices_of": clips,
        "told": told,
    }


def _names(curves: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What each is of: as much of a manifest's path as tells it from the others, and its digest where that is alike."""
    sources = list(dict.fromkeys(found["source"] for found in curves.values() if "source" in found))
    short = dict(zip(sources, short_names(sources), strict=True))
    names = {}
    for name, found in curves.items():
        told = short[found["source"]] if "source" in found else name.removeprefix("evaluate ")
        names[name] = f"{told} through {found['chain']}" if "chain" in found else told
    alike = [told for told, count in Counter(names.values()).items() if count > 1]
    return {
        name: f"{told} ({curves[name].get('digest', name)[:8]})" if told in alike else told
        for name, told in names.items()
    }


def _rows(
    record: RunRecord, curves: Mapping[str, Mapping[str, Any]], called: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    """Clips, score and its value with the interval."""
    rows = []
    for name, found in curves.items():
        for score, value in (found.get("scores") or record.scores.get(name, {})).items():
            if is_of_confidence(score):
                rows.append((called[name], score_title(score, value), show_score(value)))
    return rows


def _reliability(found: Mapping[str, Any]) -> str:
    given = [("as the model gives it" if not found["calibrated"] else "calibrated", found["reliability"])]
    given += [("before calibration", found["uncalibrated"])] if "uncalibrated" in found else []
    lines = [Series(label="as it should be", x=[0, 100], y=[0, 100])]
    for label, bins in given:
        lines.append(
            Series(
                label=label,
                x=[100 * one["confidence"] for one in bins],
                y=[100 * one["right"] for one in bins],
            )
        )
    return curve(
        "reliability",
        lines,
        y_label="words that are right, %",
        title="Share of right words over confidence, in bins of as many words each",
        zero=True,
        markers=True,
        x_label="confidence, %",
    )


def _risk_coverage(points: Sequence[Mapping[str, float]]) -> str:
    return curve(
        "risk_coverage",
        [
            Series(
                label="surest words",
                x=[100 * one["coverage"] for one in points],
                y=[100 * one["risk"] for one in points],
            )
        ],
        y_label="wrong words, %",
        title="Wrong words among the surest, over how many are kept",
        zero=True,
        x_label="words kept, the surest first, %",
    )
