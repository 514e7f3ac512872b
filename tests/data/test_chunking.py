"""Joined recordings hold the speech of their parts, in order, of one speaker."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sonotune.audio import io
from sonotune.data.chunking import concatenate_plan, cut_at_pauses, cut_at_words, join
from sonotune.data.importers import load
from sonotune.data.manifest import read_manifest
from sonotune.data.windows import WINDOW_SLACK_S, fit_for_training, training_limit_s
from sonotune.errors import ManifestError
from sonotune.types import Clip, Word

RATE_HZ = 16_000


def make_clips(folder: Path, num_speakers: int = 2, clips_each: int = 12) -> list[Clip]:
    """Clips of constant value, each with its own, so that a sample says which clip it came from."""
    clips = []
    for speaker in range(num_speakers):
        for index in range(clips_each):
            number = speaker * clips_each + index
            duration_s = 0.4 + 0.05 * (index % 5)
            path = folder / f"{speaker}-{index}.wav"
            value = 0.02 * (number + 1)
            soundfile.write(path, np.full(round(duration_s * RATE_HZ), value, np.float32), RATE_HZ, subtype="FLOAT")
            clips.append(
                Clip(
                    id=f"{speaker}-{index}",
                    path=path,
                    duration_s=duration_s,
                    text=f"word{number}",
                    words=(Word(text=f"word{number}", start_s=0.1, end_s=0.3),),
                    speaker=f"s{speaker}",
                    language="en",
                )
            )
    return clips


def seconds(parts: tuple[Clip, ...], gap_s: float) -> float:
    return sum(part.duration_s for part in parts) + gap_s * (len(parts) - 1)


def test_plan_keeps_speakers_apart_limits_and_every_clip_at_most_once(tmp_path: Path) -> None:
    clips = make_clips(tmp_path, 3, 40)
    plan = concatenate_plan(clips, min_duration_s=1.0, max_duration_s=4.0, gap_s=0.1, seed=1)
    used = [part.id for parts in plan for part in parts]
    assert len(used) == len(set(used))
    assert len(used) > 0.9 * len(clips)
    assert all(len({part.speaker for part in parts}) == 1 for parts in plan)
    lengths = [seconds(parts, 0.1) for parts in plan]
    assert all(1.0 - 1e-9 <= length <= 4.0 + 1e-9 for length in lengths)
    assert min(lengths) < 2.0
    assert max(lengths) > 3.0


def test_plan_is_a_function_of_the_seed_not_of_the_order(tmp_path: Path) -> None:
    clips = make_clips(tmp_path)
    plan = concatenate_plan(clips, max_duration_s=3.0, seed=1)
    assert concatenate_plan(clips[::-1], max_duration_s=3.0, seed=1) == plan
    assert concatenate_plan(clips, max_duration_s=3.0, seed=2) != plan


def test_clips_without_a_speaker_stand_alone(tmp_path: Path) -> None:
    clips = [dataclasses.replace(clip, speaker=None) for clip in make_clips(tmp_path)]
    plan = concatenate_plan(clips, min_duration_s=0.3)
    assert all(len(parts) == 1 for parts in plan)
    assert len(plan) == len(clips)


def test_refusals(tmp_path: Path) -> None:
    clips = make_clips(tmp_path, 1, 2)
    for limits in ({"min_duration_s": 0.0}, {"min_duration_s": 5.0, "max_duration_s": 2.0}, {"gap_s": -1.0}):
        with pytest.raises(ManifestError, match="0 < min <= max"):
            concatenate_plan(clips, **limits)
    with pytest.raises(ManifestError, match="no recording"):
        concatenate_plan(clips, min_duration_s=10.0)


def test_joined_recordings(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    clips = make_clips(source)
    by_id = {clip.id: clip for clip in clips}
    joined = join(clips, tmp_path / "out", min_duration_s=1.0, max_duration_s=3.0, gap_s=0.1, seed=4)
    assert read_manifest(tmp_path / "out" / "manifest.jsonl") == joined
    assert any(len(clip.words) > 1 for clip in joined)
    for clip in joined:
        parts = [by_id[name] for name in clip.extra["sources"].split()]
        assert clip.text == " ".join(part.text or "" for part in parts)
        assert (clip.language, clip.speaker) == ("en", parts[0].speaker)
        waveform_S, rate_hz = soundfile.read(clip.path)
        assert rate_hz == clip.sample_rate_hz == RATE_HZ
        assert len(waveform_S) == round(clip.duration_s * RATE_HZ)
        assert clip.duration_s == pytest.approx(seconds(tuple(parts), 0.1), abs=1e-3)
        for part, word in zip(parts, clip.words, strict=True):
            value = 0.02 * (int((part.text or "").removeprefix("word")) + 1)
            inside_S = waveform_S[round(word.start_s * RATE_HZ) : round(word.end_s * RATE_HZ)]
            assert word.text == part.text
            np.testing.assert_allclose(inside_S, value, atol=1e-3)
        gaps = np.flatnonzero(np.abs(waveform_S) < 1e-4)
        assert len(gaps) == (len(parts) - 1) * round(0.1 * RATE_HZ)


def test_joining_twice_gives_the_same_bytes_and_a_limit_a_part_of_them(tmp_path: Path) -> None:
    clips = make_clips(tmp_path)
    first = join(clips, tmp_path / "one", max_duration_s=3.0, seed=7)
    second = join(clips, tmp_path / "two", max_duration_s=3.0, seed=7)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == len(first) + 1
    assert [(tmp_path / "one" / n).read_bytes() for n in names] == [(tmp_path / "two" / n).read_bytes() for n in names]
    assert [clip.text for clip in first] == [clip.text for clip in second]
    few = join(clips, tmp_path / "few", max_duration_s=3.0, limit=2, seed=7)
    assert len(few) == 2
    assert {clip.text for clip in few} < {clip.text for clip in first}


def test_only_the_span_of_a_clip_is_joined(tmp_path: Path) -> None:
    half_S = np.full(RATE_HZ, 0.5, np.float32)
    soundfile.write(tmp_path / "a.wav", np.concatenate([half_S, -half_S]), RATE_HZ, subtype="FLOAT")
    clips = [Clip(id="a", path=tmp_path / "a.wav", start_s=1.0, duration_s=1.0, speaker="s")]
    (clip,) = join(clips, tmp_path / "out")
    waveform_S, _ = soundfile.read(clip.path)
    assert len(waveform_S) == RATE_HZ
    assert waveform_S.max() < -0.4


@pytest.mark.realdata
def test_joined_digits(fsdd: Path, tmp_path: Path) -> None:
    clips = load(fsdd, format="fsdd")[::20]
    joined = join(clips, tmp_path, limit=5, seed=0)
    assert len(joined) == 5
    assert all(1.0 <= clip.duration_s <= 15.1 for clip in joined)
    assert all(np.abs(soundfile.read(clip.path)[0]).max() > 0.01 for clip in joined)


def spoken(*parts: tuple[float, float]) -> np.ndarray:
    """(seconds, level) parts of a noise."""
    rng = np.random.default_rng(0)
    return np.concatenate(
        [level * rng.standard_normal(round(length * RATE_HZ)) for length, level in parts], dtype=np.float32
    )


def test_a_long_recording_is_cut_in_its_pauses(tmp_path: Path) -> None:
    parts = [(2.6, 0.1), (0.4, 0.0), (0.8, 0.1), (0.9, 0.0), (2.0, 0.1), (0.5, 0.0), (3.0, 0.1)]
    soundfile.write(tmp_path / "long.wav", spoken(*parts), RATE_HZ)
    clip = Clip(id="long", path=tmp_path / "long.wav", duration_s=10.2, text="left behind", language="en")
    pieces = cut_at_pauses(clip, 5.0)
    assert [piece.id for piece in pieces] == ["long#0", "long#1", "long#2"]
    assert pieces[0].duration_s == pytest.approx(4.25, abs=0.1)  # the longer of the two pauses in reach
    assert pieces[1].start_s == pieces[0].duration_s
    assert pieces[1].start_s + pieces[1].duration_s == pytest.approx(6.95, abs=0.1)
    assert sum(piece.duration_s for piece in pieces) == pytest.approx(10.2)
    assert all(piece.text is None and piece.language == "en" for piece in pieces)
    assert cut_at_pauses(clip, 11.0) == [clip]


def test_an_hour_is_cut_in_the_memory_of_minutes(tmp_path: Path) -> None:
    """Nothing as long as the recording is held, whatever its file compresses to."""
    path, rate = tmp_path / "hour.ogg", 8_000
    io.write(path, np.zeros(rate * 3_600, dtype=np.float32), rate)
    tracemalloc.start()
    pieces = cut_at_pauses(Clip(id="a", path=path, duration_s=3_600.0), 30.0, overlap_s=4.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pieces) >= 120
    assert pieces[-1].start_s + pieces[-1].duration_s == pytest.approx(3_600.0)
    assert peak < 64 * 2**20  # the samples of the hour at 16 kHz are 220 MiB


def test_speech_without_a_pause_is_cut_at_the_limit(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", spoken((7.0, 0.1)), RATE_HZ)
    whole = Clip(id="x", path=tmp_path / "long.wav", start_s=0.5, duration_s=6.0)
    pieces = cut_at_pauses(whole, 2.5)
    assert [(piece.start_s, piece.duration_s) for piece in pieces] == [(0.5, 2.5), (3.0, 2.5), (5.5, 1.0)]


def test_no_piece_is_longer_than_the_window_however_times_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """(x + w) - x may be more than w, and what is left of a whole number of windows 1e-15 s."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        window_s = float(rng.choice([4.095, 10.235, 30.0, rng.uniform(1, 30)]))
        length_s = float(rng.choice([window_s * rng.integers(1, 9), rng.uniform(0.5, 20) * window_s]))
        times_s = np.sort(rng.uniform(0, length_s, 2 * int(rng.integers(0, 8)))).tolist()
        spans = list(zip(times_s[::2], times_s[1::2], strict=True))
        monkeypatch.setattr("sonotune.data.chunking.read_blocks", lambda *_, **__: iter([np.zeros(1, np.float32)]))
        monkeypatch.setattr("sonotune.data.chunking.speech_spans", lambda _, spans=spans: spans)
        whole = Clip(id="x", path=Path("x.wav"), start_s=float(rng.uniform(0, 100)), duration_s=length_s)
        pieces = cut_at_pauses(whole, window_s)
        assert fit_for_training(pieces, window_s) == (pieces, [])
        assert sum(piece.duration_s for piece in pieces) == pytest.approx(length_s, abs=WINDOW_SLACK_S + 1e-6)
        if len(pieces) > 1:
            assert max(piece.duration_s for piece in pieces) <= window_s
            assert min(piece.duration_s for piece in pieces) > WINDOW_SLACK_S


def test_a_clip_is_within_the_window_up_to_rounding() -> None:
    clips = [Clip(id=f"{extra_s}", path=Path("x.wav"), duration_s=4.095 + extra_s) for extra_s in (0.0, 1e-15, 0.009)]
    longer = Clip(id="longer", path=Path("x.wav"), duration_s=4.2)
    kept, [finding] = fit_for_training([clips[0], longer, *clips[1:]], 4.095)
    assert kept == clips
    assert (finding.check, finding.severity, finding.clip_ids) == ("data.too_long", "warning", ("longer",))
    assert "1 of 4 training clips (4.2 s) are longer than 4.095 s" in finding.message
    assert (finding.measured, finding.limit, finding.unit) == (4.2, 4.095, "s")


def test_the_longest_training_clip_is_the_setting_or_30_s_and_never_above_the_window() -> None:
    assert training_limit_s(30.0, None) == 30.0
    assert training_limit_s(10.255, None) == 10.255
    assert training_limit_s(1200.0, None) == training_limit_s(None, None) == 30.0
    assert training_limit_s(1200.0, 60.0) == training_limit_s(None, 60.0) == 60.0
    assert training_limit_s(30.0, 60.0) == 30.0
    assert training_limit_s(30.0, 15.0) == 15.0


def timed(text: str, times_s: list[tuple[float, float]], duration_s: float) -> Clip:
    words = tuple(
        Word(text=word.lower(), start_s=start_s, end_s=end_s)
        for word, (start_s, end_s) in zip(text.split(), times_s, strict=False)
    )
    return Clip(id="x", path=Path("x.wav"), start_s=1.0, duration_s=duration_s, text=text, words=words)


def test_a_long_clip_with_timed_words_is_cut_between_them() -> None:
    whole = timed("One two, three four.", [(0.5, 1.0), (2.0, 2.4), (2.5, 4.0), (6.0, 6.5)], 8.0)
    pieces, [finding] = fit_for_training([whole], 4.5, cut_at_words)
    assert [(piece.id, piece.text) for piece in pieces] == [("x#0", "One two,"), ("x#1", "three"), ("x#2", "four.")]
    assert [piece.start_s for piece in pieces] == pytest.approx([1.0, 3.45, 6.0])
    assert sum(piece.duration_s for piece in pieces) == pytest.approx(8.0)
    assert [(word.text, round(word.start_s, 2)) for piece in pieces for word in piece.words] == [
        ("one", 0.5),
        ("two,", 2.0),
        ("three", 0.05),
        ("four.", 1.0),
    ]
    assert (finding.check, finding.severity, finding.clip_ids) == ("train.cut_at_words", "note", ("x",))


def test_the_last_piece_is_no_scrap_of_a_word() -> None:
    whole = timed("one two three", [(0.5, 1.8), (3.0, 3.2), (4.5, 4.6)], 4.7)  # the longest pause is before the last
    pieces = cut_at_words(whole, 4.5)
    assert [piece.text for piece in pieces] == ["one", "two three"]
    later = timed("one two three", [(0.5, 1.0), (2.5, 3.5), (4.5, 4.6)], 4.7)
    assert cut_at_words(later, 4.5) == []  # the one pause is so near to the end that nothing would be left of the piece


@pytest.mark.parametrize(
    ("text", "times_s"),
    [
        ("one two three", [(0.5, 1.0), (2.0, 2.4)]),  # a word has no time
        ("one two", [(3.0, 3.5), (2.0, 2.4)]),  # out of order
        ("one two", [(0.5, 4.0), (4.0, 7.0)]),  # nothing between the words
        ("one two", [(0.5, 1.0), (2.0, 9.0)]),  # beyond the clip
        ("one two", []),
    ],
)
def test_a_clip_whose_words_do_not_fit_its_text_is_left_out(text: str, times_s: list[tuple[float, float]]) -> None:
    clips, [finding] = fit_for_training([timed(text, times_s, 8.0)], 4.5, cut_at_words)
    assert clips == []
    assert finding.check == "data.too_long"


def test_pieces_overlap_only_where_nobody_pauses(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", spoken((7.0, 0.1)), RATE_HZ)
    pieces = cut_at_pauses(Clip(id="x", path=tmp_path / "long.wav", duration_s=7.0), 3.0, overlap_s=1.0)
    assert [(piece.start_s, piece.duration_s) for piece in pieces] == [(0.0, 3.0), (2.0, 3.0), (4.0, 3.0)]
