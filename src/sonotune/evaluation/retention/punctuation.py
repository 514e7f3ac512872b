"""The panel of punctuation: does the model still write marks, and words with their case, on clips of a manifest?

The scoring form of texts drops both, so a model that loses them in tuning keeps its word error rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sonotune.data.text import BASIC
from sonotune.errors import ManifestError
from sonotune.evaluation.retention.base import (
    Measured,
    PanelRequest,
    PanelScore,
    Predict,
    as_counts,
    predicted_rows,
    refuse_classes,
)
from sonotune.evaluation.retention.manifest import MANIFEST
from sonotune.metrics.formatting import MARKS, ORTHOGRAPHIC_WER, PUNCTUATION
from sonotune.metrics.text_scores import Floats, RateScore, ScoredText
from sonotune.types import Clip, Finding


class PunctuationPanel:
    """Errors in marks by mark of the reference, and word error rate with punctuation and case.

    The first is WER of the marks alone: its total is the same before and after tuning, unlike that of the punctuation
    error rate (`metrics.formatting.PUNCTUATION`), which counts what is written too.
    """

    name = "punctuation"
    takes_source = True

    def refusal(self, task: Any, loaded: Any) -> str | None:
        """A classifier writes no text."""
        return refuse_classes(task, "marks")

    def clips(self, source: str, task: Any, loaded: Any, request: PanelRequest) -> tuple[list[Clip], list[Finding]]:
        """Those of the manifest."""
        clips, findings = MANIFEST.clips(source, task, loaded, request)
        if not any(set(clip.text or "") & set(MARKS) for clip in clips):
            raise ManifestError(
                f"evaluation.keep=punctuation:{source}: none of its {len(clips)} transcripts has a mark of "
                "punctuation, so there is nothing to compare. Name clips whose transcripts are written with them."
            )
        return clips, findings

    def measure(self, task: Any, loaded: Any, clips: Sequence[Clip], predict: Predict) -> Measured:
        """Count marks, and words as they are written."""
        rows = predicted_rows(task, loaded, clips, predict)
        texts = [
            ScoredText(
                reference=BASIC.training(row["reference"]),
                hypothesis=BASIC.training(row["hypothesis"]),
                scored_reference=row["scored_reference"],
                scored_hypothesis=row["scored_hypothesis"],
            )
            for row in rows
        ]
        marks = _panel_score(
            "punctuation_errors", "Punctuation errors by mark", PUNCTUATION, PUNCTUATION.statistics(texts)
        )
        words = _panel_score(
            ORTHOGRAPHIC_WER.name, ORTHOGRAPHIC_WER.title, ORTHOGRAPHIC_WER, ORTHOGRAPHIC_WER.statistics(texts)
        )
        return Measured((marks, words), tuple(row["hypothesis"] for row in rows))


def _panel_score(name: str, title: str, score: RateScore, sums_NK: Floats) -> PanelScore:
    """Errors of each clip over what its reference has, by the statistics of the score (N, K)."""
    return PanelScore(
        name=name,
        title=title,
        counting="errors",
        counts=as_counts(score.of(sums_NK, ("substitutions", "deletions", "insertions"))),
        totals=as_counts(score.of(sums_NK, ("substitutions", "deletions", "hits"))),
    )


PUNCTUATION_PANEL = PunctuationPanel()
