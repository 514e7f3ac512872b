"""What a line of a file of predictions says: its reference, what was recognised, and of which clip it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sonotune.data.text import BASIC
from sonotune.metrics.slices import NOISE
from sonotune.metrics.text_scores import ScoredText
from sonotune.types import Clip, LabelTokens


def reference_of(row: Mapping[str, Any]) -> str | tuple[str, ...] | None:
    """The transcript in the form that was compared, or the classes; None where the clip has neither."""
    if "labels" in row:
        return tuple(sorted(row["labels"]))
    text = row.get("scored_reference", row.get("reference"))
    return None if text is None else str(text)


def hypothesis_of(row: Mapping[str, Any]) -> str:
    """The recognised text in the form that was compared."""
    text = row.get("scored_hypothesis")
    return str(row.get("hypothesis") or "" if text is None else text)


def clip_of(row: Mapping[str, Any]) -> Clip:
    """What slices need to know of the clip of a prediction; where its audio lies is not known."""
    return Clip(
        id=str(row.get("id", "")),
        path=Path(),
        duration_s=float(row.get("duration_s") or 0.0),
        domain=row.get("domain"),
        speaker=row.get("speaker"),
        language=row.get("language"),
        extra={NOISE: row[NOISE]} if row.get(NOISE) else {},
    )


def is_right(row: Mapping[str, Any]) -> bool:
    """As accuracy counts: the whole set of classes; a clip that could not be read is wrong."""
    return bool(row.get("scores")) and set(row.get("decided", ())) == set(row.get("labels", ()))


def scored_text(row: Mapping[str, Any]) -> ScoredText:
    """A clip of a file of predictions as the further scores see it."""
    tokens = row.get("label_tokens")
    return ScoredText(
        reference=BASIC.training(str(row.get("reference") or "")),
        hypothesis=BASIC.training(str(row.get("hypothesis") or "")),
        scored_reference=str(reference_of(row)),
        scored_hypothesis=hypothesis_of(row),
        language=row.get("language"),
        label_tokens=None if tokens is None else LabelTokens(**tokens),
    )
