"""Mixup: draws that belong to clips, waveforms and features by hand, and batches that carry what was mixed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.features.batching import Batch, ClipBatches, batch_loader
from sonotune.features.frontend import FilterBank, RawWaveform
from sonotune.features.mixup import Mix, MixupSettings, draw_mix, mix_features, mix_waveforms
from sonotune.features.workers import Crew
from sonotune.types import Clip

RATE_HZ = 16_000
ALWAYS = MixupSettings(probability=1.0)
IDS = [f"clip-{index}" for index in range(40)]
SECONDS = [0.5, 0.9, 0.7, 0.6, 0.8, 0.55]


def same(first: Mix, second: Mix) -> bool:
    return first.partners == second.partners and np.array_equal(first.shares, second.shares)


# --- draws ---------------------------------------------------------------------------------------


def test_a_draw_is_a_function_of_seed_epoch_and_clips():
    drawn = draw_mix(IDS, seed=3, epoch=1, settings=ALWAYS)
    np.random.default_rng(0).random(10)
    torch.rand(3)
    assert same(drawn, draw_mix(IDS, seed=3, epoch=1, settings=ALWAYS))
    assert not same(drawn, draw_mix(IDS, seed=4, epoch=1, settings=ALWAYS))
    assert not same(drawn, draw_mix(IDS, seed=3, epoch=2, settings=ALWAYS))
    others = draw_mix([f"x{index}" for index in range(40)], seed=3, epoch=1, settings=ALWAYS)
    assert not same(drawn, others)


def test_the_share_of_a_clip_does_not_depend_on_where_it_stands():
    forward = draw_mix(IDS, seed=3, epoch=1, settings=ALWAYS)
    backward = draw_mix(IDS[::-1], seed=3, epoch=1, settings=ALWAYS)
    np.testing.assert_array_equal(forward.shares, backward.shares[::-1])


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.integers(0, 2**32), st.floats(0.05, 5.0), st.floats(0.0, 1.0))
def test_nobody_is_mixed_with_itself_and_no_partner_is_louder(clips: int, seed: int, alpha: float, probability: float):
    mix = draw_mix(IDS[:clips], seed=seed, epoch=0, settings=MixupSettings(probability=probability, alpha=alpha))
    assert mix.shares.dtype == np.float32
    assert mix.shares.shape == (clips,)
    assert mix.shares.min() >= 0.0
    assert mix.shares.max() <= 0.5
    for row, (partner, share) in enumerate(zip(mix.partners, mix.shares, strict=True)):
        assert 0 <= partner < clips
        assert partner != row or share == 0.0


def test_the_share_of_clips_that_are_mixed_is_the_probability():
    mixed = drawn = 0
    for epoch in range(50):
        mix = draw_mix(IDS, seed=0, epoch=epoch, settings=MixupSettings(probability=0.3))
        mixed += sum(partner != row for row, partner in enumerate(mix.partners))
        drawn += len(IDS)
    assert mixed / drawn == pytest.approx(0.3, abs=0.04)  # four standard deviations
    everyone = draw_mix(IDS, seed=0, epoch=0, settings=ALWAYS)
    assert all(partner != row for row, partner in enumerate(everyone.partners))


def test_every_other_clip_is_as_likely_a_partner():
    met = Counter(draw_mix(IDS[:5], seed=0, epoch=epoch, settings=ALWAYS).partners[2] for epoch in range(400))
    assert set(met) == {0, 1, 3, 4}
    assert min(met.values()) > 60


def test_alpha_decides_how_much_is_mixed():
    means = [
        float(
            np.mean(
                [
                    draw_mix(IDS, seed=0, epoch=e, settings=MixupSettings(probability=1, alpha=a)).shares
                    for e in range(20)
                ]
            )
        )
        for a in (0.1, 0.4, 5.0)
    ]
    assert means[0] < means[1] < means[2] < 0.5
    assert means[0] == pytest.approx(0.065, abs=0.03)  # folded Beta(0.1, 0.1)
    assert means[2] == pytest.approx(0.38, abs=0.03)  # folded Beta(5, 5)


@pytest.mark.parametrize("ids", [[], ["alone"]])
def test_nobody_to_be_mixed_with(ids: list[str]):
    mix = draw_mix(ids, seed=0, epoch=0, settings=ALWAYS)
    assert mix.partners == tuple(range(len(ids)))
    assert not mix.shares.any()


def test_nothing_is_mixed_at_probability_zero():
    mix = draw_mix(IDS, seed=0, epoch=0, settings=MixupSettings(probability=0.0))
    assert mix.partners == tuple(range(len(IDS)))
    assert not mix.shares.any()


# --- waveforms and features ----------------------------------------------------------------------


def test_waveforms_by_hand():
    waves = [np.array([1, 1, 1, 1], np.float32), np.array([8, 8], np.float32), np.array([4, 0, 4], np.float32)]
    mix = Mix(partners=(1, 2, 2), shares=np.array([0.25, 0.5, 0.0], dtype=np.float32))
    made = mix_waveforms(waves, mix)
    assert [wave.tolist() for wave in made] == [[2.75, 2.75, 0.75, 0.75], [6.0, 4.0], [4.0, 0.0, 4.0]]
    assert {wave.dtype for wave in made} == {np.dtype(np.float32)}
    assert [wave.tolist() for wave in waves] == [[1, 1, 1, 1], [8, 8], [4, 0, 4]]  # given ones are left alone


def test_features_by_hand():
    features = torch.tensor([[[1.0], [1.0]], [[5.0], [9.0]]])
    mix = Mix(partners=(1, 1), shares=np.array([0.25, 0.0], dtype=np.float32))
    made = mix_features(features, torch.tensor([1, 2]), mix)
    assert made.squeeze(-1).tolist() == [[2.0, 1.0], [5.0, 9.0]]  # nothing is laid over what is behind a clip
    assert features.squeeze(-1).tolist() == [[1.0, 1.0], [5.0, 9.0]]


# --- batches -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("mixup")
    made = []
    for index, seconds in enumerate(SECONDS):
        wave = 0.2 * np.random.default_rng(index).standard_normal(round(seconds * RATE_HZ))
        soundfile.write(folder / f"{index}.wav", wave, RATE_HZ, subtype="FLOAT")
        made.append(Clip(id=f"c{index}", path=folder / f"{index}.wav", duration_s=seconds, label=("x",)))
    return made


TARGETS = [np.array(own, dtype=np.int64) for own in ([0], [1], [2], [3], [4], [5])]
BATCHES = [(0, 1, 2), (3, 4), (5,)]


def dataset(clips: list[Clip], *, mixup: MixupSettings | None = ALWAYS, targets: Any = None, **given: Any) -> Any:
    return ClipBatches(
        clips,
        TARGETS if targets is None else targets,
        given.pop("frontend", RawWaveform(normalize=False)),
        **{"batches": BATCHES, "seed": 1, "epoch": 2, "context": "cut", "mixup": mixup, **given},
    )


def assert_same(first: Batch, second: Batch) -> None:
    for name in ("inputs", "input_lengths", "targets", "target_lengths", "mixed_targets", "mixed_shares"):
        one, other = getattr(first, name), getattr(second, name)
        assert (one is None) == (other is None), name
        assert one is None or torch.equal(one, other), name
    assert first.clips == second.clips


@pytest.mark.parametrize("domain", ["waveform", "features"])
def test_a_batch_holds_what_was_drawn(clips: list[Clip], domain: Any):
    frontend = FilterBank(16, max_frames=120)
    chosen = MixupSettings(probability=1.0, domain=domain)
    batch = dataset(clips, mixup=chosen, frontend=frontend)[0]
    plain = dataset(clips, mixup=None, frontend=frontend)[0]
    mix = draw_mix(["c0", "c1", "c2"], seed=1, epoch=2, settings=chosen)
    assert batch.mixed_shares.tolist() == mix.shares.tolist()
    assert batch.mixed_targets.tolist() == [[partner] for partner in mix.partners]
    assert torch.equal(batch.targets, plain.targets)
    assert torch.equal(batch.input_lengths, plain.input_lengths)
    if domain == "features":
        expected = mix_features(plain.inputs, plain.input_lengths, mix)
    else:
        waves = [soundfile.read(clip.path, dtype="float32")[0] for clip in clips[:3]]
        expected = frontend(mix_waveforms(waves, mix))[0]
    own = torch.arange(expected.shape[1]) < batch.input_lengths.unsqueeze(1)
    torch.testing.assert_close(batch.inputs[own], expected[own], rtol=1e-5, atol=1e-6)
    assert float((batch.inputs - plain.inputs).abs().max()) > 1e-3


@pytest.mark.parametrize("domain", ["waveform", "features"])
@pytest.mark.parametrize("frontend", [RawWaveform(), FilterBank(16, max_frames=120)], ids=["samples", "bands"])
def test_a_clip_keeps_its_own_length(clips: list[Clip], domain: Any, frontend: Any):
    """What follows it is silence as before: a model that reads over its end must not hear the partner alone."""
    plain = dataset(clips, mixup=None, frontend=frontend)[0]
    batch = dataset(clips, mixup=MixupSettings(probability=1.0, alpha=5.0, domain=domain), frontend=frontend)[0]
    assert batch.input_lengths.tolist() == plain.input_lengths.tolist()
    assert batch.inputs.shape == plain.inputs.shape
    for row, length in enumerate(batch.input_lengths.tolist()):
        torch.testing.assert_close(batch.inputs[row, length:], plain.inputs[row, length:], rtol=0, atol=1e-6)


def test_targets_of_several_classes_go_with_their_clip(clips: list[Clip]):
    targets = [np.array(own, dtype=np.int64) for own in ([0, 3], [1], [], [3], [4], [5])]
    batch = dataset(clips, targets=targets)[0]
    mix = draw_mix(["c0", "c1", "c2"], seed=1, epoch=2, settings=ALWAYS)
    for row, partner in enumerate(mix.partners):
        ids = [index for index in batch.mixed_targets[row].tolist() if index >= 0]
        assert ids == targets[partner].tolist()


def test_a_clip_alone_is_not_mixed(clips: list[Clip]):
    batch, plain = dataset(clips)[2], dataset(clips, mixup=None)[2]
    assert torch.equal(batch.inputs, plain.inputs)
    assert batch.mixed_shares.tolist() == [0.0]
    assert torch.equal(batch.mixed_targets, batch.targets)


def test_nothing_changes_at_probability_zero(clips: list[Clip]):
    for index in range(3):
        batch = dataset(clips, mixup=MixupSettings(probability=0.0))[index]
        plain = dataset(clips, mixup=None)[index]
        assert torch.equal(batch.inputs, plain.inputs)
        assert batch.mixed_shares is None or not bool(batch.mixed_shares.any())
        assert plain.mixed_targets is None
        assert plain.mixed_shares is None


@pytest.mark.parametrize("domain", ["waveform", "features"])
def test_workers_change_nothing(clips: list[Clip], domain: Any):
    data = dataset(clips, mixup=MixupSettings(probability=0.8, domain=domain))
    here = list(batch_loader(data))
    with Crew(2) as crew:
        there = list(batch_loader(data, crew))
    assert len(here) == len(there) == 3
    for one, other in zip(here, there, strict=True):
        assert_same(one, other)
    assert any(bool(batch.mixed_shares.any()) for batch in here)


def test_batches_without_mixup_survive_workers(clips: list[Clip]):
    for one, other in zip(dataset(clips, mixup=None), batch_loader(dataset(clips, mixup=None)), strict=False):
        assert_same(one, other)
        assert other.mixed_targets is None


def test_a_batch_does_not_depend_on_those_before_it(clips: list[Clip]):
    later = list(batch_loader(dataset(clips), places=range(1, len(dataset(clips)))))
    assert_same(later[0], dataset(clips)[1])


def test_parts_keep_what_is_mixed_into_their_clips(clips: list[Clip]):
    batch = dataset(clips)[0]
    parts = batch.split(3)
    assert [len(part.clips) for part in parts] == [1, 1, 1]
    for row, part in enumerate(parts):
        assert torch.equal(part.inputs[0], batch.inputs[row])
        assert torch.equal(part.mixed_targets[0], batch.mixed_targets[row])
        assert float(part.mixed_shares[0]) == float(batch.mixed_shares[row])
    moved = batch.to("meta")
    assert moved.mixed_targets.is_meta
    assert moved.mixed_shares.is_meta


def test_a_clip_that_cannot_be_read_is_nobodys_partner(clips: list[Clip], tmp_path: Path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound at all")
    with_bad = [clips[0], Clip(id="bad", path=broken, duration_s=0.5), clips[2]]
    batch = dataset(with_bad, targets=TARGETS[:3], batches=[(0, 1, 2)])[0]
    assert [clip.id for clip in batch.clips] == ["c0", "c2"]
    assert [finding.clip_ids for finding in batch.findings] == [("bad",)]
    assert batch.mixed_targets.tolist() == [[2], [0]]
    nobody = dataset(with_bad, targets=TARGETS[:3], batches=[(1,)])[0]
    assert nobody.clips == ()
