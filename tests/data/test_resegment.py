"""Recordings are cut between words: no word and no second is lost, doubled, or cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.data.chunking import join
from sonotune.data.manifest import read_manifest, write_manifest
from sonotune.data.resegment import Cutting, Span, clips_of, plan, resegment, speech_in
from sonotune.errors import ConfigError
from sonotune.registry import resolve_asset
from sonotune.types import Clip, Word

RATE_HZ = 16_000


@st.composite
def recordings(draw: st.DrawFn) -> tuple[Clip, Cutting, list[Span] | None]:
    """Words and pauses of any length, some of none, words that overlap, and speech that is that of the words or not."""
    seconds = st.floats(0.0, 1.0) | st.floats(0.0, 8.0) | st.just(0.0)
    pauses = seconds | st.floats(-0.5, 0.0) if draw(st.booleans()) else seconds
    lengths = draw(st.lists(st.tuples(pauses, seconds), min_size=1, max_size=60))
    at = 0.0
    words: list[Word] = []
    for number, (pause_s, length_s) in enumerate(lengths):
        start_s = max(0.0, at + pause_s, words[-1].start_s if words else 0.0)
        words.append(Word(text=f"w{number}", start_s=start_s, end_s=start_s + length_s))
        at = max(at, words[-1].end_s)
    duration_s = at + draw(st.floats(0.0, 10.0)) + 0.01
    edges = sorted(draw(st.lists(st.floats(0.0, duration_s), max_size=20, unique=True)))
    speech = list(zip(edges[::2], edges[1::2], strict=False))
    if draw(st.booleans()):
        margin_s = draw(st.floats(0.0, 0.4))  # a word sounds a little longer than its times say
        sounds = [(word.start_s - margin_s, word.end_s + margin_s) for word in words if word.end_s > word.start_s]
        speech = _joined([*(speech if draw(st.booleans()) else []), *sounds])
        speech = [(max(0.0, begin), min(end, duration_s)) for begin, end in speech]
    limit_s = draw(st.floats(0.5, 20.0))
    cutting = Cutting(
        max_duration_s=limit_s,
        context_s=draw(st.floats(0.0, 0.49)) * limit_s,
        untranscribed_s=draw(st.sampled_from([0.1, 1.0, 5.0])),
    )
    clip = Clip(
        id="r",
        path=Path("/r.wav"),
        duration_s=duration_s,
        start_s=draw(st.sampled_from([0.0, 3.5])),
        text=" ".join(word.text for word in words),
        words=tuple(words),
    )
    return clip, cutting, draw(st.sampled_from([None, speech]))


def _joined(spans: list[Span]) -> list[Span]:
    joined: list[Span] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined


def can_be_parted(words: Sequence[Word]) -> bool:
    """Whether there is a place between words that lies in none of them, where words that take no time stay."""
    for place in range(1, len(words)):
        before_s = max(word.end_s for word in words[:place])
        if words[0].start_s < before_s <= words[place].start_s < words[place].end_s:
            return True
    return False


@settings(max_examples=1000, deadline=None)
@given(recordings())
def test_every_word_and_every_second_is_in_one_piece_in_order(drawn: tuple[Clip, Cutting, list[Span] | None]) -> None:
    clip, cutting, speech = drawn
    pieces = plan(clip.words, clip.duration_s, cutting, speech)
    assert [edge for piece in pieces for edge in piece.core] == sorted(edge for piece in pieces for edge in piece.core)
    assert pieces[0].core[0] == 0.0
    assert pieces[-1].core[1] == clip.duration_s
    assert all(before.core[1] == after.core[0] for before, after in itertools.pairwise(pieces))
    assert [word for piece in pieces for word in range(piece.first, piece.stop)] == list(range(len(clip.words)))
    for piece in pieces:
        begin_s, end_s = piece.window
        assert 0.0 <= begin_s <= end_s <= clip.duration_s
        words = clip.words[piece.first : piece.stop]
        limit_s = cutting.max_duration_s + 1e-9
        assert end_s - begin_s <= limit_s or not can_be_parted(words)
        for word in words:
            assert piece.core[0] <= word.start_s <= word.end_s <= piece.core[1]
            assert begin_s <= word.start_s <= word.end_s <= end_s + 1e-9
        for word in (*clip.words[: piece.first], *clip.words[piece.stop :]):  # nothing of another word is heard
            assert min(word.end_s, end_s) - max(word.start_s, begin_s) <= 1e-9
        for low, high in (begin_s, piece.core[0]), (piece.core[1], end_s):  # beyond the core there is silence alone
            assert high <= low or (speech is not None and not any(a < high and b > low for a, b in speech))
    parts = clips_of(clip, pieces)
    assert " ".join(part.text for part in parts if part.text is not None) == clip.text
    for piece, part in zip(pieces, parts, strict=True):
        assert part.start_s == clip.start_s + piece.window[0]
        assert (float(part.extra["source_start_s"]), float(part.extra["source_end_s"])) == piece.core
        assert part.text == (" ".join(word.text for word in part.words) or None)
    assert plan(clip.words, clip.duration_s, cutting, speech) == pieces


def test_a_cut_is_in_the_longest_pause_near_the_limit() -> None:
    edges = [(0.5, 2.0), (2.1, 5.0), (5.9, 6.5), (6.6, 9.0), (9.2, 12.0)]
    words = [Word(text="w", start_s=start, end_s=end) for start, end in edges]
    first, second = plan(words, 12.5, Cutting(max_duration_s=9.0, context_s=0.3), edges)
    assert first.core == pytest.approx((0.0, 5.45))
    assert first.window == pytest.approx((0.2, 5.3))
    assert second.core == (first.core[1], 12.5)
    assert second.window == pytest.approx((5.6, 12.3))
    assert (second.first, second.stop) == (2, 5)


def test_audio_reaches_into_the_next_core_over_silence_alone() -> None:
    words = [Word(text="a", start_s=0.0, end_s=3.0), Word(text="b", start_s=5.0, end_s=8.0)]
    cutting = Cutting(max_duration_s=5.0, context_s=1.9, untranscribed_s=3.0)
    first, _ = plan(words, 8.0, cutting, [(0.0, 3.1), (4.6, 8.0)])
    assert first.window == pytest.approx((0.0, 4.6))  # where the sound of b begins, beyond the core that ends at 4.0
    assert first.core[1] == 4.0
    first, second = plan(words, 8.0, cutting, [(0.0, 8.0)])
    assert (first.window[1], second.window[0]) == pytest.approx((3.3, 4.7))  # nothing silent to add
    first, second = plan(words, 8.0, cutting, None)
    assert (first.window[1], second.window[0]) == (4.0, 4.0)


def test_speech_between_words_is_a_piece_without_text() -> None:
    words = [Word(text="a", start_s=1.0, end_s=2.0), Word(text="b", start_s=12.0, end_s=13.0)]
    speech = [(1.0, 2.1), (4.0, 9.0), (11.9, 13.0), (16.0, 17.5)]
    pieces = plan(words, 18.0, Cutting(max_duration_s=4.0), speech)
    assert [(piece.first, piece.stop) for piece in pieces] == [(0, 1), (1, 1), (1, 1), (1, 2), (2, 2)]
    assert [piece.window for piece in pieces if piece.first == piece.stop] == [(4.0, 6.5), (6.5, 9.0), (16.0, 17.5)]
    assert pieces[0].window == (0.0, 3.0)
    short = [(1.0, 2.1), (5.0, 5.9), (11.9, 13.0)]
    assert len(plan(words, 14.0, Cutting(max_duration_s=15.0), short)) == 1


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"max_duration_s": 0.0}, "longest clip is 0 s"),
        ({"max_duration_s": 2.0, "context_s": 1.0}, "less than half"),
        ({"untranscribed_s": 0.0}, "untranscribed speech of 0 s"),
    ],
)
def test_limits_that_make_no_sense_are_refused(given_: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Cutting(**given_)


def joined(folder: Path) -> Clip:
    """A minute of digits whose words are known."""
    clips = [
        Clip(id=clip.id, path=clip.path, duration_s=clip.duration_s, text=clip.text, words=clip.words, speaker="all")
        for clip in read_manifest(resolve_asset("assets:quickstart/train.jsonl"))
    ]
    recording = max(
        join(clips, folder, min_duration_s=55.0, max_duration_s=65.0, gap_s=0.4, limit=1),
        key=lambda one: one.duration_s,
    )
    assert recording.duration_s > 50
    return recording


def test_a_minute_becomes_clips_of_ten_seconds(tmp_path: Path) -> None:
    recording = joined(tmp_path)
    made = resegment([recording], Cutting(max_duration_s=10.0))
    assert made.cut == 1
    assert made.findings == ()
    assert len(made.clips) >= 6
    assert [word.text for clip in made.clips for word in clip.words] == (recording.text or "").split()
    for clip in made.clips:
        assert clip.duration_s <= 10.0 + 1e-9
        assert clip.text == " ".join(word.text for word in clip.words)
        assert clip.extra["source_id"] == recording.id
        for word in clip.words:
            assert 0.0 <= word.start_s <= word.end_s <= clip.duration_s + 1e-9
    write_manifest(tmp_path / "cut.jsonl", made.clips)
    assert read_manifest(tmp_path / "cut.jsonl") == list(made.clips)
    assert resegment([recording], Cutting(max_duration_s=10.0)) == made


def test_a_recording_whose_words_are_not_known_stays_whole(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(20 * RATE_HZ, np.float32), RATE_HZ)
    whole = Clip(id="a", path=tmp_path / "a.wav", duration_s=20.0, text="one two")
    words = (Word(text="one", start_s=1.0, end_s=2.0), Word(text="two", start_s=18.0, end_s=19.0))
    three = Clip(id="b", path=whole.path, duration_s=20.0, text="one two three", words=words)
    back = Clip(id="c", path=whole.path, duration_s=20.0, text="two one", words=words[::-1])
    made = resegment([whole, three, back], Cutting(max_duration_s=10.0))
    assert [clip.text for clip in made.clips] == ["one two", "one two three", "two one"]
    assert [finding.check for finding in made.findings] == ["resegment.kept_whole"] * 3
    assert "1 recording has no words with times and stays longer than 10 s (20.0 s): 'a'." in made.findings[0].message
    assert "other words in `words` than in `text`" in made.findings[1].message
    assert "out of order" in made.findings[2].message


def test_speech_without_text_is_left_out_or_kept_and_told(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(12 * RATE_HZ).astype(np.float32) * 1e-5
    noise[RATE_HZ : 2 * RATE_HZ] *= 1e4
    noise[5 * RATE_HZ : 9 * RATE_HZ] *= 1e4
    soundfile.write(tmp_path / "a.wav", noise, RATE_HZ)
    clip = Clip(
        id="a",
        path=tmp_path / "a.wav",
        duration_s=12.0,
        text="one",
        words=(Word(text="one", start_s=1.0, end_s=2.0),),
    )
    edges = [edge for span in speech_in(clip) for edge in span]
    assert edges == pytest.approx([1.0, 2.0, 5.0, 9.0], abs=0.03)
    made = resegment([clip], Cutting())
    assert [part.text for part in made.clips] == ["one"]
    assert made.clips[0].duration_s == pytest.approx(3.0)
    assert made.untranscribed_s == pytest.approx(4.0, abs=0.05)
    assert "1 piece of speech that the transcripts pass over, 4.0 s in all, is left out" in made.findings[0].message
    kept = resegment([clip], Cutting(), keep_untranscribed=True)
    assert [(part.id, part.text) for part in kept.clips] == [("a#0", "one"), ("a#1", None)]


def test_audio_that_cannot_be_read_is_cut_by_its_words_alone(tmp_path: Path) -> None:
    words = tuple(Word(text="w", start_s=float(at), end_s=at + 0.5) for at in range(20))
    clip = Clip(id="a", path=tmp_path / "gone.wav", duration_s=20.0, text=" ".join("w" * 20), words=words)
    made = resegment([clip], Cutting(max_duration_s=8.0))
    assert [finding.check for finding in made.findings] == ["resegment.unread"]
    assert sum(len(part.words) for part in made.clips) == 20
