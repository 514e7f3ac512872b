"""Every setting: its type, bounds, default and meaning. There is no other list of settings.

Sections are frozen and closed to unknown keys. `affects_result=False` marks settings that cannot change the weights,
scores or predictions of a run; they are left out of the config digest, so a run may be resumed with other values.
`in_digest_at_default=False` marks settings that came later: at their default they are left out as well, so that the
digests of older runs stay what they were.
No setting holds a secret: tokens are read from the environment where they are used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sonotune.config.adapter import (
    AdapterConfig,
    AllocationConfig,
    QuantizationConfig,
    ReallocationConfig,
    RegularizationConfig,
)
from sonotune.config.audit import AuditConfig
from sonotune.config.data import AugmentationConfig, DataConfig
from sonotune.config.distillation import DistillationConfig
from sonotune.config.ensemble import EnsembleConfig
from sonotune.config.evaluation import EvaluationConfig
from sonotune.config.frame_merging import FrameMergingConfig
from sonotune.config.names import Checkpoint, Dropout, FamilyName, Selectors, Share, TaskName
from sonotune.config.section import NO_EFFECT_ON_RESULT, Section
from sonotune.config.sweep import SweepConfig
from sonotune.config.training import TrainingConfig
from sonotune.errors import suggest
from sonotune.types import Context


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


class RunSection(Section):
    """Where the run is kept and how it goes on."""

    dir: Literal["auto"] | Path = Field(default="auto", json_schema_extra=NO_EFFECT_ON_RESULT)
    """The run's directory. `auto` goes on with the newest unfinished run of the same settings under `runs`, or makes
    `runs/<time>-<digest>`."""
    resume: Literal["auto", "never", "must"] = Field(default="auto", json_schema_extra=NO_EFFECT_ON_RESULT)
    """Go on from the newest good checkpoint where there is one; never; or fail where there is none."""
    allow_change: Selectors = Field(default=(), json_schema_extra=NO_EFFECT_ON_RESULT)
    """Names of settings whose values may differ from those of the run in `run.dir`: `data.train`, and settings of
    augmentation and training. The run goes on with the new values, even where it was finished, and the record keeps
    the old ones."""
    progress: bool = Field(default=True, json_schema_extra=NO_EFFECT_ON_RESULT)
    """Show how far the run is, on stderr."""
    trackers: Selectors = Field(default=(), json_schema_extra=NO_EFFECT_ON_RESULT)
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
    frame_merging: FrameMergingConfig = FrameMergingConfig()
    training: TrainingConfig = TrainingConfig()
    distillation: DistillationConfig = DistillationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
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
        if self.distillation.on_policy_share and self.training.shard_weights:
            raise ValueError(
                "distillation.on_policy_share lets the model write, which weights in parts cannot "
                "(training.shard_weights). Leave one of them out"
            )
        if self.training.optimizer != "adamw" and (self.reallocation.at or self.adapter.allocator == "adalora"):
            raise ValueError(
                f"training.optimizer is {self.training.optimizer!r}, and ranks that change while they train carry the "
                "moments of plain AdamW along. Take training.optimizer=adamw, or leave the ranks as they are"
            )
        if self.ensemble.votes == "confidence" and not self.evaluation.confidence:
            raise ValueError(
                "ensemble.votes is 'confidence', and evaluation.confidence is false, so that words have none. Set "
                "evaluation.confidence=true, or ensemble.votes=count"
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
