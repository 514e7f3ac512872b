"""What a run trains, how fast and by which loss: the settings, completed by what the model and the clips decide.

The settings of a run are never rewritten. What stages, the size of the model or measured gradients decide stands in an
`Adaptation`, and `run.json` has the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

from sonotune.adapters.kinds.base import AdapterKind, AdapterSettings, kind_named
from sonotune.adapters.kinds.bottleneck import BetweenLora
from sonotune.adapters.ranks.choose import RankSettings
from sonotune.adapters.ranks.components import Split
from sonotune.config.schema import RunConfig
from sonotune.errors import ConfigError
from sonotune.models.base import NEW, LoadedModel, count_parameters
from sonotune.models.frame_merging.settings import FrameMerging
from sonotune.optimizers import usual_rates
from sonotune.stages import Stage, StageSettings, build_stages, whole_run
from sonotune.tasks.base import Task
from sonotune.training.objectives.base import Objective, ObjectiveSettings, make_objective
from sonotune.training.teacher import Distillation, Teacher

MAX_WEIGHT_RATE: Final = 1e-3
"""Highest learning rate of a part that `adapter.split=measured` trains in full precision."""


def asked_merging(config: RunConfig) -> FrameMerging | None:
    """What `frame_merging` asks for; None where the checkpoint says what is merged."""
    section = config.frame_merging
    if not section.asked:
        return None
    shares = {name: 0.0 for name in ("ratio", "audio_ratio") if getattr(section, name) == "auto"}
    return FrameMerging(**{**section.model_dump(), **shares})


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRates:
    """Peak learning rates.

    Attributes:
        peak: Of the run.
        factors: Component selector -> factor on it; of two that match, the later wins.
        reason: Why these, where none was given.
    """

    peak: float
    factors: Mapping[str, float]
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """What trains, and how fast.

    Attributes:
        kind: Of adapters.
        adapters: How they are attached, and what trains beside them.
        ranks: How their ranks are chosen.
        rates: How fast all of it learns.
    """

    kind: AdapterKind
    adapters: AdapterSettings
    ranks: RankSettings
    rates: LearningRates

    @classmethod
    def of(cls, config: RunConfig, loaded: LoadedModel) -> Adaptation:
        """From the settings and the size of a model that is not adapted yet.

        Raises:
            ConfigError: Two stages have one name, or the components are to be measured as well.
        """
        return cls(
            kind=kind_named(config.adapter.kind),
            adapters=adapter_settings(config),
            ranks=rank_settings(config),
            rates=learning_rates(config, loaded),
        )

    def check_kind(self, config: RunConfig) -> None:
        """Refuse what adapters without ranks, or with something between their matrices, cannot have.

        Raises:
            ConfigError: It is asked for.
        """
        moving = bool(config.reallocation.at) or config.adapter.allocator == "adalora"
        if moving and isinstance(self.kind, BetweenLora):
            raise ConfigError(
                f"ranks that move while they train (reallocation.at, adapter.allocator=adalora) cannot be had with "
                f"adapter.kind={self.kind.name}: what stands between A and B belongs to single ranks. Leave them where "
                "they are, or take adapter.kind=lora."
            )
        if self.kind.ranked or self.kind.name == "none":
            return
        asked = {
            "adapter.split=measured": config.adapter.split == "measured",
            "reallocation.at": bool(config.reallocation.at),
            "regularization.entropy": config.regularization.entropy != "off",
            "adapter.budget": config.adapter.budget is not None,
            f"adapter.allocator={config.adapter.allocator}": config.adapter.allocator != "uniform",
        }
        if wrong := [setting for setting, there in asked.items() if there]:
            raise ConfigError(
                f"{', '.join(wrong)} cannot take effect: adapters of the kind {self.kind.name!r} have no ranks. "
                "Leave it out, or take adapter.kind=lora."
            )

    def measured(self, split: Split) -> Adaptation:
        """With what was measured in the place of what was given; rates that were given stay.

        Pretrained weights bear lower rates than adapters do: none learns faster than `MAX_WEIGHT_RATE`, however fast
        they learn.
        """
        given = self.adapters.unfreeze
        most = MAX_WEIGHT_RATE / self.rates.peak
        full = (*(["stem"] if split.stem else []), *split.unfreeze)
        rates = {part: min(split.rates.get(part, 1.0), most) for part in full}
        beside = (*given, *(selector for selector in split.unfreeze if selector not in given))
        adapters = replace(self.adapters, stem="train" if split.stem else "frozen", unfreeze=beside)
        factors = {**{part: rate for part, rate in rates.items() if rate < 1}, **self.rates.factors}
        return replace(
            self,
            adapters=adapters,
            ranks=replace(
                self.ranks, stem=adapters.stem, unfreeze=adapters.unfreeze, group_weights=dict(split.weights)
            ),
            rates=replace(self.rates, factors=factors),
        )

    def stages(self, config: RunConfig, loaded: LoadedModel) -> tuple[Stage, ...]:
        """The stages of a run, on a model whose trainable parameters are marked.

        Raises:
            AdapterError: A stage trains nothing, or what cannot train.
        """
        training, rates = config.training, self.rates
        if not training.stages:
            return (
                whole_run(
                    loaded,
                    learning_rate=rates.peak,
                    learning_rates=rates.factors,
                    layer_decay=training.layer_decay,
                    max_epochs=training.max_epochs,
                    max_steps=training.max_steps,
                    patience=training.patience,
                    warmup_steps=training.warmup_steps,
                ),
            )
        return build_stages(
            loaded,
            wanted_stages(config),
            learning_rate=rates.peak,
            learning_rates=rates.factors,
            layer_decay=training.layer_decay,
        )


def adapter_settings(config: RunConfig) -> AdapterSettings:
    """How adapters are attached, and what trains beside them: what is given, and what is new in the model.

    With stages it is what any of them trains, and nothing else.

    Raises:
        ConfigError: Two stages have one name, or the components are to be measured as well.
    """
    given = AdapterSettings(**{field.name: getattr(config.adapter, field.name) for field in fields(AdapterSettings)})
    stages = config.training.stages
    if not stages:
        return replace(given, unfreeze=(NEW, *given.unfreeze))
    names = [stage.name for stage in stages]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(
            f"training.stages: two stages are called {twice!r}; events and the record need different names."
        )
    if config.adapter.split == "measured":
        raise ConfigError(
            "training.stages says what trains, and adapter.split=measured finds it out. Take one of the two."
        )
    weights = tuple(dict.fromkeys(selector for stage in stages for selector in stage.weights))
    return replace(given, stem="lora" if given.stem == "lora" else "frozen", unfreeze=weights)


def rank_settings(config: RunConfig) -> RankSettings:
    """How ranks are chosen; raises as `adapter_settings`."""
    adapters = adapter_settings(config)
    section = config.adapter.model_dump() | {"stem": adapters.stem, "unfreeze": adapters.unfreeze}
    return RankSettings.of(section, config.allocation.model_dump())


def unquantized(config: RunConfig) -> tuple[str, ...]:
    """Selectors that stay in full precision: what trains must be there from the start."""
    return (*config.quantization.skip, *(() if config.adapter.kind == "none" else adapter_settings(config).unfreeze))


def learning_rates(config: RunConfig, loaded: LoadedModel) -> LearningRates:
    """Learning rates in numbers.

    Args:
        config: Of the run.
        loaded: The model, not adapted yet.
    """
    training = config.training
    if training.learning_rate != "auto":
        return LearningRates(peak=training.learning_rate, factors=training.learning_rates)
    parameters = sum(row["parameters"] for row in count_parameters(loaded).values())
    usual, size = usual_rates(parameters), f"{parameters / 1e6:.0f} million parameters"
    if config.adapter.kind == "none":
        reason = f"{usual.weights:g}: all of {size} train"
        return LearningRates(peak=usual.weights, factors=training.learning_rates, reason=reason)
    pretrained = _pretrained_in_full(config, loaded)
    factors = dict.fromkeys(pretrained, usual.weights / usual.adapters)
    reason = f"{usual.adapters:g}: adapters on {size}"
    reason += f"; {usual.weights:g} for {', '.join(pretrained)}" if pretrained else ""
    return LearningRates(peak=usual.adapters, factors={**factors, **training.learning_rates}, reason=reason)


def _pretrained_in_full(config: RunConfig, loaded: LoadedModel) -> list[str]:
    """Selectors of pretrained weights that train in full precision beside adapters, as far as they are known now."""
    if config.adapter.split == "measured":
        return []
    adapters = adapter_settings(config)
    in_full = (*(["stem"] if adapters.stem == "train" else []), *adapters.unfreeze)
    new = {NEW, *loaded.new_parts}
    return [part for part in in_full if not new.intersection((part, part.partition(".")[0]))]


def wanted_stages(config: RunConfig) -> list[StageSettings]:
    """The stages as they were written; none where the run has one."""
    return [
        StageSettings(**{**stage.model_dump(), "max_epochs": stage.max_epochs or _ANY_EPOCHS})
        for stage in config.training.stages
    ]


_ANY_EPOCHS = 1_000_000  # of a stage that its steps end


def objective_of(
    config: RunConfig, task: Task, *, teacher: Teacher | None = None, calibrating: bool = False
) -> Objective:
    """What training lowers; calibration takes it without label smoothing, and without texts that the model draws."""
    settings = ObjectiveSettings(
        label_smoothing=0.0 if calibrating else config.training.label_smoothing,
        ctc_share=config.model.ctc_share,
        star_bypass_penalty=config.training.star_bypass_penalty,
        star_speech_penalty=config.training.star_speech_penalty,
        distillation=None if teacher is None else _distillation(config, teacher, calibrating=calibrating),
    )
    return make_objective(config.training.objective, task, settings)


def _distillation(config: RunConfig, teacher: Teacher, *, calibrating: bool) -> Distillation:
    section = config.distillation
    return Distillation(
        teacher=teacher,
        temperature=section.temperature,
        loss_share=section.loss_share,
        on_policy_share=0.0 if calibrating else section.on_policy_share,
        seed=config.training.seed,
    )
