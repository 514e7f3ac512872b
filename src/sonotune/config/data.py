"""Settings of the data, and of what is done to the audio before it is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from sonotune.config.names import ManifestSource, NormalizerName, Rate, Selectors, Share
from sonotune.config.section import LATER, NO_EFFECT_ON_RESULT, Section
from sonotune.types import SILENCE_DB, ChainName, Concealment


class DataConfig(Section):
    """Which clips. Paths are relative to the working directory."""

    train: ManifestSource | None = None
    """Training clips: a manifest's path, `assets:NAME`, or `IMPORTER:SOURCE` such as `folder:clips`."""
    eval: ManifestSource | None = None
    """Clips scored while training; null holds speakers of the training clips out."""
    test: ManifestSource | None = None
    """Clips scored at the end only."""
    root: Path | None = None
    """Folder that audio paths are relative to and may not leave. Null takes each manifest's own folder for
    relative paths and reads absolute ones as they are."""
    allow_outside_root: bool = False
    """Whether a manifest may name audio outside its root."""
    min_duration_s: float = Field(default=0.5, ge=0, le=7200)
    """Shorter clips are not trained on, and counted, in seconds; they are scored all the same."""
    max_duration_s: float | None = Field(default=None, gt=0, le=7200)
    """Longer clips are not trained on, and counted, in seconds; they are scored all the same. Null takes the model's
    window, 30 s at most."""
    max_bad_fraction: Share = 0.01
    """Share of unusable clips above which a run stops before it trains."""
    truncated: Literal["use", "leave_out", "stop"] = Field(default="use", json_schema_extra=LATER)
    """Files that end before their header or manifest says: with `use`, one that lacks a little (5 % of its length, but
    at least 0.05 and at most 0.1 s) is used as far as it goes, and one that lacks more is bad; `leave_out` leaves out
    both and counts neither as bad; `stop` refuses the run for either."""
    check: Literal["decode", "header"] = "decode"
    """Look at all samples of every file before the run, or only at its header (quick, misses truncated files)."""
    multi_label: bool = False
    """Whether a clip may have any number of classes, none included; otherwise each has one."""
    max_label_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    """Transcripts with more tokens, special ones not counted, are learned up to there; CTC leaves their clips out."""
    text_training: NormalizerName = "basic"
    """Normaliser of the transcripts that the model learns to write."""
    text_scoring: NormalizerName = "basic"
    """Normaliser of references and hypotheses before errors are counted."""
    eval_speakers: Selectors = ()
    """Speakers held out for evaluation when `data.eval` is null."""
    eval_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the total audio duration held out, by whole speakers, when neither `data.eval` nor
    `data.eval_speakers` is set."""
    leaks: Literal["report", "stop"] = "report"
    """Recordings that are trained on and scored: say so beside the score, or stop before training (exit code 3)."""
    empty_texts: Literal["leave_out", "learn"] = Field(default="leave_out", json_schema_extra=LATER)
    """Training clips with an empty transcript, which says that nothing is said: left out and counted, or learned, so
    that the model writes nothing on such sound. Clips that are scored keep them: every word on them is an insertion."""
    silence_db: float = Field(default=SILENCE_DB, ge=-200, le=0, json_schema_extra=LATER)
    """Clips whose loudest 25 ms are below this level, in dB of full scale, a constant offset taken out, have no signal.
    They are not trained on where their transcript has words, and `transcribe` writes nothing on them."""
    limit: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Clips to keep of each split, drawn by the seed; null keeps all."""
    loader_workers: int = Field(default=1, ge=0, le=256, json_schema_extra=NO_EFFECT_ON_RESULT)
    """Processes that decode and featurise beside the training process."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_duration_s is not None:
            self._ordered("min_duration_s", "max_duration_s")
        return self


class AugmentationConfig(Section):
    """Changes made to training clips only. All are off unless a preset or a setting turns them on."""

    speed_probability: Share = 0.0
    """Share of clips played faster or slower, with the pitch."""
    speed_low: float = Field(default=0.9, ge=0.25, le=4)
    """Slowest speed, as a factor."""
    speed_high: float = Field(default=1.1, ge=0.25, le=4)
    """Fastest speed, as a factor."""
    gain_probability: Share = 0.0
    """Share of clips made louder or quieter."""
    gain_low_db: float = Field(default=-6.0, ge=-60, le=60)
    """Lowest gain, in dB."""
    gain_high_db: float = Field(default=6.0, ge=-60, le=60)
    """Highest gain, in dB."""
    noise_probability: Share = 0.0
    """Share of clips with noise added."""
    snr_low_db: float = Field(default=5.0, ge=-30, le=100)
    """Lowest ratio of signal to noise, in dB."""
    snr_high_db: float = Field(default=30.0, ge=-30, le=100)
    """Highest ratio of signal to noise, in dB."""
    band_limit_probability: Share = 0.0
    """Share of clips made to sound recorded at a lower rate (4 to 8 kHz sources)."""
    codec_probability: Share = 0.0
    """Share of clips passed through a lossy codec."""
    reverb_probability: Share = 0.0
    """Share of clips with synthetic reverberation."""
    tilt_probability: Share = 0.0
    """Share of clips whose spectrum is tilted."""
    tilt_db: float = Field(default=6.0, gt=0, le=40)
    """Largest tilt from the lowest to the highest frequency, either way, in dB."""
    pad_probability: Share = 0.0
    """Share of clips with silence added before and after."""
    pad_max_s: float = Field(default=0.3, gt=0, le=30)
    """Longest silence added at each end, in seconds."""
    clipping_probability: Share = 0.0
    """Share of clips driven into clipping."""
    packet_loss_probability: Share = Field(default=0.0, json_schema_extra=LATER)
    """Share of clips that lose packets of 20 ms, in bursts (Gilbert-Elliott)."""
    packet_loss_low: float = Field(default=0.01, ge=0, le=0.5, json_schema_extra=LATER)
    """Smallest share of packets lost in the long run."""
    packet_loss_high: float = Field(default=0.1, ge=0, le=0.5, json_schema_extra=LATER)
    """Largest share of packets lost."""
    packet_burst_low: float = Field(default=1.0, ge=1, le=100, json_schema_extra=LATER)
    """Shortest mean length of a burst, in packets."""
    packet_burst_high: float = Field(default=5.0, ge=1, le=100, json_schema_extra=LATER)
    """Longest mean length of a burst, in packets."""
    packet_concealment: Concealment = Field(default="repeat", json_schema_extra=LATER)
    """What stands in place of a lost packet: silence, or with `repeat` the last one that arrived, fading within
    60 ms."""
    chains: tuple[ChainName, ...] = Field(default=(), json_schema_extra=LATER)
    """Whole recordings, of which a clip draws one: `phone_call`, `voip`, `whatsapp` (a voice message), `hall`. Each
    goes from the room to the microphone, the codec and the line, in this order."""
    chain_probability: Share = Field(default=0.5, json_schema_extra=LATER)
    """Share of clips that go through one of `chains`, besides speed and padding, and through no other transform of
    waveforms."""
    mixup_probability: Share = 0.0
    """Share of clips with another of their batch laid over them, for classification; targets are mixed alike."""
    mixup_alpha: float = Field(default=0.4, gt=0, le=100)
    """Mixup: both parameters of the Beta distribution of the other clip's share, which is one half at most."""
    mixup_domain: Literal["waveform", "features"] = "waveform"
    """Mixup: samples, or spectrograms."""
    frequency_masks: int = Field(default=0, ge=0, le=20)
    """SpecAugment: bands masked in each clip."""
    frequency_mask_bins: int = Field(default=27, ge=1, le=128)
    """SpecAugment: widest band, in feature bins."""
    time_masks: int = Field(default=0, ge=0, le=50)
    """SpecAugment: spans masked in each clip."""
    time_mask_frames: int = Field(default=40, ge=1, le=10_000)
    """SpecAugment: longest span, in frames."""
    time_mask_fraction: Rate = 0.15
    """SpecAugment: longest span, as a share of the clip's frames."""
    time_warp_frames: int = Field(default=0, ge=0, le=1000)
    """SpecAugment: furthest that the time warp moves a point, in frames; 0 is off."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._ordered("speed_low", "speed_high")
        self._ordered("gain_low_db", "gain_high_db")
        self._ordered("snr_low_db", "snr_high_db")
        self._ordered("packet_loss_low", "packet_loss_high")
        self._ordered("packet_burst_low", "packet_burst_high")
        return self
