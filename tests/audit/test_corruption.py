"""Corruptions of transcripts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.audit.corruption import DEFAULT_CORRUPTIONS, KINDS, Corruption, Corruptor
from sonotune.data import text as text_module
from sonotune.types import Clip

WORDS = [f"w{index}" for index in range(60)]
SCORING = text_module.get("basic").scoring


def clip(name: str, text: str | None, language: str | None = "sw") -> Clip:
    return Clip(id=name, path=Path("a.wav"), duration_s=5.0, text=text, language=language)


def corpus() -> list[Clip]:
    return [
        clip(f"c{index}", " ".join(WORDS[(index * step + index) % 60] for step in range(5 + index % 26)))
        for index in range(120)
    ]


CORPUS = corpus()
CORRUPTOR = Corruptor(CORPUS, seed=3)


def share_of(kind: str, share: float, index: int) -> tuple[list[str], list[str]]:
    one = CORPUS[index]
    made = CORRUPTOR.corrupt(one, Corruption(kind=kind, share=share))
    assert made.text is not None, made.reason
    return one.text.split(), made.text.split()


def is_subsequence(short: list[str], long: list[str]) -> bool:
    rest = iter(long)
    return all(word in rest for word in short)


@pytest.mark.parametrize("index", [20, 33, 77, 119])
def test_a_deletion_is_one_run(index):
    before, after = share_of("deleted", 0.2, index)
    lost = round(0.2 * len(before))
    assert len(after) == len(before) - lost
    assert any(before[:start] + before[start + lost :] == after for start in range(len(after) + 1))


@pytest.mark.parametrize("index", [20, 33, 77, 119])
def test_an_insertion_is_at_one_place(index):
    before, after = share_of("inserted", 0.2, index)
    more = round(0.2 * len(before))
    assert len(after) == len(before) + more
    assert any(after[:start] + after[start + more :] == before for start in range(len(before) + 1))


@pytest.mark.parametrize("share", [0.1, 0.2])
@pytest.mark.parametrize("index", [20, 33, 77, 119])
def test_a_substitution_changes_so_many_words(share, index):
    before, after = share_of("substituted", share, index)
    assert len(after) == len(before)
    assert sum(one != other for one, other in zip(before, after, strict=True)) == round(share * len(before))


@pytest.mark.parametrize("share", [0.15, 0.2])
def test_a_truncation_takes_the_end(share):
    before, after = share_of("truncated", share, 77)
    assert after == before[: len(before) - round(share * len(before))]


def test_a_wrong_transcript_is_that_of_a_clip_of_similar_length():
    texts = {one.text for one in CORPUS}
    for one in CORPUS[10:60]:
        made = CORRUPTOR.corrupt(one, Corruption(kind="wrong", share=1.0))
        assert made.text in texts
        assert abs(len(made.text.split()) - len(one.text.split())) <= max(2, 0.15 * len(one.text.split()))


def test_wrong_transcripts_and_words_are_of_the_same_language():
    mixed = [
        clip(f"{language}{index}", f"{language}{index} " * 8, language)
        for language in ("he", "en")
        for index in range(12)
    ]
    corruptor = Corruptor(mixed)
    for kind in ("wrong", "inserted", "substituted"):
        made = corruptor.corrupt(mixed[0], Corruption(kind=kind, share=0.2))
        assert "en" not in made.text


def test_the_draw_belongs_to_the_clip_and_the_seed():
    # What is drawn from beside does not move with the rest of the corpus's order.
    again = Corruptor(CORPUS[::-1], seed=3)
    other = Corruptor(CORPUS, seed=4)
    differ = 0
    for one in CORPUS[10:40]:
        for corruption in DEFAULT_CORRUPTIONS:
            assert CORRUPTOR.corrupt(one, corruption) == again.corrupt(one, corruption)
            differ += CORRUPTOR.corrupt(one, corruption) != other.corrupt(one, corruption)
    assert differ > 60


@settings(deadline=None)
@given(
    st.lists(st.text(max_size=20), min_size=1, max_size=5),
    st.sampled_from(KINDS),
    st.floats(0.01, 1.0),
    st.integers(0, 5),
)
def test_any_text_is_changed_or_refused_with_a_reason(texts, kind, share, seed):
    clips = [clip(str(index), text) for index, text in enumerate(texts)]
    corruptor = Corruptor(clips, seed=seed)
    for one in clips:
        made = corruptor.corrupt(one, Corruption(kind=kind, share=share))
        if made.text is None:
            assert made.reason
        else:
            assert made.reason == ""
            assert SCORING(made.text) != SCORING(one.text)
    assert [one.text for one in clips] == texts


def test_short_transcripts_are_refused_by_what_they_lack():
    short = clip("short", "w1 w2")
    for kind in ("deleted", "inserted", "truncated"):
        made = CORRUPTOR.corrupt(short, Corruption(kind=kind, share=0.2))
        assert made.text is None
        assert "2 words are too few to have 20%" in made.reason
    assert CORRUPTOR.corrupt(short, Corruption(kind="wrong", share=1.0)).text is not None
    assert CORRUPTOR.corrupt(clip("x", " "), Corruption(kind="wrong", share=1.0)).reason == "it has no words"
    assert CORRUPTOR.corrupt(clip("x", None), Corruption(kind="wrong", share=1.0)).reason == "it has no words"


def test_a_corpus_of_one_text_has_no_wrong_transcript():
    same = [clip(str(index), "w1 w2 w3 w4 w5", None) for index in range(5)] + [clip("other", "w9 " * 5)]
    corruptor = Corruptor(same)
    assert "another transcript" in corruptor.corrupt(same[0], Corruption(kind="wrong", share=1.0)).reason
    assert corruptor.corrupt(same[0], Corruption(kind="inserted", share=0.2)).text is None


def test_the_only_other_transcript_is_found_among_many_copies():
    same = [clip(str(index), "w1 w2 w3 w4 w5") for index in range(300)] + [clip("other", "w9 " * 30)]
    assert Corruptor(same).corrupt(same[0], Corruption(kind="wrong", share=1.0)).text == "w9 " * 29 + "w9"


def test_scripts_without_spaces_are_corrupted_by_characters():
    thai = ["สวัสดีครับผมชื่อสมชาย", "วันนี้อากาศดีมากนะครับ", "ฉันชอบกินข้าวผัดกุ้ง"]
    clips = [clip(str(index), text, "th") for index, text in enumerate(thai)]
    corruptor = Corruptor(clips)
    made = corruptor.corrupt(clips[0], Corruption(kind="truncated", share=0.2))
    assert thai[0].startswith(made.text)
    assert 0.6 < len(made.text) / len(thai[0]) < 0.95
    for kind in KINDS:
        text = corruptor.corrupt(clips[0], Corruption(kind=kind, share=0.2)).text
        assert text is not None
        assert " " not in text
        assert not text_module.unicodedata.category(text[0]).startswith("M")  # marks stay on their letters


def test_shares_are_checked():
    with pytest.raises(ValueError, match="0 < share <= 1"):
        Corruption(kind="deleted", share=0.0)
    with pytest.raises(ValueError, match="is one of wrong"):
        Corruption(kind="mangled", share=0.5)
