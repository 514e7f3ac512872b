"""A package that takes a section of the settings has the section's defaults: each default is decided in one place."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sonotune.adapters.kinds.base import AdapterSettings
from sonotune.adapters.ranks.choose import RankSettings
from sonotune.audio.augment import WaveformAugmenter
from sonotune.config.adapter import AdapterConfig, AllocationConfig, QuantizationConfig
from sonotune.config.data import AugmentationConfig, DataConfig
from sonotune.config.evaluation import EvaluationConfig
from sonotune.config.schema import ModelConfig
from sonotune.config.training import StageConfig, TrainingConfig
from sonotune.features.specaugment import SpecAugmentSettings
from sonotune.planning.layout import TrainingSettings
from sonotune.stages import StageSettings
from sonotune.tasks.base import TaskSettings
from sonotune.training.objectives.base import ObjectiveSettings
from sonotune.training.state import LoopSettings
from sonotune.types import DecodingSettings

SECTIONS = {
    AdapterSettings: (AdapterConfig,),
    RankSettings: (AdapterConfig, AllocationConfig),
    WaveformAugmenter: (AugmentationConfig,),
    SpecAugmentSettings: (AugmentationConfig,),
    DecodingSettings: (EvaluationConfig,),
    TaskSettings: (ModelConfig, DataConfig, TrainingConfig, EvaluationConfig),
    ObjectiveSettings: (ModelConfig, TrainingConfig),
    StageSettings: (StageConfig,),
    LoopSettings: (TrainingConfig,),
    TrainingSettings: (QuantizationConfig,),
}


def defaults_of(settings: Any) -> dict[str, Any]:
    found = {}
    for field in dataclasses.fields(settings):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


@pytest.mark.parametrize("settings", list(SECTIONS), ids=lambda one: one.__name__)
def test_defaults_are_those_of_the_settings_of_a_run(settings: type):
    asked: dict[str, Any] = {}
    for section in SECTIONS[settings]:
        fields = section.model_fields.items()
        asked |= {
            name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()
        }
    shared = {name: value for name, value in defaults_of(settings).items() if name in asked}
    assert shared == {name: asked[name] for name in shared}
    assert shared
