"""Clips longer than the window: nothing lost, nothing doubled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sonotune.data.words import words_of
from sonotune.evaluation.windows import cut_into_windows, merge_predictions, merge_texts
from sonotune.types import Clip, Finding, Prediction, RecognizedWord

RATE_HZ = 16_000
SENTENCE = "it was the best of times it was the worst of times it was the age of wisdom it was the age of foolishness"


def noise(*parts: tuple[float, float]) -> np.ndarray:
    """(seconds, level) parts of a noise."""
    rng = np.random.default_rng(0)
    return np.concatenate([level * rng.standard_normal(round(length * RATE_HZ)) for length, level in parts])


def make_clip(path: Path, *parts: tuple[float, float], name: str = "long") -> Clip:
    soundfile.write(path / f"{name}.wav", noise(*parts), RATE_HZ)
    return Clip(id=name, path=path / f"{name}.wav", duration_s=sum(length for length, _ in parts), text="one two")


def test_every_cut_through_a_text_with_repeats_gives_the_text_back():
    words = SENTENCE.split()
    for overlap in (3, 5, 8):
        for cut in range(overlap, len(words) - overlap):
            left, right = " ".join(words[: cut + overlap]), " ".join(words[cut:])
            assert merge_texts(left, right, max_words=2 * overlap)[0] == SENTENCE, (overlap, cut)


def test_half_heard_words_at_the_cut_are_left_out():
    merged, _ = merge_texts("we walk along the river ba", "own along the river bank today", max_words=8)
    assert merged == "we walk along the river bank today"


def test_case_and_punctuation_do_not_hide_what_is_common():
    merged, _ = merge_texts("He came, he saw. And then", "he saw, and then he left.", max_words=8)
    assert merged == "He came, he saw. And then he left."


def test_repeated_words_are_not_lost():
    assert merge_texts("he said no no no no", "no no no and went", max_words=6)[0] == "he said no no no no and went"


@pytest.mark.parametrize(
    ("left", "right", "merged"),
    [
        ("one two", "three four", "one two three four"),  # nothing is common
        ("the cat sat on a mat", "there is the dog", "the cat sat on a mat there is the dog"),  # one word, by chance
        ("one two", "two three", "one two three"),  # one word, at the border of both
        ("", "three", "three"),
        ("one", "", "one"),
        ("", "", ""),
    ],
)
def test_what_is_not_surely_common_stays(left: str, right: str, merged: str):
    assert merge_texts(left, right, max_words=8)[0] == merged


def test_windows_that_do_not_overlap_are_only_joined():
    assert merge_texts("one two three", "two three four", max_words=0)[0] == "one two three two three four"


def test_scripts_without_spaces_are_merged_by_their_characters():
    assert merge_texts("今天天气很好我们", "很好我们去公园", max_words=6)[0] == "今天天气很好我们去公园"
    assert merge_texts("今天天气", "很好", max_words=0)[0] == "今天天气很好"
    assert merge_texts("今天 radio", "很好", max_words=0)[0] == "今天 radio 很好"


def test_hebrew_and_amharic_are_merged():
    assert merge_texts("שלום לכם ילדים טובים", "ילדים טובים של הגן", max_words=4)[0] == "שלום לכם ילדים טובים של הגן"
    assert merge_texts("ሰላም ለሁላችሁ ልጆች።", "ለሁላችሁ ልጆች፣ እንዴት ናችሁ", max_words=4)[0] == "ሰላም ለሁላችሁ ልጆች። እንዴት ናችሁ"


def test_windows_are_cut_at_pauses_and_overlap_where_there_is_none(tmp_path: Path):
    paused = make_clip(tmp_path, (3.2, 0.1), (1.0, 0.0), (4.0, 0.1), name="paused")
    dense = make_clip(tmp_path, (8.0, 0.1), name="dense")
    short = make_clip(tmp_path, (2.0, 0.1), name="short")
    windows = cut_into_windows([paused, short, dense], 5.0)
    assert windows.parts == {"paused": 2, "short": 1, "dense": 2}
    first, second, alone, begin, rest = windows.pieces
    assert alone is short
    assert second.start_s == first.start_s + first.duration_s == pytest.approx(3.7, abs=0.1)
    assert (begin.start_s, begin.duration_s, rest.start_s, rest.duration_s) == (0.0, 5.0, 4.0, 4.0)
    [finding] = windows.findings
    assert (finding.check, finding.severity, finding.clip_ids) == ("evaluation.windows", "note", ("paused", "dense"))
    assert "2 of 3 clips" in finding.message
    assert "4 windows" in finding.message
    assert "cut at pauses (1 where there is none, with an overlap)" in finding.message
    assert cut_into_windows([paused], None).pieces == [paused]
    assert cut_into_windows([paused], None).findings == []


def test_pieces_are_never_mistaken_for_clips(tmp_path: Path):
    long = make_clip(tmp_path, (6.0, 0.1))
    other = replace(make_clip(tmp_path, (1.0, 0.1), name="x"), id="long#1")
    windows = cut_into_windows([long, other], 5.0)
    assert len({piece.id for piece in windows.pieces}) == 3
    texts = iter(["a b c", "b c d", "e"])
    made = [Prediction(clip_id=piece.id, text=next(texts)) for piece in windows.pieces]
    about_piece = Finding(
        check="x", severity="note", message="m", clip_ids=(windows.pieces[0].id, windows.pieces[1].id)
    )
    predictions, findings = windows.merge([long, other], made, [about_piece])
    assert predictions == [Prediction(clip_id="long", text="a b c d"), Prediction(clip_id="long#1", text="e")]
    assert findings[-1].clip_ids == ("long",)


def test_a_long_clip_that_cannot_be_read_is_a_finding(tmp_path: Path):
    long = make_clip(tmp_path, (6.0, 0.1))
    long.path.unlink()
    windows = cut_into_windows([long], 5.0)
    assert windows.pieces == []
    assert [finding.check for finding in windows.findings] == ["audio.missing"]
    assert windows.merge([long], [], [])[0] == [Prediction(clip_id="long", text="")]


def test_classes_are_the_mean_over_windows_by_length():
    pieces = [Clip(id=f"x#{number}", path=Path("x.wav"), duration_s=length) for number, length in enumerate((3.0, 1.0))]
    made = [
        Prediction(clip_id="x#0", scores={"a": 1.0, "b": 0.0}),
        Prediction(clip_id="x#1", scores={"a": 0.0, "b": 1.0}),
    ]
    merged, _ = merge_predictions("x", list(zip(pieces, made, strict=True)))
    assert merged == Prediction(clip_id="x", scores={"a": 0.75, "b": 0.25})
    unread = [(pieces[0], made[0]), (pieces[1], Prediction(clip_id="x#1", text=""))]
    assert merge_predictions("x", unread)[0] == Prediction(clip_id="x", scores={"a": 1.0, "b": 0.0})


def rated(text: str, level: float) -> Prediction:
    """A text whose words have two tokens each, of a log-probability that says which window they are of."""
    words = tuple(RecognizedWord(text=word, logprobs=(level, level)) for word in words_of(text))
    return Prediction(clip_id="x", text=text, words=words)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("one two three", "three four"),
        ("we walk along the river ba", "own along the river bank today"),
        ("one two", "three four"),
        ("", "three"),
        ("one", ""),
        ("今天很好", "很好吃"),
        ("שלום עולם", "עולם טוב"),
        ("สวัสดีก", "ก็ดี"),
    ],
)
def test_words_of_merged_windows_are_those_of_the_merged_text(left: str, right: str):
    pieces = [
        (Clip(id="a", path=Path("x"), duration_s=10.0), rated(left, -1.0)),
        (Clip(id="b", path=Path("x"), start_s=9.0, duration_s=10.0), rated(right, -2.0)),
    ]
    whole, _ = merge_predictions("x", pieces)
    assert whole.words is not None
    assert [word.text for word in whole.words] == words_of(whole.text or "")
    assert all(word.logprobs for word in whole.words)
    levels = [word.logprobs[0] for word in whole.words]
    assert levels == sorted(levels, reverse=True)  # those of the left window come first


def test_windows_without_words_have_none_together():
    clip = Clip(id="a", path=Path("x"), duration_s=1.0)
    whole, _ = merge_predictions("x", [(clip, Prediction(clip_id="a", text="one"))] * 2)
    assert whole.words is None
