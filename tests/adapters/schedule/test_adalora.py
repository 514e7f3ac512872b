"""AdaLoRA: where it starts, what it prunes, what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sonotune.adapters.kinds import lora
from sonotune.adapters.ranks.allocators.adalora import AdaLoraAllocator
from sonotune.adapters.ranks.plan import Budget, Importance, targets_in
from sonotune.adapters.schedule.adalora import AdaLora
from sonotune.adapters.schedule.entropy_penalty import effective_ranks
from sonotune.models.base import LoadedModel

Logits = Callable[[LoadedModel], Tensor]
STEPS = 40


@pytest.fixture
def started(fresh: Callable[..., LoadedModel]) -> Callable[..., tuple[LoadedModel, AdaLora, int]]:
    """A model in its first step, what prunes it, and the budget."""

    def start(*, bits: int = 16, rank: int = 4, stem: str = "frozen") -> tuple[LoadedModel, AdaLora, int]:
        loaded = fresh(bits=bits)
        sites = targets_in(loaded, loaded.linears)
        plan = AdaLoraAllocator().allocate(sites, Budget(rank=rank), evidence=Importance(), seed=0)
        assert plan.pruned_to is not None
        loaded = lora.attach(loaded, plan, rank=rank, alpha=float(rank), stem=stem)  # type: ignore[arg-type]
        loaded.module.eval()
        return loaded, AdaLora(loaded, plan.ranks.keys(), budget=plan.pruned_to, seed=3), plan.pruned_to

    return start


def parameters_of(loaded: LoadedModel) -> int:
    return sum(value.numel() for name, value in loaded.module.named_parameters() if ".lora_" in name)


def train(loaded: LoadedModel, callback: AdaLora, first: int, last: int, *, favoured: str = "") -> None:
    """Steps whose gradients are drawn by name and step, larger where the name has `favoured` in it."""
    trainable = {name: value for name, value in loaded.module.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
    for step in range(first, last):
        for index, (name, parameter) in enumerate(trainable.items()):
            generator = torch.Generator().manual_seed(1000 * step + index)
            size = 10.0 if favoured and favoured in name else 0.1
            parameter.grad = size * torch.randn(parameter.shape, generator=generator)
        callback.on_gradients(step, STEPS)
        optimizer.step()
        callback.after_step(step + 1, STEPS, optimizer)


def test_it_starts_at_the_base_model_with_half_as_many_directions_again(fresh, started, logits: Logits):
    loaded, _, budget = started()
    assert torch.equal(logits(loaded), logits(fresh()))
    ranks = {len(layer.lora_A["default"].weight) for layer in lora.lora_layers(loaded).values()}
    assert ranks == {6}
    values = sum(6 for _ in lora.lora_layers(loaded))
    assert parameters_of(loaded) - values == 1.5 * budget


def test_pruning_ends_at_the_budget_and_stays_there(started):
    loaded, callback, budget = started()
    assert not callback.final(20, STEPS)
    train(loaded, callback, 0, STEPS)
    assert callback.final(STEPS, STEPS)
    layers = lora.lora_layers(loaded)
    alive = {name: int((layer.lora_A["default"].values != 0).sum()) for name, layer in layers.items()}
    assert alive == callback.ranks()
    costs = {site.name: site.cost for site in targets_in(loaded, loaded.linears)}
    spent = sum(costs[name] * rank for name, rank in alive.items())
    assert budget - min(costs.values()) < spent <= budget
    assert len(set(alive.values())) > 1
    assert min(alive.values()) >= 1


def test_directions_go_to_where_the_loss_is_sensitive(started):
    loaded, callback, _ = started()
    train(loaded, callback, 0, STEPS, favoured="encoder.layers.0.fc1")
    ranks = callback.ranks()
    favoured = [rank for name, rank in ranks.items() if "encoder.layers.0.fc1" in name]
    assert favoured == [6]
    assert sum(ranks.values()) / len(ranks) < 5


@pytest.mark.parametrize(("bits", "stem"), [(16, "frozen"), (4, "frozen"), (16, "lora")])
def test_a_plain_lora_of_the_same_function_is_left(
    started, fresh, logits: Logits, tmp_path: Path, bits: int, stem: str
):
    loaded, callback, budget = started(bits=bits, stem=stem)
    train(loaded, callback, 0, STEPS)
    pruned = logits(loaded)
    ranks = callback.finalise()
    left = {name: layer.r["default"] for name, layer in lora.lora_layers(loaded).items()}
    assert ranks == {name: rank for name, rank in left.items() if name in loaded.linears}
    assert set(left) - set(ranks) == ({"model.encoder.conv1", "model.encoder.conv2"} if stem == "lora" else set())
    costs = {site.name: site.cost for site in targets_in(loaded, list(ranks))}
    assert budget - min(costs.values()) < sum(rank * costs[name] for name, rank in ranks.items()) <= budget
    assert not [name for name, _ in loaded.module.named_parameters() if name.endswith(".values")]
    torch.testing.assert_close(logits(loaded), pruned, atol=2e-5, rtol=1e-5)
    lora.save(loaded, tmp_path)
    torch.testing.assert_close(logits(lora.load(fresh(bits=bits), tmp_path)), pruned, atol=2e-5, rtol=1e-5)


def test_a_run_taken_up_prunes_the_same(started):
    first, before, _ = started()
    train(first, before, 0, 22)
    second, after, _ = started()
    second.module.load_state_dict(first.module.state_dict())
    after.restore(
        {name: value.clone() for name, value in before.tensors().items()}, torch.optim.AdamW([torch.zeros(1)])
    )
    assert after.ranks() == before.ranks()
    train(first, before, 22, STEPS)
    train(second, after, 22, STEPS)
    assert after.ranks() == before.ranks()
    assert all(torch.equal(value, after.tensors()[name]) for name, value in before.tensors().items())


def test_penalty_is_least_for_orthonormal_factors(started):
    loaded, callback, _ = started()
    begun = callback.penalty(0, STEPS)
    assert begun is not None
    assert begun.requires_grad
    with torch.no_grad():
        for layer in lora.lora_layers(loaded).values():
            for weight in (layer.lora_A["default"].weight, layer.lora_B["default"].weight.mT):
                weight.copy_(torch.linalg.qr(weight.mT)[0].mT)
    least = callback.penalty(0, STEPS)
    assert least is not None
    assert least.item() < 1e-5 < begun.item()


def test_what_is_logged_is_the_spectrum_of_the_update_and_not_of_its_factors(started):
    loaded, callback, _ = started()
    assert set(effective_ranks(loaded).values()) == {0.0}  # e is zero, though A and B are not
    train(loaded, callback, 0, STEPS)
    during = effective_ranks(loaded)
    ranks = callback.ranks()
    assert all(during[name] <= ranks[name] + 1e-6 for name in ranks)
    callback.finalise()
    assert effective_ranks(loaded) == pytest.approx(during, rel=1e-4)
