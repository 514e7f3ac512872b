"""Drum rudiments: what is written, what is played and heard, and what a corpus of them holds."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sonotune.audio import io
from sonotune.data import rudiments, synth
from sonotune.data.audio_checks import check_audio
from sonotune.data.drums import KITS, ROOMS, Hit, play, record
from sonotune.data.manifest import read_manifest
from sonotune.data.rudiments import LABELS, PlannedRudiment, hits, plan_rudiments, render, sticking, strokes
from sonotune.errors import ConfigError
from sonotune.runs import generator

RATE_HZ = 16000


# --- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "written"),
    [
        ("single_paradiddle", "R L R R L R L L"),
        ("double_paradiddle", "R L R L R R L R L R L L"),
        ("triple_paradiddle", "R L R L R L R R L R L R L R L L"),
        ("single_paradiddle_diddle", "R L R R L L R L R R L L"),
        ("triple_stroke_roll", "R R R L L L R R R L L L"),
        ("five_stroke_roll", "R R L L R L L R R L"),
        ("six_stroke_roll", "R L L R R L R L L R R L"),
        ("seven_stroke_roll", "R R L L R R L R R L L R R L"),
        ("single_stroke_seven", "R L R L R L R L R L R L R L"),
        ("flam", "lR rL"),
        ("flam_accent", "lR L R rL R L"),
        ("flam_tap", "lR R rL L"),
        ("flamacue", "lR L R L lR rL R L R rL"),
        ("single_flammed_mill", "lR R L R rL L R L"),
        ("flam_paradiddle_diddle", "lR L R R L L rL R L L R R"),
        ("pataflafla", "lR L R rL lR L R rL"),
        ("swiss_army_triplet", "lR R L lR R L"),
        ("inverted_flam_tap", "lR L rL R"),
        ("flam_drag", "lR L L R rL R R L"),
        ("drag", "llR rrL"),
        ("double_drag_tap", "llR llR L rrL rrL R"),
        ("lesson_25", "llR L R llR L R"),
        ("single_dragadiddle", "R R L R R L L R L L"),
        ("drag_paradiddle_1", "R llR L R R L rrL R L L"),
        ("drag_paradiddle_2", "R llR llR L R R L rrL rrL R L L"),
        ("triple_ratamacue", "llR llR llR L R L rrL rrL rrL R L R"),
    ],
)
def test_stickings_are_those_of_the_pas_sheet(label: str, written: str) -> None:
    assert sticking(label) == written


def test_there_are_forty_rudiments_and_no_two_are_alike() -> None:
    assert len(LABELS) == 40
    assert all(label.replace("_", "").isalnum() and label == label.lower() for label in LABELS)
    heard = {
        tuple((stroke.at, stroke.accent, stroke.ornament, stroke.rebound) for stroke in strokes(label, 2)[0])
        for label in LABELS
    }
    assert len(heard) == 40  # without the hands: from time, loudness and ornaments alone


def test_rolls_have_as_many_strokes_as_their_names_say_and_end_with_an_accent() -> None:
    numbers = ("five", "six", "seven", "nine", "ten", "eleven", "thirteen", "fifteen", "seventeen")
    for name, number in zip(numbers, (5, 6, 7, 9, 10, 11, 13, 15, 17), strict=True):
        written, beats = strokes(f"{name}_stroke_roll")
        assert len(written) == number
        assert written[-1].accent
        assert beats.denominator == 1  # whole beats


def test_strokes_are_in_time_and_nothing_overlaps() -> None:
    for label in LABELS:
        written, beats = strokes(label, 2)
        assert all(before.at + before.step == after.at for before, after in pairwise(written))
        assert written[-1].at + written[-1].step == beats == 2 * strokes(label)[1]


# --- what is played ------------------------------------------------------------------------------


def test_a_flam_has_a_soft_stroke_of_the_other_hand_just_before() -> None:
    contacts = hits(PlannedRudiment(id="a", label="flam", passes=4, tempo_bpm=120, lead_s=0.2), seed=0)
    assert [hit.hand for hit in contacts] == list("LRRLLRRL")
    for number, (grace, main) in enumerate(zip(contacts[::2], contacts[1::2], strict=True)):
        assert main.time_s == pytest.approx(0.2 + number * 0.25)
        assert 0.020 <= main.time_s - grace.time_s <= 0.035
        assert grace.velocity < 0.5 * main.velocity


def test_a_drag_has_two() -> None:
    contacts = hits(PlannedRudiment(id="a", label="drag", passes=2), seed=0)
    assert [hit.hand for hit in contacts] == list("LLRRRL")
    first, second, main = contacts[:3]
    assert 0.03 < second.time_s - first.time_s < 0.05
    assert 0.03 < main.time_s - second.time_s < 0.05
    assert max(first.velocity, second.velocity) < 0.5 * main.velocity


def test_a_buzz_bounces_softer_until_the_next_hand() -> None:
    contacts = hits(PlannedRudiment(id="a", label="multiple_bounce_roll", passes=1, tempo_bpm=60), seed=0)
    first = [hit for hit in contacts if hit.time_s < 0.2 + 0.25]
    assert len(first) > 6
    assert {hit.hand for hit in first} == {"R"}
    assert all(after.velocity < before.velocity for before, after in pairwise(first))
    assert contacts[len(first)].hand == "L"


def test_accents_are_loud_and_the_left_handed_begin_with_the_left() -> None:
    plan = PlannedRudiment(id="a", label="single_paradiddle", passes=2)
    right, left = hits(plan, seed=0), hits(dataclasses.replace(plan, left_handed=True), seed=0)
    velocities = [hit.velocity for hit in right]
    assert min(velocities[0], velocities[4]) > 1.4 * max(velocities[1:4] + velocities[5:])
    assert [hit.hand for hit in left] == list("LRLLRLRR")
    assert [hit.time_s for hit in left] == [hit.time_s for hit in right]


def test_timing_differs_between_clips_by_as_much_as_planned() -> None:
    def played_s(name: str) -> np.ndarray:
        plan = PlannedRudiment(id=name, label="single_stroke_roll", passes=4, tempo_bpm=60, jitter_s=0.005)
        return np.array([hit.time_s for hit in hits(plan, seed=0)])

    offsets_s = played_s("a") - 0.2 - np.arange(32) / 8
    assert 0.0025 < offsets_s.std() < 0.008
    assert np.abs(offsets_s).max() <= 0.0101
    assert not np.allclose(played_s("a"), played_s("b"))


# --- what is heard -------------------------------------------------------------------------------


def onsets_s(waveform_S: np.ndarray) -> np.ndarray:
    """Where the energy of 4 ms is far above that of the 4 ms before, at its steepest."""
    sharp_S = np.diff(waveform_S.astype(np.float64), n=2)  # the stick's click is high, the head's ringing low
    sums = np.concatenate([[0.0], np.square(sharp_S).cumsum()])
    size = RATE_HZ // 250
    after = sums[2 * size :] - sums[size:-size]
    before = sums[size:-size] - sums[: -2 * size]
    floor = 1e-5 * after.max()
    rise_S = np.log10((after + floor) / (before + floor))
    found: list[int] = []
    for position in np.flatnonzero(rise_S > 0.5):
        if found and position - found[-1] < 0.015 * RATE_HZ:
            if rise_S[position] > rise_S[found[-1]]:
                found[-1] = int(position)
        else:
            found.append(int(position))
    return (np.array(found) + size) / RATE_HZ


@pytest.mark.parametrize("kit", ["practice_pad", "dry_snare", "floor_tom", "marching_snare", "bongo"])
@pytest.mark.parametrize("label", ["five_stroke_roll", "flam_accent", "drag_paradiddle_1", "single_ratamacue"])
def test_strokes_are_heard_when_they_are_planned_and_no_others(label: str, kit: str) -> None:
    clip = PlannedRudiment(id="a", label=label, kit=kit, tempo_bpm=80, jitter_s=0.004, lead_s=0.31)
    planned_s = np.array([hit.time_s for hit in hits(clip, seed=1)])
    heard_s = onsets_s(render(clip, seed=1))
    assert len(heard_s) == len(planned_s)
    assert np.abs(heard_s - planned_s).max() < 0.003


def test_every_kit_sounds_like_itself() -> None:
    def shape(kit: str) -> np.ndarray:
        """Level in third octaves, over the first 20 ms and after them, in dB."""
        blow = [Hit(time_s=0.0, velocity=1.0, hand="R")]
        sound_S = play(blow, KITS[kit], RATE_HZ // 4, RATE_HZ, generator(0, kit))
        edges = 100 * 2 ** (np.arange(19) / 3)
        levels = []
        for part_S in (sound_S[:320], sound_S[320:]):
            power = np.abs(np.fft.rfft(part_S, RATE_HZ)) ** 2
            levels += [power[round(low) : round(high)].sum() for low, high in pairwise(edges)]
        return 10 * np.log10(np.array(levels) / sum(levels) + 1e-5)

    shapes = {kit: shape(kit) for kit in KITS}
    assert len(shapes) >= 12
    for kit, own in shapes.items():
        assert min(np.abs(own - other).mean() for name, other in shapes.items() if name != kit) > 1.5, kit


def test_hands_and_blows_differ_in_more_than_level() -> None:
    def brightness_hz(**change: object) -> float:
        blow = dataclasses.replace(Hit(time_s=0.0, velocity=1.0, hand="R"), **change)  # type: ignore[arg-type]
        power = np.abs(np.fft.rfft(play([blow], KITS["timbale"], 8000, RATE_HZ, generator(0)))) ** 2
        return float((power * np.fft.rfftfreq(8000, 1 / RATE_HZ)).sum() / power.sum())

    assert brightness_hz(hand="L") > 1.03 * brightness_hz()
    assert brightness_hz(velocity=0.3) < 0.97 * brightness_hz()


@pytest.mark.parametrize("room", list(ROOMS))
def test_rooms_keep_time_and_ring(room: str) -> None:
    dry_S = np.zeros(RATE_HZ)
    dry_S[4000:4080] = generator(1).standard_normal(80)
    wet_S = record(dry_S, room, RATE_HZ, generator(0))
    assert wet_S.shape == dry_S.shape
    assert abs(int(np.abs(wet_S).argmax()) - int(np.abs(dry_S).argmax())) < 40
    assert np.square(wet_S[4080:5600]).mean() > 1.5 * np.square(wet_S[:3900]).mean()
    assert np.array_equal(wet_S, record(dry_S, room, RATE_HZ, generator(0)))
    assert not np.array_equal(wet_S, record(dry_S, room, RATE_HZ, generator(1)))


# --- corpora -------------------------------------------------------------------------------------


def test_a_plan_is_balanced_and_no_kit_is_in_two_splits() -> None:
    plan = plan_rudiments(4000, 0)
    kits: dict[str, set[str]] = {}
    for split, size in (("train", 100), ("eval", 10), ("test", 10)):
        members = [clip for clip in plan if clip.split == split]
        assert Counter(clip.label for clip in members) == dict.fromkeys(LABELS, size)
        assert {clip.label for clip in members[:40]} == set(LABELS)
        assert {clip.room for clip in members} == set(ROOMS)
        kits[split] = {clip.kit for clip in members}
        of_label = Counter(clip.kit for clip in members if clip.label == "flam")
        assert of_label.keys() == kits[split]
    assert sum(map(len, kits.values())) == len(set.union(*kits.values())) == len(KITS)
    assert min(map(len, kits.values())) >= 3
    assert all(60 <= clip.tempo_bpm <= 130 and clip.passes >= 2 for clip in plan)
    assert np.std([clip.tempo_bpm for clip in plan]) > 10


def test_a_plan_is_a_function_of_seed_and_index() -> None:
    assert plan_rudiments(100, 7)[:50] == plan_rudiments(50, 7)[:50]
    assert plan_rudiments(50, 7) != plan_rudiments(50, 8)
    ids = [clip.id for clip in plan_rudiments(100, 7)]
    assert len(set(ids)) == len(ids) == 260


def test_a_clip_does_not_depend_on_what_was_rendered_before() -> None:
    first, second = plan_rudiments(2, 3)[:2]
    alone_S = render(second, seed=3)
    render(first, seed=3)
    assert np.array_equal(alone_S, render(second, seed=3))
    assert not np.array_equal(alone_S, render(second, seed=4))


def test_output_does_not_depend_on_the_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rudiments, "plan_rudiments", lambda clips, seed: plan_rudiments(clips, seed)[:20])
    monkeypatch.setattr(rudiments, "SHARD_CLIPS", 3)
    for workers in (1, 2):
        rudiments.synthesize_rudiments(tmp_path / str(workers), clips=3, seed=5, workers=workers)
    one, two = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("1", "2")
    )
    assert len(one) == 20 + 2  # 3 clips of train and 17 of eval, and their manifests
    assert one == two


def test_a_corpus_says_what_it_wrote(tmp_path: Path) -> None:
    body = synth.synthesize_named("rudiments_tiny", tmp_path, clips=40, seed=1, workers=1)
    assert json.loads(json.dumps(body)) == body
    assert {name: part["clips"] for name, part in body["manifests"].items()} == {"train": 40, "eval": 80, "test": 80}
    kits: list[set[str | None]] = []
    for part in body["manifests"].values():
        clips = read_manifest(Path(part["path"]), require=("label", "domain", "speaker"))
        assert {clip.label for clip in clips} == {(label,) for label in LABELS}
        assert check_audio(clips)[1] == []
        for clip in clips:
            waveform_S = io.read(clip.path)
            assert len(waveform_S) == round(clip.duration_s * RATE_HZ)
            assert 0.09 < np.abs(waveform_S).max() < 1
            assert 1.5 <= clip.duration_s <= 4
        assert len({clip.speaker for clip in clips}) == part["speakers"]
        kits.append({clip.speaker for clip in clips})
    assert not kits[0] & kits[1] | kits[0] & kits[2] | kits[1] & kits[2]


@pytest.mark.parametrize(("audio_format", "suffix"), [("flac", ".flac"), ("opus", ".ogg")])
def test_other_formats_are_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, audio_format: str, suffix: str
) -> None:
    monkeypatch.setattr(rudiments, "plan_rudiments", lambda clips, seed: plan_rudiments(clips, seed)[:clips])
    made = rudiments.synthesize_rudiments(tmp_path, clips=3, seed=0, workers=1, format=audio_format)  # type: ignore[arg-type]
    for clip in made["train"]:
        assert clip.path.suffix == suffix
        assert len(io.read(clip.path)) == round(clip.duration_s * RATE_HZ)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"clips": 0}, "0 clips"), ({"workers": 0}, "0 workers"), ({"format": "aiff"}, "'aiff'.*wav, flac, opus")],
)
def test_a_corpus_that_cannot_be_made_is_refused(tmp_path: Path, change: dict[str, int], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        rudiments.synthesize_rudiments(tmp_path / "new", **{"clips": 40, "seed": 0, **change})  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_unknown_names_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rudiments, rudiments_tiny"):
        synth.synthesize_named("rudiment", tmp_path)
    with pytest.raises(ConfigError, match=r"'moeller'.*flamacue"):
        strokes("moeller")
    with pytest.raises(ConfigError, match=r"'cowbell'.*maple_snare"):
        render(PlannedRudiment(id="a", label="flam", kit="cowbell"))
