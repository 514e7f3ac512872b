"""Patterns of a foreign adapter are tried before PEFT matches them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sonotune.adapters.kinds import patterns
from sonotune.adapters.kinds.patterns import check_patterns
from sonotune.errors import AdapterError

MODULES = [f"model.decoder.layers.{index}.self_attn.q_proj" for index in range(4)]
ENDLESS = "(([a-z0-9_.])+)+X"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {MODULES[0]: 4}},
        {"target_modules": r".*decoder.*\.(q_proj|v_proj)", "exclude_modules": None},
        {"rank_pattern": {r"^model\.decoder\.layers\.[0-3]": 4}, "alpha_pattern": {}},
    ],
)
def test_names_and_usual_patterns_pass(config: dict[str, Any]):
    check_patterns(config, MODULES, file="adapter_config.json")


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ENDLESS},
        {"exclude_modules": ENDLESS},
        {"rank_pattern": {ENDLESS: 4}},
        {"alpha_pattern": {ENDLESS: 4}},
        {"layers_pattern": [ENDLESS]},
    ],
)
def test_a_pattern_without_end_is_refused(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.5)
    with pytest.raises(AdapterError, match=r"adapter_config\.json: its patterns, such as .* are not matched"):
        check_patterns(config, MODULES, file="adapter_config.json")


@pytest.mark.parametrize("pattern", ["(", "a{9999999999999999}", "(" * 500 + ")" * 500, "[" * 200_000])
def test_what_is_no_pattern_is_refused(pattern: str):
    with pytest.raises(AdapterError, match=r"Copy the adapter again|Name the modules"):
        check_patterns({"target_modules": pattern}, MODULES, file="adapter_config.json")


def test_patterns_of_megabytes_are_refused_before_they_are_compiled():
    started = time.perf_counter()
    with pytest.raises(AdapterError, match="characters"):
        check_patterns({"rank_pattern": {"(a|b)*" * 2_000_000: 1}}, MODULES, file="adapter_config.json")
    assert time.perf_counter() - started < 5


def test_more_names_than_modules_are_refused_before_they_are_compared():
    with pytest.raises(AdapterError, match="names 100000 modules, and the model has 4"):
        check_patterns({"target_modules": [f"m{index}" for index in range(100_000)]}, MODULES, file="a.json")
