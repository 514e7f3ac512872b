"""SpecAugment: what it may touch, and that a clip's draws are its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.features.specaugment import SpecAugmentSettings, spec_augment

STRONG = SpecAugmentSettings(
    frequency_masks=2,
    frequency_mask_bins=8,
    time_masks=3,
    time_mask_frames=12,
    time_mask_fraction=0.3,
    time_warp_frames=6,
)

strengths = st.builds(
    SpecAugmentSettings,
    frequency_masks=st.integers(0, 3),
    frequency_mask_bins=st.integers(0, 30),
    time_masks=st.integers(0, 3),
    time_mask_frames=st.integers(0, 60),
    time_mask_fraction=st.floats(0, 1),
    time_warp_frames=st.integers(0, 30),
    fill=st.sampled_from(["mean", "floor", 0.25]),
)
lengths_lists = st.lists(st.integers(1, 50), min_size=1, max_size=4)


def features(lengths: list[int], *, bins: int = 20, extra: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips whose values depend on their row only, with padding of -9."""
    padded = torch.full((len(lengths), max(lengths) + extra, bins), -9.0)
    for index, length in enumerate(lengths):
        rng = np.random.default_rng([seed, index])
        padded[index, :length] = torch.from_numpy(rng.uniform(-1, 1, (length, bins)).astype(np.float32))
    return padded, torch.tensor(lengths)


def names(count: int) -> list[str]:
    return [f"clip{index}" for index in range(count)]


def augment(padded, lengths, strength, *, clip_ids=None, seed=3, epoch=1):
    ids = names(len(lengths)) if clip_ids is None else clip_ids
    return spec_augment(padded, lengths, clip_ids=ids, seed=seed, epoch=epoch, settings=strength)


@given(lengths=lengths_lists, strength=strengths, epoch=st.integers(0, 100))
@settings(max_examples=80, deadline=None)
def test_padding_and_the_given_tensor_are_untouched_and_values_stay_in_range(lengths, strength, epoch):
    padded, sizes = features(lengths)
    before = padded.clone()
    found = augment(padded, sizes, strength, epoch=epoch)
    assert torch.equal(padded, before)
    assert found.shape == padded.shape
    for row, length in zip(found, lengths, strict=True):
        assert bool((row[length:] == -9.0).all())
        assert -1.0 <= float(row[:length].min()) <= float(row[:length].max()) <= 1.0


@given(lengths=lengths_lists, strength=strengths, extra=st.integers(0, 40))
@settings(max_examples=80, deadline=None)
def test_a_clip_is_changed_in_the_same_way_in_any_batch(lengths, strength, extra):
    padded, sizes = features(lengths)
    together = augment(padded, sizes, strength)
    for index, (name, length) in enumerate(zip(names(len(lengths)), lengths, strict=True)):
        alone = torch.full((1, length + extra, 20), -9.0)
        alone[0, :length] = padded[index, :length]
        found = augment(alone, sizes[index : index + 1], strength, clip_ids=[name])
        assert torch.equal(found[0, :length], together[index, :length])


@pytest.mark.parametrize(
    "strength",
    [
        SpecAugmentSettings(),
        SpecAugmentSettings(frequency_masks=2, frequency_mask_bins=0),
        SpecAugmentSettings(time_masks=2, time_mask_frames=0),
        SpecAugmentSettings(time_masks=2, time_mask_fraction=0.0),
    ],
)
def test_zero_settings_are_the_identity(strength):
    padded, sizes = features([30, 12])
    assert not strength.changes_something
    assert torch.equal(augment(padded, sizes, strength), padded)


def test_draws_follow_seed_epoch_and_clip():
    padded, sizes = features([50, 50])
    padded[1] = padded[0]
    found = augment(padded, sizes, STRONG)
    assert torch.equal(found, augment(padded, sizes, STRONG))
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found, augment(padded, sizes, STRONG, epoch=2))
    assert not torch.equal(found, augment(padded, sizes, STRONG, seed=4))
    assert torch.equal(found[[1, 0]], augment(padded, sizes, STRONG, clip_ids=["clip1", "clip0"]))


def test_frequency_masks_are_whole_bands_of_limited_width():
    strength = SpecAugmentSettings(frequency_masks=1, frequency_mask_bins=6, fill=9.0)
    padded, sizes = features([40] * 200)
    masked = augment(padded, sizes, strength)[:, :40] == 9.0
    bands = masked.any(dim=1)
    assert torch.equal(masked, bands.unsqueeze(1).expand_as(masked))
    widths = bands.sum(dim=1)
    assert set(widths.tolist()) == set(range(7))
    for row in bands:
        places = torch.nonzero(row).flatten()
        assert places.numel() == 0 or int(places[-1] - places[0]) + 1 == places.numel()
    assert bool(bands.any(dim=0).all())  # every bin is reached, the first and the last as well


def test_time_masks_keep_both_limits():
    padded, sizes = features([40] * 200)

    def widths(**limits: float) -> set[int]:
        found = augment(padded, sizes, SpecAugmentSettings(time_masks=1, fill=9.0, **limits))
        spans = (found == 9.0).all(dim=2)
        assert torch.equal(spans.unsqueeze(2).expand_as(found), found == 9.0)
        return set(spans.sum(dim=1).tolist())

    assert widths(time_mask_frames=5, time_mask_fraction=1.0) == set(range(6))
    assert widths(time_mask_frames=100, time_mask_fraction=0.1) == set(range(5))


def test_fill_is_the_clips_own():
    strength = {"frequency_masks": 1, "frequency_mask_bins": 20}
    padded, sizes = features([30])
    own = padded[0, :30]
    epoch = next(
        epoch
        for epoch in range(100)
        if not torch.equal(augment(padded, sizes, SpecAugmentSettings(**strength), epoch=epoch), padded)
    )
    for fill, wanted in (("mean", own.mean()), ("floor", own.min()), (0.5, torch.tensor(0.5))):
        found = augment(padded, sizes, SpecAugmentSettings(**strength, fill=fill), epoch=epoch)
        changed = found[found != padded]
        assert changed.numel() > 0
        torch.testing.assert_close(changed, wanted.expand_as(changed))


def test_time_warp_bends_a_ramp_once_and_keeps_its_ends():
    reach, length = 8, 60
    ramp = torch.arange(length + 4, dtype=torch.float32).view(1, -1, 1).repeat(1, 1, 2)
    ramp[:, length:] = -9.0
    moved = []
    for epoch in range(60):
        found = augment(ramp, torch.tensor([length]), SpecAugmentSettings(time_warp_frames=reach), epoch=epoch)
        line = found[0, :length, 0]
        assert torch.equal(found[0, :length, 1], line)
        assert line[0] == 0
        assert line[-1] == length - 1
        assert bool((found[0, length:] == -9.0).all())
        steps = line.diff()
        assert bool((steps > 0).all())
        # Two slopes, with at most one step that holds the bend.
        assert torch.unique((steps * 1e3).round()).numel() <= 3 + 2
        moved.append(float((line - torch.arange(length)).abs().max()))
    assert max(moved) <= reach + 1e-3
    assert max(moved) > reach / 2


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_time_warp_leaves_the_shortest_clips_alone(length):
    padded, sizes = features([length])
    assert torch.equal(augment(padded, sizes, SpecAugmentSettings(time_warp_frames=10)), padded)


@pytest.mark.parametrize(
    "wrong", [{"time_masks": -1}, {"time_warp_frames": -2}, {"time_mask_fraction": 1.5}, {"fill": "median"}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SpecAugmentSettings(**wrong)
