"""The panel of clips without words: does the model write text where nobody speaks?

Silence, three noises, tones, music-like chords and reversed babble, made from the seed without a network. No text is
right. Counted are the clips on which words were written, and the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sonotune.audio import io
from sonotune.audio.nonspeech import KINDS, RATE_HZ, Waveform, render
from sonotune.data.manifest import read_manifest
from sonotune.evaluation.retention.base import (
    Measured,
    PanelRequest,
    PanelScore,
    Predict,
    as_counts,
    predicted_rows,
    refuse_classes,
)
from sonotune.registry import resolve_asset
from sonotune.runs import generator
from sonotune.types import Clip, Finding

_SHORTEST_S: Final = 2.0
_LONGEST_S: Final = 12.0
_SPEECH: Final = "assets:quickstart/eval.jsonl"


class NonspeechPanel:
    """Generated sounds without words, the kinds in turn."""

    name = "nonspeech"
    takes_source = False

    def refusal(self, task: Any, loaded: Any) -> str | None:
        """A classifier has no class for it."""
        return refuse_classes(task)

    def clips(self, source: str, task: Any, loaded: Any, request: PanelRequest) -> tuple[list[Clip], list[Finding]]:
        """As many clips as are asked for, of 2 to 12 s."""
        speech = _speech()
        made = []
        for index in range(request.clips):
            kind = tuple(KINDS)[index % len(KINDS)]
            name = f"{kind}-{index // len(KINDS):03d}"
            draws = generator(request.seed, "nonspeech", name)
            waveform_S = render(kind, float(draws.uniform(_SHORTEST_S, _LONGEST_S)), draws, speech)
            path = request.folder / f"{name}.wav"
            io.write(path, waveform_S, RATE_HZ)
            made.append(
                Clip(
                    id=name,
                    path=path,
                    duration_s=waveform_S.size / RATE_HZ,
                    sample_rate_hz=RATE_HZ,
                    text="",
                    language=request.language,
                    domain=kind,
                )
            )
        return made, []

    def measure(self, task: Any, loaded: Any, clips: Sequence[Clip], predict: Predict) -> Measured:
        """Count the words that were written, in scoring form, so that marks alone are none."""
        rows = predicted_rows(task, loaded, clips, predict)
        words = as_counts([len(row["scored_hypothesis"].split()) for row in rows])
        return Measured(
            (
                PanelScore(
                    name="clips_with_words",
                    title="Clips with words",
                    counting="share",
                    counts=tuple(float(count > 0) for count in words),
                    totals=(1.0,) * len(clips),
                ),
                PanelScore(
                    name="words_a_minute",
                    title="Invented words",
                    counting="rate",
                    counts=words,
                    totals=as_counts([clip.duration_s / 60 for clip in clips]),
                ),
            ),
            tuple(row["hypothesis"] for row in rows),
        )


def _speech() -> list[Waveform]:
    """Recordings of the packaged corpus at 16 kHz, of several voices."""
    clips = read_manifest(resolve_asset(_SPEECH))
    return [io.read(clip.path, sample_rate_hz=RATE_HZ) for clip in clips]


NONSPEECH = NonspeechPanel()
