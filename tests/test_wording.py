"""How numbers are written for people."""

from __future__ import annotations

import pytest

from sonotune.wording import counted, long_time, memory_size


def test_one_thing_is_named_in_the_singular_and_others_are_not():
    assert [counted(number, "clip") for number in (0, 1, 2)] == ["0 clips", "1 clip", "2 clips"]
    assert [counted(number, "near copy", "near copies") for number in (1, 2)] == ["1 near copy", "2 near copies"]


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0.0 s"), (40, "40.0 s"), (60, "1.0 min"), (3599, "60.0 min"), (5400, "1.50 h")]
)
def test_no_length_is_told_as_nothing(seconds: float, told: str):
    assert long_time(seconds) == told


def test_a_size_has_the_unit_that_fits():
    sizes = (0, 1023, 1536, 5 * 2**20, 2.5 * 2**30)
    assert [memory_size(size) for size in sizes] == ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "2.50 GiB"]
