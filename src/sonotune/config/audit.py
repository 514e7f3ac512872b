"""Settings of the audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sonotune.config.names import AlignerName, Checkpoint, ManifestSource, Share
from sonotune.config.section import NO_EFFECT_ON_RESULT, Section


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

    model: Checkpoint | Literal["auto"] = Field(default="auto", json_schema_extra=NO_EFFECT_ON_RESULT)
    """Model that aligns: a CTC model, a Whisper, or a Qwen3 forced aligner. `auto` takes `model.checkpoint`."""
    aligner: AlignerName = Field(default="auto", json_schema_extra=NO_EFFECT_ON_RESULT)
    """How the model aligns; `auto` reads it from the model."""
    trusted: ManifestSource | None = Field(default=None, json_schema_extra=NO_EFFECT_ON_RESULT)
    """Clips whose transcripts are known to be right, of the same kind: thresholds are calibrated on them. Null takes
    `data.eval`; where that is null as well, the audited clips themselves, and the audit never says PROCEED."""
    trusted_clips: int = Field(default=200, ge=20, le=100_000, json_schema_extra=NO_EFFECT_ON_RESULT)
    """Trusted clips to use at most."""
    thresholds: Literal["calibrated", "seed"] = Field(default="calibrated", json_schema_extra=NO_EFFECT_ON_RESULT)
    """What counts as bad: limits calibrated on trusted clips that are corrupted on purpose; or fixed ones, coverage
    below 0.6 or mean confidence below 0.5, whose error rates nobody knows."""
    false_positive_rate: float = Field(default=0.05, gt=0, le=0.5, json_schema_extra=NO_EFFECT_ON_RESULT)
    """Share of right clips that calibrated limits call bad."""
    strata: Literal["auto", "seed"] | tuple[StratumConfig, ...] = Field(
        default="auto", json_schema_extra=NO_EFFECT_ON_RESULT
    )
    """Parts of the corpus that are sampled and rated by themselves: `auto` by domain and duration; `seed`:
    whatsapp_noisy, kan_clean and long_tail with 40, 40 and 20 % of the sample; or a list of rules."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(default=0.1, json_schema_extra=NO_EFFECT_ON_RESULT)
    """Share of the clips in the first sample; null leaves it to `audit.n_per_stratum`."""
    n_per_stratum: int | None = Field(default=None, ge=1, le=1_000_000, json_schema_extra=NO_EFFECT_ON_RESULT)
    """Clips of each stratum in the first sample, in place of a share."""
    min_clips: int = Field(default=200, ge=1, le=1_000_000, json_schema_extra=NO_EFFECT_ON_RESULT)
    """Clips in the first sample at least, where there are so many."""
    max_clips: int = Field(default=2800, ge=1, le=10_000_000, json_schema_extra=NO_EFFECT_ON_RESULT)
    """Clips that are looked at before the audit gives up to decide, and says CAUTION."""
    looks: int = Field(default=3, ge=1, le=10, json_schema_extra=NO_EFFECT_ON_RESULT)
    """Times that the sample is doubled and looked at, at most; each look has its share of the error."""
    rule: Literal["interval", "point"] = Field(default="interval", json_schema_extra=NO_EFFECT_ON_RESULT)
    """`interval` decides where the whole interval of the rate lies on one side; `point` by the rate alone, which is as
    often wrong as right at the limits."""
    proceed_below: Share = Field(default=0.10, json_schema_extra=NO_EFFECT_ON_RESULT)
    """PROCEED where less than this share of the clips is bad."""
    stop_above: Share = Field(default=0.15, json_schema_extra=NO_EFFECT_ON_RESULT)
    """STOP where more than this share of the clips is bad."""
    cluster_correlation: float = Field(default=0.0, ge=0, le=1, json_schema_extra=NO_EFFECT_ON_RESULT)
    """How alike the clips of a speaker are (intra-class correlation). Clips are drawn one by one, so the rate of this
    corpus needs none; above 0 the interval is wider, and that of other clips of such speakers."""
    seed: int = Field(default=0, ge=0, lt=2**63, json_schema_extra=NO_EFFECT_ON_RESULT)
    """Of the sample and of the corruptions."""
    dir: Literal["auto"] | Path = Field(default="auto", json_schema_extra=NO_EFFECT_ON_RESULT)
    """Folder of the audit. `auto` takes `NAME.audit` beside the manifest NAME of `data.train`, or under `audits` where
    that is no file; `train` looks for the verdict there as well."""
    require: bool = Field(default=True, json_schema_extra=NO_EFFECT_ON_RESULT)
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
