"""Settings of ensembles: how the predictions of several models become one.

`evaluate` and `transcribe` read them where several models are named. No run is made with them, so none is part of the
config digest.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sonotune.config.section import NO_EFFECT_ON_RESULT, Section
from sonotune.types import CombinationMethod


class EnsembleConfig(Section):
    """How several models are used together: `model=[a,b,c]` in `evaluate`, `transcribe` and `classify`.

    The other commands ignore this section. Classes need none of it: their probabilities are averaged.
    """

    method: CombinationMethod = Field(default="rover", json_schema_extra=NO_EFFECT_ON_RESULT)
    """`rover` aligns the texts and lets the models vote word by word; `mbr` takes, of each clip, the text with the
    fewest word errors to all others. Ties go to the model that is named first."""
    votes: Literal["count", "confidence"] = Field(default="count", json_schema_extra=NO_EFFECT_ON_RESULT)
    """`rover`: every vote counts as one, or as much as the confidence of its word, which needs
    `evaluation.confidence=true` and models that were calibrated (`sonotune calibrate`) to be fair."""
    deletion_confidence: float = Field(default=0.7, ge=0, le=1, json_schema_extra=NO_EFFECT_ON_RESULT)
    """What the vote of a model counts that has no word at a place, where votes count by confidence."""
