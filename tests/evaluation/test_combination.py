"""Predictions of several models become one: what is written, and what is refused."""

from __future__ import annotations

import pytest

from sonotune.data.text import BASIC
from sonotune.errors import ConfigError
from sonotune.evaluation.combination import CombinationSettings, combine_predictions, voted_words
from sonotune.types import Prediction, RecognizedWord

ROVER, MBR = CombinationSettings(), CombinationSettings(method="mbr")


def said(text: str, *confidences: float, **more: object) -> Prediction:
    words = tuple(
        RecognizedWord(text=word, logprobs=(), confidence=one)
        for word, one in zip(text.split(), confidences, strict=False)
    )
    return Prediction(clip_id="a", text=text, words=words if confidences else None, **more)  # type: ignore[arg-type]


def combined(*texts: str, settings: CombinationSettings = ROVER) -> str:
    [one] = combine_predictions([[said(text)] for text in texts], BASIC.scoring, settings)
    return str(one.text)


def test_case_and_punctuation_do_not_split_votes_and_are_written_as_most_write_them() -> None:
    assert combined("Hello, world.", "hello word", "Hello, world!") == "Hello, world."
    assert combined("HELLO WORLD", "Hello, world.", "Hello, word.") == "Hello, WORLD"  # of equals the first


def test_a_dash_belongs_to_the_word_before_it() -> None:
    assert combined("yes - no", "yes - no", "yes now") == "yes - no"
    assert combined("- yes no", "- yes no", "yes now") == "- yes no"
    assert combined("-", "...", "yes") == ""  # two say nothing


def test_a_word_that_scores_as_two_is_written_whole_where_its_voter_won_with_both() -> None:
    assert combined("a well-known man", "a well known man", "a well-known dog") == "a well-known man"
    assert combined("a well-known man", "a well made man", "one well made man") == "a well made man"


def test_hebrew_keeps_its_logical_order_and_its_points() -> None:
    assert combined("שלום עולם", "שלום לכל עולם", "שָׁלוֹם לכל עולם") == "שלום לכל עולם"
    assert combined("בית־ספר גדול", "בית־ספר קטן", "בית ספר גדול") == "בית־ספר גדול"


def test_signs_of_scripts_without_spaces_are_voted_on_one_by_one_and_not_set_apart() -> None:
    assert combined("我们是人", "我门是人", "我们时人") == "我们是人"


@pytest.mark.parametrize("settings", [ROVER, MBR])
@pytest.mark.parametrize("text", ["Hello,  world - yes", "", "well-known 我们", "שלום, עולם"])
def test_equal_members_give_their_text_to_the_letter(text: str, settings: CombinationSettings) -> None:
    assert combined(text, text, text, settings=settings) == text


def test_mbr_gives_a_whole_text_as_it_was_written() -> None:
    assert combined("One two.", "one two three", "One, two, three!", settings=MBR) == "one two three"


def test_texts_differ_only_in_spelling_and_every_method_gives_one_of_them() -> None:
    assert combined("Yes.", "yes", "yes") == "yes"
    assert combined("Yes.", "yes", "yes", settings=MBR) == "Yes."  # all are at no distance, so the first


def test_confidences_vote_by_word() -> None:
    by_confidence = CombinationSettings(deletion_confidence=0.5)
    members = [[said("to go", 0.3, 0.9)], [said("to go", 0.3, 0.9)], [said("two go", 0.95, 0.2)]]
    assert combine_predictions(members, BASIC.scoring, by_confidence)[0].text == "two go"
    with pytest.raises(ConfigError, match=r"evaluation\.confidence=true"):
        combine_predictions([*members[:2], [said("two go")]], BASIC.scoring, by_confidence)


def test_what_nobody_decoded_is_told_and_what_one_computed_stands() -> None:
    silent = said("", no_signal=True)
    [one] = combine_predictions([[silent], [silent], [silent]], BASIC.scoring, ROVER)
    assert one.no_signal
    assert one.text == ""
    [one] = combine_predictions([[said("", finite=False)], [said("a")], [said("a")]], BASIC.scoring, ROVER)
    assert one.finite
    assert one.text == "a"


def test_classes_are_averaged_and_members_of_other_classes_refused() -> None:
    first = Prediction(clip_id="a", scores={"dog": 0.9, "cat": 0.1})
    second = Prediction(clip_id="a", scores={"dog": 0.3, "cat": 0.7})
    [one] = combine_predictions([[first], [second]], BASIC.scoring, ROVER)
    assert one.scores == pytest.approx({"dog": 0.6, "cat": 0.4})
    [one] = combine_predictions([[first], [Prediction(clip_id="a")]], BASIC.scoring, ROVER)
    assert one.scores == first.scores  # the other could not read the clip
    with pytest.raises(ConfigError, match="other classes"):
        combine_predictions([[first], [Prediction(clip_id="a", scores={"dog": 1.0, "cow": 0.0})]], BASIC.scoring, ROVER)


def test_predictions_of_other_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="same clips"):
        combine_predictions([[said("a")], [Prediction(clip_id="b", text="a")]], BASIC.scoring, ROVER)


@pytest.mark.parametrize(
    ("number", "texts", "settings", "problem"),
    [(1, True, ROVER, "found 1"), (0, True, ROVER, "found 0"), (2, True, ROVER, "outvote"), (2, True, MBR, "outvote")],
)
def test_too_few_members_are_refused(number: int, texts: bool, settings: CombinationSettings, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        settings.check_members(number, texts=texts)


def test_two_members_may_average_classes_or_vote_by_confidence() -> None:
    ROVER.check_members(2, texts=False)
    CombinationSettings(deletion_confidence=0.5).check_members(2, texts=True)


def test_words_that_vote_say_how_they_are_written() -> None:
    found = voted_words(said("Well-known, - man"), BASIC.scoring)
    assert [(word.key, word.written, word.part, word.parts) for word in found] == [
        ("well", "Well-known, -", 0, 2),
        ("known", "Well-known, -", 1, 2),
        ("man", "man", 0, 1),
    ]
