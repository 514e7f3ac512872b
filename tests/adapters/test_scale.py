"""A tuned model at a part of what it learned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sonotune.adapters.kinds.base import kind_of
from sonotune.adapters.scale import at_scale
from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel
from sonotune.models.probe import probe_logits

Build = Callable[..., LoadedModel]


def test_nothing_of_an_adapter_is_the_base_model_and_all_of_it_the_tuned_one(fresh: Build, adapted: Build):
    loaded = adapted()
    tuned, base = probe_logits(loaded), probe_logits(fresh())
    assert not torch.allclose(tuned, base, atol=1e-3)
    with at_scale(loaded, 0.0):
        assert torch.equal(probe_logits(loaded), base)
    with at_scale(loaded, 0.0), kind_of(loaded).disabled(loaded):
        assert torch.equal(probe_logits(loaded), base)
    with at_scale(loaded, 1.0):
        assert torch.equal(probe_logits(loaded), tuned)
    with at_scale(loaded, 0.5):
        half = probe_logits(loaded)
    assert not torch.allclose(half, tuned, atol=1e-3)
    assert not torch.allclose(half, base, atol=1e-3)
    assert torch.equal(probe_logits(loaded), tuned)


def test_half_of_an_adapter_is_half_of_every_update(fresh: Build, adapted: Build):
    """The weights that it computes with are base + half of what a merge adds, in products and in full weights."""
    loaded, plain = adapted(), fresh()
    merged = kind_of(loaded).merge(loaded)
    assert merged is not None
    copies = {
        loaded.names.unwrapped(name): value.detach()
        for name, value in loaded.module.named_parameters()
        if loaded.names.is_copy(name)
    }
    assert copies  # the stem trains in full
    weights = dict(plain.module.named_parameters())
    with torch.no_grad():
        for name, update in merged.items():
            weights[name] += 0.5 * update
        for name, value in copies.items():
            weights[name].lerp_(value, 0.5)
    with at_scale(loaded, 0.5):
        assert torch.allclose(probe_logits(loaded), probe_logits(plain), atol=2e-4)


def test_what_an_adapter_was_comes_back_after_an_error(adapted: Build):
    loaded = adapted()
    before = {name: value.clone() for name, value in loaded.module.state_dict().items()}
    logits = probe_logits(loaded)
    with pytest.raises(RuntimeError, match="in the middle"), at_scale(loaded, 0.25):
        raise RuntimeError("in the middle")
    assert all(torch.equal(value, before[name]) for name, value in loaded.module.state_dict().items())
    assert torch.equal(probe_logits(loaded), logits)


def test_weights_without_an_adapter_are_interpolated_with_those_of_the_base(fresh: Build):
    base, tuned = fresh(), fresh()
    with torch.no_grad():
        for parameter in tuned.module.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    state = copy.deepcopy(base.module.state_dict())
    logits = probe_logits(tuned)
    with at_scale(tuned, 0.0, base=state):
        assert torch.equal(probe_logits(tuned), probe_logits(base))
    with at_scale(tuned, 1.0, base=state):
        assert torch.equal(probe_logits(tuned), logits)
    with at_scale(tuned, 0.5, base=state):
        found = dict(tuned.module.named_parameters())["model.encoder.conv1.weight"].detach().clone()
    mean = (state["model.encoder.conv1.weight"] + tuned.module.state_dict()["model.encoder.conv1.weight"]) / 2
    assert torch.allclose(found, mean)


def test_what_cannot_be_scaled_is_refused(fresh: Build, adapted: Build, monkeypatch: pytest.MonkeyPatch):
    plain = fresh()
    with pytest.raises(AdapterError, match="carries no adapter"):
        at_scale(plain, 0.5)
    other: dict[str, Any] = {name: value[:1] for name, value in plain.module.state_dict().items()}
    with pytest.raises(AdapterError, match="has another shape there"), at_scale(plain, 0.5, base=other):
        pass
    loaded = adapted()
    monkeypatch.setattr("sonotune.adapters.scale.kind_of", lambda _: type("Gate", (), {"name": "gate"})())
    with pytest.raises(AdapterError, match="kind 'gate' cannot be used at a part"):
        at_scale(loaded, 0.5)
