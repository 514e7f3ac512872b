"""Speech to text: the transcript is the target, word error rate chooses the model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from sonotune.data.text import Normalizer
from sonotune.errors import TextError
from sonotune.features.batching import Batch
from sonotune.metrics.error_rate import cer, wer
from sonotune.models.base import LoadedModel, Losses, ModelFamily
from sonotune.tasks.base import Prepared
from sonotune.types import Clip, Finding, Prediction, Score

logger = logging.getLogger(__name__)


class Transcribe:
    """Speech to text with any family that encodes text.

    Args:
        family: Encodes and decodes text, computes the loss.
        training_text: Normaliser whose training form is applied to transcripts before they become targets.
        scoring_text: Normaliser whose scoring form is applied to references and hypotheses alike.
        language: Language of clips that name none.
    """

    name = "transcribe"
    primary = "wer"

    def __init__(
        self, family: ModelFamily, *, training_text: Normalizer, scoring_text: Normalizer, language: str | None = None
    ) -> None:
        self.family = family
        self._training_text = training_text
        self._scoring_text = scoring_text
        self._language = language

    def prepare(self, loaded: LoadedModel, clips: Sequence[Clip]) -> Prepared:
        """Encode every transcript; what the tokenizer cannot write, or the decoder cannot hold, becomes a finding."""
        kept, targets, findings = [], [], []
        for clip in clips:
            text = self._training_text.training(clip.text or "")
            language = clip.language or self._language
            try:
                targets.append(self.family.encode_text(loaded, text, language))
            except TextError as error:
                message = f"clip {clip.id!r}: {error} The clip is left out."
                findings.append(
                    Finding(check="text.not_encodable", severity="error", message=message, clip_ids=(clip.id,))
                )
                continue
            kept.append(replace(clip, text=text, language=language))
        return Prepared(clips=tuple(kept), targets=tuple(targets), findings=tuple(findings))

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
            return replace(clip, language=self._language)
        if not self.family.knows_language(loaded, clip.language):
            logger.warning("clip %r: the model does not know the language %r", clip.id, clip.language)
            return replace(clip, language=None)
        return clip

    def score(
        self, predictions: Sequence[Prediction], clips: Sequence[Clip], *, resamples: int = 1000
    ) -> dict[str, Score]:
        """Word and character error rate over the scoring form of both texts; empty hypotheses count as deletions."""
        references = [self._scoring_text.scoring(clip.text or "") for clip in clips]
        hypotheses = [self._scoring_text.scoring(prediction.text or "") for prediction in predictions]
        speakers = [clip.speaker for clip in clips]
        return {
            "wer": wer(references, hypotheses, speakers=speakers, bootstrap=resamples),
            "cer": cer(references, hypotheses, speakers=speakers, bootstrap=resamples),
        }
