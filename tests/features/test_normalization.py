"""Normalisation over valid frames only."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sonotune.errors import ModelError
from sonotune.features.normalization import Normalizer, compute_statistics


def batch(
    lengths: list[int], *, bins: int = 3, seed: int = 0, padding: float = 1e6
) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    features = torch.full((len(lengths), max(lengths) + 2, bins), padding)
    for row, length in zip(features, lengths, strict=True):
        row[:length] = torch.from_numpy(rng.normal(1000.0, [1.0, 2.0, 5.0][:bins], (length, bins)).astype(np.float32))
    return features, torch.tensor(lengths)


def valid(features: torch.Tensor, lengths: torch.Tensor) -> np.ndarray:
    return np.concatenate([row[:length].numpy() for row, length in zip(features, lengths.tolist(), strict=True)])


def test_statistics_are_those_of_all_valid_frames_whatever_the_batches():
    parts = [batch([5, 9], seed=1), batch([30], seed=2), batch([1, 1, 4], seed=3)]
    frames = np.concatenate([valid(*part) for part in parts]).astype(np.float64)
    normalizer = compute_statistics(parts)
    np.testing.assert_allclose(normalizer.mean, frames.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(normalizer.std, frames.std(axis=0), rtol=1e-9)


def test_dataset_normaliser_gives_zero_mean_and_unit_variance_and_zero_padding():
    features, lengths = batch([50, 20])
    normalizer = Normalizer.from_state(json.loads(json.dumps(compute_statistics([(features, lengths)]).state())))
    found = normalizer(features, lengths)
    np.testing.assert_allclose(valid(found, lengths).mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(valid(found, lengths).std(axis=0), 1.0, atol=1e-3)
    assert bool((found[1, 20:] == 0).all())
    assert bool((features[1, 20:] == 1e6).all())


def test_utterance_normaliser_does_not_see_padding_or_other_clips():
    features, lengths = batch([50, 20])
    found = Normalizer(per="utterance")(features, lengths)
    for row, length in zip(found, lengths.tolist(), strict=True):
        np.testing.assert_allclose(row[:length].mean(dim=0).numpy(), 0.0, atol=1e-4)
        np.testing.assert_allclose(row[:length].std(dim=0, correction=0).numpy(), 1.0, atol=1e-4)
        assert bool((row[length:] == 0).all())
    alone = Normalizer(per="utterance")(features[1:, :20], lengths[1:])
    torch.testing.assert_close(found[1:, :20], alone)


def test_constant_bin_becomes_zero():
    features = torch.full((1, 10, 2), 7.0)
    assert bool((Normalizer(per="utterance")(features, torch.tensor([10])) == 0).all())


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="at least one valid frame"):
        compute_statistics([])
    with pytest.raises(ValueError, match="needs one of each"):
        Normalizer(per="dataset")
    with pytest.raises(ValueError, match="needs none"):
        Normalizer(per="utterance", mean=(0.0,), std=(1.0,))
    with pytest.raises(ValueError, match="2 bins, the features 3"):
        Normalizer(per="dataset", mean=(0.0, 0.0), std=(1.0, 1.0))(*batch([4]))
    with pytest.raises(ModelError, match="mean"):
        Normalizer.from_state({"per": "dataset"})
