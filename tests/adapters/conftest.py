"""The packaged geometry, adapters with something in them, and logits to compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sonotune.adapters.kinds import lora
from sonotune.adapters.ranks.plan import RankPlan, unit_costs
from sonotune.adapters.targets import resolve_targets
from sonotune.models.base import LoadedModel
from sonotune.models.families.whisper import WhisperFamily
from sonotune.models.probe import probe_logits
from sonotune.models.quantize import quantize

FAMILY = WhisperFamily()


@pytest.fixture
def fresh() -> Callable[..., LoadedModel]:
    """A newly loaded packaged model; `bits` quantises it."""

    def load(*, bits: int = 16, context: str = "cut", keep: set[str] | None = None, double: bool = True) -> LoadedModel:
        loaded = FAMILY.load("assets:whisper-nano", context=context)  # type: ignore[arg-type]
        return loaded if bits == 16 else quantize(loaded, bits=bits, keep=keep or set(), double=double)  # type: ignore[arg-type]

    return load


@pytest.fixture
def plan() -> Callable[..., RankPlan]:
    """The same rank for every target, unless some are given their own."""

    def make(loaded: LoadedModel, targets: Any = "all_linear", *, rank: int = 4, **own: int) -> RankPlan:
        names = resolve_targets(loaded, targets)
        ranks = {name: own.get(name.rpartition(".")[2], rank) for name in names}
        costs = unit_costs(loaded, names)
        total = sum(ranks[name] * costs[name] for name in names)
        return RankPlan(ranks=ranks, allocator="test", parameters=total)

    return make


@pytest.fixture
def adapted(fresh: Callable[..., LoadedModel], plan: Callable[..., RankPlan]) -> Callable[..., LoadedModel]:
    """A model whose adapter and unfrozen weights are far from where they began, as after training."""

    def build(
        *,
        bits: int = 16,
        context: str = "cut",
        targets: Any = "all_linear",
        ranks: dict[str, int] | None = None,
        keep: set[str] | None = None,
        double: bool = True,
        **settings: Any,
    ) -> LoadedModel:
        loaded = fresh(bits=bits, context=context, keep=keep, double=double)
        torch.manual_seed(5)  # where the A matrices start
        attached = lora.attach(loaded, plan(loaded, targets, **(ranks or {})), **{"rank": 4, "alpha": 8.0, **settings})
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in attached.module.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        attached.module.eval()
        return attached

    return build


@pytest.fixture
def logits() -> Callable[[LoadedModel], Tensor]:
    """Logits on the probe."""
    return lambda loaded: probe_logits(loaded)
