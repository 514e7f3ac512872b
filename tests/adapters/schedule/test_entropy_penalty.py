"""The entropy of an update: what it is, where it is smooth, and what a penalty on it does."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sonotune.adapters.kinds import lora
from sonotune.adapters.ranks.plan import RankPlan
from sonotune.adapters.schedule.entropy_penalty import (
    EntropyRegularizer,
    adapter_entropies,
    effective_ranks,
    matrices,
    reference_norms,
    smoothed_entropies,
)
from sonotune.adapters.schedule.resize import resize
from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel
from sonotune.models.families.qwen3_asr import Qwen3AsrFamily
from sonotune.models.quantize import dequantized_weight

Build = Callable[..., LoadedModel]

ranks = st.integers(2, 9)
sizes = st.integers(2, 40)
exponents = st.floats(-8, 2)
seeds = st.integers(0, 2**32)


def entropy(a: Tensor, b: Tensor, smoothing: float) -> Tensor:
    return smoothed_entropies((a @ a.mT)[None], (b.mT @ b)[None], torch.tensor([smoothing]))[0]


def dense_entropy(a: Tensor, b: Tensor, smoothing: float) -> float:
    """The definition: all singular values of the whole product, in double precision."""
    rank = len(a)
    squares = torch.zeros(rank, dtype=torch.float64)
    found = torch.linalg.svdvals(b.double() @ a.double()).square()[:rank]
    squares[: len(found)] = found
    shares = (squares + smoothing / rank) / (squares.sum() + smoothing)
    return float(-shares.square().sum().log() / math.log(rank))


def draw(seed: int, rank: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, inputs, generator=generator) / math.sqrt(inputs)
    return a, torch.randn(outputs, rank, generator=generator)


# --- the number ----------------------------------------------------------------------------------


@settings(max_examples=1500, deadline=None)
@given(seeds, ranks, sizes, sizes, exponents, exponents, st.sampled_from(["plain", "duplicate", "opposite", "zero"]))
def test_entropy_and_gradient_are_finite_and_in_range_at_any_scale(
    seed: int, rank: int, inputs: int, outputs: int, scale_a: float, scale_b: float, kind: str
):
    a, b = draw(seed, rank, inputs, outputs)
    if kind in ("duplicate", "opposite"):
        a[1] = a[0]
    if kind == "opposite":
        b[:, 1] = -b[:, 0]
    if kind == "zero":
        b.zero_()
    a, b = (a * 10**scale_a).requires_grad_(), (b * 10**scale_b).requires_grad_()
    found = entropy(a, b, 1e-4)
    gradients = torch.autograd.grad(found, (a, b))
    assert -1e-5 <= found.item() <= 1 + 1e-5
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@settings(max_examples=500, deadline=None)
@given(seeds, ranks, sizes, sizes)
def test_at_the_start_entropy_is_whole_and_its_gradient_is_zero(seed: int, rank: int, inputs: int, outputs: int):
    a, b = draw(seed, rank, inputs, outputs)
    a, b = a.requires_grad_(), torch.zeros_like(b).requires_grad_()
    found = entropy(a, b, 1e-4)
    assert found.item() == pytest.approx(1.0, abs=1e-6)
    assert all(float(gradient.abs().max()) == 0 for gradient in torch.autograd.grad(found, (a, b)))


def test_the_entropy_by_singular_values_has_no_gradient_there():
    """Why it is computed from traces."""
    a, b = draw(0, 4, 12, 10)
    b = torch.zeros_like(b).requires_grad_()
    squares = torch.linalg.svdvals(b @ a)[:4].square()
    shares = squares / squares.sum()
    gradient = torch.autograd.grad(-shares.square().sum().log(), b)[0]
    assert not bool(gradient.isfinite().all())


@settings(max_examples=500, deadline=None)
@given(seeds, ranks, st.integers(10, 40), st.integers(10, 40), st.floats(-3, 1), st.sampled_from([1e-12, 1e-4, 1e-1]))
def test_it_is_the_entropy_of_the_singular_values_to_six_digits(
    seed: int, rank: int, inputs: int, outputs: int, scale: float, smoothing: float
):
    a, b = draw(seed, rank, inputs, outputs)
    b = b * torch.logspace(0, -2, rank) * 10**scale
    assert float(entropy(a, b, smoothing)) == pytest.approx(dense_entropy(a, b, smoothing), abs=2e-6)


@settings(max_examples=500, deadline=None)
@given(seeds, ranks, st.integers(10, 40), st.integers(10, 40), st.floats(0.05, 20))
def test_it_does_not_depend_on_how_the_product_is_split(seed: int, rank: int, inputs: int, outputs: int, c: float):
    a, b = draw(seed, rank, inputs, outputs)
    turn = torch.linalg.qr(torch.randn(rank, rank, generator=torch.Generator().manual_seed(seed))).Q
    plain = float(entropy(a, b, 1e-4))
    assert float(entropy(c * a, b / c, 1e-4)) == pytest.approx(plain, abs=1e-5)
    assert float(entropy(turn @ a, b @ turn.mT, 1e-4)) == pytest.approx(plain, abs=1e-5)


@settings(max_examples=300, deadline=None)
@given(seeds, ranks, st.integers(10, 40), st.integers(10, 40))
def test_one_direction_has_none_and_equal_ones_have_all(seed: int, rank: int, inputs: int, outputs: int):
    a, b = draw(seed, rank, inputs, outputs)
    one_a, one_b = a[:1].expand(rank, -1), b[:, :1].expand(-1, rank)
    assert float(entropy(one_a, one_b, 1e-9)) == pytest.approx(0.0, abs=1e-4)
    even_a, even_b = torch.linalg.qr(a.mT).Q.mT, torch.linalg.qr(b).Q
    assert float(entropy(even_a, even_b, 1e-9)) == pytest.approx(1.0, abs=1e-5)


@settings(max_examples=300, deadline=None)
@given(seeds, ranks, st.integers(10, 40), st.integers(10, 40), st.integers(1, 8))
def test_components_that_do_nothing_change_only_what_one_is_a_share_of(
    seed: int, rank: int, inputs: int, outputs: int, more: int
):
    a, b = draw(seed, rank, inputs, outputs)
    grown_a = torch.cat([a, torch.randn(more, inputs, generator=torch.Generator().manual_seed(seed + 1))])
    grown_b = torch.cat([b, torch.zeros(outputs, more)], dim=1)
    before = float(entropy(a, b, 1e-9)) * math.log(rank)
    assert float(entropy(grown_a, grown_b, 1e-9)) * math.log(rank + more) == pytest.approx(before, abs=1e-4)


# --- of a model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_every_adapter_of_a_model_has_the_entropy_of_its_update(adapted: Build, bits: int):
    loaded = adapted(bits=bits, ranks={"fc1": 9, "q_proj": 1}, stem="lora")
    found, norms, used = adapter_entropies(loaded), reference_norms(loaded), effective_ranks(loaded)
    layers = lora.lora_layers(loaded)
    assert used.keys() == norms.keys() == layers.keys()
    assert list(found) == [name for name in layers if not name.endswith("q_proj")]  # rank 1 has no choice
    for name, layer in layers.items():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        a, b = a.detach().reshape(len(a), -1), b.detach().reshape(len(b), -1)
        base = dequantized_weight(layer.base_layer)
        assert norms[name] == pytest.approx(float(base.norm()), rel=1e-5)
        if name in found:
            smoothing = (1e-3 * float(base.norm())) ** 2
            assert found[name] == pytest.approx(dense_entropy(a, b, smoothing), abs=5e-6)
        shares = torch.linalg.svdvals(b.double() @ a.double()).square()[: len(a)]
        shares = shares / shares.sum()
        assert used[name] == pytest.approx(float(torch.special.entr(shares).sum().exp()), rel=1e-6)
    assert {layer.lora_A["default"].weight.ndim for layer in layers.values()} == {2, 3}


def test_the_kernel_of_a_convolution_of_pictures_counts_as_inputs():
    """The stem of Qwen3-ASR is made of 2-D convolutions."""
    loaded = Qwen3AsrFamily().load("assets:qwen3-asr-nano")
    plan = RankPlan(ranks={}, allocator="test", parameters=0)
    attached = lora.attach(loaded, plan, rank=3, alpha=3.0, stem="lora")
    generator = torch.Generator().manual_seed(0)
    layers = lora.lora_layers(attached)
    four = [layer for layer in layers.values() if layer.lora_A["default"].weight.ndim == 4]
    assert four
    with torch.no_grad():
        for layer in layers.values():
            weight = layer.lora_B["default"].weight
            weight.copy_(torch.randn(weight.shape, generator=generator))
    for layer in four:
        a, b = matrices(layer)
        kernel = layer.base_layer.kernel_size
        assert a.shape == (3, layer.base_layer.in_channels * kernel[0] * kernel[1])
        assert b.shape == (layer.base_layer.out_channels, 3)
        inputs = torch.randn(1, layer.base_layer.in_channels, 9, 9, generator=generator)
        update = layer(inputs) - layer.base_layer(inputs)
        whole = (b @ a).reshape(layer.base_layer.weight.shape)
        settings_ = {"stride": layer.base_layer.stride, "padding": layer.base_layer.padding}
        torch.testing.assert_close(update, torch.nn.functional.conv2d(inputs, whole, **settings_), atol=1e-3, rtol=1e-3)
    assert set(adapter_entropies(attached)) == set(layers)


def test_the_scale_of_an_adapter_does_not_matter(adapted: Build):
    loaded = adapted()
    before = adapter_entropies(loaded), effective_ranks(loaded)
    for layer in lora.lora_layers(loaded).values():
        layer.scaling["default"] *= 17.0
    assert (adapter_entropies(loaded), effective_ranks(loaded)) == before


def test_a_new_adapter_uses_no_direction_yet(fresh: Build, plan: Callable[..., RankPlan]):
    loaded = fresh()
    attached = lora.attach(loaded, plan(loaded), rank=4, alpha=4.0)
    assert set(effective_ranks(attached).values()) == {0.0}
    assert set(adapter_entropies(attached).values()) == {1.0}


def test_a_frozen_weight_of_zeros_does_no_harm(adapted: Build):
    loaded = adapted(targets="q_v")
    name = next(iter(lora.lora_layers(loaded)))
    layer = lora.lora_layers(loaded)[name]
    with torch.no_grad():
        layer.base_layer.weight.zero_()
        layer.lora_B["default"].weight.zero_()
    penalty = EntropyRegularizer(loaded, "spread", 1.0).penalty(9, 10)
    assert penalty is not None
    penalty.backward()
    assert bool(layer.lora_B["default"].weight.grad.isfinite().all())
    assert adapter_entropies(loaded)[name] == 1.0


# --- the penalty ---------------------------------------------------------------------------------


def test_off_has_no_penalty(adapted: Build):
    for off in (EntropyRegularizer(adapted(), "off", 0.5), EntropyRegularizer(adapted(), "spread", 0.0)):
        assert not off.active
        assert off.penalty(90, 100) is None
        assert off.after_step(90, 100, torch.optim.SGD([torch.zeros(1)])) is None


def test_the_weight_rises_along_the_ramp(adapted: Build):
    loaded = adapted(targets="q_v")
    regularizer = EntropyRegularizer(loaded, "concentrate", 0.5, (0.1, 0.3))
    mean = sum(adapter_entropies(loaded).values()) / len(adapter_entropies(loaded))
    for step, share in ((0, 0), (9, 0), (10, 0), (15, 0.25), (20, 0.5), (30, 1), (31, 1), (99, 1)):
        assert regularizer.weight_at(step, 100) == pytest.approx(0.5 * share)
        penalty = regularizer.penalty(step, 100)
        assert (penalty is None) == (share == 0)
        if penalty is not None:
            assert penalty.item() == pytest.approx(0.5 * share * mean, rel=1e-5)
    assert EntropyRegularizer(loaded, "concentrate", 0.5, (0.0, 0.0)).weight_at(0, 100) == 0.5


def test_spread_is_the_opposite_of_concentrate(adapted: Build):
    loaded = adapted(targets="q_v")
    one, other = (EntropyRegularizer(loaded, mode, 0.2).penalty(50, 100) for mode in ("concentrate", "spread"))
    assert one.item() == -other.item() > 0


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("mode", ["concentrate", "spread"])
def test_the_penalty_moves_entropy_the_way_it_says_and_nothing_else(adapted: Build, bits: int, mode: str):
    loaded = adapted(bits=bits, ranks={"fc1": 6}, unfreeze=["encoder.norms"], targets=["fc1", "q_proj"])
    regularizer = EntropyRegularizer(loaded, mode, 1.0)
    start = adapter_entropies(loaded)
    trained = {name: value for name, value in loaded.module.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=5e-3, weight_decay=0.0)
    for _ in range(20):
        optimizer.zero_grad()
        penalty = regularizer.penalty(50, 100)
        assert penalty is not None
        assert penalty.shape == ()
        penalty.backward()
        reached = {name for name, value in trained.items() if value.grad is not None}
        assert reached == {name for name in trained if ".lora_" in name}
        optimizer.step()
    end = adapter_entropies(loaded)
    moved = [end[name] - start[name] for name in start]
    assert all(change < -0.01 if mode == "concentrate" else change > 0.01 for change in moved), moved


def test_the_penalty_is_in_fp32_whatever_the_forward_pass_is_in(adapted: Build):
    loaded = adapted(targets="q_v")
    regularizer = EntropyRegularizer(loaded, "concentrate", 1.0)
    plain = regularizer.penalty(50, 100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = regularizer.penalty(50, 100)
    assert plain is not None
    assert inside is not None
    assert plain.dtype == inside.dtype == torch.float32
    assert plain.item() == inside.item()


def test_the_penalty_follows_adapters_that_change_their_rank(adapted: Build):
    loaded = adapted(targets="q_v")
    regularizer = EntropyRegularizer(loaded, "concentrate", 1.0)
    regularizer.penalty(50, 100)
    names = list(lora.lora_layers(loaded))
    resize(loaded, None, {names[0]: 8, names[1]: 2, names[2]: 1}, seed=0, step=50)
    penalty = regularizer.penalty(51, 100)
    assert penalty is not None
    expected = adapter_entropies(loaded)
    assert len(expected) == len(names) - 1
    assert penalty.item() == pytest.approx(sum(expected.values()) / len(expected), rel=1e-5)
    penalty.backward()
    assert float(lora.lora_layers(loaded)[names[0]].lora_B["default"].weight.grad.abs().max()) > 0


def test_adapters_that_do_not_train_are_left_out(adapted: Build):
    loaded = adapted(targets="q_v")
    layers = list(lora.lora_layers(loaded).items())
    for _, layer in layers[1:]:
        for matrix in (layer.lora_A, layer.lora_B):
            matrix["default"].weight.requires_grad_(False)
    penalty = EntropyRegularizer(loaded, "concentrate", 1.0).penalty(50, 100)
    assert penalty.item() == pytest.approx(adapter_entropies(loaded)[layers[0][0]], rel=1e-5)
    for matrix in (layers[0][1].lora_A, layers[0][1].lora_B):
        matrix["default"].weight.requires_grad_(False)
    assert EntropyRegularizer(loaded, "concentrate", 1.0).penalty(50, 100) is None


def shaped(loaded: LoadedModel, *, second: float) -> None:
    """Give every update one singular value of 1, and `second` as all others."""
    with torch.no_grad():
        for layer in lora.lora_layers(loaded).values():
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            sizes = torch.full((len(a),), second)
            sizes[0] = 1.0
            a.copy_(torch.linalg.qr(a.mT).Q.mT)
            b.copy_(torch.linalg.qr(b).Q * sizes)


def test_adapters_that_collapse_are_reported_once(adapted: Build, caplog: pytest.LogCaptureFixture):
    loaded = adapted(targets="q_v", ranks={"rank": 8})
    regularizer = EntropyRegularizer(loaded, "concentrate", 1.0)
    optimizer = torch.optim.SGD([torch.zeros(1)])

    def event(step: int) -> object:
        regularizer.penalty(step - 1, 100)
        return regularizer.after_step(step, 100, optimizer)

    assert event(50) is None  # not yet
    shaped(loaded, second=math.sqrt(0.06))
    assert event(60) is None  # 1.97 by the entropy of order 2, 3.3 by that of order 1
    shaped(loaded, second=0.01)
    assert event(69) is None  # looks at every tenth step only
    kind, fields = event(70)
    assert (kind, fields["check"], fields["severity"], fields["limit"]) == ("finding", "adapter.entropy", "warning", 2)
    assert 1 <= fields["measured"] < 1.1
    assert "Lower its weight (now 1.0)" in caplog.text
    assert event(80) is None
    spread = EntropyRegularizer(loaded, "spread", 1.0)
    spread.penalty(52, 100)
    assert spread.alarm() is None


def test_a_rank_of_two_is_no_collapse(adapted: Build):
    loaded = adapted(targets="q_v", ranks={"rank": 2})
    regularizer = EntropyRegularizer(loaded, "concentrate", 1.0)
    regularizer.penalty(50, 100)
    assert regularizer.alarm() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sharpen", 0.1), "use off, concentrate, spread"),
        (("spread", -0.1), "zero or more, and the mode sets its direction"),
        (("spread", math.nan), "is nan"),
        (("spread", 0.1, (0.3, 0.1)), r"0\.3 to 0\.1"),
        (("spread", 0.1, (0.0, 1.5)), "shares of the run"),
    ],
)
def test_settings_out_of_range_are_refused(adapted: Build, arguments: tuple, message: str):
    with pytest.raises(AdapterError, match=message):
        EntropyRegularizer(adapted(), *arguments)


def test_without_a_choice_of_directions_there_is_nothing_to_regularise(adapted: Build):
    loaded = adapted(targets="q_v", ranks={"rank": 1})
    with pytest.raises(AdapterError, match="no adapter has a rank of 2 or more"):
        EntropyRegularizer(loaded, "spread", 0.1)
    assert EntropyRegularizer(loaded, "off", 0.1).penalty(1, 2) is None
