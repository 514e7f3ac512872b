"""Adapters at another rank: the function, what is lost, the optimiser, the budget, and what is saved of it."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sonotune.adapters.kinds import lora
from sonotune.adapters.merge import compare_logits, merge_into
from sonotune.adapters.ranks.budget import bounds_of, shares_of
from sonotune.adapters.ranks.plan import Budget, Target
from sonotune.adapters.schedule.factors import Rows, Slots, lost, resized, selected
from sonotune.adapters.schedule.reallocation import Reallocation, move_ranks, propose
from sonotune.adapters.schedule.resize import current_ranks, keep_directions, resize, set_ranks
from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel
from sonotune.models.families.whisper import WhisperFamily
from sonotune.models.probe import probe_batch
from sonotune.registry import resolve_asset
from sonotune.training.optimizer import optimizer_tensors, restore_optimizer

Build = Callable[..., LoadedModel]
Logits = Callable[[LoadedModel], Tensor]

seeds = st.integers(0, 2**32)
ranks = st.integers(1, 12)
FIRST = "model.encoder.layers.0.self_attn.q_proj"


def drawn(seed: int, rank: int, inputs: int, outputs: int) -> tuple[Rows, Rows]:
    """Factors with falling components and moments as after some steps; row r of the second is column r of B."""
    generator = torch.Generator().manual_seed(seed)

    def rows(size: int, scale: Tensor) -> Rows:
        weight, average, square = (torch.randn(rank, size, generator=generator, dtype=torch.float64) for _ in range(3))
        return Rows(
            weight=weight / math.sqrt(size) * scale[:, None], average=0.1 * average, square=square.square(), bound=1.0
        )

    return rows(inputs, torch.ones(rank)), rows(outputs, torch.logspace(0, -2, rank, dtype=torch.float64))


def product(a: Rows, b: Rows) -> Tensor:
    return b.weight.mT @ a.weight


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- factors: growing ----------------------------------------------------------------------------


@settings(max_examples=500, deadline=None)
@given(seeds, ranks, st.integers(1, 12), st.integers(24, 60), st.integers(2, 40), st.booleans())
def test_new_components_do_nothing_and_point_where_no_other_does(
    seed: int, rank: int, more: int, inputs: int, outputs: int, twins: bool
):
    a, b = drawn(seed, rank, inputs, outputs)
    if twins:
        a.weight[-1] = a.weight[0]
    new_a, new_b = resized(a, b, rank + more, "svd", dice(seed))
    for before, after in ((a, new_a), (b, new_b)):
        for part in ("weight", "average", "square"):
            assert torch.equal(getattr(after, part)[:rank], getattr(before, part))
        assert float(after.average[rank:].abs().max()) == 0
        torch.testing.assert_close(after.square[rank:], before.square.mean(0).expand(more, -1))
    assert float(new_b.weight[rank:].abs().max()) == 0
    fresh = new_a.weight[rank:]
    assert float((fresh @ a.weight.mT).abs().max()) < 1e-12
    length = a.weight.square().sum(1).mean()
    torch.testing.assert_close(fresh @ fresh.mT, length * torch.eye(more, dtype=torch.float64), atol=1e-12, rtol=1e-9)


def test_new_rows_are_as_long_as_those_peft_draws():
    """Kaiming uniform with a slope of √5: elements within ±1/√inputs."""
    inputs, rank = 400, 16
    layer = nn.Linear(inputs, rank, bias=False)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
    a = Rows(weight=layer.weight.detach().double())
    new_a, _ = resized(a, Rows(weight=torch.zeros(rank, 50, dtype=torch.float64)), 24, "svd", dice())
    assert new_a.weight[rank:].norm(dim=1).tolist() == pytest.approx([math.sqrt(1 / 3)] * 8, rel=0.03)


def test_new_rows_are_a_function_of_seed_step_and_module(adapted: Build):
    def rows(**key: int) -> dict[str, Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            loaded = adapted(targets="q_v")
        resize(loaded, None, dict.fromkeys(current_ranks(loaded), 6), **{"seed": 0, "step": 10, **key})
        return {name: layer.lora_A["default"].weight[4:] for name, layer in lora.lora_layers(loaded).items()}

    first, again = rows(), rows()
    assert all(torch.equal(first[name], again[name]) for name in first)
    for other in (rows(seed=1), rows(step=11)):
        assert not any(torch.equal(first[name], other[name]) for name in first)
    assert all(not torch.equal(first[one], first[other]) for one, other in itertools.pairwise(first))


# --- factors: shrinking --------------------------------------------------------------------------


@settings(max_examples=500, deadline=None)
@given(seeds, st.integers(2, 12), st.integers(1, 11), st.integers(4, 40), st.integers(4, 40))
def test_svd_loses_what_the_dense_decomposition_has_to(seed: int, rank: int, fewer: int, inputs: int, outputs: int):
    fewer = min(fewer, rank - 1, inputs)
    a, b = drawn(seed, rank, inputs, outputs)
    new_a, new_b = resized(a, b, fewer, "svd", dice())
    sigma = torch.linalg.svdvals(product(a, b))
    tail = float(sigma[fewer:].norm())
    assert float((product(new_a, new_b) - product(a, b)).norm()) == pytest.approx(tail, abs=2e-6 * float(sigma[0]))
    assert lost(a, b, new_a, new_b) == pytest.approx(tail / float(sigma.norm()), abs=1e-5)
    live = int((sigma[:fewer] > 1e-5 * sigma[0]).sum())
    for factor in (new_a, new_b):  # singular values split evenly, on orthogonal directions
        gram = factor.weight[:live] @ factor.weight[:live].mT
        torch.testing.assert_close(gram, torch.diag(sigma[:live]), atol=1e-9, rtol=1e-6)


@settings(max_examples=300, deadline=None)
@given(seeds, ranks, st.integers(1, 12), st.integers(24, 60), st.integers(12, 40), st.sampled_from(["svd", "select"]))
def test_growing_and_shrinking_again_is_nothing(seed: int, rank: int, more: int, inputs: int, outputs: int, mode: Any):
    a, b = drawn(seed, rank, inputs, outputs)
    there = resized(a, b, rank + more, mode, dice(seed))
    back_a, back_b = resized(*there, rank, mode, dice(seed + 1))
    scale = float(product(a, b).norm())
    assert float((product(back_a, back_b) - product(a, b)).norm()) < 2e-6 * scale
    if mode == "select":
        for before, after in ((a, back_a), (b, back_b)):
            for part in ("weight", "average", "square"):
                assert torch.equal(getattr(after, part), getattr(before, part))


@settings(max_examples=500, deadline=None)
@given(seeds, st.integers(2, 10), st.integers(1, 9), st.integers(2, 40), st.integers(2, 40))
def test_select_keeps_components_as_they_are_and_knows_its_loss(
    seed: int, rank: int, fewer: int, inputs: int, outputs: int
):
    fewer = min(fewer, rank - 1)
    a, b = drawn(seed, rank, inputs, outputs)
    kept = selected(a.weight, b.weight, fewer)
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert len(kept) == fewer
    new_a, new_b = resized(a, b, fewer, "select", dice())
    for before, after in ((a, new_a), (b, new_b)):
        for part in ("weight", "average", "square"):
            assert torch.equal(getattr(after, part), getattr(before, part)[kept])
    dropped = [index for index in range(rank) if index not in kept.tolist()]
    overlap = (b.weight @ b.weight.mT) * (a.weight @ a.weight.mT)
    by_formula = float(overlap[dropped][:, dropped].sum().clamp_min(0).sqrt())
    dense = float((product(new_a, new_b) - product(a, b)).norm())
    whole = float(product(a, b).norm())
    assert by_formula == pytest.approx(dense, abs=1e-7 * whole)
    assert lost(a, b, new_a, new_b) == pytest.approx(dense / whole, abs=1e-7)
    best = float(torch.linalg.svdvals(product(a, b))[fewer:].norm())
    assert dense >= best - 1e-9


@settings(max_examples=200, deadline=None)
@given(seeds, st.integers(2, 7))
def test_dropping_one_drops_the_cheapest_and_dropping_more_is_seldom_far_from_the_best(seed: int, rank: int):
    a, b = drawn(seed, rank, 20, 16)

    def loss(kept: tuple[int, ...]) -> float:
        index = torch.tensor(kept)
        return float((product(a.rows(index), b.rows(index)) - product(a, b)).norm())

    every = {kept: loss(kept) for kept in itertools.combinations(range(rank), rank - 1)}
    assert tuple(selected(a.weight, b.weight, rank - 1).tolist()) == min(every, key=every.__getitem__)


def test_of_equals_the_first_are_kept():
    a, b = drawn(0, 6, 20, 16)
    assert selected(a.weight, torch.zeros_like(b.weight), 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("live", [0, 1, 3])
def test_components_that_the_update_does_not_use_can_still_learn(live: int):
    """With √σ on both sides a component of σ = 0 would never get a gradient again."""
    a, b = drawn(1, 8, 30, 20)
    b.weight[live:] = 0
    new_a, new_b = resized(a, b, 5, "svd", dice())
    torch.testing.assert_close(product(new_a, new_b), product(a, b), atol=1e-7, rtol=1e-6)
    assert float(new_b.weight[live:].abs().max()) == 0
    assert float(new_a.weight[live:].norm(dim=1).min()) > 0.1 * float(new_a.weight.norm(dim=1).max())
    assert torch.linalg.matrix_rank(new_a.weight) == 5


# --- factors: the optimiser's moments ------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(seeds, st.integers(2, 10), st.integers(1, 9))
def test_svd_turns_the_mean_gradient_into_that_of_the_new_factors(seed: int, rank: int, fewer: int):
    """Of a gradient G of the whole update the factors see BᵀG and GAᵀ."""
    fewer = min(fewer, rank - 1)
    a, b = drawn(seed, rank, 40, 30)
    whole = torch.randn(30, 40, generator=dice(seed), dtype=torch.float64)
    a = replace(a, average=b.weight @ whole, bound=math.inf)
    b = replace(b, average=(whole @ a.weight.mT).mT, bound=math.inf)
    new_a, new_b = resized(a, b, fewer, "svd", dice())
    torch.testing.assert_close(new_a.average, new_b.weight @ whole, atol=1e-9, rtol=1e-5)
    torch.testing.assert_close(new_b.average, (whole @ new_a.weight.mT).mT, atol=1e-9, rtol=1e-5)


@settings(max_examples=300, deadline=None)
@given(seeds, st.integers(2, 10), st.integers(1, 9))
def test_svd_resets_squares_to_their_mean_at_the_new_size_of_gradients(seed: int, rank: int, fewer: int):
    fewer = min(fewer, rank - 1)
    a, b = drawn(seed, rank, 40, 30)
    new_a, new_b = resized(a, b, fewer, "svd", dice())
    for before, after, behind, now_behind in ((a, new_a, b, new_b), (b, new_b, a, new_a)):
        grown = now_behind.weight.square().sum(1) / behind.weight.square().sum(1).mean()
        torch.testing.assert_close(after.square, grown[:, None] * before.square.mean(0))
        assert bool((after.average.abs() <= after.bound * after.square.sqrt() * (1 + 1e-12)).all())


class Regression:
    """A LoRA pair that learns a random linear map with AdamW, for looking at the sizes of updates."""

    def __init__(self, steps: int) -> None:
        self._data = dice(0)
        self._target = 0.1 * torch.randn(40, 4, generator=self._data) @ torch.randn(4, 48, generator=self._data)
        self.a = nn.Parameter(torch.empty(12, 48).uniform_(-1 / 48**0.5, 1 / 48**0.5, generator=self._data))
        self.b = nn.Parameter(torch.zeros(40, 12))
        self.optimizer = torch.optim.AdamW([self.a, self.b], lr=1e-3)
        for _ in range(steps):
            self.step()

    def step(self) -> tuple[Tensor, Tensor]:
        """One update of both factors, in learning rates."""
        inputs = torch.randn(32, 48, generator=self._data)
        before = self.a.detach().clone(), self.b.detach().clone()
        self.optimizer.zero_grad()
        ((inputs @ self.a.mT @ self.b.mT - inputs @ self._target.mT) ** 2).mean().backward()
        self.optimizer.step()
        return (self.a.detach() - before[0]).abs() / 1e-3, (self.b.detach() - before[1]).abs() / 1e-3

    def resize(self, rank: int, mode: Any, *, squares: Callable[[Rows, Rows], Tensor] | None = None) -> None:
        """To another rank; `squares` makes other second moments from the factor before and after."""
        slots = Slots(self.optimizer)
        before = slots.read(self.a, transposed=False), slots.read(self.b, transposed=True)
        after = resized(*before, rank, mode, dice())
        if squares is not None:
            after = tuple(replace(new, square=squares(old, new)) for old, new in zip(before, after, strict=True))
        self.a = slots.exchange(self.a, after[0], transposed=False)
        self.b = slots.exchange(self.b, after[1], transposed=True)


def test_the_first_updates_of_new_rows_are_not_inflated():
    """With second moments of zero they would be several times those of the rows that were there."""

    def zeros(old: Rows, new: Rows) -> Tensor:
        return torch.cat([old.square, torch.zeros(len(new.weight) - len(old.weight), old.square.shape[1])])

    largest = {}
    for name, squares in (("mean", None), ("zero", zeros)):
        pair = Regression(1500)
        pair.resize(16, "svd", squares=squares)
        updates = [pair.step() for _ in range(40)]
        largest[name] = max(float(b[:, 12:].mean()) for _, b in updates)
        old = max(float(b[:, :12].mean()) for _, b in updates)
        assert old < 0.6
    assert largest["mean"] < 0.6
    assert largest["zero"] > 2
    assert largest["zero"] > 5 * largest["mean"]


def test_the_first_updates_after_a_truncation_are_not_inflated():
    """With the squares of the old factors, whose gradients were of another size, some would be."""
    largest = {}
    for name, squares in (
        ("gain", None),
        ("plain", lambda old, new: old.square.mean(0, keepdim=True).expand_as(new.weight)),
        ("zero", lambda old, new: torch.zeros_like(new.weight)),
    ):
        pair = Regression(60)
        pair.resize(6, "svd", squares=squares)
        largest[name] = float(pair.step()[0].max())
    assert largest["gain"] < 1.5
    assert largest["plain"] > 2 * largest["gain"]
    assert largest["zero"] > 100 * largest["gain"]


# --- models: the function ------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("rank", [5, 8, 16])
def test_growing_a_model_changes_no_bit_of_its_updates(adapted: Build, logits: Logits, bits: int, rank: int):
    loaded = adapted(bits=bits)
    before = logits(loaded)
    old = {name: value.detach().clone() for name, value in loaded.module.named_parameters() if ".lora_" in name}
    changes = resize(loaded, None, dict.fromkeys(current_ranks(loaded), rank), seed=0, step=1)
    assert len(changes) == len(current_ranks(loaded)) > 40
    assert {(change.before, change.after, change.lost) for change in changes} == {(4, rank, 0.0)}
    for name, layer in lora.lora_layers(loaded).items():
        a, b = layer.lora_A["default"], layer.lora_B["default"]
        assert torch.equal(a.weight[:4], old[f"{name}.lora_A.default.weight"])
        assert torch.equal(b.weight[:, :4], old[f"{name}.lora_B.default.weight"])
        assert float(b.weight.detach()[:, 4:].abs().max()) == 0
        assert a.out_features == b.in_features == layer.r["default"] == rank
        assert a.weight.shape == (rank, layer.in_features)
        assert b.weight.shape == (layer.out_features, rank)
        assert a.weight.is_contiguous()
        assert b.weight.is_contiguous()
        assert a.weight.dtype == b.weight.dtype == torch.float32
        assert layer.scaling["default"] == 2.0
    # A product with more columns may be summed in another order, which is a matter of the processor.
    torch.testing.assert_close(logits(loaded), before, atol=3e-5, rtol=1e-5)


def test_a_layer_that_grew_computes_the_same_bits(adapted: Build):
    """Component by component, which leaves the matrix library no choice of order."""
    loaded = adapted(targets=["q_proj"])
    layer = lora.lora_layers(loaded)[FIRST]
    inputs = torch.randn(7, layer.in_features, generator=dice())

    def update() -> Tensor:
        total = torch.zeros(7, layer.out_features)
        with torch.no_grad():
            for row, column in zip(layer.lora_A["default"].weight, layer.lora_B["default"].weight.mT, strict=True):
                total += torch.outer((inputs * row).sum(1), column)
        return total

    before = update()
    resize(loaded, None, {FIRST: 20}, seed=0, step=1)
    assert torch.equal(update(), before)


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("mode", ["svd", "select"])
def test_a_model_that_grew_and_shrank_is_what_it_was(adapted: Build, logits: Logits, bits: int, mode: Any):
    loaded = adapted(bits=bits, stem="lora")  # convolutions too
    before = logits(loaded)
    resize(loaded, None, dict.fromkeys(current_ranks(loaded), 8), seed=0, step=1)
    changes = resize(loaded, None, dict.fromkeys(current_ranks(loaded), 4), seed=0, step=2, mode=mode)
    assert max(change.lost for change in changes) < 1e-6
    torch.testing.assert_close(logits(loaded), before, atol=2e-4, rtol=1e-4)
    if mode == "select":
        assert torch.equal(logits(loaded), before)


@pytest.mark.parametrize("stem", ["train", "lora"])
@pytest.mark.parametrize("mode", ["svd", "select"])
def test_what_shrinking_loses_is_what_it_says(adapted: Build, stem: str, mode: Any):
    loaded = adapted(stem=stem, ranks={"fc1": 9})

    def update(layer: Any) -> Tensor:
        return layer.lora_B["default"].weight.flatten(1) @ layer.lora_A["default"].weight.flatten(1)

    before = {name: update(layer).detach() for name, layer in lora.lora_layers(loaded).items()}
    changes = resize(loaded, None, dict.fromkeys(before, 2), seed=0, step=1, mode=mode)
    assert len(changes) == len(before)
    for change in changes:
        whole = before[change.module]
        found = update(lora.lora_layers(loaded)[change.module])
        assert 0.01 < change.lost < 1
        assert change.lost == pytest.approx(float((found.detach() - whole).norm() / whole.norm()), rel=1e-4)
        if mode == "svd":
            sigma = torch.linalg.svdvals(whole.double())
            assert change.lost == pytest.approx(float(sigma[2:].norm() / sigma.norm()), rel=1e-4)


def test_ranks_that_stay_touch_nothing(adapted: Build):
    loaded = adapted()
    before = dict(loaded.module.named_parameters())
    assert resize(loaded, None, current_ranks(loaded), seed=0, step=1) == ()
    assert resize(loaded, None, {}, seed=0, step=1) == ()
    assert all(parameter is before[name] for name, parameter in loaded.module.named_parameters())


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({FIRST: 0}, "the least is 1"),
        ({"model.encoder.conv1": 4}, "carry no adapter that can be resized"),
        ({FIRST: 4000}, r"with \d+ inputs, the most is"),
    ],
)
def test_impossible_ranks_are_refused_before_anything_changes(adapted: Build, new: dict[str, int], message: str):
    loaded = adapted()
    before = dict(loaded.module.named_parameters())
    other = next(name for name in current_ranks(loaded) if name != FIRST)
    with pytest.raises(AdapterError, match=message):
        resize(loaded, None, {other: 8, **new}, seed=0, step=1)
    assert all(parameter is before[name] for name, parameter in loaded.module.named_parameters())


# --- models: saved, loaded, merged ---------------------------------------------------------------


def mixed(loaded: LoadedModel) -> dict[str, int]:
    """Other ranks for most modules, each with its own."""
    return {name: (1, 4, 6, 8, 3)[number % 5] for number, name in enumerate(current_ranks(loaded))}


KINDS = {
    "all linears": {},
    "own ranks": {"ranks": {"fc1": 9, "q_proj": 1}},
    "stem adapted": {"stem": "lora"},
    "balanced": {"ranks": {"fc1": 9}, "scaling": "balanced"},
    "square root": {},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("mode", ["svd", "select"])
def test_a_resized_adapter_is_saved_and_loaded(
    adapted: Build, fresh: Build, logits: Logits, tmp_path: Path, kind: str, bits: int, mode: Any
):
    trained = adapted(bits=bits, **KINDS[kind])
    if kind == "square root":  # as another PEFT tool may have made it
        trained.adapter.peft_config["default"].use_rslora = True
        for layer in lora.lora_layers(trained).values():
            layer.use_rslora["default"] = True
            layer.scaling["default"] = layer.lora_alpha["default"] / math.sqrt(4)
    scales = {name: layer.scaling["default"] for name, layer in lora.lora_layers(trained).items()}
    new = mixed(trained)
    resize(trained, None, new, seed=0, step=1, mode=mode)
    lora.save(trained, tmp_path)
    loaded = lora.load(fresh(bits=bits), tmp_path)
    layers = lora.lora_layers(loaded)
    assert {name: layer.r["default"] for name, layer in layers.items()} == new == current_ranks(trained)
    for name, layer in layers.items():
        assert layer.scaling["default"] == pytest.approx(scales[name], rel=1e-12)
    assert torch.equal(logits(loaded), logits(trained))


def test_a_resized_adapter_loads_in_plain_peft(adapted: Build, tmp_path: Path):
    from peft import PeftModel
    from transformers import WhisperForConditionalGeneration

    trained = adapted(context="full")
    resize(trained, None, mixed(trained), seed=0, step=1)
    lora.save(trained, tmp_path)
    plain = WhisperForConditionalGeneration.from_pretrained(resolve_asset("assets:whisper-nano"), dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT has to say of the newest transformers
        theirs = PeftModel.from_pretrained(plain, tmp_path).eval()
    batch = probe_batch(trained)
    with torch.no_grad():
        ours = WhisperFamily().logits(trained, batch)
        found = theirs(input_features=batch.inputs.transpose(1, 2), decoder_input_ids=batch.targets[:, :-1]).logits
    torch.testing.assert_close(found.reshape(-1, found.shape[-1]), ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bits", [16, 4])
def test_a_resized_adapter_merges(adapted: Build, fresh: Build, logits: Logits, bits: int):
    loaded = adapted(bits=bits)
    resize(loaded, None, mixed(loaded), seed=0, step=1)
    proof = compare_logits(logits(loaded), logits(merge_into(loaded, fresh())))
    assert proof.largest < 2e-4 * max(1.0, proof.scale)


# --- models: training goes on --------------------------------------------------------------------


def optimizer_of(loaded: LoadedModel, **changes: Any) -> torch.optim.AdamW:
    """As `build_optimizer` makes it: groups with the names of their parameters."""
    trained = [(name, value) for name, value in loaded.module.named_parameters() if value.requires_grad]
    groups = [
        {"params": [value for _, value in part], "names": [name for name, _ in part], "lr": rate}
        for part, rate in (
            ([row for row in trained if ".lora_" in row[0]], 1e-3),
            ([row for row in trained if ".lora_" not in row[0]], 1e-4),
        )
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], **{"fused": True, **changes})


def train(loaded: LoadedModel, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    family, found = WhisperFamily(), []
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        losses = family.forward(loaded, probe_batch(loaded)).losses()
        (losses.total / losses.count).backward()
        optimizer.step()
        found.append(losses.total.item() / losses.count)
    optimizer.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("mode", ["svd", "select"])
@pytest.mark.parametrize("bits", [16, 4])
def test_the_optimiser_holds_what_the_model_trains(adapted: Build, bits: int, mode: Any):
    loaded = adapted(bits=bits)
    optimizer = optimizer_of(loaded)
    train(loaded, optimizer, 3)
    names = [list(group["names"]) for group in optimizer.param_groups]
    untouched = {name for name, rank in mixed(loaded).items() if rank == 4}
    before = optimizer_tensors(optimizer)
    resize(loaded, optimizer, mixed(loaded), seed=0, step=3, mode=mode)
    parameters = dict(loaded.module.named_parameters())
    assert [list(group["names"]) for group in optimizer.param_groups] == names
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert parameter is parameters[name]
            state = optimizer.state[parameter]
            assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
            assert float(state["step"]) == 3
            if name.partition(".lora_")[0] in untouched or ".lora_" not in name:
                assert torch.equal(state["exp_avg"], before[f"{name}/exp_avg"])
    assert len(optimizer.state) == sum(map(len, names))
    old = {name: value.detach().clone() for name, value in parameters.items() if value.requires_grad}
    assert all(math.isfinite(loss) for loss in train(loaded, optimizer, 2))
    assert all(not torch.equal(value, parameters[name]) for name, value in old.items())


@pytest.mark.parametrize("which", ["lora_A", "lora_B"])
def test_kept_components_keep_their_moments(adapted: Build, which: str):
    loaded = adapted(targets=["q_proj"])
    optimizer = optimizer_of(loaded)
    train(loaded, optimizer, 3)
    layer = lora.lora_layers(loaded)[FIRST]
    old_state = {k: v.clone() for k, v in optimizer.state[getattr(layer, which)["default"].weight].items()}
    a, b = (getattr(layer, part)["default"].weight.detach().double() for part in ("lora_A", "lora_B"))
    kept = selected(a, b.mT, 2)
    resize(loaded, optimizer, {FIRST: 2}, seed=0, step=3, mode="select")
    state = optimizer.state[getattr(layer, which)["default"].weight]
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(state[key], old_state[key][kept] if which == "lora_A" else old_state[key][:, kept])
    resize(loaded, optimizer, {FIRST: 5}, seed=0, step=4)
    state = optimizer.state[getattr(layer, which)["default"].weight]
    rows = {key: value if which == "lora_A" else value.mT for key, value in state.items() if key != "step"}
    assert float(rows["exp_avg"][2:].abs().max()) == 0
    torch.testing.assert_close(rows["exp_avg_sq"][2:], rows["exp_avg_sq"][:2].mean(0).expand(3, -1))
    assert float(state["step"]) == 3


def test_another_optimiser_is_refused(adapted: Build):
    loaded = adapted(targets="q_v")
    optimizer = optimizer_of(loaded, amsgrad=True)
    train(loaded, optimizer, 1)
    with pytest.raises(AdapterError, match="the optimiser keeps max_exp_avg_sq"):
        resize(loaded, optimizer, {FIRST: 8}, seed=0, step=1)


@pytest.mark.parametrize("mode", ["svd", "select"])
def test_a_run_that_is_resumed_after_a_resize_ends_with_the_same_bits(adapted: Build, mode: Any):
    """Weights and optimiser by name, and the ranks, are all that a checkpoint needs."""

    def start() -> tuple[LoadedModel, torch.optim.AdamW]:
        loaded = adapted(bits=4)
        loaded.module.eval()  # no dropout
        return loaded, optimizer_of(loaded)

    loaded, optimizer = start()
    train(loaded, optimizer, 3)
    resize(loaded, optimizer, mixed(loaded), seed=0, step=3, mode=mode)
    train(loaded, optimizer, 1)
    names = [name for group in optimizer.param_groups for name in group["names"]]
    weights = {name: value.detach().clone() for name, value in loaded.module.named_parameters() if name in names}
    moments = {name: value.clone() for name, value in optimizer_tensors(optimizer).items()}
    saved_ranks = current_ranks(loaded)
    train(loaded, optimizer, 3)

    again, other = start()
    changed = set_ranks(again, saved_ranks, other)
    assert set(changed) == {name for name, rank in saved_ranks.items() if rank != 4}
    assert current_ranks(again) == saved_ranks
    assert all(bool(lora.lora_layers(again)[name].lora_A["default"].weight.isnan().all()) for name in changed)
    parameters = dict(again.module.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    restore_optimizer(other, moments, required=names)
    train(again, other, 3)
    ended = dict(loaded.module.named_parameters())
    assert all(torch.equal(parameters[name], ended[name]) for name in names)
    left, right = optimizer_tensors(optimizer), optimizer_tensors(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_dropping_directions_keeps_the_others(adapted: Build, logits: Logits):
    loaded = adapted(stem="lora")
    layers = lora.lora_layers(loaded)
    kept = {name: torch.tensor([True, False, True, False]) for name in layers}
    kept[FIRST] = torch.ones(4, dtype=torch.bool)
    with torch.no_grad():
        for name, layer in layers.items():
            layer.lora_B["default"].weight[:, ~kept[name]] = 0
    before = logits(loaded)
    keep_directions(loaded, kept)
    assert current_ranks(loaded) == {name: 4 if name == FIRST else 2 for name in layers}
    torch.testing.assert_close(logits(loaded), before, atol=1e-4, rtol=1e-5)
    with pytest.raises(AdapterError, match="the least is 1"):
        keep_directions(loaded, {FIRST: torch.zeros(4, dtype=torch.bool)})


# --- which ranks move ----------------------------------------------------------------------------

GROUPS = ("encoder", "decoder", "projector")


def situation(seed: int) -> tuple[list[Target], dict[str, int], dict[str, float], Budget, float]:
    """Sites with present ranks, effective ranks, a budget with room for them, and the share that may move."""
    rng = np.random.default_rng(seed)
    rank, step = int(rng.choice([2, 8, 16, 32])), int(rng.choice([1, 2, 4]))
    sites = [
        Target(
            name=f"m{index}",
            outputs=int(rng.choice([16, 64, 96, 256])),
            inputs=int(rng.choice([16, 64, 512])),
            group=str(rng.choice(GROUPS)),
            kind="x",
        )
        for index in range(rng.integers(1, 15))
    ]
    held = {row.name: step * int(rng.integers(1, 2 * rank // step + 1)) for row in sites}
    shares = rng.beta(0.5, 0.5, size=len(sites))  # many nearly full or nearly empty
    used = {
        row.name: max(1.0, float(share) * held[row.name])
        for row, share in zip(sites, shares, strict=True)
        if rng.random() < 0.9
    }
    spent = sum(row.cost * held[row.name] for row in sites)
    parameters = max(spent + int(rng.choice([0, 100, 40_000])), rank * sum(row.cost for row in sites))
    budget = Budget(rank=rank, parameters=parameters, step=step, cross_modality=bool(rng.random() < 0.5))
    return sites, held, used, budget, float(rng.choice([0.02, 0.1, 0.5, 1.0]))


@settings(max_examples=2000, deadline=None)
@given(seeds)
def test_moved_ranks_keep_every_promise(seed: int):
    sites, held, used, budget, fraction = situation(seed)
    moved = move_ranks(sites, held, used, budget, fraction_moved=fraction)
    assert moved == move_ranks(sites, dict(held), dict(used), budget, fraction_moved=fraction)
    assert moved.keys() == held.keys()
    bounds = bounds_of(sites, budget)
    costs = {site.name: site.cost for site in sites}
    assert sum(costs[name] * rank for name, rank in moved.items()) <= budget.parameters
    given_away = taken = 0
    by_group = dict.fromkeys(GROUPS, 0)
    for site in sites:
        before, after = held[site.name], moved[site.name]
        by_group[site.group] += site.cost * (after - before)
        if before == after:
            continue
        assert site.name in used
        assert after % bounds.step == 0
        assert bounds.least[site.name] <= after if after < before else after <= bounds.most[site.name]
        if after > before:
            assert used[site.name] > 0.9 * (after - bounds.step if after - bounds.step >= before else before)
            taken += site.cost * (after - before)
        else:
            assert used[site.name] < 0.6 * (after + bounds.step)
            given_away += site.cost * (before - after)
    assert max(given_away, taken) <= fraction * budget.parameters
    assert taken or not given_away  # nobody gives for nothing
    if not budget.cross_modality:
        free = budget.parameters - sum(costs[name] * rank for name, rank in held.items())
        assert sum(max(0, change) for change in by_group.values()) <= free
    else:
        shares = shares_of(sites, budget, bounds)
        for group, change in by_group.items():
            spent = sum(site.cost * moved[site.name] for site in sites if site.group == group)
            assert change <= 0 or spent <= 2 * shares[group]
            assert change >= 0 or spent >= shares[group] / 2


def site(name: str, group: str = "encoder", size: int = 64) -> Target:
    return Target(name=name, outputs=size, inputs=size, group=group, kind="x")


def test_the_fullest_takes_from_the_emptiest():
    sites = [site(name) for name in "abcde"]
    held = dict.fromkeys("abcde", 8)
    used = {"a": 2.0, "b": 7.5, "c": 1.5, "d": 7.9, "e": 6.0}
    budget = Budget(rank=8, step=4, least=4, most=16)
    assert move_ranks(sites, held, used, budget, fraction_moved=0.1) == {"a": 8, "b": 8, "c": 4, "d": 12, "e": 8}
    assert move_ranks(sites, held, used, budget, fraction_moved=0.2) == {"a": 4, "b": 12, "c": 4, "d": 12, "e": 8}
    assert move_ranks(sites, held, used, budget, fraction_moved=0.09) == held
    assert move_ranks(sites, held, used, budget, grow_above=0.99) == held
    assert move_ranks(sites, held, used, budget, shrink_below=0.1) == held
    assert move_ranks(sites, held, used, replace(budget, most=8)) == held


def test_relative_to_the_middle_the_fullest_takes_however_empty_all_are():
    """Effective ranks as they are found in training; none is above 0.7 of its rank."""
    sites = [site(name) for name in "abcde"]
    held, used = dict.fromkeys("abcde", 8), {"a": 2.0, "b": 5.0, "c": 3.0, "d": 3.2, "e": 2.8}
    budget = Budget(rank=8, step=4, least=4, most=16)
    assert move_ranks(sites, held, used, budget, fraction_moved=0.5) == held
    moved = move_ranks(sites, held, used, budget, fraction_moved=0.5, relative=True)
    assert moved == {"a": 4, "b": 12, "c": 8, "d": 8, "e": 8}
    half = {name: value / 2 for name, value in used.items()}
    assert move_ranks(sites, held, half, budget, fraction_moved=0.5, relative=True) == moved
    even = dict.fromkeys("abcde", 3.0)
    assert move_ranks(sites, held, even, budget, fraction_moved=0.5, relative=True) == held
    assert move_ranks(sites, held, {}, budget, fraction_moved=0.5, relative=True) == held


def test_free_parameters_are_given_first():
    sites = [site("a"), site("b")]
    budget = Budget(rank=8, parameters=20 * 128, step=4)
    assert move_ranks(sites, {"a": 8, "b": 8}, {"a": 1.0, "b": 7.9}, budget, fraction_moved=0.5) == {"a": 8, "b": 12}


def test_groups_keep_what_they_have_unless_they_compete():
    sites = [site("a"), site("b", "decoder")]
    held, used = {"a": 8, "b": 8}, {"a": 1.0, "b": 7.9}
    budget = Budget(rank=8, step=4, least=4)
    assert move_ranks(sites, held, used, budget, fraction_moved=0.5) == held
    free = replace(budget, cross_modality=True)
    assert move_ranks(sites, held, used, free, fraction_moved=0.5) == {"a": 4, "b": 12}


def test_a_module_cannot_grow_beyond_what_its_inputs_have():
    sites = [site(name, size=256) for name in "ab"]
    held, used, budget = {"a": 8, "b": 8}, {"a": 2.0, "b": 7.9}, Budget(rank=8, step=4, least=4)
    assert move_ranks(sites, held, used, budget, fraction_moved=0.5)["b"] == 12
    assert move_ranks(sites, held, used, budget, fraction_moved=0.5, caps={"b": 7.0})["b"] == 8


def test_ranks_above_the_budget_are_refused():
    sites = [site("a")]
    with pytest.raises(AdapterError, match="hold 2048 parameters, more than the budget of 1024"):
        move_ranks(sites, {"a": 16}, {"a": 3.0}, Budget(rank=8))


def sites_in(loaded: LoadedModel) -> list[Target]:
    return [
        Target(name=name, outputs=layer.out_features, inputs=layer.in_features, group=str(loaded.owner(name)), kind="x")
        for name, layer in lora.lora_layers(loaded).items()
    ]


def test_a_model_moves_rank_to_adapters_that_use_theirs(adapted: Build, logits: Logits):
    loaded = adapted(targets=["fc1"], ranks={"rank": 8})
    sites = [row for row in sites_in(loaded) if row.group == "encoder"]
    layers = lora.lora_layers(loaded)
    full, empty, untouched, frozen = [row.name for row in sites][:4]
    with torch.no_grad():
        for name in (full, empty, untouched, frozen):
            a, b = layers[name].lora_A["default"].weight, layers[name].lora_B["default"].weight
            a.copy_(torch.linalg.qr(a.mT).Q.mT)
            b.copy_(torch.linalg.qr(b).Q)
        layers[empty].lora_B["default"].weight[:, 1:] *= 0.01
        layers[untouched].lora_B["default"].weight.zero_()
    for matrix in (layers[frozen].lora_A, layers[frozen].lora_B):
        matrix["default"].weight.requires_grad_(False)
    budget = Budget(rank=8, step=4, least=4, most=16)
    found = propose(loaded, sites, current_ranks(loaded), budget, fraction_moved=0.5)
    assert (found[full], found[empty], found[untouched], found[frozen]) == (12, 4, 8, 8)
    optimizer = optimizer_of(loaded)
    before = sum(row.cost * current_ranks(loaded)[row.name] for row in sites)
    schedule = Reallocation(fraction_moved=0.5, relative=False)
    changes = schedule.apply(loaded, optimizer, sites, budget, seed=0, step=7)
    assert {change.module: change.after for change in changes} == {
        name: rank for name, rank in found.items() if rank != 8
    }
    assert current_ranks(loaded) == found
    assert sum(row.cost * found[row.name] for row in sites) <= before
    assert bool(logits(loaded).isfinite().all())


# --- when ----------------------------------------------------------------------------------------


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 5000))
def test_each_event_comes_once(total: int):
    due = [step for step in range(total + 1) if Reallocation().due(step, total)]
    assert due == sorted({max(1, round(share * total)) for share in (0.10, 0.25, 0.45)})
    assert 1 <= len(due) <= 3
    assert max(due) <= max(1, total // 2)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"events": (0.1, 1.0)}, "a share between 0 and 1"),
        ({"fraction_moved": 0.0}, "above 0, at most 1"),
        ({"shrink_below": 0.95}, "the first no larger than the second"),
    ],
)
def test_schedules_that_mean_nothing_are_refused(settings_: dict[str, Any], message: str):
    with pytest.raises(AdapterError, match=message):
        Reallocation(**settings_)
