"""Learning rates where none is given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sonotune.config.load import load_run_config
from sonotune.models.base import Component, LoadedModel
from sonotune.models.families.whisper import WhisperFamily
from sonotune.models.quantize import quantize
from sonotune.optimizers import usual_rates
from sonotune.training.adaptation import learning_rates


def model_of(parameters: int, untrained: tuple[str, ...] = (), new_outputs: tuple[str, ...] = ()) -> LoadedModel:
    module = nn.Module()
    module.weight = nn.Parameter(torch.empty(parameters, device="meta"))
    return LoadedModel(
        module=module,
        frontend=None,
        components=(Component(name="encoder", prefixes=("weight",)),),
        linears=(),  # type: ignore[arg-type]
        family=SimpleNamespace(name="whisper"),  # type: ignore[arg-type]
        checkpoint="x",
        revision="x",
        processor=None,
        untrained=untrained,
        new_outputs=new_outputs,
    )


def chosen(*words: str, parameters: int = 72_593_920, **of_model: Any) -> tuple[float, dict[str, float], str | None]:
    config = load_run_config(["model=whisper_base", "data.train=x.jsonl", *words]).config
    rates = learning_rates(config, model_of(parameters, **of_model))
    return rates.peak, dict(rates.factors), rates.reason


def test_larger_models_have_lower_rates_and_weights_lower_ones_than_adapters():
    sizes = [1_000_000, 72_000_000, 600_000_000, 2_000_000_000]
    rates = [usual_rates(size) for size in sizes]
    assert all(one.weights <= one.adapters / 5 for one in rates)
    for field in ("adapters", "weights"):
        values = [getattr(one, field) for one in rates]
        assert values == sorted(values, reverse=True)


def test_a_rate_that_is_given_is_for_all_alike():
    assert chosen("training.learning_rate=1e-3") == (1e-3, {}, None)


def test_the_stem_learns_at_the_rate_of_pretrained_weights():
    rates = usual_rates(72_593_920)
    rate, factors, reason = chosen()
    assert rate == rates.adapters
    assert rate * factors["stem"] == pytest.approx(rates.weights)
    assert reason is not None
    assert "73 million parameters" in reason
    assert "stem" in reason
    assert chosen("adapter.stem=frozen")[1] == chosen("adapter.stem=lora")[1] == {}
    assert chosen("training.learning_rates={stem: 0.5}")[1] == {"stem": 0.5}


def test_an_output_layer_that_is_pretrained_learns_like_the_rest_of_the_weights():
    factor = usual_rates(72_593_920).weights / usual_rates(72_593_920).adapters
    words = ("adapter.stem=frozen", "adapter.unfreeze=[head]")
    assert chosen(*words)[1] == {"head": factor}
    assert chosen(*words, new_outputs=("a", "b"))[1] == {}


def test_weights_in_four_bits_count_as_what_they_stand_for():
    loaded = quantize(
        WhisperFamily().load("assets:whisper-nano", random_weights=True),
        bits=4,
        keep=set(),
        double=True,
        compute_dtype=torch.float32,
    )
    held = sum(parameter.numel() for parameter in loaded.module.parameters())
    reason = learning_rates(load_run_config(["model=whisper_base", "data.train=x.jsonl"]).config, loaded).reason
    assert held < 2e6
    assert reason is not None
    assert "3 million parameters" in reason


def test_full_fine_tuning_learns_at_the_rate_of_pretrained_weights():
    rate, factors, reason = chosen("adapter=full")
    assert (rate, factors) == (usual_rates(72_593_920).weights, {})
    assert reason is not None
    assert "all of" in reason


def test_parts_that_are_new_learn_as_fast_as_adapters():
    factor = usual_rates(72_593_920).weights / usual_rates(72_593_920).adapters
    words = ("adapter.stem=frozen", "adapter.unfreeze=[head, encoder.norms, decoder.gates]")
    assert chosen(*words, untrained=("decoder.gates",))[1] == {"head": factor, "encoder.norms": factor}
    assert chosen("adapter.stem=frozen", "adapter.unfreeze=[projector]", untrained=("projector",))[1] == {}
    assert chosen("adapter.stem=frozen", "adapter.unfreeze=[projector]")[1] == {"projector": factor}
    assert chosen("adapter.split=measured")[1] == {}
    assert chosen("training.stages=[{name: a, weights: ['decoder.layers[1:]'], max_steps: 3}]")[1] == {
        "decoder.layers[1:]": factor
    }
