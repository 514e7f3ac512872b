"""Every setting: its type, bounds, default and meaning. There is no other list of settings.

Sections are frozen and closed to unknown keys. `affects_result=False` marks settings that cannot change the weights,
scores or predictions of a run; they are left out of the config digest, so a run may be resumed with other values.
`in_digest_at_default=False` marks settings that came later: at their default they are left out as well, so that the
digests of older runs stay what they were.
No setting holds a secret: tokens are read from the environment where they are used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from sonotune import registry
from sonotune.config.section import Section
from sonotune.config.sweep import SweepConfig
from sonotune.errors import ConfigError, suggest
from sonotune.types import SILENCE_DB, ChainName, Concealment, Context, DecodingSettings

_NO_EFFECT_ON_RESULT: dict[str, Any] = {"affects_result": False}
_LATER: dict[str, Any] = {"in_digest_at_default": False}


def _check_name(kind: registry.Kind, *others: str) -> Callable[[str], str]:
    def check(name: str) -> str:
        if name not in ("auto", *others, *registry.TABLES[kind]) and name not in registry.names(kind):
            raise ValueError(f"no such name; known: {', '.join((*others, *registry.names(kind)))}")
        return name

    return check


def _check_source(source: str) -> str:
    if not source.strip():
        raise ValueError("an empty name; write a manifest's path, IMPORTER:SOURCE or assets:NAME")
    if "://" in source:
        raise ValueError("an address is not read over the network; download it, or write hub:OWNER/NAME")
    try:
        registry.split_source(source)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return source


def _check_checkpoint(checkpoint: str) -> str:
    if not checkpoint.strip() or "://" in checkpoint:
        raise ValueError("write assets:NAME, a folder, or the OWNER/NAME of a hub model")
    return checkpoint


def _check_selectors(selectors: tuple[str, ...]) -> tuple[str, ...]:
    repeated = sorted(name for name, count in Counter(selectors).items() if count > 1)
    if repeated or not all(selectors):
        raise ValueError(f"{repeated[0]!r} stands twice" if repeated else "an empty name")
    return selectors


def _check_panel(named: str) -> str:
    name, _, source = named.partition(":")
    if name in registry.TABLES["panels"] or (source and name in registry.names("panels")):
        return named if not source else f"{name}:{_check_source(source)}"
    return _check_source(named)


ManifestSource = Annotated[str, AfterValidator(_check_source)]
"""A manifest's path, `assets:NAME`, or `IMPORTER:SOURCE` such as `folder:clips` or `common_voice:cv/train.tsv`."""
Checkpoint = Annotated[str, AfterValidator(_check_checkpoint)]
Selectors = Annotated[tuple[str, ...], AfterValidator(_check_selectors)]
FamilyName = Annotated[str, AfterValidator(_check_name("families"))]
TaskName = Annotated[str, AfterValidator(_check_name("tasks"))]
NormalizerName = Annotated[str, AfterValidator(_check_name("normalizers"))]
AdapterKindName = Annotated[str, AfterValidator(_check_name("adapters"))]
ObjectiveName = Annotated[str, AfterValidator(_check_name("objectives"))]
PanelName = Annotated[str, AfterValidator(_check_panel)]
"""`nonspeech`, `language:SOURCE`, or a source of clips."""
AlignerName = Annotated[str, AfterValidator(_check_name("aligners"))]
ScoreName = Annotated[str, AfterValidator(_check_name("scores", "wer", "cer"))]
PrimaryName = Annotated[str, AfterValidator(_check_name("scores", "wer", "cer", "accuracy", "f1_macro", "map"))]
AllocatorName = Annotated[str, AfterValidator(_check_name("allocators"))]
Multiplier = Annotated[float, Field(gt=0, le=1000)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


def _renamed_context(context: Any) -> Any:
    """`dynamic` is what older records call `cut`."""
    return "cut" if context == "dynamic" else context


class ModelConfig(Section):
    """Which pretrained model, and how its inputs are laid out."""

    checkpoint: Checkpoint
    """`assets:NAME` (comes with the package), a local folder, a run or adapter folder, or a hub model's OWNER/NAME."""
    family: FamilyName = "auto"
    """Architecture; `auto` reads it from the checkpoint."""
    revision: str | None = None
    """Commit or tag of a hub checkpoint; null takes the newest, and the record keeps which that was."""
    task: TaskName = "auto"
    """What the model is trained to do; `auto` takes what its architecture is made for."""
    outputs: Literal["auto", "checkpoint", "data"] = "auto"
    """Symbols (CTC) or classes: the checkpoint's, or a new output layer for those of the training data; `auto` makes
    a new one where a CTC checkpoint has none, or a classifier lacks a class. Other families refuse `data`."""
    tokenizer: Path | None = None
    """Folder from `sonotune data tokenizer` whose tokens a CTC model learns to write, with a new output layer; models
    that write with the tokens of their checkpoint refuse one."""
    language: str | None = None
    """Language given to the model, for clips that name none."""
    context: Annotated[Literal["auto", "thinned", "full", "cut"], BeforeValidator(_renamed_context)] = "auto"
    """How much of the model's window is computed after the clip, in training, evaluation and transcription alike:
    `full`, all of it, as in pretraining; `thinned`, a few positions that stand for the rest, to about the same scores
    at a fraction of the work (Whisper); `cut`, nothing, which weights must be trained for. `auto` takes what the
    checkpoint was trained in; for pretrained Whisper `thinned`, else `full`."""
    full_context_share: Share = 0.0
    """Share of training batches padded to the whole window, so that the tuned model also works at full context."""
    ctc_share: Share = 0.0
    """Share of the loss that is CTC on the encoder's states. It teaches the decoder of a Whisper or Qwen3-ASR with
    random weights to use the audio."""
    dropout: Dropout | None = None
    """Dropout in the model; null keeps the checkpoint's own."""
    num_labels: int | None = Field(default=None, ge=2, le=1_000_000)
    """Number of classes, for `inspect` without data; a run counts them in its training data, and must agree."""
    random_weights: bool = False
    """Build from the checkpoint's config alone, with random weights, to train from nothing or to measure speed."""

    @property
    def asked_context(self) -> Context | None:
        """The context that was asked for; None leaves it to the checkpoint."""
        return None if self.context == "auto" else self.context


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
    truncated: Literal["use", "leave_out", "stop"] = Field(default="use", json_schema_extra=_LATER)
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
    empty_texts: Literal["leave_out", "learn"] = Field(default="leave_out", json_schema_extra=_LATER)
    """Training clips with an empty transcript, which says that nothing is said: left out and counted, or learned, so
    that the model writes nothing on such sound. Clips that are scored keep them: every word on them is an insertion."""
    silence_db: float = Field(default=SILENCE_DB, ge=-200, le=0, json_schema_extra=_LATER)
    """Clips whose loudest 25 ms are below this level, in dB of full scale, a constant offset taken out, have no signal.
    They are not trained on where their transcript has words, and `transcribe` writes nothing on them."""
    limit: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Clips to keep of each split, drawn by the seed; null keeps all."""
    loader_workers: int = Field(default=1, ge=0, le=256, json_schema_extra=_NO_EFFECT_ON_RESULT)
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
    packet_loss_probability: Share = Field(default=0.0, json_schema_extra=_LATER)
    """Share of clips that lose packets of 20 ms, in bursts (Gilbert-Elliott)."""
    packet_loss_low: float = Field(default=0.01, ge=0, le=0.5, json_schema_extra=_LATER)
    """Smallest share of packets lost in the long run."""
    packet_loss_high: float = Field(default=0.1, ge=0, le=0.5, json_schema_extra=_LATER)
    """Largest share of packets lost."""
    packet_burst_low: float = Field(default=1.0, ge=1, le=100, json_schema_extra=_LATER)
    """Shortest mean length of a burst, in packets."""
    packet_burst_high: float = Field(default=5.0, ge=1, le=100, json_schema_extra=_LATER)
    """Longest mean length of a burst, in packets."""
    packet_concealment: Concealment = Field(default="repeat", json_schema_extra=_LATER)
    """What stands in place of a lost packet: silence, or with `repeat` the last one that arrived, fading within
    60 ms."""
    chains: tuple[ChainName, ...] = Field(default=(), json_schema_extra=_LATER)
    """Whole recordings, of which a clip draws one: `phone_call`, `voip`, `whatsapp` (a voice message), `hall`. Each
    goes from the room to the microphone, the codec and the line, in this order."""
    chain_probability: Share = Field(default=0.5, json_schema_extra=_LATER)
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


class AdapterConfig(Section):
    """What trains: low-rank adapters with chosen components beside them, or every weight."""

    kind: AdapterKindName = "lora"
    """`lora` trains adapters on a frozen model; `none` trains the model itself (full fine-tuning)."""
    rank: int = Field(default=8, ge=1, le=4096)
    """Reference rank; the allocator may give modules more or less."""
    alpha: Annotated[float, Field(gt=0, le=65536)] | Literal["auto"] = "auto"
    """The update is scaled by alpha / rank at the reference rank; `auto` takes alpha = rank."""
    scaling: Literal["balanced", "constant", "rslora"] = "balanced"
    """Other ranks than the reference: `balanced` scales so that one learning rate fits them all (by 1 / sqrt(rank)),
    `constant` scales alike, `rslora` scales by alpha / sqrt(rank)."""
    dropout: Dropout = 0.0
    """Dropout on the input of each adapter."""
    targets: Literal["all_linear", "attention", "q_v"] | Annotated[Selectors, Field(min_length=1)] = "all_linear"
    """Modules that carry adapters; or a list of component selectors (`encoder`) and module endings (`fc1`)."""
    stem: Literal["train", "lora", "frozen"] = "train"
    """The convolutional stem: trained in full precision, adapted, or frozen. A channel shift enters there. With
    `training.stages`, `train` has no effect: name `stem` in the `weights` of a stage."""
    unfreeze: Selectors = ()
    """Component selectors trained in full precision beside the adapters, such as `encoder.norms`. A new output layer
    and untrained parts of a composed model train in full precision without being named, unless `training.stages` is
    set: then the `weights` of a stage name them (`new`)."""
    split: Literal["given", "measured"] = "given"
    """What decides which of stem and norms train, how fast, and how components share the budget: the settings, or the
    gradients of `allocation.clips` training clips."""
    allocator: AllocatorName = "uniform"
    """What decides the rank of each module."""
    budget: int | None = Field(default=None, ge=1, le=100_000_000_000)
    """Adapter parameters to spend at most; null spends what the reference rank costs."""


class AllocationConfig(Section):
    """How `adapter.allocator` spends `adapter.budget`."""

    gamma: float = Field(default=0.5, ge=0, le=4)
    """Exponent on the importance scores: 0 gives equal ranks, 1 ranks in proportion to them."""
    rank_step: int | None = Field(default=None, ge=1, le=256)
    """Ranks are multiples of this. Null takes 8 from a reference rank of 32 on, 4 from 16 on and 1 below, halved
    until it divides the reference rank."""
    min_rank: int | None = Field(default=None, ge=1, le=4096)
    """Smallest rank of a module; null takes a quarter of the reference rank."""
    max_rank: int | None = Field(default=None, ge=1, le=4096)
    """Largest rank of a module; null takes four times the reference rank. Above the reference rank, a quarter of the
    smaller dimension of the matrix is a limit as well, and so is its effective rank with the allocator `entropy`."""
    group_weights: Mapping[str, Multiplier] = {}
    """Group -> factor on its share of the budget. Groups are the components, and `decoder.cross_attention`."""
    group_floors: Mapping[str, Annotated[int, Field(ge=1, le=4096)]] = {}
    """Group -> smallest rank of its modules."""
    cross_modality: bool = False
    """Let groups compete for the budget, each within half and double of its share."""
    clips: int = Field(default=64, ge=1, le=100_000)
    """Training clips that calibration runs through the model."""
    tokens: int = Field(default=1024, ge=64, le=65_536)
    """Positions that calibration keeps of each module's input."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides which clips and positions those are."""
    draw: int = Field(default=0, ge=0, lt=2**63)
    """Decides what the allocators `random` and `shuffled` draw."""
    file: Path | None = None
    """Take the ranks from this `ranks.json`, as `sonotune allocate` writes it."""


class RegularizationConfig(Section):
    """Entropy of the spectrum of each adapter's update, as a part of the loss."""

    entropy: Literal["off", "concentrate", "spread"] = "off"
    """`concentrate` lowers it, so that ranks can be taken away; `spread` raises it, against collapse."""
    weight: float = Field(default=0.01, ge=0, le=10)
    """Weight beside the mean loss of a label."""
    ramp: tuple[Share, Share] = (0.1, 0.3)
    """Between these shares of the steps the weight rises from 0."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ramp[0] > self.ramp[1]:
            raise ValueError(f"ramp must rise, and is {list(self.ramp)}")
        return self


class ReallocationConfig(Section):
    """Ranks that follow the adapters while they train."""

    at: tuple[Rate, ...] = ()
    """Shares of the steps at which ranks move, such as [0.1,0.25,0.45]; empty leaves them alone."""
    share: Rate = 0.1
    """Largest share of the budget that moves at a time."""
    shrink: Literal["svd", "select"] = "svd"
    """How ranks are taken away: the best approximation, or whole components."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.at) != sorted(set(self.at)):
            raise ValueError(f"at must rise, and is {list(self.at)}")
        return self


class QuantizationConfig(Section):
    """How the frozen weights are stored."""

    bits: Literal["auto", 4, 8, 16] = "auto"
    """Bits a weight; `auto` takes 16 below 300 million parameters or on a CPU, else 4; the record says why."""
    double: bool = True
    """Quantise the block scales as well (4 bits only)."""
    skip: Selectors = ()
    """Component selectors whose weights stay in 16 bits."""


class StageConfig(Section):
    """A stage says what trains, how fast and for how long. What it does not name does not train."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_ -]{0,39}$")
    """Name of the stage in events and in the record; two stages need different names."""
    weights: Selectors = ()
    """Component selectors trained in full precision, such as `projector` or `decoder.layers[-12:]`."""
    adapters: Literal["all", "none"] | Annotated[Selectors, Field(min_length=1)] = "all"
    """Adapters that train: all, none, or those on the modules of some selectors."""
    learning_rate: Rate | None = None
    """Peak learning rate; null takes `training.learning_rate`. All factors apply to it, also those that
    `training.learning_rate=auto` has for pretrained weights that train in full."""
    learning_rates: Mapping[str, Multiplier] = {}
    """Selector -> factor on the peak, after `training.learning_rates`. Factors do not multiply: of two that match a
    parameter, the later one alone holds."""
    max_epochs: int | None = Field(default=None, ge=1, le=1_000_000)
    """Passes over the training clips at most. A stage needs `max_epochs` or `max_steps`."""
    max_steps: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Optimiser steps at most."""
    patience: int | None = Field(default=None, ge=1, le=1_000_000)
    """Evaluations without a better score of this stage before the stage ends; null lets it make all its steps."""
    warmup_steps: Annotated[int, Field(ge=0, le=10_000_000)] | Literal["auto"] = "auto"
    """Steps over which the learning rate of groups that begin to train in this stage rises linearly from zero; `auto`
    takes 5 % of the stage, 500 at most."""
    dip: float = Field(default=1.0, gt=0, le=1)
    """Share of the new stage's peak learning rate at which groups that trained in an earlier stage start; they rise to
    the peak over `warmup_steps`. No effect in the first stage, where a value below 1 is refused."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_epochs is None and self.max_steps is None:
            raise ValueError("max_epochs or max_steps says when it ends, and neither is given")
        return self


class TrainingConfig(Section):
    """How long, how fast and how precisely."""

    stages: tuple[StageConfig, ...] = ()
    """Stages of training, one after the other. Without stages, the run trains in one stage what the section `adapter`
    says."""

    max_epochs: int = Field(default=3, ge=1, le=1_000_000)
    """Passes over the training clips."""
    max_steps: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Optimiser steps at most; null lets `max_epochs` decide alone."""
    learning_rate: Rate | Literal["auto"] = "auto"
    """Peak learning rate. `auto` takes it from the size of the model: one rate for adapters, and a factor below 1 for
    pretrained weights that train in full precision (the stem, `adapter.unfreeze`, the weights of stages); without
    adapters, the lower rate for all weights. A number is the rate of all parameters."""
    learning_rates: Mapping[str, Multiplier] = {}
    """Component selector -> factor on the peak learning rate, such as `{stem: 0.5}`. Of two that match a parameter,
    the later one alone holds. A factor given here replaces the factor that `training.learning_rate=auto` has for that
    component; the two are not multiplied."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the learning rate from each numbered layer to the one below; 1 is none, 0.9 to 0.95 are usual."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0, le=10_000_000)] | Literal["auto"] = "auto"
    """Steps of linear rise; `auto` takes 5 % of the steps, 500 at most."""
    min_learning_rate_ratio: Share = 0.1
    """Where the learning rate ends, as a share of its peak."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    """AdamW; with moments in 8 bits, or in pages that leave the card when it is full. On a CPU all are plain AdamW."""
    weight_decay: Share = 0.01
    """Decoupled weight decay, on matrices only."""
    betas: tuple[Dropout, Dropout] = (0.9, 0.999)
    """Decay of AdamW's two moments."""
    clip_norm: float = Field(default=1.0, gt=0, le=1e6)
    """Largest gradient norm over all groups together."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward pass. `auto` takes bf16 where the hardware has it, else fp16 on CUDA and fp32 on a
    CPU."""
    batch_seconds: float = Field(default=60.0, gt=0, le=36_000)
    """Computed seconds of audio in one micro-batch at most: clips x the longest computed length. For a model with a
    window, `model.context` decides what is computed: with `full` the whole window for each clip, with `thinned` the
    clip, a margin of a second and a thirtieth of the rest, with `cut` the clip. A longer clip is a micro-batch of its
    own."""
    batch_max_clips: int = Field(default=32, ge=1, le=100_000)
    """Clips in one micro-batch at most."""
    accumulation_steps: Annotated[int, Field(ge=1, le=100_000)] | Literal["auto"] = "auto"
    """Micro-batches in one optimiser step, over all processes together; `auto` takes one for each process."""
    objective: ObjectiveName = Field(default="auto", json_schema_extra=_LATER)
    """What training lowers: `task`, the loss of the task; `ctc_mix`, that with `model.ctc_share` of CTC; `star`, CTC
    that lets wrong, missing and superfluous words of a transcript pass, to tune a trained CTC model on flawed
    transcripts; `auto` takes the second where that share is above 0, else the first."""
    star_bypass_penalty: float = Field(default=12.0, ge=0, le=1000, json_schema_extra=_LATER)
    """`star`: nats for each word of a transcript that is left out. A word that costs more is."""
    star_speech_penalty: float = Field(default=8.0, ge=0, le=1000, json_schema_extra=_LATER)
    """`star`: nats for each stretch of speech between two words that nobody transcribed."""
    label_smoothing: Dropout = 0.0
    """Share of each target's probability spread over the vocabulary or the classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` lets every class weigh the same in the loss, however many clips it has."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    shard_weights: bool = Field(default=False, json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Shard the layers' weights, their gradients and optimiser moments over the processes (FSDP2)."""
    memory_limit_bytes: int | None = Field(default=None, ge=1, le=10**15)
    """Bytes of activations that a micro-batch may keep for its backward pass; a larger one is split as if memory had
    run out."""
    eval_steps: Annotated[int, Field(ge=1, le=1_000_000_000)] | Literal["epoch", "never"] = "epoch"
    """Steps between evaluations; the weights of the best evaluation are kept."""
    patience: int | None = Field(default=None, ge=1, le=1_000_000)
    """Evaluations without a better score before the run stops early; null never stops early."""
    average_checkpoints: int = Field(default=1, ge=1, le=100)
    """Best evaluations whose weights are averaged in the end; the average is kept where it scores at least as well."""
    save_steps: Annotated[int, Field(ge=1, le=1_000_000_000)] | Literal["epoch"] = Field(
        default="epoch", json_schema_extra=_NO_EFFECT_ON_RESULT
    )
    """Steps between checkpoints. A run that is killed at once (SIGKILL, power loss) loses the steps since the last
    one."""
    keep_checkpoints: int = Field(default=2, ge=1, le=10_000, json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Newest checkpoints kept; the best one is kept besides."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides every random draw: order, augmentation, adapters, dropout."""
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """Processor threads; `auto` takes one a core. Another number can change the last bits of a sum."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for index, stage in enumerate(self.stages):
            if stage.patience is not None and self.eval_steps == "never":
                raise ValueError(
                    f"stage {stage.name!r} has a patience, and training.eval_steps is never: nothing could run it out"
                )
            if index == 0 and stage.dip < 1:
                raise ValueError(f"stage {stage.name!r} has a dip, and nothing trained before it")
        return self


class EvaluationConfig(Section):
    """How clips are decoded and scored."""

    beam_size: int = Field(default=1, ge=1, le=64)
    """Hypotheses kept while decoding; 1 is greedy."""
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
    scores: Annotated[tuple[ScoreName, ...], AfterValidator(_check_selectors)] = Field(
        default=(), json_schema_extra=_LATER
    )
    """Scores of texts beside `wer` and `cer`, which are always given: `bleu`, `chrf`, `punctuation` (error rate of
    marks), `wer_orthographic` (words with punctuation and case), `open_asr` (words written together or apart are the
    same, as in the Open ASR Leaderboard), `perplexity` and `token_accuracy` (of the label tokens, with the right text
    given; a pass of its own)."""
    primary: PrimaryName = Field(default="auto", json_schema_extra=_LATER)
    """Score that decides: it chooses the checkpoint, ends a run that has no more patience, and stands first in
    comparisons and reports. `auto` takes the error rate of words; that of characters where the references are of a
    script without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan, ...) or have none;
    accuracy for classes; mAP where a clip may have several. Others are `wer`, `cer`, those of `scores`, which are then
    given, `accuracy`, `f1_macro` and `map`. Evaluations of equal score are told apart by the other error rate, then by
    the training loss."""
    bootstrap: int = Field(default=1000, ge=100, le=1_000_000)
    """Resamples behind each 95 % interval."""
    verbalize_numbers: Literal["auto"] | bool = "auto"
    """Give a second word error rate, of texts whose numbers are written as words, beside the usual one; `auto` does so
    where a clip has digits in its reference or its hypothesis only, and `num2words` knows the language."""
    duration_edges_s: tuple[Annotated[float, Field(gt=0, le=7200)], ...] = (2.0, 5.0, 10.0)
    """Edges between the duration buckets of the scores, in seconds, rising."""
    snr_edges_db: tuple[Annotated[float, Field(ge=-100, le=100)], ...] = Field(default=(), json_schema_extra=_LATER)
    """Edges between buckets of the signal-to-noise ratio of clips, in dB, rising, such as `[10, 20]`: scores are given
    by them as well, for which every clip is read once more. Empty gives none."""
    augment: Literal["none"] | ChainName = Field(default="none", json_schema_extra=_LATER)
    """Score clips as they would sound through one of `augmentation.chains`, in `evaluate` and in the evaluations of a
    run; the title of every score says so. `transcribe` reads clips as they are."""
    augment_seed: int = Field(default=0, ge=0, lt=2**63, json_schema_extra=_LATER)
    """Decides what `evaluation.augment` draws for each clip, the same in every evaluation."""
    zero_shot: bool = True
    """Score `data.eval` before training as well."""
    speech_check: Literal["off", "energy", "silero"] = Field(default="energy", json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Recordings that `transcribe` says nothing is spoken in, instead of asking the model: those below
    `data.silence_db`; with `silero` also those in which a speech detector finds nobody (`sonotune[speech]`), such as
    noise and music; `off` asks the model about all."""
    keep: Annotated[tuple[PanelName, ...], AfterValidator(_check_selectors)] = Field(
        default=(), json_schema_extra=_LATER
    )
    """Panels that say what tuning broke, scored with the base model and with the tuned one, by `train` and `evaluate`:
    a manifest's path or another source of clips, such as another language or domain; `nonspeech`, generated sounds
    without words; `language:SOURCE`, whether the language of clips is identified (multilingual Whisper)."""
    keep_clips: int = Field(default=100, ge=7, le=10_000, json_schema_extra=_LATER)
    """Clips of each panel at most, drawn by the seed; `nonspeech` makes as many."""
    adapter_scales: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(), json_schema_extra=_LATER)
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


class StratumConfig(Section):
    """A part of the corpus that the audit samples and rates by itself; the first whose conditions hold takes a clip."""

    name: str = Field(min_length=1, max_length=60, pattern=r"^[\w-]+$")
    """Its name in the report."""
    share: float = Field(gt=0, le=1)
    """Share of the sample that is drawn here, as a weight beside those of the other strata."""
    where: Mapping[str, str] = {}
    """Field of a clip (id, path, domain, speaker, language, text, or one of its own) -> regular expression that is
    found in it, in any case of letters; all of them must be."""
    min_duration_s: float = Field(default=0.0, ge=0, le=7200)
    """Shorter clips are of another stratum, in seconds."""
    max_duration_s: float | None = Field(default=None, gt=0, le=7200)
    """Longer clips are of another stratum, in seconds."""


class AuditConfig(Section):
    """Whether transcripts belong to their audio: how `sonotune audit` samples, aligns and decides."""

    model: Checkpoint | Literal["auto"] = Field(default="auto", json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Model that aligns: a CTC model, a Whisper, or a Qwen3 forced aligner. `auto` takes `model.checkpoint`."""
    aligner: AlignerName = Field(default="auto", json_schema_extra=_NO_EFFECT_ON_RESULT)
    """How the model aligns; `auto` reads it from the model."""
    trusted: ManifestSource | None = Field(default=None, json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Clips whose transcripts are known to be right, of the same kind: thresholds are calibrated on them. Null takes
    `data.eval`; where that is null as well, the audited clips themselves, and the audit never says PROCEED."""
    trusted_clips: int = Field(default=200, ge=20, le=100_000, json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Trusted clips to use at most."""
    thresholds: Literal["calibrated", "seed"] = Field(default="calibrated", json_schema_extra=_NO_EFFECT_ON_RESULT)
    """What counts as bad: limits calibrated on trusted clips that are corrupted on purpose; or fixed ones, coverage
    below 0.6 or mean confidence below 0.5, whose error rates nobody knows."""
    false_positive_rate: float = Field(default=0.05, gt=0, le=0.5, json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Share of right clips that calibrated limits call bad."""
    strata: Literal["auto", "seed"] | tuple[StratumConfig, ...] = Field(
        default="auto", json_schema_extra=_NO_EFFECT_ON_RESULT
    )
    """Parts of the corpus that are sampled and rated by themselves: `auto` by domain and duration; `seed`:
    whatsapp_noisy, kan_clean and long_tail with 40, 40 and 20 % of the sample; or a list of rules."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(default=0.1, json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Share of the clips in the first sample; null leaves it to `audit.n_per_stratum`."""
    n_per_stratum: int | None = Field(default=None, ge=1, le=1_000_000, json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Clips of each stratum in the first sample, in place of a share."""
    min_clips: int = Field(default=200, ge=1, le=1_000_000, json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Clips in the first sample at least, where there are so many."""
    max_clips: int = Field(default=2800, ge=1, le=10_000_000, json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Clips that are looked at before the audit gives up to decide, and says CAUTION."""
    looks: int = Field(default=3, ge=1, le=10, json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Times that the sample is doubled and looked at, at most; each look has its share of the error."""
    rule: Literal["interval", "point"] = Field(default="interval", json_schema_extra=_NO_EFFECT_ON_RESULT)
    """`interval` decides where the whole interval of the rate lies on one side; `point` by the rate alone, which is as
    often wrong as right at the limits."""
    proceed_below: Share = Field(default=0.10, json_schema_extra=_NO_EFFECT_ON_RESULT)
    """PROCEED where less than this share of the clips is bad."""
    stop_above: Share = Field(default=0.15, json_schema_extra=_NO_EFFECT_ON_RESULT)
    """STOP where more than this share of the clips is bad."""
    cluster_correlation: float = Field(default=0.05, ge=0, le=1, json_schema_extra=_NO_EFFECT_ON_RESULT)
    """How alike the clips of a speaker are (intra-class correlation), by which the interval is wider than that of
    clips drawn one by one."""
    seed: int = Field(default=0, ge=0, lt=2**63, json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Of the sample and of the corruptions."""
    dir: Literal["auto"] | Path = Field(default="auto", json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Folder of the audit. `auto` takes `NAME.audit` beside the manifest NAME of `data.train`, or under `audits` where
    that is no file; `train` looks for the verdict there as well."""
    require: bool = Field(default=True, json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Whether `train` refuses clips whose audit said STOP, or which have changed since their audit. Clips without an
    audit are trained on."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._ordered("proceed_below", "stop_above")
        self._ordered("min_clips", "max_clips")
        if self.fraction is None and self.n_per_stratum is None:
            raise ValueError("fraction or n_per_stratum says how many clips are drawn, and both are null")
        if not isinstance(self.strata, str):
            repeated = [name for name, count in Counter(stratum.name for stratum in self.strata).items() if count > 1]
            if repeated or not self.strata:
                raise ValueError(f"stratum {repeated[0]!r} stands twice" if repeated else "strata is an empty list")
        return self


class RunSection(Section):
    """Where the run is kept and how it goes on."""

    dir: Literal["auto"] | Path = Field(default="auto", json_schema_extra=_NO_EFFECT_ON_RESULT)
    """The run's directory. `auto` goes on with the newest unfinished run of the same settings under `runs`, or makes
    `runs/<time>-<digest>`."""
    resume: Literal["auto", "never", "must"] = Field(default="auto", json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Go on from the newest good checkpoint where there is one; never; or fail where there is none."""
    allow_change: Selectors = Field(default=(), json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Names of settings whose values may differ from those of the run in `run.dir`: `data.train`, and settings of
    augmentation and training. The run goes on with the new values, even where it was finished, and the record keeps
    the old ones."""
    progress: bool = Field(default=True, json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Show how far the run is, on stderr."""
    trackers: Selectors = Field(default=(), json_schema_extra=_NO_EFFECT_ON_RESULT)
    """Trackers that log the run as well, by the names of `accelerate`: wandb (offline unless WANDB_MODE says
    otherwise), tensorboard, mlflow, ..."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.allow_change and self.dir == "auto":
            raise ValueError("allow_change is of the run in run.dir, and run.dir is auto; name the run's directory")
        return self


class RunConfig(Section):
    """Everything that decides one run."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    adapter: AdapterConfig = AdapterConfig()
    allocation: AllocationConfig = AllocationConfig()
    regularization: RegularizationConfig = RegularizationConfig()
    reallocation: ReallocationConfig = ReallocationConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    audit: AuditConfig = AuditConfig()
    sweep: SweepConfig = SweepConfig()
    run: RunSection = RunSection()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.adapter.kind == "none" and self.quantization.bits in {4, 8}:
            raise ValueError(
                f"adapter.kind is 'none' (every weight trains) and quantization.bits is {self.quantization.bits}; "
                "quantised weights cannot train. Take quantization.bits=16, or adapter.kind=lora"
            )
        if self.training.optimizer != "adamw" and (self.reallocation.at or self.adapter.allocator == "adalora"):
            raise ValueError(
                f"training.optimizer is {self.training.optimizer!r}, and ranks that change while they train carry the "
                "moments of plain AdamW along. Take training.optimizer=adamw, or leave the ranks as they are"
            )
        if wrong := sorted(set(self.run.allow_change).difference(_MAY_CHANGE)):
            raise ValueError(
                f"run.allow_change names {wrong[0]!r}{suggest(wrong[0], _MAY_CHANGE)}; a run may go on with another "
                f"data.train and other settings of augmentation and training, but not {', '.join(_MUST_STAY)}"
            )
        moving = bool(self.reallocation.at) or self.adapter.allocator == "adalora"
        if moving and (steps := sorted(_DECIDE_STEPS.intersection(self.run.allow_change))):
            raise ValueError(
                f"run.allow_change names {steps[0]}, and ranks move at shares of the steps (reallocation.at, or "
                "adapter.allocator=adalora), which would come again or never"
            )
        return self


_MUST_STAY = ("training.stages", "training.optimizer", "training.seed", "training.precision")
_MAY_CHANGE = frozenset(
    {"data.train"}
    | {f"augmentation.{name}" for name in AugmentationConfig.model_fields}
    | {f"training.{name}" for name in TrainingConfig.model_fields}
).difference(_MUST_STAY)
_DECIDE_STEPS = frozenset(
    {
        "data.train",
        "training.max_epochs",
        "training.max_steps",
        "training.batch_seconds",
        "training.batch_max_clips",
        "training.accumulation_steps",
    }
)
"""Settings of which a run may be told that they change, and those that say how many steps it makes."""
