"""The panel of long recordings: does the model still write all of what is longer than its window?

Clips of a manifest are joined to recordings of one and a half to three windows, and decoded as long clips are
(`evaluation.windows`). What tuning on short clips can break is the text at the borders of windows, and that of windows
which are full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from sonotune.data.chunking import join
from sonotune.errors import ManifestError
from sonotune.evaluation.retention.base import Measured, PanelRequest, Predict, refuse_classes
from sonotune.evaluation.retention.manifest import MANIFEST
from sonotune.types import Clip, Finding
from sonotune.wording import counted

SHORTEST_WINDOWS: Final = 1.5
LONGEST_WINDOWS: Final = 3.0
"""Length of the recordings, in windows of the model."""
GAP_S: Final = 0.5
WINDOW_S: Final = 30.0
"""What counts as the window of a model that reads recordings of any length."""


class LongFormPanel:
    """Error rate on clips of a manifest that are joined beyond the model's window."""

    name = "long"
    takes_source = True

    def refusal(self, task: Any, loaded: Any) -> str | None:
        """A classifier writes no text."""
        return refuse_classes(task)

    def clips(self, source: str, task: Any, loaded: Any, request: PanelRequest) -> tuple[list[Clip], list[Finding]]:
        """Recordings of one language each, of clips in a drawn order; speakers change within a recording."""
        clips, findings = MANIFEST.clips(source, task, loaded, request)
        window_s = loaded.frontend.max_duration_s or WINDOW_S
        # `join` keeps together what has one speaker, and here a language is what belongs together.
        shortest_s, longest_s = SHORTEST_WINDOWS * window_s, LONGEST_WINDOWS * window_s
        alike = [replace(clip, speaker=clip.language or request.language or "") for clip in clips]
        try:
            joined = join(
                alike,
                request.folder,
                min_duration_s=shortest_s,
                max_duration_s=longest_s,
                gap_s=GAP_S,
                seed=request.seed,
            )
        except ManifestError as error:
            raise ManifestError(
                f"evaluation.keep=long:{source}: its {counted(len(clips), 'clip')} cannot be joined to one recording "
                f"of {shortest_s:g} to {longest_s:g} s, which is longer than the window of {window_s:g} s. Name more "
                "clips, or raise evaluation.keep_clips."
            ) from error
        return [replace(clip, id=f"long-{clip.id}", speaker=None) for clip in joined], findings

    def measure(self, task: Any, loaded: Any, clips: Sequence[Clip], predict: Predict) -> Measured:
        """Count the errors of each recording."""
        return MANIFEST.measure(task, loaded, clips, predict)


LONG_FORM = LongFormPanel()
