"""Slices against what the whole and the parts must add up to."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sonotune.metrics.slices import DURATION_EDGES_S, duration_bucket, slice_clips
from sonotune.types import Clip


def clip(duration_s: float = 1.0, **known: str) -> Clip:
    return Clip(id="c", path=Path("c.wav"), duration_s=duration_s, **known)


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


def test_slices_are_in_order_and_know_their_members() -> None:
    clips = [
        clip(1.0, domain="phone", speaker="s1", language="en"),
        clip(11.0, domain="phone", speaker="s2", language="en"),
        clip(3.0, domain="studio", speaker="s2"),
    ]
    found = {(part.by, part.value): part.members for part in slice_clips(clips)}
    assert found == {
        ("domain", "phone"): (0, 1),
        ("domain", "studio"): (2,),
        ("duration", "0-2 s"): (0,),
        ("duration", "2-5 s"): (2,),
        ("duration", "10-20 s"): (1,),
        ("domain, duration", "phone, 0-2 s"): (0,),
        ("domain, duration", "phone, 10-20 s"): (1,),
        ("domain, duration", "studio, 2-5 s"): (2,),
        ("speaker", "s1"): (0,),
        ("speaker", "s2"): (1, 2),
        ("language", "en"): (0, 1),
        ("language", "unknown"): (2,),
    }
    assert [value for by, value in found if by == "duration"] == ["0-2 s", "2-5 s", "10-20 s"]


def test_every_property_covers_every_clip_once() -> None:
    clips = [clip(0.9 * index, domain=str(index % 2)) for index in range(20)]
    for by in ("domain", "duration", "domain, duration"):
        members = [index for part in slice_clips(clips) if part.by == by for index in part.members]
        assert sorted(members) == list(range(20))


def test_unknown_properties_give_no_slices() -> None:
    assert {part.by for part in slice_clips([clip(), clip()])} == {"duration"}


def test_the_default_borders_leave_nothing_out() -> None:
    assert DURATION_EDGES_S[0] == 0
    assert math.isinf(DURATION_EDGES_S[-1])
