"""The values that cross a room boundary.

Everything here is frozen and free of torch, so that `sonotune --help`, a manifest check or a report never pays for
importing it. Values that need torch live where they are made: `Batch` in `features.batching`, `Component` and
`LoadedModel` in `models.base`, `RankPlan` in `adapters.ranks.plan`, `Stage` in `stages`.

Shape letters, the same in every module: B clips, S samples, T frames, F feature bins, U target tokens, C classes,
D model width, R adapter rank, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Severity = Literal["note", "warning", "error"]
RunStatus = Literal["running", "finished", "failed", "interrupted"]
Context = Literal["thinned", "full", "cut"]
"""How much of a model's window is computed behind a clip: every position of it, as in pretraining (`full`); a margin
and a few positions that stand for the rest (`thinned`); nothing (`cut`)."""
SILENCE_DB = -70.0
"""Level of the loudest 25 ms of a clip, in dB of full scale, below which it has no signal where nobody says otherwise:
an amplitude of ten steps of 16 bit."""
CONTEXTS: tuple[Context, ...] = ("thinned", "full", "cut")
CombinationMethod = Literal["rover", "mbr"]
"""How texts of several models become one: a vote word by word, or the text that is nearest to all others."""
ChainName = Literal["phone_call", "voip", "whatsapp", "hall"]
"""Ways of a recording from the speaker's mouth to the file (`audio.chains`)."""
Concealment = Literal["zero", "repeat"]
"""What stands in place of a lost packet: silence, or the last packet that arrived, fading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One word placed in time.

    Attributes:
        text: The word as written.
        start_s: Seconds from the start of the clip.
        end_s: Seconds from the start of the clip.
        score: Confidence of the placement in [0, 1], where the source gives one.
    """

    text: str
    start_s: float
    end_s: float
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One span of one audio file and what is known about it: one line of a manifest.

    Attributes:
        id: Unique within a manifest.
        path: Absolute path of the audio file.
        duration_s: Length of the span in seconds.
        start_s: Where the span begins in the file, in seconds.
        sample_rate_hz: Rate of the file; the decoder resamples.
        channel: Zero-based channel to keep, or None for the mean of all channels.
        text: Transcript, Unicode NFC, as it stands in the source.
        label: Class names for classification.
        words: Words placed in time, where known.
        language: ISO 639-1 code or the model's own name of the language.
        domain: Where the clip comes from (phone, studio, ...), for scores by domain.
        speaker: Speaker, recording or session. Never in two splits; the unit of resampling for intervals.
        weight: How much the clip counts in training, from 0, which leaves it out, to 1. Scores count every clip alike.
        extra: Every other field of the source line, as text.
    """

    id: str
    path: Path
    duration_s: float
    start_s: float = 0.0
    sample_rate_hz: int | None = None
    channel: int | None = None
    text: str | None = None
    label: tuple[str, ...] = ()
    words: tuple[Word, ...] = ()
    language: str | None = None
    domain: str | None = None
    speaker: str | None = None
    weight: float = 1.0
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something about the data or the run that a person should see.

    Attributes:
        check: Stable name of the check, such as `audio.truncated` or `text.unknown_character`.
        severity: A note changes nothing; a warning may matter; an error removed the clip or stops the run.
        message: One sentence that names the thing, what was found and what was allowed.
        clip_ids: The clips concerned.
        path: The file concerned, where there is one.
        measured: What was found, as a number.
        limit: What was allowed.
        unit: Unit of `measured` and `limit`.
    """

    check: str
    severity: Severity
    message: str
    clip_ids: tuple[str, ...] = ()
    path: str | None = None
    measured: float | None = None
    limit: float | None = None
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingSettings:
    """How a text is decoded; each model family reads what its decoder has.

    Attributes:
        beam_size: Hypotheses kept while decoding; 1 is greedy.
        max_new_tokens: Most tokens of a text, the end token included. `auto` bounds each clip by its own duration, the
            model's tokenizer and the transcripts it was trained on; None leaves it to the model.
        no_repeat_ngram_size: No sequence of so many tokens is written twice; 0 sets no limit.
        repetition_penalty: Divides the scores of tokens that were written already; 1 changes nothing.
        temperatures: Of the first pass, which is 0, and of the passes that follow while a text fails a threshold.
        compression_ratio_threshold: A text whose letters compress better than this fails; None checks nothing.
        logprob_threshold: A text whose tokens have a mean log-probability below this fails; None checks nothing.
        length_penalty: Power of the length by which beam search divides the log-probability of a text: above 0 favours
            longer texts, below 0 shorter ones; None leaves it to the model. CTC has none.
        confidence: Whether every word of a text has the log-probabilities of its tokens.
    """

    beam_size: int = 1
    max_new_tokens: int | Literal["auto"] | None = "auto"
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    length_penalty: float | None = None
    confidence: bool = False


DEFAULT_DECODING = DecodingSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecognizedWord:
    """A word that a model wrote, and how sure it is of it.

    Attributes:
        text: As it stands in the text; a sign of a script without spaces is a word (`data.words`).
        logprobs: Natural logarithms of the probabilities of the tokens that it is written with.
        confidence: Probability that the word is right; None where that was not computed.
    """

    text: str
    logprobs: tuple[float, ...]
    confidence: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The form written beside a prediction."""
        return {"text": self.text, "confidence": self.confidence, "logprobs": [round(one, 5) for one in self.logprobs]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """The text that a decoder wrote for one clip.

    Attributes:
        text: Without special tokens.
        temperature: At which this text was decoded; 0 is greedy or beam search.
        attempts: Decoding passes over the clip; more than 1 where the first text failed a threshold.
        finite: Whether the model computed numbers for the clip; where it gave NaN or infinity, there is no text.
        cut: Whether the text ends because it reached its limit of tokens.
        words: Its words in order; None where they were not asked for (`DecodingSettings.confidence`).
    """

    text: str
    temperature: float = 0.0
    attempts: int = 1
    finite: bool = True
    cut: bool = False
    words: tuple[RecognizedWord, ...] | None = None


NOT_FINITE = Hypothesis(text="", finite=False)
"""Of a clip for which the model computed NaN or infinity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTokens:
    """How a model rates a transcript: its label tokens, each given the audio and the ones before it.

    Attributes:
        nll: Their negative log-likelihood, summed, in nats.
        count: How many there are: those of the text and the one that ends it.
        right: How many of them the model finds most likely.
    """

    nll: float
    count: int
    right: int

    def to_json(self) -> dict[str, Any]:
        """The form written beside a prediction."""
        return {"nll": self.nll, "count": self.count, "right": self.right}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a model said about one clip: one line of `predictions/*.jsonl`.

    Attributes:
        clip_id: The clip.
        text: Recognised text; empty when the model said nothing, which counts as deletions.
        scores: Label -> probability, for classification.
        attempts: Decoding passes over the clip; see `Hypothesis`.
        finite: Whether the model computed numbers for the clip; where it gave NaN or infinity, text and scores are
            empty.
        cut: Whether the text, or that of one of its windows, ends because it reached its limit of tokens.
        no_signal: Whether the clip was not decoded because it has no signal, or nobody speaks in it.
        label_tokens: How the model rates the clip's transcript; None where that was not measured.
        words: The words of the text in order; None where they were not asked for.
    """

    clip_id: str
    text: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    attempts: int = 1
    finite: bool = True
    cut: bool = False
    no_signal: bool = False
    label_tokens: LabelTokens | None = None
    words: tuple[RecognizedWord, ...] | None = None


Unit = Literal["fraction", "seconds", "real-time factor", "bytes", "points", "words/min", ""]
"""Of a score; fractions are shown in per cent, and a perplexity has none."""
Role = Literal["primary", "plain", "beside"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A metric with the interval and the count that say how far to trust it.

    Attributes:
        name: `wer`, `cer`, `accuracy`, ...
        value: The metric.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        count: Number of clips it was computed on.
        unit: Unit of `value`, `low` and `high`.
        better: Which direction is better.
        title: What people call it; empty takes the name in capitals.
        role: `primary` chooses the best weights; `beside` explains another score and is not drawn by itself.
        detail: Parts of the metric, such as substitutions, deletions, insertions and reference words, and how
            the interval was made (`resampled`: speaker or clip).
    """

    name: str
    value: float
    low: float
    high: float
    count: int
    unit: Unit = "fraction"
    better: Literal["lower", "higher"] = "lower"
    title: str = ""
    role: Role = "plain"
    detail: Mapping[str, float | str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The form every `--json` output and run record uses."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "count": self.count,
            "unit": self.unit,
            "better": self.better,
            **({"title": self.title} if self.title else {}),
            **({"role": self.role} if self.role != "plain" else {}),
            **({"detail": dict(self.detail)} if self.detail else {}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """All that is kept of a run. Written as `run.json`; reports read nothing else.

    Attributes:
        schema: Version of this layout; readers exist for older ones.
        run_id: Name of the run directory.
        status: How the run stands.
        config: The resolved settings, nested.
        config_origin: Dotted setting -> the place that set it.
        config_digest: SHA-256 over the settings that can change the result.
        data_digest: Split name -> SHA-256 over its manifest lines and audio sizes.
        code: Version, commit and whether the tree was clean.
        environment: Python, packages, processor, device, world size.
        model: Family, checkpoint, revision, parameter counts by component.
        ranks: Full module name -> adapter rank.
        findings: What the data checks and the run found.
        scores: Where scored (`before`, `after`, ...) -> score name -> score in JSON form.
        stages: What each stage trained.
        choices: Decisions taken automatically: setting -> what it became and why.
        peak_memory_bytes: Highest resident (CPU) or allocated (CUDA) memory seen.
        seconds: Wall time, summed over resumed sessions.
        energy_joules: Measured or estimated energy, None where nothing could be read.
        data: Split name -> what its clips are (`data.manifest.summary`); empty in older records.
        retention: What tuning broke: a panel each, with its scores before and after and their difference
            (`evaluation.retention.measure`); empty where no panel was asked for.
        adapter_scales: Scores over the strength of the adapter (`evaluation.retention.scales`), where that was asked.
        confidence: How word confidences are calibrated, and their curves on the clips they were scored on
            (`evaluation.confidence`), where that was asked.
    """

    schema: int
    run_id: str
    status: RunStatus
    config: Mapping[str, Any]
    config_origin: Mapping[str, str]
    config_digest: str
    data_digest: Mapping[str, str]
    code: Mapping[str, str]
    environment: Mapping[str, Any]
    model: Mapping[str, Any]
    ranks: Mapping[str, int]
    findings: tuple[Finding, ...]
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]]
    stages: tuple[Mapping[str, Any], ...]
    choices: Mapping[str, str]
    peak_memory_bytes: int
    seconds: float
    energy_joules: float | None = None
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    retention: tuple[Mapping[str, Any], ...] = ()
    adapter_scales: Mapping[str, Any] = field(default_factory=dict)
    confidence: Mapping[str, Any] = field(default_factory=dict)
