"""The plug-in of the page about allocators does what the page says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sonotune.adapters.kinds.base import AdapterSettings
from sonotune.adapters.kinds.lora import LORA, lora_layers
from sonotune.adapters.ranks.choose import RankSettings, plan_ranks
from sonotune.adapters.trainable import adapt
from sonotune.loading import open_model


@pytest.fixture
def plugin(install: Callable[..., str]) -> str:
    return install("add-an-allocator.md", "allocators")


def test_the_plug_in_spends_the_budget_by_its_own_scores(plugin: str):
    loaded = open_model("assets:whisper-nano").loaded
    settings = RankSettings(allocator=plugin, rank=8)
    plan, even = plan_ranks(loaded, settings), plan_ranks(loaded, RankSettings(rank=8))
    assert plan.allocator == plugin
    assert 0.995 * even.parameters < plan.parameters <= even.parameters
    tall, wide = ("model.encoder.layers.0.fc1", "model.encoder.layers.0.fc2")
    assert plan.ranks[tall] > plan.ranks[wide]
    layers = lora_layers(adapt(loaded, LORA, plan, AdapterSettings(rank=8, stem="frozen")))
    assert {name: layer.r["default"] for name, layer in layers.items()} == plan.ranks
