"""Speech to text: the transcript is the target, word error rate chooses the model."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from sonotune.errors import TextError
from sonotune.features.batching import Batch
from sonotune.metrics.error_rate import edit_counts, error_rate
from sonotune.metrics.runaway import decoding_health
from sonotune.models.base import LoadedModel, Losses, SpeechFamily
from sonotune.tasks.base import Prepared, TaskSettings
from sonotune.types import Clip, Finding, Prediction, Score

logger = logging.getLogger(__name__)


class Transcribe:
    """Speech to text with any family that encodes text.

    Args:
        family: Encodes and decodes text, computes the loss.
        settings: Normalisers of texts, the language of clips that name none, and the longest target.
    """

    name = "transcribe"
    primary = "wer"
    truth: Literal["text", "label"] | None = "text"

    def __init__(self, family: SpeechFamily, settings: TaskSettings) -> None:
        self.family = family
        self._settings = settings

    def outputs(self, clips: Sequence[Clip]) -> tuple[str, ...]:
        """Every character of the transcripts in training form, spaces left out."""
        texts = (self._settings.training_text.training(clip.text or "") for clip in clips)
        return tuple(sorted({character for text in texts for character in text if not character.isspace()}))

    def prepare(self, loaded: LoadedModel, clips: Sequence[Clip]) -> Prepared:
        """Encode every transcript; what the tokenizer cannot write, or the model cannot hold, becomes a finding."""
        kept, targets, findings, cut = [], [], [], []
        longest = self._settings.max_label_tokens
        for clip in clips:
            text = self._settings.training_text.training(clip.text or "")
            language = clip.language or self._settings.language
            try:
                ids = self.family.encode_text(loaded, text, language, duration_s=clip.duration_s)
            except TextError as error:
                message = f"clip {clip.id!r}: {error} The clip is left out."
                findings.append(
                    Finding(check="text.not_encodable", severity="error", message=message, clip_ids=(clip.id,))
                )
                continue
            if longest is not None and len(ids) > longest:
                cut.append(clip.id)
                ids = ids[:longest]  # without an end token: the model is not taught to stop there
            targets.append(ids)
            kept.append(replace(clip, text=text, language=language))
        findings += self._notes(loaded, {clip.language for clip in kept if clip.language})
        if cut:
            findings.append(_cut_short(cut, len(clips), longest or 0))
        return Prepared(clips=tuple(kept), targets=tuple(targets), findings=tuple(findings))

    def _notes(self, loaded: LoadedModel, languages: Collection[str]) -> list[Finding]:
        """What the family has to say about a language it can write and was never trained on."""
        note_on = getattr(self.family, "note_on_language", None)
        notes = [note_on(loaded, language) for language in sorted(languages)] if note_on else []
        return [Finding(check="model.language", severity="note", message=note) for note in notes if note]

    def loss(self, loaded: LoadedModel, batch: Batch, *, label_smoothing: float = 0.0) -> Losses:
        """See `Task.loss`."""
        return self.family.loss(loaded, batch, label_smoothing=label_smoothing)

    def predict(
        self, loaded: LoadedModel, batch: Batch, *, beam_size: int = 1, max_new_tokens: int | None = None
    ) -> list[Prediction]:
        """See `Task.predict`."""
        batch = replace(batch, clips=tuple(self._told(loaded, clip) for clip in batch.clips))
        texts = self.family.transcribe(loaded, batch, beam_size=beam_size, max_new_tokens=max_new_tokens)
        return [Prediction(clip_id=clip.id, text=text) for clip, text in zip(batch.clips, texts, strict=True)]

    def _told(self, loaded: LoadedModel, clip: Clip) -> Clip:
        """The clip with the language the model is told; one that it has no token for is left to detection."""
        if clip.language is None:
            return replace(clip, language=self._settings.language)
        if not self.family.knows_language(loaded, clip.language):
            logger.warning("clip %r: the model does not know the language %r", clip.id, clip.language)
            return replace(clip, language=None)
        return clip

    def has_truth(self, clip: Clip) -> bool:
        """See `Task.has_truth`: a transcript, be it empty."""
        return clip.text is not None

    def check_truth(self, loaded: LoadedModel, clips: Sequence[Clip]) -> None:
        """See `Task.check_truth`: a character that the model cannot write is an error it makes; nothing is refused."""

    def score(
        self, predictions: Sequence[Prediction], clips: Sequence[Clip], *, resamples: int = 1000, seed: int = 0
    ) -> dict[str, Score]:
        """Word and character error rate over the scoring form of both texts; empty hypotheses count as deletions."""
        references, hypotheses = self._scored(predictions, clips)
        speakers = [clip.speaker for clip in clips]
        words = edit_counts(references, hypotheses, unit="word")
        characters = edit_counts(references, hypotheses, unit="character")
        return {
            name: error_rate(name, counts, speakers=speakers, bootstrap=resamples, seed=seed)
            for name, counts in (("wer", words), ("cer", characters))
        }

    def details(self, predictions: Sequence[Prediction], clips: Sequence[Clip]) -> tuple[dict[str, Any], list[Finding]]:
        """Loops, empty texts and invented words."""
        references, hypotheses = self._scored(predictions, clips)
        edits = edit_counts(references, hypotheses, unit="word")
        health = decoding_health([clip.id for clip in clips], references, hypotheses, edits)
        inserted = sum(edit.insertions for edit in edits)
        return {"insertions": inserted, "decoding": health.to_json()}, health.findings()

    def row(self, prediction: Prediction, clip: Clip) -> Mapping[str, Any]:
        """The texts as they came, in the form that is compared, and the word errors between them."""
        hypothesis = prediction.text or ""
        row: dict[str, Any] = {"reference": clip.text, "hypothesis": hypothesis, "scored_reference": None,
                               "scored_hypothesis": None, "edits": None}  # fmt: skip
        if clip.text is not None:
            references, hypotheses = self._scored([prediction], [clip])
            edits = edit_counts(references, hypotheses, unit="word")[0]
            row |= {"scored_reference": references[0], "scored_hypothesis": hypotheses[0], "edits": edits.to_json()}
        return row

    def _scored(self, predictions: Sequence[Prediction], clips: Sequence[Clip]) -> tuple[list[str], list[str]]:
        """References and hypotheses in scoring form."""
        scoring = self._settings.scoring_text.scoring
        return (
            [scoring(clip.text or "") for clip in clips],
            [scoring(prediction.text or "") for prediction in predictions],
        )


def _cut_short(cut: Sequence[str], clips: int, longest: int) -> Finding:
    return Finding(
        check="text.truncated",
        severity="warning",
        message=f"{len(cut)} of {clips} transcripts have more than {longest} tokens and are learned up to there "
        "(data.max_label_tokens), without an end. Raise the limit or cut the clips.",
        clip_ids=tuple(cut),
        measured=float(len(cut)),
        limit=float(longest),
        unit="tokens",
    )
