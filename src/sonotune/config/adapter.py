"""Settings of adapters: their ranks, how these move while they train, and the bits of the weights below them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from sonotune.config.names import AdapterKindName, AllocatorName, Dropout, Multiplier, Rate, Selectors, Share
from sonotune.config.section import LATER, Section


class AdapterConfig(Section):
    """What trains: low-rank adapters with chosen components beside them, or every weight."""

    kind: AdapterKindName = "lora"
    """`lora` trains adapters on a frozen model; `none` trains the model itself (full fine-tuning). `gated_lora` is LoRA
    whose groups of ranks open and close with the frames of the clip, `clip_gated_lora` with the clip as a whole,
    `shuffled_gated_lora` with its frames in another order (a control), `conv_lora` has filters over time between its
    matrices."""
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
    """Adapter parameters to spend at most; null spends what the reference rank costs. Gates and filters over time are
    not counted."""
    gate_groups: int = Field(default=4, ge=1, le=256, json_schema_extra=LATER)
    """Groups of ranks that have a gate of their own (`gated_lora` and its like); a module has no more than ranks."""
    gate_seed: int = Field(default=0, ge=0, lt=2**63, json_schema_extra=LATER)
    """Decides the weights that gates start from, and the order of frames in `shuffled_gated_lora`."""
    conv_kernel: int = Field(default=3, ge=1, le=63, json_schema_extra=LATER)
    """Encoder positions that a filter of `conv_lora` reaches over; an odd number."""

    @field_validator("conv_kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"a filter lies around a position, so conv_kernel must be odd, and is {value}")
        return value


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
