"""The plug-in of the page about allocators does what the page says."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from types import MappingProxyType, ModuleType

import pytest

from sonotune import registry
from sonotune.adapters.kinds.lora import lora_layers
from sonotune.adapters.ranks.choose import RankSettings, plan_ranks
from sonotune.adapters.trainable import adapt
from sonotune.loading import open_model

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-an-allocator.md"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> str:
    """The page's class as an installed plug-in; returns its name."""
    text = PAGE.read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    module = ModuleType("my_package")
    exec(compile(textwrap.dedent(block), str(PAGE), "exec"), module.__dict__)  # noqa: S102  (our own page)
    monkeypatch.setitem(sys.modules, "my_package", module)
    found = re.search(r'^\s*(\w+) = "(my_package:\w+)"$', text, re.MULTILINE)
    assert found is not None
    table = MappingProxyType({**registry.ALLOCATORS, found[1]: found[2]})
    monkeypatch.setattr(registry, "TABLES", MappingProxyType({**registry.TABLES, "allocators": table}))
    return found[1]


def test_the_plug_in_spends_the_budget_by_its_own_scores(plugin: str):
    loaded = open_model("assets:whisper-nano").loaded
    settings = RankSettings(allocator=plugin, rank=8)
    plan, even = plan_ranks(loaded, settings), plan_ranks(loaded, RankSettings(rank=8))
    assert plan.allocator == plugin
    assert 0.995 * even.parameters < plan.parameters <= even.parameters
    tall, wide = ("model.encoder.layers.0.fc1", "model.encoder.layers.0.fc2")
    assert plan.ranks[tall] > plan.ranks[wide]
    layers = lora_layers(adapt(loaded, plan, rank=8, stem="frozen"))
    assert {name: layer.r["default"] for name, layer in layers.items()} == plan.ranks
