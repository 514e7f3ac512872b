"""Slices against what the whole and the parts must add up to."""

from __future__ import annotations

import json
import math

import pytest

from sonotune.errors import TextError
from sonotune.metrics.error_rate import wer
from sonotune.metrics.slices import DURATION_EDGES_S, ScoredText, duration_bucket, slice_scores, text_scores


def item(reference: str, hypothesis: str, duration_s: float = 1.0, **known: str) -> ScoredText:
    return ScoredText(reference=reference, hypothesis=hypothesis, duration_s=duration_s, **known)


@pytest.mark.parametrize(
    ("duration_s", "expected"),
    [(0.0, "0-2 s"), (1.999, "0-2 s"), (2.0, "2-5 s"), (19.9, "10-20 s"), (20.0, ">= 20 s"), (-1.0, "< 0 s")],
)
def test_buckets_hold_their_lower_border(duration_s: float, expected: str) -> None:
    assert duration_bucket(duration_s) == expected


def test_borders_of_ones_own() -> None:
    assert duration_bucket(9.0, (1.5, 4.0)) == ">= 4 s"
    assert duration_bucket(1.0, (1.5, 4.0)) == "< 1.5 s"
    with pytest.raises(ValueError, match="ascending"):
        duration_bucket(1.0, (4.0, 1.5))
    with pytest.raises(ValueError, match="ascending"):
        duration_bucket(1.0, ())


def test_slices_are_scored_apart_and_in_order() -> None:
    items = [
        item("a b", "a b", 1.0, domain="phone", speaker="s1", language="en"),
        item("a b", "x y", 11.0, domain="phone", speaker="s2", language="en"),
        item("a b c d", "a b c", 3.0, domain="studio", speaker="s2"),
    ]
    slices = {(part["by"], part["value"]): part for part in slice_scores(items, bootstrap=20)}
    found = {key: part["scores"]["wer"]["value"] for key, part in slices.items()}
    assert found == {
        ("domain", "phone"): 0.5,
        ("domain", "studio"): 0.25,
        ("duration", "0-2 s"): 0.0,
        ("duration", "2-5 s"): 0.25,
        ("duration", "10-20 s"): 1.0,
        ("domain, duration", "phone, 0-2 s"): 0.0,
        ("domain, duration", "phone, 10-20 s"): 1.0,
        ("domain, duration", "studio, 2-5 s"): 0.25,
        ("speaker", "s1"): 0.0,
        ("speaker", "s2"): 0.5,
        ("language", "en"): 0.5,
        ("language", "unknown"): 0.25,
    }
    assert [value for by, value in slices if by == "duration"] == ["0-2 s", "2-5 s", "10-20 s"]
    assert slices["speaker", "s2"]["seconds"] == pytest.approx(14.0)
    assert slices["speaker", "s2"]["clips"] == slices["speaker", "s2"]["scores"]["cer"]["count"] == 2
    json.dumps(list(slices.values()), allow_nan=False)


def test_errors_of_the_slices_add_up_to_the_whole() -> None:
    items = [
        item("a b c", "a x" if index % 3 else "a b c d", 0.9 * index, domain=str(index % 2)) for index in range(20)
    ]
    whole = text_scores(items, bootstrap=0)["wer"].detail
    for by in ("domain", "duration", "domain, duration"):
        details = [part["scores"]["wer"]["detail"] for part in slice_scores(items, bootstrap=0) if part["by"] == by]
        assert len(details) > 1
        for name in ("substitutions", "deletions", "insertions", "hits", "reference"):
            assert sum(detail[name] for detail in details) == whole[name]


def test_a_slice_of_silence_has_no_rate_but_says_what_was_made_up() -> None:
    items = [item("a", "a", domain="speech"), item("", "thank you", domain="silence")]
    silence = next(part for part in slice_scores(items) if part["value"] == "silence")
    assert silence["scores"] == {}
    assert silence["insertions"] == 2


def test_unknown_properties_give_no_slices() -> None:
    assert {part["by"] for part in slice_scores([item("a", "a"), item("b", "a")])} == {"duration"}


def test_scores_are_those_of_the_whole() -> None:
    items = [item("a b", "a", speaker="s"), item("c", "c", speaker="t")]
    assert text_scores(items, bootstrap=50, seed=4)["wer"] == wer(
        ["a b", "c"], ["a", "c"], speakers=["s", "t"], bootstrap=50, seed=4
    )
    with pytest.raises(TextError):
        text_scores([])


def test_the_default_borders_leave_nothing_out() -> None:
    assert DURATION_EDGES_S[0] == 0
    assert math.isinf(DURATION_EDGES_S[-1])
