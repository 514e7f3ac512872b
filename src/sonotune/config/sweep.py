"""Settings of `sonotune sweep`: what varies between its trials, and which of them are made.

None of them changes the result of a trial, so none is part of the config digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sonotune.config.section import NO_EFFECT_ON_RESULT, Section

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,39}$")]


class SweepConfig(Section):
    """Which trials `sonotune sweep` makes of one line. The other commands ignore this section."""

    method: Literal["auto", "grid", "random", "optuna"] = Field(default="auto", json_schema_extra=NO_EFFECT_ON_RESULT)
    """How trials are chosen: `grid`, every combination; `random`, independent draws; `optuna`, draws that follow the
    scores so far (TPE; needs the extra `sweep`). `auto` takes `grid` where every axis is a list of values, else
    `random`."""
    trials: int | None = Field(default=None, ge=1, le=100_000, json_schema_extra=NO_EFFECT_ON_RESULT)
    """Configurations to try in all. Null takes all of a grid, and 20 of the other methods."""
    axes: Mapping[str, str] = Field(default={}, json_schema_extra=NO_EFFECT_ON_RESULT)
    """Setting -> its values, as words of `sonotune sweep` give them: `4,8,16`, or `1e-5:1e-3:log`."""
    choices: Mapping[Label, Mapping[Label, tuple[str, ...]]] = Field(default={}, json_schema_extra=NO_EFFECT_ON_RESULT)
    """Axis -> label -> words, for settings that change together, such as `quantization.bits=4` and
    `quantization.double=false`. Words of a choice replace those of the line."""
    seed: int = Field(default=0, ge=0, lt=2**63, json_schema_extra=NO_EFFECT_ON_RESULT)
    """Decides what `random` and `optuna` draw. The seed of the trials is `training.seed`."""
    primary: str = Field(default="auto", min_length=1, max_length=60, json_schema_extra=NO_EFFECT_ON_RESULT)
    """Name of the score of `data.eval` that chooses the best trial, such as `cer`; the score says which direction is
    better. `auto` takes the score that decides in the trials (`evaluation.primary`)."""
    pruning: Literal["none", "median", "hyperband"] = Field(default="median", json_schema_extra=NO_EFFECT_ON_RESULT)
    """`optuna`: which trials are stopped early, by their scores at `training.eval_steps`: those below the median of
    the earlier trials at the same step; by successive halving; or none."""
    keep: Literal["weights", "best", "all"] = Field(default="weights", json_schema_extra=NO_EFFECT_ON_RESULT)
    """What stays of finished trials on the disk besides records, predictions and reports: the trained weights of all;
    of the best alone; or everything, with the checkpoints that longer training needs."""
    dir: Literal["auto"] | Path = Field(default="auto", json_schema_extra=NO_EFFECT_ON_RESULT)
    """Directory of the sweep; `auto` takes `runs/sweep-<digest>`, which follows from the line."""
