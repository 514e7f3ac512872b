"""How many directions a sample fills, against formulas written anew in numpy and against known distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sonotune.adapters.calibration.spectrum import (
    centred,
    coding_rate,
    eigenvalues,
    finite_rows,
    leading_directions,
    measure,
    participation_ratio,
    shannon_entropy,
    standardised,
)
from sonotune.errors import AdapterError

MANY = settings(max_examples=1000, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**31)


def sample(seed: int, rows: int, channels: int, decay: float = 0.7) -> Tensor:
    """Gaussian rows with a power law over rotated directions, and channels of unlike mean and scale."""
    draw = np.random.default_rng(seed)
    turned = np.linalg.qr(draw.standard_normal((channels, channels)))[0]
    rows_ND = draw.standard_normal((rows, channels)) * np.arange(1, channels + 1) ** -decay @ turned
    return torch.from_numpy(rows_ND * 10 ** draw.uniform(-2, 2, channels) + draw.uniform(-5, 5, channels))


def by_hand(rows_ND: NDArray[np.float64], *, standardise: bool) -> dict[str, float]:
    """Every number from the covariance matrix itself, with no Gram trick."""
    rows, channels = rows_ND.shape
    x = rows_ND - rows_ND.mean(axis=0)
    if standardise:
        deviations = x.std(axis=0, ddof=1)
        x = x / np.maximum(deviations, 0.01 * np.sort(deviations)[(channels - 1) // 2])
    covariance = np.cov(x, rowvar=False).reshape(channels, channels)
    values = np.clip(np.linalg.eigvalsh(covariance), 0, None)
    shares = values / values.sum()
    entropy = -sum(share * math.log(share) for share in shares if share > 0)
    trace, square = np.trace(covariance), np.sum(covariance**2)
    q = np.sum(np.sum(x**2, axis=1) ** 2) / (rows - 1)
    k = (rows - 1) / (rows * (rows - 2) * (rows - 3))
    of_square = k * ((rows - 1) * (rows - 2) * square + trace**2 - rows * q)
    squared = k * (2 * square + (rows**2 - 3 * rows + 1) * trace**2 - rows * q)
    ratio = np.clip(squared / of_square, 1, channels) if of_square > 0 else channels
    rate = 0.5 * np.linalg.slogdet(np.eye(channels) + channels / 0.25 * covariance / trace)[1] / math.log(2)
    return {"effective_rank": math.exp(entropy), "participation": float(ratio), "coding_rate": float(rate)}


@MANY
@given(SEEDS, st.integers(5, 40), st.integers(2, 40), st.booleans())
def test_every_number_is_that_of_the_formula(seed: int, rows: int, channels: int, standardise: bool) -> None:
    rows_ND = sample(seed, rows, channels)
    found, wanted = measure(rows_ND, standardise=standardise), by_hand(rows_ND.numpy(), standardise=standardise)
    for name, value in wanted.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-6), name
    assert found.entropy == pytest.approx(math.log(found.effective_rank))
    assert (found.rows, found.channels, found.dropped) == (rows, channels, 0)


@MANY
@given(SEEDS, st.integers(4, 30), st.integers(1, 30), st.booleans())
def test_an_effective_rank_lies_between_one_and_what_rows_and_channels_allow(
    seed: int, rows: int, channels: int, standardise: bool
) -> None:
    found = measure(sample(seed, rows, channels), standardise=standardise)
    assert 1.0 <= found.effective_rank <= min(rows - 1, channels) * (1 + 1e-12)
    assert 1.0 <= found.participation <= channels
    assert found.coding_rate >= 0


@MANY
@given(SEEDS, st.integers(6, 30), st.integers(2, 30))
def test_scaling_and_shifting_channels_changes_nothing(seed: int, rows: int, channels: int) -> None:
    rows_ND, draw = sample(seed, rows, channels, decay=0.0), np.random.default_rng(seed + 1)
    one = rows_ND / rows_ND.std(dim=0)  # no channel is at the floor, before or after
    other = one * torch.from_numpy(draw.uniform(0.2, 5, channels)) + torch.from_numpy(draw.uniform(-9, 9, channels))
    first, second = measure(one), measure(other)
    assert second.effective_rank == pytest.approx(first.effective_rank, rel=1e-8)
    assert second.participation == pytest.approx(first.participation, rel=1e-8)
    assert second.coding_rate == pytest.approx(first.coding_rate, rel=1e-8)


@MANY
@given(SEEDS, st.integers(6, 30), st.integers(2, 30), st.floats(1e-3, 1e3))
def test_turning_all_channels_changes_nothing_where_they_are_not_standardised(
    seed: int, rows: int, channels: int, scale: float
) -> None:
    rows_ND = sample(seed, rows, channels)
    turn = np.linalg.qr(np.random.default_rng(seed + 1).standard_normal((channels, channels)))[0]
    first = measure(rows_ND, standardise=False)
    second = measure(scale * rows_ND @ torch.from_numpy(turn) + 7.0, standardise=False)
    assert second.effective_rank == pytest.approx(first.effective_rank, rel=1e-7)
    assert second.participation == pytest.approx(first.participation, rel=1e-6)


@MANY
@given(SEEDS, st.integers(6, 30), st.integers(1, 15), st.integers(2, 4), st.booleans())
def test_duplicated_channels_add_no_dimension(
    seed: int, rows: int, channels: int, copies: int, standardise: bool
) -> None:
    rows_ND = sample(seed, rows, channels)
    first = measure(rows_ND, standardise=standardise)
    second = measure(rows_ND.repeat(1, copies), standardise=standardise)
    assert second.effective_rank == pytest.approx(first.effective_rank, rel=1e-7)


@MANY
@given(
    SEEDS, st.integers(6, 20), st.integers(2, 12), st.integers(1, 5), st.sampled_from([math.nan, math.inf, -math.inf])
)
def test_rows_that_are_not_finite_are_left_out_and_counted(
    seed: int, rows: int, channels: int, broken: int, value: float
) -> None:
    rows_ND = sample(seed, rows, channels)
    bad = torch.zeros(broken, channels, dtype=torch.float64)
    bad[torch.arange(broken), torch.arange(broken) % channels] = value
    order = torch.from_numpy(np.random.default_rng(seed).permutation(rows + broken))
    mixed = measure(torch.cat([rows_ND, bad])[order])
    assert (mixed.rows, mixed.dropped) == (rows, broken)
    assert mixed.effective_rank == pytest.approx(measure(rows_ND).effective_rank, rel=1e-8)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_too_few_rows_are_refused(rows: int) -> None:
    with pytest.raises(AdapterError, match=f"needs 4 rows at least; found {rows} .* and 2 with NaN"):
        measure(torch.cat([torch.randn(rows, 5), torch.full((2, 5), math.nan)]))
    with pytest.raises(AdapterError, match="needs 4 rows"):
        leading_directions(torch.randn(rows, 5), 2)


def test_constant_rows_have_one_dimension_and_constant_channels_none() -> None:
    flat = measure(torch.full((10, 6), 3.0))
    assert (flat.effective_rank, flat.participation, flat.coding_rate) == (1.0, 1.0, 0.0)
    rows_ND = sample(1, 50, 4)
    dead = torch.cat([rows_ND, torch.full((50, 9), 0.3, dtype=torch.float64)], dim=1)
    assert measure(dead).effective_rank == pytest.approx(measure(rows_ND).effective_rank, rel=1e-6)


def test_one_massive_channel_hides_the_others_unless_channels_are_standardised() -> None:
    rows_ND = torch.from_numpy(np.random.default_rng(0).standard_normal((400, 32)))
    massive = rows_ND.clone()
    massive[:, 3] *= 60
    assert measure(massive, standardise=False).effective_rank < 1.5
    assert measure(massive).effective_rank == pytest.approx(measure(rows_ND).effective_rank, rel=1e-9)


def test_a_channel_below_the_floor_is_not_blown_up() -> None:
    rows_ND = torch.from_numpy(np.random.default_rng(0).standard_normal((200, 8)))
    rows_ND[:, 0] *= 1e-6
    assert float(standardised(centred(rows_ND)).std(dim=0)[0]) == pytest.approx(1e-4, rel=0.1)


@pytest.mark.parametrize("decay", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("rows", [64, 256])
def test_the_participation_ratio_is_not_biased_by_few_rows(decay: float, rows: int) -> None:
    """Against the value of the distribution; the plug-in estimate is far below it."""
    values = np.arange(1, 129) ** -decay
    true = values.sum() ** 2 / (values**2).sum()
    draw = np.random.default_rng(3)
    unbiased, plug_in = [], []
    for _ in range(60):
        rows_ND = centred(torch.from_numpy(draw.standard_normal((rows, 128)) * np.sqrt(values)))
        found = eigenvalues(rows_ND)
        unbiased.append(participation_ratio(rows_ND, found))
        plug_in.append(float(found.sum() ** 2 / found.square().sum()))
    deviation = np.std(unbiased) / math.sqrt(len(unbiased))
    assert abs(np.mean(unbiased) - true) < 4 * deviation + 0.01 * true
    assert np.mean(plug_in) < true * (0.95 if decay < 1 else 1.0)
    assert abs(np.mean(plug_in) - true) > abs(np.mean(unbiased) - true)


def test_the_order_of_inputs_by_effective_rank_survives_a_small_sample() -> None:
    draw = np.random.default_rng(4)
    found = []
    for decay in (1.5, 1.0, 0.7, 0.5):
        rows_ND = torch.from_numpy(draw.standard_normal((128, 256)) * np.arange(1, 257) ** (-decay / 2))
        found.append(measure(rows_ND, standardise=False).effective_rank)
    assert found == sorted(found)
    assert found[-1] > 3 * found[0]


@MANY
@given(SEEDS, st.integers(5, 30), st.integers(2, 30), st.integers(1, 12))
def test_directions_are_orthonormal_and_hold_their_shares_of_the_variance(
    seed: int, rows: int, channels: int, most: int
) -> None:
    rows_ND = sample(seed, rows, channels)
    found = leading_directions(rows_ND, most)
    count = min(most, rows - 1, channels)
    covariance = np.cov(rows_ND.numpy(), rowvar=False)
    values = np.clip(np.linalg.eigvalsh(covariance)[::-1], 0, None)
    assert found.vectors.shape == (count, channels)
    assert found.vectors.dtype == torch.float32
    assert found.trace == pytest.approx(np.trace(covariance), rel=1e-9)
    np.testing.assert_allclose(found.shares.numpy(), values[:count] / values.sum(), rtol=1e-6, atol=1e-12)
    vectors = found.vectors.double().numpy()
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(count), atol=1e-5)
    along = np.einsum("pd,de,pe->p", vectors, covariance, vectors)
    np.testing.assert_allclose(along, values[:count], rtol=1e-3, atol=1e-5 * values[0])
    assert bool((found.vectors.gather(1, found.vectors.abs().argmax(dim=1, keepdim=True)) > 0).all())


def test_directions_fill_a_basis_where_rows_span_less() -> None:
    spanned = torch.from_numpy(np.random.default_rng(0).standard_normal((12, 2)))
    rows_ND = spanned @ torch.from_numpy(np.random.default_rng(1).standard_normal((2, 40)))
    found = leading_directions(rows_ND, 6)
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(6), atol=1e-5, rtol=0)
    assert float(found.shares[:2].sum()) == pytest.approx(1.0)
    still = leading_directions(torch.ones(9, 5), 3)
    assert still.shares.tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(still.vectors @ still.vectors.T, torch.eye(3), atol=1e-5, rtol=0)


def test_small_functions_at_their_edges() -> None:
    assert shannon_entropy(torch.zeros(4)) == 0.0
    assert coding_rate(torch.zeros(4), 4) == 0.0
    assert shannon_entropy(torch.full((8,), 0.5)) == pytest.approx(math.log(8))
    whole, dropped = finite_rows(torch.tensor([[1.0, 2.0], [math.nan, 0.0]], dtype=torch.bfloat16))
    assert (whole.dtype, whole.tolist(), dropped) == (torch.float32, [[1.0, 2.0]], 1)


def test_single_precision_gives_the_same_spectrum() -> None:
    """Also where one channel is a thousand times the others, and where one lies far from zero."""
    draw = np.random.default_rng(5)
    rows_ND = torch.from_numpy(draw.standard_normal((300, 400)) * np.arange(1, 401) ** -0.7)
    rows_ND[:, 0] *= 1000.0
    rows_ND[:, 1] += 500.0
    rows_ND[:, 2] = 1 / 3
    one, other = measure(rows_ND.float().double()), measure(rows_ND.float())
    assert other.effective_rank == pytest.approx(one.effective_rank, rel=1e-5)
    assert other.participation == pytest.approx(one.participation, rel=1e-4)
    assert other.coding_rate == pytest.approx(one.coding_rate, rel=1e-5)
