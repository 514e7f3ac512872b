"""The panel of a manifest: does the model still recognise clips that it was not tuned on?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sonotune.data.scripts import deciding_rate
from sonotune.errors import ManifestError
from sonotune.evaluation.retention.base import Measured, PanelRequest, PanelScore, Predict, as_counts, predicted_rows
from sonotune.metrics.error_rate import edit_counts
from sonotune.types import Clip, Finding


class ManifestPanel:
    """Error rate of transcripts, or accuracy of classes, on any manifest."""

    name = "manifest"
    takes_source = True

    def refusal(self, task: Any, loaded: Any) -> str | None:
        """Every model can be asked."""
        return None

    def clips(self, source: str, task: Any, loaded: Any, request: PanelRequest) -> tuple[list[Clip], list[Finding]]:
        """Those that say what should come out."""
        clips, findings = request.read(source, task.reference)
        usable = [clip for clip in clips if clip.label or any((clip.text or "").split())]
        if not usable:
            raise ManifestError(
                f"evaluation.keep={source}: none of its {len(clips)} clips has a transcript with words or a class, so "
                "there is nothing to compare. The panel `nonspeech` is made for clips without words."
            )
        task.check_references(loaded, usable)
        return usable, findings

    def measure(self, task: Any, loaded: Any, clips: Sequence[Clip], predict: Predict) -> Measured:
        """Count the errors of each clip, in words or in characters as the references ask."""
        rows = predicted_rows(task, loaded, clips, predict)
        if task.reference == "label":
            right = as_counts([float(set(row["labels"]) == set(row["decided"])) for row in rows])
            shown = tuple(", ".join(row["decided"]) for row in rows)
            score = PanelScore(
                name="accuracy",
                title="Accuracy",
                counting="share",
                better="higher",
                counts=right,
                totals=(1.0,) * len(clips),
            )
            return Measured((score,), shown)
        return Measured((error_rate(rows),), tuple(row["hypothesis"] for row in rows))


def error_rate(rows: Sequence[Mapping[str, Any]]) -> PanelScore:
    """WER of rows of `tasks.transcribe.Transcribe.row`; CER where the references are not spaced."""
    references, hypotheses = ([row[f"scored_{side}"] for row in rows] for side in ("reference", "hypothesis"))
    name, _ = deciding_rate(references)
    edits = edit_counts(references, hypotheses, unit="word" if name == "wer" else "character")
    return PanelScore(
        name=name,
        title=name.upper(),
        counting="errors",
        counts=as_counts([edit.errors for edit in edits]),
        totals=as_counts([edit.reference for edit in edits]),
    )


MANIFEST = ManifestPanel()
