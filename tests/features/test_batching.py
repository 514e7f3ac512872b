"""The plan of an epoch, and the batches made from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.features.batching import Batch, ClipBatches, batch_loader, pad_targets, padding_share, plan_batches
from sonotune.features.frontend import LogMel
from sonotune.features.specaugment import SpecAugmentSettings
from sonotune.features.workers import Crew
from sonotune.runs import generator
from sonotune.types import Clip, Finding

RATE = 16_000
durations = st.lists(st.floats(0.01, 40.0), max_size=120)
MASKS = SpecAugmentSettings(frequency_masks=2, time_masks=2, time_warp_frames=5)


@dataclass(frozen=True)
class Louder:
    """A waveform transform: gain and leading silence, drawn as real ones are."""

    silence: bool = True

    def __call__(self, waveform_S, sample_rate_hz, *, seed, epoch, clip_id):
        rng = generator(seed, epoch, clip_id, "louder")
        gain = np.float32(rng.uniform(0.5, 2.0))
        before = np.zeros(int(rng.integers(0, 2000)) if self.silence else 0, dtype=np.float32)
        return np.concatenate([before, gain * waveform_S])


class Grow:
    def __call__(self, waveform_S, sample_rate_hz, *, seed, epoch, clip_id):
        return np.concatenate([waveform_S, waveform_S])


MakeClips = Callable[[list[float]], tuple[list[Clip], list[np.ndarray]]]


@pytest.fixture
def make_clips(tmp_path: Path) -> MakeClips:
    def make(seconds: list[float]) -> tuple[list[Clip], list[np.ndarray]]:
        clips, targets = [], []
        for index, duration_s in enumerate(seconds):
            path = tmp_path / f"{index}.wav"
            rng = np.random.default_rng(index)
            samples = round(duration_s * RATE)
            soundfile.write(path, 0.1 * rng.standard_normal(samples), RATE, subtype="FLOAT")
            clips.append(Clip(id=f"clip{index}", path=path, duration_s=samples / RATE))
            targets.append(np.arange(index % 4 + 1, dtype=np.int64) + 10 * index)
        return clips, targets

    return make


def dataset(clips, targets, batches, **options) -> ClipBatches:
    settings_ = {"seed": 1, "epoch": 2, "context": "cut", **options}
    return ClipBatches(clips, targets, LogMel(80), batches=batches, **settings_)


def equal(left: Batch, right: Batch) -> bool:
    tensors = ("inputs", "input_lengths", "targets", "target_lengths")
    return (
        all(torch.equal(getattr(left, name), getattr(right, name)) for name in tensors)
        and all(getattr(left, name).dtype == getattr(right, name).dtype for name in tensors)
        and left.clips == right.clips
        and left.findings == right.findings
        and left.context == right.context
        and left.digests == right.digests
    )


# --- the plan ------------------------------------------------------------------------------------


@given(
    durations_s=durations,
    max_seconds=st.floats(0.5, 100.0),
    max_clips=st.integers(1, 20),
    epoch=st.integers(0, 5),
    shuffle=st.booleans(),
    jitter_s=st.floats(0.0, 3.0),
)
@settings(max_examples=150, deadline=None)
def test_plan_holds_each_clip_once_within_both_limits(durations_s, max_seconds, max_clips, epoch, shuffle, jitter_s):
    limits = {"max_seconds": max_seconds, "max_clips": max_clips, "shuffle": shuffle, "jitter_s": jitter_s}
    batches = plan_batches(durations_s, seed=7, epoch=epoch, **limits)
    assert sorted(index for batch in batches for index in batch) == list(range(len(durations_s)))
    for batch in batches:
        assert 1 <= len(batch) <= max_clips
        padded_s = len(batch) * max(durations_s[index] for index in batch)
        assert padded_s <= max_seconds or len(batch) == 1
    assert plan_batches(durations_s, seed=7, epoch=epoch, **limits) == batches


def mixture(count: int = 600) -> list[float]:
    return np.random.default_rng(5).uniform(0.3, 15.0, count).tolist()


def test_little_is_padding_and_batches_are_full():
    durations_s = mixture()
    for epoch in range(5):
        batches = plan_batches(durations_s, max_seconds=60, max_clips=32, seed=0, epoch=epoch)
        share = padding_share(durations_s, batches)
        assert 0 < share < 0.10
        fewest = sum(durations_s) / 60
        assert len(batches) < 1.35 * fewest
    digits_s = np.random.default_rng(6).uniform(0.25, 0.7, 1500).tolist()
    assert padding_share(digits_s, plan_batches(digits_s, max_seconds=60, max_clips=32, seed=0, epoch=0)) < 0.15


def test_epochs_and_seeds_differ_in_order_and_in_company():
    durations_s = mixture()

    def plan(seed: int, epoch: int) -> list[tuple[int, ...]]:
        return plan_batches(durations_s, max_seconds=60, max_clips=32, seed=seed, epoch=epoch)

    first = plan(0, 0)
    for other in (plan(0, 1), plan(1, 0)):
        assert [min(batch) for batch in other] != [min(batch) for batch in first]
        assert len({frozenset(batch) for batch in first} & {frozenset(batch) for batch in other}) < len(first) / 4
    lengths_s = [durations_s[batch[0]] for batch in first]
    assert lengths_s != sorted(lengths_s)
    assert lengths_s != sorted(lengths_s, reverse=True)


def test_plan_without_shuffle_or_jitter_is_sorted_longest_first():
    durations_s = mixture(100)
    batches = plan_batches(durations_s, max_seconds=60, max_clips=8, seed=0, epoch=0, shuffle=False, jitter_s=0.0)
    order = [durations_s[index] for batch in batches for index in batch]
    assert order == sorted(durations_s, reverse=True)


def test_a_clip_above_the_limit_is_alone():
    batches = plan_batches([1.0, 100.0, 2.0], max_seconds=10, max_clips=8, seed=0, epoch=0)
    assert (1,) in batches
    assert len(batches) == 2


@pytest.mark.parametrize(
    ("durations_s", "wrong"),
    [
        ([1.0, float("nan")], {}),
        ([-1.0], {}),
        ([1.0], {"max_seconds": 0}),
        ([1.0], {"max_clips": 0}),
        ([1.0], {"jitter_s": -1}),
    ],
)
def test_impossible_plans_are_refused(durations_s, wrong):
    with pytest.raises(ValueError, match="must be"):
        plan_batches(durations_s, **{"max_seconds": 10, "max_clips": 2, "seed": 0, "epoch": 0, **wrong})


def test_padding_share_by_hand():
    assert padding_share([1.0, 3.0, 2.0], [(0, 1), (2,)]) == pytest.approx(1 - 6 / 8)
    assert padding_share([], []) == 0.0


# --- one batch -----------------------------------------------------------------------------------


def test_batch_holds_features_and_targets_of_its_clips(make_clips):
    clips, targets = make_clips([0.5, 1.0, 0.75])
    batch = dataset(clips, targets, [(2, 0), (1,)])[0]
    assert [clip.id for clip in batch.clips] == ["clip2", "clip0"]
    assert batch.input_lengths.tolist() == [75, 50]
    assert batch.targets.tolist() == [[20, 21, 22], [0, -100, -100]]
    assert batch.target_lengths.tolist() == [3, 1]
    wave, _ = soundfile.read(clips[0].path, dtype="float32")
    torch.testing.assert_close(batch.inputs[1, :54], LogMel(80)([wave])[0][0, :54], atol=1e-5, rtol=0)
    assert batch.seconds == pytest.approx(1.25)
    assert batch.padded_seconds == pytest.approx(2 * batch.inputs.shape[1] / 100)
    assert batch.padding_share == pytest.approx(1 - 1.25 / batch.padded_seconds)
    assert batch.context == "cut"


def test_span_of_a_file_is_read_not_the_file(make_clips):
    (whole,), targets = make_clips([2.0])
    span = Clip(id="span", path=whole.path, start_s=0.5, duration_s=0.25)
    batch = dataset([span], targets, [(0,)])[0]
    wave, _ = soundfile.read(whole.path, dtype="float32", start=8000, frames=4000)
    assert batch.input_lengths.tolist() == [25]
    torch.testing.assert_close(batch.inputs, LogMel(80)([wave])[0], atol=1e-5, rtol=0)


def test_unusable_clips_are_left_out_and_found(make_clips, tmp_path):
    clips, _ = make_clips([0.5, 0.6, 31.0])
    absent = Clip(id="absent", path=tmp_path / "absent.wav", duration_s=1.0)
    (tmp_path / "text.wav").write_text("this is not audio")
    text = Clip(id="text", path=tmp_path / "text.wav", duration_s=1.0)
    soundfile.write(tmp_path / "nan.wav", np.full(8000, np.nan), RATE, subtype="FLOAT")
    hollow = Clip(id="hollow", path=tmp_path / "nan.wav", duration_s=0.5)
    soundfile.write(tmp_path / "huge.wav", np.full(8000, 1e30), RATE, subtype="FLOAT")
    huge = Clip(id="huge", path=tmp_path / "huge.wav", duration_s=0.5)
    ids = [np.array([index], dtype=np.int64) for index in range(7)]
    given = [absent, clips[0], text, hollow, clips[2], clips[1], huge]
    data = dataset(given, ids, [(0, 1, 2, 3, 4, 5, 6), (0, 2)])

    batch = data[0]
    assert [clip.id for clip in batch.clips] == ["clip0", "clip1"]
    assert batch.targets.tolist() == [[1], [5]]
    checks = {finding.clip_ids[0]: finding.check for finding in batch.findings}
    assert checks.keys() == {"absent", "text", "hollow", "clip2", "huge"}
    assert checks["huge"] == "audio.amplitude"
    assert checks["absent"] == "audio.missing"
    assert checks["text"] == "audio.not_audio"
    assert checks["hollow"] == "audio.non_finite"
    assert checks["clip2"] == "audio.too_long"
    assert all(finding.severity == "error" and finding.path for finding in batch.findings)

    empty = data[1]
    assert empty.clips == ()
    assert empty.inputs.shape == (0, 0, 80)
    assert empty.targets.shape == (0, 0)
    assert empty.padding_share == empty.seconds == 0.0
    assert len(empty.findings) == 2
    assert len(empty.split(2)) == 1


def test_augmentation_belongs_to_clip_and_epoch_not_to_the_batch(make_clips):
    clips, targets = make_clips([0.5, 1.0, 0.75])
    options = {"waveform_augmenter": Louder(), "spec_augment": MASKS}
    together = dataset(clips, targets, [(0, 1, 2)], **options)[0]
    alone = dataset(clips, targets, [(2,)], **options)[0]
    frames = int(alone.input_lengths)
    assert int(together.input_lengths[2]) == frames
    torch.testing.assert_close(together.inputs[2, :frames], alone.inputs[0, :frames], atol=1e-5, rtol=0)
    plain = dataset(clips, targets, [(2,)])[0]
    assert not torch.equal(alone.inputs[:, :50], plain.inputs[:, :50])
    later = dataset(clips, targets, [(2,)], epoch=3, **options)[0]
    assert not torch.equal(alone.inputs[:, :50], later.inputs[:, :50])


def test_a_clip_that_augmentation_would_make_too_long_stays_as_it_is(make_clips):
    """Cut at the window, it would lose the audio of its last words."""
    clips, targets = make_clips([20.0, 10.0])
    batch = dataset(clips, targets, [(0, 1)], waveform_augmenter=Grow())[0]
    assert batch.input_lengths.tolist() == [2000, 2000]
    assert batch.findings == ()


def test_full_context_takes_about_its_share_and_follows_the_clip(make_clips):
    clips, targets = make_clips([0.02] * 40)
    batches = [(index,) for index in range(40)]
    assert not any(batch.context == "full" for batch in batch_loader(dataset(clips, targets, batches)))
    some = dataset(clips, targets, batches, full_context_share=0.3)
    chosen = {batch.clips[0].id for batch in batch_loader(some) if batch.context == "full"}
    assert 4 <= len(chosen) <= 22
    assert chosen == {clip.id for clip in clips if generator(1, 2, "full_context", clip.id).random() < 0.3}
    full = dataset(clips, targets, batches, full_context_share=1.0)[5]
    assert full.context == "full"
    assert full.inputs.shape == (1, 3000, 80)


def test_split_covers_the_batch_and_moves_no_value(make_clips):
    clips, targets = make_clips([0.2] * 5)
    batch = dataset(clips, targets, [tuple(range(5))])[0]
    batch = Batch(
        inputs=batch.inputs,
        input_lengths=batch.input_lengths,
        targets=batch.targets,
        target_lengths=batch.target_lengths,
        clips=batch.clips,
        findings=(Finding(check="x", severity="note", message="y"),),
        context="cut",
    )
    for parts, sizes in ((1, [5]), (2, [3, 2]), (9, [1] * 5)):
        found = batch.split(parts)
        assert [len(part.clips) for part in found] == sizes
        assert torch.equal(torch.cat([part.inputs for part in found]), batch.inputs)
        assert torch.equal(torch.cat([part.targets for part in found]), batch.targets)
        assert sum((part.clips for part in found), ()) == batch.clips
        assert sum((part.findings for part in found), ()) == batch.findings
    with pytest.raises(ValueError, match="1 part or more"):
        batch.split(0)


def test_what_seeds_draws_is_what_is_heard(make_clips):
    clips, targets = make_clips([0.5, 0.2, 0.9, 0.5])
    copy = clips[0].path.with_name("other.flac")
    soundfile.write(copy, soundfile.read(clips[3].path)[0], RATE, subtype="PCM_24")
    soundfile.write(clips[3].path, soundfile.read(copy)[0], RATE, subtype="FLOAT")
    again = [*clips, Clip(id="x", path=copy, duration_s=0.5, text="y"), replace(clips[0], start_s=0.1, duration_s=0.4)]
    made = dataset(again, [targets[0]] * 6, [(0, 1, 2, 3), (4, 2), (0,), (5,)], full_context_share=0.0)
    first, second, alone, later = (made[index] for index in range(4))
    assert len(set(first.draw_keys)) == 4
    assert second.draw_keys == (first.draw_keys[3], first.draw_keys[2])
    assert alone.draw_keys == first.draw_keys[:1] != later.draw_keys
    full = dataset(again, [targets[0]] * 6, [(2, 0)], context="full", seed=8, epoch=0)[0]
    assert full.draw_keys == (first.draw_keys[2], first.draw_keys[0])
    assert [part.draw_keys for part in first.split(2)] == [first.draw_keys[:2], first.draw_keys[2:]]
    assert first.rows([3, 1]).draw_keys == (first.draw_keys[3], first.draw_keys[1])
    louder = dataset(clips, targets, [(0,)], waveform_augmenter=Louder())[0]
    assert louder.draw_keys != alone.draw_keys


def test_a_batch_of_features_seeds_draws_by_its_own_frames(make_clips):
    clips, targets = make_clips([0.5, 0.9])
    both, alone = (replace(made, digests=()) for made in (dataset(clips, targets, [(0, 1), (0,)])[at] for at in (0, 1)))
    assert both.draw_keys[0] == alone.draw_keys[0] != both.draw_keys[1]


def test_batch_moves_to_a_device(make_clips):
    clips, targets = make_clips([0.2])
    moved = dataset(clips, targets, [(0,)])[0].to("meta")
    assert {moved.inputs.device.type, moved.targets.device.type, moved.input_lengths.device.type} == {"meta"}
    assert moved.clips == tuple(clips)


def test_targets_of_any_length_are_padded():
    padded, sizes = pad_targets([np.array([4, 5]), np.zeros(0, dtype=np.int64)])
    assert padded.tolist() == [[4, 5], [-100, -100]]
    assert sizes.tolist() == [2, 0]


def test_wrong_arguments_are_refused(make_clips):
    clips, targets = make_clips([0.2])
    with pytest.raises(ValueError, match="1 clips and 0 targets"):
        dataset(clips, [], [(0,)])
    with pytest.raises(ValueError, match="full_context_share"):
        dataset(clips, targets, [(0,)], full_context_share=2.0)
    for wrong in ({"places": [1]}, {"places": [0, -1]}, {"timeout_s": 0}):
        with pytest.raises(ValueError, match="timeout_s above 0"):
            batch_loader(dataset(clips, targets, [(0,)]), **wrong)


# --- many batches --------------------------------------------------------------------------------


def test_workers_and_restarts_change_nothing(make_clips):
    seconds = np.random.default_rng(2).uniform(0.1, 1.5, 24).tolist()
    clips, targets = make_clips(seconds)
    clips[3] = Clip(id="gone", path=clips[3].path.with_name("gone.wav"), duration_s=0.3)
    batches = plan_batches(seconds, max_seconds=4.0, max_clips=5, seed=1, epoch=2)
    options = {"waveform_augmenter": Louder(), "spec_augment": MASKS, "full_context_share": 0.5}
    data = dataset(clips, targets, batches, **options)
    torch.ones(400, 400) @ torch.ones(400, 400)  # a used thread pool must not hang in a forked worker
    torch.manual_seed(11)
    torch_before, threads = torch.get_rng_state(), torch.get_num_threads()
    numpy_before = np.random.get_state()[1].tolist()  # noqa: NPY002  (that it is left alone is the point)

    inline = list(batch_loader(data))
    assert len(inline) == len(batches) > 5
    assert any(batch.findings for batch in inline)
    assert any(batch.context == "full" for batch in inline)
    for workers in (0, 1, 2):
        with Crew(workers) as crew:  # one crew after another epoch, as a run has it
            count = len(batches)
            for places in (range(count), range(3, count), range(1, count, 2), [count - 1]):
                rest = list(batch_loader(data, crew, places=places, timeout_s=60))
                assert len(rest) == len(places)
                assert all(equal(batch, inline[place]) for place, batch in zip(places, rest, strict=True))
            assert list(batch_loader(data, crew, places=[])) == []

    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002
    assert torch.get_num_threads() == threads


@pytest.mark.realdata
def test_real_recordings_through_the_whole_room(fsdd):
    paths = sorted(fsdd.rglob("*.wav"))[::60]
    clips = [
        Clip(id=path.stem, path=path, duration_s=soundfile.info(path).duration, speaker=path.stem.split("_")[1])
        for path in paths
    ]
    targets = [np.array([int(clip.id[0])], dtype=np.int64) for clip in clips]
    durations_s = [clip.duration_s for clip in clips]
    batches = plan_batches(durations_s, max_seconds=10, max_clips=8, seed=1, epoch=0)
    with Crew(1) as crew:
        made = list(batch_loader(dataset(clips, targets, batches, spec_augment=MASKS), crew))
    assert sum(len(batch.clips) for batch in made) == len(clips) > 20
    assert not any(batch.findings for batch in made)
    for batch in made:
        heard_s = sum(clip.duration_s for clip in batch.clips)
        assert batch.seconds == pytest.approx(heard_s, abs=0.011 * len(batch.clips))
        assert bool(batch.inputs.isfinite().all())
        assert batch.inputs.std() > 0.05
