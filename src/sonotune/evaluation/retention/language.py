"""The panel of language identification: does the model still know which language is spoken?

Whisper names the language by the first token that it writes. Tuning on one language, with that language given, never
trains the token, but moves the states that it is read from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sonotune.errors import ManifestError
from sonotune.evaluation.retention.base import Measured, PanelRequest, PanelScore, Predict, Question, first_windows
from sonotune.models.languages import find_code
from sonotune.types import Clip, Finding


class LanguagePanel:
    """Share of clips whose language the model names, on a manifest with `language`."""

    name = "language"
    takes_source = True

    def refusal(self, task: Any, loaded: Any) -> str | None:
        """The family needs a token for each language."""
        detect = getattr(loaded.family, "detect_languages", None)
        if detect is not None and loaded.family.languages(loaded):
            return None
        return "it has no tokens for languages, by which a language is identified (a multilingual Whisper has)"

    def clips(self, source: str, task: Any, loaded: Any, request: PanelRequest) -> tuple[list[Clip], list[Finding]]:
        """The first window of each clip whose language the model has a token for."""
        clips, findings = request.read(source, None)
        known = loaded.family.languages(loaded)
        usable = [clip for clip in clips if clip.language and find_code(clip.language, known)]
        if not usable:
            named = ", ".join(sorted({clip.language or "none" for clip in clips}))
            raise ManifestError(
                f"evaluation.keep=language:{source}: no clip names a language that the model has a token for; found "
                f"{named[:200]}. Give each line a `language`."
            )
        if left := tuple(clip.id for clip in clips if clip not in usable):
            message = f"{len(left)} of {len(clips)} clips of {source} name no language that the model has a token for."
            findings = [*findings, Finding(check="retention.language", severity="note", message=message, clip_ids=left)]
        return first_windows(loaded, usable), findings

    def measure(self, task: Any, loaded: Any, clips: Sequence[Clip], predict: Predict) -> Measured:
        """Compare the code of the likeliest language token with that of the clip."""
        detect = Question(lambda loaded, batch, _: loaded.family.detect_languages(loaded, batch))
        predictions, _ = predict(detect, loaded, clips)
        codes = tuple(prediction.text or "" for prediction in predictions)
        right = tuple(
            float(find_code(clip.language or "", (code,)) is not None) for clip, code in zip(clips, codes, strict=True)
        )
        score = PanelScore(
            name="language_accuracy",
            title="Languages identified",
            counting="share",
            better="higher",
            counts=right,
            totals=(1.0,) * len(clips),
        )
        return Measured((score,), codes)


LANGUAGE = LanguagePanel()
