"""Votes over words, and the most central of several transcripts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonotune.metrics.consensus import VotedWord, most_central, rover


def words(text: str, *confidences: float) -> list[VotedWord]:
    keys = text.split()
    return [
        VotedWord(key=key, written=key, confidence=one)
        for key, one in itertools.zip_longest(keys, confidences[: len(keys)])
    ]


def vote(*texts: str) -> str:
    return rover([words(text) for text in texts])


def test_three_transcripts_with_one_error_each_restore_the_truth() -> None:
    assert vote("the cat sat on mat", "the cat sit on the mat", "a cat sat on the mat") == "the cat sat on the mat"


TRUTH = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"]


@st.composite
def one_error_each(draw: st.DrawFn) -> list[str]:
    """The truth three times, each with another word replaced, left out, or followed by one that nobody said.

    No two errors are at neighbouring words, where what belongs to what is a guess for anybody.
    """
    first = draw(st.integers(0, 1))
    places = draw(st.permutations(range(first, len(TRUTH), 2)))[:3]
    texts = []
    for place in places:
        kind = draw(st.sampled_from(["replace", "delete", "insert"]))
        text = list(TRUTH)
        text[place : place + 1] = {
            "replace": [f"wrong{place}"],
            "delete": [],
            "insert": [TRUTH[place], f"more{place}"],
        }[kind]
        texts.append(" ".join(text))
    return texts


@given(one_error_each())
@settings(max_examples=60, deadline=None)
def test_no_error_of_one_member_survives_two_who_are_right(texts: list[str]) -> None:
    assert vote(*texts) == " ".join(TRUTH)


@given(st.integers(3, 8), st.data())
@settings(max_examples=20, deadline=None)
def test_words_that_are_replaced_are_restored_wherever_they_stand(length: int, data: st.DataObject) -> None:
    truth = TRUTH[:length]
    places = data.draw(st.permutations(range(length)))[:3]
    texts = [" ".join(f"wrong{place}" if at == place else word for at, word in enumerate(truth)) for place in places]
    assert vote(*texts) == " ".join(truth)


@given(one_error_each())
@settings(max_examples=20, deadline=None)
def test_the_order_of_members_changes_nothing_where_no_vote_is_tied(texts: list[str]) -> None:
    assert len({vote(*order) for order in itertools.permutations(texts)}) == 1


def test_a_tie_goes_to_the_member_named_first() -> None:
    assert vote("red sky", "blue sky", "green sky") == "red sky"
    assert vote("blue sky", "red sky", "green sky") == "blue sky"
    assert vote("big red sky", "red sky", "big red sky", "red sky") == "big red sky"
    assert vote("red sky", "big red sky", "big red sky", "red sky") == "red sky"


def test_a_member_that_writes_nothing_votes_for_no_word() -> None:
    assert vote("", "", "noise") == ""
    assert vote("", "yes", "yes") == "yes"
    assert vote("yes", "yes please", "") == "yes"
    assert vote("", "", "") == ""


def test_words_that_some_insert_at_one_place_share_a_slot() -> None:
    # Were each insertion a slot of its own, `x` would stand against three that have no word there, and lose.
    texts = ("a x c", "a y c", "a x c", "a z c", "a c")
    assert all(vote(*order) == "a x c" for order in itertools.permutations(texts))


def test_an_alignment_that_was_a_guess_is_mended_by_the_members_that_come_later() -> None:
    # `alpha` of the second is as near to `bravo` of the first as to `wrong`, until the third says which it is.
    texts = ("wrong bravo charlie delta", "alpha charlie delta", "alpha bravo wrong delta")
    assert all(vote(*order) == "alpha bravo charlie delta" for order in itertools.permutations(texts))


def test_a_word_that_one_inserts_takes_no_place_of_a_word_that_others_replace() -> None:
    # `wrong` belongs to `bravo`: of `more`, some member has nothing, so that a second such member costs no edit.
    texts = ("alpha more bravo charlie delta", "alpha wrong charlie delta", "alpha bravo other delta")
    assert all(vote(*order) == "alpha bravo charlie delta" for order in itertools.permutations(texts))


def test_a_transcript_is_aligned_with_any_word_of_a_slot() -> None:
    # With the leading words alone, `b d`, the words `c x` would align as well with `x` in the slot of `b`.
    assert vote("a b d", "a c d", "a c x d", "a c x d", "a b x d") == "a c x d"


def test_votes_by_confidence_let_one_sure_member_win() -> None:
    unsure, sure = words("nine", 0.3), words("five", 0.9)
    assert rover([unsure, unsure, sure]) == "nine"
    assert rover([unsure, unsure, sure], deletion_confidence=0.5) == "five"
    assert rover([words(""), words(""), sure], deletion_confidence=0.5) == ""
    assert rover([words(""), words(""), sure], deletion_confidence=0.4) == "five"


def test_a_word_without_a_confidence_cannot_vote_by_it() -> None:
    with pytest.raises(ValueError, match="no confidence"):
        rover([words("a"), words("b"), words("c")], deletion_confidence=0.5)


def test_the_most_central_transcript_has_the_fewest_errors_to_the_others() -> None:
    texts = ["the cat sat", "the cat sat on it", "a dog", "the cat sat on"]
    assert most_central([words(text) for text in texts]) == 3


def test_equally_central_transcripts_are_told_apart_by_characters_and_then_by_order() -> None:
    assert most_central([words("bet"), words("bat"), words("cat")]) == 1  # one letter from each
    assert most_central([words("bet"), words("zzz")]) == 0
    assert most_central([words(""), words("a"), words("")]) == 0
