"""Learning rates in closed form, groups, decay, and optimiser state by parameter name."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from sonotune.errors import CheckpointError
from sonotune.optimizers import choose_optimizer, moment_bytes
from sonotune.stages import ParameterGroup, Stage
from sonotune.training.checks import check_gradients
from sonotune.training.optimizer import (
    build_optimizer,
    enter_stage,
    learning_rate_factor,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rates,
)


def make(*, seed: int = 0) -> tuple[nn.Module, Stage]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = (
        ParameterGroup(name="slow", parameters=("0.weight",), learning_rate=1e-3, decay=True),
        ParameterGroup(name="fast", parameters=("1.weight",), learning_rate=1e-2, decay=True),
        ParameterGroup(name="plain", parameters=("0.bias", "1.bias"), learning_rate=1e-3, decay=False),
    )
    return module, Stage(name="train", groups=groups, max_epochs=1, max_steps=None, patience=None)


def step(module: nn.Module, optimizer: torch.optim.Optimizer, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    module(torch.randn(5, 3, generator=generator)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_schedule_is_its_closed_form(schedule):
    total, warmup, floor = 25, 5, 0.2
    for at in range(total):
        if at < warmup:
            expected = (at + 1) / 5
        elif schedule == "cosine":
            expected = 0.2 + 0.8 * (1 + math.cos(math.pi * (at - 5) / 20)) / 2
        elif schedule == "linear":
            expected = 1 - 0.8 * (at - 5) / 20
        else:
            expected = 1.0
        found = learning_rate_factor(at, total_steps=total, warmup_steps=warmup, schedule=schedule, floor=floor)
        assert found == pytest.approx(expected, abs=1e-12)


def test_the_schedule_rises_then_falls_to_its_floor_and_stays_there():
    factors = [
        learning_rate_factor(at, total_steps=100, warmup_steps=10, schedule="cosine", floor=0.1) for at in range(120)
    ]
    assert factors[0] == 0.1
    assert max(factors) == factors[9] == factors[10] == 1.0
    assert factors[100:] == [pytest.approx(0.1)] * 20
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors[10:]))


@pytest.mark.parametrize("warmup", [0, 10, 50])
def test_a_warm_up_as_long_as_the_stage_or_none_is_defined(warmup):
    factors = [
        learning_rate_factor(at, total_steps=10, warmup_steps=warmup, schedule="linear", floor=0.0) for at in range(10)
    ]
    assert all(0 < factor <= 1 for factor in factors)


def test_every_group_has_its_own_rate_and_its_share_of_the_factor():
    module, stage = make()
    optimizer = build_optimizer(module, [stage], weight_decay=0.1, betas=(0.9, 0.99))
    enter_stage(optimizer, 0)
    assert set_learning_rates(optimizer, 0.5) == {"slow": 5e-4, "fast": 5e-3, "plain": 5e-4}
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4, 5e-3, 5e-4]
    assert set_learning_rates(optimizer, 1.0)["fast"] == 1e-2  # of the peak, not of the last rate
    assert optimizer.defaults["betas"] == (0.9, 0.99)


def test_weight_decay_shrinks_matrices_by_rate_times_decay_and_leaves_biases_alone():
    module, stage = make()
    optimizer = build_optimizer(module, [stage], weight_decay=0.1, betas=(0.9, 0.999))
    enter_stage(optimizer, 0)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(module.named_parameters())
    torch.testing.assert_close(after["0.weight"].data, before["0.weight"] * (1 - 1e-3 * 0.1))
    torch.testing.assert_close(after["1.weight"].data, before["1.weight"] * (1 - 1e-2 * 0.1))
    assert torch.equal(after["0.bias"], before["0.bias"])
    assert torch.equal(after["1.bias"], before["1.bias"])


def test_restored_state_continues_bit_for_bit():
    whole, stage = make()
    optimizer = build_optimizer(whole, [stage], weight_decay=0.1, betas=(0.9, 0.999))
    enter_stage(optimizer, 0)
    for seed in range(3):
        step(whole, optimizer, seed=seed)
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    weights = {name: value.clone() for name, value in whole.state_dict().items()}
    for seed in range(3, 6):
        step(whole, optimizer, seed=seed)

    taken_up, stage = make(seed=9)
    taken_up.load_state_dict(weights)
    second = build_optimizer(taken_up, [stage], weight_decay=0.1, betas=(0.9, 0.999))
    enter_stage(second, 0)
    restore_optimizer(second, saved, required=dict(whole.named_parameters()))
    for seed in range(3, 6):
        step(taken_up, second, seed=seed)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, taken_up.state_dict()[name]), name
    for name, value in optimizer_tensors(optimizer).items():
        assert torch.equal(value, optimizer_tensors(second)[name]), name


def test_state_is_kept_by_parameter_name():
    module, stage = make()
    optimizer = build_optimizer(module, [stage], weight_decay=0.0, betas=(0.9, 0.999))
    enter_stage(optimizer, 0)
    step(module, optimizer, seed=0)
    names = {name for group in stage.groups for name in group.parameters}
    assert set(optimizer_tensors(optimizer)) == {
        f"{name}/{part}" for name in names for part in ("step", "exp_avg", "exp_avg_sq")
    }


def test_missing_state_of_one_parameter_is_an_error_and_names_it():
    module, stage = make()
    optimizer = build_optimizer(module, [stage], weight_decay=0.0, betas=(0.9, 0.999))
    enter_stage(optimizer, 0)
    step(module, optimizer, seed=0)
    saved = {name: tensor for name, tensor in optimizer_tensors(optimizer).items() if not name.startswith("1.weight/")}
    fresh = build_optimizer(module, [stage], weight_decay=0.0, betas=(0.9, 0.999))
    enter_stage(fresh, 0)
    with pytest.raises(CheckpointError, match=r"1\.weight"):
        restore_optimizer(fresh, saved, required=["0.weight", "1.weight"])
    restore_optimizer(fresh, saved, required=["0.weight"])  # 1.weight had none when it was saved
    assert fresh.state[module[1].weight] == {}


KINDS = ("adamw_8bit", "paged_adamw", "paged_adamw_8bit")


def wide(*, seed: int = 0) -> tuple[nn.Module, Stage]:
    """Large enough that bitsandbytes keeps 8 bits of the matrix."""
    torch.manual_seed(seed)
    group = ParameterGroup(name="all", parameters=("weight", "bias"), learning_rate=1e-2, decay=False)
    return nn.Linear(64, 128), Stage(name="train", groups=(group,), max_epochs=1, max_steps=None, patience=None)


def wide_step(module: nn.Module, optimizer: torch.optim.Optimizer, *, seed: int) -> float:
    inputs = torch.randn(16, 64, generator=torch.Generator().manual_seed(seed))
    loss = (module(inputs) - inputs.repeat(1, 2)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_small_moments_learn_and_go_on_bit_for_bit(kind):
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        module, stage = wide()
        optimizer = build_optimizer(module, [stage], weight_decay=0.0, betas=(0.9, 0.999), kind=kind)
        enter_stage(optimizer, 0)
        set_learning_rates(optimizer, 1.0)
        return module, optimizer

    module, optimizer = build()
    losses = [wide_step(module, optimizer, seed=seed) for seed in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    check_gradients(optimizer)
    tensors = {name: value.clone() for name, value in optimizer_tensors(optimizer).items()}
    assert not any("qmap" in name for name in tensors)
    again, other = build()
    again.load_state_dict(module.state_dict())
    restore_optimizer(other, tensors, required=("weight", "bias"))
    for seed in range(20, 25):
        assert wide_step(module, optimizer, seed=seed) == wide_step(again, other, seed=seed)
    assert all(torch.equal(left, right) for left, right in zip(module.parameters(), again.parameters(), strict=True))
    assert (tensors["weight/state1"].dtype == torch.uint8) == kind.endswith("8bit")
    assert tensors["bias/state1"].dtype == torch.float32


def test_moments_take_what_is_predicted():
    module, stage = wide()
    for kind in ("adamw", "adamw_8bit"):
        optimizer = build_optimizer(module, [stage], weight_decay=0.0, betas=(0.9, 0.999), kind=kind)
        enter_stage(optimizer, 0)
        wide_step(module, optimizer, seed=0)
        for name, parameter in module.named_parameters():
            taken = sum(
                value.numel() * value.element_size()
                for key, value in optimizer_tensors(optimizer).items()
                if key.startswith(name) and not key.endswith("/step")
            )
            assert moment_bytes(parameter.numel(), kind) == taken, (kind, name)
    assert moment_bytes(10**6, "paged_adamw") == 0 < moment_bytes(1000, "paged_adamw")


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_card_steps_are_those_of_plain_adamw_and_it_is_said(kind):
    found, reason = choose_optimizer(kind, "cpu")
    assert found == "adamw"
    assert kind in reason
    assert choose_optimizer(kind, "cuda") == (kind, "as set")
