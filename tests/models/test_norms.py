"""Batch normalisation that keeps what it was pretrained with."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sonotune.models.base import Component, LoadedModel, select
from sonotune.models.norms import fix_batch_norms

INPUTS: dict[type[nn.Module], Tensor] = {
    nn.BatchNorm1d: torch.randn(4, 3, 20, generator=torch.Generator().manual_seed(0)) * 5 + 2,
    nn.BatchNorm2d: torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0)) * 5 + 2,
}
KINDS = pytest.mark.parametrize("kind", list(INPUTS))


def pretrained(kind: Any, **settings: Any) -> Any:
    norm = kind(3, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        norm.running_mean.copy_(torch.randn(3, generator=generator))
        norm.running_var.copy_(torch.rand(3, generator=generator) + 0.5)
        if norm.affine:
            norm.weight.copy_(torch.randn(3, generator=generator))
            norm.bias.copy_(torch.randn(3, generator=generator))
    return norm


@KINDS
@pytest.mark.parametrize("affine", [True, False])
def test_training_uses_the_running_statistics_and_keeps_them(kind: Any, affine: bool):
    norm = pretrained(kind, affine=affine, eps=1e-3)
    expected = copy.deepcopy(norm).eval()(INPUTS[kind])
    in_training = copy.deepcopy(norm).train()(INPUTS[kind])
    assert float((in_training - expected).detach().abs().max()) > 0.1  # what a plain one would give
    model = nn.Sequential(nn.Identity(), nn.Sequential(norm))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fix_batch_norms(model)
    model.train()
    for _ in range(3):
        torch.testing.assert_close(model(INPUTS[kind]), expected, rtol=0, atol=0)
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    model.eval()
    torch.testing.assert_close(model(INPUTS[kind]), expected, rtol=0, atol=0)


@KINDS
def test_a_clip_is_as_alone(kind: Any):
    norm = pretrained(kind)
    fix_batch_norms(norm)
    norm.train()
    together = norm(INPUTS[kind])
    alone = torch.cat([norm(INPUTS[kind][row : row + 1]) for row in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


@KINDS
def test_it_is_still_a_batch_normalisation(kind: Any):
    model = nn.Sequential(pretrained(kind))
    fix_batch_norms(model)
    assert isinstance(model[0], kind)
    loaded = LoadedModel(
        module=model,
        frontend=None,
        components=(Component(name="encoder", prefixes=("0",)),),
        linears=(),  # type: ignore[arg-type]
        family=SimpleNamespace(name="test"),  # type: ignore[arg-type]
        checkpoint="none",
        revision="0",
        processor=None,
    )
    assert select(loaded, ["encoder.norms"]) == ("0.weight", "0.bias")
    copied = copy.deepcopy(model)
    assert type(copied[0]) is type(model[0])


@KINDS
def test_its_scale_and_shift_still_train(kind: Any):
    model = nn.Sequential(pretrained(kind))
    fix_batch_norms(model)
    inputs = INPUTS[kind].clone().requires_grad_(True)
    model.train()(inputs).square().sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in model.parameters())
    assert bool(inputs.grad.any())  # type: ignore[union-attr]


def test_twice_is_as_once_and_other_norms_are_left_alone():
    model = nn.ModuleList([nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.LayerNorm(3), nn.GroupNorm(1, 3)])
    fix_batch_norms(model)
    once = [type(part) for part in model]
    fix_batch_norms(model)
    assert [type(part) for part in model] == once
    assert once[2:] == [nn.LayerNorm, nn.GroupNorm]
    assert nn.BatchNorm1d not in once
    assert nn.BatchNorm2d not in once
    assert type(nn.BatchNorm1d(3)) is nn.BatchNorm1d  # those of others are as they were


def test_names_and_numbers_are_those_of_the_checkpoint():
    plain, fixed = pretrained(nn.BatchNorm1d), pretrained(nn.BatchNorm1d)
    fix_batch_norms(fixed)
    assert list(fixed.state_dict()) == list(plain.state_dict())
    fixed.load_state_dict(plain.state_dict())
