"""How many directions a sample of activations fills: entropy of its spectrum, and its leading directions.

Pure functions on rows, in fp32; eigenvalues are summed in fp64, and effective ranks agree with those of fp64 rows to
1e-5. Rows with a value that is not finite are left out and counted. With channels standardised, what is measured does
not change when channels are scaled or shifted, or all of them duplicated; without, neither when they are rotated. One
channel that holds most of the variance, as transformers have them, would hide all others, so standardising is the
default; the leading directions are those of the plain covariance, because adapters see plain inputs.

Shape letters: N rows, D channels, M the smaller of both, P directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy.linalg
import torch
from torch import Tensor

from sonotune.errors import AdapterError

STANDARD_FLOOR = 0.01
"""Least standard deviation that a channel is divided by, as a share of the median over the channels."""

LEAST_ROWS = 4
"""Rows below which the unbiased participation ratio does not exist."""

_CODING_NOISE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """The dimension of a sample in several senses.

    Attributes:
        rows: Rows it was computed of.
        dropped: Rows left out because a value was not finite.
        channels: D.
        entropy: Shannon entropy of the eigenvalues of the covariance as shares of their sum, in nats.
        effective_rank: exp of it; from 1 to the smaller of N - 1 and D, and biased low where N is not far above it.
        participation: (tr C)^2 / tr C^2 without bias from a small N, from 1 to D.
        coding_rate: Bits a row at a noise of half the standard deviation; for comparison only.
    """

    rows: int
    dropped: int
    channels: int
    entropy: float
    effective_rank: float
    participation: float
    coding_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Directions:
    """The leading eigenvectors of the plain covariance.

    Attributes:
        shares: Their eigenvalues as shares of the trace, falling (P,) float64.
        vectors: The eigenvectors as orthonormal rows (P, D) float32; of each, the largest entry is positive.
        trace: Of the covariance.
    """

    shares: Tensor
    vectors: Tensor
    trace: float


def finite_rows(rows_ND: Tensor) -> tuple[Tensor, int]:
    """Rows without NaN and infinity, in fp32 (fp64 where they are), and how many were left out.

    Eigenvalues in fp32 take a third of the time, and the effective rank is the same to six digits.
    """
    finite_N = torch.isfinite(rows_ND).all(dim=1)
    kept = int(finite_N.sum())
    whole_ND = rows_ND if kept == len(rows_ND) else rows_ND[finite_N]
    return whole_ND if whole_ND.dtype == torch.float64 else whole_ND.float(), len(rows_ND) - kept


def centred(rows_ND: Tensor) -> Tensor:
    """Rows without their mean; what is constant is 0 exactly."""
    return rows_ND - rows_ND.mean(dim=0, dtype=torch.float64).to(rows_ND.dtype)


def standardised(centred_ND: Tensor, *, floor: float = STANDARD_FLOOR) -> Tensor:
    """Channels divided by their standard deviation, or by `floor` times the median where that is larger.

    A channel that never changes stays 0. Where most channels never change, the median is that of the others.
    """
    deviations_D = centred_ND.std(dim=0)
    # What rounding leaves of a constant channel is no variance.
    live_D = deviations_D > 1e-12 * deviations_D.max()
    if not bool(live_D.any()):
        return centred_ND
    median = deviations_D.median()
    if not bool(median > 1e-12 * deviations_D.max()):
        median = deviations_D[live_D].median()
    return torch.where(live_D, centred_ND / deviations_D.clamp_min(floor * median), 0.0)


def eigenvalues(centred_ND: Tensor) -> Tensor:
    """Eigenvalues of the covariance that can differ from 0, falling (M,) fp64."""
    values_M: Tensor = torch.linalg.eigvalsh(_gram(centred_ND))
    return values_M.double().clamp_min(0.0).flip(0)


def _gram(centred_ND: Tensor) -> Tensor:
    """The smaller of X Xᵀ and Xᵀ X over N - 1: both have the eigenvalues of the covariance."""
    rows, channels = centred_ND.shape
    wide = rows < channels
    return (centred_ND @ centred_ND.T if wide else centred_ND.T @ centred_ND) / (rows - 1)


def shannon_entropy(eigenvalues_M: Tensor) -> float:
    """Entropy of the eigenvalues as shares of their sum, in nats; 0 where all are 0.

    Source: Roy & Vetterli 2007, the effective rank.
    """
    total = eigenvalues_M.sum()
    if not bool(total > 0):
        return 0.0
    shares_M = eigenvalues_M / total
    return max(0.0, float(torch.special.entr(shares_M).sum()))


def participation_ratio(centred_ND: Tensor, eigenvalues_M: Tensor) -> float:
    """(tr C)^2 / tr C^2, each of both without bias for rows of any distribution with four moments.

    Source: Himeno & Yamada 2014, equation 1.4.
    """
    rows, channels = centred_ND.shape
    trace, square = eigenvalues_M.sum(), eigenvalues_M.square().sum()
    if not bool(trace > 0):
        return 1.0
    fourth = centred_ND.square().sum(dim=1, dtype=torch.float64).square().sum() / (rows - 1)
    squared_trace = 2 * square + (rows * rows - 3 * rows + 1) * trace.square() - rows * fourth
    trace_of_square = (rows - 1) * (rows - 2) * square + trace.square() - rows * fourth
    if not bool(trace_of_square > 0):  # so flat that its estimate fell below 0
        return float(channels)
    return min(max(float(squared_trace / trace_of_square), 1.0), float(channels))


def coding_rate(eigenvalues_M: Tensor, channels: int, *, noise: float = _CODING_NOISE) -> float:
    """Bits that one row takes at a distortion of `noise`, all channels having unit variance on average.

    Source: Ma et al. 2007, coding length of Gaussian data.
    """
    total = eigenvalues_M.sum()
    if not bool(total > 0):
        return 0.0
    return 0.5 * float(torch.log1p(channels / noise**2 * eigenvalues_M / total).sum()) / math.log(2.0)


def measure(rows_ND: Tensor, *, standardise: bool = True) -> Spectrum:
    """Measure a sample.

    Args:
        rows_ND: Activations, in any precision; rows that are not finite are left out.
        standardise: Whether every channel counts the same.

    Raises:
        AdapterError: Fewer than four rows are finite.
    """
    whole_ND, dropped = finite_rows(rows_ND)
    rows, channels = whole_ND.shape
    _check_rows(rows, dropped)
    centred_ND = centred(whole_ND)
    if standardise:
        centred_ND = standardised(centred_ND)
    values_M = eigenvalues(centred_ND)
    entropy = min(shannon_entropy(values_M), math.log(max(1, min(rows - 1, channels))))
    return Spectrum(
        rows=rows,
        dropped=dropped,
        channels=channels,
        entropy=entropy,
        effective_rank=math.exp(entropy),
        participation=participation_ratio(centred_ND, values_M),
        coding_rate=coding_rate(values_M, channels),
    )


def leading_directions(rows_ND: Tensor, most: int) -> Directions:
    """The directions of most variance, channels as they are.

    Args:
        rows_ND: Activations, in any precision; rows that are not finite are left out.
        most: How many at most; fewer where there are fewer rows or channels.

    Raises:
        AdapterError: Fewer than four rows are finite.
    """
    whole_ND, dropped = finite_rows(rows_ND)
    rows, channels = whole_ND.shape
    _check_rows(rows, dropped)
    centred_ND = centred(whole_ND)
    gram_MM = _gram(centred_ND)
    trace = float(gram_MM.diagonal().sum())
    count = min(most, rows - 1, channels)
    # torch finds all eigenvectors or none, which takes three times as long.
    values, bases = scipy.linalg.eigh(gram_MM.cpu().numpy(), subset_by_index=(len(gram_MM) - count, len(gram_MM) - 1))
    values_P = torch.from_numpy(values).double().flip(0).clamp_min(0.0)
    bases_MP = torch.from_numpy(bases).flip(1).to(rows_ND.device)
    # Of the Gram of rows, Xᵀ u has the direction of the eigenvector; where the eigenvalue is 0 it has none, and the
    # orthonormal basis is filled up with any.
    spanned_DP = centred_ND.T @ bases_MP if rows < channels else bases_MP
    lengths_P = spanned_DP.norm(dim=0)
    spanned_DP = spanned_DP / torch.where(lengths_P > 0, lengths_P, 1.0)
    vectors_DP, _ = torch.linalg.qr(spanned_DP)
    largest_P = vectors_DP.gather(0, vectors_DP.abs().argmax(dim=0, keepdim=True))[0]
    vectors_PD = (vectors_DP * torch.where(largest_P < 0, -1.0, 1.0)).T
    shares_P = values_P / trace if trace > 0 else torch.zeros_like(values_P)
    return Directions(shares=shares_P, vectors=vectors_PD.float().contiguous(), trace=trace)


def _check_rows(rows: int, dropped: int) -> None:
    if rows < LEAST_ROWS:
        raise AdapterError(
            f"a spectrum needs {LEAST_ROWS} rows at least; found {rows} that are finite and {dropped} with NaN or "
            "infinity. Give calibration more clips, or compute it in bf16 or fp32."
        )
