"""Settings of decoding and scoring."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sonotune.config.names import PanelNames, PrimaryName, ScoreNames
from sonotune.config.section import LATER, NO_EFFECT_ON_RESULT, Section
from sonotune.types import ChainName, DecodingSettings


class EvaluationConfig(Section):
    """How clips are decoded and scored."""

    beam_size: int = Field(default=1, ge=1, le=64)
    """Hypotheses kept while decoding; 1 is greedy."""
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = Field(default=None, json_schema_extra=LATER)
    """Power of the length by which beam search divides the log-probability of a text: above 0 favours longer texts,
    below 0 shorter ones. Null leaves it to the model, which is 1 for most. CTC has none."""
    batch_seconds: float = Field(default=240.0, gt=0, le=36_000)
    """Computed seconds of audio in one batch at most, counted as in `training.batch_seconds`."""
    batch_max_clips: int = Field(default=64, ge=1, le=100_000)
    """Clips in one batch at most."""
    max_new_tokens: Annotated[int, Field(ge=1, le=100_000)] | Literal["auto"] = "auto"
    """Longest hypothesis in tokens; `auto` bounds each clip by its own length, generously in every script."""
    no_repeat_ngram_size: int = Field(default=0, ge=0, le=1000)
    """No sequence of so many tokens is written twice in a text; 0 sets no limit."""
    repetition_penalty: float = Field(default=1.0, ge=1.0, le=10.0)
    """Divides the scores of tokens that the text has already; 1 changes nothing."""
    temperatures: tuple[Annotated[float, Field(ge=0, le=2)], ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Whisper decodes a text that fails a threshold below again by sampling at the next of these temperatures; they
    begin with 0 and rise. `[0]` decodes once."""
    compression_ratio_threshold: Annotated[float, Field(gt=0, le=1000)] | None = 2.4
    """A text fails whose letters zlib makes more than so many times smaller, for it repeats itself; null checks
    nothing."""
    logprob_threshold: Annotated[float, Field(ge=-1000, le=0)] | None = -1.0
    """A text fails whose tokens have a lower mean log-probability, unless the clip is likely silent; null checks
    nothing."""
    scores: ScoreNames = Field(default=(), json_schema_extra=LATER)
    """Scores of texts beside `wer` and `cer`, which are always given: `bleu`, `chrf`, `punctuation` (error rate of
    marks), `wer_orthographic` (words with punctuation and case), `open_asr` (words written together or apart are the
    same, as in the Open ASR Leaderboard), `perplexity` and `token_accuracy` (of the label tokens, with the right text
    given; a pass of its own)."""
    primary: PrimaryName = Field(default="auto", json_schema_extra=LATER)
    """Score that decides: it chooses the checkpoint, ends a run that has no more patience, and stands first in
    comparisons and reports. `auto` takes the error rate of words; that of characters where the references are of a
    script without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan, ...) or have none;
    accuracy for classes; mAP where a clip may have several. Others are `wer`, `cer`, those of `scores`, which are then
    given, `accuracy`, `f1_macro` and `map`. Evaluations of equal score are told apart by the other error rate, then by
    the training loss."""
    confidence: bool = Field(default=False, json_schema_extra=LATER)
    """Give every recognised word a confidence, from the probabilities of its tokens, and score the confidences:
    calibration error (ECE), AUROC, risk over coverage (AURC) and normalised cross-entropy (NCE). `train` calibrates
    them on `data.eval`, `sonotune calibrate` does so for a finished run; `evaluate` and `transcribe` then give
    calibrated ones."""
    bootstrap: int = Field(default=1000, ge=100, le=1_000_000)
    """Resamples behind each 95 % interval."""
    verbalize_numbers: Literal["auto"] | bool = "auto"
    """Give a second word error rate, of texts whose numbers are written as words, beside the usual one; `auto` does so
    where a clip has digits in its reference or its hypothesis only, and `num2words` knows the language."""
    duration_edges_s: tuple[Annotated[float, Field(gt=0, le=7200)], ...] = (2.0, 5.0, 10.0)
    """Edges between the duration buckets of the scores, in seconds, rising."""
    snr_edges_db: tuple[Annotated[float, Field(ge=-100, le=100)], ...] = Field(default=(), json_schema_extra=LATER)
    """Edges between buckets of the signal-to-noise ratio of clips, in dB, rising, such as `[10, 20]`: scores are given
    by them as well, for which every clip is read once more. Empty gives none."""
    augment: Literal["none"] | ChainName = Field(default="none", json_schema_extra=LATER)
    """Score clips as they would sound through one of `augmentation.chains`, in `evaluate` and in the evaluations of a
    run; the title of every score says so. `transcribe` reads clips as they are."""
    augment_seed: int = Field(default=0, ge=0, lt=2**63, json_schema_extra=LATER)
    """Decides what `evaluation.augment` draws for each clip, the same in every evaluation."""
    zero_shot: bool = True
    """Score `data.eval` before training as well."""
    speech_check: Literal["off", "energy", "silero"] = Field(default="energy", json_schema_extra=NO_EFFECT_ON_RESULT)
    """Recordings that `transcribe` says nothing is spoken in, instead of asking the model: those below
    `data.silence_db`; with `silero` also those in which a speech detector finds nobody (`sonotune[speech]`), such as
    noise and music; `off` asks the model about all."""
    keep: PanelNames = Field(default=(), json_schema_extra=LATER)
    """Panels that say what tuning broke, scored with the base model and with the tuned one, by `train` and `evaluate`:
    a manifest's path or another source of clips, such as another language or domain; `nonspeech`, generated sounds
    without words; `language:SOURCE`, whether the language of clips is identified (multilingual Whisper); `long:SOURCE`,
    clips joined beyond the window of the model; `punctuation:SOURCE`, marks and case; `timestamps:SOURCE`, whether the
    end of speech is placed in time (Whisper)."""
    keep_clips: int = Field(default=100, ge=7, le=10_000, json_schema_extra=LATER)
    """Clips of each panel at most, drawn by the seed; `nonspeech` makes as many."""
    adapter_scales: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(), json_schema_extra=LATER)
    """Score the clips and every panel with the adapter at these parts of its strength as well, from 0 (the base model)
    to 1 (as tuned), and propose one. `evaluate` takes `data.test`, `train` takes `data.eval`; each costs an
    evaluation."""
    entropy_clips: int = Field(default=0, ge=0, le=100_000)
    """Training clips on which the entropy of activations is measured before training, at every evaluation and after;
    0 measures none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.duration_edges_s) != sorted(set(self.duration_edges_s)):
            raise ValueError(f"duration_edges_s must rise, and is {list(self.duration_edges_s)}")
        if list(self.adapter_scales) != sorted(set(self.adapter_scales)):
            raise ValueError(f"adapter_scales must rise, and is {list(self.adapter_scales)}")
        if list(self.snr_edges_db) != sorted(set(self.snr_edges_db)):
            raise ValueError(f"snr_edges_db must rise, and is {list(self.snr_edges_db)}")
        rising = sorted(set(self.temperatures))
        if list(self.temperatures) != rising or rising[:1] != [0]:
            raise ValueError(f"temperatures must begin with 0 and rise, and are {list(self.temperatures)}")
        return self

    def decoding(self) -> DecodingSettings:
        """What of this section concerns the decoding of a text."""
        return DecodingSettings(**{field.name: getattr(self, field.name) for field in fields(DecodingSettings)})
