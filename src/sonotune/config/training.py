"""Settings of training and of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sonotune.config.names import Dropout, Multiplier, ObjectiveName, Rate, Selectors, Share
from sonotune.config.section import LATER, NO_EFFECT_ON_RESULT, Section


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
    objective: ObjectiveName = Field(default="auto", json_schema_extra=LATER)
    """What training lowers: `task`, the loss of the task; `ctc_mix`, that with `model.ctc_share` of CTC; `star`, CTC
    that lets wrong, missing and superfluous words of a transcript pass, to tune a trained CTC model on flawed
    transcripts; `distill`, the loss of the task and the divergence from a teacher (section `distillation`); `auto`
    takes the second where that share is above 0, else the first."""
    star_bypass_penalty: float = Field(default=12.0, ge=0, le=1000, json_schema_extra=LATER)
    """`star`: nats for each word of a transcript that is left out. A word that costs more is."""
    star_speech_penalty: float = Field(default=8.0, ge=0, le=1000, json_schema_extra=LATER)
    """`star`: nats for each stretch of speech between two words that nobody transcribed."""
    label_smoothing: Dropout = 0.0
    """Share of each target's probability spread over the vocabulary or the classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` lets every class weigh the same in the loss, however many clips it has."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    shard_weights: bool = Field(default=False, json_schema_extra=NO_EFFECT_ON_RESULT)
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
        default="epoch", json_schema_extra=NO_EFFECT_ON_RESULT
    )
    """Steps between checkpoints. A run that is killed at once (SIGKILL, power loss) loses the steps since the last
    one."""
    keep_checkpoints: int = Field(default=2, ge=1, le=10_000, json_schema_extra=NO_EFFECT_ON_RESULT)
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
